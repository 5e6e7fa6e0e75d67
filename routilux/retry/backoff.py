"""Exact backoff: computes delays in whole nanoseconds.

Invariants:
- A number means its decimals: 0.3 is three tenths, not the nearest binary fraction.
- The result is that of exact fractions, rounded half to even. Retry 10**9 costs no more than
  retry 100.
- No delay is longer than `MAX_DELAY_NS`, so none can overflow a date.
"""

from __future__ import annotations

import math
from decimal import MAX_EMAX, MIN_EMIN, ROUND_HALF_EVEN, Context, Decimal, Inexact
from functools import lru_cache
from typing import Final

from routilux.clocks.durations import SECOND, to_ns

MAX_DELAY_NS: Final = 36_525 * 86_400 * SECOND
"""The longest delay, timeout and deadline: 100 years; a longer one is reduced to this."""


def plain_number(value: object) -> float | None:
    """Return a finite number as int or float; None otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        if not math.isfinite(value):
            return None
    except OverflowError:
        return None
    # A subclass, such as numpy.float64, may have a repr that is not a number.
    return int(value) if isinstance(value, int) else float(value)


def nanoseconds(seconds: float) -> int:
    """Convert seconds to nanoseconds, at most `MAX_DELAY_NS`."""
    return min(to_ns(seconds), MAX_DELAY_NS)


def half_even(numerator: int, denominator: int) -> int:
    """Divide two integers, and round half to even."""
    quotient, rest = divmod(numerator, denominator)
    return quotient + (2 * rest > denominator or (2 * rest == denominator and quotient & 1))


@lru_cache(maxsize=4096)  # flows are built anew far more often than their policies differ
def backoff_ns(delay: float, growth: float, retry: int, digits: int = 64) -> int:
    """Convert `delay × growth^(retry−1)` seconds to nanoseconds, correctly rounded.

    The power is computed with `digits` digits, and with twice as many while its error could cross
    a rounding boundary.
    """
    if retry == 1 or growth == 1 or delay == 0:
        return nanoseconds(delay)
    while True:
        context = Context(
            prec=digits, rounding=ROUND_HALF_EVEN, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=[]
        )
        power = context.power(Decimal(repr(growth)), retry - 1)
        value = context.multiply(context.multiply(Decimal(repr(delay)), power), Decimal(SECOND))
        if value > 2 * MAX_DELAY_NS:
            return MAX_DELAY_NS
        rounded = int(value.to_integral_value(ROUND_HALF_EVEN, context))
        if not context.flags[Inexact]:
            return min(rounded, MAX_DELAY_NS)
        error = context.multiply(value, Decimal((0, (1,), 6 - digits)))
        low = context.subtract(value, error).to_integral_value(ROUND_HALF_EVEN, context)
        high = context.add(value, error).to_integral_value(ROUND_HALF_EVEN, context)
        if low == high:
            return min(rounded, MAX_DELAY_NS)
        digits *= 2
