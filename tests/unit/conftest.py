"""Unit tests stay in this process: one that connects, listens or starts a process fails."""

import contextlib
import os
import socket
import subprocess
from collections.abc import Generator, Iterator
from typing import Any, Final, NoReturn

import pytest
from hypothesis import settings

settings.register_profile("quick", max_examples=10)  # of `make test-unit`; `make test` tries more

_WAYS_OUT: Final = [
    *((socket.socket, name, getattr(socket.socket, name)) for name in ("bind", "connect", "connect_ex")),
    (socket, "getaddrinfo", socket.getaddrinfo),
    (subprocess.Popen, "_execute_child", subprocess.Popen._execute_child),  # type: ignore[attr-defined]
    *((os, name, getattr(os, name)) for name in ("fork", "forkpty", "posix_spawn", "system")),
]


def _refuse(*arguments: Any, **_: Any) -> NoReturn:
    pytest.fail(f"a unit test leaves its process: {arguments}")


@contextlib.contextmanager
def _in_this_process() -> Iterator[None]:
    for owner, name, _ in _WAYS_OUT:
        setattr(owner, name, _refuse)
    try:
        yield
    finally:
        for owner, name, original in _WAYS_OUT:
            setattr(owner, name, original)


# Hooks, not a fixture, which costs a third of a millisecond for each of thousands of tests.
@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None]:
    with _in_this_process():
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None]:
    with _in_this_process():
        yield
