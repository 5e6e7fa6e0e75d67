"""`ErrorHandler`: decides what happens to a failed task.

Invariants:
- An error handler is a value: it never changes, is compared by its options, and refers to no job.
- A delay is a pure function of the options, the retry and one draw, in whole nanoseconds.
- An exception group is judged by its leaves: one that must not be retried forbids the retry.
- Errors in the definition of a flow are never retried, nor is what is no failure (see `raised`).
"""

from __future__ import annotations

from datetime import timedelta
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final, final

from routilux.codec.registry import class_name
from routilux.errors import (
    CorruptStateError,
    FlowDefinitionError,
    IllegalTransitionError,
    NoActiveStepError,
    UnserializableError,
    short_repr,
)
from routilux.retry.backoff import MAX_DELAY_NS, backoff_ns, half_even, nanoseconds
from routilux.retry.options import (
    CHECKS,
    WITH_ANY_STRATEGY,
    Default,
    ErrorStrategy,
    bad_option,
    default,
    find_exception_class,
    load_option,
)
from routilux.retry.raised import RetryAfter, is_cancellation

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["MAX_DELAY_NS", "ErrorHandler", "ErrorStrategy", "RetryAfter"]

_Classes = tuple[type[Exception], ...]
_DRAW: Final = 1 << 53
_CACHED: Final = 1024
_NEVER_RETRIED: Final = (
    FlowDefinitionError,
    IllegalTransitionError,
    NoActiveStepError,
    UnserializableError,
)


@final
class ErrorHandler:
    """An immutable policy for failed tasks.

    The delay before retry k is `retry_delay × retry_backoff^(k−1)`, at most `max_delay`, then
    spread by `jitter`; it is computed exactly. `retry_delay`, `max_delay`, `timeout` and `deadline`
    are seconds; None means no limit, and `max_retries=None` endless retries. At its `timeout` an
    async handler is cancelled, also one behind a decorator, and one in a thread or another process
    is given up; one that runs in the thread of `execute` fails when it returns. Retry options with
    a strategy other than RETRY, retryable types that are all non-retryable, and invalid values
    raise `FlowDefinitionError`.

    >>> handler = ErrorHandler("retry", retry_delay=0.3, retry_backoff=1.5)
    >>> [handler.delay_ns(retry) for retry in (1, 2, 3)]
    [300000000, 450000000, 675000000]
    >>> handler.is_retryable(OSError)
    True
    >>> ErrorHandler("skip", max_retries=5)
    Traceback (most recent call last):
        ...
    routilux.FlowDefinitionError: ErrorHandler: max_retries=5 is refused; strategy SKIP \
never retries: leave this option out, or use ErrorStrategy.RETRY
    """

    __slots__ = (
        *CHECKS,
        *("_ceiling_ns", "_delays", "_equal", "_sealed", "_spread", "_verdicts"),
        *("deadline_ns", "most_retries", "retry_count", "timeout_ns"),
    )

    def __init__(
        self,
        strategy: ErrorStrategy | str = ErrorStrategy.STOP,
        max_retries: int | None = default(3),
        retry_delay: float = default(1.0),
        retry_backoff: float = default(2.0),
        retryable_exceptions: type[Exception] | tuple[type[Exception], ...] = default((Exception,)),
        *,
        non_retryable_exceptions: type[Exception] | tuple[type[Exception], ...] = default(()),
        max_delay: float | None = default(None),
        jitter: float = default(0.0),
        timeout: float | None = None,
        deadline: float | None = default(None),
        on_exhausted: ErrorStrategy | str = default(ErrorStrategy.STOP),
    ) -> None:
        given = locals()
        object.__setattr__(self, "_sealed", False)
        options: dict[str, Any] = {name: given[name] for name in CHECKS}
        chosen = CHECKS["strategy"]("strategy", strategy)
        for name, value in options.items():
            if isinstance(value, Default):
                options[name] = value.value
            elif chosen is ErrorStrategy.RETRY or name in WITH_ANY_STRATEGY:
                options[name] = CHECKS[name](name, value)
            else:
                raise bad_option(
                    name,
                    value,
                    f"strategy {chosen.name} never retries: "
                    "leave this option out, or use ErrorStrategy.RETRY",
                )

        refused = (*options["non_retryable_exceptions"], *_NEVER_RETRIED)
        retryable = options["retryable_exceptions"]
        if retryable and all(
            issubclass(kind, refused) and not issubclass(kind, RetryAfter) for kind in retryable
        ):
            names = ", ".join(kind.__qualname__ for kind in retryable)
            raise bad_option(
                "retryable_exceptions",
                retryable,
                f"no error would be retried: {names} falls under non_retryable_exceptions"
                f" ({', '.join(kind.__qualname__ for kind in refused)}); name types that may be"
                " retried, or use another strategy",
            )

        self.strategy: Final[ErrorStrategy] = options["strategy"]
        """How a failed task is handled."""
        self.max_retries: Final[int | None] = options["max_retries"]
        """The retries of a task, 0 or more; None means endless retries."""
        self.retry_delay: Final[float] = options["retry_delay"]
        """The delay before the first retry, in seconds."""
        self.retry_backoff: Final[float] = options["retry_backoff"]
        """The factor by which each further delay grows, 1 or more."""
        self.retryable_exceptions: Final[_Classes] = options["retryable_exceptions"]
        """The types that are retried, with their subclasses."""
        self.non_retryable_exceptions: Final[_Classes] = options["non_retryable_exceptions"]
        """The types that are never retried; they take precedence."""
        self.max_delay: Final[float | None] = options["max_delay"]
        """The longest delay, in seconds; None for no limit."""
        self.jitter: Final[float] = options["jitter"]
        """The random part of a delay, 0 to 1: 0.1 is ±10 %; at `max_delay` it only shortens."""
        self.timeout: Final[float | None] = options["timeout"]
        """The limit of one attempt under every strategy, in seconds; None for no limit."""
        self.deadline: Final[float | None] = options["deadline"]
        """No retry begins later than this after the task's first start, in seconds.

        It interrupts no running attempt. None means no limit.
        """
        self.on_exhausted: Final[ErrorStrategy] = options["on_exhausted"]
        """The strategy when no retry is left, or the error forbids one."""
        self.retry_count: Final[int] = 0
        """On a handler of a loaded flow, the most retries that a task had spent; else 0.

        It is in the saved form, but not in equality, and the engine never reads it.
        """

        most = float("inf") if self.max_retries is None else self.max_retries
        self.most_retries: Final[float] = most if chosen is ErrorStrategy.RETRY else 0
        """`max_retries` to compare with: 0 if nothing is retried, infinity for None."""
        self.timeout_ns: Final = _nanoseconds(self.timeout)
        """`timeout` in nanoseconds."""
        self.deadline_ns: Final = _nanoseconds(self.deadline)
        """`deadline` in nanoseconds."""
        ceiling = _nanoseconds(self.max_delay)
        self._ceiling_ns: Final = MAX_DELAY_NS if ceiling is None else ceiling
        self._equal: Final = self.retry_delay == 0 or self.retry_backoff == 1  # all delays
        self._spread: Final = Fraction(repr(self.jitter)) if self.jitter else None
        # Two threads may share a handler and store the same result in these dicts.
        self._delays: Final[dict[int, int]] = {}
        self._verdicts: Final[dict[type[BaseException], bool]] = {}
        object.__setattr__(self, "_sealed", True)

    if not TYPE_CHECKING:  # mypy checks Final; with __setattr__ it would allow any attribute

        def __setattr__(self, name: str, value: object) -> None:
            if self._sealed:  # hasattr costs half of making a handler
                raise AttributeError(
                    f"ErrorHandler.{name} can't be changed; make a new handler and set the new one"
                )
            object.__setattr__(self, name, value)

        def __delattr__(self, name: str) -> None:
            raise AttributeError(f"ErrorHandler.{name} can't be deleted")

    def delay_ns(self, retry: int, draw: int | None = None) -> int:
        """Return the delay before retry number `retry`, in nanoseconds.

        `draw` is a 53-bit integer from the task's own stream. With `jitter` it chooses a delay
        from `1 − jitter` to `1 + jitter` times the delay, or to `max_delay` if that is less;
        without a draw there is no jitter. Raises `ValueError` for a retry below 1 or a draw out
        of range.

        >>> ErrorHandler("retry", retry_delay=1, jitter=0.1).delay_ns(1, draw=0)
        900000000
        """
        number = 1 if self._equal and retry > 1 else retry
        delay = self._delays.get(number)
        if delay is None:
            if retry < 1:
                raise ValueError(f"retry must be 1 or more, not {retry}")
            delay = backoff_ns(self.retry_delay, self.retry_backoff, number)
            if len(self._delays) < _CACHED:
                self._delays[number] = delay
        ceiling = self._ceiling_ns
        if delay > ceiling:
            delay = ceiling
        spread = self._spread
        if spread is not None and draw is not None:
            if not 0 <= draw < _DRAW:
                raise ValueError(f"draw must be a 53-bit integer, not {draw}")
            # Whole numbers of 1/denominator ns; the draw chooses between the two ends.
            whole, part = spread.denominator, spread.numerator
            shortest = delay * (whole - part)
            longest = min(delay * (whole + part), ceiling * whole)
            delay = half_even(shortest * (_DRAW - draw) + longest * draw, whole * _DRAW)
        return delay

    def delay_before(self, retry: int) -> timedelta:
        """Return the delay before retry number `retry`, without jitter.

        Raises `ValueError` for a retry below 1.

        >>> ErrorHandler("retry", max_delay=3).delay_before(3)
        datetime.timedelta(seconds=3)
        """
        return timedelta(microseconds=half_even(self.delay_ns(retry), 1000))

    @property
    def fails_jobs(self) -> bool:
        """Whether an error that is not retried any more fails the job.

        >>> ErrorHandler("retry").fails_jobs, ErrorHandler("skip").fails_jobs
        (True, False)
        """
        retries = self.strategy is ErrorStrategy.RETRY
        return (self.on_exhausted if retries else self.strategy) is ErrorStrategy.STOP

    def is_retryable(
        self,
        exception_type: type[BaseException],
        leaf_types: Iterable[type[BaseException]] = (),
    ) -> bool:
        """Return whether a task may be retried after an error of type `exception_type`.

        A subclass of a retryable type is retryable; `non_retryable_exceptions` take precedence.
        `RetryAfter` always is. `FlowDefinitionError`, `UnserializableError`, `NoActiveStepError`
        and `IllegalTransitionError` never are. The `CancelledError` of asyncio is retryable where
        `Exception` is; nothing else is that is not an `Exception`.

        Of an exception group, `leaf_types` are the types of its leaves. It is retryable if all
        leaves are, or if its own type is named and no leaf must not be retried.

        >>> ErrorHandler("retry", retryable_exceptions=OSError).is_retryable(ConnectionError)
        True
        >>> ErrorHandler("retry").is_retryable(ExceptionGroup, [OSError, FlowDefinitionError])
        False
        """
        leaves = tuple(leaf_types)
        if leaves:
            return not any(map(self._forbids, (exception_type, *leaves))) and (
                self._covers(exception_type) or all(map(self._covers, leaves))
            )
        verdict = self._verdicts.get(exception_type)
        if verdict is None:
            verdict = self._covers(exception_type) and not self._forbids(exception_type)
            # Bounded: a handler that defines a class makes a new one in every attempt.
            if len(self._verdicts) < _CACHED:
                self._verdicts[exception_type] = verdict
        return verdict

    def _covers(self, kind: type[BaseException]) -> bool:
        judged = Exception if is_cancellation(kind) else kind
        return issubclass(judged, (*self.retryable_exceptions, RetryAfter))

    def _forbids(self, kind: type[BaseException]) -> bool:
        forbidden = (*self.non_retryable_exceptions, *_NEVER_RETRIED)
        return issubclass(kind, forbidden) and not issubclass(kind, RetryAfter)

    def serialize(self, path: str = "$") -> dict[str, Any]:
        """Return the handler as JSON data.

        It has the retry options only where the strategy is RETRY. Raises `UnserializableError`,
        with a path below `path`, for an exception class that can't be found by its name, such as
        one defined in a function.

        >>> ErrorHandler("skip", timeout=2.5).serialize()
        {'strategy': 'skip', 'timeout': 2.5, 'retry_count': 0}
        """
        saved: dict[str, Any] = {}
        for name, value in self._options().items():
            if isinstance(value, ErrorStrategy):
                saved[name] = value.value
            elif isinstance(value, tuple):
                for index, cls in enumerate(value):
                    if find_exception_class(class_name(cls)) is not cls:
                        raise UnserializableError(
                            f"{path}.{name}[{index}]",
                            f"the exception class {class_name(cls)} can't be found by its name; "
                            "define it at the top level of a module",
                        )
                saved[name] = [class_name(cls) for cls in value]
            else:
                saved[name] = value
        saved["retry_count"] = self.retry_count
        return saved

    @staticmethod
    def deserialize(data: object, path: str = "$") -> ErrorHandler:
        """Build a handler from data that `serialize` returned.

        Exception classes are looked up in modules that the program has imported; nothing is
        imported. Raises `CorruptStateError`, with a path below `path`, for anything that
        `serialize` does not write.

        >>> ErrorHandler.deserialize({"strategy": "skip", "timeout": None, "retry_count": 0})
        ErrorHandler(ErrorStrategy.SKIP)
        """
        if not isinstance(data, dict):
            raise CorruptStateError(path, f"must be a JSON object, not {short_repr(data)}")
        if "strategy" not in data:
            raise CorruptStateError(f"{path}.strategy", "is missing")
        options: dict[str, Any] = {"strategy": load_option("strategy", data["strategy"], path)}
        expected = _saved_options(options["strategy"])
        for name in data:
            if name not in expected and name != "retry_count":
                raise CorruptStateError(
                    f"{path}.{name}",
                    f"is not a field of an error handler with strategy {data['strategy']!r}",
                )
        for name in (*expected, "retry_count"):
            if name not in data:
                raise CorruptStateError(f"{path}.{name}", "is missing")
        for name in expected:
            options[name] = load_option(name, data[name], path)
        retry_count = data["retry_count"]
        if type(retry_count) is not int or retry_count < 0:
            raise CorruptStateError(
                f"{path}.retry_count", f"must be an int of 0 or more, not {short_repr(retry_count)}"
            )
        try:
            return _restore(options, retry_count)
        except FlowDefinitionError as refused:
            raise CorruptStateError(path, str(refused)) from None

    def _options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _saved_options(self.strategy)}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ErrorHandler):
            return NotImplemented
        return self._options() == other._options()

    def __hash__(self) -> int:
        return hash(tuple(self._options().values()))

    def __repr__(self) -> str:
        parts = [str(self.strategy)]
        for name, value in self._options().items():
            if name == "strategy" or value == getattr(_PLAIN, name):
                continue
            if isinstance(value, tuple):
                names = "".join(f"{cls.__qualname__}, " for cls in value)
                parts.append(f"{name}=({names.strip() if len(value) == 1 else names[:-2]})")
            else:
                parts.append(f"{name}={value}")
        return f"ErrorHandler({', '.join(parts)})"

    def __reduce__(self) -> tuple[object, ...]:
        return _restore, (self._options(), self.retry_count)


def _nanoseconds(seconds: float | None) -> int | None:
    return None if seconds is None else nanoseconds(seconds)


def _saved_options(strategy: ErrorStrategy) -> tuple[str, ...]:
    return tuple(CHECKS) if strategy is ErrorStrategy.RETRY else WITH_ANY_STRATEGY


def _restore(options: dict[str, Any], retry_count: int) -> ErrorHandler:
    handler = ErrorHandler(**options)
    object.__setattr__(handler, "retry_count", retry_count)
    return handler


_PLAIN: Final = ErrorHandler()
