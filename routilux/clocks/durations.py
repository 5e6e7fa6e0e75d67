"""Converts instants and lengths of time to and from integer nanoseconds.

Invariants:
- Inside the engine time is an `int`: an instant counts from 1970 UTC, a length from zero. Floats
  are read once, at the edge, by their exact decimal meaning.
- Texts for people are made from these integers, never from floats.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal
from typing import Final

SECOND: Final = 1_000_000_000
_UNITS: Final = ((2 * 86_400, 86_400, "d"), (2 * 3_600, 3_600, "h"), (120, 60, "min"), (0, 1, "s"))
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_exactly: Final = Context(prec=60).multiply  # a float has 17 digits; a quarter of Fraction's time


def to_ns(value: float | timedelta) -> int:
    """Convert a length of time to integer nanoseconds.

    The float 0.3 is exactly 3/10. Raises `ValueError` for a length that is negative or not finite.

    >>> to_ns(0.3), to_ns(timedelta(milliseconds=5))
    (300000000, 5000000)
    """
    if isinstance(value, timedelta):
        length = (value // timedelta(microseconds=1)) * 1000
    elif isinstance(value, bool) or not isinstance(value, int | float) or value - value != 0:
        raise ValueError(f"a length of time must be a finite number of seconds, not {value!r}")
    elif isinstance(value, int):
        length = value * SECOND
    else:
        length = round(_exactly(Decimal(float.__repr__(value)), SECOND))
    if length < 0:
        raise ValueError(f"a length of time must be 0 or more, not {value!r}")
    return length


def signed_ns(seconds: float) -> int:
    """Convert positive or negative seconds to integer nanoseconds.

    >>> signed_ns(-0.3)
    -300000000
    """
    return to_ns(seconds) if seconds >= 0 else -to_ns(-seconds)


def from_ns(instant: int) -> datetime:
    """Convert nanoseconds since 1970 to an aware UTC datetime.

    >>> from_ns(1_500_000_000).isoformat()
    '1970-01-01T00:00:01.500000+00:00'
    """
    return _EPOCH + timedelta(microseconds=instant // 1000)


def instant_ns(instant: datetime | str) -> int:
    """Convert a datetime or ISO text to nanoseconds since 1970; naive means UTC.

    Raises `ValueError` for any other value.

    >>> instant_ns("1970-01-01T00:00:01+00:00")
    1000000000
    """
    try:
        moment = datetime.fromisoformat(instant) if isinstance(instant, str) else instant
    except ValueError:
        moment = None
    if not isinstance(moment, datetime):
        raise ValueError(
            f"{instant!r} is no instant; give a datetime or an ISO text such as"
            " '2026-01-01T09:00:00+01:00'"
        )
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1000


def seconds_text(length: int, places: int = 3) -> str:
    """Format `length` nanoseconds as seconds with `places` decimals.

    >>> seconds_text(5_737_500_000), seconds_text(450_000_000, 4), seconds_text(-5_000_000)
    ('5.738', '0.4500', '-0.005')
    """
    unit = 10 ** (9 - places)
    whole, part = divmod((abs(length) + unit // 2) // unit, 10**places)
    sign = "-" if length < 0 and (whole or part) else ""
    return f"{sign}{whole}.{part:0{places}d}"


def exact_text(length: int) -> str:
    """Format `length` nanoseconds as seconds with as many decimals as needed.

    >>> exact_text(8_000_000_000), exact_text(450_000_000)
    ('8', '0.45')
    """
    return seconds_text(length, 9).rstrip("0").rstrip(".")


def length_text(ns: int) -> str:
    """Format `ns` nanoseconds as days, hours, minutes or seconds, and round down.

    >>> length_text(90 * SECOND), length_text(150 * SECOND), length_text(0)
    ('90 s', '2 min', '0 s')
    """
    seconds = max(ns, 0) // SECOND
    size, unit = next((size, unit) for least, size, unit in _UNITS if seconds >= least)
    return f"{seconds // size} {unit}"


def wait_text(ns: int) -> str:
    """Format a wait like `length_text`, but round up to seconds first.

    >>> wait_text(1), wait_text(90 * SECOND)
    ('1 s', '90 s')
    """
    return length_text(ns + SECOND - 1)
