"""What goes over the connection to Redis, and what becomes of deliveries when it fails.

On a real Redis that each of the rougher tests starts for itself.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from typing import Any

import pytest
from structlog.testing import CapturingLogger
from support.clock import eventually
from support.constants import EVENTS_KEY, NOW_MS, SESSION_KEY
from support.events import clerk_event, user_event
from support.network import free_port
from support.redis_clients import client_of, monitored
from support.redis_servers import frozen, scripted_redis
from support.relay import Relay, run_relay
from support.scriptless_proxy import ScriptlessProxy, scriptless_proxy

from service.dev.embedded import EmbeddedRedis
from service.errors import StoreUnavailableError
from service.store import pipeline
from service.store.partitions import result
from service.store.scripts import SCRIPTS

UNREADABLE = b'{"type":"session.created"}'
StartRedis = Callable[..., EmbeddedRedis]


@pytest.fixture
def connected(own_redis: EmbeddedRedis) -> Iterator[Relay]:
    """A store that has its connection already, with a short timeout."""
    with run_relay(own_redis.url, redis_timeout=1) as relay:
        relay.call(relay.store.probe).result(timeout=30)
        yield relay


@pytest.fixture
def patient(own_redis: EmbeddedRedis) -> Iterator[Relay]:
    """The same, for tests in which Redis stops for a while without a timeout."""
    with run_relay(own_redis.url, redis_timeout=30) as relay:
        relay.call(relay.store.probe).result(timeout=30)
        yield relay


def refusal(relay: Relay, message_id: str = "msg_refused") -> float:
    """Take a delivery that is refused, and return the seconds that took."""
    started = time.monotonic()
    with pytest.raises(StoreUnavailableError):
        relay.take(clerk_event(), message_id)
    return time.monotonic() - started


def is_taken(relay: Relay, message_id: str = "msg_taken") -> bool:
    try:
        return relay.take(clerk_event(), message_id).outcome in {"applied", "stale", "duplicate"}
    except StoreUnavailableError:
        return False


# Round trips


def test_each_delivery_is_one_evalsha_and_nothing_else(connected: Relay, own_client: Any) -> None:
    with monitored(own_client) as commands:
        connected.take(clerk_event(updated_at=NOW_MS - 1000), "msg_applied")
        connected.take(clerk_event(updated_at=NOW_MS - 1000), "msg_applied")
        connected.take(clerk_event(updated_at=NOW_MS - 2000), "msg_stale")
        connected.take(UNREADABLE, "msg_unreadable")
        connected.take({"type": "user.created"}, "msg_ignored")

    assert [command.split()[0] for command in commands] == ["EVALSHA"] * 4


def test_connecting_loads_the_scripts_asks_for_other_partitions_and_says_nothing_else(
    own_redis: EmbeddedRedis, own_client: Any
) -> None:
    with run_relay(own_redis.url) as relay, monitored(own_client) as commands:
        relay.take(clerk_event(), "msg_1")

    own, asks = ["SCRIPT"] * len(SCRIPTS), ["HMGET", "SCRIPT", "EVALSHA", "EXISTS", "EXISTS"]
    assert [command.split()[0] for command in commands] == [*own, *asks, "EVALSHA"]


def test_deliveries_that_wait_share_a_round_trip_and_get_their_own_replies(
    patient: Relay, own_redis: EmbeddedRedis
) -> None:
    futures = []
    with frozen(own_redis):
        futures.append(patient.begin(clerk_event(session_id="sess_first"), "msg_first"))
        eventually(patient.is_sending)
        futures += [patient.begin(clerk_event(session_id=f"sess_{i}"), f"msg_{i}") for i in range(300)]

    outcomes = [future.result(timeout=30) for future in futures]
    assert [outcome.session_id for outcome in outcomes] == ["sess_first", *(f"sess_{i}" for i in range(300))]
    assert {(outcome.outcome, outcome.revision) for outcome in outcomes} == {("applied", 1)}


def test_commands_submitted_together_get_their_own_results_and_errors(connected: Relay) -> None:
    (partition,) = connected.store.partitions
    echoes = [(("ECHO", str(number)), int) for number in range(2 * pipeline.MAX_BATCH)]

    first, refused, *others = connected.call(
        lambda: result(partition.pipeline.submit_all([echoes[0], (("HGET", "too few"), int), *echoes[1:]]))
    ).result(timeout=30)

    assert [first, *others] == list(range(2 * pipeline.MAX_BATCH))
    assert isinstance(refused, StoreUnavailableError)


def test_what_is_wrong_with_all_of_a_round_trip_is_one_line_in_the_log(
    patient: Relay, own_redis: EmbeddedRedis, own_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = CapturingLogger()
    monkeypatch.setattr(pipeline, "log", logger)
    own_client.config_set("maxmemory", "1")
    futures = []
    with frozen(own_redis):
        futures.append(patient.begin(clerk_event(session_id="sess_first"), "msg_first"))
        eventually(patient.is_sending)
        futures += [patient.begin(clerk_event(session_id=f"sess_{i}"), f"msg_{i}") for i in range(9)]

    assert all(isinstance(future.exception(timeout=30), StoreUnavailableError) for future in futures)
    assert [(line.kwargs["error"], line.kwargs["commands"]) for line in logger.calls] == [
        ("OutOfMemoryError", 1),
        ("OutOfMemoryError", 9),
    ]


def test_one_delivery_that_fails_does_not_fail_those_beside_it(
    patient: Relay, own_client: Any, own_redis: EmbeddedRedis
) -> None:
    own_client.set("{clerk}:session:sess_bad", "in the way", ex=3600)
    with frozen(own_redis):
        patient.begin(clerk_event(session_id="sess_0"), "msg_0")
        eventually(patient.is_sending)
        good = patient.begin(clerk_event(session_id="sess_1"), "msg_1")
        bad = patient.begin(clerk_event(session_id="sess_bad"), "msg_bad")
        also_good = patient.begin(clerk_event(session_id="sess_2"), "msg_2")

    assert good.result(timeout=30).outcome == "applied"
    assert isinstance(bad.exception(timeout=30), StoreUnavailableError)
    assert also_good.result(timeout=30).outcome == "applied"


def test_a_delivery_that_nobody_waits_for_any_more_is_not_sent(
    patient: Relay, own_redis: EmbeddedRedis, own_client: Any
) -> None:
    with frozen(own_redis):
        first = patient.begin(clerk_event(updated_at=NOW_MS - 3000), "msg_1")
        eventually(patient.is_sending)
        given_up = patient.begin(clerk_event(updated_at=NOW_MS - 2000), "msg_2")
        last = patient.begin(clerk_event(updated_at=NOW_MS - 1000), "msg_3")
        assert given_up.cancel()
        patient.call(int).result(timeout=30)  # the loop has seen that
    first.result(timeout=30)
    last.result(timeout=30)

    assert own_client.xlen(EVENTS_KEY) == 2
    assert own_client.hget(SESSION_KEY, "_message:msg_2") is None


def test_there_is_a_bound_to_what_may_wait(own_redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "MAX_WAITING", 5)
    with run_relay(own_redis.url, redis_timeout=30) as relay:
        relay.call(relay.store.probe).result(timeout=30)
        with frozen(own_redis):
            futures = [relay.begin(clerk_event(), "msg_first")]
            eventually(relay.is_sending)
            futures += [relay.begin(clerk_event(), f"msg_{i}") for i in range(5)]
            with pytest.raises(StoreUnavailableError):
                relay.take(clerk_event(), "msg_one_too_many")
        for future in futures:
            future.result(timeout=30)


def test_closing_sends_what_waits_and_refuses_what_comes_later(own_redis: EmbeddedRedis, own_client: Any) -> None:
    relay = Relay(own_redis.url)
    futures = [relay.begin(clerk_event(session_id=f"sess_{i}"), f"msg_{i}") for i in range(300)]
    relay.call(lambda: None).result(timeout=30)  # by now, the others wait

    relay.store.close()

    assert {future.result(timeout=30).outcome for future in futures} == {"applied"}
    with pytest.raises(StoreUnavailableError):
        relay.take(clerk_event(), "msg_later")
    relay.close()


def test_a_store_that_was_never_used_closes(own_redis: EmbeddedRedis) -> None:
    Relay(own_redis.url).close()


# What does not even cost a 503


def test_a_script_cache_that_was_flushed_costs_nothing(connected: Relay, own_client: Any) -> None:
    for number in range(3):
        own_client.script_flush()
        assert connected.take(clerk_event(), f"msg_{number}").outcome in {"applied", "stale"}
        own_client.script_flush()
        assert connected.take(UNREADABLE, f"msg_bad_{number}").outcome == "dead_lettered"

    assert own_client.xlen(EVENTS_KEY) == 3


def test_a_connection_that_was_killed_while_idle_costs_nothing(connected: Relay, own_client: Any) -> None:
    for number in range(3):
        own_client.client_kill_filter(_type="normal", skipme=True)
        assert connected.take(clerk_event(), f"msg_{number}").outcome in {"applied", "stale"}


def test_a_connection_that_redis_dropped_for_idling_costs_nothing(connected: Relay, own_client: Any) -> None:
    def others() -> list[str]:
        own = own_client.client_id()
        return [client["id"] for client in own_client.client_list() if int(client["id"]) != own]

    own_client.config_set("timeout", "1")
    assert others()
    eventually(lambda: not others())

    assert connected.take(clerk_event(), "msg_1").outcome == "applied"


# What is in front of Redis, and does not load scripts where they run

SHA_REPLY = b"$40\r\n" + b"0" * 40 + b"\r\n"
SCRIPT_LOAD_REPLIES = {
    "loads them elsewhere": SHA_REPLY,
    "an unknown command": b"-ERR unknown command 'SCRIPT', with args beginning with: 'LOAD' 'local' \r\n",
    "an unsupported command": b"-ERR unsupported command 'script'\r\n",
    "not supported": b"-ERR This command is not supported by the proxy\r\n",
    "invalid": b"-invalid request\r\n",
}


@pytest.fixture(params=SCRIPT_LOAD_REPLIES)
def scriptless(request: pytest.FixtureRequest, own_redis: EmbeddedRedis) -> Iterator[ScriptlessProxy]:
    with scriptless_proxy(own_redis.port, SCRIPT_LOAD_REPLIES[request.param]) as proxy:
        yield proxy


OF_CONNECTING = {b"SCRIPT", b"HMGET", b"EXISTS"}


def sent(proxy: ScriptlessProxy) -> list[str]:
    return [words[0].decode() for words in proxy.commands if words[0] not in OF_CONNECTING and not asks_rights(words)]


def asks_rights(words: list[bytes]) -> bool:
    """Tell whether it is a script without keys: only that which asks for a right, for each connection, has none."""
    return words[0] == b"EVALSHA" and words[2] == b"0"


def test_a_script_that_was_loaded_elsewhere_is_sent_once_as_source(scriptless: ScriptlessProxy) -> None:
    with run_relay(scriptless.url) as relay:
        for number in range(3):
            assert relay.take(clerk_event(updated_at=NOW_MS - 9000 + number), f"msg_{number}").outcome == "applied"
            assert relay.take(UNREADABLE, f"msg_bad_{number}").outcome == "dead_lettered"
        assert relay.take(clerk_event(updated_at=NOW_MS - 9000), "msg_0").outcome == "duplicate"
        assert relay.take(user_event(), "msg_end").sessions == 1

    assert sent(scriptless)[:5] == ["EVALSHA", "EVALSHA", "EVAL", "EVALSHA", "EVAL"]  # it connects again only once
    assert sent(scriptless).count("EVAL") == len(["apply_session", "keep_dead_letter", "mark_user"])


def test_scripts_that_stay_unknown_are_sent_as_source_each_time(own_redis: EmbeddedRedis, own_client: Any) -> None:
    with scriptless_proxy(own_redis.port, SHA_REPLY) as proxy, run_relay(proxy.url) as relay:
        proxy.knows_scripts = False
        for number in range(3):
            assert relay.take(clerk_event(updated_at=NOW_MS - 9000 + number), f"msg_{number}").outcome == "applied"

        # It connected again for the first one only.
        assert sent(proxy) == ["EVALSHA", *["EVALSHA", "EVAL"] * 3]
    assert own_client.xlen(EVENTS_KEY) == 3


def test_unknown_scripts_are_one_warning(own_redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = CapturingLogger()
    monkeypatch.setattr(pipeline, "log", logger)
    with scriptless_proxy(own_redis.port, SHA_REPLY) as proxy, run_relay(proxy.url) as relay:
        proxy.knows_scripts = False
        for number in range(3):
            relay.take(clerk_event(), f"msg_{number}")

    assert [(line.method_name, line.args) for line in logger.calls] == [("warning", ("redis_scripts_unknown",))]


@pytest.mark.parametrize(
    "reply", [b"-ERR unknown command 'EVALSHA'\r\n", b"-ERR unsupported command\r\n", b"-ERR NOSCRIPT No script\r\n"]
)
def test_where_there_is_no_evalsha_the_source_is_sent(own_redis: EmbeddedRedis, own_client: Any, reply: bytes) -> None:
    with scriptless_proxy(own_redis.port, SHA_REPLY) as proxy, run_relay(proxy.url) as relay:
        proxy.refused[b"EVALSHA"] = reply
        for number in range(2):
            assert relay.take(clerk_event(updated_at=NOW_MS - 9000 + number), f"msg_{number}").outcome == "applied"

        assert sent(proxy) == ["EVALSHA", *["EVALSHA", "EVAL"] * 2]
    assert own_client.xlen(EVENTS_KEY) == 2


@pytest.mark.parametrize("reply", [b"-ERR unknown command\r\n", b"-NOSCRIPT No matching script\r\n"])
def test_where_no_script_runs_the_log_says_so(
    own_redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch, reply: bytes
) -> None:
    logger = CapturingLogger()
    monkeypatch.setattr(pipeline, "log", logger)
    with scriptless_proxy(own_redis.port, SHA_REPLY) as proxy, run_relay(proxy.url) as relay:
        proxy.refused |= dict.fromkeys([b"EVALSHA", b"EVAL"], reply)
        refusal(relay, "msg_1")

    (line,) = logger.calls
    assert line.args == ("redis_failed",)
    assert line.kwargs["detail"].endswith(
        "what is in front of Redis can't run scripts, so let REDIS_URL name an address behind it"
    )


def test_where_the_source_is_refused_loading_is_tried_the_next_time(own_redis: EmbeddedRedis, own_client: Any) -> None:
    own_client.execute_command("ACL", "SETUSER", "relay", "on", ">secret", "~*", "allchannels", "+@all", "-eval")
    with scriptless_proxy(own_redis.port, SHA_REPLY) as proxy:
        failures: list[str] = []
        with run_relay(proxy.url.replace("redis://", "redis://relay:secret@")) as relay:
            relay.store.set_metrics_hooks(lambda *_: None, failures.append)
            refusal(relay, "msg_1")
            refusal(relay, "msg_2")

        assert [name for name in sent(proxy) if name != "AUTH"] == ["EVALSHA", "EVALSHA", "EVAL"] * 2
        assert failures == ["NOPERM"] * 2


# Redis that hangs


def test_a_redis_that_hangs_is_a_refusal_then_one_at_once_then_it_recovers(
    connected: Relay, own_redis: EmbeddedRedis
) -> None:
    with frozen(own_redis):
        assert refusal(connected, "msg_1") >= 0.9  # REDIS_TIMEOUT is a second here
        assert min(refusal(connected, f"msg_at_once_{number}") for number in range(5)) < 0.9

    eventually(lambda: is_taken(connected))


def test_refusals_at_once_end_after_a_second(connected: Relay, own_redis: EmbeddedRedis) -> None:
    with frozen(own_redis):
        refusal(connected)
        eventually(lambda: refusal(connected) >= 0.9)


def test_all_that_wait_for_a_redis_that_hangs_are_refused_together(connected: Relay, own_redis: EmbeddedRedis) -> None:
    with frozen(own_redis):
        first = connected.begin(clerk_event(), "msg_first")
        eventually(connected.is_sending)
        waiting = [connected.begin(clerk_event(), f"msg_{number}") for number in range(20)]

        assert isinstance(first.exception(timeout=30), StoreUnavailableError)
        # Not one timeout after the other, which would take ten seconds.
        done, _ = wait(waiting, timeout=5)
        assert len(done) == len(waiting) > 0
        assert all(isinstance(future.exception(), StoreUnavailableError) for future in done)


def test_what_was_refused_but_reached_redis_is_a_duplicate_when_it_comes_again(
    connected: Relay, own_redis: EmbeddedRedis, own_client: Any
) -> None:
    with frozen(own_redis):
        refusal(connected, "msg_1")
    eventually(lambda: own_client.exists(SESSION_KEY))  # Redis has worked off what it was sent

    eventually(lambda: is_taken(connected, "msg_1"))

    assert connected.take(clerk_event(), "msg_1").outcome == "duplicate"
    assert own_client.xlen(EVENTS_KEY) == 1


def test_a_redis_that_hangs_while_connecting_is_a_refusal(own_redis: EmbeddedRedis) -> None:
    with run_relay(own_redis.url, redis_timeout=1) as relay:
        with frozen(own_redis):
            assert refusal(relay) >= 0.9
        eventually(lambda: is_taken(relay))


# Redis that is away, or says no


def test_a_redis_that_is_away_is_a_refusal_until_it_is_back(start_redis: StartRedis) -> None:
    port = free_port()
    with run_relay(f"redis://127.0.0.1:{port}/0") as relay:
        refusal(relay)
        server = start_redis(port=port)
        assert relay.take(clerk_event(), "msg_1").outcome == "applied"

        assert server.process is not None
        server.process.kill()
        server.process.wait()
        refusal(relay)
        refusal(relay)

        start_redis(port=port)
        assert relay.take(clerk_event(), "msg_2").outcome == "applied"


REFUSALS = {
    "loading": b"-LOADING Redis is loading the dataset in memory",
    "read-only": b"-READONLY You can't write against a read only replica.",
    "out of memory": b"-OOM command not allowed when used memory > 'maxmemory'.",
    "no password": b"-NOAUTH Authentication required.",
    "not permitted": b"-NOPERM this user has no permissions to run the 'evalsha' command",
    "disk": b"-MISCONF Redis is configured to save RDB snapshots, but it is currently not able to",
    "busy": b"-BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    "master down": b"-MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "no replicas": b"-NOREPLICAS Not enough good replicas to write.",
    "cluster down": b"-CLUSTERDOWN The cluster is down",
    "moved": b"-MOVED 1234 127.0.0.1:7001",
    "too many clients": b"-ERR max number of clients reached",
    "unheard of": b"-SOMETHING new",
    "no Redis at all": b"HTTP/1.1 400 Bad Request",
    "hung up": None,
}


@pytest.mark.parametrize("at", ["connecting", "writing"])
@pytest.mark.parametrize("kind", REFUSALS)
def test_whatever_redis_says_but_yes_is_a_refusal(kind: str, at: str) -> None:
    sha = b"$40\r\n" + b"0" * 40

    def reply(words: list[bytes]) -> bytes | None:
        return sha if at == "writing" and words[0] == b"SCRIPT" else REFUSALS[kind]

    with scripted_redis(reply) as server, run_relay(server.url, redis_timeout=5) as relay:
        for message_id in ["msg_1", "msg_2"]:
            refusal(relay, message_id)
        with pytest.raises(StoreUnavailableError):
            relay.take(UNREADABLE, "msg_3")
        with pytest.raises(StoreUnavailableError):
            relay.call(relay.store.probe).result(timeout=30)


PLACE = "Error running script (call to f_076bb169a140b41e70aa653f3ed1db8bd327d011): @user_script:49: "  # Redis 6.2


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (
            "WRONGTYPE Operation against a key holding the wrong kind of value script: 07, on @user_script:49.",
            "WRONGTYPE",
        ),
        (f"ERR {PLACE}WRONGTYPE Operation against a key holding the wrong kind of value", "WRONGTYPE"),
        (f"ERR {PLACE}@user_script: 49: -OOM command not allowed when used memory > 'maxmemory'.", "OOM"),
        (f"ERR {PLACE}@user_script: 49: The user executing the script can't run this command or subcommand", "NOPERM"),
        ("ERR ACL failure in script: No permissions to access a key script: on @user_script:49.", "NOPERM"),
        (f"ERR {PLACE}user_script:49: attempt to index local 'x' (a nil value)", "ResponseError"),
    ],
)
def test_what_fails_in_a_script_is_counted_by_its_code(said: str, kind: str) -> None:
    def reply(words: list[bytes]) -> bytes | None:
        return SHA_REPLY.rstrip() if words[0] == b"SCRIPT" else b"-" + said.encode()

    failures: list[str] = []
    with scripted_redis(reply) as server, run_relay(server.url) as relay:
        relay.store.set_metrics_hooks(lambda *_: None, failures.append)
        refusal(relay)

    assert failures == [kind]


def test_a_delivery_is_never_sent_twice(own_redis: EmbeddedRedis) -> None:
    # The connection breaks after the command was read: whether it was run, nobody knows.
    def reply(words: list[bytes]) -> bytes | None:
        return {b"SCRIPT": SHA_REPLY.rstrip(), b"HMGET": b"*1\r\n$-1"}.get(words[0])

    with scripted_redis(reply) as server, run_relay(server.url) as relay:
        refusal(relay)
        assert [words[0] for words in server.commands].count(b"EVALSHA") == 1


def test_a_script_that_stays_unknown_is_a_refusal_not_a_loop() -> None:
    def reply(words: list[bytes]) -> bytes | None:
        known = {b"SCRIPT": SHA_REPLY.rstrip(), b"HMGET": b"*1\r\n$-1", b"EXISTS": b":0"}
        return known.get(words[0], b"-NOSCRIPT No matching script.")

    with scripted_redis(reply) as server, run_relay(server.url) as relay:
        refusal(relay)
        assert [words[0] for words in server.commands if not asks_rights(words)].count(b"EVALSHA") == 2


def test_refusals_keep_redis_own_words_to_the_log() -> None:
    with (
        scripted_redis(lambda _: b"-ERR password=hunter2") as server,
        run_relay(server.url) as relay,
        pytest.raises(StoreUnavailableError) as refused,
    ):
        relay.take(clerk_event(), "msg_1")

    assert "hunter2" not in str(refused.value)


# Replicas


@pytest.fixture
def pair(start_redis: StartRedis) -> tuple[EmbeddedRedis, EmbeddedRedis]:
    """A Redis and its replica, in sync."""
    main = start_redis("--repl-diskless-sync-delay", "0")
    replica = start_redis("--replicaof", "127.0.0.1", str(main.port))
    with client_of(replica.url) as client:
        eventually(lambda: client.info("replication")["master_link_status"] == "up", within=30)
    return main, replica


def test_a_read_only_replica_is_a_refusal(pair: tuple[EmbeddedRedis, EmbeddedRedis]) -> None:
    _, replica = pair
    with run_relay(replica.url) as relay:
        refusal(relay)
        with pytest.raises(StoreUnavailableError):
            relay.call(relay.store.probe).result(timeout=30)
        with client_of(replica.url) as client:
            client.replicaof("NO", "ONE")
        assert relay.take(clerk_event(), "msg_1").outcome == "applied"


@contextlib.contextmanager
def intakes_with_replica(main: EmbeddedRedis) -> Iterator[tuple[Relay, Relay]]:
    """Two stores that ask for one replica: one soon gives up on it, the other has time."""
    with (
        run_relay(main.url, redis_min_replicas=1, redis_timeout=1) as hasty,
        run_relay(main.url, redis_min_replicas=1, redis_timeout=20) as patient,
    ):
        yield hasty, patient


def test_without_the_replicas_asked_for_a_write_is_refused_until_they_have_it(start_redis: StartRedis) -> None:
    main = start_redis("--repl-diskless-sync-delay", "0")
    with intakes_with_replica(main) as (hasty, patient):
        refusal(hasty, "msg_1")
        with pytest.raises(StoreUnavailableError):
            hasty.take(UNREADABLE, "msg_bad")
        with pytest.raises(StoreUnavailableError):
            hasty.call(hasty.store.probe).result(timeout=30)

        start_redis("--replicaof", "127.0.0.1", str(main.port))
        # It was written, after all.
        assert patient.take(clerk_event(), "msg_1").outcome == "duplicate"
        assert patient.take(UNREADABLE, "msg_bad").outcome == "dead_lettered"
        assert patient.take(clerk_event(), "msg_2").outcome == "applied"
        patient.call(patient.store.probe).result(timeout=30)


def test_a_duplicate_too_is_acknowledged_only_when_the_replicas_have_the_first(
    pair: tuple[EmbeddedRedis, EmbeddedRedis],
) -> None:
    main, replica = pair
    with intakes_with_replica(main) as (hasty, patient):
        assert patient.take(clerk_event(), "msg_1").outcome == "applied"
        assert patient.take(UNREADABLE, "msg_bad").outcome == "dead_lettered"
        with frozen(replica):
            refusal(hasty, "msg_1")
            refusal(hasty, "msg_2")
            with pytest.raises(StoreUnavailableError):
                hasty.take(UNREADABLE, "msg_bad")
        assert patient.take(clerk_event(), "msg_1").outcome == "duplicate"
        assert patient.take(clerk_event(), "msg_2").outcome == "duplicate"
        assert patient.take(UNREADABLE, "msg_bad").outcome == "dead_lettered"


def test_a_full_dead_letter_store_says_so_with_replicas_too(pair: tuple[EmbeddedRedis, EmbeddedRedis]) -> None:
    main, _ = pair
    with (
        run_relay(main.url, redis_min_replicas=1, dead_letter_max=0, redis_timeout=20) as relay,
        pytest.raises(StoreUnavailableError) as refused,
    ):
        relay.take(UNREADABLE, "msg_1")

    assert refused.value.code == "dead_letters_full"
