"""Real clients of asyncio programs: each yields a function that makes one request."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import quote

import aiohttp
import asyncpg
import httpx
import psycopg
import pytest

from tests.clocks.real_servers import TAKES, Server, get

HOUR: Final = 3600
Request = Callable[[], Awaitable[object]]


@asynccontextmanager
async def httpx_client(server: Server, dsn: str) -> AsyncIterator[Request]:
    async with httpx.AsyncClient(timeout=HOUR) as client:
        yield lambda: get(client, server.url)


@asynccontextmanager
async def aiohttp_client(server: Server, dsn: str) -> AsyncIterator[Request]:
    async with aiohttp.ClientSession() as client:
        yield lambda: get(client, server.url)


@asynccontextmanager
async def stream_client(server: Server, dsn: str) -> AsyncIterator[Request]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)

    async def request() -> None:
        writer.write(b"hello\n")
        await writer.drain()
        assert b"hello\n" == await reader.readline()

    yield request
    writer.close()
    await writer.wait_closed()


@asynccontextmanager
async def socket_client(server: Server, dsn: str) -> AsyncIterator[Request]:
    loop = asyncio.get_running_loop()
    with socket.socket() as connection:
        connection.setblocking(False)
        await loop.sock_connect(connection, ("127.0.0.1", server.port))

        async def request() -> None:
            await loop.sock_sendall(connection, b"hello\n")
            received = b""
            while received != b"hello\n":
                received += await loop.sock_recv(connection, 100)

        yield request


class Lines(asyncio.Protocol):
    """A protocol that hands each line to a queue, as many libraries do."""

    def __init__(self) -> None:
        self.received = b""
        self.lines: asyncio.Queue[bytes] = asyncio.Queue()

    def data_received(self, data: bytes) -> None:
        *lines, self.received = (self.received + data).split(b"\n")
        for line in lines:
            self.lines.put_nowait(line)


@asynccontextmanager
async def protocol_client(server: Server, dsn: str) -> AsyncIterator[Request]:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_connection(Lines, "127.0.0.1", server.port)

    async def request() -> None:
        transport.write(b"hello\n")
        assert b"hello" == await protocol.lines.get()

    yield request
    transport.close()


@asynccontextmanager
async def asyncpg_client(server: Server, dsn: str) -> AsyncIterator[Request]:
    host = dict(part.split("=", 1) for part in dsn.split(" ", 3))["host"]
    connection = await asyncpg.connect(f"postgresql://test@/postgres?host={quote(host, safe='')}")
    yield lambda: connection.fetch("SELECT pg_sleep($1)", TAKES)
    await connection.close()


@asynccontextmanager
async def psycopg_client(server: Server, dsn: str) -> AsyncIterator[Request]:
    connection = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
    async with connection:
        yield lambda: connection.execute("SELECT pg_sleep(%s)", [TAKES])


CLIENTS: Final = {
    "aiohttp": aiohttp_client,
    "asyncpg": asyncpg_client,
    "httpx": httpx_client,
    "protocol": protocol_client,
    "psycopg": psycopg_client,
    "socket": socket_client,
    "streams": stream_client,
}
Client = Any
each_client = pytest.mark.parametrize("client", list(CLIENTS.values()), ids=list(CLIENTS))
