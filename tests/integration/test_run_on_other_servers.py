"""`make test-servers`: what it counts as failed."""

import os
from pathlib import Path

import pytest
from support import other_servers

PASSES = "import pytest\n\n@pytest.mark.real_redis\ndef test_it() -> None:\n    pass\n"
FAILS = PASSES.replace("pass\n", "raise AssertionError\n")
ENDS_WITH = "def pytest_sessionfinish(session):\n    session.exitstatus = {}\n"


@pytest.mark.parametrize(
    ("test", "status", "failed"),
    [(PASSES, 0, 0), (FAILS, 1, 1), (PASSES, 1, 1), (PASSES, 2, 1), (PASSES, 3, 1), (FAILS, 2, 2)],
)
def test_a_run_that_fails_is_counted_though_its_tests_pass(test: str, status: int, failed: int, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(test)
    (tmp_path / "conftest.py").write_text(ENDS_WITH.format(status))

    counts = other_servers.run(Path(os.devnull), [str(tmp_path), "-p", "no:cacheprovider"])

    assert counts["tests"] == 1
    assert counts["failures"] + counts["errors"] == failed
