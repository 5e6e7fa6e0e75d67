"""What `make test` runs of an exhaustive grid or of a property; `make soak` runs all of it.

Invariants:
- A case is either in `make test` or has the marker `soak`; nothing is in neither.
- A property runs in both: with the examples of the Hypothesis profile that is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from typing import Any

import pytest

__all__ = ["also", "batch_seed", "examples", "sampled"]

_STRIDE = 1_000


def sampled(cases: Iterable[Any], kept: Collection[Any]) -> list[Any]:
    """Return the cases as parameters; those that are not `kept` run in `make soak` alone."""
    cases = [*cases]
    unknown = [case for case in kept if case not in cases]
    assert not unknown, f"these are not among the cases: {unknown}"
    return [case if case in kept else _soak(case) for case in cases]


def also(first: Any, *others: Any) -> list[Any]:
    """Return the first case as a parameter of both, and the others of `make soak` alone."""
    return [first, *map(_soak, others)]


def examples(times: float) -> int:
    """Return how many examples a property draws that needs `times` as many as others."""
    from hypothesis import settings  # not at the top: hosts import tests that have no property

    return round(settings.default.max_examples * times)


def batch_seed(batch: int) -> int:
    """Return the Hypothesis seed of one of many batches: another one in each run of `make soak`."""
    return int(os.environ.get("SEED", "0")) * _STRIDE + batch


def _soak(case: Any) -> Any:
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=pytest.mark.soak)
