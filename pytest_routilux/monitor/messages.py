"""The texts of failed assertions.

Invariants:
- The first line says what is wrong, in the user's names and in exact virtual seconds.
- A text fits on one screen: a list or line that is too long is shortened and has a `…`.
- The error that ended a task or the job is shown with its whole message and the line that raised
  it.
- Waits are compared as integer nanoseconds, the planned wait and the real one. A wait that has not
  ended has no real one and is judged by its plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import wrap
from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_routilux.frames import seen_from_here
from pytest_routilux.text import count, error_text, seconds, shorten
from routilux import CommitKind, ErrorInfo
from routilux.clocks.durations import seconds_text
from routilux.timeline import describe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_routilux.monitor.known_jobs import KnownJob
    from routilux import Commit, Emission, Retry

_AROUND: Final = 3  # commits shown before and after the one that is marked
_LONGEST_LIST: Final = 8
WIDEST: Final = 72  # with the margin of pytest a line of 80


# --- whole texts ----------------------------------------------------------------------------------


def assertion_error(
    problem: str,
    lines: Sequence[tuple[bool, str, str]],
    jobs: Sequence[KnownJob],
    at: tuple[KnownJob, Commit],
    look: str,
    error: ErrorInfo | None = None,
) -> AssertionError:
    """Return the `AssertionError` for a failed assertion about `jobs`.

    `lines` are (differs, name, text); the first line that differs is marked. `at` is the commit
    that is marked in the timeline, `error` what ended the job, and `look` the advice.
    """
    known, commit = at
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
    if len(jobs) > 1:
        parts.append(f"  job {known.job.job_id}")
    parts += _timeline(known.commits, commit)
    if error is None and commit.kind in (CommitKind.FAILED, CommitKind.DROPPED):
        error = commit.error
    if error is not None:
        parts += ["", *_in_full(error)]
    parts += ["", *look_at(look)]
    return AssertionError("\n".join(parts))


def look_at(look: str) -> list[str]:
    """Return the advice `look` as lines with the label `look at`."""
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
    rows = [(" ", "t (s)", "", "what happened")]
    rows += [commit_row(">" if c is marked else " ", c, start) for c in shown]
    return [shorten(line, WIDEST) for line in commit_table(rows, " ")]


def commit_row(mark: str, commit: Commit, start_ns: int) -> tuple[str, str, str, str]:
    """Return a commit as a row for `commit_table`."""
    return mark, seconds_text(commit.at_ns - start_ns), f"#{commit.seq}", commit_words(commit)


def commit_table(rows: Sequence[tuple[str, str, str, str]], gap: str = "  ") -> list[str]:
    """Format `rows` as lines with aligned columns."""
    first, second, third = (max(len(row[column]) for row in rows) for column in range(3))
    return [
        f"{mark:<{first}}{gap}{time:>{second}}  {number:<{third}}  {text}"
        for mark, time, number, text in rows
    ]


def commit_words(commit: Commit) -> str:
    """Describe a commit in words, with its routine's name."""
    routine = "" if commit.routine_id is None else f"{commit.routine_id} "
    return f"{routine}{describe(commit)}"


# --- emissions ------------------------------------------------------------------------------------


class Emitted(NamedTuple):
    """An emission, and its difference from the expected data."""

    known: KnownJob
    commit: Commit
    emission: Emission
    difference: str | None

    def __str__(self) -> str:
        at = seconds(self.commit.at_ns - self.known.commits[0].at_ns)
        data = ", ".join(f"{name}={value!r}" for name, value in self.emission.payload.items())
        return f"at {at} s  {self.emission.event}({data})"


def payload_difference(expected: object, actual: object, path: str = "data") -> str | None:
    """Return the first difference of two payloads; None if equal.

    Fields that `expected` does not name may have any value, in nested dicts too.

    >>> payload_difference({"order": {"id": 1}}, {"order": {"id": 2, "total": 3}})
    "data['order']['id']: expected 1, is 2"
    """
    if isinstance(expected, Mapping) and isinstance(actual, Mapping):
        for key, value in expected.items():
            inner = f"{path}[{key!r}]"
            if key not in actual:
                return f"{inner}: expected {value!r}, is missing"
            found = payload_difference(value, actual[key], inner)
            if found is not None:
                return found
        return None
    return None if expected == actual else f"{path}: expected {expected!r}, is {actual!r}"


# --- retries --------------------------------------------------------------------------------------


def first_wrong_retry(
    task: str, retries: Sequence[Retry], times: int | None, wanted: Sequence[int] | None
) -> tuple[str, int, str] | None:
    """Return (problem, index, advice) for the first wrong retry; None if none.

    The advice has `{}` in place of the routine's name.
    """
    for at, (retry, delay) in enumerate(zip(retries, wanted or (), strict=False)):
        planned, waited = retry.delay_ns, retry.actual_ns
        if planned == delay and waited in (None, delay):
            continue
        problem = f"retry {at + 1} of {task}: expected {seconds(delay)} s"
        look = "retry_delay, retry_backoff and jitter of {}'s ErrorHandler"
        if waited is None:
            return f"{problem}, planned {seconds(planned)} s", at, look
        problem += f", waited {seconds(waited)} s"
        if waited == planned:
            return problem, at, look
        late = "what kept {}, or all workers, busy when the wait ended"
        return f"{problem}, planned {seconds(planned)} s", at, late
    if times is not None and len(retries) != times:
        problem = f"{task}: expected {retries_text(times)}, made {len(retries)}"
        look = "max_retries, deadline and retryable_exceptions of {}'s ErrorHandler"
        return problem, min(times, len(retries)), look
    return None


def retry_text(retries: Sequence[Retry], wanted: Sequence[int] | None, at: int) -> str:
    """Describe the expected, planned and real wait before a retry."""
    parts = []
    if wanted is not None:
        parts.append(f"expected {seconds(wanted[at])} s" if at < len(wanted) else "not expected")
    if at >= len(retries):
        return ", ".join([*parts, "was not made"])
    actual = retries[at].actual_ns
    parts.append(f"planned {seconds(retries[at].delay_ns)} s")
    parts.append("still waits" if actual is None else f"waited {seconds(actual)} s")
    return ", ".join(parts)


def retries_text(times: int | None) -> str:
    """Return a number of retries as text.

    >>> retries_text(None), retries_text(1), retries_text(4)
    ('a retry', '1 retry', '4 retries')
    """
    return "a retry" if times is None else count(times, "retry", "retries")
