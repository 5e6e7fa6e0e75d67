"""Runs that begin alike are compared, and an error of the engine in any run is a finding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_routilux.sim import checks
from pytest_routilux.sim.crash_points import crash_points
from pytest_routilux.sim.explain.explain import explain_cause
from pytest_routilux.sim.explore import explore
from pytest_routilux.sim.recovery import recover
from pytest_routilux.sim.results import Checks, Exploration
from pytest_routilux.sim.shrink import Cause
from pytest_routilux.sim.simulator.effects import Effect
from pytest_routilux.sim.simulator.model import Case, Finding, World
from routilux import (
    CorruptStateError,
    Flow,
    IllegalTransitionError,
    JobState,
    PendingTask,
    SavedState,
    StepInput,
    UnserializableError,
)
from routilux.core.machine import Machine
from routilux.core.schedule import Schedule
from tests.plugin.sim.steps import START, Work, chain, same
from tests.routines import fan, saveable, send

pay = Effect("gateway.pay", key="key")


def finding_of(result: Exploration) -> Finding | None:
    return result.reference.finding or next((finding for _, finding in result.failures), None)


def explored(case: Case) -> Exploration:
    return explore(case, START, Checks())


# --- what the first run leaves --------------------------------------------------------------------


def pays_unless(marker: Path) -> Work:
    def work(routine: Any, number: Any) -> object:
        if not marker.exists():
            pay(number, key=routine.ctx.key("pay"))
            marker.write_text("paid")
        return number

    return work


def test_a_file_that_the_first_run_leaves_is_found(tmp_path: Path) -> None:
    case = chain(same, pays_unless(tmp_path / "paid"))
    result = explored(case)
    finding = finding_of(result)
    assert finding is not None
    assert "repeat-differs" == finding.kind
    assert "gateway.pay is called 1x in the first run and 0x in the second" == finding.what
    text = explain_cause(Cause(None, finding, (), result), case, 100, repro=None)
    assert "A SECOND RUN DIFFERS: gateway.pay" in text
    assert "such as a file, a row or a global" in text
    assert "fresh=" in text


def test_a_file_that_no_handler_reads_is_clean(tmp_path: Path) -> None:
    def work(routine: Any, number: Any) -> object:
        pay(number, key=routine.ctx.key("pay"))
        (tmp_path / "paid").write_text("paid")
        return number

    assert finding_of(explored(chain(same, work))) is None


def fails_twice(calls: list[object]) -> Work:
    def work(routine: Any, number: Any) -> object:
        calls.append(number)
        if len(calls) < 3:
            raise OSError
        return number

    return work


def test_a_second_run_that_differs_is_found_without_a_culprit() -> None:
    calls: list[object] = []
    finding = finding_of(explored(chain(fails_twice(calls), retry_delay=1.0)))
    assert finding is not None
    assert ("repeat-differs", "r0") == (finding.kind, finding.routine)
    assert "r0" in finding.what
    assert "a second run in the same process" in finding.what

    case = replace(chain(fails_twice(calls), retry_delay=1.0), fresh=calls.clear)
    result = explored(case)
    assert result.reference.finding is None


def test_values_that_differ_in_a_second_run_are_named() -> None:
    calls: list[object] = []

    def counts(routine: Any, number: Any) -> object:
        calls.append(number)
        return len(calls)

    result = explored(chain(counts))
    assert finding_of(result) is None
    [note] = [note for note in result.coverage.notes if "begins alike" in note]
    assert "outputs.r0.output.*.number" in note
    assert not [n for n in explored(chain(same)).coverage.notes if "begins alike" in n]


# --- errors of the engine -------------------------------------------------------------------------


def forked() -> Flow:
    return fan(saveable(send), workers=2, b=saveable(send), c=saveable(send))


def test_an_order_in_which_the_engine_raises_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    start = Schedule.start

    def raises(self: Schedule, pending: PendingTask) -> None:
        if pending is not self.first():
            raise IllegalTransitionError("another task is first")
        start(self, pending)

    monkeypatch.setattr(Schedule, "start", raises)
    found = explored(Case(forked, "source"))
    finding, disturbed = finding_of(found), found.reference.disturbed
    assert finding is not None
    assert disturbed is not None
    assert "engine-error" == finding.kind
    assert "another task is first" in finding.what
    assert 1 <= len(disturbed.order.changes)
    assert "another task is first" in finding.what


def test_an_error_of_the_engine_that_the_next_host_gets_past_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begin: Callable[..., StepInput] = Machine.begin
    struck: list[int] = []

    def once(self: Machine, pending: PendingTask, now: int) -> StepInput:
        if pending.task.routine_id == "r1" and not struck:
            struck.append(1)
            del self.job.routine_states["r1"]
        return begin(self, pending, now)

    monkeypatch.setattr(Machine, "begin", once)
    result = explored(chain(same, same))
    assert "completed" == result.reference.run.job.status
    finding = finding_of(result)
    assert finding is not None
    assert "engine-error" == finding.kind
    assert "the host dies of an error in the engine: KeyError: 'r1'" == finding.what
    assert "core/machine.py:" in finding.hint


def test_an_error_of_the_engine_in_a_recovery_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    run = explored(chain(same, same)).reference.run
    point = next(p for p in crash_points(run, documents=True) if p.kind == "in a recovery")
    resume = Machine.resume
    struck: list[int] = []

    def once(self: Machine, now: int, **options: Any) -> Any:
        if not struck:
            struck.append(1)
            self.job._pending = None  # type: ignore[assignment]  # the bug
        return resume(self, now, **options)

    monkeypatch.setattr(Machine, "resume", once)
    hosts = recover(run, point).hosts
    assert 2 < len(hosts)
    assert ["engine-error"] == [finding.kind for host in hosts for finding in host.findings]


def test_an_engine_that_cannot_read_its_document_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(forked, "source")
    assert "by document" in explored(case).coverage.executed

    def from_bytes(cls: type[SavedState], data: bytes, **options: Any) -> SavedState:
        raise CorruptStateError("$.job_state", "has a field that the engine does not know")

    with monkeypatch.context() as patch:
        patch.setattr(SavedState, "from_bytes", classmethod(from_bytes))
        finding = finding_of(explored(case))
    assert finding is not None
    assert "document-unreadable" == finding.kind


def test_an_engine_that_cannot_save_its_job_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def dumps(self: JobState, **_: object) -> str:
        raise UnserializableError("$.outputs[0]", "has no saved form")

    monkeypatch.setattr(JobState, "dumps", dumps)
    finding = finding_of(explored(Case(forked, "source")))
    assert finding is not None
    assert "document-unsaved" == finding.kind


def test_a_value_that_cannot_be_saved_is_a_note() -> None:
    result = explored(chain(same, same))  # its routines hold functions
    assert finding_of(result) is None
    assert ["from a document" in n for n in result.coverage.notes].count(True) == 1


def test_a_rule_that_breaks_in_another_order_alone_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def only_reversed(world: World, hosts: Any, case: Case, **_: object) -> Finding | None:
        started = [step.task.routine_id for _, step in hosts[0].steps]
        if started[1:] != ["c", "b"]:
            return None
        return Finding("task-id-wrong", "task 0.1 has the id 0.7", "engine.c", "c")

    monkeypatch.setattr(checks, "broken_rule", only_reversed)
    finding = finding_of(explored(Case(forked, "source")))
    assert finding is not None
    assert "task-id-wrong" == finding.kind
