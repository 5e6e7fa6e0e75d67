"""The works that forked processes run, and how their log is replayed in the test's process.

Invariants:
- A work gets the case as it was when the fork server was forked, and returns plain values: commits
  as rows, calls and notes.
- The log of another process is replayed into a world as if it had happened here.
"""

from __future__ import annotations

import pickle
import sys
from ast import literal_eval
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from pytest_routilux.faults.faults import Fault
from pytest_routilux.frames import users_modules
from pytest_routilux.sim.isolation.hidden_state import HiddenChange, globals_of, hidden_state
from pytest_routilux.sim.recovery import recover, run_undisturbed
from pytest_routilux.sim.simulator.execution import Variation, run_variation
from pytest_routilux.sim.simulator.model import Call, Host, Note, Start, Undisturbed, World
from routilux import Commit, JobState, codec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_routilux.sim.simulator.model import Case, CrashPoint
    from routilux import Clock, Slot, StepInput

    Send = Callable[[object], None]

__all__ = [
    "Entry",
    "HostLog",
    "Variable",
    "captured_value",
    "fold_commits",
    "hidden_changes",
    "pickled_value",
    "replay",
    "restore_value",
    "run_recovery",
    "undisturbed_log",
    "variation_log",
]

_POISON_ERROR: Final = "PoisonJobError"

Variable = tuple[str, str, str]
"""Where a value is: `global` or `class`, the module, the name in it."""
Entry = tuple[int, int, str | Call | Start | Note]
"""An instant, the number of the host, and what happened; a commit as its row."""


@dataclass(slots=True)
class HostLog:
    """The log of a host in another process.

    `told` are its entries. `ended` is the SystemExit that left the process at every attempt at a
    task. `changed` are the module globals and class attributes that the run changed.
    """

    told: list[Entry]
    ended: str | None = None
    changed: list[Variable] = field(default_factory=list)


def replay(world: World, job_id: str, told: Sequence[Entry]) -> None:
    """Add the log of another process to a world."""
    for at, host, what in told:
        world.host_number = host
        if isinstance(what, str):
            path = f"$.{job_id}[{len(world.commits) + 1}]"
            world.add_commit(Commit.load(codec.loads(what), path))
        elif isinstance(what, tuple | Note):
            world.log.append((at, host, what))
        else:
            world.add_call(what)


def _commits(job_id: str, rows: Sequence[str]) -> list[Commit]:
    return [
        Commit.load(codec.loads(row), f"$.{job_id}[{number}]") for number, row in enumerate(rows, 1)
    ]


def fold_commits(job_id: str, commits: Sequence[Commit]) -> JobState:
    job = JobState(job_id)
    for commit in commits:
        job.fold(commit)
    return job


class _SendLog(Fault):
    """Sends each step before its handler is called, and each commit when it is durable."""

    def __init__(self, send: Send) -> None:
        self._tell = send

    def affect(self, step: StepInput, slot: Slot, clock: Clock) -> Slot:
        task = step.task
        self._tell((clock.now_ns(), 1, (task.task_id, task.routine_id, step.attempt)))
        return slot

    def after_write(self, commit: Commit) -> None:
        self._tell((commit.at_ns, 1, commit.dumps()))


def undisturbed_log(case: Case, send: Send, start_ns: int) -> HostLog:
    before = globals_of(users_modules())
    case = replace(case, faults=(*case.faults, _SendLog(send)))
    run = run_undisturbed(case, start_ns)
    ran = _ran(run.world)
    after = globals_of(users_modules())
    ran.changed = [place for place, held in before.items() if held != after.get(place)]
    ends = [
        note.text.partition(": ")[2]
        for _, _, note in run.world.log
        if isinstance(note, Note) and note.text.startswith("the host ends: SystemExit")
    ]
    error = None if run.host.job is None else run.host.job.error
    if ends and error is not None and error.type.endswith(_POISON_ERROR):
        ran.ended = f"{ends[0]}, at each of its attempts"
    else:
        ran.told = []  # it was sent as it happened
    return ran


def run_recovery(
    case: Case,
    send: Send,
    start_ns: int,
    rows: Sequence[str],
    point: CrashPoint,
    kept: tuple[Variable, bytes] | None,
) -> HostLog:
    if kept is not None:
        restore_value(*kept)
    durable = _commits(case.job_id, rows)
    states = [JobState(case.job_id)]
    for commit in durable:
        states.append(states[-1].copy())
        states[-1].fold(commit)
    world = World(start_ns, host_number=1)
    run = Undisturbed(case, world, Host(case.build()), durable, states)
    return _ran(recover(run, point).world)


def pickled_value(place: Variable) -> bytes | None:
    """Return the pickled value of a place for `restore_value`; None if it can't be pickled."""
    with suppress(Exception):
        value = getattr(*_owner(place))
        if type(value) is count:  # pickling one is deprecated
            return pickle.dumps((count, literal_eval(repr(value).removeprefix("count"))))
        return pickle.dumps((None, value))
    return None


def restore_value(place: Variable, data: bytes) -> None:
    """Set a place to a value of `pickled_value`, in this process or a sibling of it."""
    kind, value = pickle.loads(data)
    if kind is not None:
        value = kind(*value) if isinstance(value, tuple) else kind(value)
    setattr(*_owner(place), value)


def _owner(place: Variable) -> tuple[Any, str]:
    _, module, name = place
    owner: Any = sys.modules[module]
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    return owner, last


class _CaptureValue(Fault):
    """Keeps the value of a place at the moment a commit is durable."""

    def __init__(self, seq: int, place: Variable) -> None:
        self._seq = seq
        self._place = place
        self.data: bytes | None = None

    def after_write(self, commit: Commit) -> None:
        if commit.seq == self._seq:
            self.data = pickled_value(self._place)


def captured_value(
    case: Case, send: Send, start_ns: int, seq: int, place: Variable
) -> tuple[Variable, bytes] | None:
    keeps = _CaptureValue(seq, place)
    run_undisturbed(replace(case, faults=(*case.faults, keeps)), start_ns)
    return None if keeps.data is None else (place, keeps.data)


def variation_log(case: Case, send: Send, start_ns: int, variation: Variation) -> HostLog:
    return _ran(run_variation(case, start_ns, variation)[0])


def hidden_changes(case: Case, send: Send, start_ns: int) -> list[HiddenChange]:
    return hidden_state(case, start_ns, everywhere=True)


def _ran(world: World) -> HostLog:
    told: list[Entry] = [
        (at, host, what.dumps() if isinstance(what, Commit) else what)
        for at, host, what in world.log
    ]
    return HostLog(told)
