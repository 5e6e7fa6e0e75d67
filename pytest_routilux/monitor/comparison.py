"""Why `assert job == other` does not hold, for jobs, flows and error handlers.

Laws:
- The first lines say most: pytest shows eight or ten of them unless it is asked for more by -vv.
- What differs is a path and both values, never two long texts to be compared by eye.
- Instants of two jobs are compared by how long after its start each came: the commit that is told
  to be the first that differs does so whenever the jobs began.
- A comparison breaks nothing: it reads, and believes no `__eq__` or `repr` of a user to be sound.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final

from pytest_routilux.monitor.diff import Path, flow_paths, handler_paths, job_paths
from pytest_routilux.monitor.divergence import divergence
from pytest_routilux.monitor.messages import WIDEST, looked_at
from pytest_routilux.text import short_id, shorten
from routilux import ErrorHandler, Flow, JobState

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["explain_comparison"]

_FEW: Final = 3  # lines of paths where pytest is to show what comes after them
_MANY: Final = 100
_LOOKED_AT: Final = 1000  # members of a container that are looked at


def explain_comparison(op: str, left: object, right: object, *, whole: bool) -> list[str] | None:
    """Return the lines that explain a comparison; None where it is nothing of ours.

    The first line is the comparison itself. `whole` asks for all that differs.
    """
    if op not in ("==", "!="):
        return None
    try:
        return _explained(op, left, right, whole)
    except Exception as error:
        # As pytest does with its own: a test fails by what it asserts, not by how that is told.
        return [f"{_named(left)} {op} {_named(right)}", f"(not explained, by {error!r})"]


def _explained(
    op: str, left: object, right: object, whole: bool, few: int = _FEW
) -> list[str] | None:
    if isinstance(left, JobState | Flow | ErrorHandler):
        if type(left) is type(right):
            lines = _alike(left, right) if op == "!=" else _differ(left, right, whole, few)
        elif op == "==" and isinstance(left, JobState) and isinstance(right, str):
            lines = [f"a job equals jobs only; its status is job.status: {left.status.value!r}"]
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
        return ["both are one and the same object"]
    return ["they are equal in every part"]


def _differ(left: object, right: object, whole: bool, few: int) -> list[str]:
    if isinstance(left, JobState) and isinstance(right, JobState):
        parted = divergence(left, right, whole=whole)
        return [
            *_shown(job_paths(left, right), whole, few),
            *parted.first,
            *looked_at(parted.look),
            *([""] if parted.around else []),
            *parted.around,
        ]
    if isinstance(left, ErrorHandler) and isinstance(right, ErrorHandler):
        return _shown(handler_paths(left, right), whole, few + 4)
    if isinstance(left, Flow) and isinstance(right, Flow):
        told = _shown(flow_paths(left, right), whole, few + 3)
        if told:
            return [*told, "look at  == of flows means the same object; these differ besides"]
        return [
            "they are alike in graph, policies and arguments, but two objects;",
            "== of flows means the same object: compare fingerprint or serialize()",
        ]
    return []


def _shown(paths: Iterable[Path], whole: bool, few: int) -> list[str]:
    most = _MANY if whole else few
    lines = [f"  {path}" for path in paths]
    if len(lines) <= most:
        return lines
    return [*lines[: most - 1], f"  … {len(lines) - most + 1} more, -vv shows them"]


# --- containers -----------------------------------------------------------------------------------


def _members(left: object, right: object, whole: bool) -> list[str] | None:
    """Explain the first pair of members that differs, if it is one of ours."""
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        sizes = len(left), len(right)
        pairs = ((f"[{i}]", *pair) for i, pair in enumerate(zip(left, right, strict=False)))
    elif isinstance(left, dict) and isinstance(right, dict):
        sizes = len(left), len(right)
        pairs = ((f"[{key!r}]", left[key], right[key]) for key in left if key in right)
    else:
        return None
    for place, ours, theirs in islice(pairs, _LOOKED_AT):
        if isinstance(ours, JobState | Flow | ErrorHandler) and type(ours) is type(theirs):
            if ours == theirs:
                continue
            kind = type(left).__name__
            head = f"{kind} of {sizes[0]} == {kind} of {sizes[1]}, which differ first at {place}:"
            return [shorten(head, WIDEST), *(_explained("==", ours, theirs, whole, _FEW - 1) or [])]
        if ours is not theirs:
            return None  # what is not ours is pytest's to explain
    return None
