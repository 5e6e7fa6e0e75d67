"""Errors as data: the classes of recorded errors are known by name, at a bounded cost."""

from __future__ import annotations

import gc
import weakref

import pytest

from routilux import ErrorHandler, ErrorInfo
from routilux.graph import messages
from routilux.graph.messages import error_class
from tests.engine.concurrency import at_once
from tests.routines import chain, run


def made(number: int) -> type[Exception]:
    return type(f"Made{number}", (AssertionError,), {})


def test_a_recorded_error_makes_its_class_known_by_name():
    class Local(ValueError):
        pass

    for error in (ValueError(), Local(), ExceptionGroup("2", [OSError(), Local()])):
        info = ErrorInfo.of(error)
        for part in (info, *info.leaves):
            assert part.type.rpartition(".")[2] == error_class(part.type).__name__
    assert error_class("no.such.Error") is None


@pytest.mark.parametrize("names", ["one name", "a name each"])
def test_classes_made_by_a_program_are_not_kept_for_ever(names):
    kinds = []
    for number in range(5 * messages._MOST_CLASSES):
        kind = made(number if names == "a name each" else 0)
        name = ErrorInfo.of(kind()).type
        assert error_class(name) is kind
        assert len(messages._classes) <= messages._MOST_CLASSES
        kinds.append(weakref.ref(kind))
    del kind
    gc.collect()
    alive = sum(ref() is not None for ref in kinds)
    assert alive <= (1 if names == "one name" else messages._MOST_CLASSES)


def test_a_handler_that_makes_a_class_for_each_error_keeps_few_of_them():
    kinds = []

    def fails(self):
        kind = made(self.ctx.attempt)
        kinds.append(weakref.ref(kind))
        raise kind("no")

    flow = chain(a=fails)
    flow.set_error_handler(ErrorHandler("retry", retry_delay=0, max_retries=3000))
    job = run(flow, "a")
    assert (3001, "failed") == (len(kinds), job.status)
    del job
    gc.collect()
    few = messages._MOST_CLASSES + 1100  # and the verdicts of the handler
    assert sum(ref() is not None for ref in kinds) <= few


def test_classes_are_recorded_by_several_threads():
    def records() -> None:
        for number in range(3 * messages._MOST_CLASSES):
            ErrorInfo.of(made(number)())

    at_once(records, records, records)
    assert len(messages._classes) <= messages._MOST_CLASSES + 3


class Counted(dict):  # type: ignore[type-arg]
    """Counts the steps of a lookup."""

    def items(self):
        raise AssertionError("a lookup reads all classes")

    __iter__ = keys = values = items


def test_a_lookup_reads_one_entry(monkeypatch):
    name = ErrorInfo.of(OSError()).type
    monkeypatch.setattr(messages, "_classes", Counted(messages._classes))
    assert OSError is error_class(name)
    assert error_class("no.such.Error") is None
