"""docs/contract.md, section 5: the names of keys, and how PARTITIONS spreads them."""

import zlib

import pytest
from clerk_session_feed.keys import Keys, has_hash_tag, partition_of
from redis.crc import key_slot


def test_one_partition_has_the_keys_of_the_contract() -> None:
    (keys,) = Keys().split(1)
    assert keys.session("sess_1") == "{clerk}:session:sess_1"
    assert keys.user_sessions("user_1") == "{clerk}:user:user_1:sessions"
    assert (keys.events, keys.expiry) == ("{clerk}:events", "{clerk}:expiry")
    assert keys.dead_letters == "{clerk}:dead-letters"


def test_each_of_several_partitions_has_its_number_in_the_tag() -> None:
    parts = Keys().split(8)
    assert parts[7].session("sess_1") == "{clerk:7}:session:sess_1"
    assert parts[7].user_sessions("user_1") == "{clerk:7}:user:user_1:sessions"
    assert [part.events for part in parts] == [f"{{clerk:{number}}}:events" for number in range(8)]
    assert parts[7].channel == "clerk:sessions"
    assert parts[7].user_channel("user_1") == "clerk:sessions:user:user_1"


@pytest.mark.parametrize("prefix", ["{a}", "x{a}y", "{a}{b}", "{{a}", "x{a}\\g<0>"])
def test_the_first_tag_is_the_one_that_is_changed(prefix: str) -> None:
    for number, part in enumerate(Keys(prefix).split(3)):
        changed = prefix.replace("a}", f"a:{number}}}", 1)
        assert part.events == f"{changed}:events"


@pytest.mark.parametrize("prefix", ["{a}", "x{a}y", "{a}{b}", "{{a}", "}{a}"])
def test_a_prefix_with_a_hash_tag_keeps_keys_together(prefix: str) -> None:
    assert has_hash_tag(prefix)
    assert len({key_slot(f"{prefix}:{number}".encode()) for number in range(100)}) == 1


@pytest.mark.parametrize("prefix", ["a", "{}", "{}{a}", "}a{", "{a", "a}"])
def test_a_prefix_without_one_does_not(prefix: str) -> None:
    assert not has_hash_tag(prefix)
    assert len({key_slot(f"{prefix}:{number}".encode()) for number in range(100)}) > 1


@pytest.mark.parametrize("user_id", ["user_1", "user_2abc", "-", "u" * 128])
def test_a_users_partition_is_the_crc32_of_the_id(user_id: str) -> None:
    assert partition_of(user_id, 8) == zlib.crc32(user_id.encode()) % 8


def test_users_spread_evenly_over_partitions() -> None:
    users = [partition_of(f"user_{number}", 8) for number in range(8000)]
    assert all(900 < users.count(partition) < 1100 for partition in range(8))
