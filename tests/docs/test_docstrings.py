"""Each public name of both packages has a docstring, its members too, and an example that runs.

Doctests of both packages run with the suite; the tests in docstrings of the plugin run here.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from textwrap import dedent

import pytest

import pytest_routilux
import routilux
from tests.plugin.inner import run_inside

PUBLIC = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in (routilux, pytest_routilux)
    for name in module.__all__
}
CLASSES = [value for value in PUBLIC.values() if isinstance(value, type)]
_TEST = re.compile(r"::\n\n((?: {4}.*\n|\n)+)")


def _lacks(cls: type) -> list[str]:
    """Return the members without an underscore that have no docstring in any class."""
    found: dict[str, bool] = {}
    for base in cls.__mro__:
        if not base.__module__.startswith(("routilux", "pytest_routilux", __name__)):
            continue
        members = _attributes(base)
        for name, value in vars(base).items():
            function = getattr(value, "__func__", value)
            if inspect.isfunction(function) or isinstance(value, property | cached_property):
                members[name] = bool(inspect.getdoc(value))
        for name, has_text in members.items():
            found[name] = has_text or found.get(name, False)
    return sorted(name for name in found if not (found[name] or name.startswith("_")))


def _attributes(cls: type) -> dict[str, bool]:
    """Return the names that a class and its constructor assign, and whether a docstring follows."""
    init = vars(cls).get("__init__")
    file = Path(init.__code__.co_filename if inspect.isfunction(init) else "")
    if not file.is_file():  # the constructor of a dataclass
        found = inspect.getsourcefile(cls)
        assert found
        file = Path(found)
    attributes: dict[str, bool] = {}
    for node in _class_nodes(file):
        if node.name != cls.__name__:
            continue
        constructors = [part for part in node.body if isinstance(part, ast.FunctionDef)]
        bodies = [part.body for part in constructors if part.name == "__init__"]
        for body in (node.body, *bodies):
            for statement, after in pairwise([*body, ast.Pass()]):
                has_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                names = _assigned(statement, of_self=body is not node.body)
                attributes.update(dict.fromkeys(names, has_text))
    return attributes


@cache
def _class_nodes(file: Path) -> list[ast.ClassDef]:
    nodes = ast.walk(ast.parse(file.read_text("utf-8")))
    return [node for node in nodes if isinstance(node, ast.ClassDef)]


def _assigned(statement: ast.stmt, *, of_self: bool) -> Iterator[str]:
    targets: list[ast.expr] = []
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AnnAssign):
        targets = [statement.target]
    for target in targets:
        for node in ast.walk(target):
            if isinstance(node, ast.Attribute) and of_self:
                yield node.attr
            elif isinstance(node, ast.Name) and not of_self:
                yield node.id


def _has_example(value: object) -> bool:
    texts = [inspect.getdoc(value) or ""]
    if isinstance(value, type):
        members = [getattr(member, "__func__", member) for member in vars(value).values()]
        texts += [inspect.getdoc(m) or "" for m in members if inspect.isfunction(m)]
    return any(">>> " in text or _TEST.search(f"{text}\n") for text in texts)


@pytest.mark.parametrize("name", PUBLIC)
def test_each_public_name_has_a_docstring_and_an_example(name: str) -> None:
    value = PUBLIC[name]
    if not isinstance(value, type) and not inspect.isfunction(value):
        return  # a type alias; the reference shows the text below it
    own = vars(value).get("__doc__") if isinstance(value, type) else value.__doc__

    assert own, f"{name} has no docstring"
    assert "(self" not in own.partition("\n")[0], f"{name} has the generated docstring"
    # A program reads errors and records of the engine, and makes none of them.
    record = issubclass(value, BaseException | tuple) if isinstance(value, type) else False
    assert record or is_dataclass(value) or _has_example(value), f"{name} has no example"


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_each_public_member_has_a_docstring(cls: type) -> None:
    assert [] == _lacks(cls)


class Bare:
    number = 1
    documented: int = 2
    """A number."""

    def __init__(self) -> None:
        self.given = 3
        self.first, self._second = 4, 5

    def method(self) -> None: ...

    @property
    def twice(self) -> int:
        return 2


@dataclass
class BareValue:
    field: int


class Derived(Bare):
    documented = 3
    number = 2


def test_members_without_a_docstring_are_found() -> None:
    names = ["first", "given", "method", "number", "twice"]

    assert names == _lacks(Bare)
    assert names == _lacks(Derived)
    assert ["field"] == _lacks(BareValue)
    assert not _has_example(Bare)


def test_the_tests_in_docstrings_of_the_plugin_pass(pytester: pytest.Pytester) -> None:
    found = {
        f"test_{cls.__name__}_{number}": dedent(code)
        for cls in CLASSES
        for number, code in enumerate(_TEST.findall(f"{inspect.getdoc(cls)}\n"))
    }
    assert len(found) >= 6
    pytester.makepyfile(**found)

    result = run_inside(pytester, "-q")

    result.assert_outcomes(passed=sum(code.count("def test_") for code in found.values()))
