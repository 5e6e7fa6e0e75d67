"""The type test speaks of every public name; `make lint` checks it by mypy --strict."""

from __future__ import annotations

import ast
from pathlib import Path

import routilux


def test_the_type_test_uses_every_public_name() -> None:
    tree = ast.parse(Path(__file__).with_name("api.py").read_text())
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert set() == set(routilux.__all__) - used
    assert sorted(routilux.__all__) == routilux.__all__
