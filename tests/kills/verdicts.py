"""What must hold when all jobs are done, whatever was killed; one line for each broken rule.

Invariants:
- Every commit that a worker acknowledged is kept unchanged.
- Every job is completed and can be read, so its commits follow each other. A snapshot and the
  commits since give the same job. Every attempt and every change of shared data was applied once.
- Every effect was recorded once, and never done again by a step that began after its record. (A
  host that was suspended past its lease may finish what it had begun: no store can prevent it.)
- Every retry was counted, with its own delay, and began no earlier than it was due.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from routilux import Commit, CommitKind, JobState, JobStatus, RoutiluxError, Runtime
from tests.kills.host import digest
from tests.kills.story import DELAYS_NS, EFFECTS, ENDS, SENT
from tests.persist.stores import at

_ENDS = (CommitKind.DONE, CommitKind.RETRY, CommitKind.FAILED, CommitKind.DROPPED)


@dataclass
class Evidence:
    """What is left: the commits that workers acknowledged, the jobs, and the effects in order."""

    acknowledged: set[tuple[str, int, str]]
    effects: list[tuple[str, str, int]]
    jobs: dict[str, JobState] = field(default_factory=dict)
    from_snapshots: dict[str, JobState] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)


def evidence(where: str, effects: Path, events: list[list[Any]]) -> Evidence:
    """Collect it from a store, a file of effects, and the events of the hosts."""
    lines = effects.read_text("utf-8").splitlines() if effects.exists() else []
    found = Evidence(
        {(event[1], event[2], event[3]) for event in events if event[0] == "commit"},
        [(key, token, int(seq)) for key, token, seq in (line.split(" ") for line in lines)],
    )
    with at(where) as store:
        runtime = Runtime(store=store)
        for job_id in store.job_ids():
            try:
                found.jobs[job_id] = runtime.load(job_id, history=True)
                found.from_snapshots[job_id] = runtime.load(job_id)
            except RoutiluxError as error:
                found.unread.append(f"job {job_id} can't be read: {error}")
    return found


def broken(found: Evidence) -> list[str]:
    """Return a line for each broken rule."""
    return [
        *found.unread,
        *lost(found),
        *_snapshots(found),
        *(line for job in found.jobs.values() for line in _of_job(job)),
        *_names(found),
        *repeated(found),
    ]


def lost(found: Evidence) -> Iterator[str]:
    """Yield a line for each acknowledged commit that the store does not hold."""
    kept = {(i, c.seq): digest(c) for i, job in found.jobs.items() for c in job.commits}
    read = found.jobs.keys()
    for job_id, seq, sent in sorted(found.acknowledged):
        if job_id in read or not found.unread:
            is_kept = kept.get((job_id, seq))
            if is_kept is None:
                yield f"commit {seq} of job {job_id} was acknowledged, and is lost"
            elif is_kept != sent:
                yield f"commit {seq} of job {job_id} was acknowledged, and the store has another"


def _snapshots(found: Evidence) -> Iterator[str]:
    short = 0
    for job_id, job in found.jobs.items():
        loaded = found.from_snapshots.get(job_id)
        if loaded is None:
            continue
        short += len(loaded.commits) < len(job.commits)
        loaded = loaded.copy()
        loaded._commits = list(job.commits)
        if loaded != job:
            yield f"job {job_id} is another when it is read from its snapshot"
    if 2 * short < len(found.jobs):
        yield f"only {short} of {len(found.jobs)} jobs were read from a snapshot"


def _of_job(job: JobState) -> Iterator[str]:
    who = f"job {job.job_id}"
    if job.status is not JobStatus.COMPLETED:
        yield f"{who} is {job.status.value}"
        return
    if {"sent": SENT} != job.shared_data:
        yield f"{who} has shared {job.shared_data}, not {{'sent': {SENT}}}"
    ended = Counter((str(c.task_id), c.attempt) for c in job.commits if c.kind in _ENDS)
    for (task_id, attempt), times in sorted((ended - ENDS).items()):
        yield f"{who}: attempt {attempt} of task {task_id} was applied {times} times too often"
    for task_id, attempt in sorted(ENDS - ended):
        yield f"{who}: attempt {attempt} of task {task_id} was never applied"
    yield from _retries(who, job.commits)


def _retries(who: str, commits: Sequence[Commit]) -> Iterator[str]:
    retries = [c for c in commits if c.kind is CommitKind.RETRY]
    if DELAYS_NS != (delays := tuple(c.delay_ns for c in retries)):
        yield f"{who} waited {delays} ns before its retries, not {DELAYS_NS}"
    for retry in retries:
        for after in commits:
            if (after.task_id, after.attempt) == (retry.task_id, (retry.attempt or 0) + 1):
                early = (retry.due_ns or 0) - (after.started_ns or 0)
                if after.kind in _ENDS and early > 0:
                    yield f"{who}: attempt {after.attempt} began {early} ns before it was due"


def _names(found: Evidence) -> Iterator[str]:
    for job in found.jobs.values():
        names = sorted((task_id, name) for _, task_id, name, _ in _recorded(job))
        if job.status is JobStatus.COMPLETED and names != EFFECTS:
            yield f"job {job.job_id} recorded the effects {names}"


def repeated(found: Evidence) -> Iterator[str]:
    """Yield a line for each recorded effect that was never done, or done again afterwards."""
    done: dict[str, list[tuple[str, int]]] = {}
    for key, token, known in found.effects:
        done.setdefault(key, []).append((token, known))
    for job in found.jobs.values():
        for seq, task_id, name, result in _recorded(job):
            key = f"{job.job_id}/{task_id}/{name}"
            if all(token != result for token, _ in done.get(key, ())):
                yield f"the effect {key} is recorded, and was never done"
            for token, known in done.get(key, ()):
                if token != result and known >= seq:
                    yield f"the effect {key} was done again after it was recorded"


def _recorded(job: JobState) -> list[tuple[int, str, str, Any]]:
    """Return the commit of each recorded effect, with its task, name and result."""
    return [
        (c.seq, str(c.task_id), str(c.detail["name"]), c.effect.result)
        for c in job.commits
        if c.effect is not None and c.detail is not None
    ]
