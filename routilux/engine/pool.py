"""Runs steps on an executor: our own threads, or any `concurrent.futures.Executor`.

Laws:
- On threads the clock knows of every step before its thread runs, so a fake clock can't jump over
  one that is about to begin.
- On an executor that may run elsewhere, steps and outcomes are pickled values, effects travel
  with the outcome, and time is real.
- A thread that was given up keeps its place until it returns: nobody can stop it.
- Our threads are daemons: a handler that hangs can't keep the interpreter from ending, which an
  engine whose jobs survive a kill can afford. `ThreadPoolExecutor` would wait for it.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from concurrent.futures import CancelledError, ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, cast

from routilux.engine.step import run_remote

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor, Future

    from routilux.clocks.clock import Clock, Key, Party
    from routilux.engine.driver import Driven, Ended
    from routilux.graph.messages import StepInput, StepOutcome

__all__ = ["PoolDriver"]


class _DaemonThreads:
    """Up to `size` daemon threads, made when they are needed."""

    __slots__ = ("_idle", "_made", "_size", "_work")

    def __init__(self, size: int) -> None:
        self._size = size
        self._made = 0
        self._idle = threading.Semaphore(0)
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    def submit(self, work: Callable[[], None]) -> None:
        if self._made < self._size and not self._idle.acquire(blocking=False):
            threading.Thread(
                target=_serve,
                args=(self._work, self._idle),
                name=f"routilux-{self._made + 1}",
                daemon=True,
            ).start()
            self._made += 1  # not before: the system may have no thread left
        self._work.put(work)

    def close(self) -> None:
        for _ in range(self._made):
            self._work.put(None)

    # A runtime that nobody closed leaves no threads behind either.
    __del__ = close


def _serve(queue: SimpleQueue[Callable[[], None] | None], idle: threading.Semaphore) -> None:
    while (work := queue.get()) is not None:
        work()
        del work  # else an idle thread keeps the last job alive
        idle.release()


class PoolDriver:
    """The driver of concurrent flows and of all jobs in the background.

    `size` is how many steps it takes at once; with an executor of the user's, as many as that has
    workers, or any number where it does not tell.
    """

    __slots__ = ("_clock", "_ended", "_executor", "_flying", "_signal", "_threads", "room", "size")

    def __init__(self, clock: Clock, size: int, executor: Executor | None = None) -> None:
        self._clock = clock
        # An attempt begins when a worker is free: its timeout is not for waiting in a queue.
        own = size if executor is None else getattr(executor, "_max_workers", None)
        self.size = own if own is not None else sys.maxsize
        self._executor = executor
        self._threads = _DaemonThreads(size)
        self._flying = 0
        self.room = True
        self._ended: deque[Ended] = deque()
        self._signal = clock.signal()

    @property
    def idle(self) -> bool:
        """Whether no step is on it, and none that was given up."""
        return not self._flying

    def start(self, driven: Driven, step: StepInput) -> None:
        """Hand a step to a thread, or to the user's executor."""
        task = step.task
        executor = self._executor
        if executor is None or isinstance(executor, ThreadPoolExecutor):
            party = self._clock.party(step.who, (driven.ordinal, *step.order))
            work = partial(self._work, party, driven, step)
            if executor is None:
                self._threads.submit(work)
            else:
                executor.submit(work).add_done_callback(partial(self._dropped, driven, step))
            self._takes(1)
            return
        plan = driven.plan
        future = executor.submit(
            run_remote,
            step,
            plan.routines[task.routine_id],
            task.slot,
            plan.handlers[task.routine_id],
        )
        self._takes(1)
        future.add_done_callback(lambda done: self._end(driven, step, _outcome(done)))

    def next(self, until: int | None, key: Key, who: str) -> Ended | None:
        """Return a step that is over; None if the instant `until` (monotonic) or a poke came."""
        if not self._ended:
            self._clock.wait(self._signal, until, key, who)
            self._signal.clear()
            if not self._ended:
                return None
        self._takes(-1)
        return self._ended.popleft()

    def others(self, than: Ended) -> list[Ended]:
        """Return steps of other jobs that are over too, one of each, without waiting for any."""
        found: list[Ended] = []
        ended, drives = self._ended, {than[0]}
        while ended and ended[0][0] not in drives:
            drives.add(ended[0][0])
            found.append(ended.popleft())
        self._takes(-len(found))
        return found

    def _takes(self, steps: int) -> None:
        self._flying += steps
        self.room = self._flying < self.size

    def poke(self) -> None:
        """Make `next` return at once; from any thread."""
        self._signal.set()

    def close(self) -> None:
        """Let our own threads end; those of a user's executor are the user's."""
        self._threads.close()

    def _work(self, party: Party, driven: Driven, step: StepInput) -> None:
        party.start()
        try:
            task = step.task
            plan = driven.plan
            routine = plan.routines[task.routine_id]
            handler = plan.handlers[task.routine_id]
            slot = plan.slot(task.routine_id, task.slot)
            outcome: StepOutcome | BaseException = driven.run_step(
                step, routine, slot, handler, driven
            )
        except BaseException as error:
            outcome = error
        self._end(driven, step, outcome)
        party.stop()

    def _dropped(self, driven: Driven, step: StepInput, done: Future[None]) -> None:
        if done.cancelled():
            self._end(driven, step, _outcome(done))

    def _end(self, driven: Driven, step: StepInput, outcome: StepOutcome | BaseException) -> None:
        self._ended.append((driven, step, outcome))
        self._signal.set()


def _outcome(done: Future[Any]) -> StepOutcome | BaseException:
    if done.cancelled():
        return CancelledError("the executor dropped the step before it began")
    error = done.exception()
    return error if error is not None else cast("StepOutcome", done.result())
