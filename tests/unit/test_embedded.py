"""An embedded Redis, where there is nothing to embed."""

import sys
from pathlib import Path

import pytest

from service.dev import embedded
from service.errors import StartError


def test_it_says_what_to_install_where_there_is_neither(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "fakeredis", None)

    with pytest.raises(StartError, match=r"redis-server.*clerk-session-relay\[dev\]"), embedded.run():
        pass
