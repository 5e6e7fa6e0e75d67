"""What is put together or called wrongly: one typed error with culprit, place and cure.

Each story asserts both halves: the error, and that the thing stayed as it was.
"""

from __future__ import annotations

import asyncio
import contextvars
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
    NoActiveStepError,
    NotResumableError,
    RetryAfter,
    Routine,
    Runtime,
    SavedState,
    UnserializableError,
)


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


class Runs(Routine):
    """Runs any function as its handler."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function
        self.define_slot("trigger", handler=self.run)
        self.define_event("output", ["item"])

    def run(self) -> None:
        self.function(self)


def shop() -> Flow:
    flow = Flow("shop")
    flow.add_routine(Source(), "source")
    flow.add_routine(Sink(), "sink")
    flow.connect("source", "output", "sink", "input")
    return flow


def refused(error: type[Exception], message: str) -> Any:
    return pytest.raises(error, match=f"^{re.escape(message)}$")


# --- the graph ----------------------------------------------------------------------------------

WRONG_CONNECTIONS = {
    "unknown source": (
        ("sauce", "output", "sink", "input"),
        "flow 'shop' has no routine 'sauce'; it has 'source', 'sink'",
    ),
    "unknown target": (
        ("source", "output", "sing", "input"),
        "flow 'shop' has no routine 'sing'; it has 'source', 'sink'",
    ),
    "a list for an id": (
        (["source"], "output", "sink", "input"),
        "flow 'shop' has no routine ['source']; it has 'source', 'sink'",
    ),
    "unknown event": (
        ("source", "outputs", "sink", "input"),
        "routine 'source' has no event 'outputs'; it has 'output'",
    ),
    "an event of a routine without events": (
        ("sink", "output", "sink", "input"),
        "routine 'sink' has no event 'output'; it has none",
    ),
    "unknown slot": (
        ("source", "output", "sink", "inputs"),
        "routine 'sink' has no slot 'inputs'; it has 'input', 'strict', 'rest'",
    ),
    "a list for a slot": (
        ("source", "output", "sink", ["input"]),
        "routine 'sink' has no slot ['input']; it has 'input', 'strict', 'rest'",
    ),
    "unknown field": (
        ("source", "output", "sink", "input", {"items": "item"}),
        (
            "source.output -> sink.input: param_mapping names field 'items', but event 'output' has"
            " 'item', 'count'"
        ),
    ),
    "unknown parameter": (
        ("source", "output", "sink", "input", {"item": "thing"}),
        (
            "source.output -> sink.input: param_mapping names parameter 'thing', but the handler"
            " takes 'item'"
        ),
    ),
    "two fields for one parameter": (
        ("source", "output", "sink", "input", {"count": "item"}),
        (
            "source.output -> sink.input: two fields would be delivered as 'item';"
            " map one of them to another parameter"
        ),
    ),
    "a mapping that is none": (
        ("source", "output", "sink", "input", ["item"]),
        (
            "param_mapping for source.output is ['item']; it is a mapping"
            " {event field: handler parameter} of names"
        ),
    ),
    "a mapping to no name": (
        ("source", "output", "sink", "input", {"item": ["item"]}),
        (
            "param_mapping for source.output is {'item': ['item']}; it is a mapping"
            " {event field: handler parameter} of names"
        ),
    ),
    "a required parameter that no field covers": (
        ("source", "output", "sink", "strict"),
        (
            "source.output -> sink.strict: the handler needs 'price', but the event carries 'item',"
            " 'count'; emit it, map it with param_mapping, or give it a default"
        ),
    ),
    "a connection that stands already": (
        ("source", "output", "sink", "input"),
        "source.output -> sink.input stands already; each edge is made once",
    ),
    "the same connection, mapped in another way": (
        ("source", "output", "sink", "input", {"item": "item"}),
        "source.output -> sink.input stands already; each edge is made once",
    ),
}


@pytest.mark.parametrize("case", WRONG_CONNECTIONS)
def test_a_connection_that_can_not_work_is_refused_and_the_flow_stays_as_it_was(case):
    arguments, message = WRONG_CONNECTIONS[case]
    flow = shop()
    before = flow.serialize()
    with refused(FlowDefinitionError, message):
        flow.connect(*arguments)
    assert before == flow.serialize()


def test_ends_that_only_read_alike_are_two_connections():
    class Dotted(Routine):
        def __init__(self, event: str) -> None:
            super().__init__()
            self.define_event(event)

    flow = Flow()
    flow.add_routine(Dotted("b.c"), "a")
    flow.add_routine(Dotted("c"), "a.b")
    flow.add_routine(Sink(), "sink")
    flow.connect("a", "b.c", "sink", "rest")
    flow.connect("a.b", "c", "sink", "rest")
    assert 2 == len(flow.connections)


WRONG_ROUTINES = {
    "a duplicate id": (
        lambda: (Source(), "source"),
        "flow 'shop' has a routine 'source' already; pass another routine_id to add_routine",
    ),
    "an empty id": (lambda: (Source(), ""), "a routine's id is a text, not ''"),
    "an id that is no text": (lambda: (Source(), 7), "a routine's id is a text, not 7"),
    "a class": (
        lambda: (Source, "x"),
        f"{Source!r} is no Routine; derive its class from routilux.Routine",
    ),
}


@pytest.mark.parametrize("case", WRONG_ROUTINES)
def test_a_routine_that_can_not_be_added_is_refused_and_the_flow_stays_as_it_was(case):
    make, message = WRONG_ROUTINES[case]
    flow = shop()
    before = flow.serialize()
    with refused(FlowDefinitionError, message):
        flow.add_routine(*make())
    assert before == flow.serialize()


WRONG_FLOWS = {
    "an empty id": ({"flow_id": ""}, "a flow's id is a text, not ''"),
    "an id that is no text": ({"flow_id": 7}, "a flow's id is a text, not 7"),
    "an unknown strategy": (
        {"execution_strategy": "parallel"},
        "execution_strategy is 'parallel'; choose 'sequential' or 'concurrent'",
    ),
    "no worker": ({"max_workers": 0}, "max_workers is 0; it is a whole number from 1"),
    "half a worker": ({"max_workers": 1.5}, "max_workers is 1.5; it is a whole number from 1"),
    "True workers": ({"max_workers": True}, "max_workers is True; it is a whole number from 1"),
}


@pytest.mark.parametrize("case", WRONG_FLOWS)
def test_a_flow_that_makes_no_sense_is_refused(case):
    arguments, message = WRONG_FLOWS[case]
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


# --- error handlers -----------------------------------------------------------------------------

A_DELAY = "give a finite number of seconds, 0 or more"
LEAVE_OUT = "strategy SKIP never retries: leave it out, or use ErrorStrategy.RETRY"
WRONG_HANDLERS = [
    ({"max_retries": -1}, "give an int, 0 or more, or None to never give up"),
    ({"max_retries": 1.5}, "give an int, 0 or more, or None to never give up"),
    ({"max_retries": True}, "give an int, 0 or more, or None to never give up"),
    ({"retry_delay": -0.1}, A_DELAY),
    ({"retry_delay": float("nan")}, A_DELAY),
    ({"retry_delay": float("inf")}, A_DELAY),
    ({"retry_delay": "1"}, A_DELAY),
    ({"retry_backoff": 0.5}, "give a finite number, 1 (equal delays) or more"),
    ({"retry_backoff": float("nan")}, "give a finite number, 1 (equal delays) or more"),
    ({"max_delay": -1}, f"{A_DELAY}, or None for no ceiling"),
    ({"jitter": 1.5}, "give a fraction from 0 to 1, such as 0.1 for ±10 %"),
    ({"jitter": float("nan")}, "give a fraction from 0 to 1, such as 0.1 for ±10 %"),
    ({"timeout": 0}, "give a finite number of seconds, at least 1e-9, or None for no bound"),
    ({"deadline": -3}, "give a finite number of seconds, at least 1e-9, or None for no bound"),
    (
        {"retryable_exceptions": KeyboardInterrupt},
        (
            f"{KeyboardInterrupt!r} is no class derived from Exception;"
            " give such a class or a tuple of them"
        ),
    ),
    (
        {"on_exhausted": "retry"},
        "give STOP, CONTINUE or SKIP, or max_retries=None to never give up",
    ),
    ({"strategy": "again"}, "give an ErrorStrategy or one of 'stop', 'continue', 'retry', 'skip'"),
    ({"strategy": "skip", "max_retries": 3}, LEAVE_OUT),
    ({"strategy": "skip", "retry_delay": 1.0}, LEAVE_OUT),
    ({"strategy": "skip", "on_exhausted": "skip"}, LEAVE_OUT),
]


@pytest.mark.parametrize(("options", "cure"), WRONG_HANDLERS, ids=str)
def test_an_error_handler_that_makes_no_sense_is_refused_by_option_value_and_cure(options, cure):
    name, value = list(options.items())[-1]
    with refused(FlowDefinitionError, f"ErrorHandler: {name}={value!r} is refused; {cure}"):
        ErrorHandler(**{"strategy": "retry", **options})


@pytest.mark.parametrize("seconds", [-1, float("nan"), "3"])
def test_an_impossible_wait_is_refused_where_it_is_asked_for(seconds):
    with refused(
        ValueError,
        f"RetryAfter: seconds={seconds!r} is not a delay; give a finite number of seconds,"
        " 0 or more",
    ):
        RetryAfter(seconds)


# --- routines -----------------------------------------------------------------------------------


def by_position(item: object, /) -> None:
    """Can't be given a payload field by name."""


WRONG_DECLARATIONS = {
    "a slot twice": (
        lambda r: r.define_slot("trigger", handler=r.go),
        "slot 'trigger' of Source is defined already; choose another name",
    ),
    "an event twice": (
        lambda r: r.define_event("output"),
        "event 'output' of Source is defined already; choose another name",
    ),
    "a slot without a name": (
        lambda r: r.define_slot("", handler=r.go),
        "slot '' of Source: a name is a text",
    ),
    "an event whose name is no text": (
        lambda r: r.define_event(["output"]),
        "event ['output'] of Source: a name is a text",
    ),
    "a handler that can't be called": (
        lambda r: r.define_slot("other", handler="go"),
        "slot 'other' of Source: 'go' can't be called",
    ),
    "a positional-only parameter": (
        lambda r: r.define_slot("other", handler=by_position),
        (
            "handler by_position takes 'item' by position only; payload fields are passed by name:"
            " remove the '/'"
        ),
    ),
    "a handler that hides its parameters": (
        lambda r: r.define_slot("other", handler={}.update),
        (
            "handler dict.update does not tell its parameters, as some built-in functions don't;"
            " wrap it in a method that names them"
        ),
    ),
    "one text for the fields": (
        lambda r: r.define_event("other", "item"),
        "event 'other' of Source: the fields are a list of names, not 'item'",
    ),
    "a number for the fields": (
        lambda r: r.define_event("other", 7),
        "event 'other' of Source: the fields are a list of names, not 7",
    ),
    "a field that can't be a keyword": (
        lambda r: r.define_event("other", ["order no"]),
        "event 'other' of Source: the fields are a list of names, not ['order no']",
    ),
    "a field twice": (
        lambda r: r.define_event("other", ["item", "item"]),
        "event 'other' of Source names a field twice: ['item', 'item']",
    ),
    "an error event with fields of its own": (
        lambda r: r.define_event("error", ["message", "order"]),
        (
            "event 'error' of Source has 'order'; the engine emits it, with fields among"
            " 'error_type', 'message', 'task_id', 'slot', 'attempt', 'payload'"
        ),
    ),
}


@pytest.mark.parametrize("case", WRONG_DECLARATIONS)
def test_a_declaration_that_can_not_work_is_refused_and_the_routine_stays_as_it_was(case):
    declare, message = WRONG_DECLARATIONS[case]
    routine = Source()
    slots, events = dict(routine.slots), dict(routine.events)
    with refused(FlowDefinitionError, message):
        declare(routine)
    assert (slots, events) == (routine.slots, routine.events)


class Forgetful(Routine):
    def __init__(self, first: str) -> None:
        if first == "slot":
            self.define_slot("trigger", handler=print)
        elif first == "event":
            self.define_event("output")
        elif first == "handler":
            self.set_error_handler(None)


@pytest.mark.parametrize("first", ["slot", "event", "handler", "nothing"])
def test_a_forgotten_super_init_is_named(first):
    with refused(FlowDefinitionError, "Forgetful.__init__ does not call super().__init__() first"):
        Flow().add_routine(Forgetful(first))


@pytest.mark.parametrize("limit", [0, -1, 1.0, True, None])
def test_a_routine_class_with_no_sensible_concurrency_is_not_made(limit):
    with refused(
        FlowDefinitionError, f"Many.max_concurrency is {limit!r}; it is a whole number from 1"
    ):
        type("Many", (Routine,), {"max_concurrency": limit, "__qualname__": "Many"})


@pytest.mark.parametrize("name", ["", 7])
def test_a_routine_name_that_is_no_text_is_refused(name):
    with refused(
        FlowDefinitionError,
        f"Odd.routine_name is {name!r}; it is a text, or None for the place of the class",
    ):
        type("Odd", (Routine,), {"routine_name": name, "__qualname__": "Odd"})


def test_two_classes_can_not_have_one_saved_name_and_the_first_one_keeps_it():
    class First(Routine):
        routine_name = "bad-input/taken"

    place = f"{__name__}:test_two_classes_can_not_have_one_saved_name_and_the_first_one_keeps_it"
    with refused(
        FlowDefinitionError,
        f"routine_name 'bad-input/taken' of {place}.<locals>.Second belongs to"
        f" {place}.<locals>.First already; give each class its own",
    ):

        class Second(Routine):
            routine_name = "bad-input/taken"

    flow = Flow()
    flow.add_routine(First())
    assert isinstance(Flow.deserialize(flow.serialize()).routines["First"], First)


# --- starting a job -----------------------------------------------------------------------------

WRONG_STARTS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown entry": (
        {"entry": "sauce"},
        (
            "flow 'shop' has no routine 'sauce' to start with; it has 'source', 'sink'; did you"
            " mean 'source'?"
        ),
    ),
    "a routine for its id": (
        {"entry": ["source"]},
        "flow 'shop' has no routine ['source'] to start with; it has 'source', 'sink'",
    ),
    "unknown slot": (
        {"entry": "source", "slot": "input"},
        "routine 'source' has no slot 'input' to start with; it has 'trigger'",
    ),
    "unknown field": (
        {"entry": "source", "params": {"ordre": "A7"}},
        (
            "params for source.trigger: the handler takes 'order'; what was given has 'ordre',"
            " which it does not take; did you mean 'order'?"
        ),
    ),
    "missing field": (
        {"entry": "sink", "slot": "strict", "params": {"item": 1}},
        "params for sink.strict: the handler takes 'item', 'price'; what was given misses 'price'",
    ),
    "a list for the params": (
        {"entry": "source", "params": ["A7"]},
        "params for source.trigger is a mapping of the handler's parameters by name, not ['A7']",
    ),
    "a number for a name": (
        {"entry": "sink", "slot": "rest", "params": {1: "A7"}},
        "params for sink.rest is a mapping of the handler's parameters by name, not {1: 'A7'}",
    ),
    "an empty job id": ({"entry": "source", "job_id": ""}, "a job's id is a text, not ''"),
    "a job id with half of a surrogate pair": (
        {"entry": "source", "job_id": "\udcff"},
        "a job's id is a text, not '\\udcff'",
    ),
    "a job id that is no text": ({"entry": "source", "job_id": 7}, "a job's id is a text, not 7"),
}


@pytest.mark.parametrize("case", WRONG_STARTS)
@pytest.mark.parametrize("way", ["execute", "start", "submit", "aexecute"])
def test_a_job_that_can_not_start_is_refused_and_nothing_is_stored(case, way):
    arguments, message = WRONG_STARTS[case]
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
        r" \(TypeError: .*\), and whoever reads it gets a copy; keep plain data there$",
    ):
        shop().execute("source", {"order": threading.Lock()})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": 0}, "max_steps is 0; it is a whole number from 1, or None for no limit"),
        (
            {"max_recoveries": -1},
            "max_recoveries is -1; it is a whole number from 0, or None for no limit",
        ),
        (
            {"history_limit": 1.5},
            "history_limit is 1.5; it is a whole number from 1, or None for no limit",
        ),
    ],
)
def test_a_runtime_with_a_senseless_limit_is_refused(options, message):
    with refused(FlowDefinitionError, message):
        Runtime(**options)


def test_submitting_without_a_store_says_what_is_missing():
    with refused(
        FlowDefinitionError,
        "submit() puts a job into the runtime's store, and this runtime has none;"
        " use Runtime(store=...), or start()",
    ):
        Runtime().submit(shop(), "source")


def test_an_unknown_strategy_is_refused_on_resume_and_the_job_stays_as_it_was():
    flow = Flow()
    flow.add_routine(Runs(lambda routine: 1 / 0), "runs")
    job = flow.execute("runs")
    before = job.serialize()
    with refused(
        FlowDefinitionError,
        "execution_strategy is 'parallel'; choose 'sequential' or 'concurrent'",
    ):
        flow.resume(job, execution_strategy="parallel", retry_failed=True)
    assert before == job.serialize()


def test_a_job_that_is_over_can_not_be_resumed_and_stays_as_it_was():
    flow = shop()
    flow.routines["source"].emitted = {"item": 1}
    done = flow.execute("source", job_id="j1")
    before = done.serialize()
    with refused(NotResumableError, "job j1 is completed, which is final; start a new job"):
        flow.resume(done)
    assert before == done.serialize()


# --- inside a handler ---------------------------------------------------------------------------

WRONG_EMITS = {
    "unknown event": (
        lambda r: r.emit("outputs", item=1),
        "FlowDefinitionError",
        (
            "Runs emits 'outputs', which it does not declare; it declares 'output':"
            " define_event('outputs', [...])"
        ),
    ),
    "unknown field": (
        lambda r: r.emit("output", items=1),
        "FlowDefinitionError",
        "Runs emits 'output' with 'items', which it does not declare; it declares 'item'",
    ),
    "another routine's event": (
        lambda r: Source().emit("output", item=1),
        "NoActiveStepError",
        (
            "Source.emit('output') was called while a handler of another routine runs (Runs);"
            " connect the two by an event instead"
        ),
    ),
}


@pytest.mark.parametrize("case", WRONG_EMITS)
def test_a_wrong_emit_fails_the_attempt_at_once_and_leaves_nothing_but_its_record(case):
    emit, error_type, message = WRONG_EMITS[case]

    def handler(routine: Routine) -> None:
        routine.emit("output", item="sent before")
        emit(routine)

    flow = Flow()
    flow.set_error_handler(ErrorHandler("retry", max_retries=5))
    flow.add_routine(Runs(handler), "runs")
    job = flow.execute("runs", runtime=Runtime(clock=FakeClock()))
    assert JobStatus.FAILED is job.status
    assert (f"routilux.{error_type}", message) == (job.error.type, job.error.message)
    assert (1, [], ["start", "error"]) == (
        job.routine_states["runs"].attempts,
        job.outputs,
        [record.event for record in job.execution_history],
    )


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (
            lambda r: r.emit("output"),
            "Runs.emit('output') was called outside a handler; only a running step can emit",
        ),
        (lambda r: r.ctx, "Runs.ctx is there only while one of its handlers runs"),
    ],
)
def test_emit_and_ctx_outside_a_handler_are_refused(what, message):
    with refused(NoActiveStepError, message):
        what(Runs(print))


OVER = (
    "this step is over: its handler has returned or was given up, so nothing that it does can be"
    " recorded any more; keep no ctx beyond the handler"
)
LATE_USES = {
    "emit": lambda routine, ctx: routine.emit("output", item=1),
    "routine.ctx": lambda routine, ctx: routine.ctx,
    "state": lambda routine, ctx: ctx.state.get("x"),
    "shared": lambda routine, ctx: ctx.shared.update(x=1),
    "attempt": lambda routine, ctx: ctx.attempt,
    "now": lambda routine, ctx: ctx.now(),
    "sleep": lambda routine, ctx: ctx.sleep(0),
    "random": lambda routine, ctx: ctx.random,
    "uuid": lambda routine, ctx: ctx.uuid(),
    "key": lambda routine, ctx: ctx.key("charge"),
    "once": lambda routine, ctx: ctx.once("charge", print),
}


@pytest.mark.parametrize("case", LATE_USES)
def test_what_is_kept_of_a_step_is_dead_once_its_handler_has_returned(case):
    kept: list[Any] = []

    def handler(routine: Routine) -> None:
        kept.append(contextvars.copy_context())
        kept.append(routine.ctx)

    routine = Runs(handler)
    flow = Flow()
    flow.add_routine(routine, "runs")
    job = flow.execute("runs")
    before = job.serialize()
    with refused(NoActiveStepError, OVER):
        kept[0].run(LATE_USES[case], routine, kept[1])
    assert before == job.serialize()


@pytest.mark.parametrize(
    ("where", "handler"),
    [
        ("Runs.output.item", lambda r: r.emit("output", item=threading.Lock())),
        ("ctx.state.client", lambda r: r.ctx.state.update(client=threading.Lock())),
        ("ctx.shared.client", lambda r: r.ctx.shared.update(client=threading.Lock())),
    ],
)
def test_what_can_not_be_copied_fails_the_attempt_and_is_named(where, handler):
    flow = Flow()
    flow.set_error_handler(ErrorHandler("retry", max_retries=5))
    flow.add_routine(Runs(handler), "runs")
    job = flow.execute("runs", runtime=Runtime(clock=FakeClock()))
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
        ("$.emissions[0].payload.item[1]", lambda r: r.emit("output", item=[0, Frame()])),
        ("$.state.values.frame", lambda r: r.ctx.state.update(frame=Frame())),
        ("$.shared.values.frame", lambda r: r.ctx.shared.update(frame=Frame())),
    ],
)
def test_with_a_store_an_unserialisable_value_fails_its_attempt_and_the_job_is_saved(path, handler):
    flow = Flow("shop")
    flow.set_error_handler(ErrorHandler("retry", max_retries=5))
    flow.add_routine(Runs(handler), "runs")
    runtime = Runtime(clock=FakeClock(), store=MemoryStore())
    job = flow.execute("runs", job_id="j1", runtime=runtime)
    assert JobStatus.FAILED is job.status
    assert ("routilux.UnserializableError", f"{path}: {FRAME}") == (
        job.error.type,
        job.error.message,
    )
    assert 1 == job.routine_states["runs"].attempts
    assert job == runtime.load("j1")
    flow.routines["runs"].function = lambda r: r.emit("output", item="plain")
    job = flow.resume(runtime.load("j1"), runtime=runtime, retry_failed=True)
    assert (JobStatus.COMPLETED, ["plain"]) == (job.status, [o.data["item"] for o in job.outputs])


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
    with pytest.raises(UnserializableError) as caught:
        flow.serialize()
    assert "$.flow.routines[1].error_handler.retryable_exceptions[0]" == caught.value.path
