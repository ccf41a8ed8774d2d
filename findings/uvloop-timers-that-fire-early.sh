#!/usr/bin/env bash
# uvloop 0.23.0 calls what was scheduled with `loop.call_at(when, …)` up to half a millisecond before `loop.time()` is
# `when`: it rounds the delay to whole milliseconds, and down if that is nearer. asyncio's own loop never calls it early.
# So a callback can't tell by the clock that its time has come: "cancelled before the deadline, so somebody else did it"
# is wrong for every third timer. Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check uvloop==0.23.0
cat >"$folder/early.py" <<'PYTHON'
import asyncio
import sys

import uvloop


async def early() -> int:
    """Return how many of 200 timers were called before their time, each of another part of a millisecond."""
    loop = asyncio.get_running_loop()
    count = 0
    for number in range(200):
        when = loop.time() + 0.002 + number % 20 / 20_000
        called = loop.create_future()
        loop.call_at(when, lambda: called.set_result(loop.time()))
        count += await called < when
    return count


print(asyncio.Runner(loop_factory=getattr(sys.modules[sys.argv[1]], "new_event_loop")).run(early()))
PYTHON
asyncio_early=$("$folder/venv/bin/python" "$folder/early.py" asyncio)
uvloop_early=$("$folder/venv/bin/python" "$folder/early.py" uvloop)
echo "timers of 200 that were called early: asyncio $asyncio_early, uvloop $uvloop_early"
[[ $asyncio_early == 0 && $uvloop_early -gt 10 ]] || { echo "This has changed; expected 0, and more than 10."; exit 1; }
