"""Runs a handler in parts, so that other steps can run between its effects.

Invariants:
- One thread runs at a time: the simulation or the handler. A handler's thread runs until the
  handler pauses or ends, and the simulation waits for it.
- A handler pauses before it calls a double whose result may depend on other calls. What it does
  between two such calls can't be seen from outside.
- A handler of a host that has died runs on only to clean up: its pause raises `HostCrash`.

Real threads, not greenlets: coverage and debuggers follow them without any setting.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final, final

from pytest_routilux.sim.simulator.model import HostCrash
from pytest_routilux.virtual_time.simulated_step import running

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_routilux.virtual_time.simulated_step import Flight, SimClock

_start: Final = threading.Thread.start  # a simulation keeps the threads that handlers start


@final
class HandlerThread:
    """The thread of one handler.

    `run` runs the handler to its end. An exception that `run` raises is raised by `advance`.
    """

    def __init__(self, run: Callable[[], None], flight: Flight, clock: SimClock) -> None:
        self._run = run
        self._flight = flight
        self._clock = clock
        self._go, self._back = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._back.acquire()
        self._error: BaseException | None = None
        self._dead = False
        self.over = False
        """Whether the handler has ended."""
        self._thread = threading.Thread(target=self._work, daemon=True, name="simulated handler")

    def advance(self) -> None:
        """Run the handler until it pauses or ends, and raise the error of `run`."""
        clock, outer = self._clock, (running.flight, running.clock)
        thread = clock.thread
        running.flight, running.clock = self._flight, clock
        try:
            if self._thread.ident is None:
                _start(self._thread)
            clock.thread = self._thread.ident or 0
            self._go.release()
            self._back.acquire()
        finally:
            clock.thread = thread
            running.flight, running.clock = outer
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def pause(self) -> None:
        """Let other steps run; called by the handler, which then continues."""
        self._back.release()
        self._go.acquire()
        if self._dead:
            raise HostCrash

    def close(self) -> None:
        """End the handler with its host."""
        self._dead = True
        while self._thread.is_alive() and not self.over:  # its cleanup may pause again
            self.advance()
        if self._thread.ident is not None:
            self._thread.join()

    def _work(self) -> None:
        self._go.acquire()
        try:
            self._run()
        except BaseException as error:
            self._error = error
        finally:
            self.over = True
            self._back.release()
