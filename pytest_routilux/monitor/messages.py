"""How an assertion about a flow fails: the problem, what was compared, the commits around it.

Invariants:
- The first line says what is wrong, in the user's names and in exact virtual seconds.
- A failure fits on a screen: what is long is cut, and said to be.
- An error that ended what is told of is there in its own words, with its place.
"""

from __future__ import annotations

from textwrap import wrap
from typing import TYPE_CHECKING, Final

from pytest_routilux.frames import seen_from_here
from pytest_routilux.text import error_text, shorten
from routilux import CommitKind, ErrorInfo
from routilux.clocks.durations import seconds_text
from routilux.timeline import describe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_routilux.monitor.known_jobs import Seen
    from routilux import Commit

__all__ = ["WIDEST", "failure", "happened", "looked_at"]

_AROUND: Final = 3  # commits shown before and after the one that is marked
_LONGEST_LIST: Final = 8
WIDEST: Final = 72  # with the margin of pytest a line of 80


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
        parts.append(shorten(f"{'>' if i == marked else ' '} {name:<{width}}  {text}", WIDEST))
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
    return wrap(text, WIDEST, initial_indent=f"{label:<7}  ", subsequent_indent=" " * 9)


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
        shorten(f"{mark} {time:>{widest[0]}}  {number:<{widest[1]}}  {text}", WIDEST)
        for mark, (time, number, text) in zip(marks, rows, strict=True)
    ]


def happened(commit: Commit) -> str:
    """Return a commit in words, with its routine."""
    who = "" if commit.routine_id is None else f"{commit.routine_id} "
    return f"{who}{describe(commit)}"
