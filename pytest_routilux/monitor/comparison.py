"""Explains a failed `assert a == b` of jobs, flows or error handlers.

Invariants:
- The most important lines come first: without -vv, pytest shows only eight to ten lines.
- A difference is a path with both values, never two long texts.
- An explanation changes nothing. It does not trust the `__eq__` or `repr` of user objects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pytest_routilux.monitor.diff import (
    PathDifference,
    flow_differences,
    handler_differences,
    job_differences,
)
from pytest_routilux.monitor.divergence import divergence
from pytest_routilux.monitor.messages import WIDEST
from pytest_routilux.text import short_id, shorten
from routilux import ErrorHandler, Flow, JobState

if TYPE_CHECKING:
    from collections.abc import Iterable

_FEW: Final = 3  # differences, so that pytest still shows the lines after them
_MANY: Final = 100


def explain_comparison(op: str, left: object, right: object, *, whole: bool) -> list[str] | None:
    """Explain a comparison of jobs, flows or error handlers; None for other objects.

    The first line is the comparison itself. `whole` asks for all differences.
    """
    if op not in ("==", "!=") or not isinstance(left, JobState | Flow | ErrorHandler):
        return None
    head = f"{_named(left)} {op} {_named(right)}"
    try:
        lines = _explained(op, left, right, whole)
    except Exception as error:
        # A test fails because of its assertion, never because of the explanation.
        return [head, f"(the comparison can't be explained: {error!r})"]
    return lines and [shorten(line, WIDEST) for line in (head, *lines)]


def _explained(op: str, left: object, right: object, whole: bool) -> list[str] | None:
    if op == "==" and isinstance(left, JobState) and isinstance(right, str):
        return [f"a job equals only a job; compare job.status, which is {left.status.value!r}"]
    if type(left) is not type(right):
        return None
    if op == "!=":
        return ["both are the same object" if left is right else "all parts are equal"]
    if isinstance(left, JobState) and isinstance(right, JobState):
        lines = _shown(job_differences(left, right), whole, _FEW)
        return [*lines, *divergence(left, right, whole=whole)]
    if isinstance(left, ErrorHandler) and isinstance(right, ErrorHandler):
        return _shown(handler_differences(left, right), whole, _FEW + 4)
    if isinstance(left, Flow) and isinstance(right, Flow):
        lines = _shown(flow_differences(left, right), whole, _FEW + 3)
        if lines:
            return [*lines, "look at  the two objects: == of flows holds only for the same object"]
    return [
        "graph, policies and arguments are equal, but == of flows holds only for",
        "the same object: compare fingerprint or serialize()",
    ]


def _named(obj: object) -> str:
    if isinstance(obj, JobState):
        return f"job {short_id(obj.job_id)} of {obj.flow_id} ({obj.status.value}, #{obj.seq})"
    if isinstance(obj, Flow):
        return f"flow {obj.flow_id}"
    return repr(obj) if isinstance(obj, str) else f"{type(obj).__name__}(…)"


def _shown(differences: Iterable[PathDifference], whole: bool, few: int) -> list[str]:
    most = _MANY if whole else few
    lines = [f"  {difference}" for difference in differences]
    if len(lines) <= most:
        return lines
    return [*lines[: most - 1], f"  … {len(lines) - most + 1} more; -vv shows them"]
