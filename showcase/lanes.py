"""A chart of the workers of a job: a lane for each worker, drawn from the commits.

Invariants:
- Every block is an attempt's [started, finished), from commits; between blocks the worker is free.
- A wait for a retry is in no lane, because it occupies no worker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.text import Text

from routilux import CommitKind
from routilux.clocks.durations import seconds_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console, ConsoleOptions, RenderResult

    from routilux import Commit, JobState

__all__ = ["Lanes", "most_at_once", "worked"]

_STYLES: Final = {
    CommitKind.DONE: "black on green",
    CommitKind.RETRY: "black on yellow",
    CommitKind.CONFLICT: "black on magenta",
    CommitKind.DROPPED: "white on red",
    CommitKind.FAILED: "white on red",
}
_MARKS: Final = {
    CommitKind.DONE: "",
    CommitKind.RETRY: "!",
    CommitKind.CONFLICT: "~",
    CommitKind.DROPPED: "×",
    CommitKind.FAILED: "×",
}
_LEGEND: Final = "! retried · ~ conflict · × given up · waits hold no worker"
_HEAD: Final = 11
_LONGEST: Final = 84


def worked(job: JobState) -> list[Commit]:
    """Return the commits that end an attempt which took time."""
    return [
        commit
        for commit in job.commits
        if commit.kind in _STYLES
        and commit.started_ns is not None
        and commit.started_ns < commit.at_ns
    ]


def most_at_once(job: JobState) -> int:
    """Return how many attempts overlapped at the busiest instant."""
    edges = [(c.started_ns, 1) for c in worked(job)] + [(c.at_ns, -1) for c in worked(job)]
    busiest = now = 0
    for _, change in sorted(edges):
        now += change
        busiest = max(busiest, now)
    return busiest


class Lanes:
    """One line for each worker; `label` names the block of a commit, shortened to fit."""

    def __init__(self, job: JobState, label: Callable[[Commit], str]) -> None:
        self._job = job
        self._label = label

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        attempts, start = worked(self._job), self._job.started_ns
        length = max(commit.at_ns for commit in attempts) - start
        width = min(options.max_width - _HEAD, _LONGEST)

        def column(instant: int) -> int:
            return (instant - start) * width // length

        for worker in sorted({commit.worker for commit in attempts}):
            line = Text(f"{f'worker {worker}':{_HEAD}}", style="bold")
            at = 0
            for commit in attempts:
                if commit.worker == worker and commit.started_ns is not None:
                    begin, end = column(commit.started_ns), column(commit.at_ns)
                    line.append("·" * (begin - at), style="dim")
                    block = _block(commit, self._label(commit), end - begin)
                    line.append(block, style=_STYLES[commit.kind])
                    at = end
            line.append("·" * (width - at), style="dim")
            yield line
        ruler = f"{'0 s':<{width // 2}}{seconds_text(length, 2) + ' s':>{width - width // 2}}"
        yield Text(f"{'':{_HEAD}}{ruler}", style="dim")
        yield Text(f"{'':{_HEAD}}{_LEGEND}", style="dim")


def _block(commit: Commit, label: str, width: int) -> str:
    if width < 2:
        return "▌"[:width]
    inner = f"{label}{_MARKS[commit.kind]}"[: width - 1]
    return f"▏{inner:<{width - 1}}"
