"""What moves sessions between partitions, apart from `repartition`, which looks for them."""

from support.relay import make_settings

from service.dev.embedded import EmbeddedRedis
from service.store.places import Places
from service.workers.moving import Moved, Mover


def test_a_session_that_has_gone_since_it_was_found_is_not_reported(relay_redis: EmbeddedRedis) -> None:
    moved = Moved()
    with Places(make_settings(relay_redis.url)) as places:
        mover = Mover(places.of(3), lambda *_: None, moved)

        mover.move_sessions(places.main, [b"sess_gone"])

    assert moved.unreadable == set()
