"""What a job did, line by line, as a rich table: emissions, deliveries, failed attempts, changes.

Laws:
- The lines are the engine's (`routilux.timeline`); here they only get their looks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from routilux.core.state import JobState
from routilux.monitor import ExecutionMonitor
from routilux.timeline import STATUS_STYLES, job_lines

if TYPE_CHECKING:
    from routilux.core.commits import Commit

__all__ = ["STATUS_STYLES", "monitor_of", "stories", "timeline"]


def monitor_of(source: JobState | ExecutionMonitor) -> ExecutionMonitor:
    """Return a monitor: the one given, or the one that would have watched the job."""
    return ExecutionMonitor.of(source) if isinstance(source, JobState) else source


def stories(monitor: ExecutionMonitor) -> dict[str, list[Commit]]:
    """Return the commits of each job by job id, in their order."""
    jobs: dict[str, list[Commit]] = {}
    for job_id, commit in monitor.commits:
        jobs.setdefault(job_id, []).append(commit)
    return jobs


def timeline(source: JobState | ExecutionMonitor) -> Table:
    """Return the story of a job, or of each job that a monitor has watched."""
    monitor = monitor_of(source)
    jobs = stories(monitor)
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for job_id, commits in jobs.items():
        if len(jobs) > 1:
            table.add_row("🧵", Text(job_id, style="bold"))
        start = source.started_ns if isinstance(source, JobState) else commits[0].at_ns
        for line in job_lines(monitor, job_id, commits, start):
            text = Text.assemble(*line.parts)
            if line.cut:
                text.no_wrap, text.overflow = True, "ellipsis"
            mark = Text.assemble(f"{line.mark} ", (line.clock, "dim")) if line.mark else ""
            table.add_row(mark, text)
    if not jobs:
        table.add_row("", Text("nothing has happened", style="dim"))
    return table
