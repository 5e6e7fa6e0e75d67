"""Differences between two jobs, flows or error handlers, as paths with both values.

Invariants:
- Each path that differs is listed once, the most important first.
- Values are compared in value and type, by the engine's own `first_difference`.
- Long values are shortened around the first character that differs, so that two fit on a line.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from inspect import signature
from typing import TYPE_CHECKING, Final

from pytest_routilux.monitor.snapshot import view
from pytest_routilux.text import error_text, seconds
from routilux import ErrorHandler, ErrorInfo
from routilux.clocks.durations import from_ns
from routilux.codec.equality import Difference, first_difference

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from routilux import Flow, JobState, PendingTask, Routine, RoutineState

__all__ = ["PathDifference", "flow_differences", "handler_differences", "job_differences"]

_ABSENT: Final = object()
_WIDTH: Final = 24  # of each of two values


@dataclass(frozen=True, slots=True)
class PathDifference:
    """One path that differs, and the texts of both values."""

    path: str
    left: str
    right: str

    def __str__(self) -> str:
        return f"{self.path}: {self.left} != {self.right}"


def job_differences(left: JobState, right: JobState) -> Iterator[PathDifference]:
    """Return the differences between two jobs, without their commits."""
    yield from _one("flow_id", left.flow_id, right.flow_id)
    yield from _words("status", left.status, right.status)
    yield from _words("error", left.error, right.error)
    for name in _names(left.routine_states, right.routine_states):
        ours, theirs = left.routine_states.get(name), right.routine_states.get(name)
        yield from _routine_differences(f'routine_states["{name}"]', ours, theirs)
    yield from _each("shared_data", left.shared_data, right.shared_data)
    yield from _rows("outputs", left.outputs, right.outputs)
    yield from _rows("dropped", left.dropped, right.dropped)
    yield from _rows("pending_tasks", _pending(left), _pending(right))
    yield from _one("job_id", left.job_id, right.job_id)
    yield from _one("seq", left.seq, right.seq)
    yield from _one("recoveries", left.recoveries, right.recoveries)
    if left.started_ns != right.started_ns:
        yield PathDifference("started", _instant(left.started_ns), _instant(right.started_ns))
    took = [job.updated_ns - job.started_ns for job in (left, right)]
    if took[0] != took[1]:
        yield PathDifference("lasted", f"{seconds(took[0])} s", f"{seconds(took[1])} s")
    yield from _graph(left.shape, right.shape)


def _pending(job: JobState) -> list[PendingTask]:
    # With instants that count from the start of the job.
    start = job.started_ns
    return [
        replace(
            task,
            due_ns=task.due_ns - start,
            first_started_ns=task.first_started_ns and task.first_started_ns - start,
        )
        for task in job.pending_tasks
    ]


def _routine_differences(
    path: str, left: RoutineState | None, right: RoutineState | None
) -> Iterator[PathDifference]:
    if left is None or right is None:
        yield from _one(path, _ABSENT if left is None else left, right or _ABSENT)
        return
    yield from _words(f"{path}.status", left.status, right.status)
    for name in ("attempts", "retry_count"):
        yield from _one(f"{path}.{name}", getattr(left, name), getattr(right, name))
    yield from _each(f"{path}.state", left.state, right.state)
    yield from _words(f"{path}.error", left.error, right.error)
    for name in ("completed", "skipped", "error_continued", "failed"):
        yield from _one(f"{path}.{name}", getattr(left, name), getattr(right, name))


def flow_differences(left: Flow, right: Flow) -> Iterator[PathDifference]:
    """Return the differences between two flows: graph, then policies, then arguments."""
    yield from _graph(left.shape, right.shape)
    for name in ("flow_id", "execution_strategy", "max_workers"):
        yield from _one(name, getattr(left, name), getattr(right, name))
    yield from _policy("error_handler", left.error_handler, right.error_handler)
    common = [name for name in left.routines if name in right.routines]
    for name in common:
        handlers = (flow.routines[name].error_handler for flow in (left, right))
        yield from _policy(f'routines["{name}"].error_handler', *handlers)
    for name in common:
        ours, theirs = (_attributes(flow.routines[name]) for flow in (left, right))
        for attribute in _names(ours, theirs):
            path = f'routines["{name}"].{attribute}'
            yield from _one(path, *_both(ours, theirs, attribute))


def handler_differences(
    left: ErrorHandler, right: ErrorHandler, path: str = ""
) -> Iterator[PathDifference]:
    """Return the differences between the options of two handlers, and between their delays."""
    ours, theirs = (_options(handler) for handler in (left, right))
    for name in ours:
        if name in theirs:  # an option of one strategy alone shows in `strategy`
            yield from _words(f"{path}{name}", ours[name], theirs[name])
    delays = [_delays(handler) for handler in (left, right)]
    if delays[0] != delays[1] and all(delays):
        yield PathDifference(f"{path}delays", *delays)


def _policy(
    path: str, left: ErrorHandler | None, right: ErrorHandler | None
) -> Iterator[PathDifference]:
    if left is not None and right is not None:
        yield from handler_differences(left, right, f"{path}.")
    else:
        yield from _words(path, *(handler and handler.strategy for handler in (left, right)))


def _options(handler: ErrorHandler) -> dict[str, object]:
    viewed = view(handler)
    assert isinstance(viewed, dict)
    return {
        name: ", ".join(c.__qualname__ for c in value) or "none" if type(value) is tuple else value
        for name, value in viewed.items()
    }


def _delays(handler: ErrorHandler) -> str:
    most = int(min(handler.most_retries, 4))
    return ", ".join(seconds(handler.delay_ns(retry)) for retry in range(1, most + 1))


def _attributes(routine: Routine) -> dict[str, object]:
    # The arguments by name, and the other attributes that are public and plain data.
    positional, named = routine.arguments
    try:
        arguments = signature(type(routine)).bind(*positional, **named).arguments
    except (TypeError, ValueError):
        arguments = {f"args[{i}]": value for i, value in enumerate(positional)} | named
    viewed = view(routine)
    assert isinstance(viewed, dict)
    rest = {n: v for n, v in viewed.items() if n not in ("arguments", "error_handler")}
    return {**arguments, **rest}


def _graph(left: Sequence[str], right: Sequence[str]) -> Iterator[PathDifference]:
    for line in dict.fromkeys([*left, *right]):
        if line not in right:
            yield PathDifference(line, "present", "missing")
        elif line not in left:
            yield PathDifference(line, "missing", "present")


# --- one value ------------------------------------------------------------------------------------


def _one(path: str, left: object, right: object) -> Iterator[PathDifference]:
    if left is _ABSENT or right is _ABSENT:
        found = Difference(
            path,
            None if left is _ABSENT else left,
            None if right is _ABSENT else right,
            "added" if left is _ABSENT else "missing",
        )
    else:
        differs = first_difference(left, right, path)
        if differs is None:
            return
        found = differs
    ours, theirs = _shortened(*found.sides)
    if found.what == "missing":
        theirs = "missing"
    elif found.what == "added":
        ours = "missing"
    yield PathDifference(found.path, ours, theirs)


def _each(
    path: str, left: Mapping[str, object], right: Mapping[str, object]
) -> Iterator[PathDifference]:
    for name in _names(left, right):
        yield from _one(f"{path}[{name!r}]".replace("'", '"'), *_both(left, right, name))


def _rows(path: str, left: Sequence[object], right: Sequence[object]) -> Iterator[PathDifference]:
    for index in range(max(len(left), len(right))):
        pair = [rows[index] if index < len(rows) else _ABSENT for rows in (left, right)]
        yield from _one(f"{path}[{index}]", *pair)


def _both(
    left: Mapping[str, object], right: Mapping[str, object], name: str
) -> tuple[object, object]:
    return left.get(name, _ABSENT), right.get(name, _ABSENT)


def _names(left: Mapping[str, object], right: Mapping[str, object]) -> list[str]:
    return list(dict.fromkeys([*left, *right]))


def _words(path: str, left: object, right: object) -> Iterator[PathDifference]:
    # For values that read as a word: statuses, errors, options.
    if left != right:
        yield PathDifference(
            path, *_shortened(*("none" if side is None else _word(side) for side in (left, right)))
        )


def _word(value: object) -> str:
    if isinstance(value, ErrorInfo):
        return error_text(value)
    return str(value.value) if isinstance(value, Enum) else str(value)


def _instant(ns: int) -> str:
    return from_ns(ns).strftime("%Y-%m-%d %H:%M:%S.%f").rstrip("0").rstrip(".")


def _shortened(left: str, right: str) -> tuple[str, str]:
    # Around the first character that differs.
    if max(len(left), len(right)) <= _WIDTH:
        return left, right
    same = next(
        (i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b),
        min(len(left), len(right)),
    )
    start = max(0, same - _WIDTH // 3) if same > _WIDTH // 2 else 0
    return _window(left, start), _window(right, start)


def _window(text: str, start: int) -> str:
    shown = text[start : start + _WIDTH]
    return f"{'…' * bool(start)}{shown}{'…' * (start + _WIDTH < len(text))}"
