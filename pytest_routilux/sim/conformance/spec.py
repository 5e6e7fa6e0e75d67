"""The rules that a flow sets for its jobs, such as limits.

Invariants:
- It is read from the flow that the author builds, by public names only. Delays are computed here a
  second time, with nothing of the engine's backoff.
- Durations are exact fractions of their decimal texts. A delay with jitter has bounds.
- A value that is not known (the class of an error, the delay of a very late retry) is None.
"""

from __future__ import annotations

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


@final
class FlowSpec:
    """The rules that one flow sets for its jobs."""

    __slots__ = ("edges", "emits_error", "limits", "policies")

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
