"""The files of a virtual event loop: when virtual time waits for real I/O, and how long.

Invariants:
- A file is busy while some code waits for it: the callbacks of the file refer, directly or through
  other objects, to a future that is not done and that has a callback. So a connection that is kept
  for the next request is idle.
- Virtual time waits for a busy file at most for the patience of the clock, counted from the moment
  when the wait began or the file was last ready.
- A socket that listens is never busy, and neither is a connection whose other end is a file of a
  loop on the same clock: what one end sends, the other end has when the call returns. A transport
  that has paused reading is such an end, although the selector does not know its file.
- A child process is busy like a file, and a call in an executor that the clock does not know is
  busy from its start.
"""

from __future__ import annotations

import asyncio
import gc
import heapq
import selectors
import socket
import threading
from collections import deque
from contextvars import Context
from itertools import count
from logging import Logger
from types import CodeType, CoroutineType, FrameType, FunctionType, GeneratorType, ModuleType
from typing import TYPE_CHECKING, Any, Final, Protocol
from weakref import WeakValueDictionary, ref

from routilux.clocks.real_waits import Addresses, Ends, RealWait, real_ns

if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Callable, Hashable, Iterator

_MOST_OBJECTS: Final = 500  # that a search visits
# A search does not enter these: they lead to everything, or to nothing.
_CLOSED: Final = (
    *(asyncio.AbstractEventLoop, asyncio.Task, socket.socket, Logger),
    *(CodeType, CoroutineType, FrameType, GeneratorType, ModuleType, Context, type, BaseException),
    *(str, bytes, bytearray, int, float, type(None)),
)

Events = list[tuple[selectors.SelectorKey, int]]


class FilesClock(Protocol):
    """What the files of a loop need of its clock."""

    autojump: bool
    patience_ns: int
    addresses: Addresses

    @property
    def has_real_threads(self) -> bool: ...


class FilesLoop(Protocol):
    """What the files of a loop need of the loop."""

    _signal_handlers: dict[int, asyncio.Handle]
    _transports: WeakValueDictionary[int, asyncio.Transport]  # by file
    _internal_fds: int
    _ssock: socket.socket  # by which it is interrupted

    def interrupt(self) -> None:
        """End a blocking call of the selector, from any thread."""

    def collect(self, poll: Callable[[], Events], *, idle: bool) -> None:
        """Make ready what can run now; with `idle`, wait for the first such callback."""


class _File:
    """A file that a loop has registered, or a child process."""

    __slots__ = ("active_ns", "ends", "future")

    def __init__(self, ends: Ends | None) -> None:
        self.ends = ends
        self.active_ns = real_ns()  # when it was last ready, or the wait began
        self.future: Future[Any] | None = None  # that some code waits for

    def is_awaited(self, start: object) -> bool:
        """Return whether some code waits for the file; `start` refers to its callbacks."""
        if self.future is None or not _is_awaited(self.future):
            self.future = _search(start)
            if self.future is not None:
                self.active_ns = real_ns()
        return self.future is not None


class LoopSelector(selectors.DefaultSelector):
    """A selector that lets its loop wait on a clock, and knows which files are busy."""

    def __init__(self, loop: FilesLoop, clock: FilesClock) -> None:
        super().__init__()
        self._loop = loop
        self._clock = clock
        self._files: dict[int, _File] = {}
        self._paused: dict[ref[asyncio.Transport], Ends | None] = {}  # that read nothing now

    def select(self, timeout: float | None = None) -> Events:
        # The loop has no timers of asyncio, so it gives no timeout if it has nothing to run.
        self._loop.collect(self.poll, idle=timeout is None)
        return []

    def poll(self) -> Events:
        """Return the files that are ready now."""
        events = super().select(0)
        for key, _ in events:
            self._files[key.fd].active_ns = real_ns()
        return events

    def block(self, seconds: float | None) -> None:
        """Wait until a file is ready, at most for `seconds`."""
        super().select(seconds)

    def has_ready(self) -> bool:
        """Return whether a file is ready."""
        return bool(super().select(0))

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        key = super().register(fileobj, events, data)
        self._files[key.fd] = file = _File(_ends_of(key.fd))
        if file.ends is not None:
            self._clock.addresses.add(file.ends, 1)
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        key = super().unregister(fileobj)
        self._forget(self._files.pop(key.fd).ends)
        return key

    def close(self) -> None:
        while self._files:
            self._forget(self._files.popitem()[1].ends)
        while self._paused:
            self._forget(self._paused.popitem()[1])
        super().close()

    def _forget(self, ends: Ends | None) -> None:
        if ends is not None:
            self._clock.addresses.add(ends, -1)

    def look_for_paused(self) -> None:
        """Keep the addresses of the transports whose files are not registered now."""
        if not (self._paused or self._loop._transports):
            return
        paused = {
            ref(transport)
            for number, transport in self._loop._transports.items()
            if number not in self._files and not transport.is_closing()
        }
        for gone in self._paused.keys() - paused:
            self._forget(self._paused.pop(gone))
        for found in paused - self._paused.keys():
            transport = found()
            if transport is not None:
                ends = _ends_of(transport.get_extra_info("socket").fileno())
                self._paused[found] = ends
                if ends is not None:
                    self._clock.addresses.add(ends, 1)

    def last_active_ns(self) -> int | None:
        """Return when a busy file was last ready, or the wait began; None if no file is busy."""
        found, own = None, self._loop._ssock.fileno()
        for key in self.get_map().values():
            if key.fd == own:
                continue
            file = self._files[key.fd]
            if file.ends is not None:
                if file.ends[2] is None and file.ends[0] == socket.SOCK_STREAM:
                    continue
                if self._clock.addresses.has_other_end(file.ends):
                    continue
            if file.is_awaited(key.data):
                found = max(found or 0, file.active_ns)
        return found


class LoopFiles(RealWait):
    """What a loop waits for in real time: files, processes and threads."""

    def __init__(self, loop: FilesLoop, clock: FilesClock, selector: LoopSelector) -> None:
        super().__init__()
        self._loop = loop
        self._clock = clock
        self._selector = selector
        self._polls = False
        self._calls: dict[asyncio.Future[Any], int] = {}  # each with its start
        self._threads: set[asyncio.Future[Any]] = set()
        self._timers: list[tuple[int, int, asyncio.TimerHandle]] = []  # in real time
        self._timer_numbers = count()
        self._processes: dict[asyncio.SubprocessTransport, _File] = {}

    def of_now(self, *, has_timer: bool) -> RealWait | None:
        """Return itself, or None if nothing real can wake the loop."""
        self._selector.look_for_paused()
        files = len(self._selector.get_map()) > self._loop._internal_fds
        self._polls = files or bool(self._loop._signal_handlers)
        self.has_threads = bool(self._threads) or self._clock.has_real_threads
        works = self._calls or self._processes or self._timers or self.has_threads
        if not (self._polls or works) and (
            (has_timer and self._clock.autojump) or threading.active_count() == 1
        ):
            return None
        self.stall_ns = self._clock.patience_ns
        starts = [*self._calls.values()]
        if files and (start := self._selector.last_active_ns()) is not None:
            starts.append(start)
        if self._processes:
            starts += self._process_starts()
        self.hold_ns = max(starts) + self._clock.patience_ns - real_ns() if starts else 0
        if self._timers:
            self.hold_ns = max(self.hold_ns, self._timers[0][0] - real_ns())
        return self

    def add_timer(self, length: int, timer: asyncio.TimerHandle) -> None:
        """Add a timer that waits in real time for `length` nanoseconds."""
        heapq.heappush(self._timers, (real_ns() + length, next(self._timer_numbers), timer))

    def due_timers(self) -> Iterator[asyncio.Handle]:
        """Yield the timers whose real time has passed."""
        while self._has_due_timer():
            yield heapq.heappop(self._timers)[2]

    def _has_due_timer(self) -> bool:
        while self._timers and self._timers[0][2].cancelled():
            heapq.heappop(self._timers)
        return bool(self._timers) and self._timers[0][0] <= real_ns()

    def add_call(self, call: asyncio.Future[Any]) -> None:
        """Add a call in an executor whose threads or processes the clock does not know."""
        self._calls[call] = real_ns()
        call.add_done_callback(self._calls.pop)

    def add_thread(self, call: asyncio.Future[Any]) -> None:
        """Add a call in a thread that is a party of the clock, but may block in real time."""
        self._threads.add(call)
        call.add_done_callback(self._threads.discard)

    def add_process(self, process: asyncio.SubprocessTransport) -> None:
        """Add a child process."""
        self._processes[process] = _File(None)

    def _process_starts(self) -> Iterator[int]:
        for process, file in list(self._processes.items()):
            if process.get_returncode() is not None:
                del self._processes[process]
            elif file.is_awaited(process):
                yield file.active_ns

    def poll(self) -> bool:
        return self._has_due_timer() or (self._polls and self._selector.has_ready())

    def block(self, seconds: float | None) -> None:
        self._selector.block(seconds)

    def wake(self) -> None:
        self._loop.interrupt()


def _ends_of(number: int) -> Ends | None:
    """Return the ends of a socket; None if its other end can't be known.

    A socket that takes data from any address has no remote address. A connection is made to send at
    once: Nagle's algorithm holds small parts back until a real time has passed.
    """
    try:
        found = socket.socket(fileno=number)
    except OSError:
        return None  # it is no socket
    try:
        local = _address(found.getsockname())
        if found.type == socket.SOCK_STREAM and found.getsockopt(
            socket.SOL_SOCKET, socket.SO_ACCEPTCONN
        ):
            return found.type, local, None
        try:
            remote = _address(found.getpeername())
        except OSError:
            return (found.type, local, None) if found.type == socket.SOCK_DGRAM else None
        if found.type == socket.SOCK_STREAM and isinstance(remote, tuple):
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        return (found.type, local, remote) if (local, remote) != ("", "") else None  # a pair
    except OSError:
        return None
    finally:
        found.detach()


def _address(name: Any) -> Hashable:
    if not isinstance(name, tuple):
        return name if isinstance(name, str | bytes) else None  # of a Unix socket
    host, port = name[:2]
    return ("" if host in ("0.0.0.0", "::") else host, port)


def _is_awaited(future: Future[Any]) -> bool:
    return not future.done() and bool(future._callbacks)


def _search(start: object) -> Future[Any] | None:
    """Return a future that some code waits for and that `start` refers to."""
    seen, todo = {id(start)}, deque([start])
    while todo and len(seen) < _MOST_OBJECTS:
        found = todo.popleft()
        if isinstance(found, asyncio.Future) and _is_awaited(found):
            return found
        for inner in _referents(found):
            if not isinstance(inner, _CLOSED) and id(inner) not in seen:
                seen.add(id(inner))
                todo.append(inner)
    return None


def _referents(found: object) -> list[Any]:
    if isinstance(found, FunctionType):  # without its module
        return [found.__closure__, found.__defaults__, found.__kwdefaults__]
    if isinstance(found, ref):
        return [found()]
    return gc.get_referents(found)
