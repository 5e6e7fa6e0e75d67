"""The changes between two flows, and jobs that are resumed on a changed flow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routilux import (
    FakeClock,
    Flow,
    FlowMismatchError,
    JobState,
    JobStatus,
    Routine,
    Runtime,
    SavedState,
)
from routilux.graph.diff import mismatch, shape_changes, tasks_without_slot
from tests.routines import refused_at

START = "2026-01-03T12:59:03+00:00"


class Stage(Routine):
    """A routine of one and the same class, with the slots and events of its time."""

    routine_name = "shape/stage"
    later: dict[str, Sequence[str]] | None = None  # what the class declares now

    def __init__(
        self, slots: Sequence[str] = ("trigger",), events: Sequence[str] = ("output",)
    ) -> None:
        super().__init__()
        now = Stage.later or {"slots": slots, "events": events}
        for slot in now["slots"]:
            self.define_slot(slot, handler=self.pass_on)
        for event in now["events"]:
            self.define_event(event, ["n"])

    def pass_on(self, n: int) -> None:
        self.ctx.state["n"] = n
        if "output" in self.events:
            self.emit("output", n=n + 1)


class Rest(Routine):
    routine_name = "shape/rest"

    def __init__(self) -> None:
        super().__init__()
        self.define_slot("trigger", handler=self.rest)

    def rest(self, n: int) -> None:
        """Do nothing."""


def fan(width: int, *, slot: str = "trigger") -> Flow:
    flow = Flow("fan")
    flow.add_routine(Stage(), "first")
    for i in range(width):
        flow.add_routine(Stage([slot], []), f"leaf{i}")
        flow.connect("first", "output", f"leaf{i}", slot)
    return flow


def after_first(flow: Flow) -> JobState:
    job = flow.execute("first", {"n": 1}, job_id="j", runtime=Runtime(clock=FakeClock(START)))
    return job.at(2)


def resumed(flow: Flow, job: JobState, **options: Any) -> JobState:
    return flow.resume(job, runtime=Runtime(clock=FakeClock(START)), **options)


# --- the list of changes --------------------------------------------------------------------------


def test_each_old_line_is_followed_by_the_new_one_and_routines_come_first():
    before = ["event a.out(n)", "routine b: shop:Tea", "slot a.x", "slot b.x"]
    after = ["event a.out(n, m)", "routine b: shop:Cup", "slot a.y", "slot b.x"]
    assert [
        "- routine b: shop:Tea",
        "+ routine b: shop:Cup",
        "- event a.out(n)",
        "+ event a.out(n, m)",
        "- slot a.x",
        "+ slot a.y",
    ] == shape_changes(before, after)


def test_a_routine_that_was_added_is_listed_with_its_parts():
    assert [
        "+ routine leaf0: shape/stage",
        "+ connection first.output -> leaf0.trigger",
        "+ slot leaf0.trigger",
    ] == shape_changes(fan(0).shape, fan(1).shape)


def test_a_new_connection_between_kept_routines_is_listed_by_itself():
    before, after = fan(2), fan(2)
    after.add_routine(Stage([], ["more"]), "late")
    after.connect("late", "more", "leaf0", "trigger")
    before.add_routine(Stage([], ["more"]), "late")
    assert ["+ connection late.more -> leaf0.trigger"] == shape_changes(before.shape, after.shape)


@given(st.lists(st.text("ab.:( >-", max_size=6), unique=True, max_size=6), st.randoms())
def test_each_change_is_listed_once_with_any_ids(ids, random):
    shapes = []
    for _ in range(2):
        flow = Flow("f")
        for routine_id in filter(None, ids):
            if random.random() < 0.5:
                flow.add_routine(Stage(["x"], ["e"]), routine_id)
        for a in flow.routines:
            for b in flow.routines:
                if random.random() < 0.3:
                    flow.connect(a, "e", b, "x")
        shapes.append(flow.shape)
    changes = shape_changes(*shapes)
    assert len(set(shapes[0]) ^ set(shapes[1])) == len(changes)
    assert [] == shape_changes(shapes[0], shapes[0])


def test_a_message_has_few_changes_inline_many_as_a_list_and_more_as_a_number():
    assert "it changed; go back" == mismatch("it changed", "go back", ["slot a.1"], ["slot a.1"])
    assert len(mismatch("it changed", "go back", [f"slot a.{'x' * 10**6}"], [])) < 200
    few = mismatch("it changed", "go back", ["slot a.1", "slot a.2"], [])
    assert "it changed (- slot a.1; - slot a.2); go back" == few
    lines = mismatch("it changed", "go back", [f"slot a.{i:04}" for i in range(5_000)], [])
    head, *listed = lines.split("\n")
    assert "it changed (5,000 changes, listed below); go back" == head
    assert ["  - slot a.0000", "  - slot a.0001"] == listed[:2]
    assert (21, "  … and 4,980 more") == (len(listed), listed[-1])


def test_tasks_without_a_slot_are_listed_by_slot_in_one_short_sentence():
    assert "task 0 waits for a.x" == tasks_without_slot({"a.x": ["0"]})
    many = tasks_without_slot({f"a.{i}": [f"0.{n}" for n in range(1_000)] for i in range(1_000)})
    assert many.startswith("tasks 0.0, 0.1, 0.2, 0.3, 0.4 and 995 more wait for a.0, tasks ")
    assert many.endswith(", other tasks wait for 995 more slots")
    assert len(many) < 400


# --- reading and resuming -------------------------------------------------------------------------


def test_a_flow_with_many_changes_is_refused_with_a_list_of_them():
    job = after_first(fan(4))
    with pytest.raises(FlowMismatchError) as caught:
        resumed(fan(4, slot="input"), job)
    assert "$.job_state.shape" == caught.value.path
    message, *listed = caught.value.reason.split("\n")
    assert (
        "flow 'fan' has changed since job j was started (16 changes, listed below); resume the"
        " job on the old flow, or pass allow_changed_flow=True"
    ) == message
    assert ("  + connection first.output -> leaf0.input", 16) == (listed[0], len(listed))


def test_a_file_whose_classes_changed_is_refused_with_all_changes(tmp_path, monkeypatch):
    flow = fan(2)
    flow.add_routine(Rest(), "rest")
    flow.connect("first", "output", "rest", "trigger")  # it does not change, so it is not listed
    path = tmp_path / "job.json"
    SavedState.capture(flow, after_first(flow)).write(path)
    monkeypatch.setattr(Stage, "later", {"slots": ["input"], "events": ["output"]})
    with pytest.raises(FlowMismatchError) as caught:
        SavedState.read(path)
    assert "$.flow.connections[0]" == caught.value.path
    message, *listed = caught.value.reason.split("\n")
    assert message.startswith("routine 'leaf0' has no slot 'trigger'; its slots: 'input' (10 ")
    assert message.endswith(f"with allow_changed_flow=True (in {path})")
    changes = {"- slot first.trigger", "+ slot first.input"}
    for leaf in ("leaf0", "leaf1"):
        changes |= {f"- slot {leaf}.trigger", f"+ slot {leaf}.input", f"+ event {leaf}.output(n)"}
        changes |= {f"- connection first.output -> {leaf}.trigger"}
    assert changes == {line.strip() for line in listed}


def test_a_job_can_be_resumed_on_a_changed_flow_that_has_the_slots_of_its_tasks():
    job = after_first(fan(2))
    before = job.serialize()
    changed = fan(3)
    changed.add_routine(Stage(), "leaf9")
    with pytest.raises(FlowMismatchError):
        resumed(changed, job)
    done = resumed(changed, job, allow_changed_flow=True)
    assert (JobStatus.COMPLETED, changed.shape) == (done.status, done.shape)
    assert [{"n": 2}, {"n": 2}, {}] == [done.routine_states[f"leaf{i}"].state for i in range(3)]
    assert before == job.serialize()
    assert done == SavedState.from_bytes(SavedState.capture(changed, done).to_bytes()).job


def test_a_routine_without_pending_tasks_may_be_removed():
    job = after_first(fan(1))
    changed = Flow("fan")
    changed.add_routine(Stage(["trigger"], ["more"]), "leaf0")
    done = resumed(changed, job, allow_changed_flow=True)
    assert JobStatus.COMPLETED is done.status
    assert ["first", "leaf0"] == list(done.routine_states)


def test_every_pending_task_without_its_slot_is_listed_and_the_job_is_unchanged():
    job = after_first(fan(3))
    before = job.serialize()
    changed = fan(1)
    changed.add_routine(Stage(["input"], []), "leaf2")
    reason = (
        "job j: task 0.1 waits for leaf1.trigger, task 0.2 waits for leaf2.trigger; flow 'fan'"
        " has no such slot; add the slot, or resume the job on the flow that started it"
    )
    with refused_at("$.job_state.pending_tasks", reason, FlowMismatchError):
        resumed(changed, job, allow_changed_flow=True)
    assert before == job.serialize()
