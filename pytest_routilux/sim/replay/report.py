"""Writes the report on a saved job that would go another way today.

Invariants:
- The order is that of other failures: the problem, the step, what differs, why, the fix, how much
  was tried.
- Names and lines are those of the user.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pytest_routilux.frames import seen_from_here
from pytest_routilux.text import count, listed, padded, shorten, width, wrapped

if TYPE_CHECKING:
    from pytest_routilux.sim.replay.judge import Difference, Replay

_COLUMNS: Final = (80, 100)
_LABEL: Final = 7
_MOST_ROWS: Final = 6
_MOST_CHANGES: Final = 3


def explain_difference(found: Difference, replay: Replay, others: int, columns: int) -> str:
    """Return the report on the first difference; `others` counts the other jobs with one."""
    least, most = _COLUMNS
    columns = min(max(columns, least), most)
    job, commit = found.job, found.commit
    kind = "[replay-differs]"
    head = f"A SAVED JOB GOES ANOTHER WAY: {commit.routine_id} of job {job.job_id}"
    head = shorten(head, columns - width(kind) - 2)
    where = seen_from_here(found.where) if found.where else ""
    lines = [
        f"{padded(head, columns - width(kind))}{kind}",
        "",
        *_labelled(
            "job", f"{job.job_id}, {job.status}, {job.seq} commits, of {found.place}", columns
        ),
        *_labelled(
            "step",
            f"task {commit.task_id} {commit.routine_id}, attempt {commit.attempt}, commit"
            f" #{commit.seq}" + (f"    {where}" if where else ""),
            columns,
        ),
        "",
        *_rows(found, columns),
        "",
    ]
    why = (
        "today's code got what was recorded: the payload, the attempt, ctx.state, ctx.shared, the"
        " results of once, ctx.random, ctx.uuid() and the time. It does something else with it"
    )
    if found.changes:
        changes = listed([change.strip() for change in found.changes], _MOST_CHANGES)
        why += f". The flow has changed: {changes}"
    lines += _labelled("why", why, columns)
    fix = (
        "a host resumes a job with today's code: keep the old behaviour for such"
        f" input{f' in {where}' if where else ''}, give the new one a slot of its own, or let"
        " the saved jobs end before you release it"
    )
    lines += _labelled("fix", fix, columns)
    differ = "differs" if not others else "differ"
    tried = (
        f"{replay.compared} run again; {1 + others} of {count(replay.jobs, 'job')} {differ}"
        f"{replay.left_out}"
    )
    return "\n".join(line.rstrip() for line in [*lines, *_labelled("tried", tried, columns)])


def _rows(found: Difference, columns: int) -> list[str]:
    rows = found.rows[:_MOST_ROWS]
    heads = ("recorded", "today")
    names = max([10, *(width(shorten(name, columns // 3, "both")) for name, _, _ in rows)])
    room = (columns - names - 9) // 2
    firsts = [shorten(was, room, "both") for _, was, _ in rows]
    column = max(map(width, [heads[0], *firsts]))
    lines = [f"    {'':<{names}}  {padded(heads[0], column)}   {heads[1]}"]
    for (name, _, is_), first in zip(rows, firsts, strict=True):
        head = (
            f"  > {padded(shorten(name, columns // 3, 'both'), names)}  {padded(first, column)}   "
        )
        lines.append(head + shorten(is_, columns - width(head), "both"))
    if len(found.rows) > _MOST_ROWS:
        lines.append(f"  > … {len(found.rows) - _MOST_ROWS} more")
    if found.equal:
        lines.append(shorten(f"    {padded('equal', names)}  {', '.join(found.equal)}", columns))
    return lines


def _labelled(label: str, text: str, columns: int) -> list[str]:
    lines = wrapped(text, columns - _LABEL, 6)
    return [f"{label if i == 0 else '':<{_LABEL}}{line}" for i, line in enumerate(lines)]
