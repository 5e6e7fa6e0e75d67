"""Servers in threads of their own, which no virtual clock knows."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

TAKES: Final = 0.005
"""The seconds in real time that a server needs for an answer."""


class Server(socketserver.ThreadingTCPServer):
    """A server on the loopback interface."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.answers = threading.Event()
        """While it is not set, the server reads and does not answer."""
        self.answers.set()
        self.seen: list[bytes] = []
        self.closed = threading.Semaphore(0)
        """Released each time a client has closed its connection."""

    @property
    def port(self) -> int:
        port: int = self.server_address[1]
        return port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"


class _Connection(socketserver.StreamRequestHandler):
    """Answers a line by its echo, and an HTTP request by its path, in two parts."""

    server: Server
    disable_nagle_algorithm = True

    def handle(self) -> None:
        try:
            while line := self.rfile.readline():
                self.server.seen.append(line.strip())
                if line.startswith(b"GET "):
                    while self.rfile.readline().strip():
                        pass
                    body = line.split()[1]
                    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
                    parts = [head + body[:1], body[1:]]
                else:
                    parts = [line[:1], line[1:]]
                for part in parts:
                    threading.Event().wait(TAKES)
                    self.server.answers.wait()
                    self.wfile.write(part)
        except OSError:
            pass
        self.server.closed.release()


@contextmanager
def real_server() -> Iterator[Server]:
    """Yield a server that runs in threads of its own."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.005,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.answers.set()
            server.shutdown()
            thread.join()


def get(client: Any, url: str) -> Any:
    """Return a coroutine that gets a page and returns its text."""
    import aiohttp

    async def with_aiohttp() -> str:
        async with client.get(url) as answer:
            return str(await answer.text())

    async def with_httpx() -> str:
        return str((await client.get(url)).text)

    return with_aiohttp() if isinstance(client, aiohttp.ClientSession) else with_httpx()
