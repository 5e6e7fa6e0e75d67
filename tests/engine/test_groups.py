"""Exception groups and notes: how they are judged, and what a job keeps of them."""

from __future__ import annotations

import asyncio
import pickle
from itertools import combinations, permutations

import pytest

from routilux import (
    ErrorHandler,
    ErrorInfo,
    FlowDefinitionError,
    JobState,
    NoActiveStepError,
    RetryAfter,
    Routine,
    Runtime,
    UnserializableError,
)
from routilux.graph.messages import traceback_of
from tests.engine.concurrency import remote
from tests.routines import MODES, Body, Works, chain, delays, error_of, kinds, retrying, run
from tests.worker.test_trouble import processes

HANDLER = retrying(
    max_retries=1, retryable_exceptions=(OSError, LookupError), non_retryable_exceptions=KeyError
)
# Whether each may be retried.
LEAVES: list[tuple[Exception, bool]] = [
    (ConnectionError("lost"), True),
    (IndexError("none"), True),
    (RetryAfter(60), True),
    (KeyError("refused"), False),
    (ValueError("unknown"), False),
    (FlowDefinitionError("a mistake"), False),
    (UnserializableError("$", "no"), False),
    (NoActiveStepError("over"), False),
]


def nested(leaves: list[Exception]) -> ExceptionGroup[Exception]:
    first, *rest = leaves
    inner = ExceptionGroup("inner", [first])
    return ExceptionGroup("outer", [ExceptionGroup("middle", [inner]), *rest])


def raising(error: BaseException) -> Body:
    def body(self: Routine, n: object = 0) -> None:
        if self.ctx.attempt == 1:
            raise error

    return body


def in_a_task_group(error: BaseException) -> Body:
    async def fails() -> None:
        raise error

    async def body(self: Routine, n: object = 0) -> None:
        if self.ctx.attempt == 1:
            async with asyncio.TaskGroup() as group:
                group.create_task(fails())

    return body


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_group_is_retried_if_every_leaf_may_be_retried(size):
    for chosen in combinations(LEAVES, size):
        for leaves in list(permutations(chosen))[:2]:
            errors = [error for error, _ in leaves]
            expected = all(may for _, may in leaves)
            for group in (ExceptionGroup("all", errors), nested(errors)):
                types = [type(error) for error in errors]
                assert expected is HANDLER.is_retryable(type(group), types)
                job = run(chain(a=Works(raising(group), HANDLER)))
                assert ("retry" if expected else "failed") == kinds(job)[1], errors


@pytest.mark.parametrize(("error", "may"), LEAVES)
@MODES
def test_an_error_in_a_task_group_is_judged_like_the_error_itself(error, may, workers):
    for body in (in_a_task_group(error), raising(error)):
        job = run(chain(workers=workers, a=Works(body, HANDLER)))
        assert ("retry" if may else "failed") == kinds(job)[1]
        assert ([60] if type(error) is RetryAfter else [1]) == delays(job) or not may


def test_a_group_class_that_the_handler_names_decides_unless_a_leaf_forbids_the_retry():
    class Batch(ExceptionGroup[Exception]):
        pass

    named = retrying(retryable_exceptions=Batch)
    assert named.is_retryable(Batch, [ValueError, OSError])
    assert not named.is_retryable(Batch, [ValueError, FlowDefinitionError])
    assert not named.is_retryable(ExceptionGroup, [ValueError])
    refused = retrying(non_retryable_exceptions=Batch)
    assert not refused.is_retryable(Batch, [ValueError])
    assert refused.is_retryable(ExceptionGroup, [ValueError])


def test_the_longest_delay_that_a_group_asks_for_counts():
    asked = [RetryAfter(5), OSError(), ExceptionGroup("more", [RetryAfter(90), RetryAfter(7)])]
    group = ExceptionGroup("all", asked)
    assert [90] == delays(run(chain(a=Works(raising(group), retrying()))))
    forbidden = ExceptionGroup("all", [RetryAfter(5), KeyError()])
    job = run(chain(a=Works(raising(forbidden), HANDLER)))
    assert ["start", "failed"] == kinds(job)


@MODES
@pytest.mark.parametrize("strategy", ["stop", "continue", "retry"])
def test_a_job_keeps_the_type_message_notes_place_and_traceback_of_every_leaf(workers, strategy):
    def lost() -> None:
        error = OSError("lost")
        error.add_note("host 7")
        error.add_note("try the other one")
        raise error

    def wrong() -> None:
        raise ValueError("wrong") from LookupError("no row")

    def body(self, n=0):
        errors: list[Exception] = []
        for fails in (lost, wrong):
            try:
                fails()
            except Exception as error:
                errors.append(error)
        group = ExceptionGroup("2 calls", [errors[0], ExceptionGroup("1 call", errors[1:])])
        group.add_note("of batch 3")
        raise group

    options = {"on_exhausted": "stop", "max_retries": 1} if strategy == "retry" else {}
    flow = chain(workers=workers, a=Works(body, ErrorHandler(strategy, **options)))
    job = run(flow)
    error = job.dropped[0].error if strategy == "continue" else job.error
    assert error is not None
    first, second = error.leaves
    assert ("OSError", "lost", ("host 7", "try the other one")) == (
        first.type, first.message, first.notes,
    )  # fmt: skip
    assert ("ValueError", "wrong", ()) == (second.type, second.message, second.notes)
    lines = [lost.__code__.co_firstlineno + 4, wrong.__code__.co_firstlineno + 1]
    assert [f"{__file__}:{line}" for line in lines] == [leaf.where for leaf in error.leaves]
    assert ("of batch 3",) == error.notes
    trace = error.traceback or ""
    for line, name in zip(lines, ("lost", "wrong"), strict=True):
        assert f'File "{__file__}", line {line}, in {name}' in trace
    for text in ("OSError: lost\nhost 7\ntry the other one", "LookupError: no row", "of batch 3"):
        assert text in trace
    assert "OSError: lost" in str(error)
    assert "ValueError: wrong" in job.execution_history[1].data["message"]
    assert JobState.deserialize(job.serialize()) == job
    if strategy != "continue":
        assert "try the other one" in error_of(job)[1] + str(error)


def test_the_error_event_has_the_notes_and_the_leaves():
    error = ValueError("bad")
    error.add_note("row 7")
    for raised, message in (
        (error, "bad\nrow 7"),
        (ExceptionGroup("1", [error]), "1 (1 sub-exception): ValueError: bad\nrow 7"),
    ):
        job = run(chain(a=Works(raising(raised), ErrorHandler("skip"), error=["message"])))
        assert [message] == [output.data["message"] for output in job.outputs]


@pytest.mark.parametrize("notes", ["one text", 7, None, [1, "text"], ("a",)])
def test_notes_of_any_type_are_no_failure_of_the_engine(notes):
    error = ValueError("bad")
    error.__notes__ = notes
    job = run(chain(a=raising(error)))
    assert "ValueError" == error_of(job)[0]
    assert JobState.deserialize(job.serialize()) == job


def test_large_and_circular_groups_are_cut():
    leaf = ValueError("again")
    leaf.__cause__ = ExceptionGroup("ring", [leaf])
    wide = ExceptionGroup("wide", [ValueError(f"number {n}") for n in range(5000)])
    for group in (ExceptionGroup("ring", [leaf]), wide, ExceptionGroup("both", [leaf, wide])):
        info = ErrorInfo.of(group)
        assert 1 <= len(info.leaves) <= 20
        assert 100_000 > len(traceback_of(group)) + len(str(info))
    cause = OSError("caused")
    cause.__cause__ = ExceptionGroup("2 calls", [LookupError("x"), KeyError("y")])
    assert "LookupError: x" in traceback_of(cause)


def fail_in_a_group(self: Routine) -> None:
    if self.ctx.attempt == 1:
        raise ExceptionGroup("2", [OSError("lost"), RetryAfter(0.001)])
    raise ExceptionGroup("2", [OSError("lost"), KeyError("refused")])


def test_a_group_is_judged_alike_in_another_process():
    flow = chain(a=remote(fail_in_a_group))
    flow.set_error_handler(HANDLER)
    with processes() as executor, Runtime(executor=executor) as runtime:
        job = flow.execute("a", runtime=runtime)
    assert ["start", "retry", "failed"] == kinds(job)
    assert job.error is not None
    assert ["OSError", "KeyError"] == [leaf.type for leaf in job.error.leaves]
    assert pickle.loads(pickle.dumps(job)) == job
