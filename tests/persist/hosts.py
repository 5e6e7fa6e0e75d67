"""Processes, calls in threads and locks, shared by the tests of many hosts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

ROOT = Path(__file__).parents[2]
PATIENCE = 120.0  # seconds that a busy machine may take


def process(program: str, *arguments: object) -> subprocess.Popen[str]:
    """A fresh interpreter that runs a program; `sys.argv[1:]` are the arguments."""
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@contextmanager
def processes(program: str, *arguments: list[object]) -> Iterator[list[subprocess.Popen[str]]]:
    """Interpreters that run a program, one for each list of arguments; they end with the block."""
    children = [process(program, *each) for each in arguments]
    try:
        yield children
    finally:
        for child in children:
            child.kill()
            child.communicate()


def line_of(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def go(children: list[subprocess.Popen[str]]) -> None:
    """Write the line for which they wait."""
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()


class Call:
    """A call in a thread of its own; `result` waits for what it returns or raises."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self._future = ThreadPoolExecutor(1).submit(function, *arguments)

    def result(self) -> object:
        return self._future.exception(PATIENCE) or self._future.result()


def rest_of(child: subprocess.Popen[str]) -> str:
    """The rest of the output of a process."""
    assert child.stdout is not None
    return str(Call(child.stdout.read).result())


def locked(dsn: str, how: str = "SELECT FROM routilux_jobs FOR UPDATE") -> Any:
    """A transaction that keeps the jobs locked until its block ends."""
    import psycopg

    db = psycopg.connect(dsn)
    db.execute(how)
    return db


def until_one_waits(admin: Any, *, other_than: int = 0) -> int:
    """The backend that waits for a lock, `other_than` this one, as soon as there is one."""
    ends = monotonic() + PATIENCE
    while monotonic() < ends:
        found = admin.execute(
            "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND pid <> %s",
            (other_than,),
        )
        for (pid,) in found:
            return int(pid)
    raise AssertionError("no backend waits for a lock")


def end_backends(admin: Any) -> int:
    """End the connections of all stores, and return how many there were, when they are gone."""
    ended = admin.execute(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
        " WHERE application_name = 'routilux'"
    ).fetchall()
    return len(ended)
