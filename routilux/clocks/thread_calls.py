"""Calls of event loops in thread pools, whose threads are parties of a fake clock.

Invariants:
- A call is a party from its submission on, if the pool has a free thread for the call. So time does
  not jump over the call, and calls take their turns in the order of submission.
- A call that waits for a free thread is no party yet: the calls before it may wait for time.
- The thread of a call keeps its turn until the loop has the result and the next call is a party.
- A call that blocks in real time loses its turn, so that others run, and virtual time waits for it
  as for a busy file.
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, Protocol
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Callable

    from routilux.clocks.clock import Key, Party


class PartyClock(Protocol):
    """A clock with parties."""

    def party(
        self, who: str, key: Key = (), *, result: bool = False, blocks: bool = False
    ) -> Party: ...


class Call:
    """A call in a thread pool, and its result."""

    def __init__(
        self, clock: PartyClock, key: Key, func: Callable[..., Any], args: tuple[Any, ...]
    ) -> None:
        self._clock = clock
        self._key = key
        self._func = func
        self._args = args
        self._party: Party | None = None
        self.result: Future[Any] = Future()

    def admit(self) -> None:
        """Register the thread that will run the call with the clock."""
        name = getattr(self._func, "__qualname__", repr(self._func))
        self._party = self._clock.party(f"a thread that runs {name}", self._key, blocks=True)

    def run(self, end: Callable[[Call], None]) -> None:
        """Run the call in this thread, and call `end` before the turn ends."""
        if self._party is not None:
            self._party.start()
        try:
            if self.result.set_running_or_notify_cancel():
                try:
                    value = self._func(*self._args)
                except BaseException as error:
                    self.result.set_exception(error)
                else:
                    self.result.set_result(value)
        finally:
            end(self)
            if self._party is not None:
                self._party.stop()

    def give_up(self, error: BaseException | None) -> None:
        """End a call that no thread will run."""
        if self._party is not None:
            self._party.cancel()
        if error is None or not self.result.set_running_or_notify_cancel():
            self.result.cancel()
        else:
            self.result.set_exception(error)


class Calls:
    """The calls of event loops that a thread pool has not ended."""

    def __init__(self, threads: int) -> None:
        self._free = threads
        self._lock = threading.Lock()
        self._waiting: deque[Call] = deque()
        self._running: set[Call] = set()
        self._ended: list[Future[None]] = []  # each gets its result when all calls have ended

    def submit(self, executor: Executor, call: Call) -> None:
        """Hand a call to the pool."""
        with self._lock:
            self._waiting.append(call)
            self._admit()
        try:
            future = executor.submit(call.run, self._end)
        except BaseException:
            self._end(call)
            call.give_up(None)
            raise
        future.add_done_callback(lambda done: self._drop(done, call))
        call.result.add_done_callback(lambda _: future.cancel())

    def all_ended(self) -> Future[None]:
        """Return a future that is done when no call is left."""
        ended: Future[None] = Future()
        with self._lock:
            self._ended.append(ended)
            self._admit()
        return ended

    def _drop(self, done: Future[None], call: Call) -> None:
        # The pool was shut down, or broke, or the caller cancelled a call that had not begun.
        error = None if done.cancelled() else done.exception()
        if done.cancelled() or error is not None:
            self._end(call)
            call.give_up(error)

    def _end(self, call: Call) -> None:
        with self._lock:
            if call in self._running:
                self._running.discard(call)
                self._free += 1
            elif call in self._waiting:
                self._waiting.remove(call)
            self._admit()

    def _admit(self) -> None:
        while self._free and self._waiting:
            self._free -= 1
            call = self._waiting.popleft()
            self._running.add(call)
            call.admit()
        if not self._running and not self._waiting:
            while self._ended:
                self._ended.pop().set_result(None)


_calls: Final[WeakKeyDictionary[Executor, Calls]] = WeakKeyDictionary()
_calls_lock: Final = threading.Lock()


def calls_of(executor: ThreadPoolExecutor) -> Calls:
    with _calls_lock:
        return _calls.setdefault(executor, Calls(executor._max_workers))
