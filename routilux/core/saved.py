"""Converts a job to its saved form and back.

Invariants:
- The state of a job that was read equals the fold of its commits.
- Reading accepts only jobs that the machine could have made, and refuses others with their path.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, TypeVar

from routilux import codec
from routilux.core import commit_rows
from routilux.core.commits import Commit, JobStatus
from routilux.core.fold import FoldedJob
from routilux.core.gathering import check_gathers, gathers_in, link
from routilux.core.parts import (
    Output,
    PendingTask,
    RoutineState,
    dropped_data,
    load_dropped,
    load_entries,
)
from routilux.core.replay import check_unfolded, replay
from routilux.core.wire.errors import error_data, load_error
from routilux.core.wire.ranges import in_range, instant, payload, texts
from routilux.errors import CorruptStateError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Job = TypeVar("Job", bound=FoldedJob)


def job_members(job: FoldedJob, *, history: bool) -> dict[str, object]:
    """Return the fields of a job's saved form by name.

    A field that is an iterator yields the JSON texts of an array's entries.
    """
    commits = commit_rows.write(job._commits if history else (), job.started_ns, "$.commits")
    stops: dict[str, object] = {}
    if job.stops:
        stops["stops"] = list(job.stops)
    if job.interruption is not None:
        stops["interruption"] = error_data(job.interruption)
    if job.interrupted_task is not None:
        stops["interrupted_task"] = job.interrupted_task
    return {
        "job_id": job.job_id,
        "flow_id": job.flow_id,
        "status": job.status.value,
        "seq": job.seq,
        "started_ns": job.started_ns,
        "updated_ns": job.updated_ns,
        "recoveries": job.recoveries,
        **stops,
        "shape": list(job.shape),
        "routine_states": codec.encoded_object(
            {
                routine_id: state._serialize(f"$.routine_states[{routine_id!r}]")
                for routine_id, state in job.routine_states.items()
            }
        ),
        "shared_data": codec.encode(job.shared_data, "$.shared_data"),
        "pending_tasks": _saved("$.pending_tasks", job.pending_tasks),
        "outputs": _saved("$.outputs", job.outputs),
        "dropped": (
            codec.dumps(dropped_data(task, f"$.dropped[{i}]")) for i, task in enumerate(job.dropped)
        ),
        "error": None if job.error is None else error_data(job.error),
        **({"commit_forms": iter(commits.forms)} if commits.forms else {}),
        "commits": commits.commits,
    }


def load(new: Callable[[str], Job], data: object, path: str) -> Job:
    """Make a job from decoded data; `new(id)` makes an empty job.

    Each commit replaces its data in the list. Otherwise the garbage collector would visit twice as
    many objects, which takes longer than all the rest.
    """
    f = codec.check_fields(data, path, _JOB_FIELDS, _OPTIONAL_FIELDS)
    job = new(f["job_id"])
    job.flow_id = f["flow_id"]
    try:
        job.status = JobStatus(f["status"])
    except ValueError as error:
        raise CorruptStateError(f"{path}.status", str(error)) from None
    job.seq = in_range(f["seq"], f"{path}.seq")
    job.started_ns = instant(f["started_ns"], f"{path}.started_ns")
    job.updated_ns = instant(f["updated_ns"], f"{path}.updated_ns")
    job.recoveries = in_range(f["recoveries"], f"{path}.recoveries")
    if "stops" in f:
        job.stops = tuple(texts(f["stops"], f"{path}.stops"))
    if "interruption" in f:
        job.interruption = load_error(f["interruption"], f"{path}.interruption")
    job.interrupted_task = f.get("interrupted_task")
    job.shape = tuple(texts(f["shape"], f"{path}.shape"))
    job.routine_states = {
        routine_id: RoutineState._load(entry, f"{path}.routine_states[{routine_id!r}]")
        for routine_id, entry in payload(f["routine_states"], f"{path}.routine_states").items()
    }
    job._shared = payload(f["shared_data"], f"{path}.shared_data")
    job._gathers = gathers_in(job.shape)
    gathered: dict[str, int] = {}
    for i, entry in enumerate(f["pending_tasks"]):
        pending = PendingTask._load(entry, f"{path}.pending_tasks[{i}]")
        if pending.gathering is not None:
            gathered[pending.task_id] = i
        if pending.task_id in job._pending:
            raise CorruptStateError(f"{path}.pending_tasks[{i}].task_id", "is the id of two tasks")
        job._pending[pending.task_id] = pending
        job._waiting[pending.task_id] = None
        if pending.failed:
            job._failed[pending.task_id] = None
        elif pending.reports:
            job._reports[pending.task_id] = None
    job.outputs = [
        Output._load(entry, f"{path}.outputs[{i}]") for i, entry in enumerate(f["outputs"])
    ]
    job.dropped = [
        load_dropped(entry, f"{path}.dropped[{i}]") for i, entry in enumerate(f["dropped"])
    ]
    if gathered or any(task.task.keeps for task in job._pending.values()):
        job._gathers = True
        _link(job, gathered, f["pending_tasks"], f"{path}.pending_tasks")
    job.error = None if f["error"] is None else load_error(f["error"], f"{path}.error")
    commits = f["commits"]
    entries = commit_rows.expand(
        commits, f.get("commit_forms", []), job.seq - len(commits) + 1, job.started_ns, path
    )
    for i, (place, entry) in enumerate(entries):
        commits[i] = Commit.load(entry, place)
    job._commits = commits
    _check(job, path)
    return job


def _link(
    job: FoldedJob, gathered: dict[str, int], saved: Sequence[dict[str, Any]], path: str
) -> None:
    dropped = {task.task_id: task for task in job.dropped}
    entries = {
        task_id: load_entries(saved[i]["gathering"], dropped, f"{path}[{i}].gathering")
        for task_id, i in gathered.items()
    }
    link(job._pending, entries, path)
    check_gathers(job._pending, path)


def _check(job: FoldedJob, path: str) -> None:
    """Check that a loaded job equals the result of replaying its commits."""
    commits = job._commits
    if [commit.seq for commit in commits] != list(range(job.seq - len(commits) + 1, job.seq + 1)):
        raise CorruptStateError(
            f"{path}.commits", "must be numbered without a gap, and end at the job's seq"
        )
    if len(commits) < job.seq:
        check_unfolded(job, path)  # it has a history_limit
        return
    folded = FoldedJob(job.job_id)
    replay(folded, ((f"{path}.commits[{i}]", commit) for i, commit in enumerate(commits)))
    name = folded._first_difference(job)
    if name is not None:
        shown = name.removeprefix("_").replace("pending", "pending_tasks")
        raise CorruptStateError(f"{path}.{shown}", "does not match the job's commits")


def _saved(path: str, parts: Sequence[PendingTask | Output]) -> Iterator[str]:
    return (codec.dumps(part._serialize(f"{path}[{i}]")) for i, part in enumerate(parts))


_JOB_FIELDS: Final[codec.Fields] = {
    **dict.fromkeys(("job_id", "flow_id", "status"), str),
    **dict.fromkeys(("seq", "started_ns", "updated_ns", "recoveries"), int),
    **dict.fromkeys(("shape", "pending_tasks", "outputs", "dropped", "commits"), list),
    **dict.fromkeys(("routine_states", "shared_data"), dict),
    "error": (dict, type(None)),
}
_OPTIONAL_FIELDS: Final[codec.Fields] = {
    **dict.fromkeys(("stops", "commit_forms"), list),
    "interruption": dict,
    "interrupted_task": str,
}
