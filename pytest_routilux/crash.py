"""Where a host can die, what is left then, and how the next host goes on.

Laws:
- Points are enumerated from the undisturbed run; what is durable at one is a prefix of its world,
  read back from its saved form. Nothing of the dead host runs on: no `finally`, no `except`.
- The next host builds its flow anew and has nothing but the world.
- A point's name is in the user's terms and stays when the flow around it changes: task, attempt,
  place.
- A point that was planned is executed, or the run is no proof.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Literal

from pytest_routilux.choices import FIFO
from pytest_routilux.faults import Fault
from pytest_routilux.files import Files
from pytest_routilux.lives import Case, HostCrash, Life
from pytest_routilux.oracle import Finding
from pytest_routilux.simulation import live
from pytest_routilux.world import Call, World
from routilux import (
    Commit,
    CommitKind,
    FlowDefinitionError,
    JobState,
    JobStatus,
    RoutiluxError,
    SavedState,
    SavedStateError,
    UnserializableError,
    codec,
)
from routilux.core.checks import follow
from routilux.instants import SECOND

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_routilux.choices import Choices
    from routilux import Flow

__all__ = ["CrashPoint", "Disturbed", "Undisturbed", "crash_points", "recover", "undisturbed"]

Kind = Literal[
    "before a write",
    "after a write",
    "around an effect",
    "in a wait",
    "in a recovery",
    "by document",
    "store refuses",
    "store does not answer",
]
_LONG: Final = 3600 * SECOND
_MOST_HOSTS: Final = 12
_REFUSALS: Final = ("store refuses", "store does not answer")
_RESTING: Final = frozenset({JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED})


@dataclass(frozen=True, slots=True)
class CrashPoint:
    """One place to die at.

    `commits` and `calls` are how many of the undisturbed run's are in the world then; `at_ns` is
    when the host dies, `resume_ns` when the next one goes on (UTC). `name` is for reproducers,
    `text` for people.
    """

    kind: Kind
    name: str
    text: str
    commits: int
    calls: int
    at_ns: int
    resume_ns: int
    task_id: str | None = None
    routine_id: str | None = None
    attempt: int = 0


@dataclass(slots=True)
class Undisturbed:
    """The run that nothing disturbs, and what the store would give back at each of its commits.

    `lost` is what a real store does not give back as it should, by the number of commits.
    """

    case: Case
    world: World
    life: Life
    durable: list[Commit]
    states: list[JobState]
    lost: dict[int, Finding] = field(default_factory=dict)

    @property
    def job(self) -> JobState:
        """The job as it ended."""
        assert self.life.job is not None
        return self.life.job


@dataclass(slots=True)
class Disturbed:
    """A run with a crash: its world, its hosts, and whether the crash really came."""

    point: CrashPoint
    world: World
    lives: list[Life]
    executed: bool

    @property
    def life(self) -> Life:
        """The last host."""
        return self.lives[-1]


def undisturbed(case: Case, start_ns: int, choices: Choices, *, told: bool = False) -> Undisturbed:
    """Run a job without a crash of ours; a host that its handlers kill is followed by another.

    Raises what refuses the start: an entry or params that the flow does not take.
    """
    world = _new_world(case, start_ns)
    lives = _until_it_rests(case, world, None, choices=choices, checked=True, told=told)
    if not world.commits and isinstance(lives[-1].error, FlowDefinitionError | UnserializableError):
        raise lives[-1].error
    durable: list[Commit] = []
    job = JobState(case.job_id)
    states = [job.copy()]
    merged = lives[-1]
    for commit in world.commits:
        path = f"$.{case.job_id}[{commit.seq}]"
        try:
            durable.append(Commit.load(codec.loads(codec.dumps(commit.serialize())), path))
            follow(job, durable[-1], path)
        except SavedStateError as error:
            whose = commit.routine_id or "the job"
            what = f"commit {commit.seq} of {whose} can't be read back: {error}"
            finding = Finding("unreadable", what, f"engine.{whose}", commit.routine_id)
            merged.broken.append(finding)
            break
        states.append(job.copy())
    for life in lives[:-1]:
        merged.broken[:0] = life.broken
        merged.steps[:0] = life.steps
        merged.errors = {**life.errors, **merged.errors}
        merged.asked = {**life.asked, **merged.asked}
    if world.files is None:
        return Undisturbed(case, world, merged, durable, states)
    lost: dict[int, Finding] = {}
    for number in range(len(states)):
        given = world.files.cut(number).given_back(case.job_id, world)
        if isinstance(given, Finding):
            lost[number] = given
        elif given is not None:
            states[number] = given
    return Undisturbed(case, world, merged, durable, states, lost)


def _new_world(case: Case, start_ns: int) -> World:
    return World(start_ns, files=None if case.store is None else Files(case.store))


def recover(run: Undisturbed, point: CrashPoint, *, told: bool = False) -> Disturbed:
    """Let a host die at a point of a run, and others go on until the job rests."""
    case = run.case
    if point.kind in _REFUSALS:
        # The host meets the failing store alive, so it is run from the beginning.
        fault = _FailsAt(point.commits + 1, durable=point.kind == "store does not answer")
        world = _new_world(case, run.world.log[0][0])
        failing = replace(case, faults=(fault, *case.faults))
        lives = _until_it_rests(failing, world, None, told=told)
        return Disturbed(point, world, lives, executed=fault.struck == 1)
    world = run.world.cut(point.commits, point.calls, point.at_ns)
    world.commits = run.durable[: point.commits]
    world.noted(point.at_ns, "CRASH")
    world.now_ns = point.resume_ns
    if point.commits in run.lost:
        life = Life(run.life.flow, lost=run.lost[point.commits])
        return Disturbed(point, world, [life], executed=True)
    job = run.states[point.commits] if point.commits else None
    executed = True
    if point.kind == "in a recovery" and job is not None:
        job, executed = _die_again(case, world, job)
    flow = None
    if point.kind == "by document" and job is not None:
        saved = SavedState.capture(run.life.flow, job)
        document = SavedState.from_bytes(saved.to_bytes())
        flow, job = document.flow, document.job
    lives = _until_it_rests(case, world, job, told=told, flow=flow)
    return Disturbed(point, world, lives, executed=executed)


class _FailsAt(Fault):
    """The store fails once at a commit, which it may keep; whatever faults of the test come later.

    Not by the number of the write: the test's own faults may need several for one commit.
    """

    def __init__(self, seq: int, *, durable: bool) -> None:
        self._seq = seq
        self._durable = durable

    def before_write(self, commit: Commit) -> None:
        if not self._durable:
            self._fail(commit, "failed")

    def after_write(self, commit: Commit) -> None:
        if self._durable:
            self._fail(commit, "was not acknowledged")

    def _fail(self, commit: Commit, how: str) -> None:
        if commit.seq == self._seq and not self.struck:
            self.struck += 1
            raise OSError(f"write {self._seq} of the store {how}")


class _DiesAfter(Fault):
    """The host dies right after its store has taken a commit, and before it hears of it."""

    def __init__(self, seq: int) -> None:
        self._seq = seq

    def after_write(self, commit: Commit) -> None:
        if commit.seq == self._seq:
            self.struck += 1
            raise HostCrash


def _die_again(case: Case, world: World, job: JobState) -> tuple[JobState, bool]:
    """Let a host die when it has just gone on; return what is stored, and whether it did."""
    dies = _DiesAfter(len(world.commits) + 1)
    for fault in case.faults:
        fault.begin(len(world.commits))
    for _ in range(_MOST_HOSTS):  # a store that the test lets fail may end others before
        life = live(replace(case, faults=(dies, *case.faults)), world, job)
        job = _stored(case, world, job, life) or job
        if dies.struck:
            break
    world.noted(world.now_ns, "CRASH, right after it went on")
    return job, dies.struck == 1


def _stored(case: Case, world: World, job: JobState | None, life: Life) -> JobState | None:
    """Return what the store gives back when a host is dead, which had `job` from it."""
    if world.files is not None:
        given = world.files.given_back(case.job_id, world)
        if not isinstance(given, Finding):
            return given
        life.lost = given
    if not world.commits:
        return None
    job = JobState(case.job_id) if job is None else job.copy()
    for commit in world.commits[job.seq :]:
        job.fold(commit)
    return job


def _until_it_rests(
    case: Case,
    world: World,
    job: JobState | None,
    *,
    choices: Choices = FIFO,
    checked: bool = False,
    told: bool = False,
    flow: Flow | None = None,
) -> list[Life]:
    """Let hosts follow each other until the job rests, or it is clear that it never will."""
    for fault in case.faults:
        fault.begin(len(world.commits))
    lives: list[Life] = []
    while len(lives) < _MOST_HOSTS:
        if job is not None and job.status in _RESTING:
            lives.append(Life(case.build(), job))
            break
        life = live(case, world, job, choices=choices, checked=checked, told=told, flow=flow)
        lives.append(life)
        over = life.error is None or isinstance(life.error, RoutiluxError)
        if over and world.files is None:
            break
        job = _stored(case, world, job, life)
        if over or life.lost is not None:
            break
        flow = None
        world.noted(world.now_ns, f"the host ends: {type(life.error).__name__}: {life.error}")
    return lives


# --- where ----------------------------------------------------------------------------------------


def crash_points(run: Undisturbed, *, documents: bool = True) -> list[CrashPoint]:
    """Return every point of an undisturbed run at which a host can die, in their order."""
    return list(_Points(run, documents=documents).all())


class _Points:
    def __init__(self, run: Undisturbed, *, documents: bool) -> None:
        self._run = run
        self._documents = documents
        self._entries = [e for e in run.world.log if isinstance(e[2], Commit | Call)]
        self._times = [entry[0] for entry in self._entries]
        self._names: set[str] = set()
        self._deadlines = {
            name
            for name, handler in run.life.flow.plan().handlers.items()
            if handler.deadline is not None
        }

    def all(self) -> Iterator[CrashPoint]:
        commits = calls = 0
        for at, _, what in self._entries:
            if isinstance(what, Call):
                yield from self._around_effect(what, commits, calls, at)
                calls += 1
            elif isinstance(what, Commit):
                yield from self._around_write(what, commits, calls, at)
                commits += 1

    def _around_effect(self, call: Call, commits: int, calls: int, at: int) -> Iterator[CrashPoint]:
        who = f"task {call.task_id} {call.routine_id}, attempt {call.attempt}"
        step = (call.task_id, call.routine_id, call.attempt)
        place = f"{call.task_id}@a{call.attempt}.effect{call.number}"
        effect = f"effect #{call.number} ({call.effect})"
        yield self._point(
            "around an effect",
            f"{place}.before",
            f"{who}: before {effect}",
            commits,
            calls,
            at,
            step=step,
        )
        yield self._point(
            "around an effect",
            place,
            f"{who}: after {effect}, before its commit",
            commits,
            calls + 1,
            at,
            step=step,
        )
        if call.routine_id not in self._deadlines:
            yield self._point(
                "around an effect",
                f"{place}.long",
                f"{who}: after {effect}; no host is there for an hour",
                commits,
                calls + 1,
                at,
                at + _LONG,
                step=step,
            )

    def _around_write(
        self, commit: Commit, commits: int, calls: int, at: int
    ) -> Iterator[CrashPoint]:
        step = (commit.task_id, commit.routine_id, commit.attempt)
        if commit.task_id is None:
            who, place = f"the job's {commit.kind}", str(commit.kind)
        else:
            who = f"task {commit.task_id} {commit.routine_id}, attempt {commit.attempt}"
            place = f"{commit.task_id}@a{commit.attempt}"
        if commit.kind is CommitKind.EFFECT:
            name = str((commit.detail or {})["name"])
            before, after = f"{place}.once-{name}", f"{place}.once-{name}.kept"
            what = f"the record of once({name!r})"
        elif commit.task_id is None:
            before, after, what = f"{place}.write", place, "its commit"
        else:
            before, after, what = f"{place}.end", f"{place}.{commit.kind}", "its commit"
        between = (
            "after its handler's end, before" if commit.task_id and not commit.effect else "before"
        )
        yield self._point(
            "before a write", before, f"{who}: {between} {what}", commits, calls, at, step=step
        )
        yield self._point(
            "store refuses",
            f"{before}.refused",
            f"{who}: the store refuses {what}",
            commits,
            calls,
            at,
            step=step,
        )
        yield self._point(
            "store does not answer",
            f"{before}.unanswered",
            f"{who}: the store keeps {what} and does not answer",
            commits,
            calls,
            at,
            step=step,
        )
        yield self._point(
            "after a write", after, f"{who}: right after {what}", commits + 1, calls, at, step=step
        )
        if self._run.states[commits + 1].status in _RESTING:
            return
        yield self._point(
            "in a recovery",
            f"{after}.recovery",
            f"{who}: right after {what}, and again when the next host has just gone on",
            commits + 1,
            calls,
            at,
            step=step,
        )
        if self._documents:
            yield self._point(
                "by document",
                f"{after}.document",
                f"{who}: right after {what}; the next host has a document of it",
                commits + 1,
                calls,
                at,
                step=step,
            )
        if commit.due_ns is not None and commit.delay_ns:
            yield from self._in_wait(commit, commits + 1, calls, who, step)

    def _in_wait(
        self,
        commit: Commit,
        commits: int,
        calls: int,
        who: str,
        step: tuple[str | None, str | None, int],
    ) -> Iterator[CrashPoint]:
        start, due = commit.at_ns, commit.due_ns or 0
        place = f"{commit.task_id}@a{commit.attempt}.wait"
        what = f"{who}: in the backoff wait after it"
        for name, at, where in (
            ("start", start, "at its start"),
            ("mid", (start + due) // 2, "in the middle of it"),
            ("late", due - 1, "1 ns before it is due"),
        ):
            seen = bisect_right(self._times, at, lo=commits + calls)
            past = self._entries[:seen]
            known = sum(isinstance(entry[2], Commit) for entry in past)
            yield self._point(
                "in a wait",
                f"{place}.{name}",
                f"{what}, {where}",
                known,
                len(past) - known,
                at,
                step=step,
            )
        if commit.routine_id in self._deadlines:
            return  # a deadline runs on while no host is alive
        for name, resume, where in (
            ("overdue", due + 1, "until 1 ns after it was due"),
            ("long", due + _LONG, "until an hour after it was due"),
        ):
            yield self._point(
                "in a wait",
                f"{place}.{name}",
                f"{what}, at its start; no host is there {where}",
                commits,
                calls,
                start,
                resume,
                step=step,
            )

    def _point(
        self,
        kind: Kind,
        name: str,
        text: str,
        commits: int,
        calls: int,
        at: int,
        resume: int | None = None,
        *,
        step: tuple[str | None, str | None, int],
    ) -> CrashPoint:
        unique = name
        number = 2
        while unique in self._names:
            unique = f"{name}~{number}"
            number += 1
        self._names.add(unique)
        return CrashPoint(
            kind, unique, text, commits, calls, at, at if resume is None else resume, *step
        )
