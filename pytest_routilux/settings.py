"""What can be said on the command line and in the configuration file, and what it may be.

Laws:
- One that can't be meant so ends the session before it runs, with its name and what it may be.
- Loaded by every pytest of the environment: nothing is imported here but pytest.
"""

from __future__ import annotations

import shutil
from typing import Any, Final, Literal, TypeAlias

import pytest

__all__ = [
    "REPORT_PARTS",
    "Sleeping",
    "add_options",
    "blocked_after",
    "check",
    "find_report_look",
    "report_look",
    "report_mode",
    "sleeping",
]

REPORT_PARTS: Final = ("flow_report", "flow_simulations", "flow_facts")  # attributes of a report
Sleeping: TypeAlias = Literal["virtual", "error", "real"]
"""What `time.sleep()` in a handler does."""

_LOOK: Final = pytest.StashKey[tuple[int, bool]]()
_MODES: Final = ("auto", "always", "never")
_NUMBER: Final = "float" if pytest.version_tuple >= (8, 4) else "string"  # which is all there was


def add_options(parser: pytest.Parser) -> None:
    """Add the options and settings to those of pytest."""
    group = parser.getgroup("routilux", "flows of routilux")
    group.addoption(
        "--routilux-repro",
        metavar="R1.…",
        default=None,
        help="run flow_sim with this reproducer alone: it fails, is fixed, or is stale",
    )
    group.addoption(
        "--routilux-report",
        metavar="MODE",
        default=None,
        help="when reports of flow_report and the summary of jobs are shown: auto (reports on"
        " failure and with -v, the summary unless -q), always, or never, which keeps them out of"
        " --junitxml too; default: routilux_report of the configuration, or auto",
    )
    parser.addini(
        "routilux_report",
        "when reports of flow_report and the summary of jobs are shown: auto, always or never",
        type="string",
        default="auto",
    )
    parser.addini(
        "routilux_sleep",
        "time.sleep() in a handler: virtual lets the flow's time pass, error fails the test, real"
        " really sleeps",
        type="string",
        default="virtual",
    )
    parser.addini(
        "routilux_blocked_after",
        "real seconds after which a handler that waits in real time fails the test; 0: no limit",
        type=_NUMBER,
        default=5.0,
    )


def check(config: pytest.Config) -> None:
    """Raise `pytest.UsageError` for a setting with an invalid value."""
    report_mode(config)
    sleeping(config)
    blocked_after(config)


def _setting(config: pytest.Config, name: str, allowed: str) -> Any:
    try:
        return config.getini(name)
    except (TypeError, ValueError, pytest.UsageError) as error:  # pytest before 9.2, and since
        raise pytest.UsageError(f"{error}; {allowed}") from None


def sleeping(config: pytest.Config) -> Sleeping:
    """Return the setting `routilux_sleep`."""
    value: Sleeping = _setting(config, "routilux_sleep", "it is virtual, error or real")
    if value not in ("virtual", "error", "real"):
        raise pytest.UsageError(f"routilux_sleep is virtual, error or real, not {value!r}")
    return value


def blocked_after(config: pytest.Config) -> float:
    """Return the setting `routilux_blocked_after`, in seconds."""
    allowed = "routilux_blocked_after is a number of seconds"
    value = _setting(config, "routilux_blocked_after", allowed)
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise pytest.UsageError(f"{allowed}, not {value!r}")
    return seconds


def report_mode(config: pytest.Config) -> str:
    """Return when reports are shown: auto, always or never."""
    given, told = config.getoption("routilux_report"), "--routilux-report={!r}"
    if given is None:
        told = "the option routilux_report = {!r} of the configuration"
        given = _setting(config, "routilux_report", _allowed())
    if given not in _MODES:
        raise pytest.UsageError(f"{told.format(given)} is no mode; {_allowed()}")
    mode: str = given
    return mode


def _allowed() -> str:
    return f"allowed are {', '.join(_MODES[:-1])} and {_MODES[-1]}"


def find_report_look(config: pytest.Config) -> bool:
    """Find how wide and how colourful reports are; return whether this process prints them.

    A worker of xdist takes what its controller found. It is asked at the start, since pytest's
    capturing hides the terminal later.
    """
    from_controller = getattr(config, "workerinput", {}).get("routilux_look")
    if from_controller is not None:
        config.stash[_LOOK] = tuple(from_controller)
        return False
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    colour = terminal is not None and config.get_terminal_writer().hasmarkup
    config.stash[_LOOK] = max(shutil.get_terminal_size((100, 24)).columns, 40), colour
    return True


def report_look(config: pytest.Config) -> tuple[int, bool]:
    """Return the width of reports, and whether colours are wanted."""
    return config.stash[_LOOK]
