"""A network between a client and a local server that loses a connection on request."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

__all__ = ["Losses"]


class Losses:
    """Forwards everything between `port` and the server's socket, until a connection is to be lost.

    `count` is the number of losses.
    """

    def __init__(self, server: Path) -> None:
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.count = 0
        self._lost = ""
        self._open: list[tuple[socket.socket, socket.socket]] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for ends in self._open:
            for end in ends:
                end.close()

    def next(self, lost: str) -> None:
        """Lose the next "question", which the server never sees, or "answer", which it has sent."""
        self._lost = lost

    @contextmanager
    def once(self, lost: str) -> Iterator[None]:
        """Lose the next one of these within the block; the block fails where there was none."""
        before = self.count
        self.next(lost)
        yield
        assert before + 1 == self.count, f"no {lost} was lost"

    def leave(self) -> None:
        """Disconnect the clients; the server does not notice it."""
        for client, _ in self._open.copy():  # they connect again at once
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
                self.count += 1

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(str(self._server))
                self._open.append((client, server))
                for source, target, what in (
                    (client, server, "question"),
                    (server, client, "answer"),
                ):
                    threading.Thread(
                        target=self._pass_on, args=(source, target, what), daemon=True
                    ).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, what: str) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if self._lost == what:
                    self._lost = ""
                    self.count += 1
                    break
                target.sendall(data)
            else:
                if what == "question":
                    return  # the server does not notice that the client has left
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
