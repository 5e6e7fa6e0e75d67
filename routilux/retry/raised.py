"""What a handler may raise: `RetryAfter`, exception groups and cancellations.

Invariants:
- An exception group is judged by its leaves.
- A `CancelledError` of asyncio is a failed attempt like an `Exception`: the engine asked for none.
- Any other `BaseException`, also in a group, is no failure: it ends the run of the job.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from routilux.errors import short_repr
from routilux.retry.backoff import nanoseconds, plain_number

if TYPE_CHECKING:
    from collections.abc import Sequence


class RetryAfter(Exception):  # noqa: N818 - it is a request, as StopIteration is
    """Exception by which a handler requests a retry after `seconds`.

    It is retryable under every RETRY handler; backoff, jitter and `max_delay` do not apply. It
    spends one retry, unless `spends` is False: then it is also retried when no retry is left, and
    only `deadline` ends it. In an exception group the longest one counts, if all other leaves may
    be retried; the group spends a retry, unless no leaf does. Raises `ValueError` if `seconds` is
    negative, not finite or not a number, or `spends` is no bool.

    >>> RetryAfter(1.5, "429 from the gateway", spends=False).delay_ns
    1500000000
    """

    __module__ = "routilux"  # its name in saved jobs

    def __init__(self, seconds: float, message: str = "", *, spends: bool = True) -> None:
        number = plain_number(seconds)
        if number is None or number < 0:
            raise ValueError(
                "RetryAfter: seconds must be a finite number of 0 or more,"
                f" not {short_repr(seconds)}"
            )
        if not isinstance(spends, bool):
            raise ValueError(f"RetryAfter: spends must be True or False, not {short_repr(spends)}")
        super().__init__(number, message)
        self.seconds: float = number
        """The requested delay in seconds."""
        self.spends: bool = spends
        """Whether the retry spends one of the budget."""

    @property
    def delay_ns(self) -> int:
        """The requested delay in nanoseconds."""
        return nanoseconds(self.seconds)

    def __str__(self) -> str:
        return self.args[1] or f"try again after {self.seconds} s"


def leaves_of(error: BaseException) -> Iterator[BaseException]:
    """Yield the exceptions in a group, and in its groups; the error itself if it is no group.

    >>> group = ExceptionGroup("two", [ExceptionGroup("one", [OSError()]), ValueError()])
    >>> list(leaves_of(group))
    [OSError(), ValueError()]
    """
    waiting = [error]
    while waiting:
        found = waiting.pop()
        if isinstance(found, BaseExceptionGroup):
            waiting += reversed(found.exceptions)
        else:
            yield found


def is_cancellation(kind: type[BaseException]) -> bool:
    """Return whether `kind` is the `CancelledError` of asyncio, or a subclass of it."""
    # By name: asyncio takes 40 ms to import, and who raises its error has imported it.
    return any(
        cls.__name__ == "CancelledError" and cls.__module__ == "asyncio.exceptions"
        for cls in kind.__mro__
    )


def is_failure(error: BaseException) -> bool:
    """Return whether an attempt that raised `error` has failed; else it is an interrupt."""
    return isinstance(error, Exception) or all(
        isinstance(leaf, Exception) or is_cancellation(type(leaf)) for leaf in leaves_of(error)
    )


def requested_delay_ns(leaves: Sequence[BaseException]) -> int | None:
    """Return the longest delay that a `RetryAfter` asks for; None without one."""
    return max((leaf.delay_ns for leaf in leaves if isinstance(leaf, RetryAfter)), default=None)
