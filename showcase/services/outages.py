"""Scripted outages: a real HTTP server on the loopback and a real lock on a database file.

Invariants:
- A script has one entry for each attempt; after its last entry no attempt fails.
- A server listens only during an attempt that it answers, and answers once. For `refused` no
  process listens on the port.
- The port is held from start to end, so that no other program can answer on it.
"""

from __future__ import annotations

import json
import socket
import sqlite3
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer
from typing import TYPE_CHECKING, Final, Literal, Self

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from routilux import Commit, JobState, StepInput

__all__ = ["Answer", "LoopbackApi", "Outage"]

Answer = Literal["refused", "reset", "503", "404", "200"]
_HOST: Final = "127.0.0.1"
_REAL_SECONDS: Final = 10  # a server whose answer is not fetched gives up


class LoopbackApi:
    """An HTTP API on 127.0.0.1 that serves one order, and fails as its script says.

    `seen` has an entry for each request that reached it: path, request id, answer.
    """

    def __init__(self, order: dict[str, object], script: Sequence[Answer] = ()) -> None:
        self.seen: list[tuple[str, str, Answer]] = []
        self._body = json.dumps(order).encode()
        self._script = list(script)
        self._thread: threading.Thread | None = None
        self._holder = socket.socket()
        _share(self._holder)
        self._holder.bind((_HOST, 0))  # bound and never listening: a connection is refused
        self._port: int = self._holder.getsockname()[1]
        self.url = f"http://{_HOST}:{self._port}"

    def prepare(self) -> None:
        """Make the next attempt end as the script says."""
        self._join()
        answer = self._script.pop(0) if self._script else "200"
        if answer == "refused":
            return
        server = _OneAnswer(self._port, self._body, answer, self.seen)
        self._thread = threading.Thread(target=server.serve, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None and self._thread.is_alive():
            with suppress(
                OSError
            ):  # the last answer was not fetched: an empty call frees the server
                socket.create_connection((_HOST, self._port), timeout=1).close()
        self._join()
        self._holder.close()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None


class _OneAnswer(TCPServer):
    """Listens from the start, answers one connection, and is closed."""

    timeout = _REAL_SECONDS

    def __init__(
        self, port: int, body: bytes, answer: Answer, seen: list[tuple[str, str, Answer]]
    ) -> None:
        super().__init__((_HOST, port), _Handler, bind_and_activate=False)
        self.body = body
        self.answer = answer
        self.seen = seen
        _share(self.socket)
        self.server_bind()
        self.server_activate()

    def serve(self) -> None:
        with self:
            self.handle_request()


class _Handler(BaseHTTPRequestHandler):
    server: _OneAnswer

    def do_GET(self) -> None:
        server = self.server
        server.seen.append((self.path, self.headers.get("X-Request-Id", ""), server.answer))
        if server.answer == "reset":
            return  # the connection ends without a byte
        status = int(server.answer)
        body = server.body if status == 200 else b"{}"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Print nothing on stderr: the report shows the requests."""


class Outage:
    """An observer that sets up the scripted outage before each attempt.

    On the attempts in `locked` another connection holds the database's write lock.
    """

    def __init__(self, api: LoopbackApi, database: Path, locked: Sequence[int] = ()) -> None:
        self._api = api
        self._database = database
        self._locked = frozenset(locked)
        self._lock: sqlite3.Connection | None = None

    def on_step(self, job: JobState, step: StepInput) -> None:
        """Set up the outage of an attempt that starts."""
        if step.task.routine_id == "api_call":
            self._api.prepare()
        elif step.task.routine_id == "database_write" and step.attempt in self._locked:
            self._lock = sqlite3.connect(self._database, isolation_level=None)
            self._lock.execute("BEGIN IMMEDIATE")

    def on_commit(self, job: JobState, commit: Commit) -> None:
        """Release the lock when the attempt has ended."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _share(holder: socket.socket) -> None:
    # Both the holder of the port and each short-lived listener may be bound to it.
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "SO_REUSEPORT"):
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
