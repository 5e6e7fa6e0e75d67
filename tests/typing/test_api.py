"""The type test speaks of every public name; `make lint` checks it by mypy --strict."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import pytest_routilux
import routilux


@pytest.mark.parametrize(
    ("names", "file"), [(routilux.__all__, "api.py"), (pytest_routilux.__all__, "plugin_api.py")]
)
def test_the_type_test_uses_every_public_name(names: list[str], file: str) -> None:
    tree = ast.parse(Path(__file__).with_name(file).read_text(encoding="utf-8"))
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert set() == set(names) - used
    assert sorted(names) == names


def test_a_name_that_the_plugin_has_not_is_an_error_as_of_any_module() -> None:
    name = "FlowMonitr"
    with pytest.raises(AttributeError, match=f"'pytest_routilux' has no attribute '{name}'"):
        getattr(pytest_routilux, name)
