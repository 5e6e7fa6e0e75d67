"""Judge of the readers of saved data: raises `AssertionError` where one breaks an invariant.

Invariants:
- A reader raises nothing but `SavedStateError`, with a place, a reason and a text of limited
  length.
- Accepted data is what was written, or is consistent: written again it reads the same, facts that
  it repeats agree, and the engine resumes it without breaking a rule of its own.
- Reading costs time and memory in proportion to the size of the data.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from routilux import (
    ExecutionMonitor,
    FakeClock,
    IllegalTransitionError,
    JobState,
    JobStatus,
    MemoryStore,
    RoutiluxError,
    Runtime,
    SavedState,
    SavedStateError,
)
from routilux.clocks.durations import from_ns
from tests.fuzz.mutants import Document, Rows, rows_of
from tests.persist.orders import KEY

LONGEST_TEXT: Final = 4_600  # characters of an error
MB: Final = 1024 * 1024
# The limits of processor time (per mutant, per byte) and memory (per mutant, per byte, per value).
# The time is twice what is promised, since other programs share the processor's caches.
SECONDS: Final = (0.3, 1.0 / MB)
MEMORY: Final = (64 * MB, 8, 200)
_REPEATED: Final = ("saved_at", "saved_at_iso", "retry_count", "execution_history_count")
_MEMBER: Final = re.compile(r"\$")
_ROW: Final = re.compile(r"\$\.job-1\[[1-9]\d*\]")
_STATUS: Final = Path("/proc/self/status")
_CLEAR: Final = Path("/proc/self/clear_refs")


@dataclass(slots=True)
class Tally:
    """The number of mutants with each outcome."""

    counts: Counter[str] = field(default_factory=Counter)
    places: Counter[str] = field(default_factory=Counter)


def judge(mutant: Document | Rows, tally: Tally) -> None:
    """Read a mutant; raises `AssertionError` where an invariant is broken."""
    before = _peak(reset=True)
    found, refusal, seconds = _timed(mutant)
    memory = max(_peak() - before, 0)
    kind = "row" if isinstance(mutant, Rows) else mutant.seal
    tally.counts[kind] += 1
    if refusal is None:
        tally.counts[f"{kind}: {'accepted' if mutant.is_changed else 'unchanged'}"] += 1
    cost = (1, mutant.size, mutant.values)
    for _ in range(2):  # other programs may have slowed the first reading down
        if seconds > _sum(SECONDS, cost):
            seconds = min(seconds, _timed(mutant)[2])
    assert seconds <= _sum(SECONDS, cost), f"it took {seconds:.2f} s for {mutant.size:,} bytes"
    assert memory <= _sum(MEMORY, cost), f"it took {memory / MB:.0f} MB for {mutant.size:,} bytes"
    if refusal is not None:
        tally.places[type(refusal).__name__] += 1
        place = _ROW if isinstance(mutant, Rows) else _MEMBER
        assert place.match(refusal.path), f"the refusal names no place: {refusal!r}"
        assert refusal.reason, "the refusal names no reason"
        length = len(str(refusal))
        assert length <= LONGEST_TEXT, f"the refusal is {length:,} characters long"
        return
    if isinstance(found, SavedState):
        assert isinstance(mutant, Document)
        if mutant.seal == "stale":
            assert mutant.text.rstrip(b"\n") == mutant.original.rstrip(b"\n"), "damage was accepted"
        read, written = json.loads(mutant.text), json.loads(found.to_bytes())
        for name in _REPEATED:
            assert written[name] == read[name], f"{name} differs from the job's"
        _check_document(found)
    elif isinstance(found, JobState):
        _check_job(found)
        assert isinstance(mutant, Rows)
        assert not mutant.is_damaged, "damage was accepted"
        assert found == _load(rows_of(found), found.job_id)


def _timed(
    mutant: Document | Rows,
) -> tuple[SavedState | JobState | None, SavedStateError | None, float]:
    """Return what a mutant is read as, or its refusal, and the processor time of this thread."""
    begun = time.thread_time()
    try:
        found, refusal = _read(mutant), None
    except SavedStateError as error:
        found, refusal = None, error.with_traceback(None)
    return found, refusal, time.thread_time() - begun


def _sum(prices: tuple[float, ...], amounts: tuple[int, ...]) -> float:
    return sum(price * amount for price, amount in zip(prices, amounts, strict=False))


def _read(mutant: Document | Rows) -> SavedState | JobState:
    if isinstance(mutant, Rows):
        return _load(mutant.rows, "job-1")
    return SavedState.from_bytes(
        mutant.text,
        verify=mutant.seal != "unverified",
        key=KEY if mutant.seal == "signed" else None,
    )


class _Given(MemoryStore):
    """A store that returns the given rows unchecked."""

    def __init__(self, rows: Sequence[bytes]) -> None:
        super().__init__()
        self.given = list(rows)

    def rows(self, job_id: str, after: int = 0) -> list[bytes]:
        return self.given[after:]


def _load(rows: Sequence[bytes], job_id: str) -> JobState:
    return Runtime(store=_Given(rows)).load(job_id)


def _check_document(saved: SavedState) -> None:
    text = saved.to_bytes()
    again = SavedState.from_bytes(text)
    assert again.job == saved.job, "written again, the job differs"
    assert again.to_bytes() == text, "written again, the text differs"
    assert again.flow.fingerprint == saved.flow.fingerprint
    assert (again.saved_at_ns, again.monitor_summary) == (saved.saved_at_ns, saved.monitor_summary)
    assert saved.retry_count == saved.job.retry_count()
    _check_job(saved.job)
    _check_it_resumes(saved)


def _check_job(job: JobState) -> None:
    commits = job.commits
    assert [c.seq for c in commits] == list(range(job.seq - len(commits) + 1, job.seq + 1))
    assert [c.at_ns for c in commits] == sorted(c.at_ns for c in commits), "time runs backwards"
    pending = job.pending_tasks
    assert len({task.task_id for task in pending}) == len(pending)
    for task in pending:
        assert task.routine_id in job.routine_states
        assert 1 <= task.seq <= job.seq
        assert 0 <= task.retries < task.attempt
        assert isinstance(task.due_at.year, int)
    assert not (job.status is JobStatus.COMPLETED and pending)
    if len(commits) == job.seq:
        assert job.at(job.seq) == job, "it differs from the fold of its commits"
        assert (job.status is JobStatus.FAILED) <= (job.error is not None)
        ExecutionMonitor.of(job)
    assert isinstance(repr(job.execution_history), str)


def _check_it_resumes(saved: SavedState) -> None:
    try:
        clock = FakeClock(from_ns(saved.job.updated_ns))
        runtime = Runtime(clock=clock, max_steps=12)
        ended = saved.flow.resume(saved.job, runtime=runtime, retry_failed=True)
    except IllegalTransitionError:
        raise
    except (RoutiluxError, OverflowError, ValueError):
        return  # refused, or beyond the end of the calendar
    assert ended.seq > saved.job.seq
    _check_job(ended)


def _peak(*, reset: bool = False) -> int:
    """Return the peak memory of the process since the last reset, in bytes."""
    if reset:
        _CLEAR.write_text("5")
    for line in _STATUS.read_text("utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the system does not report the memory of a process")
