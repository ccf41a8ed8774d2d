"""GET /events and POST /events/token: docs/read.md. Under `serve`, and under a plain WSGI server."""

import contextlib
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from support.clock import eventually, in_time
from support.constants import DAY_MS
from support.event_source import EventSource
from support.events import clerk_event
from support.redis_clients import client_of
from support.redis_servers import DurableRedis, durable_redis, redis_server
from support.relay import make_settings
from support.services import Endpoint, ServiceProcess, run_plain_wsgi, run_service

from service.dev.embedded import EmbeddedRedis

TOKEN: Final = "a-token-to-read-with"
OTHER_TOKEN: Final = "another-token-to-read-with"
AUTHORIZED: Final = {"authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def redis_of_readers(redis_binary: str) -> Iterator[EmbeddedRedis]:
    """One that nobody empties: readers would be told that they have lost their place."""
    with redis_server(redis_binary) as server:
        yield server


@pytest.fixture(scope="module")
def served(redis_of_readers: EmbeddedRedis) -> Iterator[Endpoint]:
    with run_service(redis_of_readers.url, READ_TOKEN=f"{TOKEN}, {OTHER_TOKEN}") as service:
        yield service


@pytest.fixture(scope="module")
def plain(redis_of_readers: EmbeddedRedis) -> Iterator[Endpoint]:
    with run_plain_wsgi(make_settings(redis_of_readers.url, read_token=f"{TOKEN},{OTHER_TOKEN}")) as endpoint:
        yield endpoint


@pytest.fixture(params=["served", "plain"], ids=["serve", "plain WSGI"])
def reads(request: pytest.FixtureRequest) -> Endpoint:
    endpoint: Endpoint = request.getfixturevalue(request.param)
    return endpoint


def put(reads: Endpoint, session_id: str = "sess_1", status: str = "active", **values: Any) -> str:
    """Deliver an event, and return its cursor."""
    now_ms = time.time_ns() // 1_000_000
    values = {"updated_at": now_ms, "expire_at": now_ms + DAY_MS} | values
    response = reads.deliver(clerk_event(status, session_id=session_id, **values))
    assert response.status_code == 200
    return str(response.json()["cursor"])


def follow(reads: Endpoint, path: str = "/events", **headers: str) -> EventSource:
    return EventSource(reads.port, path, AUTHORIZED | headers)


def token_for(reads: Endpoint, **asked: object) -> str:
    response = reads.http.post("/events/token", json=asked, headers=AUTHORIZED)
    assert response.status_code == 200, response.text
    assert response.headers["cache-control"] == "no-store"
    return str(response.json()["token"])


def test_what_is_applied_comes_with_its_cursor(reads: Endpoint) -> None:
    with follow(reads) as events:
        assert events.response.status == 200
        assert events.response.headers["content-type"].startswith("text/event-stream")
        assert events.response.headers["cache-control"] == "no-store"
        events.begin()
        cursor = put(reads)
        (event,) = events.take(1)

        assert (event.type, event.id) == ("session", cursor)
        assert event.data == reads.http.get("/sessions/sess_1", headers=AUTHORIZED).json()


def test_it_goes_on_exactly_where_a_reader_was(reads: Endpoint) -> None:
    cursors = [put(reads, f"sess_{number}") for number in range(6)]
    with follow(reads, f"/events?after={cursors[1]}") as events:
        assert [event.id for event in events.take(4)] == cursors[2:]
        cursors.append(put(reads, "sess_next"))
        assert [event.id for event in events.take(1)] == cursors[6:]
    with follow(reads, f"/events?after={cursors[1]}", last_event_id=cursors[3]) as events:  # as browsers come back
        assert [event.id for event in events.take(3)] == cursors[4:]


def test_a_reader_who_was_told_nothing_can_go_on_too(reads: Endpoint) -> None:
    with follow(reads) as events:
        place = events.begin()
    cursor = put(reads)
    with follow(reads, last_event_id=place) as events:
        assert [event.id for event in events.take(1)] == [cursor]


def test_a_user_narrows(reads: Endpoint) -> None:
    with follow(reads, "/events?user=user_2") as events:
        events.begin()
        put(reads, "sess_1")
        cursor = put(reads, "sess_2", user_id="user_2")

        assert [event.id for event in events.take(1)] == [cursor]


def test_a_trimmed_place_is_one_resync(reads: Endpoint, redis_of_readers: EmbeddedRedis) -> None:
    for number in range(5):
        put(reads, f"sess_{number}")
    with client_of(redis_of_readers.url) as client:
        client.xtrim("{clerk}:events", maxlen=1, approximate=False)
    with follow(reads, last_event_id="1-0") as events:
        (resync,) = events.take(1)
        cursor = put(reads, "sess_last")
        (event,) = events.take(1)

    assert resync.type == "resync"
    assert resync.data == {"reason": "trimmed", "cursor": resync.id}
    assert (event.type, event.id) == ("session", cursor)


@pytest.mark.parametrize("last_id", ["x", "1-1\x0b", "9" * 21, "-", "1-1,", "0:1-1,0:1-1", "\xd9\xa1-1", "1" * 65_000])
def test_a_last_id_that_is_none_is_refused(reads: Endpoint, last_id: str) -> None:
    with contextlib.closing(follow(reads, last_event_id=last_id)) as events:
        assert events.response.status in {400, 431}


# Tokens for browsers


def test_a_token_shows_one_user_and_ends_when_its_time_is_over(reads: Endpoint) -> None:
    token = token_for(reads, user_id="user_2", seconds=2)
    with EventSource(reads.port, f"/events?token={token}") as events:
        assert events.response.headers["access-control-allow-origin"] == "*"
        events.begin()
        put(reads, "sess_1")
        cursor = put(reads, "sess_2", "ended", user_id="user_2")
        told = list(events)

    assert [(event.type, event.id) for event in told] == [("session", cursor), ("end", cursor)]
    assert told[-1].data == {"reason": "token_expired"}
    with EventSource(reads.port, f"/events?token={token}") as events:
        assert events.response.status == 401
        assert events.response.headers["access-control-allow-origin"] == "*"


@pytest.fixture
def session_id() -> str:
    """One that no other test has ended."""
    return f"sess_{uuid.uuid4().hex}"


def test_a_token_for_a_session_ends_with_it(reads: Endpoint, session_id: str) -> None:
    put(reads, session_id)
    token = token_for(reads, session_id=session_id)
    with EventSource(reads.port, f"/events?token={token}") as events:
        events.begin()
        put(reads, "sess_other", "ended")
        cursor = put(reads, session_id, "revoked")
        told = list(events)

    assert [(event.type, event.id) for event in told] == [("session", cursor), ("end", cursor)]
    assert told[-1].data == {"reason": "session_ended", "session_id": session_id, "status": "revoked"}


def test_a_session_that_has_ended_is_told_at_once(reads: Endpoint, session_id: str) -> None:
    put(reads, session_id, "removed")
    with EventSource(reads.port, f"/events?token={token_for(reads, session_id=session_id)}") as events:
        told = list(events)

    # What ended it may come as news: the process that is asked may not have read it yet.
    assert told[-1].type == "end"
    assert {event.type for event in told[:-1]} <= {"session"}


def test_a_token_shows_nothing_else(reads: Endpoint) -> None:
    token = token_for(reads, user_id="user_2")
    for path in ("/sessions", "/stats", "/events", "/sessions/sess_1"):
        assert reads.http.get(path, headers={"authorization": f"Bearer {token}"}).status_code == 401
    for path in ("/sessions", "/stats"):
        assert reads.http.get(f"{path}?token={token}").status_code == 401
    assert reads.http.get(f"/events?token={token}&user=user_1").status_code == 400


@pytest.mark.parametrize("token", ["", "x", TOKEN, "a.b", "a.b.c", "%00", "..", ".eJwDAAAAAAE.x", "x" * 5000])
def test_what_is_no_token_is_401(reads: Endpoint, token: str) -> None:
    assert reads.http.get(f"/events?token={token}").status_code == 401


def test_how_long_a_token_lasts_is_told(reads: Endpoint) -> None:
    def seconds(**asked: object) -> float:
        answer = reads.http.post("/events/token", json=asked | {"user_id": "user_1"}, headers=AUTHORIZED).json()
        return float(answer["expires_at"] / 1000 - time.time())

    assert seconds() == pytest.approx(300, abs=60)
    assert seconds(seconds=3600) == pytest.approx(3600, abs=60)


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"[]", b"{}", b'{"user_id":"user_1","session_id":"sess_1"}', b'{"user_id":1}', b'{"user_id":""}'),
        *(b'{"user_id":"a b"}', b'{"user_id":"user_1","seconds":0}', b'{"user_id":"user_1","seconds":3601}'),
        *(b'{"user_id":"user_1","seconds":true}', b'{"user_id":"user_1","seconds":1.5}', b"[" * 4000, b"\xff"),
        *(b'{"user_id":"user_1","seconds":1' + b"0" * 4000 + b"}", b'{"user_id":"user_1"}' + b" " * 100_000),
    ],
)
def test_a_token_for_nothing_is_400(reads: Endpoint, body: bytes) -> None:
    response = reads.http.post("/events/token", content=body, headers=AUTHORIZED)

    assert (response.status_code, response.json()["code"]) == (400, "invalid_parameter")


def test_only_who_has_the_read_token_makes_tokens(reads: Endpoint) -> None:
    assert reads.http.post("/events/token", json={"user_id": "user_1"}).status_code == 401
    assert reads.http.get("/events/token", headers=AUTHORIZED).status_code == 405


def test_the_token_is_not_logged(redis_of_readers: EmbeddedRedis) -> None:
    with run_service(redis_of_readers.url, READ_TOKEN=TOKEN, LOG_LEVEL="debug") as service:
        token = token_for(service, user_id="user_1", seconds=1)
        with EventSource(service.port, f"/events?token={token}") as events:
            list(events)
        with EventSource(service.port, f"/events?token={token}") as events:
            assert events.response.status == 401
        service.stop()

        assert token not in service.final_log
        assert TOKEN not in service.final_log


# The server


def test_streams_end_when_the_service_stops(redis_of_readers: EmbeddedRedis) -> None:
    with run_service(redis_of_readers.url, READ_TOKEN=TOKEN) as service:
        with contextlib.ExitStack() as stack:
            streams = [stack.enter_context(follow(service)) for _ in range(20)]
            for each in streams:
                each.begin()
            with in_time(8):
                assert service.stop() == 0
            assert all(list(each) == [] for each in streams)
        assert "Traceback" not in service.final_log


def test_a_stream_outlasts_the_time_of_other_responses(redis_of_readers: EmbeddedRedis) -> None:
    with run_service(redis_of_readers.url, READ_TOKEN=TOKEN) as service, follow(service) as events:
        events.begin()
        time.sleep(6)  # longer than any other response takes
        cursor = put(service)

        assert [event.id for event in events.take(1)] == [cursor]


def test_who_leaves_is_forgotten(served: ServiceProcess) -> None:
    def connections() -> int:
        return sum(1 for _ in Path(f"/proc/{served.process.pid}/fd").iterdir())

    put(served)
    before = connections()
    streams = [follow(served) for _ in range(30)]
    for each in streams:
        each.begin()
    assert connections() >= before + 30
    for each in streams:
        each.close()

    eventually(lambda: connections() <= before + 3)


def test_who_does_not_read_is_cut_off_and_others_are_not(own_redis: EmbeddedRedis, own_client: Any) -> None:
    with run_service(own_redis.url, READ_TOKEN=TOKEN) as service, socket.socket() as slow, follow(service) as events:
        events.begin()
        put(service)
        events.take(1)
        files = Path(f"/proc/{service.process.pid}/fd")
        before = len(list(files.iterdir()))
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", service.port))
        slow.sendall(f"GET /events HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\n\r\n".encode())
        eventually(lambda: len(list(files.iterdir())) > before)
        [(_, entry)] = own_client.xrevrange("{clerk}:events", count=1)
        filling = '"actor":{"sub":"user_9","filling":"%s"}' % ("x" * 4000)
        entry["message"] = entry["message"].replace('"actor":null', filling)
        with own_client.pipeline(transaction=False) as pipeline:
            for _ in range(4000):  # 20 MB: more than what the kernel buffers
                pipeline.xadd("{clerk}:events", entry)
            last = pipeline.execute()[-1]

        for event in events:
            assert event.type == "session"
            if event.id == last:
                break
        eventually(lambda: len(list(files.iterdir())) <= before)


@pytest.fixture
def durable(redis_binary: str, tmp_path: Path) -> Iterator[DurableRedis]:
    with durable_redis(redis_binary, tmp_path) as server:
        yield server


def test_a_stream_lives_through_a_restart_of_redis_and_its_reader_through_one_of_the_service(
    durable: DurableRedis,
) -> None:
    with run_service(durable.url, READ_TOKEN=TOKEN) as service:
        with follow(service) as events:
            place = events.begin()
            cursors = [put(service)]
            told = events.take(1)
            durable.kill()
            eventually(lambda: service.http.get("/readyz").status_code == 503)
            durable.start()
            eventually(lambda: service.http.get("/readyz").status_code == 200)
            cursors += [put(service, f"sess_{number}") for number in range(2, 5)]
            told += events.take(3)
        assert [event.id for event in told] == cursors
        assert {event.type for event in told} == {"session"}
        missed = put(service, "sess_missed")
    with run_service(durable.url, READ_TOKEN=TOKEN, WEB_CONCURRENCY="2") as service:
        for last_id, expected in ((told[-1].id, [missed]), (place, [*cursors, missed])):
            with follow(service, last_event_id=last_id) as events:
                assert [event.id for event in events.take(len(expected))] == expected


def test_partitions_have_one_id_for_all(real_redis: EmbeddedRedis, real_client: Any) -> None:
    with run_service(real_redis.url, READ_TOKEN=TOKEN, PARTITIONS="3") as service:
        with follow(service) as events:
            place = events.begin()
            cursors = [put(service, f"sess_{number}", user_id=f"user_{number}") for number in range(9)]
            told = events.take(9)
        assert sorted(event.data["cursor"] for event in told) == sorted(cursors)
        with follow(service, last_event_id=told[4].id) as events:
            rest = events.take(4)
        assert {event.data["cursor"] for event in rest} == {event.data["cursor"] for event in told[5:]}
        with follow(service, last_event_id=place) as events:
            assert {event.data["cursor"] for event in events.take(9)} == set(cursors)
