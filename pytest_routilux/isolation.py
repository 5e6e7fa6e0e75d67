"""Hosts in other processes: what a second host would not find there, and what kills its process.

Laws:
- The undisturbed run comes first in a process of its own. A handler that ends it is told, and is
  never run in the test's process.
- Where a run changes no module global and no class attribute, nothing else is asked. Otherwise the
  next host is, for a sample of crash points, a process that knows the durable commits alone.
- Where that one brings the job to another end than undisturbed, the flow keeps progress in its
  process. This is a finding only if it comes again, also when undisturbed runs in processes of
  their own are believed about what varies, and if there is one value that, given to the new
  process, makes the difference go away. Else it is a note.
"""

from __future__ import annotations

import pickle
import sys
import warnings
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from pytest_routilux.choices import FIFO
from pytest_routilux.crash import CrashPoint, Undisturbed, recover, undisturbed
from pytest_routilux.faults import Fault
from pytest_routilux.forks import Reply, Zygote, can_fork
from pytest_routilux.hidden import HiddenChange, globals_of, hidden_state, users_modules
from pytest_routilux.oracle import (
    Finding,
    compare_effects,
    compare_views,
    trie_of,
    varying,
    view_of,
)
from pytest_routilux.simulation import Life
from pytest_routilux.variations import Variation, variations, vary
from pytest_routilux.world import Note, World
from routilux import Commit, JobState, JobStatus, codec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_routilux.examine import Coverage, Reference
    from pytest_routilux.oracle import Trie, View
    from pytest_routilux.simulation import Case, SimClock
    from pytest_routilux.world import Call
    from routilux import Slot, StepInput

    Tell = Callable[[object], None]
    _Place = tuple[str, str, str]

__all__ = ["Hosts", "Killed", "owner_of"]

_SAMPLE: Final = 6
_ABLE: Final = ("before a write", "around an effect", "in a wait", "in a recovery")
_NO_FORK: Final = "hosts in other processes: not tried, this system can't fork"


@dataclass(slots=True)
class Ran:
    """What a host in another process did: the rows of all commits and its calls of effects.

    `ended` is how its process was left by SystemExit, each time it was. `changed` are the module
    globals and class attributes that are not as they were before it.
    """

    rows: list[str]
    calls: list[Call]
    ended: list[str] = field(default_factory=list)
    changed: list[_Place] = field(default_factory=list)


@dataclass(slots=True)
class Killed:
    """A handler that ends its process: the finding, and the run up to there."""

    finding: Finding
    run: Undisturbed


class Hosts:
    """The hosts of one case, each in a process of its own. To be made before the case has run."""

    def __init__(self, case: Case, start_ns: int, coverage: Coverage) -> None:
        self._case = case
        self._start_ns = start_ns
        self._coverage = coverage
        self._zygote = Zygote(case) if can_fork() else None
        self._changed: list[_Place] = []
        if self._zygote is None and _NO_FORK not in coverage.notes:
            coverage.notes.append(_NO_FORK)

    def __enter__(self) -> Hosts:
        return self

    def __exit__(self, *_: object) -> None:
        if self._zygote is not None:
            self._zygote.__exit__()

    def ask(self, work: Callable[..., object], *args: object) -> Reply:
        """Let another process do a work on the case, or this one where there is no other."""
        if self._zygote is None:
            return Reply(work(self._case, lambda value: None, *args))
        self._coverage.runs += 1
        return self._zygote.ask(work, *args)

    # --- the canary -----------------------------------------------------------------------------

    def canary(self) -> Killed | None:
        """Run the case undisturbed in another process; return what ends that process, if so."""
        if self._zygote is None:
            return None
        self._coverage.runs += 1
        reply = self._zygote.ask(_undisturbed, self._start_ns)
        if reply.failed:
            self._note(f"the undisturbed run in another process: {reply.ended}")
            return None
        if reply.ended is None:
            ran: Ran = reply.result
            self._changed = ran.changed
            return self._killed(ran.ended[0], [*reply.told], ran.rows) if ran.ended else None
        again = self._zygote.ask(_undisturbed, self._start_ns)
        if again.ended is None:
            self._note(f"the undisturbed run in another process ended by {reply.ended}, once")
            return None
        return self._killed(reply.ended, reply.told, [], hung=reply.hung)

    def _killed(
        self, how: str, told: list[Any], rows: Sequence[str], *, hung: bool = False
    ) -> Killed:
        steps = [entry for entry in told if isinstance(entry, tuple)]
        rows = rows or [entry for entry in told if isinstance(entry, str)]
        routine, task_id, attempt, at_ns = steps[-1] if steps else (None, None, 0, self._start_ns)
        flow = self._case.build()
        world = World(self._start_ns, host=1)
        for commit in _commits(self._case.job_id, rows):
            world.committed(commit)
        who = "build()" if routine is None else f"{routine} (task {task_id}, attempt {attempt})"
        if hung:
            kind, what = "hangs", f"{who} does not come to an end: {how}"
        else:
            kind, what = "kills-process", f"{who} kills its process: {how}"
        world.log.append((at_ns, 1, Note(what, task_id, routine, attempt)))
        job = _folded(self._case.job_id, world.commits)
        where = "?" if routine is None else _handler_of(flow, routine)
        return Killed(
            Finding(kind, what, f"process.{routine or 'build'}", routine, [], at_ns, where),
            Undisturbed(self._case, world, Life(flow, job), list(world.commits), [job]),
        )

    # --- the sample -----------------------------------------------------------------------------

    def compare(
        self,
        known: Reference,
        points: Sequence[CrashPoint],
        failures: Sequence[tuple[CrashPoint, Finding]],
    ) -> list[tuple[CrashPoint, Finding]]:
        """Let another process go on from some of the points; return what only that one finds."""
        if self._zygote is None or not self._changed:
            return []
        told = dict(failures)
        own: Trie | None = None
        for point in _sample(points, len(known.run.durable)):
            world = self._recovered(known.run, point)
            if world is None or _difference(known, world, {}) is None:
                continue
            if own is None:
                own = self._mask(known)
                if own is None:
                    return []
            finding = _difference(known, world, own)
            if finding is None or _is_told(finding, told.get(point)):
                continue
            again = self._recovered(known.run, point)
            repeated = None if again is None else _difference(known, again, own)
            if repeated is None or repeated.signature != finding.signature:
                continue
            for place in self._changed:
                other = self._recovered(known.run, point, place)
                if other is not None and _difference(known, other, own) is None:
                    return [(point, self._named(finding, place))]
            self._note(
                f"another process comes to something else, {point.text}: {finding.what}; but none"
                " of the module globals that a run changes makes the difference"
            )
            return []
        return []

    def _recovered(
        self, run: Undisturbed, point: CrashPoint, place: _Place | None = None
    ) -> World | None:
        """Let another process go on, which was given what stood at a place when the host died."""
        assert self._zygote is not None
        self._coverage.runs += 1
        kept = None
        if place is not None:
            reply = self._zygote.ask(_value_at, self._start_ns, point.commits, place)
            kept = reply.result
            if kept is None:
                return None
        rows = [codec.dumps(commit.serialize()) for commit in run.durable[: point.commits]]
        reply = self._zygote.ask(_recovered, self._start_ns, rows, point, kept)
        if reply.ended is not None:
            self._note(f"another process can't go on, {point.text}: {reply.ended}")
            return None
        calls = run.world.calls[: point.calls]
        return _world(self._case.job_id, self._start_ns, reply.result, calls)

    def _mask(self, known: Reference) -> Trie | None:
        """Return what varies of undisturbed runs that know nothing of each other."""
        assert self._zygote is not None
        plan = known.run.life.flow.plan()
        views = []
        for variation in [*variations(plan), Variation(), Variation()]:
            self._coverage.runs += 1
            reply = self._zygote.ask(_varied, self._start_ns, variation)
            if reply.ended is None:
                world = _world(self._case.job_id, self._start_ns, reply.result, ())
                views.append(_view(self._case.job_id, world))
        return trie_of(varying(known.view, views, ordered=known.ordered)) if views else None

    def _named(self, finding: Finding, place: _Place) -> Finding:
        assert self._zygote is not None
        scope, module, name = place
        kind = "module global" if scope == "global" else "class attribute"
        full = f"{module}:{name}"
        reply = self._zygote.ask(_hidden, self._start_ns)
        changes: list[HiddenChange] = [c for c in reply.result or () if c.name == full]
        change = changes[0] if changes else HiddenChange("?", "global", full, "?", "?", "?")
        routine = change.routine_id if changes else finding.routine
        what = (
            f"{routine} keeps progress in the {kind} {full}, which a host that starts anew does not"
            f" have: {finding.what}"
        )
        rows = [(full, f"{change.was} -> {change.became}", change.was), *finding.rows]
        path = f"{scope}.{full}"
        return Finding("module-state", what, path, routine, rows, finding.at_ns, change.where)

    def _note(self, text: str) -> None:
        self._coverage.notes.append(text)


def _sample(points: Sequence[CrashPoint], commits: int) -> list[CrashPoint]:
    able = [p for p in points if p.kind == "after a write" and p.commits < commits]
    if not able:  # a reproducer names one point
        able = [p for p in points[:_SAMPLE] if p.kind in _ABLE and p.commits < commits]
    if len(able) <= _SAMPLE:
        return able
    return [able[round(i * (len(able) - 1) / (_SAMPLE - 1))] for i in range(_SAMPLE)]


def _is_told(finding: Finding, other: Finding | None) -> bool:
    return other is not None and other.signature == finding.signature


def _difference(known: Reference, world: World, trie: Trie) -> Finding | None:
    job_id = known.run.case.job_id
    return compare_effects(known.run.world, world, trie) or compare_views(
        known.view, _view(job_id, world), trie, ordered=known.ordered
    )


def _view(job_id: str, world: World) -> View:
    return view_of(_folded(job_id, world.commits), world)


def _world(job_id: str, start_ns: int, ran: Ran, calls: Sequence[Call]) -> World:
    return World(start_ns, _commits(job_id, ran.rows), [*calls, *ran.calls])


def _commits(job_id: str, rows: Sequence[str]) -> list[Commit]:
    return [
        Commit.load(codec.loads(row), f"$.{job_id}[{number}]") for number, row in enumerate(rows, 1)
    ]


def _folded(job_id: str, commits: Sequence[Commit]) -> JobState:
    job = JobState(job_id)
    for commit in commits:
        job.fold(commit)
    return job


def _handler_of(flow: Any, routine_id: str) -> str:
    for slot in flow.routines[routine_id].slots.values():
        code = getattr(slot.handler, "__code__", None)
        if code is not None:
            return f"{code.co_filename}:{code.co_firstlineno}"
    return "?"


# --- in the other process -------------------------------------------------------------------------


class _Tells(Fault):
    """Tells each step before its handler is called, and each commit when it is durable."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell

    def affect(self, step: StepInput, slot: Slot, clock: SimClock) -> Slot:
        task = step.task
        self._tell((task.routine_id, task.task_id, step.attempt, clock.now_ns()))
        return slot

    def after_write(self, commit: Commit) -> None:
        self._tell(codec.dumps(commit.serialize()))


def _undisturbed(case: Case, tell: Tell, start_ns: int) -> Ran:
    before = globals_of(users_modules())
    case = replace(case, faults=(*case.faults, _Tells(tell)))
    run = undisturbed(case, start_ns, FIFO)
    ran = _ran(run.world)
    after = globals_of(users_modules())
    ran.changed = [place for place, held in before.items() if held != after.get(place)]
    if run.life.job is not None and run.job.status is JobStatus.FAILED:
        ran.ended = [
            f"{note.text.partition(': ')[2]}, at each of its attempts"
            for _, _, note in run.world.log
            if isinstance(note, Note) and note.text.startswith("the host ends: SystemExit")
        ]
    return ran


def _recovered(
    case: Case,
    tell: Tell,
    start_ns: int,
    rows: Sequence[str],
    point: CrashPoint,
    kept: tuple[_Place, bytes] | None,
) -> Ran:
    if kept is not None:
        place, data = kept
        owner, attribute = owner_of(place)
        setattr(owner, attribute, pickle.loads(data))  # written by a sibling of this process
    durable = _commits(case.job_id, rows)
    states = [JobState(case.job_id)]
    for commit in durable:
        states.append(states[-1].copy())
        states[-1].fold(commit)
    world = World(start_ns, host=1)
    run = Undisturbed(case, world, Life(case.build()), durable, states)
    return _ran(recover(run, point).world)


def owner_of(place: _Place) -> tuple[Any, str]:
    _, module, name = place
    owner: Any = sys.modules[module]
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    return owner, last


class _Keeps(Fault):
    """Keeps what stands at a place when a commit is durable."""

    def __init__(self, seq: int, place: _Place) -> None:
        self._seq = seq
        self._place = place
        self.data: bytes | None = None

    def after_write(self, commit: Commit) -> None:
        if commit.seq == self._seq:
            value = getattr(*owner_of(self._place))
            with suppress(Exception), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # itertools will not be pickled for ever
                self.data = pickle.dumps(value)


def _value_at(
    case: Case, tell: Tell, start_ns: int, seq: int, place: _Place
) -> tuple[_Place, bytes] | None:
    keeps = _Keeps(seq, place)
    undisturbed(replace(case, faults=(*case.faults, keeps)), start_ns, FIFO)
    return None if keeps.data is None else (place, keeps.data)


def _varied(case: Case, tell: Tell, start_ns: int, variation: Variation) -> Ran:
    return _ran(vary(case, start_ns, variation)[0])


def _hidden(case: Case, tell: Tell, start_ns: int) -> list[HiddenChange]:
    return hidden_state(case, start_ns, everywhere=True)


def _ran(world: World) -> Ran:
    return Ran([codec.dumps(commit.serialize()) for commit in world.commits], world.calls)
