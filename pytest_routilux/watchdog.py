"""Tells of a handler that waits in real time under a virtual clock, instead of hanging with it.

Laws:
- Blocked is a step that for `routilux_blocked_after` real seconds has neither ended nor waited on
  its clock, and that has not computed either, where the system tells that. Short waits that are
  made again and again cost work; whoever does mostly that, and at every look stands in the wait of
  one line, has not computed. Whoever stands in a debugger waits for a human.
- The test fails with the report. A step in the thread of the test is broken off there, as by
  Ctrl-C; of one in another thread the job is failed, and the thread left alone: nobody can stop it.
- What nobody waits for on the clock, and what is no step (an observer, a store), is written to the
  terminal and left.
- One thread looks, from time to time. It is there only while there are clocks to look at and a
  little longer, is none that `threading` lists, and is gone before a process forks.
"""

from __future__ import annotations

import _thread
import gc
import os
import signal
import sys
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest

from pytest_routilux.places import outwards
from pytest_routilux.settings import blocked_after
from pytest_routilux.untold import all_told, note
from routilux import FakeClock, SystemClock
from routilux.clock import computed_ns
from routilux.drive import Drive
from routilux.step import run_step

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType, FrameType

    from routilux import StepInput
    from routilux.context import Host
    from routilux.fake_clock import Turn

__all__ = ["watched"]

_DEBUGGERS: Final = frozenset({"_pydevd_bundle", "bdb", "debugpy", "pdb", "pydevd"})
_BUSY: Final = 0.05  # a thread that computes for so much of the time is not blocked, but may poll
_NO_POLL: Final = 0.25  # and one that computes for so much does not, on a busy machine too
_LOOKS: Final = 4  # within the time that a step may be blocked
_PATIENCE: Final = 1.0  # seconds, for a lock or an answer that may never come
_URGENT: Final = getattr(signal, "SIGURG", None)  # which does nothing where nobody handles it
_RUN_STEP: Final = run_step.__code__
_WAITS: Final = {FakeClock.wait.__code__, FakeClock._advance.__code__}
_now: Final = SystemClock.monotonic_ns


@contextmanager
def watched(clock: FakeClock | None, config: pytest.Config) -> Iterator[None]:
    """Tell of blocked steps on the clock until the block ends; None: of those of a simulation."""
    after = blocked_after(config)
    if not after:
        yield
        return
    watch = _Watch(clock, after, config)
    with all_told(), _interruptible():
        _dog.add(watch)
        try:
            yield
        finally:
            _dog.remove(watch)


class _Sight(NamedTuple):
    """What runs on a clock: its thread, and marks that differ as soon as it goes on."""

    thread: int
    frame: FrameType
    turn: Turn | None
    marks: tuple[object, ...]
    computed: int | None


class _Watch:
    """One clock that is looked at."""

    def __init__(self, clock: FakeClock | None, after: float, config: pytest.Config) -> None:
        self.every = after / _LOOKS
        self._clock = clock
        self._thread = threading.get_ident()
        self._after = after
        self._config = config
        self._marks: tuple[object, ...] = ()
        self._since = 0
        self._looks = 0
        self._computed: int | None = None
        self._polled: tuple[CodeType, int] | None = None
        self._told = False
        self._sent = ""
        self._sent_at = 0

    def look(self) -> None:
        """Tell of whoever is blocked, once."""
        sight = self._sight()
        now = _now()
        self._looks += 1
        if sight is None or not _same(sight.marks, self._marks):
            self._marks = () if sight is None else sight.marks
            self._begin(now, sight)
        elif self._works(sight, now):
            self._begin(now, sight)
        elif self._sent:
            if _pending is None or _pending[0] is not self._sent:
                self._sent = ""
            elif now - self._sent_at > _PATIENCE * 1e9:
                self._write(self._sent)  # it does not hear the signal
                self._sent = ""
        elif not self._told and self._looks >= _LOOKS:
            # Counted, not measured: a whole process that stood still has not been looked at.
            self._told = True
            self._tell(sight)

    def _begin(self, now: int, sight: _Sight | None) -> None:
        self._since, self._looks = now, 0
        self._computed = None if sight is None else sight.computed
        self._polled = None
        self._told, self._sent = False, ""

    def _works(self, sight: _Sight, now: int) -> bool:
        if sight.computed is None or self._computed is None:
            return False
        share = (sight.computed - self._computed) / (now - self._since)
        if share <= _BUSY:
            return False
        if share >= _NO_POLL:
            return True
        from pytest_routilux.polls import polled_line

        before, self._polled = self._polled, polled_line(sight.frame)
        return self._polled is None or before not in (None, self._polled)

    def _sight(self) -> _Sight | None:
        turn = None
        thread = self._thread
        if self._clock is not None:
            turn = self._clock.turn()
            if turn is None:
                return None
            thread = turn.thread
        frame = _frame_of(thread)
        if frame is None or _is_debugged(frame):
            return None
        steps = _steps_of(frame)
        step = steps[0][0] if steps else None
        if turn is None:
            return (
                None if step is None else _Sight(thread, frame, None, (step,), computed_ns(thread))
            )
        return _Sight(thread, frame, turn, (turn.party, turn.at_ns, step), turn.computed_ns)

    def _tell(self, sight: _Sight) -> None:
        from pytest_routilux.blocked import report

        who = "a simulation" if sight.turn is None else sight.turn.who
        steps = _steps_of(sight.frame)
        if steps:
            step = steps[0][0]
            whose = "of a simulation" if sight.turn is None else f"of job {step.job_id}"
            who = f"{step.who} {whose}"
        text = report(sight.frame, who, self._after)
        if steps and sight.thread == _main() and _interrupt(text, steps[0][0]):
            self._sent, self._sent_at = text, _now()
            return
        if steps and sight.turn is not None and self._clock is not None:
            error = pytest.fail.Exception(text, pytrace=False)
            failed = [_failed(host, error) for _, host in steps]
            if all(failed):
                note(error)
                self._clock.revoke(sight.turn, error)
                if _waits_on_a_clock(_main()):
                    return
        self._write(text)

    def _write(self, text: str) -> None:
        capture: Any = self._config.pluginmanager.get_plugin("capturemanager")
        with suppress(OSError, ValueError):
            if capture is None:
                _to_terminal(text)
            else:
                with capture.global_and_fixture_disabled():
                    _to_terminal(text)


def _to_terminal(text: str) -> None:
    if sys.stderr is not None:
        sys.stderr.write(f"\n{text}\n")
        sys.stderr.flush()


def _same(marks: tuple[object, ...], others: tuple[object, ...]) -> bool:
    # A step is the same one, not an equal one; an instant is a number.
    return len(marks) == len(others) and all(
        a is b or (type(a) is int and a == b) for a, b in zip(marks, others, strict=True)
    )


def _frame_of(thread: int) -> FrameType | None:
    # Before 3.12 a collection within this call can wait for ever for a lock that the call holds.
    collects = gc.isenabled()
    gc.disable()
    try:
        return sys._current_frames().get(thread)
    finally:
        if collects:
            gc.enable()


def _main() -> int:
    return threading.main_thread().ident or 0


def _steps_of(frame: FrameType | None) -> list[tuple[StepInput, Host]]:
    """Return the steps that a thread is in, the innermost first, each with its host."""
    return [
        (outer.f_locals["step"], outer.f_locals["host"])
        for outer in outwards(frame)
        if outer.f_code is _RUN_STEP
    ]


def _is_debugged(frame: FrameType) -> bool:
    return any(
        outer.f_globals.get("__name__", "").partition(".")[0] in _DEBUGGERS
        for outer in outwards(frame)
    )


def _waits_on_a_clock(thread: int) -> bool:
    return any(frame.f_code in _WAITS for frame in outwards(_frame_of(thread)))


def _failed(host: Host, error: BaseException) -> bool:
    if not isinstance(host, Drive) or not host.environment.lock.acquire(timeout=_PATIENCE):
        return False
    try:
        if host.loop is not None:
            host.loop.fail(host, error)
    finally:
        host.environment.lock.release()
    return True


# --- breaking off what the main thread does -------------------------------------------------------

_pending: tuple[str, StepInput] | None = None


@contextmanager
def _interruptible() -> Iterator[None]:
    if (
        _URGENT is None
        or threading.get_ident() != _main()
        or signal.getsignal(_URGENT) is not signal.SIG_DFL
    ):
        yield
        return
    signal.signal(_URGENT, _break_off)
    try:
        yield
    finally:
        if signal.getsignal(_URGENT) is _break_off:
            signal.signal(_URGENT, signal.SIG_DFL)


def _interrupt(text: str, step: StepInput) -> bool:
    global _pending
    if _URGENT is None or signal.getsignal(_URGENT) is not _break_off:
        return False
    _pending = text, step
    signal.pthread_kill(_main(), _URGENT)
    return True


def _break_off(_: int, frame: FrameType | None) -> None:
    global _pending
    pending, _pending = _pending, None
    # Only the step that was seen: by now the thread may be elsewhere.
    if pending is not None and any(step is pending[1] for step, _ in _steps_of(frame)):
        error = pytest.fail.Exception(pending[0], pytrace=False)
        note(error)
        raise error from None


# --- the thread that looks ------------------------------------------------------------------------


class _Watchdog:
    """Looks at all clocks that are watched."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watches: list[_Watch] = []
        self._bell = threading.Lock()  # held while the thread is to go on
        self._gone = threading.Lock()  # held while it is there
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=self.end)

    def add(self, watch: _Watch) -> None:
        """Look at one more, from a thread that is started if there is none."""
        with self._lock:
            self._watches.append(watch)
            if self._gone.acquire(blocking=False):
                self._bell.acquire(blocking=False)
                # Not of `threading`: a test may count the threads that its code leaves behind.
                _thread.start_new_thread(self._run, ())

    def remove(self, watch: _Watch) -> None:
        """Look at it no longer."""
        with self._lock, suppress(ValueError):  # which broke, and was left
            self._watches.remove(watch)

    def end(self) -> None:
        """Let the thread end, and wait for that."""
        if self._gone.locked():
            self._bell.release()
            if self._gone.acquire(timeout=_PATIENCE):
                self._gone.release()

    def _run(self) -> None:
        every = _PATIENCE
        while True:
            with self._lock:
                watches = self._watches.copy()
                every = min([watch.every for watch in watches], default=every)
            told = self._bell.acquire(timeout=every)
            with self._lock:
                if told or not (watches or self._watches):
                    self._gone.release()
                    return
            for watch in watches:
                try:
                    watch.look()
                except Exception as error:  # the others are looked at all the same
                    note(RuntimeError(f"looking for blocked steps failed, our bug: {error!r}"))
                    with self._lock, suppress(ValueError):
                        self._watches.remove(watch)


_dog: Final = _Watchdog()
