"""The retries of a task against those that were expected.

Laws:
- Waits are compared as integer nanoseconds, planned and real ones; one that is not over has no real
  one yet and is judged by its plan.
- The first retry that is wrong is told, and what to look at depends on how it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pytest_routilux.text import count, seconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from routilux import Retry

__all__ = ["Wrong", "first_wrong", "retries_told", "wait_told"]


class Wrong(NamedTuple):
    """What is wrong in one line, with which retry (from 0), and what of `{}` to look at."""

    problem: str
    at: int
    look: str


def first_wrong(
    whose: str, retries: Sequence[Retry], times: int | None, wanted: Sequence[int] | None
) -> Wrong | None:
    """Return the first retry that is not as expected; None where all are."""
    for at, (retry, delay) in enumerate(zip(retries, wanted or (), strict=False)):
        waited = retry.delay_ns if retry.actual_ns is None else retry.actual_ns
        if retry.delay_ns == waited == delay:
            continue
        look = "retry_delay, retry_backoff and jitter of {}'s ErrorHandler"
        told = f"retry {at + 1} of {whose}: expected {seconds(delay)} s"
        if retry.actual_ns is None:
            return Wrong(f"{told}, planned {seconds(retry.delay_ns)} s", at, look)
        if waited == retry.delay_ns:
            return Wrong(f"{told}, waited {seconds(waited)} s", at, look)
        told += f", waited {seconds(waited)} s, planned {seconds(retry.delay_ns)} s"
        return Wrong(told, at, "what kept {}, or all workers, busy when its wait was over")
    if times is not None and len(retries) != times:
        told = f"{whose}: expected {retries_told(times)}, made {len(retries)}"
        look = "max_retries and retryable_exceptions of {}'s ErrorHandler"
        return Wrong(told, min(times, len(retries)), look)
    return None


def wait_told(retries: Sequence[Retry], wanted: Sequence[int] | None, at: int) -> str:
    """Return in words what was expected of one retry and what became of it."""
    parts = []
    if wanted is not None:
        parts.append(f"expected {seconds(wanted[at])} s" if at < len(wanted) else "not expected")
    if at >= len(retries):
        return ", ".join([*parts, "was not made"])
    retry = retries[at]
    parts.append(f"planned {seconds(retry.delay_ns)} s")
    actual = retry.actual_ns
    parts.append("still waits" if actual is None else f"waited {seconds(actual)} s")
    return ", ".join(parts)


def retries_told(times: int | None) -> str:
    """Return a number of retries in words.

    >>> retries_told(None), retries_told(1), retries_told(4)
    ('a retry', '1 retry', '4 retries')
    """
    return "a retry" if times is None else count(times, "retry", "retries")
