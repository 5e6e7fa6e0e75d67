"""Threads, processes and a clock that a test moves, shared by the tests of the engine.

Everything that a child process may need is defined at the top of this module, so that it can be
imported there.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from routilux import Clock, Routine, Signal
from tests.routines import PATIENCE, SECOND, Body, Importable, saveable


def engine_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("routilux")}


@contextmanager
def no_thread_remains() -> Iterator[None]:
    """Assert that every thread of the engine that starts in the block ends."""
    before = engine_threads()
    yield
    for thread in engine_threads() - before:
        thread.join(PATIENCE)
        assert not thread.is_alive(), f"{thread.name} still runs"


def at_once(*calls: Callable[[], object]) -> None:
    """Run each call in a thread of its own, and wait for all of them."""
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)


def in_a_child(does: Callable[[], object], *, ends: int = 0) -> None:
    """Call it in a forked child; fail if the child hangs or ends with another exit code."""
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(int(PATIENCE))
            does()
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert -signal.SIGALRM != (ended := os.waitstatus_to_exitcode(status)), "the child hangs"
    assert ends == ended


class Gate:
    """A handler that holds its thread until the test opens the gate, and then emits `n`."""

    def __init__(self) -> None:
        self._reached, self._opened = threading.Event(), threading.Event()
        self.open = self._opened.set

    def holds(self, routine: Routine, n: object = 0) -> None:
        self._reached.set()
        assert self._opened.wait(PATIENCE)
        routine.emit("out", n=n)

    def until_reached(self) -> None:
        assert self._reached.wait(PATIENCE), "no step has reached the gate"


class HandClock(Clock):
    """Time that only the test moves, for real threads; a wait without an end fails."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.wall = 1_767_225_600 * SECOND
        self.mono = 0
        self.waits: list[int | None] = []

    def now_ns(self) -> int:
        return self.wall + self.mono

    def monotonic_ns(self) -> int:
        return self.mono

    def signal(self) -> Signal:
        return _HandSignal(self)

    def wait(
        self, signal: Signal | None, until: int | None, key: tuple[float, ...] = (), who: str = ""
    ) -> bool:
        with self.changed:
            self.waits.append(until)
            self.changed.notify_all()
            over = self.changed.wait_for(
                lambda: (
                    (signal is not None and signal.is_set())
                    or (until is not None and self.mono >= until)
                ),
                PATIENCE,
            )
            self.waits.remove(until)
            assert over, f"{who} waited without an end"
            return signal is not None and signal.is_set()

    def move(self, seconds: float) -> None:
        """Let time pass."""
        with self.changed:
            self.mono += round(seconds * SECOND)
            self.changed.notify_all()

    def set_wall(self, seconds: float) -> None:
        """Set the wall clock, as an operator would: no time passes."""
        with self.changed:
            self.wall += round(seconds * SECOND)

    def until_waited_for(self, seconds: float) -> None:
        """Return when a thread waits for the instant `seconds` after the clock's beginning."""
        with self.changed:
            seen = self.changed.wait_for(lambda: round(seconds * SECOND) in self.waits, PATIENCE)
            assert seen, f"no thread waits for {seconds} s; waits are for {self.waits}"


class _HandSignal(Signal):
    def __init__(self, clock: HandClock) -> None:
        self.clock = clock
        self.raised = False

    def set(self) -> None:
        with self.clock.changed:
            self.raised = True
            self.clock.changed.notify_all()

    def clear(self) -> None:
        self.raised = False

    def is_set(self) -> bool:
        return self.raised


# --- routines for other processes ---------------------------------------------------------------


def double(self: Routine, n: int) -> None:
    twice = self.ctx.once("double", abs, 2 * n)
    self.ctx.state["seen"] = self.ctx.attempt
    self.ctx.shared["total"] = self.ctx.shared.get("total", 0) + twice
    self.emit("out", n=twice, pid=os.getpid())


def fail_once(self: Routine) -> None:
    """Record an effect, and fail in the first attempt."""
    pid = self.ctx.once("pid", os.getpid)
    if self.ctx.attempt == 1:
        raise ValueError("not yet")
    self.emit("out", pid=pid, n=self.ctx.attempt)


def die(self: Routine) -> None:
    os._exit(3)


def leave(self: Routine) -> None:
    sys.exit("no licence")


def die_at(self: Routine, n: str) -> None:
    """End the process, and leave the file `n`."""
    Path(n).touch()
    os._exit(3)


def last_until(self: Routine, n: str) -> None:
    """Be in flight until the pool ends its processes, if the file `n` does not exist yet."""
    if not Path(n).exists():
        signal.alarm(int(PATIENCE))
        signal.pause()


def remote(body: Body) -> Importable:
    """A routine that can run in another process; its body is one of the functions above."""
    return saveable(body, out=["n", "pid"])
