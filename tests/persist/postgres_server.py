"""A PostgreSQL server for the tests, started when the first of them asks for it.

It runs from Debian's packages in a temporary folder, listens on a socket in it and nowhere else,
and ends with the tests.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections import deque
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import IO, Final

import pytest

__all__ = ["fresh_dsn", "stop"]

_PLACES: Final = "/usr/lib/postgresql/*/bin"
_numbers = count(1)


class Server:
    """One server; it refuses to run as root, so its processes are those of somebody harmless."""

    def __init__(self, programs: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pg-"))
        self._user: dict[str, str | int | list[int]] = {}
        if os.geteuid() == 0:
            shutil.chown(self.folder, "nobody")
            self._user = {"user": "nobody", "extra_groups": []}
        data = self.folder / "data"
        self._run(programs / "initdb", "-D", data, "-A", "trust", "-U", "test", "--no-sync")
        self._process = subprocess.Popen(  # type: ignore[call-overload]
            # fsync=off: what the tests see does not depend on it, and no power is cut here.
            [programs / "postgres", "-D", data, "-k", self.folder, "-h", "", "-F"],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            **self._user,
        )
        told: deque[str] = deque(maxlen=20)
        for line in self._process.stderr:
            told.append(line)
            if "ready to accept connections" in line:
                break
        else:
            raise RuntimeError(f"the server did not start:\n{''.join(told)}")
        threading.Thread(target=_drain, args=(self._process.stderr,), daemon=True).start()

    def _run(self, *command: object) -> None:
        subprocess.run(  # type: ignore[call-overload]
            [*map(str, command)], check=True, capture_output=True, cwd=self.folder, **self._user
        )

    def close(self) -> None:
        self._process.send_signal(signal.SIGINT)  # without waiting for its clients
        self._process.wait(30)
        self._process.stderr.close()
        shutil.rmtree(self.folder)


def _drain(pipe: IO[str]) -> None:
    with suppress(ValueError):  # it is closed with the server
        deque(pipe, maxlen=0)


_running: list[Server] = []


def fresh_dsn() -> str:
    """Return how to connect to a schema of its own; skips the test where there is no server."""
    import psycopg

    if not _running:
        _running.append(Server(_programs()))
    name = f"test_{next(_numbers)}"
    dsn = f"host={_running[0].folder} user=test dbname=postgres"
    with psycopg.connect(dsn, autocommit=True) as db:
        db.execute(f"CREATE SCHEMA {name}")
    return f"{dsn} options='-c search_path={name}'"


def available() -> str | None:
    """Return why there can be no server; None where there can."""
    if importlib.util.find_spec("psycopg") is None:
        return "psycopg is not installed: pip install 'routilux[postgres]'"
    if not list(Path("/").glob(f"{_PLACES[1:]}/initdb")):
        return f"no PostgreSQL server in {_PLACES}: apt-get install postgresql"
    return None


def _programs() -> Path:
    return max(Path("/").glob(f"{_PLACES[1:]}/initdb"), key=lambda path: path.parts[-3]).parent


def need() -> None:
    """Skip the test where there can be no server."""
    reason = available()
    if reason is not None:
        pytest.skip(reason)


def stop() -> None:
    """End the server, if it was started."""
    while _running:
        _running.pop().close()
