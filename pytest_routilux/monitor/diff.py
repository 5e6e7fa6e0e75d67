"""Differences between two jobs, flows or error handlers.

Invariants:
- Each path that differs is listed once, the most important first.
- Values are compared in value and type, by the engine's own `first_difference`.
- Long values are shortened around the first character that differs, so that two fit on a line.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from inspect import signature
from typing import TYPE_CHECKING, Final, Literal

from pytest_routilux.monitor.snapshot import view
from pytest_routilux.text import error_text, seconds
from routilux import ErrorHandler, ErrorInfo
from routilux.clocks.durations import from_ns
from routilux.codec.equality import Difference, first_difference

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from routilux import Flow, JobState, Routine

_WIDTH: Final = 24  # of each of two values


@dataclass(frozen=True, slots=True)
class PathDifference:
    """A path at which two objects differ, with both values as texts."""

    path: str
    left: str
    right: str

    def __str__(self) -> str:
        return f"{self.path}: {self.left} != {self.right}"


class _Word(str):
    # A text that is shown without quotes.
    __slots__ = ()


# --- jobs, flows, handlers ------------------------------------------------------------------------


def job_differences(left: JobState, right: JobState) -> Iterator[PathDifference]:
    """Yield the differences between two jobs, except commits."""
    yield from _differences(_job_parts(left), _job_parts(right))
    yield from _graph_differences(left.shape, right.shape)


def flow_differences(left: Flow, right: Flow) -> Iterator[PathDifference]:
    """Yield the differences between two flows, graphs first."""
    yield from _graph_differences(left.shape, right.shape)
    common = [name for name in left.routines if name in right.routines]
    yield from _differences(_flow_parts(left, common), _flow_parts(right, common))


def handler_differences(left: ErrorHandler, right: ErrorHandler) -> Iterator[PathDifference]:
    """Return the differences between two error handlers."""
    return _differences(_handler_parts(left), _handler_parts(right))


def _graph_differences(left: Sequence[str], right: Sequence[str]) -> Iterator[PathDifference]:
    for line in dict.fromkeys([*left, *right]):
        if line not in right:
            yield PathDifference(line, "present", "missing")
        elif line not in left:
            yield PathDifference(line, "missing", "present")


def _job_parts(job: JobState) -> dict[str, object]:
    start = job.started_ns
    parts: dict[str, object] = {"flow_id": job.flow_id}
    parts |= {"status": _word(job.status), "error": _word(job.error)}
    for name, routine in job.routine_states.items():
        path = f'routine_states["{name}"]'
        parts[f"{path}.status"] = _word(routine.status)
        parts |= {f"{path}.{n}": getattr(routine, n) for n in ("attempts", "retry_count")}
        parts |= _members(f"{path}.state", routine.state)
        parts[f"{path}.error"] = _word(routine.error)
        counts = ("completed", "skipped", "error_continued", "failed")
        parts |= {f"{path}.{n}": getattr(routine, n) for n in counts}
    parts |= _members("shared_data", job.shared_data)
    pending = [
        replace(
            task,
            due_ns=task.due_ns - start,
            first_started_ns=task.first_started_ns and task.first_started_ns - start,
        )
        for task in job.pending_tasks
    ]
    for name, rows in (
        ("outputs", job.outputs),
        ("dropped", job.dropped),
        ("pending_tasks", pending),
    ):
        parts |= {f"{name}[{i}]": row for i, row in enumerate(rows)}
    parts |= {"job_id": job.job_id, "seq": job.seq, "recoveries": job.recoveries}
    moment = f"{from_ns(start):%Y-%m-%d %H:%M:%S}.{start % 1_000_000_000:09d}"
    parts["started"] = _Word(moment.rstrip("0").rstrip("."))
    parts["lasted"] = _Word(f"{seconds(job.updated_ns - start)} s")
    return parts


def _members(path: str, values: Mapping[str, object]) -> dict[str, object]:
    return {f"{path}[{name!r}]".replace("'", '"'): value for name, value in values.items()}


def _flow_parts(flow: Flow, routines: Sequence[str]) -> dict[str, object]:
    names = ("flow_id", "execution_strategy", "max_workers")
    parts: dict[str, object] = {name: getattr(flow, name) for name in names}
    parts |= _policy_parts("error_handler", flow.error_handler)
    for name in routines:
        handler = flow.routines[name].error_handler
        parts |= _policy_parts(f'routines["{name}"].error_handler', handler)
    for name in routines:
        attributes = _attributes(flow.routines[name])
        parts |= {f'routines["{name}"].{n}': value for n, value in attributes.items()}
    return parts


def _policy_parts(path: str, handler: ErrorHandler | None) -> dict[str, object]:
    if handler is None:
        return {path: _word(None)}
    strategy, *options = _handler_parts(handler).items()
    return {path: strategy[1], **{f"{path}.{name}": value for name, value in options}}


def _handler_parts(handler: ErrorHandler) -> dict[str, object]:
    viewed = view(handler)
    assert isinstance(viewed, dict)
    parts: dict[str, object] = {name: _word(value) for name, value in viewed.items()}
    retries = range(1, int(min(handler.most_retries, 4)) + 1)
    if retries:
        parts["delays"] = _Word(", ".join(seconds(handler.delay_ns(retry)) for retry in retries))
    return parts


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


# --- values ---------------------------------------------------------------------------------------


def _word(value: object) -> _Word:
    if value is None:
        return _Word("none")
    if isinstance(value, ErrorInfo):
        return _Word(error_text(value))
    if isinstance(value, tuple):
        return _Word(", ".join(cls.__qualname__ for cls in value) or "none")
    return _Word(value.value if isinstance(value, Enum) else value)


def _differences(
    left: Mapping[str, object], right: Mapping[str, object]
) -> Iterator[PathDifference]:
    for path in dict.fromkeys([*max(left, right, key=len), *left, *right]):
        if path in left and path in right:
            ours, theirs = left[path], right[path]
            if isinstance(ours, _Word) and isinstance(theirs, _Word):
                if ours != theirs:
                    yield PathDifference(path, *_shortened(ours, theirs))
                continue
            found = first_difference(ours, theirs, path)
        elif isinstance(left.get(path, right.get(path)), _Word):
            continue  # an option of one strategy alone: the strategies differ
        else:
            what: Literal["missing", "added"] = "missing" if path in left else "added"
            found = Difference(path, left.get(path), right.get(path), what)
        if found is not None:
            texts = _shortened(*found.sides)
            yield PathDifference(
                found.path,
                "missing" if found.what == "added" else texts[0],
                "missing" if found.what == "missing" else texts[1],
            )


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
