"""Handlers that run in other processes, executors, and files by which both sides meet.

Invariants:
- Importing it does not import pytest: worker processes import it.
- A handler waits for a file by reading a named pipe, which blocks until the test writes to it.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from routilux import Routine

TENANT: ContextVar[str] = ContextVar("tenant", default="nobody")
UNPICKLABLE: ContextVar[object] = ContextVar("unpicklable", default=None)


# --- meeting --------------------------------------------------------------------------------------


def note(path: str, line: object) -> None:
    """Add a line to a file; each process may do so."""
    with Path(path).open("a") as file:
        file.write(f"{line}\n")


def lines(path: str | Path) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def pipe(path: Path) -> str:
    """Make a named pipe."""
    os.mkfifo(path)
    return str(path)


def meet(path: str) -> None:
    """Wait until another process meets at the same pipe: one reads, the other one writes."""
    Path(path).read_text()


def release(path: str) -> None:
    """Wait until a process waits at a pipe, and let it go on."""
    Path(path).write_text("on")


# --- handlers -------------------------------------------------------------------------------------


def pay(self: Routine, n: str) -> None:
    """Pay once: a line of the file `n`."""
    pid = self.ctx.once("pay", charge, n)
    self.emit("out", n=pid, pid=os.getpid())


def charge(path: str) -> int:
    note(path, "paid")
    return os.getpid()


def pay_and_die(self: Routine, n: str) -> None:
    """Pay, and in the first run end the process after that; a later run tells its attempt."""
    first = not lines(n)
    self.ctx.once("pay", charge, n)
    note(f"{n}.keys", f"{self.ctx.attempt} {self.ctx.key('pay')}")
    if first:
        os.kill(os.getpid(), 9)
    self.emit("out", n=self.ctx.attempt, pid=os.getpid())


def pay_and_hang(self: Routine, n: str) -> None:
    """Pay, and in the first run meet the test and never end."""
    first = not lines(n)
    self.ctx.once("pay", charge, n)
    note(f"{n}.keys", f"{self.ctx.attempt} {self.ctx.key('pay')}")
    if first:
        release(f"{n}.in")
        threading.Event().wait()
    self.emit("out", n=self.ctx.attempt, pid=os.getpid())


async def pay_async(self: Routine, n: str) -> None:
    await self.ctx.asleep(0.001)
    pid = await self.ctx.aonce("pay", charge_async, n)
    self.emit("out", n=pid, pid=os.getpid())


async def charge_async(path: str) -> int:
    await asyncio.sleep(0)
    return charge(path)


def tell_context(self: Routine) -> None:
    """Emit all that `ctx` gives."""
    ctx = self.ctx
    began = ctx.now()
    ctx.sleep(0.001)
    ctx.state.append("rows", ctx.attempt)
    ctx.shared.add("total", 2)
    facts = {
        "attempt": ctx.attempt,
        "job": ctx.job_id,
        "task": ctx.task_id,
        "key": ctx.key("pay"),
        "random": ctx.random.random(),
        "uuid": str(ctx.uuid()),
        "cancelled": ctx.cancelled,
        "tenant": TENANT.get(),
        "slept": ctx.now() > began,
    }
    self.emit("out", n=facts, pid=os.getpid())


def until_cancelled(self: Routine, n: str) -> None:
    """Say that it runs, and run until the job is cancelled."""
    release(n)
    while not self.ctx.cancelled:
        self.ctx.sleep(0.01)
    note(f"{n}.answer", "cancelled")


def take_over(self: Routine, n: str) -> None:
    """Meet the test, which takes the job from this host, and try to pay."""
    release(f"{n}.in")
    meet(f"{n}.out")
    try:
        self.ctx.once("pay", charge, n)
    except Exception as error:
        note(f"{n}.error", f"{type(error).__name__}: {error}")
        raise


def late(self: Routine) -> None:
    self.ctx.sleep(3600)


def spread(self: Routine, n: int) -> None:
    for each in range(n):
        self.emit("out", n=each)


def add(self: Routine, n: int) -> None:
    self.ctx.shared.add("total", n)
    self.emit("out", n=n)


class Sum(Routine):
    """A gather of all numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.define_slot("done", handler=self.done, gather=True)
        self.define_event("out", ["n"])

    def done(self, numbers: Any) -> None:
        self.emit("out", n=sum(each["n"] for each in numbers))


class Counted(Routine):
    """Counts in each process how often it was built."""

    built = 0

    def __init__(self, name: str) -> None:
        super().__init__()
        type(self).built += 1
        self.name = name
        self.define_slot("trigger", handler=self.tell)
        self.define_event("out", ["n", "pid"])

    def tell(self, n: object = None) -> None:
        self.emit("out", n=self.built, pid=os.getpid())


# --- executors ------------------------------------------------------------------------------------


class Inline(Executor):
    """Runs each call inside `submit`."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


class Elsewhere(Executor):
    """Threads that the engine takes for other processes. `calls` are the arguments by call."""

    def __init__(self, size: int = 4) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.most = 0
        self._flying = 0
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(size)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        with self._lock:
            self._flying += bool(args)
            self.most = max(self.most, self._flying)
            if args:  # else it is the first call
                self.calls.append(args)
        return self._threads.submit(self._call, fn, *args, **kwargs)

    def _call(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return fn(*args, **kwargs)
        finally:
            with self._lock:
                self._flying -= bool(args)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._threads.shutdown(wait, cancel_futures=cancel_futures)
