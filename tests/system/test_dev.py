"""`dev`: everything with nothing set up, and nothing left of it. docs/contract.md, section 8."""

import contextlib
import http.server
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from support.children import Program, descendants, running, started
from support.clock import eventually
from support.constants import OTHER_SECRET, PROC, RELAY, ROOT, SECRET
from support.network import free_port
from support.redis_clients import client_of, subscribed
from support.services import run_service

from service.cli import main
from service.dev import run, sender, simulator
from service.dev.embedded import EmbeddedRedis

READY = r"Ctrl-C stops"

Dev = Callable[..., Program]


def without_redis_server(directory: Path) -> str:
    """Return a PATH on which there is no redis-server, but all else that is needed."""
    directory.mkdir(exist_ok=True)
    for name in ("sh", "cat", "env"):
        if (found := shutil.which(name)) and not (directory / name).exists():
            (directory / name).symlink_to(found)
    return str(directory)


class RunningDev:
    """A `dev` that has said all it says at first."""

    def __init__(self, program: Program) -> None:
        program.wait_for(READY)
        self.program = program
        self.said = program.stdout

    def find(self, pattern: str) -> str:
        match = re.search(pattern, self.said, re.MULTILINE)
        assert match is not None, f"no {pattern!r} in:\n{self.said}"
        return match[1]

    @property
    def url(self) -> str:
        return self.find(r"^webhooks +(\S+) *$")

    @property
    def secret(self) -> str:
        """Return the one that it made; with one given, the test knows it."""
        return self.find(r"^secret +(whsec_\S+) *$")

    @property
    def redis_url(self) -> str:
        return self.find(r"^Redis +(\S+) ")

    @property
    def redis_name(self) -> str:
        return self.find(r"^Redis +\S+ +\((.*)\) *$")

    def command(self, name: str) -> str:
        """Return the line to try that has this word in it, not as a folder of the path to the command."""
        return self.find(rf"^  ((?:.* )?{name}\b.*)$")

    def table(self) -> list[list[str]]:
        """Return what was sent, what was answered and what the subscriber got."""
        _, *rows = self.find(r"(?s)^(sent .*?)\n\n").splitlines()
        return [re.split(r" {2,}", row.strip()) for row in rows]


@pytest.fixture(params=[pytest.param("redis-server", marks=pytest.mark.real_redis), "fakeredis"])
def kind(request: pytest.FixtureRequest) -> str:
    """With a redis-server on PATH, and without one."""
    name: str = request.param
    if name == "fakeredis":
        pytest.importorskip("fakeredis")
        pytest.importorskip("lupa")
    return name


def own_redis_of(kind: str, directory: Path) -> dict[str, str]:
    """Return what makes `dev` start a Redis of this kind."""
    return (
        {"REDIS_URL": ""}
        if kind == "redis-server"
        else {"REDIS_URL": "", "PATH": without_redis_server(directory / "bin")}
    )


@pytest.fixture(scope="module")
def all_of_them(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], RunningDev]]:
    """One `dev` of each kind, for the tests that leave it as it is."""
    directory = tmp_path_factory.mktemp("dev")
    with contextlib.ExitStack() as stack:
        found: dict[str, RunningDev] = {}

        def get(kind: str) -> RunningDev:
            if kind not in found:
                environment = {"PORT": str(free_port())} | own_redis_of(kind, directory)
                found[kind] = RunningDev(stack.enter_context(started([*RELAY, "dev"], directory, environment)))
            return found[kind]

        yield get


@pytest.fixture
def dev(all_of_them: Callable[[str], RunningDev], kind: str) -> RunningDev:
    return all_of_them(kind)


class GivenDev(RunningDev):
    """A `dev` that has all it can be given: secrets, a Redis, a terminal; and sends nothing by itself."""

    def __init__(self, program: Program, port: int, redis_url: str, secrets: tuple[str, str]) -> None:
        super().__init__(program)
        self.port_given = port
        self.redis_given = redis_url
        self.secrets_given = secrets
        with client_of(redis_url) as client:
            self.keys_at_first: int = client.dbsize()


@pytest.fixture(scope="module")
def given(any_redis: EmbeddedRedis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GivenDev]:
    """One of these, for the tests that leave it as it is."""
    port, secrets = free_port(), (SECRET, simulator.new_secret())
    url = any_redis.url.replace("/0", "/5")  # the other tests of this process empty the whole server
    url += "?health_check_interval=30&client_name=relay"
    with client_of(url) as client:
        client.flushdb()
    environment = {"CLERK_WEBHOOK_SIGNING_SECRET": " ".join(secrets), "REDIS_URL": url, "PORT": "", "COLUMNS": "30"}
    command = [*preferring(port), "dev", "--no-simulate"]
    with started(command, tmp_path_factory.mktemp("given"), environment) as program:
        yield GivenDev(program, port, url, secrets)


def preferring(port: int) -> tuple[str, ...]:
    """Return the command, with another port in the place of 8000."""
    script = (
        "import sys; from service.dev import run as dev; from service.cli import main; "
        f"dev.PREFERRED_PORT = {port}; main(sys.argv[1:])"
    )
    return (sys.executable, "-c", script)


@pytest.fixture
def start(any_redis: EmbeddedRedis, tmp_path: Path) -> Iterator[Dev]:
    """Start a `dev` for this test alone; with a Redis given, where the test says nothing of it."""
    with contextlib.ExitStack() as stack:

        def begin(*arguments: str, command: tuple[str, ...] = RELAY, **environment: str) -> Program:
            defaults = {"PORT": str(free_port()), "REDIS_URL": any_redis.url}
            return stack.enter_context(started([*command, "dev", *arguments], tmp_path, defaults | environment))

        yield begin


def shell(command: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run a line as someone would who copied it into another terminal."""
    return subprocess.run(command, shell=True, cwd=directory, capture_output=True, text=True, timeout=60, check=False)


# What it says


def test_it_says_which_redis_it_uses(dev: RunningDev, kind: str) -> None:
    assert kind in dev.redis_name


def test_it_makes_a_secret(dev: RunningDev) -> None:
    assert re.fullmatch(r"whsec_[A-Za-z0-9+/]{32}", dev.secret)


def test_it_listens_on_this_machine_only(dev: RunningDev) -> None:
    assert dev.url.startswith("http://127.0.0.1:")
    assert dev.redis_url.startswith("redis://127.0.0.1:")


def test_it_listens_where_it_says(dev: RunningDev) -> None:
    assert httpx.get(dev.url.replace("/webhooks/clerk", "/readyz")).status_code == 200


def test_it_says_nothing_on_stderr(dev: RunningDev) -> None:
    assert dev.program.stderr == ""


# What it says to try


def test_the_send_command_works(dev: RunningDev, tmp_path: Path) -> None:
    done = shell(dev.command("send"), tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split()[:3] == ["200", "applied", "session.revoked"]


def test_the_tail_command_works(dev: RunningDev, tmp_path: Path) -> None:
    command = ["sh", "-c", f"exec env {dev.command('tail')}"]
    with started(command, tmp_path) as tail:
        tail.wait_for("session.created")


def test_the_redis_cli_command_works(dev: RunningDev, tmp_path: Path) -> None:
    if shutil.which("redis-cli") is None:
        pytest.skip("there is no redis-cli on PATH")
    with started(["sh", "-c", f"exec {dev.command('redis-cli')}"], tmp_path) as subscriber:
        subscriber.wait_for("^clerk:sessions$")
        assert simulated_post(dev).status_code == 200
        subscriber.wait_for('"schema_version":1')


def simulated_post(dev: RunningDev, secret: str | None = None) -> httpx.Response:
    body = simulator.encode(simulator.sample())
    return httpx.post(dev.url, content=body, headers=simulator.sign(secret or dev.secret, body))


def test_an_outsider_can_subscribe(dev: RunningDev) -> None:
    body = simulator.sample()
    text = simulator.encode(body)
    with client_of(dev.redis_url) as client, subscribed(client, "clerk:sessions") as subscriber:
        answer = httpx.post(dev.url, content=text, headers=simulator.sign(dev.secret, text))
        _, message = subscriber.next()
    assert answer.json()["outcome"] == "applied"
    assert json.loads(message)["session"]["id"] == body["data"]["id"]


def test_it_shows_what_subscribers_get_from_then_on(dev: RunningDev) -> None:
    session_id = simulated_post(dev).json()["session_id"]
    shown = dev.program.wait_for(rf"^.*{session_id}.*$")[0]
    assert "session.created" in shown
    assert "active (live)" in shown


def test_what_else_is_published_does_not_end_it(dev: RunningDev) -> None:
    with client_of(dev.redis_url) as client:
        client.publish("clerk:sessions", "x")
    dev.program.wait_for("something else was published")
    session_id = simulated_post(dev).json()["session_id"]
    dev.program.wait_for(session_id)


def test_the_tail_command_works_whatever_is_in_the_url(given: GivenDev, tmp_path: Path) -> None:
    assert "&client_name=relay" in given.command("tail")
    session_id = simulated_post(given, given.secrets_given[0]).json()["session_id"]
    with started(["sh", "-c", f"exec env {given.command('tail')}"], tmp_path) as tail:
        tail.wait_for(session_id)


# The simulation


def test_the_simulation_shows_each_outcome_beside_what_the_subscriber_got(dev: RunningDev) -> None:
    assert dev.table() == [
        ["session.created", "200 applied", "active (live)"],
        ["the same message again", "200 duplicate", "nothing"],
        ["session.pending, late", "200 stale", "nothing"],
        ["session.revoked, forged", "400 invalid_signature", "nothing"],
        ["user.updated", "200 ignored", "nothing"],
        ["session.ended", "200 applied", "active → ended (not live)"],
        ["session.created, once more", "200 duplicate", "nothing"],
    ]


def test_no_simulate_sends_nothing(given: GivenDev) -> None:
    assert not re.search("^sent", given.said, re.MULTILINE)
    assert given.keys_at_first == 0


def test_nothing_is_cut_in_a_narrow_terminal(given: GivenDev) -> None:
    """What can't be copied whole is of no use."""
    assert given.redis_url == given.redis_given
    assert f"--url {given.url}" in given.command("send")
    assert f"--forward-to {given.url}" in given.command("listen")


# The stand-in for Clerk


@pytest.fixture(scope="module")
def reconciled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDev]:
    """One `dev --reconcile` for the tests that leave it as it is; test_reconcile_command.py has redis-server."""
    pytest.importorskip("fakeredis")
    pytest.importorskip("lupa")
    directory = tmp_path_factory.mktemp("reconciled")
    environment = {"PORT": str(free_port())} | own_redis_of("fakeredis", directory)
    with started([*RELAY, "dev", "--no-simulate", "--reconcile"], directory, environment) as program:
        program.wait_for(READY, within=90)
        yield RunningDev(program)


def exported(dev: RunningDev, command: str) -> str:
    """Return a line to try, with the variables that go with it."""
    return f"{dev.command('export')} && {dev.command(command)}"


def test_it_shows_what_reconcile_mends(reconciled: RunningDev) -> None:
    _, *rows = reconciled.find(r"(?s)^(at Clerk .*?)\n\n").splitlines()
    stored = [re.split(r" {2,}", re.sub(r"until \d{4}-\d\d-\d\d(?= {2}|$)", "until", row.strip())) for row in rows]

    assert stored == [
        ["signed in, webhook lost", "nothing", "active until"],
        ["signed out, webhook lost", "active until", "ended"],
        ["abandoned (no webhook)", "active until", "abandoned"],
        ["extended (no webhook)", "active until", "active until"],
        ["cleaned up (no webhook)", "active until", "removed"],
        ["signed in, webhook arrived", "active until", "active until"],
    ]
    until = re.findall(r"until (\S+)", rows[3])
    assert len(set(until)) == 2


def test_it_says_what_reconcile_says(reconciled: RunningDev) -> None:
    assert re.search(r"^.*sessions of .*mended: ", reconciled.said, re.MULTILINE)
    assert reconciled.program.stderr == ""


def test_the_check_with_its_clerk_works(reconciled: RunningDev, tmp_path: Path) -> None:
    done = shell(exported(reconciled, "check") + " ; true", tmp_path)

    assert "the development instance ins_2simulated" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("ok ")


def test_the_reconcile_with_its_clerk_works(reconciled: RunningDev, tmp_path: Path) -> None:
    done = shell(exported(reconciled, "reconcile --full"), tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    assert "nothing mended" in done.stdout


def test_what_is_revoked_at_its_clerk_comes_back_by_webhook(reconciled: RunningDev, tmp_path: Path) -> None:
    command = exported(reconciled, "revoke")
    session_id = command.split()[-1]

    assert shell(command, tmp_path).returncode == 0

    reconciled.program.wait_for(rf"session\.revoked .* {session_id}")
    with client_of(reconciled.redis_url) as client:
        outcomes = eventually(lambda: _outcomes(client, session_id, 3), within=30)
    assert outcomes == ["applied", "applied", "stale"]


def _outcomes(client: Any, session_id: str, count: int) -> list[str]:
    entries = [fields for _, fields in client.xrange("{clerk}:events") if fields["session_id"] == session_id]
    return [fields["outcome"] for fields in entries] if len(entries) >= count else []


# The end of it


needs_proc = pytest.mark.skipif(not PROC.is_dir(), reason="needs /proc to see which processes are there")


@needs_proc
def test_it_ends_with_status_0_and_leaves_no_process(start: Dev, kind: str, tmp_path: Path) -> None:
    program = RunningDev(start("--no-simulate", **own_redis_of(kind, tmp_path))).program
    children = descendants(program.process.pid)
    assert len(children) >= (2 if kind == "redis-server" else 1)  # the server, and Redis
    # One of the two each: Redis is ended in the same place, whichever signal came.
    status = program.interrupt() if kind == "redis-server" else program.stop()
    assert status == 0
    assert running(children) == set()
    assert program.stderr == ""


def test_it_ends_when_its_terminal_is_closed(start: Dev) -> None:
    assert RunningDev(start("--no-simulate")).program.stop(signal.SIGHUP) == 0


@needs_proc
def test_it_goes_on_under_nohup_and_ends_on_ctrl_c_though_a_shell_ignores_that_in_the_background(start: Dev) -> None:
    ignoring = ("sh", "-c", 'trap "" HUP INT; exec "$@"', "sh", *RELAY)
    program = RunningDev(start("--no-simulate", command=ignoring)).program
    status = (PROC / str(program.process.pid) / "status").read_text()
    ignored = int(status.partition("SigIgn:")[2].split()[0], 16)
    assert ignored >> (signal.SIGHUP - 1) & 1
    assert program.interrupt() == 0


@needs_proc
def test_it_can_be_told_to_end_while_it_starts(start: Dev) -> None:
    program = start(REDIS_URL="")
    # The first one is started; it has left the process group that Ctrl-C reaches.
    children = eventually(lambda: {pid for pid in descendants(program.process.pid) if os.getsid(pid) == pid}, within=30)
    assert program.interrupt() == 0
    assert running(children) == set()


def test_pressing_ctrl_c_twice_ends_it_as_well(start: Dev) -> None:
    program = RunningDev(start("--no-simulate")).program
    os.killpg(program.process.pid, signal.SIGINT)
    assert program.interrupt() == 0


@needs_proc
def test_it_ends_when_the_relay_ended_by_itself(start: Dev) -> None:
    program = RunningDev(start("--no-simulate", REDIS_URL="")).program
    children = descendants(program.process.pid)
    for pid in children:
        if b"serve" in (PROC / str(pid) / "cmdline").read_bytes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert program.end() == 1
    assert "ended by itself" in program.stderr
    assert running(children) == set()


# What it is given


def test_it_prefers_port_8000() -> None:
    assert run.PREFERRED_PORT == 8000


def test_it_listens_on_the_preferred_port_if_that_is_free(given: GivenDev) -> None:
    assert httpx.URL(given.url).port == given.port_given


def test_it_takes_another_port_if_the_preferred_one_is_taken_and_says_so(start: Dev) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        dev = RunningDev(start("--no-simulate", command=preferring(port), PORT=""))
        other = httpx.URL(dev.url).port
        assert other not in {None, port}
        assert f":{other}/" in dev.command("send")
        assert f"Port {port} is taken; this uses {other}." in dev.said.splitlines()
        assert dev.command("dev").startswith(f"PORT={other} CLERK_WEBHOOK_SIGNING_SECRET=whsec_… ")
        assert httpx.get(dev.url.replace("/webhooks/clerk", "/healthz")).status_code == 200


def test_the_command_that_comes_next_has_a_port_that_was_given(start: Dev) -> None:
    port = str(free_port())
    dev = RunningDev(start("--no-simulate", PORT=port))
    assert dev.command("dev").startswith(f"PORT={port} ")
    assert " is taken" not in dev.said


def test_the_command_that_comes_next_has_no_port_if_it_is_the_preferred_one(start: Dev) -> None:
    dev = RunningDev(start("--no-simulate", command=preferring(free_port()), PORT=""))
    assert dev.command("dev").startswith("CLERK_WEBHOOK_SIGNING_SECRET=whsec_… ")


def test_another_relay_that_takes_its_port_meanwhile_is_not_taken_for_its_own(
    start: Dev, any_redis: EmbeddedRedis
) -> None:
    """Two of them find the same port free at the same moment; one of them gets it."""
    with run_service(any_redis.url) as other:
        finds_it_free = (
            "import sys; from service.dev import run as dev; from service.cli import main; "
            f"dev._choose_port = lambda _: {other.port}; main(sys.argv[1:])"
        )
        program = start(command=(sys.executable, "-c", finds_it_free))
        assert program.end() != 0
    assert program.stdout == ""
    assert f"port {other.port}" in program.stderr
    assert program.stderr.splitlines()[-1].startswith("The relay did not start")


@pytest.mark.parametrize("options", [["--no-simulate"], []])
def test_a_wrong_secret_is_told_as_soon_as_the_samples_are_sent_and_not_before(options: list[str], start: Dev) -> None:
    program = RunningDev(start(*options)).program
    assert "check_endpoint" not in program.stderr

    (refused,) = sender.send(
        sender.one_life(["session.created"], {}), url=RunningDev(program).url, secret=simulator.new_secret()
    )

    assert refused.code == "invalid_signature"
    program.wait_for("check_endpoint", stream="stderr")


def test_a_port_given_that_is_taken_ends_it(start: Dev) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        program = start(PORT=port)
        assert program.end() != 0
    assert f"port {port}" in program.stderr
    assert "Traceback" not in program.stderr


def test_it_can_listen_on_ipv6(start: Dev) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("there is no IPv6 here")
    dev = RunningDev(start("--no-simulate", HOST="::1"))
    assert dev.url.startswith("http://[::1]:")
    assert dev.command("ngrok").startswith("ngrok http http://[::1]:")
    assert simulated_post(dev).status_code == 200


class _Other(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: Any) -> None:
        pass


class OtherServer(http.server.ThreadingHTTPServer):
    """Answers everything, as the relay would."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Other)


def test_another_server_on_its_port_is_not_taken_for_the_relay(start: Dev) -> None:
    with OtherServer() as other:
        thread = threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            port = str(other.server_address[1])
            program = start(PORT=port)
            assert program.end() != 0
        finally:
            other.shutdown()
            thread.join()
    assert f"port {port}" in program.stderr
    assert "whsec_" not in program.stdout


def test_the_secrets_it_is_given_are_used(given: GivenDev) -> None:
    assert [simulated_post(given, secret).status_code for secret in given.secrets_given] == [200, 200]


def test_the_redis_it_is_given_is_used(start: Dev, any_redis: EmbeddedRedis, any_client: Any) -> None:
    dev = RunningDev(start())
    assert (dev.redis_url, dev.redis_name) == (any_redis.url, "REDIS_URL")
    assert any_client.xlen("{clerk}:events") == 3  # applied, stale, applied
    dev.program.stop()
    assert any_client.xlen("{clerk}:events") == 3


def test_settings_in_dotenv_are_used(start: Dev, any_redis: EmbeddedRedis, tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / ".env").write_text(
        f"CLERK_WEBHOOK_SIGNING_SECRET={SECRET}\nREDIS_URL={any_redis.url}\n"
        f"REDIS_CHANNEL='other;channel'\nPORT={port}\n"
    )
    dev = RunningDev(start(REDIS_URL="", PORT=""))
    assert (dev.redis_url, httpx.URL(dev.url).port) == (any_redis.url, port)
    assert simulated_post(dev, SECRET).status_code == 200
    assert dev.table()[0][2] == "active (live)"
    assert dev.command("redis-cli").endswith("subscribe 'other;channel'")
    assert "CLERK_WEBHOOK_SIGNING_SECRET" not in dev.command("send")
    assert shell(dev.command("send"), tmp_path).stdout.split()[:2] == ["200", "applied"]


@pytest.mark.real_redis
@pytest.mark.parametrize("form", ["redis://:{}@{}", "redis://{1}?auth={0}"])
def test_the_password_of_a_redis_given_is_not_shown(
    form: str, start: Dev, start_redis: Callable[..., EmbeddedRedis]
) -> None:
    server = start_redis()
    with client_of(server.url) as client:
        client.config_set("requirepass", "hunter-two")
    url = form.format("hunter-two", server.url.removeprefix("redis://"))
    dev = RunningDev(start("--no-simulate", "--redis-url", url))
    assert "hunter" not in dev.said + dev.program.stderr


def test_a_secret_given_is_not_shown_and_is_found_by_the_send_command(given: GivenDev, tmp_path: Path) -> None:
    for secret in given.secrets_given:
        assert secret not in given.program.stdout + given.program.stderr
    command = given.command("send")
    assert command.startswith("CLERK_WEBHOOK_SIGNING_SECRET=whsec_… ")
    command = command.replace("whsec_…", given.secrets_given[0])
    assert shell(command, tmp_path).stdout.split()[:2] == ["200", "applied"]


@pytest.mark.parametrize(
    "line", [line for line in (ROOT / "Makefile").read_text().splitlines() if "session-relay dev" in line]
)
def test_make_run_touches_no_redis_and_no_secret_that_is_set(line: str, start: Dev, tmp_path: Path) -> None:
    """In `.env` and in the environment, under each name, whether they can be used or not."""
    _, options = line.replace("$(ARGS)", "").split("session-relay dev ")
    with socket.create_server(("127.0.0.1", 0)) as production:
        production.setblocking(False)
        url = f"redis://:hunter-two@127.0.0.1:{production.getsockname()[1]}/0"
        (tmp_path / ".env").write_text(
            f"REDIS_URL={url}\nCLERK_WEBHOOK_SIGNING_SECRET={SECRET}\nCLERK_WEBHOOK_SECRET=cut\n"
            "REDIS_MIN_REPLICAS=1\nCLERK_SECRET_KEY=sk_live_hunter\nMETRICS_TOKEN=hunter\n"
        )
        set_too = {"REDIS_URL": url.replace("redis:", "postgres:"), "CLERK_WEBHOOK_SIGNING_SECRET": OTHER_SECRET}
        dev = RunningDev(start(*options.split(), **set_too))
        assert dev.secret not in {SECRET, OTHER_SECRET}
        assert dev.table()[0][1:] == ["200 applied", "active (live)"]
        assert "dev --own-redis " in dev.command("dev")
        assert dev.program.interrupt() == 0
        with pytest.raises(BlockingIOError):
            production.accept()
    said = dev.program.stdout + dev.program.stderr
    assert [secret for secret in ("hunter", SECRET, OTHER_SECRET) if secret in said] == []


def test_the_redis_of_an_option_is_used_whatever_is_set(start: Dev, any_redis: EmbeddedRedis) -> None:
    dev = RunningDev(start("--own-redis", "--redis-url", any_redis.url, REDIS_URL="redis://127.0.0.1:1/0"))
    assert (dev.redis_url, dev.redis_name) == (any_redis.url, "--redis-url")
    assert dev.table()[0][2] == "active (live)"


def test_the_command_that_comes_next_has_the_redis_of_the_option(
    start: Dev, any_redis: EmbeddedRedis, tmp_path: Path
) -> None:
    given = RunningDev(start("--no-simulate", "--redis-url", f"{any_redis.url}?client_name=a&socket_keepalive=1"))
    command = given.command("dev").replace("whsec_…", SECRET)
    given.program.stop()

    with started(["sh", "-c", f"exec env {command}"], tmp_path, {}) as program:
        again = RunningDev(program)
        assert (again.url, again.redis_url, again.redis_name) == (given.url, given.redis_url, "--redis-url")
        assert simulated_post(again, SECRET).status_code == 200


def test_a_redis_given_that_is_away_ends_it(start: Dev) -> None:
    program = start(REDIS_URL="unix://relay:hunter-two@/nonexistent/redis.sock")
    assert program.end() == 1
    assert "Redis can't be used" in program.stderr
    assert "Traceback" not in program.stderr
    assert "hunter" not in program.stdout + program.stderr


def test_a_wrong_setting_ends_it_with_a_line_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    wrong = {"CLERK_WEBHOOK_SIGNING_SECRET": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLa"}
    result = CliRunner().invoke(main, ["dev"], env=wrong)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("CLERK_WEBHOOK_SIGNING_SECRET: ")
    assert "MfKQ9r8GKYqr" not in line


def test_a_wrong_setting_of_the_server_ends_it_with_a_line_that_names_it(start: Dev) -> None:
    program = start(STREAM_MAXLEN="many")
    assert program.end() != 0
    assert "STREAM_MAXLEN: " in program.stderr
    assert "Traceback" not in program.stderr


def test_without_redis_server_and_stand_in_it_says_what_to_do(start: Dev, tmp_path: Path) -> None:
    script = "import sys; sys.modules['fakeredis'] = None; from service.cli import main; main(sys.argv[1:])"
    program = start(command=(sys.executable, "-c", script), **own_redis_of("fakeredis", tmp_path))
    assert program.end() == 1
    (line,) = program.stderr.splitlines()
    assert "redis-server" in line
    assert "REDIS_URL" in line


def test_a_redis_that_comes_back_is_heard_again(start: Dev, start_redis: Callable[..., EmbeddedRedis]) -> None:
    server = start_redis()
    dev = RunningDev(start("--no-simulate", REDIS_URL=server.url))
    assert server.process is not None
    server.process.kill()
    server.process.wait(10)
    start_redis(port=server.port)

    def is_shown() -> bool:
        answer = simulated_post(dev)
        assert answer.status_code in {200, 503}
        return answer.status_code == 200 and answer.json()["session_id"] in dev.program.stdout

    eventually(is_shown, within=30)
    assert dev.program.stop() == 0
