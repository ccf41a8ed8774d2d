"""What holds for all tests: their environment, and what is skipped where there is no redis-server."""

import contextlib
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
from support.orphans import ended_with_this_process, put_first_on_path

from service.config import ReconcileSettings, Settings

INSTALL_REDIS = "install it, for example with `apt-get install redis-server` or `brew install redis`"


def pytest_configure(config: pytest.Config) -> None:
    named = os.environ.pop("REDIS_SERVER", None)
    if named and not os.access(named, os.X_OK):
        raise pytest.UsageError(f"REDIS_SERVER: there is no program {named}: name the path of a redis-server.")
    is_main = not hasattr(config, "workerinput")  # pytest's workers, and all that they start, inherit what it sets
    if (binary := named or shutil.which("redis-server")) and is_main:
        directory = tempfile.mkdtemp(prefix="redis-server-")
        config.add_cleanup(lambda: shutil.rmtree(directory))
        put_first_on_path(Path(directory), Path(binary))
    if os.environ.get("CI") == "true" and shutil.which("redis-server") is None:
        raise pytest.UsageError(f"CI=true, but there is no redis-server on PATH: {INSTALL_REDIS}.")
    # Where this is set, each of the many processes that tests start would compile the whole service anew.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    # Settings of whoever runs the tests are none of theirs.
    for name in [*Settings.model_fields, *ReconcileSettings.model_fields, "clerk_webhook_secret"]:
        os.environ.pop(name.upper(), None)
        os.environ.pop(name, None)
    if is_main:
        stack = contextlib.ExitStack()
        stack.enter_context(ended_with_this_process())
        config.add_cleanup(stack.close)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "redis_binary" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.real_redis)


def pytest_collection_finish() -> None:
    # Shells start what is to run in the background with SIGINT ignored, and nohup with SIGHUP. Children inherit that,
    # but no handler: so the signals still do nothing here, and end what the tests start. This hook is called only
    # where tests run: pytest's workers, too, have to inherit from the main process that a signal is ignored.
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    # One place for all of them, so that pytest's summary has one line about it.
    if item.get_closest_marker("real_redis") and shutil.which("redis-server") is None:
        pytest.skip(f"needs a redis-server on PATH: {INSTALL_REDIS}")
