"""Sets the local time zone of the process.

Invariants:
- The zone is that of the whole process, so `datetime.now()`, `time.localtime()` and programs that
  the test starts agree.
- A zone that the C library does not know is refused. It would silently be UTC.
- The zone is as before when the block ends. If a patch of `TZ` restores the zone of the block
  later, `put_back_zone` undoes that.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from pytest_routilux.settings import REAL_TIME

if TYPE_CHECKING:
    from collections.abc import Iterator

_WINTER_AND_SUMMER: Final = (1_767_225_600, 1_782_864_000)  # 2026-01-01 and 2026-07-01
_ended: Final[list[tuple[str | None, str]]] = []  # the last block's TZ before it and in it


@contextmanager
def local_zone(zone: str) -> Iterator[None]:
    """In the `with` block, let local time be that of `zone`, such as Europe/Berlin."""
    before = os.environ.get("TZ")
    try:
        _set(zone)
        if not _is_set(zone):
            import pytest

            pytest.fail(
                f"this system can't set the local time zone {zone!r}; install the time zone data"
                " of the system (on Debian the package tzdata)",
                pytrace=False,
            )
        yield
    finally:
        _set(before)
        _ended[:] = [(before, zone)]


def put_back_zone() -> None:
    """Undo what a patch of `TZ` has restored after the end of the block."""
    if _ended:
        [(before, zone)] = _ended
        _ended.clear()
        if before != zone and os.environ.get("TZ") == zone:
            _set(before)


def _set(zone: str | None) -> None:
    if zone is None:
        os.environ.pop("TZ", None)
    else:
        os.environ["TZ"] = zone
    if hasattr(time, "tzset"):  # Windows has none
        time.tzset()


def _is_set(zone: str) -> bool:
    if zone == "UTC":
        return True
    from zoneinfo import ZoneInfo

    expected = ZoneInfo(zone)
    return all(
        timedelta(seconds=REAL_TIME["localtime"](at).tm_gmtoff)
        == datetime.fromtimestamp(at, expected).utcoffset()
        for at in _WINTER_AND_SUMMER
    )
