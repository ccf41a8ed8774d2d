"""Nobody is shown what is not theirs: a service that is fed secrets in every place, and what is seen of it."""

import dataclasses
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, get_args

import httpx
import pytest
from click.testing import CliRunner
from support.children import started
from support.constants import DAY_MS, DEAD_LETTERS_KEY, EVENTS_KEY, RELAY, SECRET
from support.events import clerk_event, payload, user_event
from support.raw_http import exchange, request_head
from support.redis_clients import client_of, contents, subscribed
from support.redis_servers import redis_server
from support.relay import make_settings
from support.services import Endpoint, ServiceProcess, metric, run_plain_wsgi, run_service
from support.signing import signed

from service import errors, models
from service.clerk import events as clerk
from service.clerk.users import UserData
from service.cli import main
from service.telemetry import log, metrics

pytestmark = pytest.mark.real_redis

MARK: Final = "Zq7Xk"
"""In everything that nobody may see."""
PHONE: Final = "+4722998877"
TOKEN: Final = f"metrics-{MARK}-tøken"
PASSWORD: Final = f"redis-{MARK}-password"
SECRETS: Final = (MARK, PHONE, SECRET, SECRET.removeprefix("whsec_"))

PRIVATE: Final[dict[str, Any]] = {
    "first_name": f"{MARK} Sunniva",
    "email_addresses": [{"email_address": f"{MARK}@example.com", "verification": {"nonce": MARK}}],
    "phone_numbers": [{"phone_number": PHONE}],
    "address": f"{MARK} street 1, Bergen",
    "token": f"sk_live_{MARK}",
    "password_digest": f"$2a$12${MARK}",
    "private_metadata": {"note": f"{MARK}\x1b[31m", f"{MARK}-key": {MARK: [MARK]}},
    "public_metadata": {"note": MARK},
    "unsafe_metadata": {"note": f'\n{{"event":"forged {MARK}"}}\n'},
    "external_accounts": [{"approved_scopes": MARK, "access_token": MARK}],
}
HEADERS: Final = {
    "user-agent": f"{MARK}/1.0",
    "cookie": f"__session={MARK}",
    "authorization": f"Bearer {MARK}",
    "x-forwarded-for": MARK,
    "referer": f"https://example.com/?token={MARK}",
}
ODD_METADATA: Final[dict[str, Any]] = {
    "client_id": f"{MARK} is no id",
    "last_active_organization_id": {"id": MARK},
    "latest_activity": {"city": [MARK], "country": MARK * 300, "is_mobile": MARK},
    "tasks": [{"key": {MARK: MARK}}, MARK, {"key": "choose-organization", **PRIVATE}],
}


def marked(event: Any) -> Any:
    """Return the event with secrets in each of its objects, but for the actor, which is published whole."""
    if isinstance(event, list):
        return [marked(value) for value in event]
    if not isinstance(event, dict):
        return event
    return PRIVATE | {key: value if key == "actor" else marked(value) for key, value in event.items()}


def private_event(status: str = "active", **data: Any) -> Any:
    now = int(time.time() * 1000)
    event = marked(clerk_event(status, **{"updated_at": now, "expire_at": now + DAY_MS} | data))
    event["data"]["user"] = PRIVATE
    event["event_attributes"]["http_request"] = {"client_ip": MARK, "user_agent": MARK, **PRIVATE}
    return event


def private_user_event(type_: str, **data: Any) -> Any:
    now = int(time.time() * 1000)
    event = marked(user_event(type_, occurred_at=now, **{"updated_at": now} | data))
    event["event_attributes"] = {"http_request": {"client_ip": MARK, "user_agent": MARK, **PRIVATE}}
    return event


UNREADABLE: Final = {
    "invalid_data": {"data": MARK},
    "invalid_object": {"object": MARK},
    "invalid_id": {"id": f"{MARK}\n\x1b[31m"},
    "invalid_user_id": {"user_id": [MARK]},
    "invalid_status": {"status": MARK},
    "invalid_time": {"expire_at": MARK},
    "invalid_actor": {"actor": MARK},
}


ABOUT_USERS: Final = {"msg_nobody_user_gone", "msg_nobody_user_banned"}
"""Dead letters."""


@dataclasses.dataclass
class Story:
    """What the world saw of a service that was fed all this."""

    log_format: str
    answers: list[httpx.Response]
    raw_answers: list[bytes]
    log: str
    metrics: str
    redis: dict[str, Any]
    letters: dict[str, str]
    published: list[tuple[str, str]]
    shown: dict[str, str]
    """What each command printed."""
    signatures: list[str]


@pytest.fixture(scope="module", params=["json", "console"])
def story(request: pytest.FixtureRequest, redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Story:
    directory = tmp_path_factory.mktemp("elsewhere")
    with (
        redis_server(redis_binary) as server,
        client_of(server.url) as client,
        subscribed(client, "clerk:sessions", "clerk:sessions:user:user_1") as subscriber,
    ):
        client.config_set("requirepass", PASSWORD)
        redis_url = server.url.replace("//", f"//:{PASSWORD}@")
        with run_service(
            redis_url, LOG_LEVEL="debug", LOG_FORMAT=request.param, METRICS_TOKEN=TOKEN, MAX_BODY_BYTES="100000"
        ) as service:
            sender = _Sender(service)
            sender.send_what_is_taken()
            sender.send_what_is_refused()
            letters = client.hgetall(DEAD_LETTERS_KEY)
            published = subscriber.rest()
            shown = dict(_commands(redis_url))
            shown |= dict(_tail(redis_url, directory, *(["--json"] if request.param == "json" else [])))
            held = {key: value for key, value in contents(client).items() if key != DEAD_LETTERS_KEY}
            assert server.process is not None
            server.process.kill()
            server.process.wait()
            sender.send_without_redis()
            scraped = service.http.get("/metrics", headers={b"authorization": f"Bearer {TOKEN}".encode()})
            assert service.stop() == 0
            shown |= dict(_commands_without_redis(redis_url))
            return Story(
                log_format=request.param,
                answers=sender.answers,
                raw_answers=sender.raw_answers,
                log=service.log_text(),
                metrics=scraped.text,
                redis=held,
                letters=letters,
                published=published,
                shown=shown,
                signatures=sender.signatures,
            )


class _Sender:
    def __init__(self, service: ServiceProcess) -> None:
        self.service = service
        self.answers: list[httpx.Response] = []
        self.raw_answers: list[bytes] = []
        self.signatures: list[str] = []

    def send(self, event: object, status: int, message_id: str | None = None, **headers: str) -> None:
        body = event if isinstance(event, bytes) else json.dumps(event).encode()
        signature = signed(body, message_id)
        self.signatures.append(signature["svix-signature"].removeprefix("v1,"))
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.keep(self.service.post(body, HEADERS | signature | named), status)

    def keep(self, answer: httpx.Response, status: int) -> None:
        assert answer.status_code == status, answer.text
        self.answers.append(answer)

    def send_what_is_taken(self) -> None:
        self.send(private_event(), 200, "msg_created")
        self.send(private_event(), 200, "msg_created")
        self.send(private_event(updated_at=1_700_000_000_000), 200, "msg_late")
        self.send(private_event(session_id="sess_odd", **ODD_METADATA), 200)
        self.send(private_event(session_id="sess_type") | {"type": 'session.\n\x1b[31m{"event":"forged"}\x85'}, 200)
        self.send(private_event("revoked", session_id="sess_revoked"), 200)
        for sample in ("session.created.impersonated", "session.created.sdk-spelling", "user.updated"):
            self.send(marked(payload(sample)), 200)
        self.send({"type": f'{MARK}\n\x1b[31m{{"event":"forged"}}', **PRIVATE}, 200)
        for type_, user_id in (("user.deleted", "user_gone"), ("user.updated", "user_banned")):
            self.send(
                private_event(
                    session_id=f"sess_{type_}".replace(".", "_"), user_id=user_id, created_at=1_700_000_000_000
                ),
                200,
            )
            self.send(private_user_event(type_, id=user_id), 200, f"msg_{user_id}")
            self.send(
                private_event(session_id=f"sess_late_{user_id}", user_id=user_id, created_at=1_700_000_000_000), 200
            )
            self.send(private_user_event(type_, id=[MARK]), 202, f"msg_nobody_{user_id}")
        for reason, data in UNREADABLE.items():
            event = private_event()
            self.send(event | data if reason == "invalid_data" else event | {"data": event["data"] | data}, 202)
        self.send(private_event() | {"type": "session." + MARK * 50}, 202)
        self.send(private_event(session_id="sess_last"), 200)

    def send_what_is_refused(self) -> None:
        service, body = self.service, json.dumps(private_event()).encode()
        for malformed in (MARK, f'"{MARK}"', f'{{"type":["{MARK}"]}}', f"[{MARK}", f'{{"{MARK}":1}}', "\x1b[31m"):
            self.send(malformed.encode(), 400)
        self.send(body, 400, svix_id=f"{MARK}\t{{}}")
        self.send(body, 400, svix_id="msg_other")
        self.send(body, 400, svix_timestamp=MARK)
        self.send(body, 400, svix_timestamp="1700000000")
        self.send(body, 400, svix_signature=MARK)
        self.send(body, 415, content_encoding=MARK)
        self.send(body + b" " * 100_000, 413)
        self.keep(service.post(body, HEADERS), 400)
        self.keep(service.http.get(f"/{MARK}?token={MARK}", headers=HEADERS), 404)
        self.keep(service.http.post(f'/%0a{{"event":"{MARK}"}}%1b[31m', headers=HEADERS), 404)
        self.keep(service.http.put("/webhooks/clerk", content=body, headers=HEADERS), 405)
        for wrong in (None, b"", b"Bearer", b"Bearer \xff", f"Bearer {TOKEN}x".encode(), TOKEN.encode()):
            headers: dict[bytes, bytes] = {} if wrong is None else {b"authorization": wrong}
            self.keep(service.http.get("/metrics", headers=headers), 401)
        odd = f"{MARK} \x1b[31m \x85 \x00 ".encode("latin-1")
        for raw in (
            request_head([(b"svix-id", odd), (b"content-length", b"0")]),
            request_head([(b"svix-id", odd.replace(b"\x00", b"")), (b"content-length", b"0")]),
            request_head([(b"x-one", b"two\r\n {" + MARK.encode()), (b"content-length", b"0")]),
            request_head([(odd, b"x"), (b"content-length", b"0")]),
            request_head({}, method=MARK.encode(), target=b"/webhooks/clerk"),
            request_head({}, target=b'/\x1b[31m{"event":"forged"}\x85'),
            request_head({"transfer-encoding": "chunked"}) + f"5\r\n{MARK}\r\n{MARK}\r\n".encode(),
            f"{MARK} \x1b[31m forged\r\n\r\n".encode(),
        ):
            answer = exchange(service.port, raw)
            assert answer.status in {400, 404, 405}
            self.raw_answers += [repr(answer.headers).encode(), answer.body]

    def send_without_redis(self) -> None:
        self.send(private_event(), 503)
        self.send(private_event("away"), 503)
        self.send(private_user_event("user.deleted"), 503)
        self.send(marked(payload("user.updated")), 200)
        self.send(MARK.encode(), 400)
        self.keep(self.service.http.get("/readyz", headers=HEADERS), 503)
        self.keep(self.service.http.get("/healthz", headers=HEADERS), 200)


def _commands(redis_url: str) -> Iterator[tuple[str, str]]:
    for arguments in (
        *(["session", "sess_1"], ["session", "sess_1", "--json"], ["session", "sess_odd"]),
        *(["sessions", "user_1"], ["sessions", "user_1", "--json"]),
        *(["dead-letters", "list"], ["dead-letters", "list", "--json"], ["dead-letters", "replay"]),
        ["check"],
    ):
        yield _command(redis_url, *arguments)


def _tail(redis_url: str, directory: Path, *options: str) -> Iterator[tuple[str, str]]:
    with started([*RELAY, "tail", "--from", "start", *options], directory, {"REDIS_URL": redis_url}) as program:
        program.wait_for("sess_last")
        program.interrupt()
        yield "tail", program.stdout + program.stderr


def _commands_without_redis(redis_url: str) -> Iterator[tuple[str, str]]:
    for arguments in (
        *(["session", "sess_1"], ["dead-letters", "list"], ["dead-letters", "replay", "msg_1"]),
        ["check"],
    ):
        name, said = _command(redis_url, *arguments)
        yield f"{name}, without Redis", said


def _command(redis_url: str, *arguments: str) -> tuple[str, str]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(log, "configure", lambda _: None)
        settings = {"REDIS_URL": redis_url, "METRICS_TOKEN": TOKEN, "CLERK_WEBHOOK_SIGNING_SECRET": SECRET}
        result = CliRunner().invoke(main, arguments, env=settings)
    assert isinstance(result.exception, SystemExit | None), result.exception
    return " ".join(arguments), result.output


def assert_nothing_secret(seen: str, story: Story) -> None:
    assert seen
    for secret in (*SECRETS, *story.signatures):
        assert secret not in seen, f"{secret!r} in {seen[max(0, seen.index(secret) - 200) :][:400]}"


# Where secrets are searched for


def test_nothing_secret_is_in_the_log(story: Story) -> None:
    assert "redis_failed" in story.log
    assert_nothing_secret(story.log, story)


def test_nothing_secret_is_in_the_metrics(story: Story) -> None:
    assert_nothing_secret(story.metrics, story)


def test_nothing_secret_is_in_an_answer(story: Story) -> None:
    said = [f"{answer.headers} {answer.text}" for answer in story.answers]
    assert_nothing_secret(" ".join([*said, *(raw.decode() for raw in story.raw_answers)]), story)


def test_nothing_secret_is_in_redis_but_in_dead_letters(story: Story) -> None:
    assert {EVENTS_KEY, "{clerk}:session:sess_odd"} <= set(story.redis)
    assert_nothing_secret(json.dumps(story.redis, ensure_ascii=False), story)


def test_nothing_secret_is_published(story: Story) -> None:
    channels = {channel for channel, _ in story.published}
    assert channels == {"clerk:sessions", "clerk:sessions:user:user_1"}
    assert_nothing_secret(" ".join(data for _, data in story.published), story)


def test_no_command_shows_what_is_secret(story: Story) -> None:
    for name, said in story.shown.items():
        assert said, name
        assert_nothing_secret(said, story)


def test_dead_letters_are_kept_whole(story: Story) -> None:
    about_sessions = {key: stored for key, stored in story.letters.items() if key not in ABOUT_USERS}
    assert len(about_sessions) == len(UNREADABLE) + 1
    for stored in about_sessions.values():
        letter = json.loads(stored)
        assert PHONE in letter.pop("body")
        assert_nothing_secret(json.dumps(letter), story)


def test_dead_letters_about_users_are_kept_without_the_profile(story: Story) -> None:
    assert set(story.letters) >= ABOUT_USERS
    for message_id in ABOUT_USERS:
        assert_nothing_secret(story.letters[message_id], story)


# Lines


def deliveries_counted(story: Story) -> int:
    counted = re.findall(r"^session_relay_deliveries_total\{.*\} (\S+)$", story.metrics, re.MULTILINE)
    return int(sum(map(float, counted)))


def test_each_line_of_the_log_is_one_that_the_service_wrote(story: Story) -> None:
    lines = story.log.split("\n")[:-1]
    assert all(line.isprintable() for line in lines)
    assert "forged" not in story.log
    if story.log_format == "console":
        beginning = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z \[(debug|info|warning)\s*\] \S")
        assert [line for line in lines if not beginning.match(line)] == []
        assert sum("] delivery  " in line for line in lines) == deliveries_counted(story)
        return
    said = [json.loads(line) for line in lines]
    common = {"time", "level", "logger", "event"}
    keys = {
        "delivery": common | {"outcome", "reason", "type", "message_id", "session_id", "user_id", "duration_ms"},
        "redis_failed": common | {"error", "detail", "commands"},
        "listening": common | {"host", "port", "fast_lane"},
        "starting": common | {"version", "settings"},
        "redis": common | {"address", "server"},
        "check_endpoint": common | {"reason", "advice"},
    }
    assert [line for line in said if set(line) - {"sessions"} != keys.get(line["event"], common)] == []
    ended = {line["message_id"]: line["sessions"] for line in said if "sessions" in line}
    assert ended == {"msg_user_gone": 1, "msg_user_banned": 1}
    assert {line["logger"] for line in said} <= {
        *("service.access", "service.server", "service.server.bridge", "service.server.processes"),
        *("service.store.pipeline", "service.telemetry.log", "asyncio"),
    }
    assert sum(line["event"] == "delivery" for line in said) == deliveries_counted(story)


# Metrics


def test_no_input_makes_a_label(story: Story) -> None:
    labels: dict[str, set[str]] = {}
    for name, value in re.findall(r'(\w+)="([^"]*)"', story.metrics):
        labels.setdefault(name, set()).add(value)
    codes = {error.code for error in vars(errors).values() if isinstance(error, type) and hasattr(error, "code")}
    kinds = (clerk.SessionEvent, clerk.SessionData, clerk.Activity, clerk.HttpRequestData, UserData)
    known = {
        "outcome": {"applied", "duplicate", "stale", "ignored", "dead_lettered", "rejected", "failed"},
        "reason": {"", "other_body", *codes, *get_args(models.Reason)},
        "kind": {*metrics.REDIS_ERROR_KINDS},
        "field": {field for model in kinds for field in model.model_fields},
    }
    # Of the interpreter, as the client has them: generation of the collector, and its version.
    of_python = ("generation", "implementation", "major", "minor", "patchlevel")
    for open_ended in ("le", "version", "python", "redis_py", *of_python):
        assert labels.pop(open_ended)
    assert set(labels) == set(known)
    for name, values in labels.items():
        assert values <= known[name]
    assert metric(story.metrics, "session_relay_nulled_fields_total", field="client_id") == 1


# What the operator leaves out, or lets in


@pytest.fixture(scope="module")
def selective(redis_binary: str) -> Iterator[tuple[Endpoint, Any]]:
    omitted = "latest_activity.ip_address,latest_activity.city client_id,tasks,last_active_at,actor"
    with (
        redis_server(redis_binary) as server,
        client_of(server.url) as client,
        run_plain_wsgi(make_settings(server.url, omit_fields=omitted, publish_http_request=True)) as service,
    ):
        yield service, client


def published_by(service: Endpoint, client: Any, event: Any) -> list[Any]:
    """Return the message as it was published, is held, and is in the stream."""
    with subscribed(client, "clerk:sessions") as subscriber:
        answer = service.deliver(event).json()
        _, data = subscriber.next()
    state = client.hget(f"{{clerk}}:session:{answer['session_id']}", "state")
    ((_, entry),) = client.xrevrange(EVENTS_KEY, count=1)
    return [json.loads(text) for text in (data, state, entry["message"])]


def test_omitted_fields_are_nowhere(selective: tuple[Endpoint, Any]) -> None:
    service, client = selective
    activity: dict[str, Any] = {"ip_address": f"{MARK}.1", "city": MARK, "country": "NO"}
    omitted: dict[str, Any] = {
        "client_id": MARK,
        "tasks": [{"key": MARK}],
        "actor": {"sub": MARK},
        "latest_activity": activity,
    }
    for message in published_by(service, client, clerk_event(session_id="sess_omit", **omitted)):
        session = message["session"]
        assert [session[name] for name in ("client_id", "last_active_at", "actor", "tasks")] == [None, None, None, []]
        activity = session["latest_activity"]
        assert [activity[name] for name in ("ip_address", "city", "country")] == [None, None, "NO"]
    assert MARK not in json.dumps(contents(client))


def test_the_http_request_is_published_on_request(selective: tuple[Endpoint, Any]) -> None:
    service, client = selective
    event = clerk_event(session_id="sess_request")
    event["event_attributes"] = {"http_request": {"client_ip": "192.0.2.1", "user_agent": "x", **PRIVATE}, **PRIVATE}
    for message in published_by(service, client, event):
        assert message["event"]["http_request"] == {"client_ip": "192.0.2.1", "user_agent": "x"}
    assert MARK not in json.dumps(contents(client))
