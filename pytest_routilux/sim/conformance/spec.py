"""What a flow promises of every job: its edges, its places to work, and how it retries.

Laws:
- It is read from a flow as its author builds it, by public names only, and computed here a second
  time: nothing of the engine's backoff, routing or folding is used.
- Numbers mean what their decimals say, in exact fractions; a draw of jitter is only bounded.
- What can't be known (an error that was not seen, a retry past all computing) is None, never a
  guess.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Final, final

from routilux import (
    ErrorHandler,
    ErrorStrategy,
    FlowDefinitionError,
    IllegalTransitionError,
    NoActiveStepError,
    RetryAfter,
    StepTimeoutError,
    UnserializableError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from routilux import Flow

__all__ = ["FlowSpec", "RetryPolicy", "error_name", "raised_by_engine", "width_of"]

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
    """Return how a commit names an exception class."""
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


_KNOWN: Final = {error_name(kind): kind for kind in (StepTimeoutError, *_NEVER)}


def raised_by_engine(name: str) -> type[BaseException] | None:
    """Return the class of an error that no handler raised, by its name in a commit."""
    return _KNOWN.get(name)


def width_of(flow: Flow) -> int:
    """Return how many steps of a job may be in flight."""
    return flow.max_workers if flow.execution_strategy == "concurrent" else 1


def _decimal(seconds: float) -> Fraction:
    return Fraction(repr(seconds))


def _length(seconds: float) -> int:
    return min(round(_decimal(seconds) * _SECOND), _CENTURY)


@final
class RetryPolicy:
    """How a routine's failures are met; `max_retries` is None where it never gives up."""

    __slots__ = (
        "_bounds",
        "_ceiling",
        "_exact",
        "_growth",
        "_jitter",
        "_retryable",
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
        self._jitter: Final = _decimal(handler.jitter)
        self._growth: Final = _decimal(handler.retry_backoff)
        self._exact: Final = [_decimal(handler.retry_delay)]  # before retry 1, 2, …, in seconds
        self._retryable: Final[dict[type[BaseException], bool]] = {}
        self._bounds: Final[list[tuple[int, int]]] = []

    def bounds(self, retry: int) -> tuple[int, int] | None:
        """Return the least and the greatest delay (ns) before retry 1, 2, …"""
        bounds = self._bounds
        while len(bounds) < retry:
            if len(bounds) == _COMPUTED:
                return None
            bounds.append(self._bound(self._exact[-1]))
            following = self._exact[-1] * self._growth
            self._exact.append(min(following, Fraction(2 * _CENTURY)))
        return bounds[retry - 1]

    def _bound(self, seconds: Fraction) -> tuple[int, int]:
        delay = min(round(seconds * _SECOND), _CENTURY)
        if not self._jitter:
            plain = min(delay, self._ceiling)
            return plain, plain
        least = round(delay * (1 - self._jitter))
        most = round(delay * (1 + self._jitter))
        return min(least, self._ceiling), min(most, self._ceiling)

    def is_retryable(self, kind: type[BaseException]) -> bool:
        """Return whether trying again is meant to help against such an error."""
        known = self._retryable.get(kind)
        if known is None:
            handler = self.handler
            known = self._retryable[kind] = issubclass(kind, RetryAfter) or (
                issubclass(kind, handler.retryable_exceptions)
                and not issubclass(kind, handler.non_retryable_exceptions)
                and not issubclass(kind, _NEVER)
            )
        return known


@final
class FlowSpec:
    """What a flow promises; `edges` are (target, slot, renamed fields), in order, by event."""

    __slots__ = ("edges", "emits_error", "limits", "policies", "width")

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
        self.width: Final = width_of(flow)
