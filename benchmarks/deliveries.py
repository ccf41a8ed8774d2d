"""Signed deliveries in a file, as `deliveries.lua` and `open_loop.py` read them: each with ids of its own."""

import base64
import contextlib
import hmac
import multiprocessing
import os
import random
import string
import time
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Final

import click

from service.dev import simulator

BODY_BYTES: Final = range(2_000, 8_001)

_PIECE: Final = '{"id":"orgmem_%s","role":"org:member","seat":%d,"created_at":%d}'
_ALPHABET: Final = string.ascii_letters + string.digits


class ByteRange(click.ParamType[range]):
    """`2000-8000`, or `4096`."""

    name = "FROM-TO"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> range:
        if isinstance(value, range):
            return value
        low, _, high = str(value).partition("-")
        try:
            chosen = range(int(low), int(high or low) + 1)
        except ValueError:
            chosen = range(0)
        if not chosen:
            self.fail(f"{value!r} is no range of bytes, like 2000-8000", param, ctx)
        return chosen


def prepare(path: Path, secret: str, number: int, body_bytes: range = BODY_BYTES, seed: int = 1) -> None:
    """Write that many signed requests; their signatures are good for five minutes.

    Sizes are spread evenly over `body_bytes`; but a body has 1,432 bytes at least.
    """
    with path.open("wb") as file:
        for request in islice(requests(secret, body_bytes, seed), number):
            file.write(b"%d\n%b" % (len(request), request))


@contextlib.contextmanager
def endless(path: Path, secret: str, body_bytes: range = BODY_BYTES) -> Iterator[None]:
    """Make a pipe that gives new requests, as long as it is read, to whoever opens it. One reader at a time.

    They are signed while they are read: a signature is good for five minutes only.
    """
    os.mkfifo(path)
    writer = multiprocessing.Process(target=_write_endlessly, args=(path, secret, body_bytes), daemon=True)
    writer.start()
    try:
        yield
    finally:
        writer.kill()
        writer.join()
        path.unlink()


def _write_endlessly(path: Path, secret: str, body_bytes: range) -> None:
    for seed in count():
        with contextlib.suppress(BrokenPipeError), path.open("wb") as pipe:
            for request in requests(secret, body_bytes, seed):
                pipe.write(b"%d\n%b" % (len(request), request))


def read(path: Path, number: int) -> list[bytes]:
    """Return the first requests of a file."""
    with path.open("rb") as file:
        return [file.read(int(line)) for line in islice(iter(file.readline, b""), number)]


def requests(secret: str, body_bytes: range = BODY_BYTES, seed: int = 1) -> Iterator[bytes]:
    """Make signed requests without end, as they go over the wire.

    By replacing, not by encoding an event each time: tens of thousands are needed, and their signatures age.
    """
    chance = random.Random(seed)  # noqa: S311  # for sizes and ids
    key = base64.b64decode(secret.removeprefix("whsec_"))
    now_ms = time.time_ns() // 1_000_000
    event = simulator.sample(session_id="@session", user_id="@user", now_ms=now_ms)
    event["data"]["user"]["private_metadata"]["memberships"] = "@filling"
    event["data"]["created_at"] = "@created"
    template = simulator.encode(event)
    filling = _Filling(chance, body_bytes.stop)

    plain = len(template) + template.count(b"@user") * 27 + 24 - len(b'"@filling"') + 3
    while True:
        # From its end to its beginning, so that every mark is looked for in little text.
        body = (
            # wrk's LuaJIT tells strings apart by their length and a few characters, the last ones among them.
            template.replace(b'"@created"', b"%d" % (now_ms - chance.randrange(10_000)))
            .replace(b"@session", b"sess_" + _id(chance))
            .replace(b"@user", b"user_" + _id(chance))
            .replace(b'"@filling"', filling.take(chance, chance.choice(body_bytes) - plain))
        )
        message_id, sent_at = b"msg_" + _id(chance), b"%d" % time.time()
        digest = hmac.digest(key, b"%b.%b.%b" % (message_id, sent_at, body), "sha256")
        yield (
            b"POST /webhooks/clerk HTTP/1.1\r\nhost: relay.example\r\ncontent-type: application/json\r\n"
            b"user-agent: Svix-Webhooks/1.0 (benchmark)\r\nsvix-id: %b\r\nsvix-timestamp: %b\r\n"
            b"svix-signature: v1,%b\r\ncontent-length: %d\r\n\r\n%b"
            % (message_id, sent_at, base64.b64encode(digest), len(body), body)
        )


class _Filling:
    """Metadata of any size: small objects, as a user's memberships are, and text for the rest."""

    def __init__(self, chance: random.Random, most: int) -> None:
        now = int(time.time() * 1000)
        pieces = [
            (_PIECE % (_id(chance).decode(), chance.randrange(10**5, 10**6), now)).encode()
            for _ in range(2 * most // len(_PIECE) + 2)
        ]
        self._step = len(pieces[0]) + 1
        self._pieces = b",".join(pieces)
        self._starts = len(pieces) // 2

    def take(self, chance: random.Random, size: int) -> bytes:
        """Return a JSON array of about that many bytes; at least an empty one."""
        count, rest = divmod(max(size - 4, 0), self._step)
        start = chance.randrange(self._starts) * self._step
        return b'[%b"%b"]' % (self._pieces[start : start + count * self._step], b"x" * rest)


def _id(chance: random.Random) -> bytes:
    return "".join(chance.choices(_ALPHABET, k=27)).encode()
