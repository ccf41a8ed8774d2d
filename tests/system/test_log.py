"""The log: one JSON object per line, whatever comes in; nothing secret in it."""

import json
import os
import pty
import re
import subprocess
import sys
from typing import Any

import pytest
from support.clock import eventually
from support.constants import NO_REDIS, OTHER_SECRET, ROOT, SECRET
from support.services import ServiceProcess, run_service
from support.signing import signed

from service.dev import simulator
from service.dev.embedded import EmbeddedRedis

FORGED = 'x\n{"event":"forged"}\r\u2028\x1b[31m'


def logged(script: str, before: str = "configure(settings)", **settings: str) -> str:
    """Run a script with `log` (structlog) and `library` (logging); return its stderr.

    before: what it does first.
    """
    prepared = f"""
import logging, structlog, sys
from service.config import LogSettings
from service.telemetry.log import batched, configure, configure_unless_done
settings = LogSettings(_env_file=None, **{settings!r})
{before}
log = structlog.get_logger("service.test")
library = logging.getLogger("some.library")
{script}
"""
    done = subprocess.run(
        [sys.executable, "-c", prepared], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout == ""
    return done.stderr


def lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.split("\n")[:-1]]


def test_each_line_is_a_json_object_of_the_service_and_of_libraries_alike() -> None:
    ours, theirs = lines(logged("log.info('hello', number=1)\nlibrary.warning('hello %s', 'you')"))

    assert ours == {"time": ours["time"], "level": "info", "logger": "service.test", "event": "hello", "number": 1}
    assert theirs == {"time": theirs["time"], "level": "warning", "logger": "some.library", "event": "hello you"}
    assert ours["time"].endswith("Z")


def test_a_warning_is_one_line_as_the_others_are() -> None:
    [line] = lines(logged("configure(settings)\nlog.warning('hello', number=1, name='x')"))

    assert line == {
        "time": line["time"],
        "level": "warning",
        "logger": "service.test",
        "event": "hello",
        "number": 1,
        "name": "x",
    }


def test_no_value_can_forge_a_line() -> None:
    said = logged(f"log.info('hello', value={FORGED!r})\nlibrary.warning({FORGED!r})")

    first, second = lines(said)
    assert first["value"] == FORGED
    assert second["event"] == FORGED


def test_lines_of_a_batch_keep_their_order() -> None:
    script = """
with batched():
    log.info("first")
    log.warning("second")
    log.info("third")
    sys.stderr.write('{"event": "before the batch"}\\n')
"""

    said = [line["event"] for line in lines(logged(script))]

    assert said == ["before the batch", "first", "second", "third"]


def test_an_exception_is_one_line_without_the_values_around_it() -> None:
    said = logged(
        """
def fail(secret):
    raise ValueError("what went wrong")
try:
    fail("".join(["hun", "ter2"]))  # so that no line of the source has it
except ValueError:
    log.exception("failed")
"""
    )

    [line] = lines(said)
    assert "what went wrong" in line["exception"]
    assert "hunter2" not in said


def test_the_level_is_a_setting() -> None:
    levels = ["debug", "info", "warning", "error", "critical"]
    script = f"""
for set_to in {levels}:
    configure(LogSettings(_env_file=None, log_level=set_to))
    for level in {levels}:
        getattr(log, level)(set_to)
        getattr(library, level)(set_to)
"""

    said = [(line["event"], line["level"], line["logger"]) for line in lines(logged(script))]

    assert said == [
        (set_to, level, logger)
        for number, set_to in enumerate(levels)
        for level in levels[number:]
        for logger in ("service.test", "some.library")
    ]


def test_the_level_of_a_logger_is_obeyed() -> None:
    said = logged("logging.getLogger('service').setLevel('ERROR')\nlog.info('no')\nlog.warning('no')")

    assert said == ""


# Other handlers than ours


KEEPING = """
class Keeping(logging.Handler):
    def emit(self, record):
        self.records.append(record)
Keeping.records = []
logging.root.addHandler(Keeping())
"""


def test_a_handler_that_was_there_gets_warnings() -> None:
    script = """
log.info("not this")
log.warning("hello", number=1)
[record] = Keeping.records
assert (record.name, record.levelname, record.getMessage()) == ("service.test", "WARNING", "hello")
assert record.event_fields == {"number": 1}
"""

    [_, line] = lines(logged(script, KEEPING + "configure(settings)"))

    assert line["event"] == "hello"


def test_a_handler_that_was_there_gets_exceptions() -> None:
    script = """
try:
    1 / 0
except ZeroDivisionError:
    log.exception("failed")
[record] = Keeping.records
assert record.exc_info[0] is ZeroDivisionError
assert record.getMessage() == "failed"
"""

    [line] = lines(logged(script, KEEPING + "configure(settings)"))

    assert line["exception"].startswith("Traceback")


def test_a_process_that_configured_nothing_gets_our_lines() -> None:
    [line] = lines(logged("log.info('hello')", "configure_unless_done(settings)"))

    assert line["event"] == "hello"


def test_a_process_that_configured_logging_gets_all_lines_there() -> None:
    script = """
log.debug("not this")
log.info("5% done", number=1)
log.error("failed", detail="x\\ny")
"""
    own = "logging.basicConfig(level='INFO', format='%(levelname)s %(name)s: %(message)s')"

    said = logged(script, f"{own}\nconfigure_unless_done(settings)", log_level="debug")

    assert said.splitlines() == ["INFO service.test: 5% done number=1", "ERROR service.test: failed detail='x\\ny'"]


def test_a_process_that_configured_structlog_keeps_that() -> None:
    processors = "[lambda _, method, line: line['event']]"
    factory = "structlog.PrintLoggerFactory(sys.stderr)"
    own = f"structlog.configure(processors={processors}, logger_factory={factory})"

    assert logged("log.info('hello')", f"{own}\nconfigure_unless_done(settings)") == "hello\n"


def test_the_form_can_be_set_again() -> None:
    script = "log.info('hello')\nlibrary.error('hello')\n"
    again = "configure(LogSettings(_env_file=None, log_format='console'))\n"

    said = logged(script + again + script).splitlines()

    assert [line.startswith("{") for line in said] == [True, True, False, False]


def test_no_logger_looks_like_a_fault_that_is_none() -> None:
    [line] = lines(logged("logging.getLogger('uvicorn.error').info('Started server process')"))

    assert line["logger"] == "service.server"


# Consoles


def logged_in_a_terminal(**settings: str) -> str:
    ours, theirs = pty.openpty()
    script = f"""
import structlog
from service.config import LogSettings
from service.telemetry.log import configure
configure(LogSettings(_env_file=None, **{settings!r}))
structlog.get_logger("service.test").warning("hello")
"""
    try:
        subprocess.run([sys.executable, "-c", script], cwd=ROOT, stderr=theirs, check=True, timeout=60)
        return os.read(ours, 10_000).decode()
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize(("settings", "is_json"), [({}, False), ({"log_format": "json"}, True)])
def test_a_terminal_gets_readable_lines_unless_json_is_asked_for(settings: dict[str, str], is_json: bool) -> None:
    assert logged_in_a_terminal(**settings).startswith("{") == is_json


def test_a_console_gets_readable_lines() -> None:
    said = logged("log.info('hello', number=1)\nlibrary.warning('there')", log_format="console")

    first, second = said.splitlines()
    assert "hello" in first
    assert "number" in first
    assert not first.startswith("{")
    assert "there" in second


def test_a_console_gets_what_there_is_in_the_order_of_the_call() -> None:
    said = logged("log.info('delivery', outcome='applied', reason=None, session_id='sess_1')", log_format="console")

    assert re.search(r"\] outcome=applied session_id=sess_1$", said.strip())


def test_programs_get_every_field() -> None:
    [line] = lines(logged("log.info('delivery', outcome='applied', reason=None)"))

    assert line["reason"] is None


ODD = [FORGED, "\x1b[31m", "\x9b31m", "\x85", "\u202e", "\ud800", "\x00", "\r2026-11-25T13:00:00Z"]


LOG_THE_ODD = f"for odd in {ODD!r}:\n    log.info('hello', value=odd)\n    library.warning(odd)"


def test_no_value_can_forge_a_line_for_a_console() -> None:
    said = logged(LOG_THE_ODD, log_format="console").split("\n")[:-1]

    assert len(said) == 2 * len(ODD)
    assert all(line.isprintable() and line.startswith("20") for line in said)


def test_no_value_can_steer_a_terminal() -> None:
    said = logged(LOG_THE_ODD)

    assert all(line.isprintable() for line in said.split("\n"))
    assert [line.get("value", line["event"]) for line in lines(said)] == [odd for odd in ODD for _ in range(2)]


def test_no_exception_can_forge_a_line_for_a_console() -> None:
    said = logged(
        f"try:\n    raise ValueError({FORGED!r})\nexcept ValueError:\n    log.exception('failed')", log_format="console"
    )

    first, *rest = said.split("\n")[:-1]
    assert "failed" in first
    assert all(line.startswith("    ") and line.isprintable() for line in rest)


# What the service says


def deliveries(service: ServiceProcess) -> list[dict[str, Any]]:
    return [line for line in service.log_lines() if line["event"] == "delivery"]


def test_each_delivery_is_a_line_and_every_line_is_json(service: ServiceProcess) -> None:
    before = len(deliveries(service))
    event = simulator.sample(session_id="sess_1")
    user_id = event["data"]["user_id"]
    service.deliver(event, "msg_1")
    service.deliver({"type": "session.created"}, "msg_2")
    service.deliver([], "msg_3")
    service.post(b"{}", {})

    said = deliveries(service)[before:]

    for line in said:
        assert line.pop("duration_ms") >= 0
        assert line.pop("time")
        assert line.pop("logger") == "service.access"
    common = {"event": "delivery", "type": None, "session_id": None, "user_id": None}
    assert said == [
        {
            "event": "delivery",
            "level": "info",
            "outcome": "applied",
            "reason": None,
            "type": "session.created",
            "message_id": "msg_1",
            "session_id": "sess_1",
            "user_id": user_id,
        },
        common
        | {
            "level": "warning",
            "outcome": "dead_lettered",
            "reason": "invalid_data",
            "type": "session.created",
            "message_id": "msg_2",
        },
        common | {"level": "info", "outcome": "rejected", "reason": "malformed_event", "message_id": "msg_3"},
        common | {"level": "info", "outcome": "rejected", "reason": "missing_signature", "message_id": None},
    ]


# What to correct at Clerk


def advice(service: ServiceProcess) -> list[tuple[str, str]]:
    lines = [line for line in service.log_lines() if line["event"] == "check_endpoint"]
    return [(line["level"], line["reason"]) for line in lines]


def test_a_wrong_secret_is_a_warning_with_what_to_correct(any_redis: EmbeddedRedis) -> None:
    with run_service(any_redis.url, CLERK_WEBHOOK_SIGNING_SECRET=OTHER_SECRET) as service:
        for _ in range(20):
            assert service.deliver(simulator.sample()).status_code == 400
        eventually(lambda: len(deliveries(service)) == 20)
        [line] = [line for line in service.log_lines() if line["event"] == "check_endpoint"]

    assert (line["level"], line["reason"]) == ("warning", "invalid_signature")
    assert "CLERK_WEBHOOK_SIGNING_SECRET" in line["advice"]
    assert "Signing Secret" in line["advice"]


@pytest.mark.parametrize("path", ["/", "/webhook/clerk", "/webhooks/clerk/", "/healthz"])
def test_a_delivery_to_another_path_is_a_warning_with_what_to_correct(path: str, any_redis: EmbeddedRedis) -> None:
    body = simulator.encode(simulator.sample())
    with run_service(any_redis.url) as service:
        for _ in range(20):
            assert service.http.post(path, content=body, headers=signed(body)).status_code in {404, 405}
        [line] = [line for line in service.log_lines() if line["event"] == "check_endpoint"]

    assert (line["level"], line["reason"]) == ("warning", "not_found")
    assert "let the URL end in /webhooks/clerk" in line["advice"]


def test_a_clock_that_is_off_is_a_warning(any_redis: EmbeddedRedis) -> None:
    body = simulator.encode(simulator.sample())
    with run_service(any_redis.url) as service:
        headers = signed(body) | {"svix-timestamp": "1000000000"}
        assert service.post(body, headers).status_code == 400
        assert advice(service) == [("warning", "timestamp_out_of_tolerance")]


def test_what_scanners_send_is_no_warning(any_redis: EmbeddedRedis) -> None:
    with run_service(any_redis.url) as service:
        assert service.http.post("/login", content=b"{}").status_code == 404
        assert service.http.get("/wp-admin").status_code == 404
        assert service.post(b"{}", {}).status_code == 400
        assert advice(service) == []


def test_nothing_secret_and_nothing_of_the_user_is_logged() -> None:
    redis_url = NO_REDIS.replace("//", "//someone:hunter2@")
    with run_service(redis_url, LOG_LEVEL="debug", METRICS_TOKEN="hunter3") as service:
        body = simulator.encode(simulator.sample("session.ended"))
        headers = signed(body)
        assert service.post(body, headers).status_code == 503
        assert service.post(body, headers | {"svix-id": "msg_2"}).status_code == 400
        assert service.deliver({"type": "session.created", "data": {"id": "!MARKER"}}).status_code == 503
        assert service.deliver(b"MARKER").status_code == 400
        assert service.http.get("/metrics", headers={"authorization": "Bearer MARKER"}).status_code == 401
        assert service.stop() == 0
        said = service.log_text()
        assert {"redis_failed", "delivery"} <= {line["event"] for line in service.log_lines()}

    for secret in [
        *("hunter2", "hunter3", "MARKER", SECRET, SECRET.removeprefix("whsec_")),
        headers["svix-signature"].removeprefix("v1,"),
        *("Sunniva", "never published", "192.0.2.44", "Bergen"),
    ]:
        assert secret not in said
