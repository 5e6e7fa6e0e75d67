"""Steps in other processes: what can't be pickled or unpickled costs one attempt."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest

from routilux import ErrorInfo, Runtime
from tests.engine.concurrency import double, remote
from tests.engine.remote.unportable import VALUES, WAYS, Value, error_of_kind, raise_it, send_it
from tests.routines import MODES, Watcher, chain, error_of, kinds, retrying


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessPoolExecutor]:
    """One pool for all tests: a test that breaks it fails, and so do the ones after it."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        yield executor


def assert_works(runtime: Runtime) -> None:
    chain(a=remote(double)).execute("a", {"n": 3}, runtime=runtime).raise_for_status()


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("group", [False, True], ids=["alone", "in a group"])
@MODES
def test_an_error_that_can_not_travel_costs_its_attempt_only(processes, way, group, workers):
    flow = chain(workers=workers, a=remote(raise_it))
    flow.set_error_handler(retrying(retry_delay=0, retryable_exceptions=(OSError, ValueError)))
    params = {"way": way, "base": "ConnectionError", "group": group}
    with Runtime(executor=processes) as runtime:
        job = flow.execute("a", params, runtime=runtime)
        assert_works(runtime)
    job.raise_for_status()
    assert ["start", "effect", "retry", "done"] == kinds(job)
    [error] = [commit.error for commit in job.commits if commit.error is not None]
    expected = ErrorInfo.of(error_of_kind(way, ConnectionError))
    leaf = error.leaves[1] if group else error
    assert (expected.type, expected.message, expected.notes) == (
        leaf.type,
        leaf.message,
        leaf.notes,
    )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("of", ["non_retryable_exceptions", "retryable_exceptions"])
def test_an_error_of_an_unknown_class_is_judged_by_its_known_bases(processes, way, of):
    chosen = {of: (ConnectionError if of.startswith("non") else KeyError,)}
    flow = chain(a=remote(raise_it))
    flow.set_error_handler(retrying(retry_delay=0, **chosen))
    params = {"way": way, "base": "ConnectionError", "group": False}
    with Runtime(executor=processes) as runtime:
        job = flow.execute("a", params, runtime=runtime)
    assert ["start", "effect", "failed"] == kinds(job)
    assert "raise_it" in str(job.error.traceback)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("base", [SystemExit, BaseException])
@pytest.mark.parametrize("group", [False, True], ids=["alone", "in a group"])
def test_an_interrupt_that_can_not_travel_ends_the_run_of_its_job_only(processes, way, base, group):
    watcher, flow = Watcher(), chain(a=remote(raise_it))
    params = {"way": way, "base": base.__name__, "group": group}
    expected = error_of_kind(way, base)
    with Runtime(executor=processes, observers=[watcher]) as runtime:
        with pytest.raises(BaseExceptionGroup if group else base) as raised:
            flow.execute("a", params, runtime=runtime)
        assert_works(runtime)
    error = raised.value.exceptions[1] if group else raised.value
    assert isinstance(error, base)
    text = str(ErrorInfo.of(expected))
    assert str(ErrorInfo.of(error)).startswith(text)
    if base is SystemExit:
        assert (expected.code, expected.args[:1]) == (error.code, (error.code,))
    job = next(job for job in watcher.jobs if job.interruption is not None)
    assert text.splitlines()[0] in str(job.interruption)
    assert "the note" in str(job.interruption)
    assert "raised in another process at " in str(job.interruption)
    assert "unportable.py" in str(job.interruption)
    assert "in raise_it" in str(raised.value.__cause__)


# --- values ---------------------------------------------------------------------------------------

WHERE = {
    "emission": "$.out.n",
    "state": "$.state.value",
    "added": "$.state.value",
    "shared": "$.shared.value",
}


@pytest.mark.parametrize("way", [way for way in VALUES if not way.endswith("in the child")])
@pytest.mark.parametrize("where", WHERE)
@MODES
def test_an_outcome_that_can_not_travel_fails_its_attempt_only(processes, way, where, workers):
    flow = chain(workers=workers, a=remote(send_it))
    flow.set_error_handler(retrying(retry_delay=0))
    with Runtime(executor=processes) as runtime:
        job = flow.execute("a", {"way": way, "where": where}, runtime=runtime)
        assert_works(runtime)
    assert ["start", "effect", "failed"] == kinds(job), "an effect that can be sent is recorded"
    kind, message = error_of(job)
    assert "UnserializableError" == kind
    assert "no way out" in message
    assert "use plain data" in message
    if "parent" not in way:
        assert WHERE[where] in message


@pytest.mark.parametrize("way", [way for way in VALUES if not way.endswith("in the child")])
def test_an_effect_is_recorded_by_its_saved_form_whatever_pickle_makes_of_it(processes, way):
    flow = chain(a=remote(send_it))
    with Runtime(executor=processes) as runtime:
        job = flow.execute("a", {"way": way, "where": "effect"}, runtime=runtime)
        assert_works(runtime)
    job.raise_for_status()
    assert ["start", "effect", "effect", "done"] == kinds(job)
    assert way == job.commits[2].effect.result.way


@pytest.mark.parametrize(
    ("way", "place"),
    [
        ("can't be pickled", "$.n: can't be sent to the executor's process: TypeError: no way out"),
        ("ends who pickles it", "$.n: can't be sent to the executor's process: SystemExit: no way"),
        (
            "can't be unpickled in the child",
            "$: the step can't be loaded in the executor's process",
        ),
    ],
)
def test_a_payload_that_can_not_travel_fails_its_attempt_only(processes, way, place):
    flow = chain(a=remote(double))
    flow.set_error_handler(retrying(retry_delay=0))
    with Runtime(executor=processes) as runtime:
        job = flow.execute("a", {"n": Value(way)}, runtime=runtime)
        assert_works(runtime)
    assert ["start", "failed"] == kinds(job)
    assert ("UnserializableError", True) == (error_of(job)[0], place in error_of(job)[1])
