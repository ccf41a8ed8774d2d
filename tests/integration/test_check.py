"""`session-relay check`: docs/contract.md, section 8. Each trap is found, with what to do about it."""

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.checking import findings, problems
from support.children import finished
from support.constants import DAY_MS, RELAY, ROOT, SECRET
from support.events import clerk_event
from support.network import unused_port
from support.partitions import take_some
from support.redis_clients import client_of, contents, emptied
from support.redis_servers import frozen
from support.relay import Relay, run_relay
from support.slow_proxy import slow_proxy
from support.topologies import Cluster, cluster_of

from service.cli.check_clerk import run_clerk_checks
from service.cli.diagnosis import CheckResult
from service.config import ReconcileSettings, load
from service.dev import simulator
from service.dev.embedded import EmbeddedRedis
from service.dev.fake_clerk import FakeClerk

INSTANCE = str(simulator.sample()["instance_id"])

StartRedis = Callable[..., EmbeddedRedis]


@pytest.fixture
def good_redis(start_redis: StartRedis) -> EmbeddedRedis:
    return start_redis("--appendonly", "yes", "--maxmemory", "100mb")


@pytest.fixture
def good_client(good_redis: EmbeddedRedis) -> Iterator[Any]:
    with client_of(good_redis.url) as client:
        yield client


def test_where_all_is_well_everything_is_ok(good_redis: EmbeddedRedis, good_client: Any) -> None:
    found = findings(good_redis.url, web_concurrency=3)

    assert problems(found) == ""
    text = "\n".join(finding.text for finding in found)
    for part in (
        "signing secrets: 1",
        "TLS: off",
        "takes deliveries",
        "Redis ",
        "memory",
        "5 needed (3 by the web workers, 2 by an expiry worker), during a deploy twice that",
        "PARTITIONS=1",
    ):
        assert part in text
    assert contents(good_client) == {}


def test_a_token_that_could_be_guessed_is_a_warning(good_redis: EmbeddedRedis) -> None:
    (found,) = [each for each in findings(good_redis.url, read_token="short") if "READ_TOKEN" in each.text]
    assert found.level == "warning"


@pytest.mark.parametrize(
    ("setting", "value", "level", "advice"),
    [
        ("maxmemory-policy", "allkeys-lru", "warning", "set it to noeviction"),
        ("maxmemory-policy", "volatile-ttl", "warning", "set it to noeviction"),
        (
            "appendonly",
            "no",
            "warning",
            "a restart loses everything: appendonly and snapshots are off. Set appendonly yes",
        ),
        ("maxmemory", "1", "error", "more memory"),
        ("requirepass", "s3cr3t", "error", "REDIS_URL be like redis://:password@"),
        ("min-replicas-to-write", "1", "error", "NOREPLICAS"),
        ("maxclients", "11", "error", "it takes 11 at most: lower WEB_CONCURRENCY"),
        ("maxclients", "23", "warning", "during a deploy twice that, and it takes 23 at most"),
        ("maxclients", "24", "", ""),
        ("timeout", "1", "", ""),  # connections that idle are dropped, and made again
    ],
)
def test_a_trap_of_the_server_is_found(
    good_redis: EmbeddedRedis, good_client: Any, setting: str, value: str, level: str, advice: str
) -> None:
    good_client.config_set(setting, value)

    found = problems(findings(good_redis.url, web_concurrency=10))

    assert found.startswith(level)
    assert advice in found


@pytest.mark.parametrize(
    ("off", "text"),
    [
        (100, "its clock is 100 s behind this machine's: set both by NTP"),
        (-100, "its clock is 100 s ahead of this machine's: set both by NTP"),
    ],
)
def test_a_clock_that_is_off_by_more_than_a_minute_is_found(
    off: int, text: str, good_redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    with client_of(good_redis.url) as client:
        seconds, microseconds = client.time()
    monkeypatch.setattr(time, "time", lambda: seconds + microseconds / 1e6 + off)

    found = problems(findings(good_redis.url))

    assert text in re.sub("(99|101) s", "100 s", found)


def test_a_clock_that_is_off_by_less_is_not(good_redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 50)

    assert problems(findings(good_redis.url)) == ""


def test_what_the_user_may_not_see_is_no_failure(good_redis: EmbeddedRedis, good_client: Any) -> None:
    good_client.execute_command("ACL", "SETUSER", "relay", "on", ">secret", "~*", "&*", "+@all", "-@dangerous")

    found = problems(findings(good_redis.url.replace("//", "//relay:secret@")))

    assert found.startswith("warning")
    assert "lacks +info" in found
    assert "secret@" not in found


@pytest.mark.parametrize(
    "missing",
    [
        *(["-script"], ["-evalsha"], ["-xadd"], ["-hset"], ["-zadd"], ["-publish"]),
        *(["resetchannels"], ["resetchannels", "&clerk:sessions:user:*"], ["resetkeys", "~{clerk}:probe"]),
    ],
    ids=" ".join,
)
def test_a_user_without_a_right_that_it_needs_is_an_error(
    good_redis: EmbeddedRedis, good_client: Any, missing: list[str]
) -> None:
    rules = ("on", ">secret", "~*", "&*", "+@all", *missing)
    good_client.execute_command("ACL", "SETUSER", "relay", *rules)

    found = problems(findings(good_redis.url.replace("//", "//relay:secret@")))

    assert found.startswith("error Redis takes no deliveries")
    assert "docs/redis.md lists" in found


@pytest.mark.parametrize("key", ["{clerk}:events", "{clerk}:expiry", "{clerk}:dead-letters"])
def test_a_key_of_another_type_is_found(good_redis: EmbeddedRedis, good_client: Any, key: str) -> None:
    good_client.set(key, "somebody's")

    assert f"{key} is a string" in problems(findings(good_redis.url))


def test_what_others_wrote_into_the_stream_is_no_failure(good_redis: EmbeddedRedis, good_client: Any) -> None:
    good_client.xadd("{clerk}:events", {"a": "b"})
    good_client.xadd("{clerk}:events", {"user_id": b"\xff"})

    assert problems(findings(good_redis.url)) == ""


def test_a_box_for_no_dead_letters_is_no_failure(good_redis: EmbeddedRedis) -> None:
    assert problems(findings(good_redis.url, dead_letter_max=0)) == ""


def test_a_redis_that_is_away_is_one_error() -> None:
    with unused_port() as port:
        found = problems(findings(f"redis://127.0.0.1:{port}/0"))

    assert found.startswith("error Redis takes no deliveries")
    assert "see that it runs" in found
    assert len(found.splitlines()) == 1


def test_a_redis_that_hangs_is_one_error_with_what_to_do(good_redis: EmbeddedRedis) -> None:
    with frozen(good_redis):
        found = problems(findings(good_redis.url, redis_timeout=1))

    assert found.startswith("error Redis takes no deliveries: ")
    assert "see that it runs where REDIS_URL says, and can be reached from here" in found
    assert len(found.splitlines()) == 1


@pytest.mark.parametrize("partitions", [1, 4])
def test_a_redis_that_is_far_away_takes_deliveries(good_redis: EmbeddedRedis, partitions: int) -> None:
    with slow_proxy(good_redis.port, seconds=0.12) as url:  # a new connection takes longer than a probe waits
        assert ("ok", "Redis takes deliveries") in findings(url, partitions=partitions)


# Partitions


@pytest.mark.parametrize("was", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("is_", [1, 2, 3, 4, 8])
def test_another_number_of_partitions_than_the_datas_is_found(real_redis: EmbeddedRedis, was: int, is_: int) -> None:
    with emptied(real_redis.url):
        take_some(real_redis.url, was)
        *others, found = findings(real_redis.url, partitions=is_)

    assert found.level == ("ok" if was == is_ else "error")
    assert f"PARTITIONS={is_}" in found.text
    says_what_was_received = any("received" in each.text for each in others)
    assert says_what_was_received == (was == is_)


def test_a_prefix_without_a_hash_tag_has_one_partition(good_redis: EmbeddedRedis) -> None:
    with run_relay(good_redis.url, redis_key_prefix="clerk") as relay:
        relay.take(clerk_event(expire_at=int(time.time() * 1000) + DAY_MS), "msg_1")

    assert problems(findings(good_redis.url, redis_key_prefix="clerk")) == ""


@pytest.fixture(scope="module")
def cluster(redis_binary: str) -> Iterator[Cluster]:
    with cluster_of(redis_binary, replicas=0) as cluster:
        yield cluster


def test_on_a_cluster_every_shard_is_looked_at(cluster: Cluster) -> None:
    take_some(cluster.url, 4)

    found = findings(cluster.url, partitions=4, web_concurrency=2)

    needed = [re.findall(r"\((\d+) by the web workers, (\d+) by", finding.text) for finding in found]
    web, expiry = zip(*(map(int, counts[0]) for counts in needed if counts), strict=True)
    assert len(web) == 3
    assert sum(web) == 2 * (4 + 1)  # the dead letters have a slot of their own
    assert sum(expiry) == 2 * 4
    assert found[-1].text.startswith("PARTITIONS=4 fits")
    assert findings(cluster.url, partitions=2)[-1].level == "error"


# The command


def run_check(cwd: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return finished([*RELAY, "check", *options], cwd, {"PYTHONPATH": str(ROOT)} | environment)


def test_a_configuration_that_works_ends_with_0(good_redis: EmbeddedRedis, tmp_path: Path) -> None:
    ran = run_check(tmp_path, CLERK_WEBHOOK_SIGNING_SECRET=SECRET, REDIS_URL=good_redis.url)

    assert ran.returncode == 0, ran
    assert all(line.startswith("ok ") for line in ran.stdout.splitlines())
    assert ran.stderr == ""
    assert SECRET not in ran.stdout


def test_one_that_can_not_work_ends_with_1(tmp_path: Path) -> None:
    url = "unix://:s3cr3t@/nonexistent/redis.sock"
    ran = run_check(tmp_path, CLERK_WEBHOOK_SIGNING_SECRET=SECRET, REDIS_URL=url)

    assert ran.returncode == 1
    assert "error    Redis takes no deliveries" in ran.stdout
    assert ran.stderr == ""
    assert "s3cr3t" not in ran.stdout


def test_a_setting_that_is_wrong_ends_with_2(tmp_path: Path) -> None:
    ran = run_check(tmp_path, REDIS_URL="redis://127.0.0.1")

    assert ran.returncode == 2
    assert ran.stderr.startswith("CLERK_WEBHOOK_SIGNING_SECRET: ")


@pytest.mark.parametrize("options", [[], ["--clerk"]])
def test_settings_that_are_wrong_are_told_as_json_too(options: list[str], tmp_path: Path) -> None:
    ran = run_check(tmp_path, "--json", *options, REDIS_URL="redis://:s3cr3t/0@127.0.0.1", PORT="http")

    document = json.loads(ran.stdout)
    assert ran.returncode == 2
    assert document["can_work"] is False
    assert {each["level"] for each in document["results"]} == {"error"}
    assert [each["text"] for each in document["results"]] == ran.stderr.splitlines()
    assert "s3cr3t" not in ran.stdout


# With Clerk


@pytest.fixture
def clerk() -> Iterator[FakeClerk]:
    with FakeClerk(instance_id=INSTANCE, environment="production") as clerk:  # the larger budget: no test waits
        yield clerk


def clerk_findings(redis_url: str, clerk: FakeClerk, **settings: Any) -> list[CheckResult]:
    given = {"clerk_secret_key": clerk.secret_key, "clerk_api_url": clerk.url} | settings
    return run_clerk_checks(load(ReconcileSettings, _env_file=None, redis_url=redis_url, **given))


def signed_in(relay: Relay, clerk: FakeClerk, count: int = 1) -> list[str]:
    """Return the ids of sessions that are open at Clerk, and stored."""
    ids = [clerk.sign_in(clerk.add_user()) for _ in range(count)]
    for id_ in ids:
        relay.take(clerk.event("session.created", id_), f"msg_{id_}")
    return ids


@pytest.fixture
def relay_now(real_redis: EmbeddedRedis) -> Iterator[Relay]:
    """A relay with an empty Redis, and the time of this machine."""
    with emptied(real_redis.url), run_relay(real_redis.url, now_ms=int(time.time() * 1000)) as relay:
        yield relay


def test_the_key_its_instance_and_environment_are_told(
    real_redis: EmbeddedRedis, clerk: FakeClerk, relay_now: Relay
) -> None:
    first, second = clerk_findings(real_redis.url, clerk)

    assert first == (
        "ok",
        f"Clerk accepts the key, which is for the production instance {INSTANCE}; the stored sessions name no other",
    )
    assert second == ("ok", "no session is stored as open, so there is none to compare with Clerk's")


def test_stored_sessions_that_agree_with_clerks_are_ok(
    real_redis: EmbeddedRedis, clerk: FakeClerk, relay_now: Relay
) -> None:
    signed_in(relay_now, clerk, 3)

    assert clerk_findings(real_redis.url, clerk)[1:] == [("ok", "3 sessions stored as open agree with Clerk's")]


def test_what_differs_is_counted_by_kind_and_stays(
    real_redis: EmbeddedRedis, clerk: FakeClerk, relay_now: Relay
) -> None:
    ended, gone, unknown, *_ = signed_in(relay_now, clerk, 5)
    clerk.end(ended)
    clerk.vanish(gone)
    clerk.set(unknown, status="asleep")
    with client_of(real_redis.url) as client:
        before = contents(client)
        found = clerk_findings(real_redis.url, clerk)
        assert contents(client) == before

    text = problems(found)
    assert f"warning 1 of 5 sessions can't be compared, like {unknown}: its status asleep is unknown" in text
    assert "warning 2 of 5 sessions stored as open differ from Clerk's (1 ended, 1 gone): run session-relay" in text


def test_fifty_sessions_are_compared_at_most(real_redis: EmbeddedRedis, clerk: FakeClerk, relay_now: Relay) -> None:
    signed_in(relay_now, clerk, 60)

    assert clerk_findings(real_redis.url, clerk)[-1].text.startswith("50 sessions")
    assert len(clerk.requests) == 51


def test_a_lock_that_does_not_expire_is_an_error(real_redis: EmbeddedRedis, clerk: FakeClerk, relay_now: Relay) -> None:
    with client_of(real_redis.url) as client:
        client.set("{clerk}:reconcile:lock", "of nobody")

        found = problems(clerk_findings(real_redis.url, clerk))
        client.delete("{clerk}:reconcile:lock")

    assert found.startswith("error {clerk}:reconcile:lock does not expire")


def test_while_reconcile_runs_its_budget_is_left_to_it(
    real_redis: EmbeddedRedis, clerk: FakeClerk, relay_now: Relay
) -> None:
    signed_in(relay_now, clerk)
    with client_of(real_redis.url) as client:
        client.set("{clerk}:reconcile:lock", "a run", px=20_000)

        _, second = clerk_findings(real_redis.url, clerk)

    assert second == ("ok", "reconcile is comparing all sessions now, so no sample is compared")
    assert len(clerk.requests) == 1


def test_a_key_of_another_instance_is_an_error(real_redis: EmbeddedRedis, clerk: FakeClerk, relay_now: Relay) -> None:
    signed_in(relay_now, clerk)
    with FakeClerk(environment="production") as other:
        (found,) = clerk_findings(real_redis.url, other)

    assert found.level == "error"
    assert other.instance_id in found.text
    assert INSTANCE in found.text


def test_a_key_that_clerk_refuses_is_an_error(real_redis: EmbeddedRedis, clerk: FakeClerk, relay_now: Relay) -> None:
    (found,) = clerk_findings(real_redis.url, clerk, clerk_secret_key="sk_live_wrong")

    assert found.level == "error"
    assert "CLERK_SECRET_KEY" in found.text
    assert "sk_live" not in found.text


def test_a_redis_that_is_away_is_an_error_of_the_checks_with_clerk(clerk: FakeClerk) -> None:
    (found,) = clerk_findings("unix:///nonexistent/redis.sock", clerk)

    assert found.level == "error"
    assert found.text.startswith("Redis: ")


def test_the_checks_with_clerk_need_no_signing_secret(
    good_redis: EmbeddedRedis, clerk: FakeClerk, tmp_path: Path
) -> None:
    environment = {"REDIS_URL": good_redis.url, "CLERK_SECRET_KEY": clerk.secret_key, "CLERK_API_URL": clerk.url}

    ran = run_check(tmp_path, "--clerk", **environment)

    assert ran.returncode == 0, ran
    assert "warning  CLERK_WEBHOOK_SIGNING_SECRET is not set" in ran.stdout
    assert f"ok       Clerk accepts the key, which is for the production instance {INSTANCE}" in ran.stdout
    assert clerk.secret_key not in ran.stdout + ran.stderr


def test_what_clerk_refuses_ends_with_1(good_redis: EmbeddedRedis, clerk: FakeClerk, tmp_path: Path) -> None:
    environment = {"CLERK_WEBHOOK_SIGNING_SECRET": SECRET, "REDIS_URL": good_redis.url, "CLERK_API_URL": clerk.url}

    ran = run_check(tmp_path, "--clerk", CLERK_SECRET_KEY="sk_live_wrong", **environment)

    assert ran.returncode == 1
    assert ran.stdout.splitlines()[-1].startswith("error ")


def test_the_checks_with_clerk_need_the_key(good_redis: EmbeddedRedis, tmp_path: Path) -> None:
    ran = run_check(tmp_path, "--clerk", CLERK_WEBHOOK_SIGNING_SECRET=SECRET, REDIS_URL=good_redis.url)

    assert ran.returncode == 2
    assert ran.stderr.startswith("CLERK_SECRET_KEY: ")
