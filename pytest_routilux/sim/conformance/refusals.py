"""Damages saved commits and jobs, and checks that the engine refuses each.

Invariants:
- A damage changes one thing that the machine could not have written: a number, a status, a name, a
  field, a commit that is missing or doubled.
- Reading it raises `SavedStateError` and nothing else.
- Commits and jobs of one form are damaged once in a process: the answer is always the same.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from pytest_routilux.text import error_text
from routilux import Commit, CommitKind, JobState, JobStatus, SavedStateError, codec
from routilux.core.replay import follow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_OF_ATTEMPTS: Final = tuple(kind for kind in CommitKind if kind.ends_attempt)
_OTHER_TYPES: Final = {int: "x", str: 7, list: {}, dict: [], bool: "x", float: "x"}
_COUNTS: Final = ("seq", "started_ns", "updated_ns", "recoveries")
_COUNTED: Final = ("seq", "attempt", "worker", "delay_ns")
_LISTS: Final = ("outputs", "dropped", "pending_tasks", "commits", "shape")
_known: Final[set[tuple[object, ...]]] = set()  # the engine does not change within a process


def accepted_corruption(commits: Sequence[Commit], states: Sequence[JobState]) -> str | None:
    """Return which damage the engine accepts, or how it fails; None if it refuses each.

    `states[n]` is the job after n commits.
    """
    for index, commit in enumerate(commits):
        job = states[index]
        data = json.loads(commit.dumps())
        if _is_known(job.status, bool(job._failed), commit.status, *data):
            continue
        for damage, bad in _damaged_commits(job, commit):
            found = _reads(partial(follow, job.copy(), bad, "$"))
            if found is not None:
                return f"commit {commit.seq} ({commit.kind.value}) {damage}{found}"
        for damage, entry in _damaged_fields(data):
            found = _reads(partial(_load, entry))
            if found is not None:
                return (
                    f"the saved form of commit {commit.seq} ({commit.kind.value}) {damage}{found}"
                )
    job = states[-1]
    data = job.serialize()
    if _is_known(job.status, *(name for name, value in data.items() if value)):
        return None
    for damage, entry in _damaged_jobs(data):
        found = _reads(partial(JobState.deserialize, entry))
        if found is not None:
            return f"the saved form of the job after commit {job.seq} {damage}{found}"
    return None


def _is_known(*form: object) -> bool:
    """Return whether a commit or a job of this form was damaged before."""
    known = form in _known
    _known.add(form)
    return known


def _load(entry: dict[str, Any]) -> Commit:
    return Commit.load(codec.decode(entry), "$")


def _reads(read: Callable[[], object]) -> str | None:
    """Return None if damaged data is refused, or what happens instead."""
    try:
        read()
    except SavedStateError:
        return None
    except Exception as error:
        return f" raises {error_text(error)}, which is no SavedStateError"
    return " is accepted"


def _damaged_commits(job: JobState, commit: Commit) -> Iterator[tuple[str, Commit]]:
    """Yield commits that can't follow, each with what is wrong."""
    kind = commit.kind
    yield "with the number of a later one", replace(commit, seq=commit.seq + 1)
    yield "with the number of an earlier one", replace(commit, seq=commit.seq - 1)
    if job.seq:
        yield "before the commit that it follows", replace(commit, at_ns=job.updated_ns - 1)
        yield "as the start of a job", replace(commit, kind=CommitKind.START)
    else:
        yield "as a resume", replace(commit, kind=CommitKind.RESUMED, detail={"recoveries": 0})
        yield "without its detail", replace(commit, detail=None)
    if commit.started_ns is not None:
        yield "that starts after its end", replace(commit, started_ns=commit.at_ns + 1)
    if commit.due_ns is not None:
        yield "with another due time", replace(commit, due_ns=commit.due_ns + 1)
        yield "without its due time", replace(commit, due_ns=None, delay_ns=None)
    if commit.task_id is not None:
        yield "of a task that is not pending", replace(commit, task_id="0.77")
        yield "of another routine", replace(commit, routine_id="?")
        if kind is not CommitKind.INTERRUPTED:
            yield "of the attempt before", replace(commit, attempt=commit.attempt - 1)
            yield "of the attempt after", replace(commit, attempt=commit.attempt + 1)
    if kind in (CommitKind.FAILED, CommitKind.DROPPED):
        yield "without its error", replace(commit, error=None)
    if kind is CommitKind.DROPPED:
        yield "that drops a task as done", replace(commit, detail={"as": "done"})
    if kind is CommitKind.EFFECT:
        yield "without its effect", replace(commit, effect=None)
    for task in commit.tasks[:1]:
        yield "that creates a task twice", replace(commit, tasks=(*commit.tasks, task))
        unknown = replace(task, routine_id="?")
        yield (
            "that creates a task of no routine",
            replace(commit, tasks=(*commit.tasks[1:], unknown)),
        )
    pending = next((t for t in job._pending if t != commit.task_id), None)
    if pending is not None and commit.tasks:
        known = (*commit.tasks[:-1], replace(commit.tasks[-1], task_id=pending))
        yield "that creates a task which exists", replace(commit, tasks=known)
    wrong = [JobStatus.PAUSED, JobStatus.CANCELLED]
    if kind in _OF_ATTEMPTS and not job._failed and kind is not CommitKind.FAILED:
        completes = commit.status is JobStatus.COMPLETED
        wrong.append(JobStatus.RUNNING if completes else JobStatus.COMPLETED)
        wrong += [JobStatus.FAILED, JobStatus.PENDING]
    if kind is not CommitKind.PAUSED and kind is not CommitKind.CANCELLED:
        for status in wrong:
            if status is not commit.status:
                yield f"that makes the job {status.value}", replace(commit, status=status)


def _damaged_fields(data: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield saved forms with one field that is missing, unknown or of another type."""
    yield "with an unknown field", {**data, "surprise": 1}
    for name in ("seq", "kind", "at_ns", "status"):
        yield f"without {name}", {key: value for key, value in data.items() if key != name}
    for name, value in data.items():
        yield f"with another type of {name}", {**data, name: _OTHER_TYPES[type(value)]}
        if name in _COUNTED:
            yield f"with {name} -1", {**data, name: -1}
    yield "of no kind", {**data, "kind": "dreamt"}
    yield "with no status", {**data, "status": "asleep"}


def _damaged_jobs(data: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield saved jobs that do not match their commits."""
    yield "with an unknown field", {**data, "surprise": 1}
    for name, value in data.items():
        yield f"without {name}", {key: other for key, other in data.items() if key != name}
        if value is not None:
            yield f"with another type of {name}", {**data, name: _OTHER_TYPES[type(value)]}
    for name in _COUNTS:
        yield f"with {name} increased", {**data, name: data[name] + 1}
    for name in _LISTS:
        if data[name]:
            if name != "commits" or len(data[name]) > 1:  # without any it has a history_limit
                yield f"without the last of {name}", {**data, name: data[name][:-1]}
            yield f"with the last of {name} twice", {**data, name: [*data[name], data[name][-1]]}
    yield (
        "with another status",
        {
            **data,
            "status": "failed" if data["status"] == "completed" else "completed",
        },
    )
    yield "with a shared key more", {**data, "shared_data": {**data["shared_data"], "?": 1}}
    for name, state in data["routine_states"].items():
        for part, value in state.items():
            if type(value) is int:
                states = {**data["routine_states"], name: {**state, part: value + 1}}
                yield f"with {part} of {name} increased", {**data, "routine_states": states}
    for index, task in enumerate(data["pending_tasks"]):
        for part, value in task.items():
            if type(value) is int:
                tasks = [*data["pending_tasks"]]
                tasks[index] = {**task, part: value + 1}
                yield f"with {part} of a pending task increased", {**data, "pending_tasks": tasks}
