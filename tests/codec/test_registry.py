"""Registered types: their saved forms, their names, and classes that are refused."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from dataclasses import InitVar, dataclass, field, make_dataclass
from enum import Enum
from typing import Any

import pytest

from routilux.codec import dumps, encode, loads, register_type, registry
from routilux.codec.equality import first_difference
from routilux.errors import CorruptStateError, FlowDefinitionError, UnserializableError
from tests.codec.values import Loud, Money, Unregistered
from tests.routines import refused_at


@pytest.fixture(autouse=True)
def clean_registry() -> Iterator[None]:
    """Forget the types that a test has registered."""
    by_tag, by_kind = dict(registry._by_tag), dict(registry._by_kind)
    yield
    registry._by_tag.clear()
    registry._by_tag.update(by_tag)
    registry._by_kind.clear()
    registry._by_kind.update(by_kind)


def test_forms_do_not_follow_a_patched_datetime(monkeypatch):
    class Fake(dt.datetime):
        pass

    real = dt.datetime(2026, 1, 3, 12, fold=1)
    monkeypatch.setattr(dt, "datetime", Fake)
    assert first_difference(real, loads(dumps(encode(real)))) is None


def test_an_alias_is_the_old_name_of_a_member():
    def release(*names):
        kind = Enum("Ends", dict.fromkeys(names, "paid"), module=__name__, qualname="Ends")
        return register_type(kind, name="test-ends")

    before = dumps(encode(release("SETTLED").SETTLED))
    kind = release("PAID", "SETTLED")
    assert kind.PAID is loads(before)
    assert dumps(encode(loads(before))) == before.replace("SETTLED", "PAID")


def test_a_dataclass_that_gained_fields_with_defaults_reads_older_data():
    def release(**new):
        kind = make_dataclass("Order", [("number", int), *((n, object, f) for n, f in new.items())])
        kind.__module__, kind.__qualname__ = __name__, "Order"
        return register_type(kind, name="test-order")

    before = dumps(encode({"orders": [release()(7)]}))
    gained = {
        "note": field(default="none"),
        "lines": field(default_factory=list),
        "rate": field(default=2, kw_only=True),
        "seen": field(default=False, init=False),
    }
    for count in range(1, len(gained) + 1):
        new = dict(list(gained.items())[:count])
        kind = release(**new)
        [order] = loads(before)["orders"]
        assert kind(7) == order
        assert first_difference(order, loads(dumps(encode(order)))) is None
    other = loads(before)["orders"][0]
    assert order.lines is not other.lines
    release(total=field(init=False))
    with pytest.raises(CorruptStateError, match=r"the field 'total' was not saved and has no d"):
        loads(before)


def test_a_dataclass_comes_back_through_its_constructor_with_its_saved_fields():
    seen = []

    @register_type
    @dataclass(slots=True, kw_only=True, frozen=True)
    class Line:
        price: int
        total: int = field(init=False)

        def __post_init__(self):
            seen.append(self.price)
            object.__setattr__(self, "total", -1)

    line = Line(price=2)
    object.__setattr__(line, "total", 20)
    seen.clear()
    text = dumps(encode(line))
    assert json.loads(text) == {
        "$type": f"{__name__}:{Line.__qualname__}",
        "value": {"price": 2, "total": 20},
    }
    assert loads(text) == line
    assert seen == [2]
    object.__delattr__(line, "total")
    with pytest.raises(UnserializableError, match=r"Line can't be saved: AttributeError"):
        encode(line)


def test_a_type_with_functions_of_its_own_comes_back():
    register_type(
        range, name="range", encode=lambda r: (r.start, r.stop), decode=lambda v: range(*v)
    )
    assert loads(dumps(encode({"r": range(1, 5)}))) == {"r": range(1, 5)}


def test_an_error_in_a_users_encoder_or_decoder_names_the_path():
    class RudeError(Exception):
        def __str__(self):
            raise RuntimeError

    def rude(value):
        raise RudeError

    register_type(Unregistered, name="rude", encode=rude, decode=rude)
    with refused_at("$.a[0]", "Unregistered can't be saved: RudeError", UnserializableError):
        encode({"a": [Unregistered()]})
    with refused_at("$.a[0]", "RudeError"):
        loads('{"a":[{"$type":"rude","value":1}]}')


def unused(value: object) -> Any:
    raise AssertionError("not called")


def test_a_form_that_reads_another_type_or_never_gets_simpler_is_refused():
    register_type(Unregistered, name="odd", encode=lambda v: 1, decode=lambda v: v)
    with pytest.raises(CorruptStateError, match="it decodes to int, not to"):
        loads(dumps(encode(Unregistered())))
    register_type(Loud, name="self", encode=lambda v: v, decode=unused)
    with refused_at("$.a[0]", "nested in more than", UnserializableError):
        encode({"a": [Loud()]})


def test_a_subclass_of_a_registered_class_needs_a_form_of_its_own():
    class Gold(Money):
        pass

    with pytest.raises(UnserializableError, match="Gold is not saved as"):
        encode(Gold(1))


def test_a_name_belongs_to_one_type():
    with pytest.raises(FlowDefinitionError, match=r"'test-money' is taken by .*Money"):
        register_type(Unregistered, name="test-money", encode=unused, decode=unused)
    for name in ("datetime", "dict", "list", "NoneType"):
        with pytest.raises(FlowDefinitionError, match="built-in"):
            register_type(Unregistered, name=name, encode=unused, decode=unused)
    with pytest.raises(FlowDefinitionError, match="printable"):
        register_type(Unregistered, name="", encode=unused, decode=unused)
    with pytest.raises(FlowDefinitionError, match="already has a saved form"):
        register_type(dt.date, name="day", encode=unused, decode=unused)
    assert loads(dumps(encode(Money(1)))) == Money(1)


def test_a_reloaded_class_takes_the_place_of_the_old_one():
    def define():
        @register_type
        @dataclass
        class Reloaded:
            n: int

        return Reloaded

    old, new = define(), define()
    assert type(loads(dumps(encode(new(1))))) is new
    with pytest.raises(UnserializableError, match="Reloaded has no saved form"):
        encode(old(1))


def test_a_class_without_a_form_of_its_own_is_refused_at_registration():
    @dataclass
    class WithInitVar:
        n: int
        seed: InitVar[int]

    @dataclass
    class Problem(Exception):
        n: int

    class Derived(Money):
        pass

    for cls in (Unregistered, WithInitVar, Problem, Derived):
        with pytest.raises(FlowDefinitionError, match=cls.__name__):
            register_type(cls)
    with pytest.raises(FlowDefinitionError, match="both"):
        register_type(Unregistered, encode=unused)
    with pytest.raises(FlowDefinitionError, match="a class"):
        register_type(Money(1))  # type: ignore[call-overload]  # the mistake under test
