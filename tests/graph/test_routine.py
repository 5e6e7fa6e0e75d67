"""Routines: the arguments of handlers, captured constructor arguments, saved names."""

from __future__ import annotations

import copy
import gc
import pickle
from functools import partial
from typing import Any

import pytest

from routilux import ErrorHandler, Event, Flow, Routine, Slot


class Shelf(Routine):
    """Takes its configuration in every way there is."""

    def __init__(self, rows: list[int], label: str = "A", *, tags: dict[str, Any] | None = None):
        super().__init__()
        self.rows, self.label, self.tags = rows, label, tags
        self.define_slot("trigger", handler=self.store)

    def store(self) -> None:
        """Do nothing."""


class Taker(Routine):
    """One slot for each kind of signature."""

    def __init__(self) -> None:
        super().__init__()
        self.got: list[object] = []
        self.define_slot("named", handler=self.named)
        self.define_slot("default", handler=self.default)
        self.define_slot("rest", handler=self.rest)
        self.define_slot("nothing", handler=self.nothing)
        self.define_slot("keyword", handler=self.keyword)
        self.define_slot("partial", handler=partial(self.keyword, b="bound"))
        self.define_slot("lambda", handler=lambda a: self.got.append(a))

    def named(self, a: object, b: object) -> None:
        self.got.append((a, b))

    def default(self, a: object, b: object = "default") -> None:
        self.got.append((a, b))

    def rest(self, a: object, **rest: object) -> None:
        self.got.append((a, rest))

    def nothing(self) -> None:
        self.got.append(())

    def keyword(self, *, a: object, b: object) -> None:
        self.got.append((a, b))


class Giver(Routine):
    def __init__(self, **payload: object) -> None:
        super().__init__()
        self.payload = payload
        self.define_slot("trigger", handler=self.give)
        self.define_event("output", ["a", "b", "c"])

    def give(self) -> None:
        self.emit("output", **self.payload)


# --- what a handler gets ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slot", "payload", "expected"),
    [
        ("named", {"a": 1, "b": 2}, (1, 2)),
        ("named", {"a": 1, "b": 2, "c": 3}, (1, 2)),
        ("default", {"a": 1}, (1, "default")),
        ("default", {"a": 1, "b": None, "c": 3}, (1, None)),
        ("rest", {"a": 1}, (1, {})),
        ("rest", {"a": 1, "b": 2, "c": 3}, (1, {"b": 2, "c": 3})),
        ("nothing", {"a": 1}, ()),
        ("keyword", {"a": 1, "b": 2, "c": 3}, (1, 2)),
        ("partial", {"a": 1}, (1, "bound")),
        ("lambda", {"a": 1, "b": 2}, 1),
    ],
)
def test_a_handler_gets_the_payload_fields_that_it_names(slot, payload, expected):
    flow, taker = Flow(), Taker()
    flow.add_routine(Giver(**payload), "giver")
    flow.add_routine(taker, "taker")
    flow.connect("giver", "output", "taker", slot)
    flow.execute("giver").raise_for_status()
    assert [expected] == taker.got


def test_slots_and_events_can_be_read_as_they_were_declared():
    giver = Giver()
    assert {"trigger": Slot("trigger", giver.give, giver.slots["trigger"].binding)} == giver.slots
    assert {"output": Event("output", ("a", "b", "c"), frozenset("abc"))} == giver.events
    assert giver.error_handler is None


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
