"""Finds the first commit that differs between two jobs.

Invariants:
- Instants are compared as lengths of time since the start of the job.
- The advice follows from the parts of the commit that differ, and names the user's routine.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Final

from pytest_routilux.monitor.messages import commit_row, commit_table, commit_words, look_at
from routilux.clocks.durations import seconds_text
from routilux.codec.equality import same_value

if TYPE_CHECKING:
    from routilux import Commit, JobState

_AROUND: Final = 12


def divergence(left: JobState, right: JobState, *, whole: bool) -> list[str]:
    """Describe the first commit that differs between two jobs."""
    ours, theirs = left.commits, right.commits
    at = next(
        (
            i
            for i, (a, b) in enumerate(zip(ours, theirs, strict=False))
            if not same_value(_since(a, left), _since(b, right))
        ),
        min(len(ours), len(theirs)),
    )
    pair = [commits[at] if at < len(commits) else None for commits in (ours, theirs)]
    shown = pair[0] or pair[1]
    if shown is None:
        return look_at(_look_elsewhere(left, right))
    lines = [f"first commit that differs: #{shown.seq}"]
    for side, commit, job in zip(("left ", "right"), pair, (left, right), strict=True):
        text = "no commit"
        if commit is not None:
            text = f"{seconds_text(commit.at_ns - job.started_ns)}  {commit_words(commit)}"
        lines.append(f"  {side}  {text}")
    lines += look_at(_look(pair[0], pair[1], left, right))
    if not whole:  # else a table of commits is added
        return lines
    rows = [("", "t (s)", "", "what happened")]
    rows += [commit_row("both", c, left.started_ns) for c in ours[max(0, at - _AROUND) : at]]
    for side, job in (("left", left), ("right", right)):
        rows += [commit_row(side, c, job.started_ns) for c in job.commits[at : at + _AROUND]]
    return [*lines, "", *commit_table(rows)]


def _since(commit: Commit, job: JobState) -> Commit:
    start = job.started_ns
    instants = {
        name: value - start
        for name in ("at_ns", "started_ns", "due_ns")
        if (value := getattr(commit, name)) is not None
    }
    return replace(commit, **instants)


def _look(ours: Commit | None, theirs: Commit | None, left: JobState, right: JobState) -> str:
    if left.shape != right.shape:
        return "the flows: these jobs ran on two different graphs"
    if ours is None or theirs is None:
        job, side = (left, "left") if ours is None else (right, "right")
        return f"why the {side} job has no more commits: it is {job.status.value}"
    whose = ours.routine_id or theirs.routine_id or "the job"
    if ours.routine_id != theirs.routine_id or ours.task_id != theirs.task_id:
        return "the order in which tasks ran: each job ran a different task here"
    failed = ours.error or theirs.error
    if failed is not None and not same_value(ours.error, theirs.error):
        file = (failed.where or "").replace("\\", "/").rpartition("/")[2]
        return f"the error of {whose}{f', raised at {file}' if file else ''}"
    differ = {
        field.name
        for field in fields(ours)
        if not same_value(
            getattr(_since(ours, left), field.name), getattr(_since(theirs, right), field.name)
        )
    }
    for names, look in (
        ({"delay_ns"}, f"retry_delay and retry_backoff of {whose}'s ErrorHandler"),
        ({"emissions", "tasks"}, f"the arguments of emit() in {whose}'s handler"),
        ({"state"}, f"what {whose} writes to ctx.state"),
        ({"shared"}, f"what {whose} writes to ctx.shared"),
        ({"effect"}, f"what ctx.once() of {whose} records"),
        ({"at_ns", "started_ns"}, f"how long {whose} takes, and what it waits for"),
    ):
        if differ & names:
            return look if ours.seq > 1 else "the params that each job was started with"
    return f"{', '.join(sorted(differ))} of commit #{ours.seq}"


def _look_elsewhere(left: JobState, right: JobState) -> str:
    # All commits are equal.
    if left.commits and right.commits:
        if left.started_ns != right.started_ns:
            return "when each job started; all times after the start are equal"
        if left.job_id != right.job_id:
            return "job_id: without job_id=..., each execute() makes a new one"
    return "code that changed a job directly: the commits are equal or not kept"
