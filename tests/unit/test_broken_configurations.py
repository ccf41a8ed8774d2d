"""Whoever breaks the configuration is told what is wrong, of which variable, and what to do; never a secret."""

import shutil
import tempfile
from pathlib import Path
from typing import Final

import pytest
from support.cli import run
from support.constants import OTHER_SECRET, SECRET

from service.config import Settings, load
from service.server import processes as server
from service.server.system import metrics_directory
from service.telemetry import log

Environment = dict[str, str | None]

PASSWORD: Final = "s3cr3t"
SIGNING: Final = "CLERK_WEBHOOK_SIGNING_SECRET"
BARE: Final = SECRET.removeprefix("whsec_")

GOOD: Final[Environment] = {
    **dict.fromkeys((name.upper() for name in Settings.model_fields), None),
    SIGNING: SECRET,
    "REDIS_URL": "redis://127.0.0.1:6379/0",
}
"""None: not set."""


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In an empty directory, and never with a server of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(log, "configure", lambda _: None)
    monkeypatch.setattr(server, "OneProcess", lambda *_, **__: pytest.fail("it starts with these settings"))


def said_by(command: str, environment: Environment, *options: str) -> str:
    result = run(command, *options, environment=GOOD | environment)
    assert (result.exit_code, result.stdout) == (2, "")
    assert BARE[:8] not in result.stderr
    assert PASSWORD not in result.stderr
    return result.stderr


FROM_CLERK: Final = "copy it whole from Clerk's Dashboard, Webhooks, your endpoint, Signing Secret"
USE: Final = "use redis://[user:password@]host[:port][/db], "
ENCODE: Final = "in a password, write @ as %40"
OR_ELSE: Final = "correct it, or leave it out, for "

SETTINGS: Final[list[tuple[Environment, str, str, str]]] = [
    ({SIGNING: None}, SIGNING, "is missing", "set it, in the environment or in .env, to what is at Clerk's Dash"),
    ({SIGNING: ""}, SIGNING, "or empty", "set it, in the environment or in .env, to what is at Clerk's Dashboard"),
    ({SIGNING: BARE}, SIGNING, "does not start with whsec_", "copy it from Clerk's Dashboard"),
    ({SIGNING: SECRET[:-3]}, SIGNING, "as if it was cut", FROM_CLERK),
    ({SIGNING: SECRET[:-4]}, SIGNING, "21 bytes, not 24 to 64, as if it was cut", FROM_CLERK),
    ({SIGNING: "whsec_…"}, SIGNING, "is not base64 after whsec_", FROM_CLERK),
    ({SIGNING: f'"{SECRET}"'}, SIGNING, "begins with a quotation mark", "leave the quotes out"),
    ({SIGNING: f"{SECRET},{OTHER_SECRET[:-1]}"}, SIGNING, "secret 2 of 2", FROM_CLERK),
    ({SIGNING: None, "CLERK_WEBHOOK_SIGNING_SECRETS": SECRET}, SIGNING, "CRETS is there", "rename it"),
    ({SIGNING: None, "CLERK_SIGNING_SECRET": SECRET}, SIGNING, "CLERK_SIGNING_SECRET is there", "rename it"),
    ({"REDIS_URL": None}, "REDIS_URL", "is missing", "to where Redis is, like redis://127.0.0.1:6379/0"),
    ({"REDIS_URL": None, "REDIS_URI": "redis://h"}, "REDIS_URL", "REDIS_URI is there", "rename it"),
    ({"REDIS_URL": None, "REDIS_TLS_URL": "x"}, "REDIS_URL", "REDIS_TLS_URL is there", "rename it"),
    ({"REDIS_URL": "http://h:6379"}, "REDIS_URL", "does not begin with a scheme that is known", USE),
    ({"REDIS_URL": "localhost:6379"}, "REDIS_URL", "has no scheme", "do you mean redis://localhost:6379?"),
    ({"REDIS_URL": "127.0.0.1:6380"}, "REDIS_URL", "has no scheme", "do you mean redis://127.0.0.1:6380?"),
    ({"REDIS_URL": "redis.example:6379/1"}, "REDIS_URL", "has no scheme", "redis://redis.example:6379/1?"),
    ({"REDIS_URL": "redis.example"}, "REDIS_URL", "has no scheme", "begin it with redis://"),
    ({"REDIS_URL": "user:12345"}, "REDIS_URL", "has no scheme", "begin it with redis://"),
    ({"REDIS_URL": "//h:6379"}, "REDIS_URL", "has no scheme", "begin it with redis://"),
    ({"REDIS_URL": "'redis://h'"}, "REDIS_URL", "begins with a quotation mark", "leave the quotes out"),
    ({"REDIS_URL": "redis://h:http"}, "REDIS_URL", "port that is no number from 1 to 65535", USE),
    ({"REDIS_URL": "redis://h:637900"}, "REDIS_URL", "port that is no number", USE),
    ({"REDIS_URL": f"redis://:{PASSWORD}/x@h:1"}, "REDIS_URL", "has an @ behind / or ?", ENCODE),
    ({"REDIS_URL": f"redis://:{PASSWORD}#x@h:1"}, "REDIS_URL", "has a #", "in a password, write it as %23"),
    ({"REDIS_URL": "redis://h/main"}, "REDIS_URL", "names a database that is no number", USE),
    ({"REDIS_URL": "redis://h?nonsense=1"}, "REDIS_URL", "an option that is not known (nonsense)", "leave it out"),
    ({"REDIS_URL": "rediss://h?tls=false"}, "REDIS_URL", "an option turns TLS off (tls)", "leave out one of them"),
    ({"REDIS_URL": "redis://h "}, "REDIS_URL", "has white space", "leave it out"),
    ({"REDIS_KEY_PREFIX": '"{clerk}"'}, "REDIS_KEY_PREFIX", "begins with a quotation mark", "leave the quotes out"),
    ({"REDIS_CHANNEL": "clerk:sessions\r"}, "REDIS_CHANNEL", "has white space, a quotation mark or", "leave it out"),
    ({"PORT": "http"}, "PORT", "is not a port number from 1 to 65535", f"{OR_ELSE}8000"),
    ({"PORT": "0"}, "PORT", "is not a port number from 1 to 65535", f"{OR_ELSE}8000"),
    ({"WEB_CONCURRENCY": "0"}, "WEB_CONCURRENCY", "is not a number of processes from 1", f"{OR_ELSE}1"),
    ({"WEB_CONCURRENCY": "two"}, "WEB_CONCURRENCY", "is not a number of processes from 1", f"{OR_ELSE}1"),
    ({"OMIT_FIELDS": "actr"}, "OMIT_FIELDS", "can't leave out actr", "use only these: abandon_at, actor, "),
    ({"LOG_FORMAT": "text"}, "LOG_FORMAT", "is not json or console", f"{OR_ELSE}json"),
    ({"REDIS_TLS_VERIFY": "never"}, "REDIS_TLS_VERIFY", "is not true or false", f"{OR_ELSE}true"),
    ({"REDIS_TIMEOUT": "2s"}, "REDIS_TIMEOUT", "is not a number of seconds, more than 0", f"{OR_ELSE}2"),
    ({"SESSION_RETENTION": "3600"}, "SESSION_RETENTION", "from 172800 (two days", f"{OR_ELSE}604800"),
    ({"SESSION_RETENTION": "7d"}, "SESSION_RETENTION", "is not a number of seconds", f"{OR_ELSE}604800"),
    ({"MAX_BODY_BYTES": "1MB"}, "MAX_BODY_BYTES", "is not a number of bytes", f"{OR_ELSE}1048576"),
    ({"METRICS_TOKEN": f"{PASSWORD}\n"}, "METRICS_TOKEN", "white space at an end", "leave out what no header"),
    ({"PARTITIONS": "8", "REDIS_KEY_PREFIX": "x"}, "PARTITIONS", "has none", "like {clerk}"),
]


@pytest.mark.parametrize("command", ["serve", "check"])
@pytest.mark.parametrize(
    ("broken", "variable", "what", "to_do"),
    SETTINGS,
    ids=[" ".join(f"{name}={value}" for name, value in broken.items()) for broken, *_ in SETTINGS],
)
def test_a_broken_setting_is_one_line_with_what_is_wrong_and_what_to_do(
    command: str, broken: Environment, variable: str, what: str, to_do: str
) -> None:
    said = said_by(command, broken)

    assert said.startswith(f"{variable}: ")
    assert len(said.splitlines()) == 1
    assert what in said
    assert to_do in said


def test_a_level_that_is_none_is_told_with_those_that_are() -> None:
    """By `serve`: `check` has a level of its own."""
    assert said_by("serve", {"LOG_LEVEL": "verbose"}) == (
        f"LOG_LEVEL: is not debug, info, warning, error or critical: {OR_ELSE}info\n"
    )


def test_all_that_is_wrong_is_told_at_once() -> None:
    said = said_by("serve", {"PORT": "0", "LOG_LEVEL": "loud", "REDIS_TIMEOUT": "soon"})

    assert {line.partition(":")[0] for line in said.splitlines()} == {"PORT", "LOG_LEVEL", "REDIS_TIMEOUT"}


@pytest.mark.parametrize(
    ("variable", "value"), [("HOST", "a\x1b[31mb"), ("OMIT_FIELDS", "a\x1b[31mb"), ("PORT", "8\n0\x1b")]
)
def test_no_value_can_steer_the_terminal_in_which_its_fault_is_told(variable: str, value: str) -> None:
    said = said_by("serve", {variable: value})

    assert said.rstrip("\n").isprintable()


# Options of `serve`


def test_options_are_checked_as_settings_are() -> None:
    said = said_by("serve", {"PORT": "8000"}, "--port", "http", "--workers", "0", "--host", '"::"')

    assert said.splitlines() == [
        "--host: begins with a quotation mark: leave the quotes out",
        f"--port: is not a port number from 1 to 65535: {OR_ELSE}8000",
        f"--workers: is not a number of processes from 1 to 1000: {OR_ELSE}1",
    ]


def test_a_wrong_url_of_an_option_names_the_option() -> None:
    said = said_by("dev", {"REDIS_URL": "redis://h"}, "--redis-url", "localhost:6379")

    assert said == "--redis-url: has no scheme; do you mean redis://localhost:6379?\n"


@pytest.mark.parametrize(("host", "address"), [("", "0.0.0.0"), ("[::]", "::"), ("::1", "::1")])
def test_an_empty_option_counts_as_not_given_and_brackets_are_left_out(
    host: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = []
    monkeypatch.setattr(server, "serve", lambda settings, _: served.append((settings.host, settings.port)))

    assert run("serve", "--host", host, "--port", "", environment=GOOD).exit_code == 0

    assert served == [(address, 8000)]


# A directory for temporary files


@pytest.fixture
def no_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Let no directory be made where the system keeps temporary files; return such a place."""
    file = tmp_path / "file"
    file.touch()  # a path below a file: root may write everywhere else
    monkeypatch.setattr(tempfile, "tempdir", str(file / "tmp"))
    return str(file)


def test_several_processes_without_a_temporary_directory_are_one_line(no_directory: str) -> None:
    said = said_by("serve", {"WEB_CONCURRENCY": "2"})

    assert said.startswith("TMPDIR: no directory can be made for temporary files (Not a directory). WEB_CONCURRENCY=2")
    assert "set it to 1, or mount a writable one" in said
    assert len(said.splitlines()) == 1


def test_the_directory_for_metrics_that_the_user_names_is_the_one_that_is_tried(no_directory: str) -> None:
    said = said_by("serve", {"WEB_CONCURRENCY": "2", "PROMETHEUS_MULTIPROC_DIR": no_directory})

    assert said.startswith(f"PROMETHEUS_MULTIPROC_DIR: no directory can be made in {no_directory} (Not a directory).")
    assert len(said.splitlines()) == 1


def test_the_directory_for_metrics_is_removed_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    with metrics_directory(2) as directory:
        assert Path(str(directory)).parent == tmp_path
    assert [*tmp_path.iterdir()] == []


@pytest.mark.usefixtures("no_directory")
def test_one_process_needs_no_directory() -> None:
    with metrics_directory(1) as directory:
        assert directory is None


@pytest.mark.usefixtures("no_directory")
def test_a_redis_for_dev_that_has_no_directory_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/redis-server")
    said = said_by("dev", {"REDIS_URL": None})

    assert said.startswith("TMPDIR: no directory can be made")
    assert "redis-server needs one: set REDIS_URL to another Redis, or mount" in said


@pytest.mark.parametrize(
    "url",
    [
        "redis://relay:{}@127.0.0.1:port/0",
        "redis://relay:{}@127.0.0.1:1/zero",
        "redis://relay:{}@[::1/0",
        "amqp://relay:{}@127.0.0.1/0",
        "redis://relay:{}@127.0.0.1:1/0?health_check_interval={}",
        "redis://relay:{}@127.0.0.1:1/0?nonsense={}",
        "redis://relay:{}#two@127.0.0.1:1/0",
    ],
)
def test_the_password_of_redis_is_never_told(url: str) -> None:
    assert said_by("serve", {"REDIS_URL": url.format(PASSWORD, PASSWORD)}).startswith("REDIS_URL: ")


def test_every_limit_of_a_setting_is_told() -> None:
    for name, field in Settings.model_fields.items():
        limits = [
            getattr(limit, side) for limit in field.metadata for side in ("gt", "ge", "le") if hasattr(limit, side)
        ]
        told = (field.description or "").replace(",", "").split()
        assert {str(limit) for limit in limits} <= set(told), name


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff{signing}={secret}\nREDIS_URL={url}\n",
        "export {signing}={secret}\nexport REDIS_URL={url}\n",
        "{signing}=\"{secret}\"\nREDIS_URL='{url}'\n",
        "{signing} = {secret} \r\nREDIS_URL = {url} # ours\r\n",
    ],
    ids=["BOM", "export", "quotes", "white space"],
)
def test_what_editors_and_shells_do_to_a_file_is_no_fault(text: str) -> None:
    filled = text.format(signing=SIGNING, secret=SECRET, url=GOOD["REDIS_URL"])
    Path(".env").write_bytes(filled.encode())

    settings = load(Settings)

    assert settings.secrets == (SECRET,)
    assert settings.redis_url.get_secret_value() == GOOD["REDIS_URL"]


def test_a_misspelt_name_in_the_file_is_told() -> None:
    Path(".env").write_text(f"CLERK_WEBHOOK_SIGNIN_SECRET={SECRET}\n")

    assert "CLERK_WEBHOOK_SIGNIN_SECRET is there: if that is it, rename it" in said_by("serve", {SIGNING: None})


def test_a_file_in_another_encoding_is_told() -> None:
    Path(".env").write_text(f"{SIGNING}={SECRET}\n", encoding="utf-16")

    assert said_by("serve", {}) == ".env: is not UTF-8 text: save it as UTF-8\n"


def test_a_file_that_can_not_be_read_is_told() -> None:
    Path(".env").symlink_to("/proc/self/mem")  # even root can't read the beginning of it
    if not Path(".env").is_file():
        pytest.skip("needs /proc")

    assert said_by("serve", {}) == (".env: can't be read (Input/output error): make it readable, or remove it\n")
