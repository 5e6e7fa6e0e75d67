"""`AsyncSteps`: runs the async handlers of a runtime as tasks on event loops.

Invariants:
- The async handlers of a runtime share one event loop in one daemon thread. It is made for the
  first of them, and ends with the runtime. So a client that a routine keeps works in every attempt.
- The handlers of a job of `aexecute` run on the caller's event loop.
- The end of a task is reported once, in the thread of its event loop, however the task ends.
- A cancelled handler has a second for its cleanup. `Loop` gives up a step that takes longer. A step
  whose job this host no longer runs has no `Loop`: it is only logged.
- Calls from other threads wait in one queue for each event loop, which is woken once for all.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar
from weakref import WeakKeyDictionary, finalize, ref

from routilux.clocks.durations import SECOND
from routilux.engine.step import CLEANUP, end_child, log_given_up

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from routilux.clocks.clock import Clock, Party
    from routilux.graph.messages import StepInput

    Report = Callable[[Any], None]
    """Takes what the coroutine returned, or the exception that it raised."""

T = TypeVar("T")
_log = logging.getLogger("routilux")
_STORE_CALLS: Final = 4  # at once: a write of the store holds the lock of the runtime


class AsyncSteps:
    """The event loops on which the async handlers of one runtime run."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._queues: WeakKeyDictionary[asyncio.AbstractEventLoop, EventLoopQueue] = (
            WeakKeyDictionary()
        )
        self._own: EventLoopQueue | None = None
        self._store_calls: ThreadPoolExecutor | None = None

    def start(
        self,
        step: StepInput,
        coroutine: Coroutine[Any, Any, object],
        report: Report,
        context: Context,
        queue: EventLoopQueue | None,
    ) -> AsyncStep:
        """Run the coroutine of a step in `context`, and call `report` at its end.

        `queue` is that of the caller's event loop; None means the runtime's own.
        """
        try:
            if queue is not None:
                task = AsyncStep(queue, step, coroutine, report, context)
                queue.put(task.begin)
            else:
                with self._lock:  # so that the event loop is not closed between the two
                    if self._own is None:
                        self._own = self._opened()
                    task = AsyncStep(self._own, step, coroutine, report, context)
                    self._own.put(task.begin)
        except BaseException:
            coroutine.close()
            raise
        return task

    def call(self, function: Callable[..., T], *args: object) -> asyncio.Future[T]:
        """Call a function that may wait for the store, without blocking the event loop.

        Returns a future, which is no task: nobody can cancel it with all tasks of the event loop.
        """
        with self._lock:
            if self._store_calls is None:  # not the event loop's own pool: handlers may fill it
                self._store_calls = ThreadPoolExecutor(_STORE_CALLS, "routilux-store")
            event_loop = asyncio.get_running_loop()
            return event_loop.run_in_executor(self._store_calls, partial(function, *args))

    def close(self) -> None:
        """End the event loop of this runtime when its last handler has ended."""
        with self._lock:
            if self._store_calls is not None:
                self._store_calls.shutdown(wait=False)
                self._store_calls = None
            if self._own is not None:
                self._own = None
                self._closes()

    def queue(self, event_loop: asyncio.AbstractEventLoop) -> EventLoopQueue:
        """Return the queue of an event loop."""
        with self._lock:
            queue = self._queues.get(event_loop)
            if queue is None:
                queue = self._queues[event_loop] = EventLoopQueue(event_loop)
            return queue

    def _opened(self) -> EventLoopQueue:
        event_loop = self._clock.new_event_loop()
        queue = self._queues[event_loop] = EventLoopQueue(event_loop)
        party = self._clock.party("the async handlers")
        thread = threading.Thread(
            target=_serve, args=(event_loop, queue, party), name="routilux-async", daemon=True
        )
        try:
            thread.start()
        except BaseException:  # the system has no thread left, or an interrupt
            party.cancel()
            event_loop.close()
            raise
        # Also of a runtime that was never closed, and when the interpreter ends.
        self._closes = finalize(self, _close, queue, os.getpid())
        return queue


def _close(queue: EventLoopQueue, process: int) -> None:
    if os.getpid() == process:  # a forked child has no such thread
        with suppress(RuntimeError):  # the event loop has ended
            queue.close()


async def _end_tasks(event_loop: asyncio.AbstractEventLoop) -> None:
    """Cancel the tasks that handlers have left, and wait a second for their end."""
    left = asyncio.all_tasks(event_loop) - {asyncio.current_task(event_loop)}
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left, timeout=CLEANUP / SECOND)


def _serve(event_loop: asyncio.AbstractEventLoop, queue: EventLoopQueue, party: Party) -> None:
    party.start()
    try:
        asyncio.set_event_loop(event_loop)
        while not queue.closed:
            # A task that a handler started has raised it: it is kept there, and the others run on.
            with suppress(KeyboardInterrupt, SystemExit):
                event_loop.run_forever()
        event_loop.run_until_complete(_end_tasks(event_loop))
        event_loop.run_until_complete(event_loop.shutdown_asyncgens())
        event_loop.run_until_complete(event_loop.shutdown_default_executor())
    finally:
        asyncio.set_event_loop(None)
        event_loop.close()
        party.stop()


class EventLoopQueue:
    """Calls from other threads to one event loop, and the tasks that it runs."""

    def __init__(self, event_loop: asyncio.AbstractEventLoop) -> None:
        self._event_loop = ref(event_loop)  # else it would stay in `AsyncSteps._queues` for ever
        self._calls: deque[Callable[[], object]] = deque()
        self.context = Context()
        self._woken = False
        self._draining = False
        self.process = os.getpid()
        self.tasks: set[asyncio.Task[None]] = set()
        """The tasks that have begun: an event loop keeps no task alive."""
        self._closing = False
        self.closed = False
        """Whether the event loop is to stop."""

    def put(self, call: Callable[[], object]) -> None:
        """Call a function soon in the thread of the event loop; thread-safe.

        Raises `RuntimeError` if the event loop is closed.
        """
        self._calls.append(call)
        if self._woken:
            return
        event_loop = self.event_loop()
        here = asyncio._get_running_loop() is event_loop
        if here and self._draining:
            return
        self._woken = True
        try:
            soon = event_loop.call_soon if here else event_loop.call_soon_threadsafe
            soon(self._run, context=self.context)
        except BaseException:
            self._woken = False
            self._calls.remove(call)
            raise

    def run(self, call: Callable[[], object]) -> None:
        """Call a function now, or after the calls that run now; in the thread of the event loop."""
        if self._draining:
            self._calls.append(call)
        else:
            self.context.run(self._run, call)

    def event_loop(self) -> asyncio.AbstractEventLoop:
        """Return the event loop."""
        event_loop = self._event_loop()
        if event_loop is None:
            raise RuntimeError("the event loop that awaited the job is gone")
        return event_loop

    def discard(self, task: asyncio.Task[None]) -> None:
        """Forget a task that has ended."""
        self.tasks.discard(task)
        if self._closing:
            self._close()

    def close(self) -> None:
        """Stop the event loop when no task is left; thread-safe."""
        self.put(self._close)

    def _run(self, first: Callable[[], object] | None = None) -> None:
        self._draining = True
        calls = self._calls
        try:
            if first is None:
                self._woken = False  # before the calls are read: a later one wakes the event loop
            else:
                first()
            while calls:
                calls.popleft()()
        finally:
            self._draining = False
            if calls:  # one of them has raised an error: the others follow
                self.put(calls.popleft())

    def _close(self) -> None:
        self._closing = True
        if not self.tasks:
            self.closed = True
            self.event_loop().stop()


class AsyncStep:
    """One step whose handler runs as a task."""

    __slots__ = (
        "_cancelled",
        "_context",
        "_coroutine",
        "_report",
        "_step",
        "_task",
        "abandoned",
        "give_up_ns",
        "queue",
    )

    def __init__(
        self,
        queue: EventLoopQueue,
        step: StepInput,
        coroutine: Coroutine[Any, Any, object],
        report: Report,
        context: Context,
    ) -> None:
        self.queue = queue
        self.give_up_ns: int | None = None
        """When to give up the step, in the time of its job; None unless it was cancelled."""
        self.abandoned = False
        """Whether it was cancelled because this host leaves, so that a failure does not count."""
        self._step = step
        self._coroutine: Coroutine[Any, Any, object] | None = coroutine  # until it begins
        self._report = report
        self._context = context
        self._cancelled = False
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Create the task; in the thread of the event loop."""
        event_loop = asyncio.get_running_loop()
        running = self._run()
        try:
            task = event_loop.create_task(running, context=self._context)
        except Exception as error:  # of the task factory of the event loop
            running.close()
            self._end(error)
            return
        self._task = task
        if not task.done():  # an eager task runs at once
            self.queue.tasks.add(task)
            task.add_done_callback(self._end_lost)

    def _end_lost(self, task: asyncio.Task[None]) -> None:
        """Report the end of a task that was cancelled before it began."""
        if self._coroutine is not None:
            self._coroutine.close()
            self._end(asyncio.CancelledError("the task was cancelled before it began"))

    def when_ended(self, call: Callable[[], object]) -> None:
        """Call a function in the thread of the event loop when the task has ended; thread-safe."""
        with suppress(RuntimeError):  # its event loop is closed
            self.queue.put(partial(self._when_ended, call))

    def _when_ended(self, call: Callable[[], object]) -> None:
        if self.ended:
            call()
        elif self._task is not None:
            self._task.add_done_callback(lambda _: call())

    @property
    def ended(self) -> bool:
        """Whether its end was reported."""
        return self._report is _ignore

    def cancel(self, *, logs: bool) -> None:
        """Cancel the task; thread-safe. With `logs` a task that takes too long is logged."""
        try:
            self.queue.put(partial(self._cancel, logs=logs))
        except RuntimeError:
            log_given_up(self._step)  # its event loop is closed

    async def _run(self) -> None:
        coroutine, self._coroutine = self._coroutine, None
        assert coroutine is not None, "a task begins once"
        if self._task is not None:  # a callback costs one more call of the event loop
            self._task.remove_done_callback(self._end_lost)
        try:
            result: object = await coroutine
        except BaseException as error:
            result = error  # an interrupt must reach the job, not the thread of the event loop
        if os.getpid() != self.queue.process:
            end_child(self._step, result)
        self._end(result)

    def _end(self, result: object) -> None:
        report, self._report = self._report, _ignore  # it refers to the job
        report(result)
        if self._task is not None:
            self.queue.discard(self._task)

    def _cancel(self, *, logs: bool) -> None:
        task, event_loop = self._task, asyncio.get_running_loop()
        if task is None or task.done() or self._cancelled:
            return  # a second cancellation would break off the cleanup
        if self._coroutine is None:
            self._cancelled = True
            task.cancel()
            if logs:
                event_loop.call_later(CLEANUP / SECOND, self._log_survivor)
        else:  # it begins first, so that its outcome is that of an attempt
            event_loop.call_soon(partial(self._cancel, logs=logs), context=self.queue.context)

    def _log_survivor(self) -> None:
        if self._task is not None and not self._task.done():
            log_given_up(self._step)


def _ignore(_: object) -> None:
    pass
