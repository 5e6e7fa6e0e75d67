"""Tracebacks of failed tests: an error that names its culprit is shown at the user's own lines.

Laws:
- Frames of ours are hidden where the error says all there is to know: who has to act, and how.
- They are shown where it may be a bug of ours, and whenever pytest is asked for `--full-trace`.
- Frames of user code stay, also those between ours: a handler, an observer, a `build`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from routilux import IllegalTransitionError, RoutiluxError

if TYPE_CHECKING:
    import pytest

__all__ = ["hide_ours"]

_OURS: Final = frozenset({"routilux", "pytest_routilux"})


def hide_ours(excinfo: pytest.ExceptionInfo[BaseException]) -> None:
    """Let pytest ask, for each frame of ours in a traceback, whether it is to be shown."""
    if not _says_all(excinfo):
        return
    for entry in excinfo.traceback:
        names = entry.frame.f_globals
        if str(names.get("__name__")).partition(".")[0] in _OURS:
            names["__tracebackhide__"] = _says_all


def _says_all(excinfo: pytest.ExceptionInfo[BaseException] | None) -> bool:
    if excinfo is None or issubclass(excinfo.type, IllegalTransitionError):
        return False
    # TimeoutError is what run.wait(timeout) raises; the plugin has errors of its own, too.
    told = issubclass(excinfo.type, RoutiluxError | TimeoutError)
    return told or excinfo.type.__module__.partition(".")[0] == "pytest_routilux"
