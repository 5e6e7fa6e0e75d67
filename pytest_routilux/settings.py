"""The plugin's command line options and configuration settings.

Invariants:
- An invalid value ends the session before it runs, with its name and the valid values.
- Every pytest of the environment loads this module, so it imports nothing heavy. A host loads it
  too, and needs no pytest.
"""

from __future__ import annotations

import shutil
import time
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    import pytest

# pytest imports this module before a test or a conftest can patch these.
REAL_CLASSES: Final = (date, datetime)
REAL_TIME: Final[dict[str, Any]] = {
    name: getattr(time, name)
    for name in (
        *("asctime", "ctime", "gmtime", "localtime", "monotonic", "monotonic_ns", "perf_counter"),
        *("perf_counter_ns", "sleep", "strftime", "time", "time_ns"),
    )
}

# Attributes of a report.
REPORT_PARTS: Final = ("flow_report", "flow_simulations", "flow_facts", "flow_kept")
Sleeping: TypeAlias = Literal["virtual", "error", "real"]
"""What `time.sleep()` in a handler does."""


class FlowTime(NamedTuple):
    """The instant at which virtual time starts, and the local time zone."""

    start: str = "2026-01-01"
    zone: str = "UTC"


# Local time needs a datetime one day earlier, in a zone that is up to one day away from UTC.
_FIRST: Final = datetime(1, 1, 3, tzinfo=UTC)
_LAST: Final = datetime(9999, 12, 30, tzinfo=UTC)
_looks: Final[WeakKeyDictionary[pytest.Config, tuple[int, bool]]] = WeakKeyDictionary()
_MODES: Final = "it must be auto, always or never"
_MOST: Final = 1_000_000_000
_NUMBERS: Final = {
    "routilux_runs": (
        "the most jobs that flow_sim runs to try all orders, or all pairs of crashes, of a test",
        5000,
    ),
    "routilux_seed": ("the number that chooses the random orders of flow_sim", 0),
}


def add_options(parser: pytest.Parser) -> None:
    """Register the plugin's options and settings with pytest's `parser`."""
    import pytest

    # Before 8.4 pytest has no numbers.
    typed = pytest.version_tuple >= (8, 4)
    number: Literal["float", "string"] = "float" if typed else "string"
    whole: Literal["int", "string"] = "int" if typed else "string"
    group = parser.getgroup("routilux", "flows of routilux")
    group.addoption(
        "--routilux-repro",
        metavar="R1.…",
        help="run only this reproducer in flow_sim; report that it fails, is fixed or is stale",
    )
    group.addoption(
        "--routilux-report",
        metavar="MODE",
        help="when to show reports of flow_report and the summary of jobs: auto (reports on"
        " failure and with -v, the summary unless -q), always, or never, which keeps them out of"
        " --junitxml too; default: routilux_report of the configuration, or auto",
    )
    for name, (meaning, default) in _NUMBERS.items():
        group.addoption(
            f"--{name.replace('_', '-')}",
            metavar="N",
            help=f"{meaning}; default: {name} of the configuration, or {default}",
        )
        parser.addini(name, meaning, type=whole, default=default)
    parser.addini(
        "routilux_report",
        "when to show reports of flow_report and the summary of jobs: auto, always or never",
        type="string",
        default="auto",
    )
    parser.addini(
        "routilux_sleep",
        "time.sleep() in a handler: virtual lets virtual time pass, error fails the test, real"
        " sleeps in real time",
        type="string",
        default="virtual",
    )
    parser.addini(
        "routilux_handler_assertions",
        "a failed assertion in a handler: fail fails the test, whatever the flow makes of the"
        " error; ignore leaves it to the flow",
        type="string",
        default="fail",
    )
    parser.addini(
        "routilux_blocked_after",
        "real seconds after which a handler that waits in real time fails the test; 0: no limit",
        type=number,
        default=5.0,
    )
    parser.addini(
        "routilux_start",
        "the instant at which virtual time starts, in ISO format; without an offset it is UTC",
        type="string",
        default=FlowTime().start,
    )
    parser.addini(
        "routilux_zone",
        "the local time zone of tests in virtual time, such as Europe/Berlin",
        type="string",
        default=FlowTime().zone,
    )


def flow_time(node: pytest.Item) -> FlowTime:
    """Return the start and the zone of a test: of its nearest marker, or of the settings."""
    found = ini_time(node.config)._asdict()
    for where, marker in reversed([*node.iter_markers_with_node("flow_time")]):
        unknown = [repr(value) for value in marker.args]
        unknown += [name for name in marker.kwargs if name not in FlowTime._fields]
        try:
            if unknown:
                raise ValueError(f"{unknown[0]} is neither start=… nor zone=…")
            if "start" in marker.kwargs:
                found["start"] = start_text(marker.kwargs["start"])
            if "zone" in marker.kwargs:
                found["zone"] = _zone(marker.kwargs["zone"])
        except ValueError as error:
            import pytest

            place = where.nodeid or "the session"
            pytest.fail(f"the marker flow_time of {place}: {error}", pytrace=False)
    return FlowTime(**found)


def ini_time(config: pytest.Config) -> FlowTime:
    """Return the settings `routilux_start` and `routilux_zone`."""
    found = []
    for name, read in (("routilux_start", start_text), ("routilux_zone", _zone)):
        try:
            found.append(read(_setting(config, name, "it must be a text")))
        except ValueError as error:
            raise _usage_error(f"{name}: {error}") from None
    return FlowTime(*found)


def start_text(value: object, name: str = "start") -> str:
    """Return the instant at which a fake clock starts as ISO text.

    Raises `ValueError` for another value, and for an instant that has no local time in some zone.
    """
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        moment = None
    if not isinstance(moment, datetime):
        raise ValueError(
            f"{name}={value!r} is no instant; give a datetime or an ISO text such as"
            " '2024-02-29T23:30:00+01:00'"
        )
    aware = moment if moment.utcoffset() is not None else moment.replace(tzinfo=UTC)
    if not _FIRST <= aware <= _LAST:
        raise ValueError(
            f"{name}={value!r} is too near to the first or the last datetime for local time in"
            f" each zone; give an instant from {_FIRST.isoformat()} to {_LAST.isoformat()}"
        )
    return moment.isoformat()


def _zone(value: object) -> str:
    if value != "UTC":
        from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

        try:
            ZoneInfo(value)  # type: ignore[arg-type]  # whatever a marker holds
        except (OSError, TypeError, ValueError, ZoneInfoNotFoundError):
            raise ValueError(
                f"zone={value!r} is no time zone of this system; give a name of"
                " zoneinfo.available_timezones(), such as 'Europe/Berlin'"
            ) from None
    return str(value)


def _setting(config: pytest.Config, name: str, allowed: str) -> Any:
    import pytest

    try:
        return config.getini(name)
    except (TypeError, ValueError, pytest.UsageError) as error:  # the last is of pytest 9.2
        raise _usage_error(f"{error}; {allowed}") from None


def _usage_error(text: str) -> pytest.UsageError:
    import pytest

    return pytest.UsageError(text)


def sleeping(config: pytest.Config) -> Sleeping:
    """Return the setting `routilux_sleep`: virtual, error or real."""
    value: Sleeping = _setting(config, "routilux_sleep", "it must be virtual, error or real")
    if value not in ("virtual", "error", "real"):
        raise _usage_error(f"routilux_sleep must be virtual, error or real, not {value!r}")
    return value


def assertions_count(config: pytest.Config) -> bool:
    """Return whether the setting `routilux_handler_assertions` is fail; it may be ignore."""
    value = _setting(config, "routilux_handler_assertions", "it must be fail or ignore")
    if value not in ("fail", "ignore"):
        raise _usage_error(f"routilux_handler_assertions must be fail or ignore, not {value!r}")
    return bool(value == "fail")


def blocked_after(config: pytest.Config) -> float:
    """Return the setting `routilux_blocked_after` in seconds; 0 means no limit."""
    allowed = "routilux_blocked_after must be a number of seconds"
    value = _setting(config, "routilux_blocked_after", allowed)
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise _usage_error(f"{allowed}, not {value!r}")
    return seconds


def patience_ns(config: pytest.Config) -> int:
    """Return the nanoseconds for which virtual time waits for real work: `routilux_blocked_after`.

    Without a limit, it is 30 years.
    """
    return round((blocked_after(config) or 10**9) * 1_000_000_000)


class Search(NamedTuple):
    """How many runs a search of `flow_sim` may take, and what chooses its random orders."""

    runs: int
    seed: int


def search(config: pytest.Config) -> Search:
    """Return the options `--routilux-runs` and `--routilux-seed`, or their settings."""
    return Search(
        _whole_number(config, "routilux_runs", 1), _whole_number(config, "routilux_seed", 0)
    )


def _whole_number(config: pytest.Config, name: str, least: int) -> int:
    allowed = f"it must be a whole number from {least} to {_MOST:,}"
    value: str | int | None = config.getoption(name)
    source = f"--{name.replace('_', '-')}={value}"
    if value is None:
        value = _setting(config, name, allowed)
        source = f"the setting {name} = {value!r}"
    try:
        number = int(value)
    except ValueError:
        number = -1
    if not least <= number <= _MOST:
        raise _usage_error(f"{source} is not valid; {allowed}")
    return number


def report_mode(config: pytest.Config) -> str:
    """Return the report mode: auto, always or never."""
    mode: str | None = config.getoption("routilux_report")
    source = f"--routilux-report={mode!r}"
    if mode is None:
        mode = _setting(config, "routilux_report", _MODES)
        source = f"the setting routilux_report = {mode!r}"
    if mode not in ("auto", "always", "never"):
        raise _usage_error(f"{source} is not valid; {_MODES}")
    return mode


def find_report_look(config: pytest.Config) -> bool:
    """Find out the width and the colours of reports.

    Returns whether this process prints reports: an xdist worker gets both from its controller.
    This function runs at the start, since pytest's capturing hides the terminal later.
    """
    from_controller = getattr(config, "workerinput", {}).get("routilux_look")
    if from_controller is not None:
        _looks[config] = tuple(from_controller)
        return False
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    colour = terminal is not None and config.get_terminal_writer().hasmarkup
    _looks[config] = max(shutil.get_terminal_size((100, 24)).columns, 40), colour
    return True


def report_look(config: pytest.Config) -> tuple[int, bool]:
    """Return the width of reports, and whether reports have colours."""
    return _looks[config]
