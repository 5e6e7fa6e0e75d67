"""Writes instants and lengths of time as short texts; all instants are UTC."""

from __future__ import annotations

from typing import Final

from routilux.clocks.durations import SECOND, from_ns

_UNITS: Final = ((2 * 86_400, 86_400, "d"), (2 * 3_600, 3_600, "h"), (120, 60, "min"), (0, 1, "s"))


def length(ns: int) -> str:
    """Format `ns` nanoseconds as days, hours, minutes or seconds, and round down.

    >>> length(90 * SECOND), length(150 * SECOND), length(0)
    ('90 s', '2 min', '0 s')
    """
    seconds = max(ns, 0) // SECOND
    size, unit = next((size, unit) for least, size, unit in _UNITS if seconds >= least)
    return f"{seconds // size} {unit}"


def at(instant: int, now: int) -> str:
    """Return `instant` as text, without the date if `instant` and `now` are on the same day.

    >>> at(61 * SECOND, 0), at(90_000 * SECOND, 0)
    ('00:01:01', '1970-01-02 01:00:00')
    """
    moment = from_ns(instant)
    today = moment.date() == from_ns(now).date()
    return f"{moment:%H:%M:%S}" if today else f"{moment:%Y-%m-%d %H:%M:%S}"


def ago(instant: int, now: int) -> str:
    """Return the time from `instant` to `now` as text; a future instant gives `0 s ago`.

    >>> ago(0, 3 * SECOND)
    '3 s ago'
    """
    return f"{length(now - instant)} ago"


def due(instant: int, now: int) -> str:
    """Return a task's due time as text: `in 5 s`, `now`, or `5 s ago` for an overdue task.

    >>> due(5 * SECOND, 0), due(0, 5 * SECOND), due(0, 0)
    ('in 5 s', '5 s ago', 'now')
    """
    if abs(instant - now) < SECOND:
        return "now"
    # A wait is rounded up, so that it never seems to be over too early.
    return f"in {length(instant - now + SECOND - 1)}" if instant > now else ago(instant, now)
