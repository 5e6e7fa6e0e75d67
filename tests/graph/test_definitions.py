"""Wrong flows, routines and declarations: each is refused by one error, and nothing changes."""

from __future__ import annotations

import re
from typing import Any

import pytest

from routilux import ErrorHandler, ErrorStrategy, Flow, FlowDefinitionError, Routine


class Source(Routine):
    """Emits what it was made with."""

    def __init__(self, **emitted: object) -> None:
        super().__init__()
        self.emitted = emitted
        self.define_slot("trigger", handler=self.go)
        self.define_event("output", ["item", "count"])

    def go(self, order: str = "A7") -> None:
        self.emit("output", **self.emitted)


class Sink(Routine):
    """Needs an item."""

    def __init__(self) -> None:
        super().__init__()
        self.define_slot("input", handler=self.take)
        self.define_slot("strict", handler=self.take_two)
        self.define_slot("rest", handler=self.take_all)

    def take(self, item: object) -> None:
        """Do nothing."""

    def take_two(self, item: object, price: float) -> None:
        """Do nothing."""

    def take_all(self, **fields: object) -> None:
        """Do nothing."""


def shop() -> Flow:
    flow = Flow("shop")
    flow.add_routine(Source(), "source")
    flow.add_routine(Sink(), "sink")
    flow.connect("source", "output", "sink", "input")
    return flow


def refused(error: type[Exception], message: str) -> Any:
    return pytest.raises(error, match=f"^{re.escape(message)}$")


# --- the graph ----------------------------------------------------------------------------------

EDGE = "source.output -> sink.input"
NOT_A_MAPPING = "must be a mapping of strings, {event field: handler parameter}, not"
WRONG_CONNECTIONS: list[tuple[Any, ...]] = [
    ("no.output -> sink.input", "flow 'shop' has no routine 'no'; its routines: 'source', 'sink'"),
    ("source.output -> x.input", "flow 'shop' has no routine 'x'; its routines: 'source', 'sink'"),
    (
        (["source"], "output", "sink", "input"),
        "flow 'shop' has no routine ['source']; its routines: 'source', 'sink'",
    ),
    ("source.outs -> sink.input", "routine 'source' has no event 'outs'; its events: 'output'"),
    ("sink.output -> sink.input", "routine 'sink' has no event 'output'; its events: none"),
    (
        "source.output -> sink.inputs",
        "routine 'sink' has no slot 'inputs'; its slots: 'input', 'strict', 'rest'",
    ),
    (
        ("source", "output", "sink", ["input"]),
        "routine 'sink' has no slot ['input']; its slots: 'input', 'strict', 'rest'",
    ),
    (
        EDGE,
        f"{EDGE}: param_mapping names field 'items', but event 'output' has 'item', 'count'",
        {"items": "item"},
    ),
    (
        EDGE,
        f"{EDGE}: param_mapping names parameter 'thing', but the handler takes 'item'",
        {"item": "thing"},
    ),
    (
        EDGE,
        f"{EDGE}: two fields would be delivered as 'item'; map one of them to another parameter",
        {"count": "item"},
    ),
    (EDGE, f"param_mapping for source.output {NOT_A_MAPPING} ['item']", ["item"]),
    (
        EDGE,
        f"param_mapping for source.output {NOT_A_MAPPING} {{'item': ['item']}}",
        {"item": ["item"]},
    ),
    (
        "source.output -> sink.strict",
        (
            "source.output -> sink.strict: the handler needs 'price', but the event carries 'item',"
            " 'count'; add a field, map a field to the parameter, or give the parameter a default"
        ),
    ),
    (EDGE, f"{EDGE} already exists; remove the second connect()"),
    (EDGE, f"{EDGE} already exists; remove the second connect()", {"item": "item"}),
]


@pytest.mark.parametrize("row", WRONG_CONNECTIONS, ids=lambda row: row[1])
def test_a_connection_that_can_not_work_is_refused_and_the_flow_is_unchanged(row):
    edge, message, *mapping = row
    ends = re.split(r"\.| -> ", edge) if isinstance(edge, str) else edge
    flow = shop()
    before = flow.serialize()
    with refused(FlowDefinitionError, message):
        flow.connect(*ends, *mapping)
    assert before == flow.serialize()


def test_ends_that_only_look_alike_are_two_connections():
    class Dotted(Routine):
        def __init__(self, event):
            super().__init__()
            self.define_event(event)

    flow = Flow()
    flow.add_routine(Dotted("b.c"), "a")
    flow.add_routine(Dotted("c"), "a.b")
    flow.add_routine(Sink(), "sink")
    flow.connect("a", "b.c", "sink", "rest")
    flow.connect("a.b", "c", "sink", "rest")
    assert 2 == len(flow.connections)


WRONG_ROUTINES = [
    (
        lambda: (Source(), "source"),
        "flow 'shop' already has a routine 'source'; pass another routine_id to add_routine",
    ),
    (lambda: (Source(), ""), "a routine's id must be a non-empty string, not ''"),
    (lambda: (Source(), 7), "a routine's id must be a non-empty string, not 7"),
    (lambda: (Source, "x"), f"{Source!r} is not a Routine; derive its class from routilux.Routine"),
]


@pytest.mark.parametrize(("make", "message"), WRONG_ROUTINES)
def test_a_routine_that_can_not_be_added_is_refused_and_the_flow_is_unchanged(make, message):
    flow = shop()
    before = flow.serialize()
    with refused(FlowDefinitionError, message):
        flow.add_routine(*make())
    assert before == flow.serialize()


WRONG_FLOWS = [
    ({"flow_id": ""}, "a flow's id must be a non-empty string, not ''"),
    ({"flow_id": 7}, "a flow's id must be a non-empty string, not 7"),
    (
        {"execution_strategy": "parallel"},
        "execution_strategy is 'parallel'; choose 'sequential' or 'concurrent'",
    ),
    ({"max_workers": 0}, "max_workers must be an int of 1 or more, not 0"),
    ({"max_workers": 1.5}, "max_workers must be an int of 1 or more, not 1.5"),
    ({"max_workers": True}, "max_workers must be an int of 1 or more, not True"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG_FLOWS)
def test_invalid_arguments_of_a_flow_are_refused(arguments, message):
    with refused(FlowDefinitionError, message):
        Flow(**arguments)


@pytest.mark.parametrize("wrong", ["retry", ErrorStrategy.RETRY, ErrorHandler, 3])
def test_an_error_handler_of_another_type_is_refused(wrong):
    flow, handler = shop(), ErrorHandler("skip")
    valid = "an ErrorHandler, such as ErrorHandler('retry', max_retries=3), or None"
    flow.set_error_handler(handler)
    with refused(
        FlowDefinitionError, f"the error handler of flow 'shop' must be {valid}, not {wrong!r}"
    ):
        flow.set_error_handler(wrong)
    assert handler is flow.error_handler
    source = flow.routines["source"]
    with refused(
        FlowDefinitionError, f"the error handler of Source must be {valid}, not {wrong!r}"
    ):
        source.set_error_handler(wrong)
    assert source.error_handler is None


# --- routines -----------------------------------------------------------------------------------


def by_position(item: object, /) -> None:
    """Can't be given a payload field by name."""


WRONG_DECLARATIONS = [
    (
        lambda r: r.define_slot("trigger", handler=r.go),
        "slot 'trigger' of Source is already defined; choose another name",
    ),
    (
        lambda r: r.define_event("output"),
        "event 'output' of Source is already defined; choose another name",
    ),
    (
        lambda r: r.define_slot("", handler=r.go),
        "slot '' of Source: a name must be a non-empty string",
    ),
    (
        lambda r: r.define_event(["output"]),
        "event ['output'] of Source: a name must be a non-empty string",
    ),
    (
        lambda r: r.define_slot("other", handler="go"),
        "slot 'other' of Source: handler 'go' can't be called",
    ),
    (
        lambda r: r.define_slot("other", handler=by_position),
        (
            "handler by_position takes 'item' by position only; payload fields are passed by name:"
            " remove the '/'"
        ),
    ),
    (
        lambda r: r.define_slot("other", handler={}.update),
        (
            "the parameters of handler dict.update are unknown, as for some built-in functions;"
            " pass a method that has named parameters and calls this function"
        ),
    ),
    (
        lambda r: r.define_event("other", "item"),
        "event 'other' of Source: the fields must be a list of names, not 'item'",
    ),
    (
        lambda r: r.define_event("other", 7),
        "event 'other' of Source: the fields must be a list of names, not 7",
    ),
    (
        lambda r: r.define_event("other", ["order no"]),
        "event 'other' of Source: the fields must be a list of names, not ['order no']",
    ),
    (
        lambda r: r.define_event("other", ["item", "item"]),
        "event 'other' of Source names a field twice: ['item', 'item']",
    ),
    (
        lambda r: r.define_event("error", ["message", "order"]),
        (
            "event 'error' of Source can't have the fields 'order'; choose from"
            " 'error_type', 'message', 'task_id', 'slot', 'attempt', 'payload'"
        ),
    ),
]


@pytest.mark.parametrize(("declare", "message"), WRONG_DECLARATIONS)
def test_a_declaration_that_can_not_work_is_refused_and_the_routine_is_unchanged(declare, message):
    routine = Source()
    slots, events = dict(routine.slots), dict(routine.events)
    with refused(FlowDefinitionError, message):
        declare(routine)
    assert (slots, events) == (routine.slots, routine.events)


class Forgetful(Routine):
    def __init__(self) -> None:
        self.define_slot("trigger", handler=lambda: None)
        self.define_event("output")


def test_a_routine_works_though_its_init_does_not_call_super():
    flow = Flow()
    flow.add_routine(Forgetful(), "a")
    assert "completed" == flow.execute("a").status
    assert ["output"] == list(flow.routines["a"].events)


@pytest.mark.parametrize("limit", [0, -1, 1.0, True, None])
def test_a_routine_class_with_an_invalid_concurrency_is_refused(limit):
    with refused(
        FlowDefinitionError, f"Many.max_concurrency must be an int of 1 or more, not {limit!r}"
    ):
        type("Many", (Routine,), {"max_concurrency": limit, "__qualname__": "Many"})


@pytest.mark.parametrize("name", ["", 7])
def test_a_routine_name_that_is_no_string_is_refused(name):
    with refused(
        FlowDefinitionError,
        f"Odd.routine_name is {name!r}; set a non-empty string, or None for module:qualname",
    ):
        type("Odd", (Routine,), {"routine_name": name, "__qualname__": "Odd"})


def test_two_classes_can_not_have_one_saved_name_and_the_first_one_keeps_it():
    class First(Routine):
        routine_name = "bad-input/taken"

    place = f"{__name__}:test_two_classes_can_not_have_one_saved_name_and_the_first_one_keeps_it"
    with refused(
        FlowDefinitionError,
        f"routine_name 'bad-input/taken' of {place}.<locals>.Second already belongs to"
        f" {place}.<locals>.First; give each class its own name",
    ):

        class Second(Routine):
            routine_name = "bad-input/taken"

    flow = Flow()
    flow.add_routine(First())
    assert isinstance(Flow.deserialize(flow.serialize()).routines["First"], First)
