"""Commands and replies over a connection of redis-py's whose transport is taken over."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from unittest.mock import Mock

import pytest
import redis
from clerk_session_feed.connections import connect_async
from hiredis import pack_command
from redis.exceptions import BusyLoadingError, InvalidResponse, NoScriptError
from support import virtual_time

from service.store.exchange import Exchange

LONG = 30.0
"""Seconds, more than any test takes."""
PING = pack_command(("PING",))


@contextlib.asynccontextmanager
async def exchange_with(*replies: bytes, seconds: float = LONG) -> AsyncIterator[tuple[Exchange, Any]]:
    """Make an exchange with a server that sends these bytes after what it gets, piece by piece, and then closes.

    If the seconds for the replies are short, the server does not close.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"PING\r\n")
            for reply in replies:
                writer.write(reply)
                await writer.drain()
                await asyncio.sleep(0)
            if seconds < LONG:
                await reader.read()  # until the other end closes
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the other end has closed
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        pool: Any = connect_async(f"redis://127.0.0.1:{port}").connection_pool
        connection = pool.make_connection()
        await connection.connect()
        try:
            yield Exchange(connection, seconds), connection
        finally:
            await connection.disconnect()


def talk(*replies: bytes, then: Callable[[Exchange, Any], Awaitable[Any]], seconds: float = LONG) -> Any:
    async def run() -> Any:
        async with asyncio.timeout(30), exchange_with(*replies, seconds=seconds) as (exchange, connection):
            return await then(exchange, connection)

    return asyncio.run(run())


async def ping_twice(exchange: Exchange, _: Any) -> list[Any]:
    return await exchange.send([PING, PING])


def test_each_command_gets_its_reply() -> None:
    assert talk(b"+one\r\n$3\r\ntwo\r\n", then=ping_twice) == [b"one", b"two"]


def test_replies_may_come_in_pieces() -> None:
    assert talk(b"+o", b"ne\r\n$3\r", b"\ntwo\r\n", then=ping_twice) == [b"one", b"two"]


def test_an_error_is_a_reply_in_the_classes_of_redis_py() -> None:
    first, second = talk(b"-NOSCRIPT No matching script.\r\n+two\r\n", then=ping_twice)

    assert isinstance(first, NoScriptError)
    assert second == b"two"


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (b"+one\r\n", redis.ConnectionError),
        (b"-LOADING Redis is loading\r\n+two\r\n", BusyLoadingError),
        (b"no RESP\r\n", InvalidResponse),
    ],
)
def test_what_ends_the_connection_fails_the_batch(reply: bytes, error: type[Exception]) -> None:
    async def fail(exchange: Exchange, _: Any) -> bool:
        with pytest.raises(error):
            await exchange.send([PING, PING])
        return exchange.is_open

    assert talk(reply, then=fail) is False


def test_a_batch_whose_replies_are_late_ends_the_connection() -> None:
    async def wait(exchange: Exchange, _: Any) -> bool:
        with pytest.raises(redis.TimeoutError):
            await exchange.send([PING, PING])
        return exchange.is_open

    assert talk(b"+one\r\n", then=wait, seconds=0.01) is False


def test_the_time_for_each_batch_begins_when_it_is_sent() -> None:
    async def send_twice() -> float:
        transport = Mock(**{"is_closing.return_value": False})
        exchange = Exchange(Mock(_writer=Mock(transport=transport)), 2.0)
        first = exchange.send([PING])
        exchange.data_received(b"+one\r\n")
        await first
        await asyncio.sleep(1.5)
        with pytest.raises(redis.TimeoutError):
            await exchange.send([PING])
        transport.abort.assert_called_once()
        return asyncio.get_running_loop().time()

    assert virtual_time.run(send_twice()) == 3.5


def test_redis_py_can_disconnect() -> None:
    async def disconnect(exchange: Exchange, connection: Any) -> bool:
        await connection.disconnect()
        return exchange.is_open

    assert talk(then=disconnect) is False
