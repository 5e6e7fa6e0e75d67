"""Runs functions in forked children of the test's process.

Invariants:
- The fork server is forked before the simulation has run, and forks one child for each request. So
  every child starts with the test's state of that moment: module globals, monkeypatches, closures.
- A child ends by itself, or by SIGKILL after its limit of real time; the reply says which. Its
  process group ends with it, and it ends with the test's process, even if that is killed.
- A child prints to /dev/null, runs no `atexit` function and no teardown, and draws different random
  numbers from its siblings.
- A child sends one pickle after another. The reader drops a pickle that the child's death cuts
  short, and never waits for its rest.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import pickle
import selectors
import signal
import sys
import warnings
from dataclasses import dataclass, field
from io import BytesIO
from multiprocessing.connection import Connection, Pipe
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Self

from pytest_routilux.hosts.child import end_text
from pytest_routilux.text import error_text

if TYPE_CHECKING:
    from collections.abc import Callable

_SENT: Final = "sent"
_RESULT: Final = "result"
_FAILED: Final = "failed"
_END: Final = pickle.dumps(("end", b""))
_GRACE: Final = 5.0
_WAIT: Final = 0.5
_SHORT_WAIT: Final = 0.001
# A test may replace these. Waiting uses selectors, since `poll` of a connection reads the clock.
_exit, _kill, _killpg, _monotonic = os._exit, os.kill, getattr(os, "killpg", None), monotonic


def can_fork() -> bool:
    """Return whether the operating system can fork processes."""
    return hasattr(os, "fork")


@dataclass(slots=True)
class Reply:
    """A child process's reply: a function's result, or the failure.

    `sent` holds the values that the child sent before its result. `ended` is None with a result;
    else it is such as `SIGKILL`, `exit status 3`, `no end within 30 s of real time`, or the error
    of our own code.
    """

    result: Any = None
    sent: list[Any] = field(default_factory=list)
    ended: str | None = None
    hung: bool = False
    failed: bool = False


class ForkServer:
    """Calls functions on `subject`, each in a new child process.

    The function is defined at the top level of a module and called as `function(subject, send,
    *args)`, where `send` sends a value at once. Arguments, results and sent values are pickled; the
    subject is not.
    """

    def __init__(self, subject: object, *, timeout: float = 30.0) -> None:
        self._timeout = timeout
        requests, self._to = Pipe(duplex=False)
        self._from, replies = Pipe(duplex=False)
        self._pid = _fork()
        if self._pid == 0:
            try:
                self._to.close()
                self._from.close()
                _serve(subject, requests, replies, timeout)
            finally:
                _exit(0)
        requests.close()
        replies.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End the fork server and its child, if any."""
        self._to.close()
        # It sends no reply now, so the pipe becomes readable only at its end.
        ended = _readable(self._from, _GRACE)
        self._from.close()
        if not ended:
            _kill(self._pid, signal.SIGKILL)
        _reap(self._pid)

    def ask(self, function: Callable[..., object], *args: object) -> Reply:
        """Run `function` in a new child process, and wait for the reply."""
        try:
            self._to.send_bytes(pickle.dumps((function, args)))
            if not _readable(self._from, self._timeout + _GRACE):
                return Reply(ended="no answer", failed=True)
            sent, ended, hung = pickle.loads(self._from.recv_bytes())  # our own code wrote it
        except (OSError, EOFError):
            return Reply(ended="the end of the fork server", failed=True)
        reply = Reply(ended=ended, hung=hung)
        stream = BytesIO(sent.removesuffix(_END))
        while True:
            try:
                kind, body = pickle.load(stream)
            except Exception:  # the end, or a pickle that the child's death cut short
                return reply
            try:
                value = pickle.loads(body)
            except Exception as error:
                return Reply(ended=error_text(error), failed=True)
            if kind == _SENT:
                reply.sent.append(value)
            elif kind == _RESULT:
                reply.result, reply.ended, reply.hung = value, None, False
            else:
                reply.ended, reply.failed = value, True


# --- the fork server ------------------------------------------------------------------------------


def _serve(subject: object, requests: Connection, replies: Connection, timeout: float) -> None:
    os.setsid()  # a Ctrl-C at the terminal interrupts only the test
    faulthandler.disable()
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123 - for all its life
    gc.freeze()  # a collection would copy all pages
    while True:
        try:
            request = requests.recv_bytes()
        except (EOFError, OSError):
            return
        replies.send_bytes(pickle.dumps(_in_child(subject, request, requests, replies, timeout)))


def _in_child(
    subject: object, request: bytes, requests: Connection, replies: Connection, timeout: float
) -> tuple[bytes, str, bool]:
    """Run `request` in a new child, and return (data, end, timed out)."""
    out, into = os.pipe()
    pid = _fork()
    if pid == 0:
        try:
            os.setpgid(0, 0)
            os.close(out)
            requests.close()
            replies.close()
            _run(subject, request, into)
        finally:
            _exit(0)
    os.close(into)
    try:
        sent, hung = _collect(out, requests, pid, timeout)
    finally:
        os.close(out)
        _end_group(pid)
        status = _reap(pid)
    if hung:
        return sent, f"no end within {timeout:g} s of real time", True
    return sent, end_text(os.waitstatus_to_exitcode(status)), False


def _collect(out: int, requests: Connection, pid: int, timeout: float) -> tuple[bytes, bool]:
    """Read all data of a child, and return (data, timed out)."""
    sent = bytearray()
    closed = False
    until = _monotonic() + timeout
    with selectors.DefaultSelector() as selector:
        selector.register(out, selectors.EVENT_READ)
        selector.register(requests, selectors.EVENT_READ)
        while (left := until - _monotonic()) > 0:
            ended = _has_ended(pid, closed=closed)  # before the last read from the pipe
            wait = 0 if ended else min(left, _SHORT_WAIT if closed else _WAIT)
            ready = {key.fileobj for key, _ in selector.select(wait)}
            if out in ready:
                part = os.read(out, 1 << 16)
                sent += part
                if sent.endswith(_END):
                    return bytes(sent), False
                if not part:  # the child ends, or its code has closed all files
                    closed = True
                    selector.unregister(out)
            elif ended or requests in ready:
                # A process that the child started may hold the pipe open. Or the test's process
                # has ended; then the child and the fork server end too.
                return bytes(sent), False
    return bytes(sent), True


# --- the child ------------------------------------------------------------------------------------


def _run(subject: object, request: bytes, into: int) -> None:
    if (numpy_random := sys.modules.get("numpy.random")) is not None:
        numpy_random.seed()  # `random` does this by itself

    def send(kind: str, value: object) -> None:
        rest = memoryview(pickle.dumps((kind, pickle.dumps(value))))
        while rest:
            rest = rest[os.write(into, rest) :]

    try:
        function, args = pickle.loads(request)
        send(_RESULT, function(subject, lambda value: send(_SENT, value), *args))
    except BaseException as error:
        send(_FAILED, error_text(error))
    os.write(into, _END)


# --- processes and pipes --------------------------------------------------------------------------


def _fork() -> int:
    with warnings.catch_warnings():
        # The only other threads are those of execnet, which a child does not need.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _end_group(pid: int) -> None:
    assert _killpg is not None
    for end in (lambda: _killpg(pid, signal.SIGKILL), lambda: _kill(pid, signal.SIGKILL)):
        try:
            end()
        except (ProcessLookupError, PermissionError):
            continue


def _has_ended(pid: int, *, closed: bool) -> bool:
    if not hasattr(os, "waitid"):
        return closed
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # the test's code has reaped it
        return True


def _reap(pid: int) -> int:
    try:
        return os.waitpid(pid, 0)[1]
    except ChildProcessError:  # the test's code has reaped it
        return 0


def _readable(source: Connection, timeout: float) -> bool:
    with selectors.DefaultSelector() as selector:
        selector.register(source, selectors.EVENT_READ)
        return bool(selector.select(timeout))
