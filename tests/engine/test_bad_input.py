"""Wrong flows, declarations and calls: each raises one typed error with its place and its cure.

Each story asserts both halves: the error, and that the thing stayed as it was.
"""

from __future__ import annotations

import asyncio
import re
import threading
from typing import Any

import pytest

from routilux import (
    ErrorHandler,
    ErrorStrategy,
    FakeClock,
    Flow,
    FlowDefinitionError,
    JobStatus,
    MemoryStore,
    Routine,
    Runtime,
    SavedState,
    UnserializableError,
)
from tests.routines import Works, chain, outputs, refused_at, retrying, run


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

WRONG_CONNECTIONS: list[tuple[Any, ...]] = [
    ("sauce.output -> sink.input", "flow 'shop' has no routine 'sauce'; it has 'source', 'sink'"),
    ("source.output -> sing.input", "flow 'shop' has no routine 'sing'; it has 'source', 'sink'"),
    (
        (["source"], "output", "sink", "input"),
        "flow 'shop' has no routine ['source']; it has 'source', 'sink'",
    ),
    ("source.outputs -> sink.input", "routine 'source' has no event 'outputs'; it has 'output'"),
    ("sink.output -> sink.input", "routine 'sink' has no event 'output'; it has none"),
    (
        "source.output -> sink.inputs",
        "routine 'sink' has no slot 'inputs'; it has 'input', 'strict', 'rest'",
    ),
    (
        ("source", "output", "sink", ["input"]),
        "routine 'sink' has no slot ['input']; it has 'input', 'strict', 'rest'",
    ),
    (
        "source.output -> sink.input",
        (
            "source.output -> sink.input: param_mapping names field 'items', but event 'output' has"
            " 'item', 'count'"
        ),
        {"items": "item"},
    ),
    (
        "source.output -> sink.input",
        (
            "source.output -> sink.input: param_mapping names parameter 'thing', but the handler"
            " takes 'item'"
        ),
        {"item": "thing"},
    ),
    (
        "source.output -> sink.input",
        (
            "source.output -> sink.input: two fields would be delivered as 'item';"
            " map one of them to another parameter"
        ),
        {"count": "item"},
    ),
    (
        "source.output -> sink.input",
        (
            "param_mapping for source.output is ['item']; it is a mapping"
            " {event field: handler parameter} of names"
        ),
        ["item"],
    ),
    (
        "source.output -> sink.input",
        (
            "param_mapping for source.output is {'item': ['item']}; it is a mapping"
            " {event field: handler parameter} of names"
        ),
        {"item": ["item"]},
    ),
    (
        "source.output -> sink.strict",
        (
            "source.output -> sink.strict: the handler needs 'price', but the event carries 'item',"
            " 'count'; emit it, map it with param_mapping, or give it a default"
        ),
    ),
    (
        "source.output -> sink.input",
        "source.output -> sink.input already exists; connect the two only once",
    ),
    (
        "source.output -> sink.input",
        "source.output -> sink.input already exists; connect the two only once",
        {"item": "item"},
    ),
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


def test_ends_that_only_read_alike_are_two_connections():
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
    (lambda: (Source(), ""), "a routine's id is a text, not ''"),
    (lambda: (Source(), 7), "a routine's id is a text, not 7"),
    (lambda: (Source, "x"), f"{Source!r} is no Routine; derive its class from routilux.Routine"),
]


@pytest.mark.parametrize(("make", "message"), WRONG_ROUTINES)
def test_a_routine_that_can_not_be_added_is_refused_and_the_flow_is_unchanged(make, message):
    flow = shop()
    before = flow.serialize()
    with refused(FlowDefinitionError, message):
        flow.add_routine(*make())
    assert before == flow.serialize()


WRONG_FLOWS = [
    ({"flow_id": ""}, "a flow's id is a text, not ''"),
    ({"flow_id": 7}, "a flow's id is a text, not 7"),
    (
        {"execution_strategy": "parallel"},
        "execution_strategy is 'parallel'; choose 'sequential' or 'concurrent'",
    ),
    ({"max_workers": 0}, "max_workers is 0; it is a whole number from 1"),
    ({"max_workers": 1.5}, "max_workers is 1.5; it is a whole number from 1"),
    ({"max_workers": True}, "max_workers is True; it is a whole number from 1"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG_FLOWS)
def test_a_flow_that_makes_no_sense_is_refused(arguments, message):
    with refused(FlowDefinitionError, message):
        Flow(**arguments)


@pytest.mark.parametrize("wrong", ["retry", ErrorStrategy.RETRY, ErrorHandler, 3])
def test_an_error_handler_of_another_type_is_refused_and_the_old_one_stays(wrong):
    flow, handler = shop(), ErrorHandler("skip")
    cure = "give an ErrorHandler, such as ErrorHandler('retry', max_retries=3), or None"
    flow.set_error_handler(handler)
    with refused(FlowDefinitionError, f"the error handler of flow 'shop' is {wrong!r}; {cure}"):
        flow.set_error_handler(wrong)
    assert handler is flow.error_handler
    source = flow.routines["source"]
    with refused(FlowDefinitionError, f"the error handler of Source is {wrong!r}; {cure}"):
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
    (lambda r: r.define_slot("", handler=r.go), "slot '' of Source: a name is a non-empty string"),
    (
        lambda r: r.define_event(["output"]),
        "event ['output'] of Source: a name is a non-empty string",
    ),
    (
        lambda r: r.define_slot("other", handler="go"),
        "slot 'other' of Source: 'go' can't be called",
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
            "the parameters of handler dict.update can't be read, as of some built-in functions;"
            " wrap it in a method that names them"
        ),
    ),
    (
        lambda r: r.define_event("other", "item"),
        "event 'other' of Source: the fields are a list of names, not 'item'",
    ),
    (
        lambda r: r.define_event("other", 7),
        "event 'other' of Source: the fields are a list of names, not 7",
    ),
    (
        lambda r: r.define_event("other", ["order no"]),
        "event 'other' of Source: the fields are a list of names, not ['order no']",
    ),
    (
        lambda r: r.define_event("other", ["item", "item"]),
        "event 'other' of Source names a field twice: ['item', 'item']",
    ),
    (
        lambda r: r.define_event("error", ["message", "order"]),
        (
            "event 'error' of Source has 'order'; the engine emits it, with fields among"
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


def test_a_routine_works_though_its_init_does_not_call_that_of_the_base_class():
    flow = Flow()
    flow.add_routine(Forgetful(), "a")
    assert "completed" == flow.execute("a").status
    assert ["output"] == list(flow.routines["a"].events)


@pytest.mark.parametrize("limit", [0, -1, 1.0, True, None])
def test_a_routine_class_with_no_sensible_concurrency_is_not_made(limit):
    with refused(FlowDefinitionError, f"Many.max_concurrency is {limit!r}; set an int, 1 or more"):
        type("Many", (Routine,), {"max_concurrency": limit, "__qualname__": "Many"})


@pytest.mark.parametrize("name", ["", 7])
def test_a_routine_name_that_is_no_text_is_refused(name):
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
        f" {place}.<locals>.First; give each class its own",
    ):

        class Second(Routine):
            routine_name = "bad-input/taken"

    flow = Flow()
    flow.add_routine(First())
    assert isinstance(Flow.deserialize(flow.serialize()).routines["First"], First)


# --- starting a job -----------------------------------------------------------------------------

WRONG_STARTS = [
    (
        {"entry": "sauce"},
        (
            "flow 'shop' has no routine 'sauce' to start with; it has 'source', 'sink'; did you"
            " mean 'source'?"
        ),
    ),
    (
        {"entry": ["source"]},
        "flow 'shop' has no routine ['source'] to start with; it has 'source', 'sink'",
    ),
    (
        {"entry": "source", "slot": "input"},
        "routine 'source' has no slot 'input' to start with; it has 'trigger'",
    ),
    (
        {"entry": "source", "params": {"ordre": "A7"}},
        (
            "params for source.trigger: the handler takes 'order'; the mapping has 'ordre',"
            " which it does not take; did you mean 'order'?"
        ),
    ),
    (
        {"entry": "sink", "slot": "strict", "params": {"item": 1}},
        "params for sink.strict: the handler takes 'item', 'price'; the mapping misses 'price'",
    ),
    (
        {"entry": "source", "params": ["A7"]},
        "params for source.trigger is a mapping of the handler's parameters by name, not ['A7']",
    ),
    (
        {"entry": "sink", "slot": "rest", "params": {1: "A7"}},
        "params for sink.rest is a mapping of the handler's parameters by name, not {1: 'A7'}",
    ),
    ({"entry": "source", "job_id": ""}, "a job's id is a text, not ''"),
    ({"entry": "source", "job_id": "\udcff"}, "a job's id is a text, not '\\udcff'"),
    ({"entry": "source", "job_id": 7}, "a job's id is a text, not 7"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG_STARTS)
@pytest.mark.parametrize("way", ["execute", "start", "submit", "aexecute"])
def test_a_job_that_can_not_start_is_refused_and_nothing_is_stored(arguments, message, way):
    store = MemoryStore()
    with Runtime(clock=FakeClock(), store=store) as runtime:
        with refused(FlowDefinitionError, message):
            if way == "aexecute":
                asyncio.run(runtime.aexecute(shop(), **arguments))
            else:
                getattr(runtime, way)(shop(), **arguments)
        assert [] == store.job_ids()


def test_params_that_can_not_be_copied_are_refused_by_name():
    with pytest.raises(
        UnserializableError,
        match=r"^params for source\.trigger\.order: _thread\.lock can't be copied"
        r" \(TypeError: .*\); use plain data, since each reader gets a copy$",
    ):
        shop().execute("source", {"order": threading.Lock()})


@pytest.mark.parametrize(
    ("name", "value", "least"),
    [
        *[("max_steps", value, 1) for value in (0, True, 1.5)],
        ("max_recoveries", -1, 0),
        *[("history_limit", value, 1) for value in (0, 1.5, "10")],
    ],
)
def test_a_runtime_with_a_limit_that_makes_no_sense_is_refused(name, value, least):
    cure = f"it is a whole number from {least}, or None for no limit"
    with refused(FlowDefinitionError, f"{name} is {value!r}; {cure}"):
        Runtime(**{name: value})


def test_submitting_without_a_store_is_refused_with_the_cure():
    with refused(
        FlowDefinitionError,
        "submit() puts a job into the runtime's store, and this runtime has none;"
        " use Runtime(store=...), or start()",
    ):
        Runtime().submit(shop(), "source")


def test_an_unknown_strategy_is_refused_on_resume_and_the_job_is_unchanged():
    flow = chain(runs=lambda routine: 1 / 0)
    job = flow.execute("runs")
    before = job.serialize()
    with refused(
        FlowDefinitionError, "execution_strategy is 'parallel'; choose 'sequential' or 'concurrent'"
    ):
        flow.resume(job, execution_strategy="parallel", retry_failed=True)
    assert before == job.serialize()


# --- inside a handler ---------------------------------------------------------------------------

WRONG_EMITS = [
    (
        lambda r: r.emit("outputs", item=1),
        "FlowDefinitionError",
        (
            "Works emits 'outputs', which it does not declare; it declares 'out':"
            " define_event('outputs', [...])"
        ),
    ),
    (
        lambda r: r.emit("out", m=1),
        "FlowDefinitionError",
        "Works emits 'out' with 'm', which it does not declare; it declares 'n'",
    ),
    (
        lambda r: Source().emit("output", item=1),
        "NoActiveStepError",
        (
            "Source.emit('output') was called while a handler of another routine runs (Works);"
            " connect the two by an event instead"
        ),
    ),
]


@pytest.mark.parametrize(("emit", "error_type", "message"), WRONG_EMITS)
def test_a_wrong_emit_fails_the_attempt_at_once_and_leaves_nothing_but_its_record(
    emit, error_type, message
):
    def handler(routine):
        routine.emit("out", n="sent before")
        emit(routine)

    job = run(chain(runs=Works(handler, retrying(max_retries=5))), "runs")
    assert JobStatus.FAILED is job.status
    assert (f"routilux.{error_type}", message) == (job.error.type, job.error.message)
    assert (1, [], ["start", "error"]) == (
        job.routine_states["runs"].attempts,
        job.outputs,
        [record.event for record in job.execution_history],
    )


@pytest.mark.parametrize(
    ("where", "handler"),
    [
        ("Works.out.n", lambda r: r.emit("out", n=threading.Lock())),
        ("ctx.state.client", lambda r: r.ctx.state.update(client=threading.Lock())),
        ("ctx.shared.client", lambda r: r.ctx.shared.update(client=threading.Lock())),
    ],
)
def test_a_value_that_can_not_be_copied_fails_the_attempt_and_is_named(where, handler):
    job = run(chain(runs=Works(handler, retrying(max_retries=5))), "runs")
    assert "routilux.UnserializableError" == job.error.type
    assert job.error.message.startswith(f"{where}: _thread.lock can't be copied (TypeError: ")
    assert 1 == job.routine_states["runs"].attempts


# --- payloads that can't be saved ---------------------------------------------------------------


class Frame:
    """Can be copied, but has no saved form."""


FRAME = (
    f"{__name__}.Frame has no saved form; give it a form with register_type, or keep plain data"
    " instead"
)


@pytest.mark.parametrize(
    ("path", "handler"),
    [
        ("$.emissions[0].payload.n[1]", lambda r: r.emit("out", n=[0, Frame()])),
        ("$.state.values.frame", lambda r: r.ctx.state.update(frame=Frame())),
        ("$.shared.values.frame", lambda r: r.ctx.shared.update(frame=Frame())),
    ],
)
def test_with_a_store_an_unserialisable_value_fails_its_attempt_and_the_job_is_saved(path, handler):
    flow = chain(runs=Works(handler, retrying(max_retries=5)))
    runtime = Runtime(clock=FakeClock(), store=MemoryStore())
    job = flow.execute("runs", job_id="j1", runtime=runtime)
    assert JobStatus.FAILED is job.status
    assert ("routilux.UnserializableError", f"{path}: {FRAME}") == (
        job.error.type,
        job.error.message,
    )
    assert 1 == job.routine_states["runs"].attempts
    assert job == runtime.load("j1")
    flow = chain(runs=lambda r: r.emit("out", n="plain"))
    job = flow.resume(runtime.load("j1"), runtime=runtime, retry_failed=True)
    assert (JobStatus.COMPLETED, ["plain"]) == (job.status, outputs(job))


def test_with_a_store_unserialisable_params_start_nothing():
    store = MemoryStore()
    with refused(UnserializableError, f"$.tasks[0].payload.order: {FRAME}"):
        shop().execute(
            "source", {"order": Frame()}, runtime=Runtime(clock=FakeClock(), store=store)
        )
    assert [] == store.job_ids()


def test_without_a_store_the_job_runs_and_capturing_it_names_the_place(tmp_path):
    path = tmp_path / "job.json"
    flow = shop()
    flow.routines["source"].emitted = {"item": "plain"}
    SavedState.capture(flow, flow.execute("source")).write(path)
    before = path.read_bytes()

    flow.routines["source"].emitted = {"item": Frame()}
    done = flow.execute("source")
    assert JobStatus.COMPLETED is done.status
    with refused(UnserializableError, f"$.commits[1].emissions[0].payload.item: {FRAME}"):
        SavedState.capture(flow, done).write(path)

    waiting = done.at(2)
    with refused(UnserializableError, f"$.pending_tasks[0].payload.item: {FRAME}"):
        SavedState.capture(flow, waiting).write(path)
    assert (before, [path]) == (path.read_bytes(), list(tmp_path.iterdir()))


def test_a_constructor_argument_without_a_saved_form_is_named_by_its_place():
    flow = Flow()
    flow.add_routine(Source(item=Frame()), "source")
    with refused(UnserializableError, f"$.flow.routines[0].kwargs.item: {FRAME}"):
        flow.serialize()


def test_an_exception_class_without_a_saved_name_is_named_by_its_place():
    class Local(Exception):
        pass

    flow = shop()
    flow.routines["sink"].set_error_handler(ErrorHandler("retry", retryable_exceptions=Local))
    place = "$.flow.routines[1].error_handler.retryable_exceptions[0]"
    with refused_at(place, "Local", UnserializableError):
        flow.serialize()
