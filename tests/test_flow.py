"""Flows: their shape and fingerprint, the drawing, the saved form."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routilux import (
    Connection,
    CorruptStateError,
    ErrorHandler,
    Flow,
    FlowDefinitionError,
    FlowMismatchError,
    Routine,
    SavedState,
    UnknownRoutineError,
)
from tests.fuzz.families import Node, flow_document
from tests.gathers import gathering
from tests.routines import refused_at


class Source(Routine):
    routine_name = "flow/source"

    def __init__(self, size: int = 1) -> None:
        super().__init__()
        self.size = size
        self.define_slot("trigger", handler=self.go)
        self.define_event("output", ["item", "rest"])
        self.define_event("done")

    def go(self) -> None:
        self.emit("output", item=self.size, rest=None)


class Sink(Routine):
    routine_name = "flow/sink"

    def __init__(self) -> None:
        super().__init__()
        self.define_slot("input", handler=self.take)
        self.define_slot("other", handler=self.take)

    def take(self, item: object = None) -> None:
        """Do nothing."""


class TakesAll(Routine):
    routine_name = "flow/takes-all"

    def __init__(self) -> None:
        super().__init__()
        self.define_slot("input", handler=lambda **fields: None)


class SourceToo(Source):
    routine_name = "flow/source-too"


def shop(**options: Any) -> Flow:
    flow = Flow("shop", **options)
    flow.add_routine(Source(), "source")
    flow.add_routine(Sink(), "sink")
    flow.connect("source", "output", "sink", "input")
    return flow


# --- reading it ---------------------------------------------------------------------------------


def test_routines_and_connections_can_be_read_and_not_written():
    flow, mapping = shop(), {"item": "item"}
    assert "Sink" == flow.add_routine(Sink()), "the default id is the name of the class"
    flow.connect("source", "output", "Sink", "other", mapping)
    mapping["rest"] = "nothing"
    assert ["source", "sink", "Sink"] == list(flow.routines)
    assert (
        Connection("source", "output", "sink", "input", {}),
        Connection("source", "output", "Sink", "other", {"item": "item"}),
    ) == flow.connections
    with pytest.raises(TypeError):
        flow.routines["other"] = Sink()
    with pytest.raises(TypeError):
        flow.connections[0].param_mapping["item"] = "x"


# --- shape and fingerprint ----------------------------------------------------------------------

SHAPE = (
    "connection source.output -> sink.input",
    "event source.done()",
    "event source.output(item, rest)",
    "routine sink: flow/sink",
    "routine source: flow/source",
    "slot sink.input",
    "slot sink.other",
    "slot source.trigger",
)


def test_the_fingerprint_is_the_digest_of_the_shape():
    flow = shop()
    assert SHAPE == flow.shape
    assert f"sha256:{hashlib.sha256(chr(10).join(SHAPE).encode()).hexdigest()}" == flow.fingerprint


def test_arguments_handlers_strategy_name_and_order_do_not_change_the_fingerprint():
    other = Flow("another name", execution_strategy="concurrent", max_workers=9)
    other.add_routine(Sink(), "sink")
    other.add_routine(Source(size=7), "source")
    other.connect("source", "output", "sink", "input")
    other.set_error_handler(ErrorHandler("skip"))
    other.routines["source"].set_error_handler(ErrorHandler("retry"))
    assert shop().fingerprint == other.fingerprint


def made(
    *more: tuple[str, str, str, str],
    source: type[Source] = Source,
    ids: tuple[str, ...] = ("source", "sink"),
    mapping: dict[str, str] | None = None,
) -> Flow:
    flow = Flow()
    flow.add_routine(source(), ids[0])
    for routine_id in ids[1:]:
        flow.add_routine(Sink(), routine_id)
    flow.connect(ids[0], "output", ids[1], "input", mapping)
    for ends in more:
        flow.connect(*ends)
    return flow


def test_another_routine_event_connection_slot_id_class_or_mapping_changes_the_fingerprint():
    late = made()
    late.routines["source"].define_event("later")
    flows = [
        made(),
        late,
        made(ids=("source", "sink", "sink2")),
        made(("source", "done", "sink", "input")),
        made(("source", "output", "sink", "other")),
        made(source=SourceToo),
        made(ids=("source", "sunk")),
        made(ids=("sauce", "sink")),
        made(mapping={"item": "item"}),
    ]
    assert len(flows) == len({flow.fingerprint for flow in flows})
    assert flows[0].fingerprint == shop().fingerprint


# --- drawing it ---------------------------------------------------------------------------------


def test_a_flow_is_drawn_as_a_mermaid_chart_with_fan_out_and_cycles():
    flow = shop()
    flow.add_routine(Sink(), 'the "second" sink')
    flow.connect("source", "done", 'the "second" sink', "other")
    flow.connect("source", "output", 'the "second" sink', "input")
    assert (
        "flowchart LR\n"
        '    r0["source"]\n'
        '    r1["sink"]\n'
        '    r2["the #quot;second#quot; sink"]\n'
        '    r0 -->|"output"| r1\n'
        '    r0 -->|"done"| r2\n'
        '    r0 -->|"output"| r2'
    ) == flow.to_mermaid()


def test_a_chart_shows_where_and_for_what_a_flow_gathers():
    flow = gathering(per="split")
    assert (
        "flowchart LR\n"
        '    r0["split"]\n'
        '    r1["work"]\n'
        '    r2["join (gathers per split)"]\n'
        '    r0 -->|"item"| r1\n'
        '    r1 ==>|"done"| r2'
    ) == flow.to_mermaid()


# --- saving it ----------------------------------------------------------------------------------


handlers = st.sampled_from(
    [None, ErrorHandler("skip"), ErrorHandler("retry", max_retries=None, jitter=0.1)]
)


@given(
    sizes=st.lists(st.integers(), min_size=1, max_size=4),
    policies=st.lists(handlers, min_size=5, max_size=5),
    strategy=st.sampled_from(["sequential", "concurrent"]),
    mapping=st.sampled_from([None, {"item": "rest", "rest": "item"}]),
)
def test_a_loaded_flow_equals_the_saved_one(sizes, policies, strategy, mapping):
    flow = Flow("any", execution_strategy=strategy)
    flow.set_error_handler(policies[-1])
    flow.add_routine(TakesAll(), "sink")
    for number, size in enumerate(sizes):
        source = Source(size=size)
        source.set_error_handler(policies[number])
        flow.add_routine(source, f"source {number}")
        flow.connect(f"source {number}", "output", "sink", "input", mapping)
    twin = Flow.deserialize(json.loads(json.dumps(flow.serialize())))
    assert flow.serialize() == twin.serialize()
    assert (flow.fingerprint, flow.to_mermaid()) == (twin.fingerprint, twin.to_mermaid())
    assert flow.connections == twin.connections
    assert flow.error_handler == twin.error_handler
    assert [r.error_handler for r in flow.routines.values()] == [
        r.error_handler for r in twin.routines.values()
    ]
    assert sizes == [r.size for r in twin.routines.values() if isinstance(r, Source)]


def test_a_saved_flow_without_a_handler_overrides_the_handler_of_the_class():
    class Cautious(Sink):
        routine_name = "flow/cautious"

        def __init__(self):
            super().__init__()
            self.set_error_handler(ErrorHandler("skip"))

    flow = Flow()
    flow.add_routine(Cautious(), "cautious")
    flow.routines["cautious"].set_error_handler(None)
    assert Flow.deserialize(flow.serialize()).routines["cautious"].error_handler is None


@pytest.mark.parametrize(
    ("change", "error", "path"),
    [
        (lambda d: d.pop("connections"), CorruptStateError, "$.connections"),
        (lambda d: d.update(colour="red"), CorruptStateError, "$.colour"),
        (lambda d: d.update(flow_id=""), CorruptStateError, "$"),
        (lambda d: d["routines"][0].update(id=7), CorruptStateError, "$.routines[0].id"),
        (lambda d: d["routines"].append(1), CorruptStateError, "$.routines[2]"),
        (lambda d: d.update(fingerprint="sha256:0"), FlowMismatchError, "$.fingerprint"),
        (lambda d: d["connections"][0].update(slot="x"), FlowMismatchError, "$.connections[0]"),
        (
            lambda d: d["routines"][1].update(routine="shop:Gone"),
            UnknownRoutineError,
            "$.routines[1].routine",
        ),
    ],
)
def test_a_damaged_flow_is_refused_with_its_path(change, error, path):
    document = shop().serialize()
    change(document)
    with refused_at(path, "", error):
        Flow.deserialize(document)


def test_a_connection_is_compared_with_no_other(monkeypatch):
    calls = 0
    ends = Connection.ends.fget

    def counted(connection):
        nonlocal calls
        calls += 1
        return ends(connection)

    monkeypatch.setattr(Connection, "ends", property(counted))
    data = flow_document("one source", 200)
    with pytest.raises(FlowMismatchError):
        SavedState.from_bytes(data.text)
    assert calls <= 2 * 200


def test_a_message_names_a_few_of_many_routines():
    flow = Flow("large")
    for i in range(1_000):
        flow.add_routine(Node(), f"{i:04}" + "x" * 500)
    with pytest.raises(
        FlowDefinitionError, match=r"has no routine 'nowhere'; its routines: .* and more"
    ) as e:
        flow.connect("nowhere", "out", "nowhere", "trigger")
    assert len(str(e.value)) < 3_000
