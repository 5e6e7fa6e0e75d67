"""Fails a test if a handler waits in real time.

Invariants:
- A step is blocked when it has waited for `routilux_blocked_after` seconds. Its wait is the real
  time in which it neither ends nor waits on its virtual clock, less four times the CPU time of its
  thread, and less the time in which the thread waits for a processor of a busy machine.
- So a handler that computes with a quarter of a CPU is never blocked, and one that polls in short
  waits is. If the system does not report the CPU time of a thread, computing counts as waiting.
  A step in a debugger is ignored, since it waits for a human.
- A step with a timeout that has waited for longer than that fails at its end by `StepTimeoutError`.
- The test fails with the report. A step in the thread of the test is interrupted, as by Ctrl-C. A
  step in another thread can't be stopped: its job fails, and the thread is left alone.
- If nothing waits on the clock for the job of a blocked step, or if an observer or a store blocks,
  the report is written to the terminal.
- One thread checks all clocks. It exists only while there are clocks to check and a little longer,
  `threading` does not list it. It ends before the process forks, and the parent starts it again.
"""

from __future__ import annotations

import _thread
import gc
import os
import signal
import sys
import threading
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest

from pytest_routilux.frames import outwards
from pytest_routilux.settings import blocked_after
from pytest_routilux.virtual_time.blocked import blocked_report, waits_at
from pytest_routilux.virtual_time.late_failures import record_failure
from routilux import FakeClock, SystemClock
from routilux.clocks.clock import thread_busy_ns
from routilux.engine.drive import Drive
from routilux.engine.step import run_async_step, run_step

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from routilux import Context, StepInput
    from routilux.clocks.turns import Turn
    from routilux.graph.context import StepHost

_DEBUGGERS: Final = frozenset({"_pydevd_bundle", "bdb", "debugpy", "pdb", "pydevd"})
_CHECKS: Final = 4  # at least, within the time that a step may wait
_OFTEN: Final = 0.1  # seconds between two checks, at most
_CPU_WEIGHT: Final = 4  # seconds of waiting that one second of CPU time cancels
_PATIENCE: Final = 1.0  # seconds, for a lock or an answer that may never come
_URGENT: Final = getattr(signal, "SIGURG", None)  # does nothing without a handler
_RUN_STEP: Final = {run_step.__code__, run_async_step.__code__}
_WAITS: Final = {FakeClock.wait.__code__, FakeClock._advance.__code__}
_now: Final = SystemClock.monotonic_ns


@contextmanager
def fail_blocked_steps(clock: FakeClock | None, config: pytest.Config) -> Iterator[None]:
    """In the `with` block, fail each step that waits in real time.

    `clock` is the virtual clock of the steps, None for the steps of a simulation.
    """
    after = blocked_after(config)
    if not after:
        yield
        return
    watch = _Watch(clock, after, config)
    with _interruptible():
        _watchdog.add(watch)
        try:
            yield
        finally:
            _watchdog.remove(watch)


class _Seen(NamedTuple):
    """A step on the stack of a thread."""

    step: StepInput
    host: StepHost
    context: Context


class _Sight(NamedTuple):
    """The state of a clock's running step at one check."""

    thread: int
    frame: FrameType
    turn: Turn | None
    marks: tuple[object, ...]  # change when the step makes progress
    step: _Seen | None  # the innermost
    computed_ns: int | None


class _Watch:
    """Measures how long a clock's running step waits in real time."""

    def __init__(self, clock: FakeClock | None, after: float, config: pytest.Config) -> None:
        self.every = min(after / _CHECKS, _OFTEN)
        self._clock = clock
        self._thread = threading.get_ident()
        self._after = after
        self._most = after / self.every - 1  # since waiting takes a little CPU time
        self._config = config
        self._marks: tuple[object, ...] = ()
        self._computed_ns = 0
        self._waited = 0.0  # in checks
        self._context: Context | None = None  # of the step that was last seen
        self._charged = 0.0  # how long this step has waited, in checks
        self._reported = False
        self._sent = ""
        self._sent_at = 0

    def check(self) -> None:
        """Report the clock's running step once if the step is blocked."""
        sight = self._sight()
        if sight is None or not _same(sight.marks, self._marks):
            self._marks = () if sight is None else sight.marks
            self._computed_ns = 0 if sight is None else sight.computed_ns or 0
            self._waited, self._reported, self._sent = 0.0, False, ""
            return
        computed_ns = sight.computed_ns or 0
        computed = (computed_ns - self._computed_ns) / 1e9 / self.every
        self._computed_ns = computed_ns
        # Checks are counted, since a process that was stopped for an hour has not waited so long.
        waited = 1 - _CPU_WEIGHT * computed
        self._waited = max(0.0, self._waited + waited)
        if sight.step is not None:
            self._charge(sight.frame, sight.step, waited)
        if self._sent:
            if _pending is None or _pending[0] is not self._sent:
                self._sent = ""
            elif _now() - self._sent_at > _PATIENCE * 1e9:
                self._write(self._sent)  # the thread does not handle the signal
                self._sent = ""
        elif not self._reported and self._waited > self._most:
            self._reported = True
            self._report(sight)

    def _charge(self, frame: FrameType, seen: _Seen, waited: float) -> None:
        """Let a step fail at its end if it has waited in real time for longer than its timeout."""
        if seen.context is not self._context:
            self._context, self._charged = seen.context, 0.0
        self._charged += max(0.0, waited)
        limit = seen.step.timeout_ns
        if limit is not None and self._charged * self.every > limit / 1e9:
            seen.context.charged = waits_at(frame)

    def _sight(self) -> _Sight | None:
        turn = None if self._clock is None else self._clock.turn()
        thread = self._thread if turn is None else turn.thread
        frame = _frame_of(thread)
        if frame is None or _is_debugged(frame):
            return None
        steps = _steps_of(frame)
        seen = steps[0] if steps else None
        step = None if seen is None else seen.step
        if turn is not None:
            return _Sight(thread, frame, turn, (turn.party, turn.at_ns, step), seen, turn.busy_ns)
        if self._clock is not None or step is None:
            return None
        return _Sight(thread, frame, None, (step,), seen, thread_busy_ns(thread))

    def _report(self, sight: _Sight) -> None:
        who = "a simulation" if sight.turn is None else sight.turn.who
        steps = _steps_of(sight.frame)
        if steps:
            step = steps[0].step
            whose = "of a simulation" if sight.turn is None else f"of job {step.job_id}"
            who = f"{step.who} {whose}"
        text = blocked_report(sight.frame, who, self._after)
        if steps and sight.thread == _main() and _interrupt(text, steps[0].step):
            self._sent, self._sent_at = text, _now()
            return
        if steps and sight.turn is not None and self._clock is not None:
            error = pytest.fail.Exception(text, pytrace=False)
            failed = [_failed(seen.host, error) for seen in steps]
            if all(failed):
                record_failure(error)
                self._clock.revoke(sight.turn, error)
                if any(frame.f_code in _WAITS for frame in outwards(_frame_of(_main()))):
                    return  # the test gets the error there
        self._write(text)

    def _write(self, text: str) -> None:
        capture: Any = self._config.pluginmanager.get_plugin("capturemanager")
        uncaptured = nullcontext() if capture is None else capture.global_and_fixture_disabled()
        with suppress(OSError, ValueError), uncaptured:
            if sys.stderr is not None:
                sys.stderr.write(f"\n{text}\n")
                sys.stderr.flush()


def _same(marks: tuple[object, ...], others: tuple[object, ...]) -> bool:
    # Steps are compared by identity, instants by value.
    return len(marks) == len(others) and all(
        a is b or (type(a) is int and a == b) for a, b in zip(marks, others, strict=True)
    )


def _frame_of(thread: int) -> FrameType | None:
    # Before 3.12 a garbage collection in this call can wait for ever for a lock that it holds.
    collects = gc.isenabled()
    gc.disable()
    try:
        return sys._current_frames().get(thread)
    finally:
        if collects:
            gc.enable()


def _main() -> int:
    return threading.main_thread().ident or 0


def _steps_of(frame: FrameType | None) -> list[_Seen]:
    """Return the steps that a thread runs, innermost first."""
    steps = [outer.f_locals for outer in outwards(frame) if outer.f_code in _RUN_STEP]
    return [
        _Seen(values["step"], values["host"], values["context"])
        for values in steps
        if "context" in values  # else the step begins
    ]


def _is_debugged(frame: FrameType) -> bool:
    return any(
        outer.f_globals.get("__name__", "").partition(".")[0] in _DEBUGGERS
        for outer in outwards(frame)
    )


def _failed(host: StepHost, error: BaseException) -> bool:
    if not isinstance(host, Drive) or not host.environment.lock.acquire(timeout=_PATIENCE):
        return False
    try:
        if host.loop is not None:
            host.loop.fail(host, error)
    finally:
        host.environment.lock.release()
    return True


# --- interrupting the main thread -----------------------------------------------------------------

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
    signal.signal(_URGENT, _fail_step)
    try:
        yield
    finally:
        if signal.getsignal(_URGENT) is _fail_step:
            signal.signal(_URGENT, signal.SIG_DFL)


def _interrupt(text: str, step: StepInput) -> bool:
    global _pending
    if _URGENT is None or signal.getsignal(_URGENT) is not _fail_step:
        return False
    _pending = text, step
    signal.pthread_kill(_main(), _URGENT)
    return True


def _fail_step(_: int, frame: FrameType | None) -> None:
    global _pending
    pending, _pending = _pending, None
    # Only the step that was checked, since the thread may run another one by now.
    if pending is not None and any(seen.step is pending[1] for seen in _steps_of(frame)):
        error = pytest.fail.Exception(pending[0], pytrace=False)
        record_failure(error)
        raise error from None


# --- the thread that checks -----------------------------------------------------------------------


class _Watchdog:
    """Checks all watched clocks in one thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watches: list[_Watch] = []
        self._must_run = threading.Lock()  # held until the thread must end
        self._runs = threading.Lock()  # held while the thread runs
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=self.end, after_in_parent=self.start)

    def add(self, watch: _Watch) -> None:
        """Add a clock to check."""
        with self._lock:
            self._watches.append(watch)
        self.start()

    def start(self) -> None:
        """Start the checking thread if there is a clock to check."""
        with self._lock:
            if self._watches and self._runs.acquire(blocking=False):
                self._must_run.acquire(blocking=False)
                # Not by `threading`, since a test may count the threads that its code leaves.
                _thread.start_new_thread(self._run, ())

    def remove(self, watch: _Watch) -> None:
        """Remove a clock from the checks."""
        with self._lock, suppress(ValueError):  # it was removed when its check failed
            self._watches.remove(watch)

    def end(self) -> None:
        """Stop the checking thread, and wait for the thread to end."""
        if self._runs.locked():
            self._must_run.release()
            if self._runs.acquire(timeout=_PATIENCE):
                self._runs.release()

    def _run(self) -> None:
        every = _PATIENCE
        while True:
            with self._lock:
                watches = self._watches.copy()
                every = min([watch.every for watch in watches], default=every)
            ends = self._must_run.acquire(timeout=every)
            with self._lock:
                if ends or not (watches or self._watches):
                    self._runs.release()
                    return
            for watch in watches:
                try:
                    watch.check()
                except Exception as error:  # the other clocks are still checked
                    text = f"the check for blocked steps failed by a bug of routilux: {error!r}"
                    record_failure(RuntimeError(text))
                    with self._lock, suppress(ValueError):
                        self._watches.remove(watch)


_watchdog: Final = _Watchdog()
