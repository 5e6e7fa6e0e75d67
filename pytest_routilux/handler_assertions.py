"""Finds handlers whose `assert` failed, so that no retry or strategy hides it.

Invariants:
- An error counts if its class is AssertionError or that of `pytest.fail`, or a subclass; so does a
  group that has such a leaf.
- An error that the plugin itself raises does not count: a fault of `flow_faults` is the test's own,
  and others fail the test anyway.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from pytest_routilux.frames import seen_from_here
from routilux.graph.messages import error_class

if TYPE_CHECKING:
    from collections.abc import Iterable

    from routilux import Commit, ErrorInfo

ADVICE: Final = (
    "mend the handler or the test; where jobs may fail by AssertionError, set"
    " routilux_handler_assertions = ignore"
)
_OURS: Final = str(Path(__file__).parent)


def failed_assertion(commits: Iterable[Commit]) -> tuple[Commit, str] | None:
    """Return the first commit with a failed assertion, and its text; None without one."""
    for commit in commits:
        error = None if commit.error is None else _assertion_in(commit.error)
        if error is not None:
            where = "" if error.where is None else f" ({seen_from_here(error.where)})"
            return commit, f"an assertion failed in {commit.routine_id}: {error}{where}"
    return None


def _assertion_in(error: ErrorInfo) -> ErrorInfo | None:
    for part in (error, *error.leaves):
        kind = error_class(part.type)
        if kind is not None and issubclass(kind, AssertionError | pytest.fail.Exception):
            return None if (part.where or "").startswith(_OURS) else part
    return None
