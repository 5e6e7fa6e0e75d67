"""Writes instants and lengths of time as short texts; all instants are UTC."""

from __future__ import annotations

from routilux.clocks.durations import SECOND, from_ns, length_text, wait_text


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
    return f"{length_text(now - instant)} ago"


def due(instant: int, now: int) -> str:
    """Return a task's due time as text: `in 5 s`, `now`, or `5 s ago` for an overdue task.

    >>> due(5 * SECOND, 0), due(0, 5 * SECOND), due(0, 0)
    ('in 5 s', '5 s ago', 'now')
    """
    if abs(instant - now) < SECOND:
        return "now"
    return f"in {wait_text(instant - now)}" if instant > now else ago(instant, now)
