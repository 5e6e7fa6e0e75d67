"""Wrong starts, wrong calls of a handler, and payloads without a saved form.

Each test asserts both halves: the error with its cure, and that the job or store is unchanged.
"""

from __future__ import annotations

import threading

import pytest

from routilux import (
    ErrorHandler,
    FakeClock,
    Flow,
    FlowDefinitionError,
    JobStatus,
    MemoryStore,
    Runtime,
    SavedState,
    UnserializableError,
)
from tests.graph.test_definitions import Source, refused, shop
from tests.routines import Works, arun, chain, error_of, outputs, refused_at, retrying, run

WRONG_STARTS = [
    (
        {"entry": "sauce"},
        (
            "flow 'shop' has no routine 'sauce' to start with; its routines: 'source', 'sink';"
            " did you mean 'source'?"
        ),
    ),
    (
        {"entry": ["source"]},
        "flow 'shop' has no routine ['source'] to start with; its routines: 'source', 'sink'",
    ),
    (
        {"entry": "source", "slot": "input"},
        "routine 'source' has no slot 'input' to start with; its slots: 'trigger'",
    ),
    (
        {"entry": "source", "params": {"ordre": "A7"}},
        (
            "params for source.trigger: the handler takes 'order'; the mapping has 'ordre',"
            " which the handler does not take; did you mean 'order'?"
        ),
    ),
    (
        {"entry": "sink", "slot": "strict", "params": {"item": 1}},
        "params for sink.strict: the handler takes 'item', 'price'; the mapping lacks 'price'",
    ),
    (
        {"entry": "source", "params": ["A7"]},
        "params for source.trigger must map parameter names to values, not ['A7']",
    ),
    (
        {"entry": "sink", "slot": "rest", "params": {1: "A7"}},
        "params for sink.rest must map parameter names to values, not {1: 'A7'}",
    ),
    *[
        (
            {"entry": "source", "job_id": job_id},
            (
                "a job's id must be a string of 1 to 255 characters, without NUL and lone"
                f" surrogates, not {shown}"
            ),
        )
        for job_id, shown in (
            ("", "''"),
            ("\udcff", "'\\udcff'"),
            (7, "7"),
            ("a\0b", "'a\\x00b'"),
            ("x" * 256, f"'{'x' * 96}..."),
        )
    ],
]


@pytest.mark.parametrize(("arguments", "message"), WRONG_STARTS)
@pytest.mark.parametrize("way", ["execute", "start", "submit", "aexecute"])
def test_a_job_that_can_not_start_is_refused_and_nothing_is_stored(arguments, message, way):
    store = MemoryStore()
    with Runtime(clock=FakeClock(), store=store) as runtime:
        with refused(FlowDefinitionError, message):
            if way == "aexecute":
                arun(runtime, runtime.aexecute(shop(), **arguments))
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
def test_a_runtime_with_an_invalid_limit_is_refused(name, value, least):
    valid = f"an int of {least} or more, or None for no limit"
    with refused(FlowDefinitionError, f"{name} must be {valid}, not {value!r}"):
        Runtime(**{name: value})


def test_submitting_without_a_store_is_refused_with_the_cure():
    with refused(
        FlowDefinitionError,
        "submit() needs a store, but this runtime has none;"
        " use Runtime(store=...), or call start()",
    ):
        Runtime().submit(shop(), "source")


@pytest.mark.parametrize("option", ["allow_changed_flow", "retry_failed"])
@pytest.mark.parametrize("given", ["yes", 1, None])
def test_an_option_of_resume_that_is_no_bool_is_refused_and_the_job_is_unchanged(option, given):
    flow = chain(a=lambda self: 1 / 0 and None)
    job = run(flow)
    before = job.serialize()
    with pytest.raises(FlowDefinitionError, match=f"{option} must be True or False, not {given!r}"):
        flow.resume(job, runtime=Runtime(clock=FakeClock()), **{option: given})
    assert before == job.serialize()


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

LOCK = "_thread.lock can't be copied (TypeError: "
WRONG_STEPS = [
    (
        lambda r: r.emit("outputs", item=1),
        "FlowDefinitionError",
        "Works emits the undeclared event 'outputs'; it declares 'out'; add",
    ),
    (
        lambda r: r.emit("out", m=1),
        "FlowDefinitionError",
        "Works emits 'out' with 'm', which the event does not declare; this event has 'n'",
    ),
    (
        lambda r: Source().emit("output", item=1),
        "NoActiveStepError",
        "Source.emit('output') was called while a handler of another routine runs (Works);",
    ),
    (
        lambda r: r.emit("out", n=threading.Lock()),
        "UnserializableError",
        f"Works.out.n: {LOCK}",
    ),
    (
        lambda r: r.ctx.state.update(client=threading.Lock()),
        "UnserializableError",
        f"ctx.state.client: {LOCK}",
    ),
    (
        lambda r: r.ctx.shared.update(client=threading.Lock()),
        "UnserializableError",
        f"ctx.shared.client: {LOCK}",
    ),
]


@pytest.mark.parametrize(("wrong", "error_type", "message"), WRONG_STEPS)
def test_a_wrong_step_fails_its_attempt_and_leaves_only_its_record(wrong, error_type, message):
    def handler(routine):
        routine.emit("out", n="sent before")
        wrong(routine)

    job = run(chain(runs=Works(handler, retrying(max_retries=5))), "runs")
    kind, text = error_of(job)
    assert (error_type, message) == (kind, text[: len(message)])
    assert 1 == job.routine_states["runs"].attempts
    assert [] == job.outputs
    assert ["start", "error"] == [record.event for record in job.execution_history]


# --- payloads that can't be saved ---------------------------------------------------------------


class Frame:
    """Can be copied, but has no saved form."""


FRAME = (
    f"{__name__}.Frame has no saved form; register a form with register_type, or save plain data"
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
    assert ("UnserializableError", f"{path}: {FRAME}") == error_of(job)
    assert 1 == job.routine_states["runs"].attempts
    assert job == runtime.load("j1")
    flow = chain(runs=lambda r: r.emit("out", n="plain"))
    job = flow.resume(runtime.load("j1"), runtime=runtime, retry_failed=True)
    assert (JobStatus.COMPLETED, ["plain"]) == (job.status, outputs(job))


def test_with_a_store_unserialisable_params_are_refused_at_the_start():
    store = MemoryStore()
    runtime = Runtime(clock=FakeClock(), store=store)
    with refused(UnserializableError, f"$.tasks[0].payload.order: {FRAME}"):
        shop().execute("source", {"order": Frame()}, runtime=runtime)
    assert [] == store.job_ids()


def test_without_a_store_the_job_runs_and_its_capture_names_the_value(tmp_path):
    path = tmp_path / "job.json"
    path.write_bytes(b"before")
    flow = shop()
    flow.routines["source"].emitted = {"item": Frame()}
    done = flow.execute("source")
    assert JobStatus.COMPLETED is done.status
    for job, place in ((done, "$.commits[1].emissions[0]"), (done.at(2), "$.pending_tasks[0]")):
        with refused(UnserializableError, f"{place}.payload.item: {FRAME}"):
            SavedState.capture(flow, job).write(path)
    assert (b"before", [path]) == (path.read_bytes(), list(tmp_path.iterdir()))


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
