"""Converts flows, jobs and error handlers to comparable plain data.

Invariants:
- A view holds what saving keeps, and the public attributes of a routine that are plain data. Two
  objects with equal views behave alike.
- A view is made from the object itself, not from its saved form.
"""

from __future__ import annotations

from typing import Final

from routilux import (
    ErrorHandler,
    ErrorStrategy,
    Flow,
    JobState,
    Routine,
    SavedState,
    UnserializableError,
    codec,
)
from routilux.retry.options import CHECKS, WITH_ANY_STRATEGY

_JOB_PARTS: Final = (
    "job_id",
    "flow_id",
    "status",
    "seq",
    "started_ns",
    "updated_ns",
    "recoveries",
    "shape",
    "routine_states",
    "shared_data",
    "pending_tasks",
    "outputs",
    "dropped",
    "error",
    "commits",
)


def view(obj: object) -> object:
    """Return an object of routilux as plain data; others unchanged.

    >>> view(ErrorHandler("skip", timeout=2))
    {'strategy': <ErrorStrategy.SKIP: 'skip'>, 'timeout': 2}
    """
    if isinstance(obj, Flow):
        return {
            "flow_id": obj.flow_id,
            "execution_strategy": obj.execution_strategy,
            "max_workers": obj.max_workers,
            "error_handler": view(obj.error_handler),
            "routines": {name: view(routine) for name, routine in obj.routines.items()},
            "connections": {str(c): dict(c.param_mapping) for c in obj.connections},
            "shape": obj.shape,
        }
    if isinstance(obj, Routine):
        return _routine_view(obj)
    if isinstance(obj, JobState):
        return {name: getattr(obj, name) for name in _JOB_PARTS}
    if isinstance(obj, ErrorHandler):
        retries = obj.strategy is ErrorStrategy.RETRY
        names = CHECKS if retries else WITH_ANY_STRATEGY
        return {name: getattr(obj, name) for name in names}
    if isinstance(obj, SavedState):
        return {
            "flow": view(obj.flow),
            "job": view(obj.job),
            "saved_at_ns": obj.saved_at_ns,
            "monitor_summary": obj.monitor_summary,
        }
    return obj


def _routine_view(routine: Routine) -> dict[str, object]:
    return {
        # Sorted, because the order in which attributes were set does not matter.
        **{n: v for n, v in sorted(vars(routine).items()) if _is_configuration(n, v)},
        "arguments": routine.arguments,
        "error_handler": view(routine.error_handler),
    }


def _is_configuration(name: str, value: object) -> bool:
    if name.startswith("_"):
        return False
    try:
        codec.encode(value)
    except UnserializableError:
        return False
    return True
