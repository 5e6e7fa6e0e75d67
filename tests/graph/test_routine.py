"""Routines: the arguments of handlers, captured constructor arguments, saved names."""

from __future__ import annotations

import copy
import gc
import pickle
from functools import partial
from typing import Any

import pytest

from routilux import ErrorHandler, Event, Flow, FlowDefinitionError, Routine, Slot
from tests.routines import Works, chain


class Shelf(Routine):
    """Takes its configuration in every way there is."""

    def __init__(self, rows: list[int], label: str = "A", *, tags: dict[str, Any] | None = None):
        super().__init__()
        self.rows, self.label, self.tags = rows, label, tags
        self.define_slot("trigger", handler=self.store)

    def store(self) -> None:
        """Do nothing."""


# --- what a handler gets ------------------------------------------------------------------------

GOT: list[object] = []


def keyword(*, a: object, b: object) -> None:
    GOT.append((a, b))


@pytest.mark.parametrize(
    ("handler", "payload", "expected"),
    [
        (lambda a, b: GOT.append((a, b)), {"a": 1, "b": 2, "c": 3}, (1, 2)),
        (lambda a, b="default": GOT.append((a, b)), {"a": 1}, (1, "default")),
        (lambda a, b="default": GOT.append((a, b)), {"a": 1, "b": None, "c": 3}, (1, None)),
        (lambda a, **others: GOT.append((a, others)), {"a": 1}, (1, {})),
        (lambda a, **others: GOT.append((a, others)), {"a": 1, "b": 2}, (1, {"b": 2})),
        (lambda: GOT.append(()), {"a": 1}, ()),
        (keyword, {"a": 1, "b": 2, "c": 3}, (1, 2)),
        (partial(keyword, b="bound"), {"a": 1}, (1, "bound")),
    ],
)
def test_a_handler_gets_the_payload_fields_that_it_names(handler, payload, expected):
    GOT.clear()
    taker = Routine()
    taker.define_slot("trigger", handler=handler)
    gives = Works(lambda self: self.emit("out", **payload), out=["a", "b", "c"])
    chain(a=gives, b=taker).execute("a").raise_for_status()
    assert [expected] == GOT


def test_slots_and_events_can_be_read_as_they_were_declared():
    shelf = Shelf([1])
    shelf.define_event("output", ["a", "b"])
    assert {"trigger": Slot("trigger", shelf.store, shelf.slots["trigger"].binding)} == shelf.slots
    assert {"output": Event("output", ("a", "b"), frozenset("ab"))} == shelf.events
    assert shelf.error_handler is None


# --- constructor arguments ----------------------------------------------------------------------


def test_arguments_are_captured_as_they_were_given_and_defaults_are_left_to_the_class():
    assert (([1],), {}) == Shelf([1]).arguments
    assert (([1], "B"), {"tags": None}) == Shelf([1], "B", tags=None).arguments
    assert ((), {"rows": []}) == Shelf(rows=[]).arguments


def test_captured_arguments_are_copies_made_at_construction():
    rows, tags = [1], {"k": [1]}
    shelf = Shelf(rows, tags=tags)
    rows.append(2)
    tags["k"].append(2)
    shelf.rows.append(3)
    assert (([1],), {"tags": {"k": [1]}}) == shelf.arguments


def test_an_argument_that_can_not_be_copied_is_kept_and_refused_only_when_saved():
    cursor = iter([1])
    client = (item for item in cursor)
    shelf = Shelf([1], tags={"client": client})
    assert client is shelf.arguments[1]["tags"]["client"]


@pytest.mark.parametrize("twin_of", [lambda r: pickle.loads(pickle.dumps(r)), copy.deepcopy])
@pytest.mark.parametrize("handler", [None, ErrorHandler("retry", max_retries=7)])
def test_a_pickled_or_copied_routine_is_built_again_from_its_arguments(twin_of, handler):
    shelf = Shelf([1], tags={"k": (1,)})
    shelf.set_error_handler(handler)
    shelf.rows.append(2)
    twin = twin_of(shelf)
    assert ([1], "A", {"k": (1,)}) == (twin.rows, twin.label, twin.tags)
    assert (shelf.arguments, handler) == (twin.arguments, twin.error_handler)
    assert twin.slots["trigger"].handler.__self__ is twin


# --- names --------------------------------------------------------------------------------------


def test_a_saved_name_is_the_routine_name_or_module_and_qualname_and_is_not_inherited():
    class Plain(Routine):
        pass

    class Named(Plain):
        routine_name = "routine/named"

    class Heir(Named):
        pass

    place = f"{__name__}:{Plain.__qualname__}"
    assert place == Plain.saved_name()
    assert "routine/named" == Named.saved_name()
    assert f"{__name__}:{Heir.__qualname__}" == Heir.saved_name(), "a name is not inherited"


def test_a_class_that_is_defined_again_replaces_the_old_one():
    def define(answer: int) -> type[Routine]:
        class Again(Routine):
            routine_name = "routine/again"

            def __init__(self) -> None:
                super().__init__()
                self.answer = answer

        return Again

    flow = Flow()
    flow.add_routine(define(1)(), "again")
    define(2)
    newest = define(3)
    assert isinstance(Flow.deserialize(flow.serialize()).routines["again"], newest)


def test_the_name_of_a_deleted_class_can_be_used_again():
    def define() -> None:
        class Gone(Routine):
            routine_name = "routine/gone"

    define()
    gc.collect()

    class Heir(Routine):
        routine_name = "routine/gone"

    assert "routine/gone" == Heir.saved_name()


# --- names of the base class ----------------------------------------------------------------------

NAMES = [
    *("slots", "events", "error_handler", "arguments", "ctx", "emit", "define_slot"),
    *("define_event", "set_error_handler", "saved_name"),
    *("_slots", "_events", "_error_handler", "_arguments", "_check_new"),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [("output",), None, property(lambda self: 1), lambda self: 1])
def test_a_class_attribute_that_hides_a_name_of_the_base_class_is_refused(name, value):
    with pytest.raises(FlowDefinitionError, match=rf"^Hides\.{name} hides '{name}' of Routine"):
        type("Hides", (Routine,), {name: value})
    mixin = type("Mixin", (), {name: value})
    with pytest.raises(FlowDefinitionError, match=rf"Mixin\.{name} hides .* which Hides needs"):
        type("Hides", (mixin, Routine), {})
    with pytest.raises(FlowDefinitionError, match=rf"Hides\.{name} hides"):
        type("Hides", (Routine,), {"__slots__": (name,)})

    class Sets(Routine):
        def __init__(self):
            setattr(self, name, value)

    with pytest.raises(FlowDefinitionError, match=rf"Sets sets self\.{name}, which hides"):
        Sets()


def test_names_that_hide_nothing_are_accepted():
    class Own(Routine):
        max_concurrency = 2
        routine_name = "own"
        event = slot = context = ("a",)

        def __init__(self):
            super().__init__()
            self.items = self.emitted = self.contexts = 1
            self.items += 1
            del self.items

    assert {"emitted", "contexts"} <= vars(Own()).keys()
