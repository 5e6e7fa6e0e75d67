"""Routines, flows, observers and readings of a job, shared by the tests.

Invariants:
- Importing it does not import pytest, since many hosts import it that run no test.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, TypeVar

from routilux import (
    Commit,
    CorruptStateError,
    ErrorHandler,
    FakeClock,
    Flow,
    JobState,
    Routine,
    Runtime,
    SavedStateError,
)

if TYPE_CHECKING:
    import pytest

SECOND = 1_000_000_000
PATIENCE = 20.0  # seconds of real time after which a test that hangs fails

T = TypeVar("T")
Body = Callable[..., object]


def _in_both_modes(test: Body) -> Body:
    import pytest

    modes = pytest.mark.parametrize("workers", [None, 3], ids=["sequential", "concurrent"])
    return modes(test)


MODES = _in_both_modes


# --- routines -------------------------------------------------------------------------------------


class Works(Routine):
    """A routine whose one handler is a plain function of the routine and the payload's `n`."""

    def __init__(
        self, body: Body, handler: ErrorHandler | None = None, **events: list[str]
    ) -> None:
        super().__init__()
        self.define_slot("trigger", handler=partial(body, self))
        for name, fields in ({"out": ["n"]} | events).items():
            self.define_event(name, fields)
        self.set_error_handler(handler)


class Wide(Works):
    """The same, eight steps at a time."""

    max_concurrency = 8


class Importable(Works):
    """The same with a saved form: the body is a function of a module, as `module:name`."""

    def __init__(self, path: str, **events: list[str]) -> None:
        super().__init__(resolve_name(path), **events)


def saveable(body: Body, **events: list[str]) -> Importable:
    return Importable(f"{body.__module__}:{body.__qualname__}", **events)


def send(self: Routine, n: object = 0) -> None:
    """Emit one `n`."""
    self.emit("out", n=n)


def rest(self: Routine, n: object = 0) -> None:
    """Do nothing."""


def sends(*numbers: object) -> Body:
    """A body that emits each of the numbers."""

    def body(self: Routine, n: object = 0) -> None:
        for number in numbers:
            self.emit("out", n=number)

    return body


def sleeps(*lengths: float) -> Body:
    """A body that sleeps for each of the lengths, in seconds, and then emits `n`."""

    def body(self: Routine, n: object = 0) -> None:
        for length in lengths:
            self.ctx.sleep(length)
        self.emit("out", n=n)

    return body


def fails(times: int, error: type[BaseException] = ValueError, after: float | None = None) -> Body:
    """A body that raises in its first attempts, after a sleep, and emits `n` in the next one."""

    def body(self: Routine, n: object = 0) -> None:
        if after is not None:
            self.ctx.sleep(after)
        if self.ctx.attempt <= times:
            raise error(f"attempt {self.ctx.attempt}")
        self.emit("out", n=n)

    return body


def counts(last: int) -> Flow:
    """A flow whose only routine feeds itself the numbers from 1 to `last`."""

    def body(self: Routine, n: int = 1) -> None:
        if n < last:
            self.emit("out", n=n + 1)

    flow = chain(a=body)
    flow.connect("a", "out", "a", "trigger")
    return flow


def retrying(**options: Any) -> ErrorHandler:
    return ErrorHandler("retry", **options)


# --- flows ----------------------------------------------------------------------------------------


def chain(*, workers: int | None = None, **bodies: Body | Routine) -> Flow:
    """One routine after the other, each fed by the `out` of the one before."""
    flow = _flow(workers, bodies)
    for before, after in zip(bodies, list(bodies)[1:], strict=False):
        flow.connect(before, "out", after, "trigger")
    return flow


def fan(source: Body | Routine, *, workers: int | None = None, **bodies: Body | Routine) -> Flow:
    """Routines that are all fed by the `out` of `source`."""
    flow = _flow(workers, {"source": source, **bodies})
    for name in bodies:
        flow.connect("source", "out", name, "trigger")
    return flow


def _flow(workers: int | None, bodies: dict[str, Body | Routine]) -> Flow:
    flow = Flow("tale")
    if workers is not None:
        flow = Flow("tale", execution_strategy="concurrent", max_workers=workers)
    for name, body in bodies.items():
        flow.add_routine(body if isinstance(body, Routine) else Works(body), name)
    return flow


def run(
    flow: Flow, entry: str = "a", *, job_id: str = "job", observers: Any = (), **payload: Any
) -> JobState:
    """Execute a job of the flow in virtual time."""
    with Runtime(clock=FakeClock(), observers=observers) as runtime:
        return flow.execute(entry, payload or None, job_id=job_id, runtime=runtime)


def run_by(how: str, flow: Flow, entry: str, runtime: Runtime, **params: Any) -> JobState:
    """Run job `j` of the flow by start ("background"), by aexecute, or else by execute."""
    if how == "aexecute":
        coroutine = flow.aexecute(entry, params or None, job_id="j", runtime=runtime)
        return arun(runtime, coroutine)
    if how in ("start", "background"):
        return flow.start(entry, params or None, job_id="j", runtime=runtime).wait()
    return flow.execute(entry, params or None, job_id="j", runtime=runtime)


def arun(runtime: Runtime, coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on an event loop that follows the runtime's clock."""
    with asyncio.Runner(loop_factory=runtime.clock.new_event_loop) as runner:
        return runner.run(coroutine)


# --- the facts of a job ---------------------------------------------------------------------------


class Watcher:
    """An observer that keeps each commit, and the job after it."""

    def __init__(self) -> None:
        self.commits: list[Commit] = []
        self.jobs: list[JobState] = []

    def on_commit(self, job: JobState, commit: Commit) -> None:
        self.commits.append(commit)
        self.jobs.append(job)


def kinds(job: JobState) -> list[str]:
    return [commit.kind.value for commit in job.commits]


def outputs(job: JobState) -> list[Any]:
    """Each `n` that was emitted and that no routine took."""
    return [output.data["n"] for output in job.outputs]


def starts(job: JobState, routine: str = "a") -> list[float]:
    """When the attempts of a routine started, in seconds after the job."""
    return [
        (c.started_ns - job.started_ns) / SECOND
        for c in job.commits
        if c.routine_id == routine and c.started_ns is not None and c.effect is None
    ]


def delays(job: JobState) -> list[float]:
    """The delays before the retries of a job, in seconds."""
    return [c.delay_ns / SECOND for c in job.commits if c.delay_ns is not None]


def ends(job: JobState, after: int = 0) -> list[tuple[str | None, float]]:
    """The routine and the time of each commit after a number of them, in seconds after the job."""
    return [(c.routine_id, (c.at_ns - job.started_ns) / SECOND) for c in job.commits[after:]]


def ended_at(job: JobState) -> float:
    """Seconds between the job's first and last commit."""
    return (job.updated_ns - job.started_ns) / SECOND


def error_of(job: JobState) -> tuple[str, str]:
    """The type and the message of the error of a job that failed."""
    assert "failed" == job.status.value
    assert job.error is not None
    return job.error.type.removeprefix("routilux."), job.error.message


@contextmanager
def refused_at(
    path: str, reason: str = "", error: type[SavedStateError] = CorruptStateError
) -> Iterator[None]:
    """Assert that the block raises an error with that path and a reason with that text."""
    import pytest

    with pytest.raises(error) as caught:
        yield
    assert path == caught.value.path
    assert reason in caught.value.reason


def let_sigint_through() -> None:
    """Let SIGINT reach this process and those it starts; in the background a shell ignores it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def calls_of(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[Any]:
    """Make a function of a module note each call; return the list of the calls' arguments."""
    calls: list[Any] = []
    function = getattr(module, name)

    def noted(*arguments: Any) -> Any:
        calls.append(arguments)
        return function(*arguments)

    monkeypatch.setattr(module, name, noted)
    return calls
