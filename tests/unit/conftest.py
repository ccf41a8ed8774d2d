"""Unit tests stay in this process: one that connects, listens or starts a process fails."""

import os
import socket
import subprocess
from typing import Any, NoReturn

import pytest
from hypothesis import settings

settings.register_profile("quick", max_examples=20)  # of `make test-unit`; `make test` tries more


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **_: Any) -> NoReturn:
        pytest.fail(f"a unit test leaves its process: {arguments}")

    for owner, names in {
        socket.socket: ("bind", "connect", "connect_ex"),
        socket: ("getaddrinfo",),
        subprocess.Popen: ("__init__",),
        os: ("fork", "forkpty", "posix_spawn", "system"),
    }.items():
        for name in names:
            monkeypatch.setattr(owner, name, refuse)
