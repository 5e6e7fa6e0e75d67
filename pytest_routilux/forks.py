"""Processes that are forked from the test: what happens to one of them happens to nobody else.

Laws:
- A zygote is forked before anything has run, and forks a child for each request. So every child
  begins with what the test had then: module globals, monkeypatches, closures.
- A child ends by itself, or by its own doing, or by SIGKILL when its real time is over; whichever
  it is, the reply says so. Nothing that it started outlives it, and it outlives nobody.
- It prints into nothing, runs no `atexit` and no teardown, and draws other random numbers than its
  siblings.
- Where there is no `os.fork` there is no zygote.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import pickle
import selectors
import signal
import struct
import sys
import warnings
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Self

from pytest_routilux.cells import error_text

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Reply", "Zygote", "can_fork"]

_HEAD: Final = struct.Struct("!cI")
_TOLD: Final = b"t"
_RESULT: Final = b"r"
_FAILED: Final = b"f"
_GRACE: Final = 5.0
_LOOK: Final = 0.5
# A test may replace them.
_exit, _kill, _killpg, _monotonic = os._exit, os.kill, getattr(os, "killpg", None), monotonic


def can_fork() -> bool:
    """Return whether this system can fork."""
    return hasattr(os, "fork")


@dataclass(slots=True)
class Reply:
    """What came of a request: its result, or how the child ended without one.

    `told` is what it said on its way. `ended` is None where there is a result, else such as
    `SIGKILL`, `exit status 3`, `no end within 30 s of real time` or the error of our own code.
    """

    result: Any = None
    told: list[Any] = field(default_factory=list)
    ended: str | None = None
    hung: bool = False
    failed: bool = False


class Zygote:
    """Does work on something that exists in this process only, each time in a new child.

    A work is a function at the top level of a module: `work(subject, tell, *args)`, where `tell`
    sends something at once. Arguments, results and what is told are pickled; the subject is not.
    """

    def __init__(self, subject: object, *, timeout: float = 30.0) -> None:
        self._timeout = timeout
        requests, self._to = os.pipe()
        self._from, replies = os.pipe()
        self._pid = _fork()
        if self._pid == 0:
            try:
                os.close(self._to)
                os.close(self._from)
                _serve(subject, requests, replies, timeout)
            finally:
                _exit(0)
        os.close(requests)
        os.close(replies)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End it, and with it the child that it may have."""
        os.close(self._to)
        # It says nothing more: its end is the end of what it writes.
        ended = _readable(self._from, _GRACE)
        os.close(self._from)
        if not ended:
            _kill(self._pid, signal.SIGKILL)
        _reap(self._pid)

    def ask(self, work: Callable[..., object], *args: object) -> Reply:
        """Let a new child do one work, and wait for what comes of it."""
        try:
            _write(self._to, _RESULT, pickle.dumps((work, args)))
            if not _readable(self._from, self._timeout + _GRACE):
                return Reply(ended="no answer", failed=True)
            _, data = _frame(self._from)
        except (OSError, EOFError):
            return Reply(ended="the end of the process that forks the others", failed=True)
        frames, ended, hung = pickle.loads(data)  # written by our own code, beside this process
        reply = Reply(ended=ended, hung=hung)
        for tag, body in frames:
            try:
                value = pickle.loads(body)
            except Exception as error:
                return Reply(ended=error_text(error), failed=True)
            if tag == _TOLD:
                reply.told.append(value)
            elif tag == _RESULT:
                reply.result, reply.ended = value, None
            else:
                reply.ended, reply.failed = value, True
        return reply


# --- the zygote -----------------------------------------------------------------------------------


def _serve(subject: object, requests: int, replies: int, timeout: float) -> None:
    os.setsid()  # a Ctrl-C at the terminal is the test's
    faulthandler.disable()
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123 - for all its life
    gc.freeze()  # a collection would copy all pages
    while True:
        try:
            _, request = _frame(requests)
        except EOFError:
            return
        _write(replies, _RESULT, pickle.dumps(_in_child(subject, request, requests, timeout)))


def _in_child(
    subject: object, request: bytes, requests: int, timeout: float
) -> tuple[list[tuple[bytes, bytes]], str | None, bool]:
    out, into = os.pipe()
    pid = _fork()
    if pid == 0:
        try:
            os.setpgid(0, 0)
            os.close(out)
            os.close(requests)
            _work(subject, request, into)
        finally:
            _exit(0)
    os.close(into)
    try:
        frames, hung = _collect(out, requests, pid, timeout)
    finally:
        os.close(out)
        _end_group(pid)
        status = _reap(pid)
    if any(tag == _RESULT for tag, _ in frames):
        return frames, None, False
    return frames, f"no end within {timeout:g} s of real time" if hung else _said(status), hung


def _collect(
    out: int, requests: int, pid: int, timeout: float
) -> tuple[list[tuple[bytes, bytes]], bool]:
    """Read what a child says until it has a result, ends, or its time is over."""
    frames: list[tuple[bytes, bytes]] = []
    data = bytearray()
    until = _monotonic() + timeout
    with selectors.DefaultSelector() as selector:
        selector.register(out, selectors.EVENT_READ)
        selector.register(requests, selectors.EVENT_READ)
        while (left := until - _monotonic()) > 0:
            ready = {key.fd for key, _ in selector.select(min(left, _LOOK))}
            if out in ready:
                part = os.read(out, 1 << 16)
                data += part
                frames += _taken(data)
                if not part or (frames and frames[-1][0] != _TOLD):
                    return frames, False
            elif requests in ready:
                return frames, False  # the test has gone: so does the child, and then the zygote
            elif _is_over(pid):
                return frames, False  # a process that it started holds the pipe open
    return frames, True


def _taken(data: bytearray) -> list[tuple[bytes, bytes]]:
    frames = []
    place = 0
    while place + _HEAD.size <= len(data):
        tag, length = _HEAD.unpack_from(data, place)
        start = place + _HEAD.size
        if start + length > len(data):
            break
        place = start + length
        frames.append((tag, bytes(data[start:place])))
    del data[:place]
    return frames


# --- the child ------------------------------------------------------------------------------------


def _work(subject: object, request: bytes, into: int) -> None:
    for name in ("numpy.random",):  # `random` sees to itself
        if (module := sys.modules.get(name)) is not None:
            module.seed()
    try:
        work, args = pickle.loads(request)
        result = work(subject, lambda value: _write(into, _TOLD, pickle.dumps(value)), *args)
        _write(into, _RESULT, pickle.dumps(result))
    except BaseException as error:
        _write(into, _FAILED, pickle.dumps(error_text(error)))


# --- processes and pipes --------------------------------------------------------------------------


def _fork() -> int:
    with warnings.catch_warnings():
        # Of other threads there are those of execnet, which a child has no use for.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _end_group(pid: int) -> None:
    assert _killpg is not None
    for end in (lambda: _killpg(pid, signal.SIGKILL), lambda: _kill(pid, signal.SIGKILL)):
        try:
            end()
        except (ProcessLookupError, PermissionError):
            continue


def _is_over(pid: int) -> bool:
    if not hasattr(os, "waitid"):
        return False
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _reap(pid: int) -> int:
    try:
        return os.waitpid(pid, 0)[1]
    except ChildProcessError:  # somebody waits for any child
        return 0


def _said(status: int) -> str:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            return signal.Signals(number).name
        except ValueError:
            return f"signal {number}"
    return f"exit status {os.WEXITSTATUS(status)}"


def _write(to: int, tag: bytes, data: bytes) -> None:
    rest = memoryview(_HEAD.pack(tag, len(data)) + data)
    while rest:
        rest = rest[os.write(to, rest) :]


def _frame(source: int) -> tuple[bytes, bytes]:
    tag, length = _HEAD.unpack(_exactly(source, _HEAD.size))
    return tag, _exactly(source, length)


def _exactly(source: int, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        part = os.read(source, length - len(data))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


def _readable(source: int, timeout: float) -> bool:
    with selectors.DefaultSelector() as selector:
        selector.register(source, selectors.EVENT_READ)
        return bool(selector.select(timeout))
