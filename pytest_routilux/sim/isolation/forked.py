"""Simulated runs in forked processes, and the logs of these runs.

Invariants:
- A function gets the case as it was when the fork server started, and returns plain values: the
  rows of commits, calls and notes.
- A replayed log changes a world as if the run had happened in this process.
"""

from __future__ import annotations

import pickle
import sys
from ast import literal_eval
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count
from typing import TYPE_CHECKING, Any

from pytest_routilux.faults.faults import Fault
from pytest_routilux.frames import users_modules
from pytest_routilux.sim.isolation.hidden_state import (
    HiddenChange,
    Variable,
    globals_of,
    hidden_state,
)
from pytest_routilux.sim.oracle import view_of
from pytest_routilux.sim.recovery import recover, run_undisturbed, run_variation
from pytest_routilux.sim.repeats import Shape, shape_of
from pytest_routilux.sim.simulator.execution import Variation
from pytest_routilux.sim.simulator.model import Call, Host, Note, Start, Undisturbed, World
from routilux import Commit, JobState, codec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_routilux.sim.simulator.model import Case, CrashPoint
    from routilux import Clock, Slot, StepInput

    Send = Callable[[object], None]

Entry = tuple[int, int, str | Call | Start | Note]
"""An instant, the number of the host, and what happened; a commit as its row."""


@dataclass(slots=True)
class HostLog:
    """The log that a host in another process returns.

    `ended` is the SystemExit that ended the process at every attempt of a task. `changed` are the
    module globals and class attributes that the run changed, `shape` is that of the run.
    """

    entries: list[Entry]
    ended: str | None = None
    changed: list[Variable] = field(default_factory=list)
    shape: Shape = field(default_factory=dict)


def replay(world: World, job_id: str, entries: Sequence[Entry]) -> None:
    """Add log entries from another process to `world`."""
    for at, host, what in entries:
        world.host_number = host
        if isinstance(what, str):
            path = f"$.{job_id}[{len(world.commits) + 1}]"
            world.add_commit(Commit.load(codec.loads(what), path))
        elif isinstance(what, tuple | Note):
            world.log.append((at, host, what))
        else:
            world.add_call(what)


def fold_commits(job_id: str, commits: Sequence[Commit]) -> JobState:
    """Return the state of job `job_id` after `commits`."""
    job = JobState(job_id)
    for commit in commits:
        job.fold(commit)
    return job


def _log_of(world: World) -> HostLog:
    return HostLog(
        [
            (at, host, what.dumps() if isinstance(what, Commit) else what)
            for at, host, what in world.log
        ]
    )


# --- runs -----------------------------------------------------------------------------------------


class _SendLog(Fault):
    """Sends a log entry before each handler call and after each durable commit."""

    def __init__(self, send: Send) -> None:
        self._send = send

    def affect(self, step: StepInput, slot: Slot, clock: Clock) -> Slot:
        task = step.task
        self._send((clock.now_ns(), 1, (task.task_id, task.routine_id, step.attempt)))
        return slot

    def after_write(self, commit: Commit) -> None:
        self._send((commit.at_ns, 1, commit.dumps()))


def undisturbed_log(case: Case, send: Send, start_ns: int) -> HostLog:
    """Run a case without a crash, and send each log entry at once."""
    before = globals_of(users_modules())
    run = run_undisturbed(replace(case, faults=(*case.faults, _SendLog(send))), start_ns)
    log = _log_of(run.world)
    if run.host.job is not None:
        log.shape = shape_of(view_of(run.job, run.world))
    after = globals_of(users_modules())
    log.changed = [name for name, value in before.items() if value != after.get(name)]
    exits = [
        note.error
        for _, _, note in run.world.log
        if isinstance(note, Note) and note.error.startswith("SystemExit")
    ]
    error = None if run.host.job is None else run.host.job.error
    if exits and error is not None and error.type.endswith("PoisonJobError"):
        log.ended = f"{exits[0]}, at each attempt of the task"
    else:
        log.entries = []  # they are sent already
    return log


def recovery_log(
    case: Case,
    send: Send,
    start_ns: int,
    rows: Sequence[str],
    point: CrashPoint,
    kept: tuple[Variable, bytes] | None,
) -> HostLog:
    """Resume a job from the commits in `rows`."""
    if kept is not None:
        restore_value(*kept)
    durable = [
        Commit.load(codec.loads(row), f"$.{case.job_id}[{number}]")
        for number, row in enumerate(rows, 1)
    ]
    states = [JobState(case.job_id)]
    for commit in durable:
        states.append(states[-1].copy())
        states[-1].fold(commit)
    world = World(start_ns, host_number=1)
    run = Undisturbed(case, world, Host(case.build()), durable, states)
    return _log_of(recover(run, point).world)


def variation_log(case: Case, send: Send, start_ns: int, variation: Variation) -> HostLog:
    return _log_of(run_variation(case, start_ns, variation)[0])


def hidden_changes(case: Case, send: Send, start_ns: int) -> list[HiddenChange]:
    return hidden_state(case, start_ns, everywhere=True)


# --- variables ------------------------------------------------------------------------------------


def pickled_value(variable: Variable) -> bytes | None:
    """Return a variable's pickled value; None if pickling fails."""
    with suppress(Exception):
        value = getattr(*_owner(variable))
        if type(value) is count:  # pickling one is deprecated
            return pickle.dumps((count, literal_eval(repr(value).removeprefix("count"))))
        return pickle.dumps((None, value))
    return None


def restore_value(variable: Variable, data: bytes) -> None:
    """Set a variable to the value that `pickled_value` saved in `data`."""
    kind, value = pickle.loads(data)
    if kind is not None:
        value = kind(*value) if isinstance(value, tuple) else kind(value)
    setattr(*_owner(variable), value)


def _owner(variable: Variable) -> tuple[Any, str]:
    _, module, name = variable
    owner: Any = sys.modules[module]
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    return owner, last


class _KeepValue(Fault):
    """Saves the pickled value of a variable when commit `seq` becomes durable."""

    def __init__(self, seq: int, variable: Variable) -> None:
        self._seq = seq
        self._variable = variable
        self.data: bytes | None = None

    def after_write(self, commit: Commit) -> None:
        if commit.seq == self._seq:
            self.data = pickled_value(self._variable)


def value_at_commit(
    case: Case, send: Send, start_ns: int, seq: int, variable: Variable
) -> bytes | None:
    """Run a case, and return a variable's pickled value after commit `seq`."""
    keep = _KeepValue(seq, variable)
    run_undisturbed(replace(case, faults=(*case.faults, keep)), start_ns)
    return keep.data
