"""Wrong gathers: each is refused by the call that makes the mistake, and nothing changes."""

from __future__ import annotations

import copy
import pickle
import re
from random import Random
from typing import Any

import pytest

from routilux import Flow, FlowDefinitionError, FlowMismatchError, Gathered, Routine
from routilux.graph.gathers import Gathers, ReturnCheck, reached
from tests.gathers import Join, Split, Work, gathering
from tests.routines import run


class Sink(Routine):
    def __init__(self) -> None:
        super().__init__()
        self.define_event("out", ["n"])

    def none(self) -> None: ...
    def two(self, found: Gathered, other: int = 0) -> None: ...
    def rest(self, **found: Any) -> None: ...
    def more(self, *found: Any) -> None: ...
    def first(self, found: Gathered, /) -> None: ...
    def one(self, found: Gathered) -> None: ...


@pytest.mark.parametrize(
    ("handler", "takes"),
    [("none", "no parameters"), ("two", "'found', 'other'"), ("rest", "'found'"),
     ("more", "'found'")],
)  # fmt: skip
def test_the_handler_of_a_gather_takes_one_parameter(handler, takes):
    sink = Sink()
    message = f"slot 'all' of Sink is a gather slot, but its handler Sink.{handler} takes {takes}"
    with pytest.raises(FlowDefinitionError, match=re.escape(message)):
        sink.define_slot("all", getattr(sink, handler), gather=True)
    with pytest.raises(FlowDefinitionError, match="'found' by position only"):
        sink.define_slot("all", sink.first, gather=True)
    with pytest.raises(FlowDefinitionError, match="gather must be True or False, not 1"):
        sink.define_slot("all", sink.one, gather=1)  # type: ignore[arg-type]
    assert {} == sink.slots
    assert "found" == sink.define_slot("all", sink.one, gather=True).parameter


def test_no_job_starts_with_a_gather():
    with pytest.raises(FlowDefinitionError, match=r"join.done is a gather slot, so no job can"):
        gathering().execute("join", slot="done")


def test_no_job_starts_inside_of_a_scope():
    message = (
        "starts with 'work' could deliver to the gather join.done outside of a task of 'split'"
    )
    with pytest.raises(FlowDefinitionError, match=message):
        run(gathering(per="split"), "work", n=1)
    assert 1 == len(run(gathering(), "work", n=1).outputs)


@pytest.mark.parametrize("routine", [5, ""])
def test_gather_per_is_the_id_of_a_routine(routine):
    flow = Flow()
    with pytest.raises(FlowDefinitionError, match=f"must be the id of a routine, not {routine!r}"):
        flow.add_routine(Join(), "join", gather_per=routine)
    assert {} == dict(flow.routines) == dict(flow.gather_per)


def test_gather_per_needs_a_gather_slot():
    flow = Flow()
    with pytest.raises(FlowDefinitionError, match="'split', but the routine has no gather slot"):
        flow.add_routine(Work(), "work", gather_per="split")
    assert {} == dict(flow.routines) == dict(flow.gather_per)


def test_gather_per_names_a_routine_upstream():
    with pytest.raises(FlowDefinitionError, match=r"'spilt', which is not a routine.*'split'"):
        gathering(per="spilt").plan()
    flow = gathering(per="other")
    flow.add_routine(Work(), "other")
    message = "gather_per of 'join' is 'other', but no connections lead from 'other' to"
    with pytest.raises(FlowDefinitionError, match=message):
        flow.execute("split")
    assert "slot join.done (gathers per other)" in flow.shape


def test_each_source_of_a_gather_is_downstream_of_its_split():
    flow = gathering(per="split")
    flow.add_routine(Work(), "other")
    flow.connect("other", "done", "join", "done")
    with pytest.raises(FlowDefinitionError, match=r"'other' delivers to join.done and is not"):
        flow.plan()
    flow.connect("split", "item", "other", "trigger")
    assert flow.plan().gathers is not None


def test_a_gather_of_the_job_does_not_deliver_to_a_gather_of_a_split():
    flow = gathering(per="split")
    flow.add_routine(Whole(), "whole")
    flow.add_routine(Work(), "after")
    flow.connect("work", "done", "whole", "all")
    flow.connect("whole", "out", "after", "trigger")
    flow.connect("split", "item", "after", "trigger")
    flow.connect("after", "done", "join", "done")
    message = "gather join.done collects per 'split', but gets deliveries from 'whole'"
    with pytest.raises(FlowDefinitionError, match=message):
        flow.plan()


class Whole(Sink):
    def __init__(self) -> None:
        super().__init__()
        self.define_slot("all", self.one, gather=True)
        self.define_slot("trigger", self.rest)


@pytest.mark.parametrize("order", [1, -1])
def test_no_gather_reaches_itself(order):
    flow = Flow()
    for name in "abc":
        flow.add_routine(Whole(), name)
    with pytest.raises(FlowDefinitionError, match=r"the gather a.all could reach itself"):
        flow.connect("a", "out", "a", "all")
    ends = [("a", "b", "all"), ("b", "c", "trigger"), ("c", "a", "trigger")][::order]
    for source, target, slot in ends[:2]:
        flow.connect(source, "out", target, slot)
    source, target, slot = ends[2]
    message = f"with {source}.out -> {target}.{slot} the gather b.all could reach itself"
    with pytest.raises(FlowDefinitionError, match=message):
        flow.connect(source, "out", target, slot)
    assert 2 == len(flow.connections)
    flow.connect("a", "out", "c", "trigger")


def test_a_cycle_without_a_gather_stays_possible_before_a_gather():
    flow = Flow()
    for name in "abc":
        flow.add_routine(Whole(), name)
    flow.connect("a", "out", "b", "trigger")
    flow.connect("b", "out", "a", "trigger")
    flow.connect("b", "out", "c", "all")
    gathers = flow.plan().gathers
    assert isinstance(gathers, Gathers)
    [number] = gathers.upstream["a"] & gathers.upstream["b"]
    assert "c.all" == str(gathers.slots[number])


def test_a_gather_takes_any_payload():
    flow = Flow()
    flow.add_routine(Split(), "split")
    flow.add_routine(Whole(), "whole")
    flow.connect("split", "item", "whole", "all", {"n": "number"})
    with pytest.raises(FlowDefinitionError, match="param_mapping names field 'm'"):
        flow.connect("split", "item", "whole", "all", {"m": "number"})
    assert "completed" == run(flow, "split").status


def test_a_saved_flow_keeps_its_gathers():
    flow = gathering(per="split")
    loaded = Flow.deserialize(flow.serialize())
    assert (flow.shape, {"join": "split"}) == (loaded.shape, dict(loaded.gather_per))
    changed: Any = flow.serialize()
    changed["routines"][1]["gather_per"] = "split"
    with pytest.raises(FlowMismatchError, match="has no gather slot") as caught:
        Flow.deserialize(changed)
    assert "$.routines[1].gather_per" == caught.value.path
    del changed["routines"][1]["gather_per"], changed["routines"][2]["gather_per"]
    with pytest.raises(FlowMismatchError, match="differ"):
        Flow.deserialize(changed)


def test_what_is_gathered_is_a_sequence_that_can_be_copied():
    found = Gathered([{"n": 1}, {"n": 2}], (), (("a", "out"), ("b", "out")))
    assert [{"n": 1}, {"n": 2}] == list(found) == [*found[:1], found[-1]]
    assert found == pickle.loads(pickle.dumps(found)) == copy.deepcopy(found)
    assert found != Gathered([{"n": 1}, {"n": 2}])
    assert "<Gathered: 2 payloads>" == repr(found)


def test_exactly_the_connections_by_which_a_gather_reaches_itself_are_refused():
    refused = 0
    for seed in range(300):
        random = Random(seed)
        names, check, edges = "abcdef"[: random.randint(2, 6)], ReturnCheck(), []
        for _ in range(random.randint(1, 14)):
            new = (
                random.choice(names),
                "out",
                random.choice(names),
                random.choice(["all", "x", "x"]),
            )
            after: dict[str, set[str]] = {}
            for source, _, target, _ in (*edges, new):
                after.setdefault(source, set()).add(target)
            wrong = any(e[3] == "all" and e[0] in reached([e[2]], after) for e in (*edges, new))
            refused += wrong
            if wrong:
                with pytest.raises(FlowDefinitionError, match="could reach itself"):
                    check.add(new, gather=new[3] == "all")
            else:
                check.add(new, gather=new[3] == "all")
                edges.append(new)
    assert refused > 100
