"""How an assertion about a flow fails: the problem, what was compared, the commits around it.

Laws:
- The first line says what is wrong, in the user's names and in exact virtual seconds.
- A failure fits on a screen: what is long is cut, and said to be.
- An error that ended what is told of is there in its own words, with its place.
"""

from __future__ import annotations

from textwrap import wrap
from typing import TYPE_CHECKING, Final

from pytest_routilux.places import seen_from_here
from routilux import CommitKind, ErrorInfo
from routilux.instants import seconds_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_routilux.watched import Seen
    from routilux import Commit

__all__ = ["cut", "error_text", "failure", "happened", "listed", "looked_at", "seconds", "short_id"]

_AROUND: Final = 3  # commits shown before and after the one that is marked
_LONGEST_LIST: Final = 8
_LONGEST_ID: Final = 16
_WIDEST: Final = 72  # with the margin of pytest a line of 80
_REQUESTS: Final = {
    CommitKind.RESUMED: "resumed",
    CommitKind.PAUSED: "paused",
    CommitKind.CANCELLED: "cancelled",
}


def failure(
    problem: str,
    lines: Sequence[tuple[bool, str, str]],
    seen: Seen,
    commit: Commit,
    look: str,
    *,
    several: bool,
    error: ErrorInfo | None = None,
) -> AssertionError:
    """Return the error: the problem, what was compared, the commits around, where to look.

    `lines` are (differs, name, text); of those that differ the first is marked. `error` is what
    ended the job; without it, that of the commit, if it ended a task.
    """
    parts = [problem, ""]
    marked = next((i for i, (differs, _, _) in enumerate(lines) if differs), None)
    first = max(0, min((marked or 0) - _LONGEST_LIST // 2, len(lines) - _LONGEST_LIST))
    shown = lines[first : first + _LONGEST_LIST]
    width = max((len(name) for _, name, _ in shown), default=0)
    for i, (_, name, text) in enumerate(shown, first):
        parts.append(cut(f"{'>' if i == marked else ' '} {name:<{width}}  {text}"))
    if len(lines) > len(shown):
        parts.append(f"  … {len(lines) - len(shown)} more")
    if lines:
        parts.append("")
    if several:
        parts.append(f"  job {seen.job_id}")
    parts += _timeline(seen.commits, commit)
    if error is None and commit.kind in (CommitKind.FAILED, CommitKind.DROPPED):
        error = commit.error
    if error is not None:
        parts += ["", *_in_full(error)]
    parts += ["", *looked_at(look)]
    return AssertionError("\n".join(parts))


def looked_at(look: str) -> list[str]:
    """Return the lines that say what to look at."""
    return _labelled("look at", look)


def _labelled(label: str, text: str) -> list[str]:
    return wrap(text, _WIDEST, initial_indent=f"{label:<7}  ", subsequent_indent=" " * 9)


def _in_full(error: ErrorInfo) -> list[str]:
    first, *rest = error_text(error).splitlines() or [""]
    lines = _labelled("error", first)
    for line in rest:
        lines += _labelled("", line)
    if len(lines) > _LONGEST_LIST:
        lines[_LONGEST_LIST - 1 :] = ["         …"]
    return lines if error.where is None else [*lines, f"raised   {seen_from_here(error.where)}"]


def _timeline(commits: Sequence[Commit], marked: Commit) -> list[str]:
    at = next(i for i, commit in enumerate(commits) if commit is marked)
    start = commits[0].at_ns
    shown = commits[max(0, at - _AROUND) : at + _AROUND + 1]
    rows = [("t, s", "", "what happened")]
    rows += [(seconds_text(c.at_ns - start), f"#{c.seq}", happened(c)) for c in shown]
    widest = [max(len(row[column]) for row in rows) for column in (0, 1)]
    marks = [" ", *(">" if commit is marked else " " for commit in shown)]
    return [
        cut(f"{mark} {time:>{widest[0]}}  {number:<{widest[1]}}  {text}")
        for mark, (time, number, text) in zip(marks, rows, strict=True)
    ]


def happened(commit: Commit) -> str:
    """Return in words what a commit tells."""
    kind = commit.kind
    if kind is CommitKind.START:
        root = commit.tasks[0]
        return f"the job starts with {root.routine_id}.{root.slot}"
    if commit.routine_id is None:
        return f"the job is {_REQUESTS.get(kind, kind.value)}"
    told = "" if commit.error is None else error_text(commit.error)
    text = f"{commit.routine_id} attempt {commit.attempt} "
    if kind is CommitKind.RETRY:
        text += f"fails, waits {seconds(commit.delay_ns or 0)} s: {told}"
    elif kind is CommitKind.DROPPED:
        text += f"fails, dropped as {(commit.detail or {})['as']}: {told}"
    elif kind is CommitKind.FAILED:
        text += f"fails for good: {told}"
    elif kind is CommitKind.CONFLICT:
        text += "conflicts, runs again"
    elif kind is CommitKind.EFFECT:
        text += f"records once({(commit.detail or {})['name']!r})"
    else:
        text += "ok"
    for number, emission in enumerate(commit.emissions):
        targets = [task.routine_id for task in commit.tasks if task.emission == number]
        text += f", {emission.event} -> {', '.join(targets) or 'out'}"
    return text


def error_text(error: ErrorInfo) -> str:
    """Return an error by the name of its class alone, without its module.

    >>> error_text(ErrorInfo("shop.errors.GatewayDown", "try 2"))
    'GatewayDown: try 2'
    """
    name = error.type.rpartition(".")[2]
    return f"{name}: {error.message}" if error.message else name


def short_id(job_id: str) -> str:
    """Return a job's id as a line has room for it: one that the engine has made is cut.

    >>> short_id("order-A7"), short_id("6483cf7c27cffd2c2c587a4bcbae9d52")
    ('order-A7', '6483cf7c…')
    """
    return job_id if len(job_id) <= _LONGEST_ID else f"{job_id[:8]}…"


def seconds(length: int) -> str:
    """Return a length as exact seconds, without zeros at the end.

    >>> seconds(675_000_000), seconds(2_000_000_000)
    ('0.675', '2')
    """
    return seconds_text(length, 9).rstrip("0").rstrip(".")


def listed(names: Sequence[str]) -> str:
    """Return names in a row, the first ones where they are many."""
    rest = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + rest


def cut(line: str) -> str:
    """Return a text as one line that fits on a screen."""
    line = " ".join(line.splitlines())
    return line if len(line) <= _WIDEST else f"{line[: _WIDEST - 1]}…"
