"""`session-relay expire`, in processes of its own, on a real Redis: any number of them, killed, stopped, cut off."""

import collections
import contextlib
import json
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from clerk_session_feed import SessionFeed
from clerk_session_feed.keys import Keys, partition_of
from click.testing import Result
from support.children import Program, started
from support.cli import run
from support.clock import eventually
from support.constants import EVENTS_KEY, EXPIRY_KEY, HOUR_MS, NO_REDIS, RELAY, ROOT
from support.events import clerk_event
from support.network import free_port
from support.redis_clients import client_of, monitored, subscribed
from support.redis_servers import start_durable_redis
from support.relay import run_relay
from support.scriptless_proxy import scriptless_proxy
from support.topologies import cluster_of

from service.dev.embedded import EmbeddedRedis

StartRedis = Callable[..., EmbeddedRedis]


@contextlib.contextmanager
def worker_on(redis_url: str, cwd: Path, *options: str, **settings: str) -> Iterator[Program]:
    with started([*RELAY, "expire", *options], cwd, {"REDIS_URL": redis_url} | settings) as program:
        yield program


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Away from any .env."""
    monkeypatch.chdir(tmp_path)


def once(redis_url: str, *options: str, **settings: str) -> Result:
    environment = {"REDIS_URL": redis_url, "LOG_LEVEL": "critical"} | settings
    return run("expire", "--once", *options, environment=environment)


def take(redis_url: str, session_ids: list[str], expire_at: int, **settings: Any) -> None:
    """Take in a live session each, of a user of its own."""
    now_ms = min(expire_at, time.time_ns() // 1_000_000) - HOUR_MS
    with run_relay(redis_url, now_ms=now_ms, **settings) as relay:
        times: dict[str, Any] = {"updated_at": now_ms, "expire_at": expire_at}
        events = [clerk_event(session_id=id_, user_id=id_.replace("sess", "user"), **times) for id_ in session_ids]
        assert relay.take_all((event, "msg_1") for event in events) == {"applied"}


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def expiries(client: Any, stream: str = EVENTS_KEY) -> collections.Counter[str]:
    """Count the expiries in the stream, by session."""
    messages = [json.loads(fields["message"]) for _, fields in client.xrange(stream)]
    return collections.Counter(each["session"]["id"] for each in messages if each["event"]["source"] == "synthetic")


def is_idle(client: Any) -> bool:
    return not client.exists(EXPIRY_KEY)


def test_a_worker_says_what_it_runs_with_and_warns_of_a_misspelt_setting(
    own_redis: EmbeddedRedis, tmp_path: Path
) -> None:
    url = own_redis.url.replace("//", "//default:hunter2@")
    with client_of(own_redis.url) as client:
        client.config_set("requirepass", "hunter2")
    with worker_on(url, tmp_path, REDIS_PREFIX="{other}", STREAM_MAXLEN="7") as worker:
        worker.wait_for("expiry_started", stream="stderr")
        starting, misspelt, *_ = [json.loads(line) for line in worker.stderr.splitlines()]
    assert (starting["event"], starting["settings"]) == ("starting", {"REDIS_URL": own_redis.url, "STREAM_MAXLEN": 7})
    assert misspelt["advice"] == "REDIS_PREFIX is not a setting. If you mean REDIS_KEY_PREFIX, rename it"


def test_four_workers_of_which_one_is_killed_tell_of_each_session_once(
    own_redis: EmbeddedRedis, own_client: Any, tmp_path: Path
) -> None:
    session_ids = [f"sess_{n}" for n in range(400)]
    with contextlib.ExitStack() as stack:
        subscriber = stack.enter_context(subscribed(own_client, "clerk:sessions"))
        workers = [stack.enter_context(worker_on(own_redis.url, tmp_path)) for _ in range(4)]
        with client_of(own_redis.url) as watch:
            eventually(lambda: len(watch.client_list()) >= 2 + 4, within=60)  # all of them look for what is due
        take(own_redis.url, session_ids, now_ms() - HOUR_MS)
        eventually(lambda: expiries(own_client))
        workers[0].process.kill()
        eventually(lambda: is_idle(own_client))

        assert [worker.stop() for worker in workers[1:]] == [0, 0, 0]
        published = [json.loads(data)["session"] for _, data in subscriber.rest()]

    once = dict.fromkeys(session_ids, 1)
    assert expiries(own_client) == once
    assert collections.Counter(each["id"] for each in published if each["status"] == "expired") == once
    revisions = {own_client.hget(f"{{clerk}}:session:{each}", "revision") for each in session_ids}
    assert revisions == {"2"}


def test_an_idle_worker_waits_by_one_command(own_redis: EmbeddedRedis, own_client: Any, tmp_path: Path) -> None:
    take(own_redis.url, ["sess_1"], now_ms() + HOUR_MS)

    with (
        monitored(own_client) as commands,
        worker_on(own_redis.url, tmp_path) as worker,
        client_of(own_redis.url) as me,
    ):
        eventually(lambda: me.info("clients")["blocked_clients"] == 1, within=60)
        assert worker.stop() == 0

    names = ("XREVRANGE", "ZRANGEBYSCORE", "XREAD")
    assert [sent.split()[0] for sent in commands if sent.startswith(names)] == list(names)
    (read,) = [sent for sent in commands if sent.startswith("XREAD")]
    assert int(read.split()[4]) >= 59_000  # ms: how long it blocks


def test_a_session_is_told_of_when_it_runs_out(own_redis: EmbeddedRedis, own_client: Any, tmp_path: Path) -> None:
    with (
        worker_on(own_redis.url, tmp_path) as worker,
        subscribed(own_client, "clerk:sessions:user:user_1") as subscriber,
    ):
        take(own_redis.url, ["sess_1"], expire_at := now_ms() + 700)
        subscriber.next()

        _, data = subscriber.next(within=30)
        line = worker.wait_for(r"^{.*sessions_expired.*}$", stream="stderr")

    message = json.loads(data)
    assert message["event"]["type"] == "session.expired"
    assert int(message["cursor"].partition("-")[0]) >= expire_at
    logged = json.loads(line[0])
    assert (logged["level"], logged["sessions"], logged["max_lag_ms"] >= 0) == ("info", 1, True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_well_when_it_is_told_to(
    own_redis: EmbeddedRedis, own_client: Any, tmp_path: Path, number: signal.Signals
) -> None:
    with worker_on(own_redis.url, tmp_path) as worker:
        take(own_redis.url, ["sess_1"], now_ms() - 1)
        worker.wait_for("sessions_expired", stream="stderr")

        assert worker.stop(number) == 0

    assert worker.stdout == ""
    assert all(json.loads(line) for line in worker.stderr.splitlines())


def test_a_session_that_comes_while_it_waits_for_a_later_one_is_told_of_in_time(
    own_redis: EmbeddedRedis, own_client: Any, tmp_path: Path
) -> None:
    take(own_redis.url, ["sess_later"], now_ms() + HOUR_MS)
    with worker_on(own_redis.url, tmp_path) as worker:
        eventually(lambda: own_client.info("clients")["blocked_clients"] == 1, within=60)

        take(own_redis.url, ["sess_1"], now_ms() + 700)

        worker.wait_for("sessions_expired", stream="stderr")  # long before it looks anyway
    assert expiries(own_client) == {"sess_1": 1}


def test_a_mass_that_expires_at_once_does_not_outrun_a_slow_follower(
    own_redis: EmbeddedRedis, own_client: Any, tmp_path: Path
) -> None:
    session_ids = [f"sess_{n}" for n in range(1600)]
    settings = {"STREAM_MAXLEN": "1000"}  # what expires in ten seconds
    take(own_redis.url, session_ids, now_ms() - 1, stream_maxlen=1000)
    expired = set()
    with SessionFeed.from_url(own_redis.url) as feed, contextlib.ExitStack() as stack:
        updates = stack.enter_context(contextlib.closing(feed.follow(feed.now())))
        workers = [stack.enter_context(worker_on(own_redis.url, tmp_path, **settings)) for _ in range(2)]
        for update in updates:  # raises CursorLostError if some are gone
            expired.add(update.session.id)
            time.sleep(0.001)  # what a follower does with an update
            if len(expired) == len(session_ids):
                break
        logged = [worker.wait_for("expiry_slowed", stream="stderr") for worker in workers]

    assert len(logged) == 2
    assert len(expiries(own_client)) < len(session_ids)  # the first are gone from the stream: they were read in time


def test_it_ends_in_time_while_redis_hangs(own_redis: EmbeddedRedis, own_client: Any, tmp_path: Path) -> None:
    take(own_redis.url, ["sess_1"], now_ms() - 1)
    assert own_redis.process is not None
    with worker_on(own_redis.url, tmp_path, REDIS_TIMEOUT="60") as worker:
        worker.wait_for("sessions_expired", stream="stderr")
        own_redis.process.send_signal(signal.SIGSTOP)
        try:
            assert worker.stop() == 0  # within 25 s
        finally:
            own_redis.process.send_signal(signal.SIGCONT)


def test_it_goes_on_when_redis_comes_back_and_says_once_that_it_was_away(
    start_redis: StartRedis, tmp_path: Path
) -> None:
    port = free_port()
    server = start_durable_redis(start_redis, tmp_path / "data", port)
    with worker_on(server.url, tmp_path) as worker:
        take(server.url, ["sess_1"], now_ms() - 1)
        worker.wait_for("sessions_expired", stream="stderr")
        take(server.url, ["sess_2"], now_ms() + HOUR_MS)
        assert server.process is not None
        server.process.kill()
        server.process.wait()
        worker.wait_for("expiry_failed", stream="stderr")

        server = start_durable_redis(start_redis, tmp_path / "data", port)
        take(server.url, ["sess_3"], now_ms() - 1)
        with client_of(server.url) as client:
            eventually(lambda: expiries(client)["sess_3"])
            client.script_flush()
            take(server.url, ["sess_4"], now_ms() - 1)
            eventually(lambda: expiries(client)["sess_4"])
            assert expiries(client) == {"sess_1": 1, "sess_3": 1, "sess_4": 1}
            assert client.zrange(EXPIRY_KEY, 0, -1) == ["sess_2"]
        assert worker.stop() == 0

    assert worker.stderr.count("expiry_failed") == 1


def test_a_cluster_with_partitions_is_worked_off(redis_binary: str) -> None:
    with cluster_of(redis_binary, replicas=0) as nodes:
        session_ids = [f"sess_{n}" for n in range(12)]
        take(nodes.url, session_ids, now_ms() - 1, partitions=4)
        assert once(nodes.url, PARTITIONS="4").stdout == "12 expired.\n"

        told = collections.Counter[str]()
        for keys in Keys().split(4):
            with client_of(nodes.primary(nodes.owner(keys.events)).url) as client:
                found = expiries(client, keys.events)
                assert {partition_of(each.replace("sess", "user"), 4) for each in found} <= {int(keys.prefix[-2])}
                told += found
        assert told == dict.fromkeys(session_ids, 1)


# --once


def test_once_works_off_what_is_due_and_says_how_many(own_redis: EmbeddedRedis, own_client: Any) -> None:
    take(own_redis.url, [f"sess_{n}" for n in range(3)], now_ms() - 1)
    take(own_redis.url, ["sess_later"], now_ms() + HOUR_MS)

    result = once(own_redis.url)

    assert (result.exit_code, result.stdout, result.stderr) == (0, "3 expired.\n", "")
    assert own_client.zrange(EXPIRY_KEY, 0, -1) == ["sess_later"]


@pytest.mark.parametrize(("broken", "status"), [([], 0), (["sess_1"], 1)])
def test_once_counts_as_json(own_redis: EmbeddedRedis, own_client: Any, broken: list[str], status: int) -> None:
    take(own_redis.url, ["sess_1", "sess_2"], now_ms() - 1)
    for session_id in broken:
        own_client.hset(f"{{clerk}}:session:{session_id}", "state", "{}")

    result = once(own_redis.url, "--json")

    assert result.exit_code == status
    assert json.loads(result.stdout) == {"expired": 2 - len(broken), "unreadable": len(broken)}


def test_json_is_for_once() -> None:
    result = run("expire", "--json", environment={"REDIS_URL": NO_REDIS})

    assert result.exit_code == 2
    assert "--json needs --once" in result.stderr


def test_once_fails_if_something_due_cannot_be_read(own_redis: EmbeddedRedis, own_client: Any) -> None:
    take(own_redis.url, ["sess_1", "sess_2"], now_ms() - 1)
    own_client.hset("{clerk}:session:sess_1", "state", "{}")

    result = once(own_redis.url)

    assert (result.exit_code, result.stdout) == (1, "1 expired.\n")
    assert result.stderr == "Error: 1 can't be read, and stay as they are.\n"


def test_once_fails_in_one_line_without_redis() -> None:
    result = once(NO_REDIS)

    (line,) = result.stderr.splitlines()
    assert (result.exit_code, line.startswith("Redis: ")) == (1, True)


# What trying again can't mend

(RIGHTS,) = re.findall(r"^ACL SETUSER relay on >password (.*)$", (ROOT / "docs/redis.md").read_text(), re.MULTILINE)
"""Those that docs/redis.md gives the relay's user."""


@pytest.fixture
def restricted(own_redis: EmbeddedRedis, own_client: Any) -> Callable[..., str]:
    """Return the URL for a user that has all rights that it needs, but these."""

    def url_without(*missing: str) -> str:
        rights = [right for right in RIGHTS.split() if right not in missing]
        own_client.execute_command("ACL", "SETUSER", "relay", "on", ">password", *rights)
        take(own_redis.url, ["sess_1"], now_ms() - 1)
        return own_redis.url.replace("//", "//relay:password@")

    return url_without


def test_a_user_with_few_rights_suffices(restricted: Callable[..., str], own_client: Any) -> None:
    own_client.zadd(EXPIRY_KEY, {"sess_gone": 1})

    result = once(restricted())

    assert (result.exit_code, result.stdout) == (0, "1 expired.\n")
    assert is_idle(own_client)


def test_a_user_with_the_rights_of_before_suffices_to_poll(
    restricted: Callable[..., str], own_client: Any, tmp_path: Path
) -> None:
    with worker_on(restricted("+xread", "+xrevrange", "+xinfo"), tmp_path) as worker:
        worker.wait_for("sessions_expired", stream="stderr")
        assert worker.stop() == 0

    (line,) = [json.loads(line) for line in worker.stderr.splitlines() if "expiry_polls" in line]
    assert (line["level"], "+xread +xrevrange +xinfo" in line["detail"]) == ("warning", True)
    assert is_idle(own_client)


@pytest.mark.parametrize("said", ["unsupported command 'xrevrange'", "XREVRANGE is not supported by this proxy"])
def test_a_proxy_that_does_not_let_the_stream_be_read_is_polled(
    own_redis: EmbeddedRedis, own_client: Any, tmp_path: Path, said: str
) -> None:
    take(own_redis.url, ["sess_1"], now_ms() - 1)
    with scriptless_proxy(own_redis.port, b"-ERR unsupported command 'script'\r\n") as proxy:
        proxy.refused[b"XREVRANGE"] = f"-ERR {said}\r\n".encode()
        with worker_on(proxy.url, tmp_path) as worker:
            worker.wait_for("sessions_expired", stream="stderr")
            assert worker.stop() == 0

    assert "does not have the command to read the stream" in worker.stderr
    assert is_idle(own_client)


@pytest.mark.parametrize("missing", ["+hmget", "+publish", "+zrangebyscore", "+evalsha", "+pttl", "+xadd"])
def test_a_lack_of_rights_ends_the_worker(
    restricted: Callable[..., str], own_client: Any, tmp_path: Path, missing: str
) -> None:
    with worker_on(restricted(missing), tmp_path, LOG_LEVEL="critical") as worker:
        assert worker.end() == 1

    (line,) = worker.stderr.splitlines()
    assert (line.startswith("Redis: "), line.endswith("docs/redis.md lists")) == (True, True)
    assert expiries(own_client) == {}


@pytest.mark.parametrize("missing", ["+zrangebyscore", "+evalsha", "+script|load", "+zrem"])
def test_a_lack_of_rights_is_told_of_in_one_line(restricted: Callable[..., str], own_client: Any, missing: str) -> None:
    result = once(restricted(missing))

    (line,) = result.stderr.splitlines()
    assert (result.exit_code, line.startswith("Redis: "), line.endswith("docs/redis.md lists")) == (1, True, True)
    assert expiries(own_client) == {}


def test_a_wrong_password_ends_the_worker_with_one_line(own_redis: EmbeddedRedis, tmp_path: Path) -> None:
    with worker_on(own_redis.url.replace("//", "//relay:s3cr3t@"), tmp_path) as worker:
        assert worker.end() == 1

    (line,) = [line for line in worker.stderr.splitlines() if not line.startswith("{")]
    assert line.startswith("Redis: ")
    assert "password" in line
    assert "s3cr3t" not in line
