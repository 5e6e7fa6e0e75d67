"""The rules that a flow sets for its jobs, such as limits.

Invariants:
- It is read from the flow that the author builds, by public names only. Delays are computed here a
  second time, with nothing of the engine's backoff.
- Durations are exact fractions of their decimal texts. A delay with jitter has bounds.
- A value that is not known (the class of an error, the delay of a very late retry) is None.
"""

from __future__ import annotations

import hashlib
from asyncio import CancelledError
from fractions import Fraction
from typing import TYPE_CHECKING, Final, final

from routilux import (
    ErrorHandler,
    ErrorStrategy,
    FlowDefinitionError,
    IllegalTransitionError,
    NoActiveStepError,
    PoisonJobError,
    RetryAfter,
    StepLimitError,
    StepTimeoutError,
    UnserializableError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from routilux import Flow

_SECOND: Final = 10**9
_LONGEST_ID: Final = 64
_CENTURY: Final = 36_525 * 86_400 * _SECOND
_COMPUTED: Final = 300
_NEVER: Final = (
    FlowDefinitionError,
    IllegalTransitionError,
    NoActiveStepError,
    UnserializableError,
)


def error_name(kind: type[BaseException]) -> str:
    """Return the name that commits use for the exception class `kind`."""
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


RAISED_BY_ENGINE: Final = {error_name(kind): kind for kind in (StepTimeoutError, *_NEVER)}
"""The classes of errors that the engine raises, by their names in a commit."""
FAILED_BY_ENGINE: Final = {error_name(kind) for kind in (PoisonJobError, StepLimitError)}
"""The names of the errors by which the engine fails a task, whatever its strategy is."""


def width_of(flow: Flow) -> int:
    """Return how many steps a job of `flow` may run at once."""
    return flow.max_workers if flow.execution_strategy == "concurrent" else 1


def _decimal(seconds: float) -> Fraction:
    return Fraction(repr(seconds))


def _length(seconds: float) -> int:
    return min(round(_decimal(seconds) * _SECOND), _CENTURY)


@final
class RetryPolicy:
    """The retry policy of a routine; `max_retries=None` means no limit."""

    __slots__ = (
        "_bounds",
        "_ceiling",
        "deadline",
        "given_up",
        "handler",
        "max_retries",
        "retries",
        "timeout",
    )

    def __init__(self, handler: ErrorHandler) -> None:
        self.handler: Final = handler
        self.retries: Final = handler.strategy is ErrorStrategy.RETRY
        self.given_up: Final = handler.on_exhausted if self.retries else handler.strategy
        self.max_retries: Final = handler.max_retries if self.retries else 0
        self.timeout: Final = None if handler.timeout is None else _length(handler.timeout)
        self.deadline: Final = None if handler.deadline is None else _length(handler.deadline)
        self._ceiling: Final = _CENTURY if handler.max_delay is None else _length(handler.max_delay)
        self._bounds: Final[dict[int, tuple[int, int]]] = {}

    def bounds(self, retry: int, asked: int | None = None) -> tuple[int, int] | None:
        """Return the shortest and longest allowed delay (ns) before a retry.

        `asked` is the delay that a `RetryAfter` asks for.
        """
        if asked is not None:
            return asked, asked
        if retry > _COMPUTED:
            return None
        if retry not in self._bounds:
            handler = self.handler
            growth = _decimal(handler.retry_backoff) ** (retry - 1)
            delay = min(round(_decimal(handler.retry_delay) * growth * _SECOND), self._ceiling)
            spread = delay * _decimal(handler.jitter)
            least, most = round(delay - spread), round(delay + spread)
            self._bounds[retry] = least, min(most, self._ceiling)
        return self._bounds[retry]

    def is_retryable(self, kinds: tuple[type[BaseException], ...]) -> bool:
        """Return whether the policy retries after an error.

        `kinds` are its class, and the classes of the leaves of a group.
        """
        refused = (*self.handler.non_retryable_exceptions, *_NEVER)
        if any(issubclass(k, refused) and not issubclass(k, RetryAfter) for k in kinds):
            return False
        accepted = (*self.handler.retryable_exceptions, RetryAfter)
        if Exception in accepted:
            accepted = (*accepted, CancelledError)
        own, *leaves = (issubclass(kind, accepted) for kind in kinds)
        return own or (leaves != [] and all(leaves))


SlotName = tuple[str, str]
"""A routine and one of its slots."""


def child_id(parent: str, name: str | int) -> str:
    """Return the id of a task that the task `parent` creates, a second time."""
    task_id = f"{parent}.{name}"
    if len(task_id) <= _LONGEST_ID:
        return task_id
    return f"~{hashlib.sha256(parent.encode()).hexdigest()[:16]}.{name}"


@final
class FlowSpec:
    """The rules that one flow sets for its jobs.

    `gathers` holds the split of each gather slot; None if it gathers for the whole job.
    """

    __slots__ = ("_below", "edges", "emits_error", "gathers", "limits", "policies")

    def __init__(self, flow: Flow) -> None:
        of_flow = flow.error_handler or ErrorHandler()
        handlers = {name: r.error_handler or of_flow for name, r in flow.routines.items()}
        policies = {handler: RetryPolicy(handler) for handler in handlers.values()}
        self.policies: Final = {name: policies[handler] for name, handler in handlers.items()}
        edges: dict[tuple[str, str], list[tuple[str, str, Mapping[str, str]]]] = {}
        for edge in flow.connections:
            to = (edge.target, edge.slot, edge.param_mapping)
            edges.setdefault((edge.source, edge.event), []).append(to)
        self.edges: Final = edges
        self.limits: Final = {name: r.max_concurrency for name, r in flow.routines.items()}
        self.emits_error: Final = {n for n, r in flow.routines.items() if "error" in r.events}
        self.gathers: Final = {
            (name, slot.name): flow.gather_per.get(name)
            for name, routine in flow.routines.items()
            for slot in routine.slots.values()
            if slot.gather
        }
        self._below: Final[dict[tuple[str, SlotName | None], set[SlotName]]] = {}

    def opened_by(self, routine: str, *, first: bool) -> list[SlotName]:
        """Return the gathers whose scope a task of `routine` begins.

        The `first` task of a job also begins those of the whole job that it can lead to.
        """
        below = self._reached(routine, None) if first and self.gathers else ()
        return [
            slot
            for slot, split in self.gathers.items()
            if split == routine or (split is None and slot in below)
        ]

    def delivers(self, routine: str, slot: SlotName) -> bool:
        """Return whether a task of `routine`, or a task below it, can deliver in its scope."""
        return slot in self._reached(routine, slot)

    def _reached(self, start: str, of: SlotName | None) -> set[SlotName]:
        """Return the slots to which chains of connections lead from a routine.

        With `of` a chain ends at the split of that gather. It also ends at each gather slot, and
        leads from a split to the routines that gather for it: those tasks exist from the beginning.
        """
        found = self._below.get((start, of))
        if found is None:
            found = self._below[start, of] = set()
            seen, todo = {start}, [start]
            while todo:
                routine = todo.pop()
                below = [name for (name, _), split in self.gathers.items() if split == routine]
                if of is not None and routine == self.gathers[of] and routine != start:
                    continue
                for (source, _), edges in self.edges.items():
                    if source == routine:
                        found |= {(target, slot) for target, slot, _ in edges}
                        below += [
                            target
                            for target, slot, _ in edges
                            if of is None or (target, slot) not in self.gathers
                        ]
                todo += [name for name in dict.fromkeys(below) if name not in seen]
                seen.update(below)
        return found
