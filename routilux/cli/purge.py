"""`routilux purge`: deletes old jobs that have stopped.

Invariants:
- It deletes no job that is pending or running, unless the job is damaged and `--status damaged`
  selects such jobs: they can't be cancelled, and their age is unknown.
- `--dry-run` opens the store as a reader, and lists the jobs that it would delete.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from typing import TYPE_CHECKING, Final

from routilux.cli import humanize
from routilux.cli.jobs import job_count
from routilux.cli.open_store import change_store, read_store
from routilux.cli.terminal import cells, shortened
from routilux.clocks.durations import SECOND
from routilux.core.commits import JobStatus
from routilux.persist.admin import DAMAGED, Purge, purge
from routilux.persist.store import STOPPED
from routilux.timeline import plain

if TYPE_CHECKING:
    from routilux.cli.terminal import Page
    from routilux.persist.store import JobStore

_LEAST_FLOW: Final = 8  # columns
_UNITS: Final = {"s": 1, "min": 60, "h": 3_600, "d": 86_400, "w": 7 * 86_400}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `routilux purge`."""
    parser.add_argument(
        "--older-than",
        metavar="AGE",
        type=_age,
        required=True,
        help="only jobs whose last commit is older: a number and s, min, h, d or w, such as 30d",
    )
    parser.add_argument(
        "--status",
        metavar="STATUS",
        choices=[*STOPPED, DAMAGED],
        action="append",
        help=f"only jobs of this status, may be repeated: {', '.join(STOPPED)} (completed); or"
        f" {DAMAGED}: jobs of any age and status that can't be read",
    )
    parser.add_argument("--flow", metavar="FLOW", help="only the jobs of this flow")
    parser.add_argument(
        "--dry-run", action="store_true", help="delete nothing, and list what would be deleted"
    )


def purge_jobs(options: argparse.Namespace, now: int) -> Purge:
    """Delete the jobs that `options` selects, or only find them."""
    statuses = options.status or [JobStatus.COMPLETED.value]

    def found(store: JobStore) -> Purge:
        return purge(
            store,
            now - options.older_than,
            statuses=statuses,
            flow_id=options.flow,
            dry_run=options.dry_run,
        )

    work = read_store if options.dry_run else change_store
    return work(options.store, found, options.clock)


def purge_data(options: argparse.Namespace, found: Purge) -> dict[str, object]:
    """Return the members that `routilux purge --json` writes."""
    return {
        "dry_run": options.dry_run,
        "jobs": [
            {
                "job_id": entry.job_id,
                "flow_id": entry.flow_id,
                "status": entry.status,
                "updated_ns": at_ns,
            }
            for entry, at_ns in found.jobs
        ],
        "damaged": [{"job_id": name, "reason": str(why)} for name, why in found.damaged.items()],
    }


def show_purge(page: Page, options: argparse.Namespace, found: Purge, now: int) -> None:
    """Write the number of deleted jobs, or the jobs that would be deleted."""
    for entry, at_ns in found.jobs if options.dry_run else ():
        head = f"{entry.job_id}  flow "
        tail = f", {entry.status}"
        if at_ns is not None:
            tail += f", last commit {humanize.ago(at_ns, now)}"
        flow = entry.flow_id
        if page.width is not None:
            flow = shortened(flow, max(page.width - cells(plain(head + tail)), _LEAST_FLOW))
        page.line(head, flow, tail)
    done = "would delete" if options.dry_run else "deleted"
    counts = Counter(entry.status for entry, _ in found.jobs)
    each = ", ".join(f"{count:,} {status}" for status, count in sorted(counts.items()))
    page.line(f"{done} {job_count(len(found.jobs))}{': ' * bool(each)}{each}")


def _age(text: str) -> int:
    found = re.fullmatch(r"(\d{1,6})(s|min|h|d|w)", text)
    if found is None:
        raise argparse.ArgumentTypeError(
            f"must be a number and s, min, h, d or w, such as 30d, not {text!r}"
        )
    return int(found[1]) * _UNITS[found[2]] * SECOND
