"""`PoolDriver`: runs steps in threads or on an executor.

Invariants:
- On threads the clock knows a step before the step's thread runs. So a fake clock can't skip the
  step's start.
- A step with an async handler needs no thread, and takes up no room: it runs on an event loop. On
  an executor of other processes it runs there.
- Every executor that is no `ThreadPoolExecutor` is one of other processes: it gets and returns
  data (`engine/remote`), and time is real. If its number of workers is unknown, as with Dask, at
  most `UNKNOWN_SIZE` steps are sent at once, or as many as one job may run.
- A process that a handler forks ends when it returns from the handler: it has no other thread.
- A thread that was given up keeps its place until it returns: no code can stop it.
- Our threads are daemons, so a handler that hangs can't keep the interpreter from ending. Jobs
  survive a kill, so this is safe. A `ThreadPoolExecutor` would wait for the handler.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final

from routilux.clocks.durations import SECOND
from routilux.engine.driver import StepNotRunError
from routilux.engine.step import end_child
from routilux.errors import RoutiluxError

if TYPE_CHECKING:
    from asyncio import TimerHandle
    from collections.abc import Callable, Generator
    from concurrent.futures import Executor, Future

    from routilux.clocks.clock import Clock, Key, Party
    from routilux.engine.async_steps import EventLoopQueue
    from routilux.engine.driver import Driven, Ended
    from routilux.engine.loop import Awaited, Loop
    from routilux.engine.remote.sender import Sender
    from routilux.graph.messages import StepInput, StepOutcome, Task


_log = logging.getLogger("routilux")
_NAMED: Final = 10  # steps in a warning
UNKNOWN_SIZE: Final = 1_000
"""The steps that are sent at once to an executor whose number of workers is unknown."""


def steps_at_once(executor: Executor | None, width: int) -> int:
    """Return how many steps a pool takes at once if a job may run `width` of them."""
    if executor is None:
        return width
    # An attempt starts when a worker is free: its timeout does not count time in a queue.
    workers: int | None = getattr(executor, "_max_workers", None)
    return max(width, UNKNOWN_SIZE) if workers is None else workers


class _DaemonThreads:
    """Up to `size` daemon threads, started on demand."""

    __slots__ = ("_idle", "_made", "_work", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self._made = 0
        self._idle: deque[None] = deque()  # an entry for each idle thread
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    def submit(self, work: Callable[[], None]) -> None:
        if self._idle:
            self._idle.pop()  # only this thread takes one away
        elif self._made < self.size:
            self._made += 1
            thread = threading.Thread(
                target=_serve,
                args=(self._work, self._idle),
                name=f"routilux-{self._made}",
                daemon=True,
            )
            try:
                thread.start()
            except RuntimeError:  # the system has no thread left
                self._made -= 1
                raise
        self._work.put(work)

    def resize(self, size: int) -> None:
        """Set the number of threads; idle ones above it end."""
        self.size = size
        while self._made > size and self._idle:
            self._idle.pop()
            self._made -= 1
            self._work.put(None)

    def close(self) -> None:
        for _ in range(self._made):
            self._work.put(None)

    def __del__(self) -> None:
        # A runtime that was never closed leaves no threads behind.
        with suppress(AttributeError):  # an interrupt came before it was made
            self.close()


def _serve(queue: SimpleQueue[Callable[[], None] | None], idle: deque[None]) -> None:
    while (work := queue.get()) is not None:
        work()
        del work  # else an idle thread keeps the last job alive
        idle.append(None)


class PoolDriver:
    """Runs steps in a pool of threads, or on the user's executor.

    `sender` sends the steps of an executor of other processes. `size` is how many steps the pool
    takes at once. A step that waits for another job does not count: another
    thread then runs the next step, so that jobs which wait for each other never wait for a thread.
    """

    __slots__ = (
        *("_blocked", "_clock", "_ended", "_flying", "_given_up", "_sender", "_signal"),
        *("_tasks", "_threads", "_width", "executor", "size"),
    )

    def __init__(
        self,
        clock: Clock,
        size: int,
        executor: Executor | None = None,
        sender: Sender | None = None,
    ) -> None:
        self._clock = clock
        self.size = steps_at_once(executor, size)
        self.executor = executor
        self._sender = sender
        self._width = size
        self._threads = _DaemonThreads(size)
        self._flying = 0
        self._blocked = 0  # of the flying steps
        self._tasks: set[int] = set()  # numbers of the steps that run on an event loop
        self._given_up: dict[int, str] = {}  # what runs on in our threads, by the number of a step
        self._ended: deque[Ended] = deque()
        self._signal = clock.signal()

    @property
    def idle(self) -> bool:
        """Whether no handler runs in this pool."""
        return not (self._flying or self._tasks)  # with steps that the engine has given up

    def start(self, driven: Driven, step: StepInput) -> None:
        """Hand a step to a thread, to the user's executor, or to an event loop."""
        executor = self.executor
        if self._on_loop(driven, step.task):
            driven.start_async(step, partial(self._end_async, driven, step))
            self._tasks.add(step.number)
            return
        if self._flying >= self.size and isinstance(executor, ThreadPoolExecutor):
            executor = None  # its threads wait for other jobs
        if self._sender is None:
            party = self._clock.party(step.who, (driven.ordinal, *step.order))
            try:
                work = partial(self._work, party, driven, step)
                if executor is None:
                    self._threads.submit(work)
                else:
                    executor.submit(work).add_done_callback(partial(self._dropped, driven, step))
            except BaseException:
                party.cancel()
                raise
            self._flying += 1
            return
        self._flying += 1
        try:
            self._sender.send(driven, step, self._end)
        except BaseException:
            self._flying -= 1
            raise

    def next(self, until: int | None, key: Key, who: str) -> Ended | None:
        if not self._ended:
            self._clock.wait(self._signal, until, key, who)
            self._signal.clear()
            if not self._ended:
                return None
        ended = self._ended.popleft()
        self._land(ended)
        return ended

    def others(self, than: Ended) -> list[Ended]:
        found: list[Ended] = []
        ended, drives = self._ended, {than[0]}
        while ended and ended[0][0] not in drives:
            drives.add(ended[0][0])
            found.append(ended.popleft())
            self._land(found[-1])
        return found

    def _land(self, ended: Ended) -> None:
        number = ended[1].number
        if number in self._tasks:
            self._tasks.remove(number)
        else:
            self._flying -= 1
            self._given_up.pop(number, None)

    @property
    def room(self) -> bool:
        return self._flying - self._blocked < self.size

    @property
    def pauses(self) -> bool:
        return bool(self._ended)

    def takes(self, driven: Driven, task: Task) -> bool:
        return self._on_loop(driven, task)

    def _on_loop(self, driven: Driven, task: Task) -> bool:
        """Return whether a task needs no thread and no process of the executor."""
        plan = driven.plan
        return plan.has_async and plan.is_async(task) and self._sender is None

    def give_up(self, step: StepInput) -> None:
        if step.number in self._tasks:
            return
        self.withdraw(step)
        self._given_up[step.number] = step.who
        if len(self._given_up) == self.size:
            _log.warning(
                "all %d threads of the runtime run handlers that outlived their timeout, so no"
                " other step can start before one of them returns: %s; let these handlers end at"
                " their timeout, for example by the timeouts of their clients",
                self.size,
                ", ".join(sorted(self._given_up.values())[:_NAMED]),
            )

    def withdraw(self, step: StepInput) -> None:
        if self._sender is not None:
            self._sender.withdraw(step)

    def poke(self) -> None:
        self._signal.set()

    def block(self, change: int) -> bool:
        full = not self.room
        self._blocked += change
        self._threads.resize(self._width + self._blocked)
        self.poke()
        return full

    def widen(self, size: int) -> None:
        """Take up to `size` steps at once; the caller holds the lock."""
        if size > self.size:
            self.size = self._width = size
            self._threads.resize(size + self._blocked)
            self.poke()

    def close(self) -> None:
        """Let the pool's own threads end."""
        self._threads.close()

    @property
    def closing(self) -> Callable[[], None]:
        """What `close` calls; it does not keep the pool alive."""
        return self._threads.close

    def _work(self, party: Party, driven: Driven, step: StepInput) -> None:
        party.start()
        process = os.getpid()
        try:
            outcome: StepOutcome | BaseException = driven.run(step)
        except BaseException as error:
            outcome = error
        if os.getpid() != process:
            end_child(step, outcome)
        self._end(driven, step, outcome)
        party.stop()

    def _dropped(self, driven: Driven, step: StepInput, done: Future[None]) -> None:
        error = _refusal(done)
        if error is not None:  # else `_work` has reported the end
            self._end(driven, step, StepNotRunError(error))

    def _end(self, driven: Driven, step: StepInput, outcome: StepOutcome | BaseException) -> None:
        self._ended.append((driven, step, outcome))
        self.poke()

    _end_async = _end  # of a step that runs on an event loop, in the thread of the event loop


class AsyncDriver(PoolDriver):
    """Runs the jobs that one event loop awaits, in the thread of that event loop.

    Their async handlers run as its tasks, and their other handlers in threads.
    """

    __slots__ = ("__weakref__", "_poked", "_queue", "_timer", "_turns", "loop")

    def __init__(
        self,
        clock: Clock,
        queue: EventLoopQueue,
        size: int,
        executor: Executor | None,
        sender: Sender | None,
    ) -> None:
        super().__init__(clock, size, executor, sender)
        self.loop: Loop
        """The loop that runs the jobs; who makes both sets it."""
        self._queue = queue
        self._turns: Generator[Awaited, Ended | None, None] | None = None
        self._timer: TimerHandle | None = None  # of the next turn
        self._poked = False

    def poke(self) -> None:
        if not self._poked:
            self._poked = True
            try:
                self._queue.put(self._turn)
            except RuntimeError:  # nobody awaits its jobs any more; further calls do nothing
                self.loop.fail_all(RoutiluxError("the event loop that awaited the job is closed"))
                self.close()

    def _end_async(
        self, driven: Driven, step: StepInput, outcome: StepOutcome | BaseException
    ) -> None:
        # At once: one more round of the event loop costs as much as the commit.
        self._ended.append((driven, step, outcome))
        if not self._poked:
            self._poked = True
            self._queue.run(self._turn)

    @property
    def pauses(self) -> bool:
        return True  # the event loop has others to run

    def next(self, until: int | None, key: Key, who: str) -> Ended | None:
        if not self._ended:
            return None
        ended = self._ended.popleft()
        self._land(ended)
        return ended

    def _turn(self) -> None:
        """Let the loop do all that it can do now."""
        self._poked = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        turns = self._turns
        try:
            if turns is None:
                turns = self._turns = self.loop.turns()
                wait = next(turns)
            else:
                wait = turns.send(self.next(None, (), ""))
            while self._ended:
                wait = turns.send(self.next(*wait))
        except StopIteration:
            self._turns = None
        except BaseException as error:
            self._turns = None
            self.loop.fail_all(error)
        else:
            if self.loop.has_ready:
                self._poked = True
                self._queue.event_loop().call_soon(self._turn, context=self._queue.context)
            elif wait[0] is not None:
                delay = (wait[0] - self._clock.monotonic_ns()) / SECOND
                event_loop = self._queue.event_loop()
                self._timer = event_loop.call_later(
                    max(0.0, delay), self._turn, context=self._queue.context
                )


def _refusal(done: Future[Any]) -> BaseException | None:
    if done.cancelled():
        return CancelledError("the executor cancelled the step before the step began")
    return done.exception()
