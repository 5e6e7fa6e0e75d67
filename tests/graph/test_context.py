"""The context of a step: state, conflicts, effects, ids, randomness, and its end."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routilux import (
    Context,
    FakeClock,
    JobState,
    NoActiveStepError,
    Routine,
    Runtime,
)
from tests.engine.concurrency import at_once
from tests.routines import (
    MODES,
    PATIENCE,
    Wide,
    Works,
    chain,
    error_of,
    fan,
    kinds,
    outputs,
    rest,
    retrying,
    run,
    sends,
)

# --- state and shared data ------------------------------------------------------------------------


@MODES
def test_what_a_handler_writes_is_committed_when_it_returns(workers):
    held: list[int] = []

    def writes(self, n):
        assert self.ctx.state.get("runs") is None
        self.ctx.state["runs"] = 1
        held.append(n)
        self.ctx.shared["xs"] = held
        self.emit("out", n=n)

    def reads(self, n):
        assert {"xs": [n]} == dict(self.ctx.shared)
        assert {} == dict(self.ctx.state)  # a routine's state is its own
        self.ctx.shared["xs"].append(n + 1)

    job = run(chain(workers=workers, writes=writes, reads=reads), "writes", n=7)
    job.raise_for_status()
    held.append(9)
    assert {"runs": 1} == job.routine_states["writes"].state
    assert {"xs": [7, 8]} == job.shared_data
    assert job.at(2).shared_data == {"xs": [7]}


@MODES
def test_a_failed_attempt_leaves_no_trace_but_its_record(workers):
    def careless(self, n=0):
        self.ctx.state["tries"] = self.ctx.attempt
        self.ctx.shared["seen"] = True
        self.emit("out", n=self.ctx.attempt)
        if self.ctx.attempt < 3:
            raise ValueError
        del self.ctx.shared["seen"]

    job = run(chain(workers=workers, a=Works(careless, retrying(retry_delay=0))))
    assert {"tries": 3} == job.routine_states["a"].state
    assert {} == job.shared_data
    assert [3] == outputs(job)
    assert ["start", "retry", "retry", "done"] == kinds(job)


_keys = st.sampled_from("abc")
_operations = st.lists(
    st.tuples(
        st.sampled_from(["set", "delete", "append", "get", "iterate", "clear"]),
        _keys,
        st.integers(0, 2),
    ),
    max_size=12,
)
_values = st.one_of(st.integers(0, 2), st.lists(st.integers(0, 2), max_size=2))


@given(st.dictionaries(_keys, _values), _operations)
def test_shared_data_behaves_as_a_dict_and_its_last_value_is_committed(before, operations):
    model = {key: list(v) if isinstance(v, list) else v for key, v in before.items()}

    def puts(self):
        self.ctx.shared.update(before)
        self.emit("out", n=0)

    def plays(self, n):
        view: Any = self.ctx.shared
        for name, key, value in operations:
            for target in (model, view):
                if name == "set":
                    target[key] = value
                elif name == "delete":
                    target.pop(key, None)
                elif name == "append" and isinstance(target.get(key), list):
                    target[key].append(value)
                elif name == "clear":
                    target.clear()
            assert (key in model) is (key in view)
            assert model.get(key) == view.get(key)
            if name == "iterate":
                assert sorted(model) == sorted(view)
                assert len(model) == len(view)
                assert model == view

    job = run(chain(puts=puts, plays=plays), "puts")
    job.raise_for_status()
    assert model == job.shared_data
    assert (model == before) is (job.commits[-1].shared is None), "only changes are written"


def test_a_key_that_is_not_a_string_is_refused():
    def writes(self):
        self.ctx.shared[3] = 1

    kind, message = error_of(run(chain(a=writes)))
    assert "TypeError" == kind
    assert "not 3" in message


# --- conflicts ------------------------------------------------------------------------------------

READS: dict[str, Callable[[Any], object]] = {
    "subscript": lambda shared: shared["key"],
    "get": lambda shared: shared.get("key"),
    "get of what is missing": lambda shared: shared.get("new"),
    "in": lambda shared: "key" in shared,
    "not in": lambda shared: "new" not in shared,
    "iteration": lambda shared: list(shared),
    "items": lambda shared: dict(shared.items()),
    "len": len,
    "comparison": lambda shared: shared == {},
    "pop": lambda shared: shared.pop("key"),
    "setdefault": lambda shared: shared.setdefault("new", 1),
    "mutation": lambda shared: shared["key"].append(5),
    "delete": lambda shared: shared.__delitem__("key"),
    "setting an equal value": lambda shared: shared.update(key=[0]),
    "get of a key that is removed": lambda shared: shared.get("gone"),
}


def conflicting(reads: Callable[[Any], object], error: Exception | None = None) -> JobState:
    def puts(self: Routine) -> None:
        self.ctx.shared["key"] = [0]
        self.ctx.shared["other"] = self.ctx.shared["gone"] = 0
        self.emit("out", n=0)

    def quick(self: Routine, n: object) -> None:
        self.ctx.shared["key"] = [1]
        self.ctx.shared["new"] = 1
        del self.ctx.shared["gone"]

    def slow(self: Routine, n: object) -> None:
        reads(self.ctx.shared)
        self.ctx.sleep(1)
        if error is not None and self.ctx.shared.get("key") == [0]:
            raise error

    return run(fan(puts, workers=2, slow=slow, quick=quick), "source")


@pytest.mark.parametrize(
    ("how", "error"), [*((how, None) for how in READS), ("get", KeyError("stale"))]
)
def test_a_step_that_read_a_key_which_another_step_changed_runs_again_without_a_retry(how, error):
    job = conflicting(READS[how], error)
    job.raise_for_status()
    assert ["start", "done", "done", "conflict", "done"] == kinds(job)
    again, done = job.commits[3:]
    assert [("slow", 1)] * 2 == [(c.routine_id, c.attempt) for c in (again, done)]
    assert 0 == job.retry_count("slow")
    assert 1 == job.routine_states["slow"].attempts


@pytest.mark.parametrize(
    "how",
    [lambda shared: None, lambda shared: shared["other"], lambda shared: shared.update(other=9)],
    ids=["nothing", "another key", "a write of another key"],
)
def test_a_step_that_read_nothing_that_changed_is_not_run_again(how):
    assert ["start", "done", "done", "done"] == kinds(conflicting(how))


@MODES
def test_a_routine_that_runs_several_steps_may_read_its_state_and_not_write_it(workers):
    def reads(self, n=0):
        self.emit("out", n=self.ctx.state.get("nothing", "default"))

    def writes(self, n):
        self.ctx.state["count"] = 1

    job = run(chain(workers=workers, a=Wide(reads), b=Wide(writes, retrying())))
    kind, message = error_of(job)
    assert "default" == job.commits[1].emissions[0].payload["n"]
    assert "FlowDefinitionError" == kind
    assert "ctx.state[count]" in message
    assert "use an accumulator such as ctx.state.add, ctx.shared, or max_conc" in message
    assert 0 == job.retry_count()


# --- once -----------------------------------------------------------------------------------------


@MODES
def test_a_recorded_effect_is_not_run_again_by_later_attempts_or_after_a_resume(workers):
    calls: list[tuple[int, int]] = []

    def charge(amount, *, factor):
        calls.append((amount, factor))
        return [amount * factor]

    def pays(self, n):
        receipt = self.ctx.once("charge", charge, n, factor=2)
        receipt.append(0)  # its own copy
        if self.ctx.attempt < 3:
            raise ValueError
        self.emit("out", n=receipt)

    flow = chain(workers=workers, a=Works(pays, retrying(retry_delay=1)))
    job = run(flow, n=21)
    with Runtime(clock=FakeClock()) as runtime:
        resumed = flow.resume(JobState.deserialize(job.at(3).serialize()), runtime=runtime)
    assert [(21, 2)] == calls
    assert [[42, 0]] == outputs(job) == outputs(resumed)
    assert ["start", "effect", "retry", "retry", "done"] == kinds(job)


@MODES
def test_an_effect_is_committed_and_seen_before_the_handlers_next_line(workers):
    seen: list[str] = []

    class Observer:
        def on_commit(self, job, commit):
            seen.append(commit.kind.value)

    def pays(self):
        self.ctx.once("charge", seen.append, "charged")
        seen.append("next line")

    run(chain(workers=workers, a=pays), observers=[Observer()])
    assert ["start", "charged", "effect", "next line", "done"] == seen


def test_an_error_in_an_effect_is_not_recorded():
    calls: list[int] = []

    def pays(self):
        calls.append(1)
        self.ctx.once("charge", lambda: 1 // (len(calls) - 1))

    job = run(chain(a=Works(pays, retrying())))
    assert ["start", "retry", "effect", "done"] == kinds(job)


@pytest.mark.parametrize(
    ("arguments", "message", "commits"),
    [
        ([1, 1], "once('charge') is called twice in one attempt of a", ["effect", "failed"]),
        (["attempt"], "had other arguments in an earlier attempt", ["effect", "retry", "failed"]),
    ],
    ids=["twice in an attempt", "other arguments"],
)
def test_an_effect_has_one_call_in_an_attempt_and_the_same_arguments_in_each(
    arguments, message, commits
):
    def pays(self):
        for argument in arguments:
            self.ctx.once("charge", int, self.ctx.attempt if argument == "attempt" else argument)
        raise ValueError

    job = run(chain(a=Works(pays, retrying())))
    assert message in error_of(job)[1]
    assert ["start", *commits] == kinds(job)


def test_arguments_and_results_without_a_saved_form_are_refused_with_their_path():
    called: list[int] = []

    def gives(self):
        self.ctx.once("lock", threading.Lock)

    def takes(self):
        self.ctx.once("lock", called.append, threading.Lock())

    for body, path in ((gives, "$.once['lock'].result"), (takes, "$.once['lock'].arguments")):
        kind, message = error_of(job := run(chain(a=Works(body, retrying()))))
        assert ("UnserializableError", True) == (kind, path in message)
        assert ["start", "failed"] == kinds(job)
    assert [] == called


def test_an_async_effect_is_refused():
    async def charge():
        pass

    def pays(self):
        self.ctx.once("charge", charge)

    kind, message = error_of(job := run(chain(a=Works(pays, retrying()))))
    assert "FlowDefinitionError" == kind
    assert message.startswith("once('charge') of a calls an async function")
    assert ["start", "failed"] == kinds(job)


def test_an_effect_may_be_run_by_a_thread_of_the_handler():
    def pays(self):
        ctx = self.ctx
        at_once(lambda: ctx.once("charge", int, 3))

    job = run(chain(workers=2, a=pays))
    assert ["start", "effect", "done"] == kinds(job)


# --- ids and random numbers -----------------------------------------------------------------------


@MODES
def test_ids_and_random_numbers_repeat_in_each_attempt_and_differ_between_tasks(workers):
    seen: dict[str, list[tuple[object, ...]]] = {}

    def draws(self, n):
        ctx = self.ctx
        keys = ctx.idempotency_key, ctx.key("mail")
        drawn = ctx.random.random(), ctx.uuid(), ctx.random.randrange(10**9), ctx.uuid()
        seen.setdefault(ctx.task_id, []).append(keys + drawn)
        if ctx.attempt < 3:
            raise ValueError

    flow = fan(sends(1, 2), workers=workers, a=Works(draws, retrying(retry_delay=1)))
    run(flow, "source", job_id="j7")
    assert ["0.0", "0.1"] == sorted(seen)
    for task_id, attempts in seen.items():
        assert 3 == len(attempts)
        assert 1 == len(set(attempts)), "an attempt saw other values"
        key, effect, _, uuid, _, other = attempts[0]
        assert (f"j7/{task_id}", f"j7/{task_id}/mail") == (key, effect)
        assert isinstance(uuid, UUID)
        assert (4, True) == (uuid.version, uuid != other)
    assert not set(seen["0.0"][0]) & set(seen["0.1"][0])


def test_random_numbers_are_the_same_on_another_host_and_differ_between_jobs():
    draws = chain(a=lambda self: self.emit("out", n=self.ctx.random.random()))
    one, again, two = (outputs(run(draws, job_id=job_id)) for job_id in ("one", "one", "two"))
    assert one == again != two


def test_the_context_has_the_attempt_job_task_and_time():
    seen: list[tuple[object, ...]] = []

    def reads(self):
        ctx = self.ctx
        ctx.sleep(2)
        seen.append((ctx.attempt, ctx.job_id, ctx.task_id, ctx.now().second))
        raise ValueError

    run(chain(a=Works(reads, retrying(max_retries=1, retry_delay=3))), job_id="j")
    assert [(1, "j", "0", 2), (2, "j", "0", 7)] == seen


# --- its end --------------------------------------------------------------------------------------

USES: dict[str, Callable[[Context], object]] = {
    "state": lambda ctx: ctx.state,
    "shared": lambda ctx: ctx.shared,
    "attempt": lambda ctx: ctx.attempt,
    "job_id": lambda ctx: ctx.job_id,
    "task_id": lambda ctx: ctx.task_id,
    "idempotency_key": lambda ctx: ctx.idempotency_key,
    "key": lambda ctx: ctx.key("x"),
    "now": lambda ctx: ctx.now(),
    "sleep": lambda ctx: ctx.sleep(1),
    "random": lambda ctx: ctx.random,
    "uuid": lambda ctx: ctx.uuid(),
    "once": lambda ctx: ctx.once("x", int),
}
VIEWS: dict[str, Callable[[Any], object]] = {
    "read": lambda view: view["key"],
    "write": lambda view: view.update(key=1),
    "delete": lambda view: view.pop("key"),
    "in": lambda view: "key" in view,
    "iteration": list,
    "len": len,
}


OVER = (
    "this step has ended: its handler has returned, or the engine no longer waits for it; nothing"
    " more is recorded, so do not use ctx after the end of the step"
)


@pytest.mark.parametrize(
    ("which", "use"),
    [("ctx", use) for use in USES] + [(view, use) for view in ("state", "shared") for use in VIEWS],
)
def test_a_context_or_view_that_outlives_its_handler_is_refused(which, use):
    leaked: dict[str, Any] = {}

    def leaks(self):
        leaked.update(ctx=self.ctx, state=self.ctx.state, shared=self.ctx.shared)
        self.ctx.state["key"] = self.ctx.shared["key"] = 0

    job = run(chain(a=leaks))
    before = job.serialize()
    with pytest.raises(NoActiveStepError, match=f"^{OVER}$"):
        (USES if which == "ctx" else VIEWS)[use](leaked[which])
    assert before == job.serialize()


def test_a_thread_that_outlives_its_handler_can_do_nothing():
    returned, errors = threading.Event(), []

    def late(routine):
        assert returned.wait(PATIENCE)
        for use in (lambda: routine.ctx, lambda: routine.emit("out", n=1)):
            with pytest.raises(NoActiveStepError) as caught:
                use()
            errors.append(str(caught.value))

    with ThreadPoolExecutor(1) as threads:

        def leaks(self):
            threads.submit(contextvars.copy_context().run, late, self)

        job = run(chain(a=leaks))
        returned.set()
    assert [OVER] * 2 == errors
    assert [] == job.outputs


def test_outside_of_a_handler_there_is_no_context_and_nothing_to_emit():
    routine = Works(rest)
    with pytest.raises(NoActiveStepError, match=r"Works.ctx was read outside a handler"):
        _ = routine.ctx
    with pytest.raises(NoActiveStepError, match=r"Works.emit\('out'\) was called outside"):
        routine.emit("out", n=1)


# --- payloads -------------------------------------------------------------------------------------


def sent() -> Any:
    unknown = SimpleNamespace(items=[1])  # its class has no saved form, but it can be copied
    return [[1], {"k": [1]}, ([1],), {1}, unknown]


def spoil(value: Any) -> None:
    inner, mapping, (inside,), numbers, unknown = value
    for grows in (inner, mapping["k"], inside, unknown.items, value):
        grows.append(9)
    numbers.add(9)


@MODES
def test_a_payload_is_seen_as_it_was_emitted_by_each_branch_and_each_attempt(workers):
    seen: list[object] = []

    def emits(self, n):
        seen.append(n == sent())
        spoil(n)  # its own copy of the parameters
        value = sent()
        self.emit("out", n=value)
        spoil(value)

    def spoils(self, n):
        seen.append(n == sent())
        spoil(n)
        self.ctx.sleep(1)
        if self.ctx.attempt == 1:
            raise ValueError

    given = sent()
    retry = retrying(retry_delay=1)
    flow = fan(emits, workers=workers, a=Works(spoils, retry), b=Works(spoils, retry))
    job = run(flow, "source", n=given)
    job.raise_for_status()
    assert [True] * 5 == seen
    assert sent() == given == job.commits[1].emissions[0].payload["n"]
