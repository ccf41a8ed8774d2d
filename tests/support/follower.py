"""A consumer as a program of its own: writes down what it saw, a line for each update.

    python follower.py KIND URL FILE    KIND: SessionFeed | AsyncSessionFeed | consume

`SessionFeed` and `AsyncSessionFeed` follow from the start, and go on behind the last line of the file.
"""

import asyncio
import sys
from pathlib import Path
from typing import IO

from clerk_session_feed import AsyncSessionFeed, SessionFeed, SessionUpdate


def note(lines: IO[str], update: SessionUpdate) -> None:
    lines.write(f"{update.session.id} {update.revision} {update.cursor}\n")
    lines.flush()


def position(path: Path) -> str:
    lines = path.read_text().splitlines() if path.exists() else []
    return lines[-1].split()[2] if lines else "0-0"


def follow(url: str, path: Path) -> None:
    with SessionFeed.from_url(url) as feed, path.open("a") as lines:
        for update in feed.follow(position(path)):
            note(lines, update)


async def follow_async(url: str, path: Path) -> None:
    async with AsyncSessionFeed.from_url(url) as feed:
        with path.open("a") as lines:
            async for update in feed.follow(position(path)):
                note(lines, update)


def consume(url: str, path: Path) -> None:
    with SessionFeed.from_url(url) as feed, path.open("a") as lines:
        for update in feed.consume("followers", path.name, after="0-0", claim_after=5):
            note(lines, update)


if __name__ == "__main__":
    kind, url, path = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    if kind == "AsyncSessionFeed":
        asyncio.run(follow_async(url, path))
    else:
        {"SessionFeed": follow, "consume": consume}[kind](url, path)
