"""flow_factory: flows in one line, from routines and plain functions."""

from __future__ import annotations

import re

import pytest

from routilux import (
    ErrorHandler,
    Flow,
    FlowDefinitionError,
    Gathered,
    JobState,
    Routine,
    Runtime,
    SavedStateError,
    UnserializableError,
)
from tests.routines import Works


def parse(text):
    return {"n": int(text)}


def double(n):
    return {"n": 2 * n}


def negate(n):
    return {"n": -n}


def keep(payload):
    return payload


def total(n):
    return {"total": n}


def order(sku, price):
    return {"sku": sku, "price": price}


def gathers(found):
    return {"found": [payload["n"] for payload in found], "dropped": [*found.dropped]}


def total_of(found, dropped):
    return {"total": sum(found), "none": dropped}


class Numbers(Works):
    def __init__(self) -> None:
        super().__init__(self.count)

    @staticmethod
    def count(self: Routine) -> None:
        for n in range(10):
            self.emit("out", n=n)


class Collect(Routine):
    def __init__(self) -> None:
        super().__init__()
        self.define_slot("all", handler=self.collect, gather=True)

    def collect(self, found: Gathered) -> None:
        self.ctx.state["found"] = [dict(payload) for payload in found]


class Fetch(Works):
    def __init__(self) -> None:
        super().__init__(lambda self: self.emit("out", text="21"), out=["text"])


class Store(Routine):
    def __init__(self) -> None:
        super().__init__()
        self.define_slot("rows", handler=self.store)

    def store(self, n: int) -> None:
        self.ctx.state["stored"] = n


class Splitter(Routine):
    def __init__(self) -> None:
        super().__init__()
        self.define_slot("left", handler=self.split)
        self.define_slot("right", handler=self.split)
        self.define_event("even", ["n"])
        self.define_event("odd", ["n"])

    def split(self, n: int) -> None:
        """Do nothing."""


def run(flow: Flow, entry: str, params: dict[str, object] | None = None) -> JobState:
    return flow.execute(entry, params, runtime=Runtime())


def outputs(job: JobState) -> list[dict[str, object]]:
    job.raise_for_status()
    return [dict(output.data) for output in job.outputs]


def edges(flow: Flow) -> list[str]:
    return [str(connection) for connection in flow.connections]


def test_a_chain_passes_what_each_function_returns_to_the_next(flow_factory):
    flow = flow_factory(chain=[parse, double, negate])
    assert ["parse", "double", "negate"] == list(flow.routines)
    assert ["parse.output -> double.input", "double.output -> negate.input"] == edges(flow)
    assert [{"n": -42}] == outputs(run(flow, "parse", {"text": "21"}))


def test_a_fan_out_gives_each_target_what_it_names(flow_factory):
    label, bill = lambda sku: {"label": f"#{sku}"}, lambda price: {"due": price}
    job = run(flow_factory(fan_out=(order, [label, bill])), "order", {"sku": "A7", "price": 19})
    assert [{"label": "#A7"}, {"due": 19}] == outputs(job)


def test_a_fan_in_can_be_entered_at_each_source(flow_factory):
    flow = flow_factory(fan_in=([double, negate], total))
    assert [{"total": 8}] == outputs(run(flow, "double", {"n": 4}))
    assert [{"total": -4}] == outputs(run(flow, "negate", {"n": 4}))


def test_fan_out_and_fan_in_with_the_same_middle_are_a_diamond(flow_factory):
    flow = flow_factory(
        chain=[Fetch(), parse], fan_out=(parse, [double, negate]), fan_in=([double, negate], total)
    )
    assert ["Fetch", "parse", "double", "negate", "total"] == list(flow.routines)
    assert [{"total": 42}, {"total": -21}] == outputs(run(flow, "Fetch"))


def test_a_gather_runs_once_with_the_results_of_all_sources(flow_factory):
    flow = flow_factory(
        chain=[Fetch(), parse],
        fan_out=(parse, [double, negate]),
        gather=([double, negate], gathers),
    )
    assert flow.routines["gathers"].slots["input"].gather
    assert ["input"] == list(flow.routines["gathers"].slots)
    assert [{"found": [42, -21], "dropped": []}] == outputs(run(flow, "Fetch"))


@pytest.mark.parametrize("strategy", ["sequential", "concurrent"])
def test_a_gather_of_many_results_comes_back_from_its_saved_form(flow_factory, strategy):
    flow = flow_factory(
        chain=[gathers, total_of],
        gather=([Numbers()], gathers),
        execution_strategy=strategy,
        error_handler=ErrorHandler("continue"),
    )
    twin = Flow.deserialize(flow.serialize())
    assert flow.fingerprint == twin.fingerprint
    for one in (flow, twin):
        assert [{"total": 45, "none": []}] == outputs(run(one, "Numbers"))


def test_a_gathering_routine_is_the_target_of_each_shape(flow_factory):
    for shape in ("chain", "fan_in", "gather"):
        nodes = [double, Collect()] if shape == "chain" else ([double], Collect())
        job = run(flow_factory(**{shape: nodes}), "double", {"n": 4})
        assert [{"n": 8}] == job.routine_states["Collect"].state["found"]


def test_a_gather_that_takes_payload_gets_all_payloads(flow_factory):
    flow = flow_factory(gather=([double], lambda payload: {"all": [*payload]}))
    assert [{"all": [{"n": 8}]}] == outputs(run(flow, "double", {"n": 4}))


def test_an_async_function_gathers(flow_factory):
    async def sums(found):
        return {"sum": sum(payload["n"] for payload in found)}

    flow = flow_factory(fan_out=(parse, [double, negate]), gather=([double, negate], sums))
    assert [{"sum": 7}] == outputs(run(flow, "parse", {"text": "7"}))


def test_a_function_twice_in_a_chain_is_two_routines(flow_factory):
    flow = flow_factory(chain=[parse, double, double, double])
    assert ["parse", "double", "double_2", "double_3"] == list(flow.routines)
    assert [{"n": 8}] == outputs(run(flow, "parse", {"text": "1"}))


def test_a_chain_mixes_routines_and_functions(flow_factory):
    flow = flow_factory(chain=[Fetch(), parse, double, Store()])
    assert "double.output -> Store.rows" == edges(flow)[-1]
    job = run(flow, "Fetch")
    job.raise_for_status()
    assert {"stored": 42} == job.routine_states["Store"].state


@pytest.mark.parametrize(
    ("takes", "returned"),
    [
        (keep, {"sku": "A7", "price": 19}),
        (lambda sku, **rest: {"sku": sku, "rest": rest}, {"sku": "A7", "rest": {"price": 19}}),
    ],
)
def test_a_parameter_called_payload_takes_all_fields_and_rest_takes_the_others(
    flow_factory, takes, returned
):
    job = run(flow_factory(chain=[order, takes]), "order", {"sku": "A7", "price": 19})
    assert [returned] == outputs(job)


def test_async_functions_are_awaited(flow_factory):
    async def double_later(n):
        return double(n)

    flow = flow_factory(chain=[parse, double_later, negate])
    assert [{"n": -42}] == outputs(run(flow, "parse", {"text": "21"}))


def test_a_function_that_returns_none_emits_nothing(flow_factory):
    job = run(flow_factory(chain=[lambda: None, keep]), "lambda")
    assert [] == outputs(job)
    assert 0 == job.routine_states["keep"].attempts


def test_the_options_are_those_of_a_flow(flow_factory):
    handler = ErrorHandler("retry", max_retries=1, retry_delay=0)
    flow = flow_factory(
        chain=[parse],
        flow_id="numbers",
        execution_strategy="concurrent",
        max_workers=2,
        error_handler=handler,
    )
    assert ("numbers", "concurrent", 2) == (flow.flow_id, flow.execution_strategy, flow.max_workers)
    assert 2 == run(flow, "parse", {"text": "x"}).routine_states["parse"].attempts


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (
            {"n": 1, "m": 2},
            "give returned the keys 'm', but no next function takes them; the next functions take",
        ),
        ({}, "give emitted 'output' without 'n', which double.input needs"),
        ([1], "give returned [1]; return the fields of the event 'output' as a dict"),
        ({1: 2}, "give returned {1: 2}; return the fields of the event 'output'"),
    ],
    ids=["a field that nobody takes", "a field that is missing", "a list", "a key that is no name"],
)
def test_an_invalid_return_value_fails_the_task(flow_factory, result, message):
    def give() -> object:
        return result

    job = run(flow_factory(chain=[give, double]), "give")
    assert "failed" == job.status
    assert "routilux.FlowDefinitionError" == job.error.type
    assert job.error.message.startswith(message)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({}, "the flow would be empty; give chain=[...]"),
        ({"chain": [parse, 7]}, "chain: 7 is neither a routine nor a function"),
        ({"chain": [Fetch, parse]}, "chain: Fetch is a class; pass an instance, Fetch(...)"),
        ({"chain": parse}, "needs a list of routines and functions, not "),
        ({"fan_out": [parse, [double]]}, "expected fan_out=(source, [target, ...]), got "),
        ({"fan_in": (double, negate, total)}, "expected fan_in=([source, ...], target), got "),
        ({"gather": (double, negate, total)}, "expected gather=([source, ...], target), got "),
        ({"gather": (double, total)}, "gather needs a list of routines and functions, not "),
        ({"gather": ([double], Store())}, "gather: Store has no gather slot; define one by"),
        ({"gather": ([double], order)}, "is a gather slot, but its handler"),
        ({"gather": ([double], total), "chain": [total, double]}, "itself"),
        ({"fan_out": (parse, double)}, "needs a list of routines and functions, not "),
        ({"chain": [Fetch(), order]}, "the handler needs 'price', 'sku', but the event carries"),
        ({"chain": [Splitter(), double]}, "Splitter has these events: 'even', 'odd'"),
        ({"chain": [double, Splitter()]}, "Splitter has these slots: 'left', 'right'"),
        ({"chain": [Store(), double]}, "Store has these events: none"),
        ({"chain": [lambda n, /: None]}, "takes 'n' by position only"),
        ({"chain": [parse, double], "fan_out": (parse, [double])}, "already exists"),
    ],
)
def test_routines_that_can_not_be_connected_are_refused(flow_factory, shapes, message):
    with pytest.raises(FlowDefinitionError, match=re.escape(message)):
        flow_factory(**shapes)  # type: ignore[arg-type]


def test_a_flow_of_top_level_functions_can_be_saved(flow_factory):
    flow = flow_factory(chain=[parse, keep, double])
    twin = Flow.deserialize(flow.serialize())
    assert flow.fingerprint == twin.fingerprint
    assert [{"n": 42}] == outputs(run(twin, "parse", {"text": "21"}))


def test_a_lambda_works_in_memory_and_is_refused_when_saved(flow_factory):
    flow = flow_factory(chain=[parse, lambda n: {"n": n + 1}])
    assert [{"n": 22}] == outputs(run(flow, "parse", {"text": "21"}))
    with pytest.raises(UnserializableError) as refused:
        flow.serialize()
    assert "$.flow.routines[1].args[0]" == refused.value.path
    assert "lambda (" in refused.value.reason
    assert "test_factory.py:" in refused.value.reason
    assert "define the function with def at the top level of a module" in refused.value.reason


@pytest.mark.parametrize(
    "name", ["os.nowhere:parse", "os:nothing", "os:path", "os:system", "os:", ":parse"]
)
def test_a_saved_name_of_no_function_is_refused(flow_factory, name):
    document = flow_factory(chain=[parse]).serialize()
    document["routines"][0]["args"][0]["value"] = name  # type: ignore[index]
    with pytest.raises(SavedStateError, match=f"no imported module defines the function '{name}'"):
        Flow.deserialize(document)
