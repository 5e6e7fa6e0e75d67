"""Explains why `assert job == other` does not hold, for jobs, flows and error handlers.

Invariants:
- The most important lines come first: without -vv, pytest shows only eight to ten lines.
- A difference is a path with both values, never two long texts.
- An explanation changes nothing. It does not trust the `__eq__` or `repr` of user objects.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final

from pytest_routilux.monitor.diff import (
    PathDifference,
    flow_differences,
    handler_differences,
    job_differences,
)
from pytest_routilux.monitor.divergence import divergence
from pytest_routilux.monitor.messages import WIDEST, look_at
from pytest_routilux.text import short_id, shorten
from routilux import ErrorHandler, Flow, JobState

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["explain_comparison"]

_FEW: Final = 3  # differences, so that pytest still shows the lines after them
_MANY: Final = 100
_MOST_MEMBERS: Final = 1000  # of a container


def explain_comparison(op: str, left: object, right: object, *, whole: bool) -> list[str] | None:
    """Return the lines that explain a comparison; None if its operands are not ours.

    The first line is the comparison itself. `whole` asks for all differences.
    """
    if op not in ("==", "!="):
        return None
    try:
        return _explained(op, left, right, whole)
    except Exception as error:
        # A test fails because of its assertion, never because of the explanation.
        return [
            f"{_named(left)} {op} {_named(right)}",
            f"(the comparison can't be explained: {error!r})",
        ]


def _explained(
    op: str, left: object, right: object, whole: bool, few: int = _FEW
) -> list[str] | None:
    if isinstance(left, JobState | Flow | ErrorHandler):
        if type(left) is type(right):
            lines = _alike(left, right) if op == "!=" else _differ(left, right, whole, few)
        elif op == "==" and isinstance(left, JobState) and isinstance(right, str):
            lines = [f"a job equals only a job; compare job.status, which is {left.status.value!r}"]
        else:
            return None
        head = f"{_named(left)} {op} {_named(right)}"
        return [shorten(line, WIDEST) for line in (head, *lines)]
    if op == "==" and type(left) is type(right):
        return _members(left, right, whole)
    return None


def _named(obj: object) -> str:
    if isinstance(obj, JobState):
        return f"job {short_id(obj.job_id)} of {obj.flow_id} ({obj.status.value}, #{obj.seq})"
    if isinstance(obj, Flow):
        return f"flow {obj.flow_id}"
    return repr(obj) if isinstance(obj, str) else f"{type(obj).__name__}(…)"


def _alike(left: object, right: object) -> list[str]:
    if left is right:
        return ["both are the same object"]
    return ["all parts are equal"]


def _differ(left: object, right: object, whole: bool, few: int) -> list[str]:
    if isinstance(left, JobState) and isinstance(right, JobState):
        parted = divergence(left, right, whole=whole)
        return [
            *_shown(job_differences(left, right), whole, few),
            *parted.first,
            *look_at(parted.look),
            *([""] if parted.around else []),
            *parted.around,
        ]
    if isinstance(left, ErrorHandler) and isinstance(right, ErrorHandler):
        return _shown(handler_differences(left, right), whole, few + 4)
    if isinstance(left, Flow) and isinstance(right, Flow):
        lines = _shown(flow_differences(left, right), whole, few + 3)
        if lines:
            return [*lines, "look at  the two objects: == of flows holds only for the same object"]
        return [
            "graph, policies and arguments are equal, but == of flows holds only for",
            "the same object: compare fingerprint or serialize()",
        ]
    return []


def _shown(differences: Iterable[PathDifference], whole: bool, few: int) -> list[str]:
    most = _MANY if whole else few
    lines = [f"  {difference}" for difference in differences]
    if len(lines) <= most:
        return lines
    return [*lines[: most - 1], f"  … {len(lines) - most + 1} more; -vv shows them"]


# --- containers -----------------------------------------------------------------------------------


def _members(left: object, right: object, whole: bool) -> list[str] | None:
    # Explains the first pair of members that differs, if they are ours.
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        sizes = len(left), len(right)
        pairs = ((f"[{i}]", *pair) for i, pair in enumerate(zip(left, right, strict=False)))
    elif isinstance(left, dict) and isinstance(right, dict):
        sizes = len(left), len(right)
        pairs = ((f"[{key!r}]", left[key], right[key]) for key in left if key in right)
    else:
        return None
    for index, ours, theirs in islice(pairs, _MOST_MEMBERS):
        if isinstance(ours, JobState | Flow | ErrorHandler) and type(ours) is type(theirs):
            if ours == theirs:
                continue
            kind = type(left).__name__
            head = f"{kind} of {sizes[0]} == {kind} of {sizes[1]}, which differ first at {index}:"
            return [shorten(head, WIDEST), *(_explained("==", ours, theirs, whole, _FEW - 1) or [])]
        if ours is not theirs:
            return None  # pytest explains it
    return None
