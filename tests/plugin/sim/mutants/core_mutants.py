"""Thirty changes of `routilux.core`, each of which changes what a job does, and their runner.

A child process runs the simulation over `flows.CASES` with one module replaced. Run this module to
print which changes the simulation finds:

    python -m tests.plugin.sim.mutants.core_mutants
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Final

ROOT: Final = Path(__file__).parents[4]
_LONGEST: Final = 150  # seconds of real time; a mutant may loop


@dataclass(frozen=True)
class Mutant:
    """A change of one line of a module of `routilux.core`, and what it breaks."""

    module: str
    old: str
    new: str
    breaks: str

    def __str__(self) -> str:
        return f"{self.module}: {self.breaks}"

    @property
    def path(self) -> Path:
        """The file of the module."""
        return ROOT / "routilux" / "core" / f"{self.module}.py"

    @property
    def source(self) -> str:
        """The text of the module with the change."""
        text = self.path.read_text("utf-8")
        assert text.count(self.old) == 1, f"{self}: the text occurs {text.count(self.old)} times"
        return text.replace(self.old, self.new)


MUTANTS: Final[Sequence[Mutant]] = [
    Mutant(
        "machine",
        "if self._shared_seq > step.seq and self._changed(step, outcome.shared_reads):",
        "if False:",
        "a lost update is committed without a conflict",
    ),
    Mutant(
        "machine",
        "return any(when.get(key, 0) > step.seq for key in reads)",
        "return True",
        "a step conflicts with one that changed other keys",
    ),
    Mutant(
        "machine",
        "            pending.retries >= handler.most_retries,",
        "            pending.retries > handler.most_retries,",
        "one retry too many is made",
    ),
    Mutant(
        "machine",
        "if flying is None or flying.number != outcome.number:",
        "if flying is None:",
        "the outcome of an earlier step is accepted",
    ),
    Mutant(
        "machine",
        "recoveries += job.status is _RUNNING",
        "recoveries += 0",
        "recoveries of a running job are not counted",
    ),
    Mutant(
        "machine",
        "recoveries > max_recoveries:",
        "recoveries >= max_recoveries:",
        "a job is poisoned one recovery too early",
    ),
    Mutant(
        "machine",
        "clean |= job.interruption is not None and job.interrupted_task is None",
        "clean |= job.interruption is not None",
        "a task that ends its hosts is never poisoned",
    ),
    Mutant(
        "machine",
        "return Commit(1, CommitKind.START, now, status, tasks=tuple(tasks), detail=detail)",
        "return Commit(1, CommitKind.START, now, _RUNNING, tasks=tuple(tasks), detail=detail)",
        "a queued job runs at once",
    ),
    Mutant(
        "machine",
        "if job.status is JobStatus.FAILED and not retry_failed:",
        "if False:",
        "a failed job is resumed without retry_failed",
    ),
    Mutant(
        "machine",
        "commit = failed_task(self.plan, self.job, pending, error, now)\n"
        "        self._set_status(commit)",
        "commit = failed_task(self.plan, self.job, pending, error, now)",
        "a poisoned job is still running",
    ),
    Mutant(
        "machine",
        "            self._schedule.end(step.task.routine_id)",
        "            pass",
        "a routine at its max_concurrency never gets room again",
    ),
    Mutant(
        "schedule",
        "            if lane.busy < lane.limit:\n                return pending",
        "            if lane.busy <= lane.limit:\n                return pending",
        "a routine runs one step more than its max_concurrency",
    ),
    Mutant(
        "schedule",
        "lane = self[routine_id] = _Lane(self._routines[routine_id].max_concurrency)",
        "lane = self[routine_id] = _Lane(1)",
        "max_concurrency is ignored: one step at a time",
    ),
    Mutant(
        "schedule",
        "        if not queue or self._last < order:",
        "        if True:",
        "tasks start in the order in which they arrive, not by their due times",
    ),
    Mutant(
        "transitions",
        "child_id(parent_id, first + len(tasks))",
        "child_id(parent_id, len(tasks))",
        "tasks after a failure that was reported get ids that exist",
    ),
    Mutant(
        "transitions",
        "return due > (step.started_ns if first is None else first) + deadline",
        "return due > step.started_ns + deadline",
        "the deadline starts anew with each attempt",
    ),
    Mutant(
        "transitions",
        "                if not outcome.spends:",
        "                if False:",
        "a RetryAfter that spends nothing spends a retry",
    ),
    Mutant(
        "transitions",
        "if declared is None or pending.reports:",
        "if declared is None:",
        "the failure of a task that reports a failure is reported",
    ),
    Mutant(
        "transitions",
        '"attempt": pending.attempt,',
        '"attempt": pending.attempt - 1,',
        "the event error names another attempt",
    ),
    Mutant(
        "transitions",
        "if job.status is _RUNNING and not commit.tasks and len(job._pending) == 1:\n"
        "            commit.status",
        "if False:\n            commit.status",
        "a job whose last task is dropped is never completed",
    ),
    Mutant(
        "fold",
        "            if spent > routine.retry_count:",
        "            if spent < routine.retry_count:",
        "retry_count does not count",
    ),
    Mutant(
        "fold",
        "        if outcome == RoutineStatus.SKIPPED:",
        "        if outcome != RoutineStatus.SKIPPED:",
        "skipped tasks count as continued",
    ),
    Mutant(
        "fold",
        "self.recoveries, self.stops = 0, ()",
        "self.stops = ()",
        "progress does not reset the recoveries",
    ),
    Mutant(
        "fold",
        "                pending.retries = 0",
        "                pass",
        "retry_failed gives no fresh budget",
    ),
    Mutant(
        "fold",
        "pending.due_ns = commit.at_ns + left",
        "pending.due_ns = commit.at_ns + (pending.delay_ns or 0)",
        "a wait starts anew on resume",
    ),
    Mutant(
        "commits",
        'event = "error" if kind is _FAILED else cast(str, (commit.detail or {})["as"])',
        'event = "error"',
        "the history calls a dropped task failed",
    ),
    Mutant(
        "requests",
        'if job.is_final or (kind == "pause" and job.status is not JobStatus.RUNNING):',
        "if job.is_final:",
        "a failed job can be paused",
    ),
    Mutant(
        "replay",
        "    if job.seq and commit.at_ns < job.updated_ns:",
        "    if False:",
        "a saved commit from before the one that it follows is accepted",
    ),
    Mutant(
        "saved",
        "    if name is not None:\n        shown",
        "    if False:\n        shown",
        "a saved job that does not match its commits is accepted",
    ),
    Mutant(
        "gathering",
        "            place.entry = dropped",
        "            place.entry = None",
        "a gather does not get the dropped tasks of its scope",
    ),
]


class _Loader(SourceFileLoader):
    source = ""

    def get_code(self, fullname: str) -> CodeType:
        code: CodeType = compile(self.source, self.path, "exec")
        return code


class _Finder:
    """Finds the one module that is replaced."""

    def __init__(self, mutant: Mutant) -> None:
        self._name = f"routilux.core.{mutant.module}"
        self._mutant = mutant

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != self._name:
            return None
        loader = _Loader(name, str(self._mutant.path))
        loader.source = self._mutant.source
        return importlib.util.spec_from_file_location(name, loader.path, loader=loader)


def found_by_simulation(number: int) -> str:
    """Run the simulation with a mutant in a new process; return its finding, or ""."""
    command = [sys.executable, "-m", "tests.plugin.sim.mutants.core_mutants", str(number)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode < 0:
        return f"killed by signal {-done.returncode}"
    last = (done.stdout.strip() or done.stderr.strip()).splitlines()[-1:]
    return "".join(last) if done.returncode else ""


def _main(number: int) -> int:
    signal.alarm(_LONGEST)
    sys.meta_path.insert(0, _Finder(MUTANTS[number]))
    from tests.plugin.sim.mutants.flows import first_finding

    finding = first_finding()
    sys.stdout.write(f"{' '.join((finding or '').split())}\n")
    return int(finding is not None)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(_main(int(sys.argv[1])))
    findings = {mutant: found_by_simulation(n) for n, mutant in enumerate(MUTANTS)}
    lines = [
        f"{'found ' if finding else 'MISSED'}  {mutant}\n            {finding[:100]}"
        for mutant, finding in findings.items()
    ]
    found = sum(map(bool, findings.values()))
    sys.stdout.write("\n".join([*lines, f"{found} of {len(findings)}", ""]))
