"""A PostgreSQL server for the tests, started when the first of them asks for it.

It runs from Debian's packages in a temporary folder and listens only on a socket in it. A shell
holds a pipe to the process that started it: when that process ends, in any way, the shell ends the
server and removes the folder.
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
from itertools import count
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote

__all__ = [
    "GUARDED",
    "MISSING",
    "Server",
    "available",
    "fresh_dsn",
    "need",
    "running",
    "stop",
    "url",
    "with_option",
]

GUARDED: Final = "guarded"
"""The one user with a password; the test that needs this user creates it."""

MISSING: Final = "no PostgreSQL"
"""The start of the reason for which a test is skipped."""

_PLACES: Final = "/usr/lib/postgresql/*/bin"
_SHORT: Final = "/tmp"  # a socket's path has 107 bytes at the most, and its user must get there
_TEXT: Final = ("-E", "UTF8", "--locale=C")  # whatever the machine's language is, or lacks
_PATIENCE: Final = 60.0
_QUOTE: Final = "'"
_numbers = count(1)
# A line names the signal that ends the server; the end of the pipe ends all.
_KEEPER: Final = """
folder=$1; shift
"$@" & exec 2>&-
if read -r how; then kill -"$how" $!; wait; else kill -QUIT $!; wait; rm -rf "$folder"; fi
"""


class Server:
    """One server; PostgreSQL refuses to run as root, so it runs as another user.

    With `flushes` it flushes every commit, as in production. Tests do not need that, because the
    power is never cut.
    """

    def __init__(self, *, flushes: bool = False) -> None:
        programs = max(Path("/").glob(f"{_PLACES[1:]}/initdb"), key=_version).parent
        self.folder = Path(tempfile.mkdtemp(prefix="pg-", dir=_SHORT))
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:
            shutil.chown(self.folder, "nobody")
            self._user = {"user": "nobody", "group": "nogroup", "extra_groups": []}
        data = self.folder / "data"
        # Nor does anything clean up behind the hundreds of schemas that tests make.
        flush = [] if flushes else ["-F", "-c", "autovacuum=off"]
        self._command = [programs / "postgres", "-D", data, "-k", self.folder, "-h", "", *flush]
        self._keeper: subprocess.Popen[str] | None = None
        try:
            subprocess.run(
                [programs / "initdb", "-D", data, "-A", "trust", "-U", "test", "--no-sync", *_TEXT],
                check=True,
                capture_output=True,
                cwd=self.folder,
                env=_environment(),
                **self._user,
            )
            access = data / "pg_hba.conf"
            rules = access.read_text("utf-8")
            access.write_text(f"local all {GUARDED} scram-sha-256\n{rules}", "utf-8")
            self.start()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def dsn(self) -> str:
        """Return the connection string of a new schema."""
        import psycopg

        name = f"test_{next(_numbers)}"
        dsn = f"host={self.folder} user=test dbname=postgres"
        with psycopg.connect(dsn, autocommit=True) as db:
            db.execute(f"CREATE SCHEMA {name}")
        return f"{dsn} options={_QUOTE}-c search_path={name}{_QUOTE}"

    def start(self) -> None:
        """Start it, and return when it takes connections."""
        self._keeper = subprocess.Popen(
            ["sh", "-c", _KEEPER, "sh", self.folder, *self._command],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env=_environment(),
            start_new_session=True,  # a Ctrl-C is for the tests, which then end it
            **self._user,
        )
        assert self._keeper.stderr is not None
        lines: deque[str] = deque(maxlen=20)
        for line in self._keeper.stderr:
            lines.append(line)
            if "ready to accept connections" in line:
                break
        else:
            raise RuntimeError(f"the server did not start:\n{''.join(lines)}")
        threading.Thread(target=_drain, args=(self._keeper.stderr,), daemon=True).start()

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it without waiting for its clients, or by SIGQUIT as a crash does; the data stay."""
        self._end(how.name.removeprefix("SIG") + "\n")

    def restart(self, how: signal.Signals = signal.SIGINT) -> None:
        self.stop(how)
        self.start()

    def close(self) -> None:
        """End it and remove its folder."""
        self._end("")
        shutil.rmtree(self.folder, ignore_errors=True)

    def _end(self, line: str) -> None:
        if self._keeper is not None:
            assert self._keeper.stdin is not None
            with self._keeper.stdin as pipe:
                pipe.write(line)
            self._keeper.wait(_PATIENCE)
            self._keeper = None


def _environment() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C"}


def _drain(pipe: Any) -> None:
    with pipe:
        deque(pipe, maxlen=0)


def _version(program: Path) -> float:
    return float(program.parts[-3])


_running: list[Server] = []


def running() -> Server:
    """Return the server that the tests of this process share."""
    if not _running:
        _running.append(Server())
    return _running[0]


def fresh_dsn() -> str:
    """Return the connection string of a new schema of the shared server."""
    return running().dsn()


def with_option(dsn: str, option: str) -> str:
    """Return the connection string with one more server setting."""
    return f"{dsn.removesuffix(_QUOTE)} -c {option}{_QUOTE}"


def url(dsn: str) -> str:
    """Return the same as a URL, with a password that its user does not need."""
    known = dict(part.split("=", 1) for part in dsn.split(" ", 3))
    options = quote(known["options"].strip(_QUOTE))
    return (
        f"postgresql://test:secret@/postgres?host={quote(known['host'], safe='')}&options={options}"
    )


def available() -> str | None:
    """Return why there can be no server; None where there can."""
    if importlib.util.find_spec("psycopg") is None:
        return f"{MISSING}: psycopg is not installed; run: pip install 'psycopg[binary]>=3.1'"
    if not list(Path("/").glob(f"{_PLACES[1:]}/initdb")):
        return f"{MISSING}: there is no server in {_PLACES}: apt-get install postgresql"
    return None


def need() -> None:
    """Skip the test where there can be no server."""
    reason = available()
    if reason is not None:
        import pytest  # not at the top: hosts import this module

        pytest.skip(reason)


def stop() -> None:
    """End the server, if it was started."""
    while _running:
        _running.pop().close()
