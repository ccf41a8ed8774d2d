"""`session-relay check` names each right that is missing, and the program that needs it: docs/redis.md, Rights."""

import re
from collections.abc import Callable, Iterator

import pytest
from clerk_session_feed.keys import Keys
from support.checking import findings, lines, problems
from support.constants import ROOT
from support.documents import REDIS, section
from support.redis_clients import client_of, contents, subscribed
from support.redis_servers import redis_server
from support.relay import make_settings
from support.scriptless_proxy import scriptless_proxy
from support.topologies import Cluster, cluster_of

from service.cli.check_rights import ask_rights
from service.cli.rights_commands import CHECK, TRIAL, TRIED, commands_of
from service.dev.embedded import EmbeddedRedis


def documented(user: str) -> list[str]:
    """Return the words after `ACL SETUSER <user>`."""
    (line,) = re.findall(rf"^ACL SETUSER {user} (.*)$", section(REDIS, "Rights"), re.MULTILINE)
    return str(line).split()


RELAY = documented("relay")
RIGHTS = [each for each in RELAY if each.startswith("+")]
ELSEWHERE = {"+wait", "+select", "+ping", "+info"}
"""Needed with other settings, or by other programs."""


@pytest.fixture(scope="module")
def redis(redis_binary: str) -> Iterator[EmbeddedRedis]:
    with redis_server(redis_binary, "--appendonly", "yes") as server:
        yield server


@pytest.fixture
def as_user(redis: EmbeddedRedis) -> Iterator[Callable[..., str]]:
    """Give a user called `relay` these rights, and return the URL for it."""
    with client_of(redis.url) as client:

        def give(*rules: str) -> str:
            client.execute_command("ACL", "SETUSER", "relay", "reset", *rules)
            return redis.url.replace("//", "//relay:password@")

        yield give
        assert contents(client) == {}


@pytest.fixture
def can_ask(redis: EmbeddedRedis) -> bool:
    """Whether this server can be asked for rights: Redis 6.2 can't. What it does not need is not tried there."""
    with client_of(redis.url) as client:
        return int(client.info("server")["redis_version"].partition(".")[0]) >= 7


def without(right: str) -> list[str]:
    return [each for each in RELAY if each != right]


def test_the_rights_that_are_documented_suffice(as_user: Callable[..., str]) -> None:
    found = findings(as_user(*RELAY))

    assert ("ok", "Redis takes deliveries") in found
    assert "error" not in problems(found)
    (about_check,) = [each for each in found if each.text.startswith("check can't look")]
    assert about_check.level == "warning"
    assert about_check.text.startswith(
        "check can't look at everything (the clock): its user relay lacks +time +config|get"
    )
    assert all(
        each is about_check or each.text.startswith("session-relay expire") for each in found if each.level == "warning"
    )


@pytest.mark.parametrize("right", RIGHTS)
def test_each_right_that_is_missing_is_named(as_user: Callable[..., str], can_ask: bool, right: str) -> None:
    found = findings(as_user(*without(right)))

    named = re.search(rf"user relay .*{re.escape(right)}\b", lines(found))
    assert named or (right in ELSEWHERE and not can_ask)


@pytest.mark.parametrize(
    ("right", "effects"),
    [
        ("+xadd", ["error Redis takes no deliveries"]),
        ("+zscan", ["error user.deleted and user.banned get 503, again and again"]),
        ("+lpushx", ["error /readyz is always 503"]),
        ("+zcount", ["warning /metrics lacks what there is to work off", "warning session-relay expire can't work"]),
        (
            "+hlen",
            [
                "error events that can't be turned into state get 503, again and again",
                "warning /metrics lacks what there is to work off",
            ],
        ),
        (
            "+hexists",
            [
                "error events that can't be turned into state get 503, again and again",
                "warning session-relay expire can't work",
            ],
        ),
        ("+xread", ["warning session-relay expire looks once a minute only"]),
        ("+xinfo", ["warning each session-relay expire paces itself alone"]),
    ],
)
def test_what_comes_of_a_missing_right_is_said(as_user: Callable[..., str], right: str, effects: list[str]) -> None:
    found = problems(findings(as_user(*without(right))))

    said = [line.partition(": its user relay lacks ") for line in found.splitlines()]
    assert [what for what, _, rights in said if rights.startswith(f"{right}: ")] == effects


def test_a_proxy_that_loads_no_scripts_takes_deliveries(redis: EmbeddedRedis) -> None:
    with scriptless_proxy(redis.port, b"-ERR command script not support for normal user\r\n") as proxy:
        found = findings(proxy.url)
        proxy.refused[b"EVALSHA"] = b"-ERR unknown command 'EVALSHA'\r\n"
        found_without_evalsha = findings(proxy.url)

    for each in (found, found_without_evalsha):
        assert ("ok", "Redis takes deliveries") in each
        assert "error" not in problems(each)


def test_what_can_run_no_script_is_told_so(redis: EmbeddedRedis) -> None:
    with scriptless_proxy(redis.port, b"-ERR unsupported command\r\n") as proxy:
        proxy.refused |= dict.fromkeys([b"EVALSHA", b"EVAL"], b"-ERR unsupported command\r\n")
        found = findings(proxy.url)

    (error,) = [each.text for each in found if each.level == "error"]
    assert error.startswith(
        "Redis takes no deliveries: unsupported command: what is in front of Redis can't run scripts"
    )


@pytest.mark.parametrize("right", RIGHTS)
def test_each_right_is_named_where_no_script_can_be_asked(as_user: Callable[..., str], right: str) -> None:
    found = findings(as_user(*without(right), "-evalsha"))

    text = found[2].text
    assert text.startswith("Redis takes no deliveries: its user relay lacks ")
    named = lines(found)
    assert "+evalsha" in text
    assert right in named or right in ELSEWHERE


@pytest.mark.parametrize(
    ("rules", "named"),
    [
        (["resetkeys"], "lacks ~{clerk}:*: give"),
        (["resetkeys", "~{clerk}:user:*", "~{clerk}:events"], "lacks ~{clerk}:*: give"),
        (["resetkeys", "%R~{clerk}:*"], "lacks ~{clerk}:*: give"),
        (["resetchannels"], "lacks &clerk:sessions*: give"),
        (["resetchannels", "&clerk:sessions"], "lacks &clerk:sessions*: give"),
        (["resetchannels", "&clerk:sessions:*"], "lacks &clerk:sessions*: give"),
        (["-hset", "resetchannels"], "lacks +hset &clerk:sessions*: give"),
    ],
    ids=str,
)
def test_keys_and_channels_that_are_missing_are_named(
    as_user: Callable[..., str], can_ask: bool, rules: list[str], named: str
) -> None:
    if not can_ask and rules in (["resetkeys", "%R~{clerk}:*"], ["resetchannels", "&clerk:sessions:*"]):
        pytest.skip("Redis 6.2 has no rights to read alone, and can't be asked for a channel")
    found = findings(as_user(*RELAY, *rules))

    errors = [each.text for each in found if each.level == "error"]
    assert len(errors) == 1
    assert errors[0].startswith("Redis takes no deliveries: its user relay ")
    assert named in errors[0]
    assert "docs/redis.md lists" in errors[0]


def test_the_pattern_of_partitions_is_named(as_user: Callable[..., str]) -> None:
    found = findings(as_user(*RELAY), partitions=4)

    assert "error Redis takes no deliveries: its user relay lacks ~{clerk:*}:*: give" in problems(found)
    assert "error" not in problems(findings(as_user(*RELAY, "~{clerk:*}:*"), partitions=4))


def test_whose_keys_are_named_one_by_one_needs_no_more(as_user: Callable[..., str]) -> None:
    """Only the test deliveries are left out: their keys are of `check` alone."""
    names = ("session:*", "user:*", "events", "expiry", "dead-letters", "probe", "revokes", "reconcile", "partitions")
    keys = [f"~{{clerk}}:{name}" for name in names]

    found = problems(findings(as_user(*RELAY, "resetkeys", *keys)))

    assert "error" not in found
    assert "warning no test delivery is tried: its user relay lacks ~{clerk}:*: give" in found


def test_wait_is_needed_for_replicas(as_user: Callable[..., str]) -> None:
    url = as_user(*RELAY, "-wait")

    assert "error Redis takes no deliveries: its user relay lacks +wait" in problems(
        findings(url, redis_min_replicas=1)
    )


def test_a_right_that_only_the_connection_needs_is_named(as_user: Callable[..., str]) -> None:
    found = problems(findings(as_user(*RELAY, "-select").replace("/0", "/1")))

    assert found.startswith("error Redis takes no deliveries: ")
    assert found.endswith("give the user +select, and what else docs/redis.md lists")


def test_programs_that_need_more_are_named(as_user: Callable[..., str], can_ask: bool) -> None:
    if not can_ask:
        pytest.skip("Redis 6.2 can't be asked")
    (about,) = [each for each in findings(as_user(*RELAY)) if each.text.startswith("rights: ")]

    assert about.level == "ok"
    for needs in (
        *("reconcile +append ", "revoke +dbsize +scan ", "forget +scan +type ", "consumers +scan "),
        *("repartition +watch +unwatch ", " ~{clerk:*}:*"),
    ):
        assert needs in about.text


def test_who_may_do_everything_lacks_nothing(redis: EmbeddedRedis, can_ask: bool) -> None:
    (about,) = [each for each in findings(redis.url) if each.text.startswith("rights: ")]

    assert about.level == "ok"
    if can_ask:
        assert about.text == "rights: the user default lacks none"
    else:
        assert about.text.startswith("rights: the user default has those of serve, expire and dead-letters; ")


def test_nobody_hears_of_the_check(redis: EmbeddedRedis) -> None:
    with client_of(redis.url) as client, subscribed(client, "clerk:sessions", "clerk:sessions:user:.") as subscriber:
        client.execute_command("ACL", "SETUSER", "relay", "reset", *RELAY, "-evalsha")
        findings(redis.url)
        findings(redis.url.replace("//", "//relay:password@"))
        assert subscriber.rest() == []


def test_a_command_that_was_renamed_is_no_missing_right(start_redis: Callable[..., EmbeddedRedis]) -> None:
    server = start_redis("--rename-command", "ZSCAN", "")

    found = findings(server.url)

    errors = [each.text for each in found if each.level == "error"]
    advice = "see whether that was renamed, or a proxy keeps it back"
    what = "user.deleted and user.banned get 503, again and again"
    assert errors == [f"{what}: this Redis does not know zscan: {advice}"]
    assert "lacks" not in problems(found)


def test_a_command_that_was_renamed_is_named_for_each_program(
    start_redis: Callable[..., EmbeddedRedis], can_ask: bool
) -> None:
    renamed = ("XREAD", "XINFO", "TIME", "HSCAN", "XAUTOCLAIM")
    server = start_redis("--appendonly", "yes", *(word for name in renamed for word in ("--rename-command", name, "")))

    found = findings(server.url)

    warnings = [each.text.partition(": see whether")[0] for each in found if each.level == "warning"]
    assert warnings == [
        "session-relay expire looks once a minute only: this Redis does not know xread",
        "each session-relay expire paces itself alone: this Redis does not know xinfo",
        "session-relay dead-letters can't work: this Redis does not know hscan",
        "check can't look at everything (the clock): this Redis does not know time",
    ]
    assert "has those of" not in lines(found)
    assert "lacks +" not in lines(found)
    if can_ask:
        assert ("ok", "rights: the user default lacks none") in found
        (others,) = [each.text for each in found if each.text.startswith("commands: ")]
        assert others.endswith(
            " lacks: READ_TOKEN hscan xinfo xread; repartition xinfo; consumers xautoclaim xinfo xread"
        )


def test_one_unknown_command_does_not_hide_which_rights_are_missing(
    start_redis: Callable[..., EmbeddedRedis], can_ask: bool
) -> None:
    if not can_ask:
        pytest.skip("Redis 6.2 can't be asked")
    server = start_redis("--rename-command", "XINFO", "")
    with client_of(server.url) as client:
        client.execute_command("ACL", "SETUSER", "relay", *[each for each in RELAY if each != "+xinfo"])

    found = findings(server.url.replace("//", "//relay:password@"))

    assert "reconcile +append " in lines(found)  # what can only be asked for
    assert "this Redis does not know xinfo: " in problems(found)


def test_the_stand_in_lacks_a_command_and_no_right(stand_in: EmbeddedRedis) -> None:
    with client_of(stand_in.url) as client:
        client.flushall()
        found = findings(stand_in.url)
        assert client.keys() == []

    text = problems(found)
    assert all(": this Redis does not know " in line for line in text.splitlines())
    assert "know info" in text
    assert ("ok", "Redis takes deliveries") in found


@pytest.fixture(scope="module")
def cluster(redis_binary: str) -> Iterator[Cluster]:
    with cluster_of(redis_binary, replicas=0) as cluster:
        yield cluster


def test_each_node_of_a_cluster_is_asked(cluster: Cluster) -> None:
    """Each node has users of its own."""
    rules = (*RELAY, "~{clerk:*}:*", "+cluster|slots")
    for (node,) in cluster.shards:
        with client_of(node.url) as client:
            client.execute_command("ACL", "SETUSER", "relay", *rules)
    url = cluster.url.replace("//", "//relay:password@")
    assert "error" not in problems(findings(url, partitions=4))
    lacking = cluster.owner("{clerk:3}:events")
    with client_of(cluster.shards[lacking][0].url) as client:
        client.execute_command("ACL", "SETUSER", "relay", "-xadd")

    found = findings(url, partitions=4)

    assert "error Redis takes no deliveries: its user relay lacks +xadd: give" in problems(found)
    for (node,) in cluster.shards:
        with client_of(node.url) as client:
            assert client.keys() == []


def test_who_may_not_ask_a_cluster_for_its_slots_is_told_so(cluster: Cluster) -> None:
    for (node,) in cluster.shards:
        with client_of(node.url) as client:
            client.execute_command("ACL", "SETUSER", "other", *RELAY)

    found = problems(findings(cluster.url.replace("//", "//other:password@")))

    assert found.startswith("error Redis takes no deliveries: ")
    assert re.search(r"give the user \+cluster(\|slots)?, and what else docs/redis.md lists", found)


# What is documented, and what is asked for


def asked(*programs: str) -> set[str]:
    settings = make_settings("redis://127.0.0.1/0")
    commands = [*commands_of(settings, None), *commands_of(settings, Keys())]
    return {f"+{each.right}" for each in commands if each.program in programs}


def test_the_relays_rights_are_those_asked_for() -> None:
    assert {*RIGHTS} - ELSEWHERE == asked(*{*TRIED} - {CHECK, TRIAL})


def test_the_consumers_rights_are_those_asked_for() -> None:
    listed = {each for each in documented("reader") if each.startswith("+")}

    assert listed - {"+eval"} == asked("consumers")  # without that one, consumers do the same, only slower


@pytest.mark.parametrize(
    ("document", "title", "programs"),
    [
        ("docs/reconcile.md", "Rights in Redis", ["reconcile"]),
        ("docs/revoke.md", "Redis rights", ["revoke", "forget"]),
        ("docs/redis.md", "Partitions", ["repartition"]),
    ],
)
def test_the_rights_of_other_commands_are_those_asked_for(document: str, title: str, programs: list[str]) -> None:
    listed = {*re.findall(r"\+[a-z]+", section(ROOT / document, title))}

    assert asked(*programs) - {"+xrange", "+type"} <= listed


def test_a_connection_that_fails_is_not_a_missing_right() -> None:
    with pytest.raises(Exception, match="No such file"):
        ask_rights(make_settings("unix:///nonexistent/redis.sock"))
