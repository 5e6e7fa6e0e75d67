"""Reports: where they are shown, how they look there, what they say, and that a ❌ fails the test.

What is printed is read from an inner pytest; a terminal is a pseudo-terminal of a known width.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from contextlib import suppress
from io import StringIO
from typing import TYPE_CHECKING, Final

import pytest
from rich.cells import cell_len
from rich.console import Console, Group

from pytest_routilux.figures import retries, saved_state, status, summary
from pytest_routilux.report import FlowReport, Verification
from pytest_routilux.timeline import timeline
from routilux import (
    ErrorHandler,
    ErrorStrategy,
    ExecutionMonitor,
    FakeClock,
    Flow,
    JobState,
    Routine,
    Runtime,
    SavedState,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rich.console import RenderableType

ESCAPE: Final = "\x1b["
PLUGIN: Final = ("-p", "pytest_routilux.plugin", "-p", "no:cacheprovider")

TWO_TESTS: Final = """
    def test_one(flow_report):
        flow_report.add("[one] of one", title="Title one")

    def test_two(flow_report):
        flow_report.add("[two] of two")
"""
FAILING: Final = """
    def test_one(flow_report):
        flow_report.add("marker")
        assert 1 == 2
"""


class Fetch(Routine):
    def __init__(self) -> None:
        super().__init__()
        self.define_slot("trigger", handler=self.fetch)
        self.define_event("output", ["data", "metadata", "timestamp"])

    def fetch(self, request_id: str) -> None:
        self.ctx.sleep(0.8)
        items = [{"id": k, "name": f"item {k}"} for k in (1, 2, 3)]
        self.emit(
            "output",
            data={"items": items, "request_id": request_id},
            metadata={"source": "shop", "schema": 1},
            timestamp=self.ctx.now().isoformat(),
        )


class Process(Routine):
    def __init__(self, failures: int, seconds: float = 0.5) -> None:
        super().__init__()
        self.failures = failures
        self.seconds = seconds
        self.define_slot("input", handler=self.process)

    def process(self, data: object) -> None:
        self.ctx.sleep(self.seconds)
        if self.ctx.attempt <= self.failures:
            raise ValueError(f"busy, try {self.ctx.attempt}")


class Fork(Routine):
    def __init__(self) -> None:
        super().__init__()
        self.define_slot("trigger", handler=self.fork)
        self.define_event("to_left", ["n"])
        self.define_event("to_right", ["n"])

    def fork(self) -> None:
        self.ctx.once("ticket", int, 7)
        self.emit("to_left", n=1)
        self.emit("to_right", n=2)


class Add(Routine):
    def __init__(self) -> None:
        super().__init__()
        self.define_slot("input", handler=self.add)

    def add(self, n: int) -> None:
        total = self.ctx.shared.get("total", 0)
        assert isinstance(total, int)
        self.ctx.sleep(0.1)
        self.ctx.shared["total"] = total + n


def pipeline(
    failures: int, strategy: ErrorStrategy = ErrorStrategy.RETRY, *, seconds: float = 0.5
) -> Flow:
    flow = Flow("shop")
    flow.add_routine(Fetch(), "data_fetch")
    process = Process(failures, seconds)
    options = (4, 0.3, 1.5) if strategy is ErrorStrategy.RETRY else ()
    process.set_error_handler(ErrorHandler(strategy, *options))
    flow.add_routine(process, "data_process")
    flow.connect("data_fetch", "output", "data_process", "input")
    return flow


def run(failures: int, strategy: ErrorStrategy = ErrorStrategy.RETRY) -> JobState:
    runtime = Runtime(clock=FakeClock())
    return pipeline(failures, strategy).execute(
        "data_fetch", {"request_id": "r7"}, job_id="order-7", runtime=runtime
    )


def shown(renderable: RenderableType, width: int = 100) -> list[str]:
    console = Console(file=StringIO(), width=width, color_system=None, _environ={})
    with console.capture() as capture:
        console.print(renderable)
    return [line.rstrip() for line in capture.get().splitlines()]


# --- what they say ------------------------------------------------------------------------------


def test_the_timeline_tells_every_emission_delivery_failure_and_change() -> None:
    assert shown(timeline(run(5))) == [
        "🚀 [ 0.000s] data_fetch.trigger",
        "               request_id  r7",
        "📤 [ 0.800s] data_fetch.output",
        "               data       3 items: 1 item 1, 2 item 2, …",
        "                          request_id r7",
        "               metadata   keys: source, schema",
        "               timestamp  2026-01-01T00:00:00.800000+00:00",
        "🔀 [ 0.800s] data_fetch → data_process: 3 items",
        "🔄 [ 0.800s] data_fetch: pending → completed",
        "💥 [ 1.300s] data_process attempt 1 → retry 1 in 0.3000 s: ValueError: busy, try 1",
        "💥 [ 2.100s] data_process attempt 2 → retry 2 in 0.4500 s: ValueError: busy, try 2",
        "💥 [ 3.050s] data_process attempt 3 → retry 3 in 0.6750 s: ValueError: busy, try 3",
        "💥 [ 4.225s] data_process attempt 4 → retry 4 in 1.0125 s: ValueError: busy, try 4",
        "💥 [ 5.738s] data_process attempt 5: ValueError: busy, try 5",
        "🔄 [ 5.738s] data_process: pending → failed (retry_count: 4, attempt: 5)",
        "🏁 [ 5.738s] job failed",
    ]


def test_a_job_and_the_monitor_that_watched_it_tell_the_same() -> None:
    job = run(2)
    for told in (timeline, summary, lambda source: retries(source, 98)):
        assert shown(told(job)) == shown(told(ExecutionMonitor.of(job)))


def test_a_dropped_task_is_told_with_what_became_of_it() -> None:
    assert (
        "💥 [ 1.300s] data_process attempt 1 → dropped as skipped: ValueError: busy, try 1"
        in shown(timeline(run(1, ErrorStrategy.SKIP)))
    )


def test_each_delivery_is_told_below_the_emission_that_it_carries() -> None:
    flow = Flow("fork")
    flow.add_routine(Fork(), "fork")
    flow.add_routine(Add(), "left")
    flow.add_routine(Add(), "right")
    flow.connect("fork", "to_left", "left", "input")
    flow.connect("fork", "to_right", "right", "input")

    lines = shown(timeline(flow.execute("fork", runtime=Runtime(clock=FakeClock()))))

    at = lines.index("📤 [ 0.000s] fork.to_left")
    assert lines[at : at + 6] == [
        "📤 [ 0.000s] fork.to_left",
        "               n  1",
        "🔀 [ 0.000s] fork → left: n=1",
        "📤 [ 0.000s] fork.to_right",
        "               n  2",
        "🔀 [ 0.000s] fork → right: n=2",
    ]


def test_conflicts_and_recorded_effects_are_told() -> None:
    flow = Flow("fork", execution_strategy="concurrent")
    flow.add_routine(Fork(), "fork")
    flow.add_routine(Add(), "left")
    flow.add_routine(Add(), "right")
    flow.connect("fork", "to_left", "left", "input")
    flow.connect("fork", "to_right", "right", "input")

    lines = shown(timeline(flow.execute("fork", runtime=Runtime(clock=FakeClock()))))

    assert "📌 [ 0.000s] fork attempt 1: once('ticket') recorded" in lines
    assert "💫 [ 0.100s] right attempt 1: conflict, runs again" in lines


def test_pauses_resumptions_and_cancellations_are_told() -> None:
    clock = FakeClock(autojump=False)
    runtime = Runtime(clock=clock)
    flow = pipeline(5)
    first = flow.start("data_fetch", {"request_id": "r7"}, runtime=runtime)
    clock.advance(1.5)
    first.pause()
    clock.autojump = True
    lines = shown(timeline(runtime.resume(flow, first.job)))
    assert "🛑 [ 1.500s] job paused" in lines
    assert "⏩ [ 1.500s] resumed, job running" in lines

    clock.autojump = False
    second = flow.start("data_fetch", {"request_id": "r8"}, runtime=runtime)
    clock.advance(1.0)
    second.cancel()
    clock.advance(1.0)
    assert "🛑 [ 1.000s] job cancelled" in shown(timeline(second.wait()))


def test_a_monitor_of_two_jobs_tells_one_after_the_other() -> None:
    monitor = ExecutionMonitor()
    runtime = Runtime(clock=FakeClock(), observers=[monitor])
    for name in ("job-a", "job-b"):
        pipeline(0).execute("data_fetch", {"request_id": name}, job_id=name, runtime=runtime)

    lines = shown(timeline(monitor))

    heads = [line.split() for line in lines if line.startswith("🧵")]
    assert heads == [["🧵", "job-a"], ["🧵", "job-b"]]
    at = len(lines) // 2
    assert [line[:13] for line in lines[:at]][1:] == [line[:13] for line in lines[at:]][1:]


def test_the_status_line_counts_retries_and_history() -> None:
    at_retry_2 = run(5).at(4)
    assert shown(status(at_retry_2, 4)) == ["📊 Status: running | Retry: 2/4 | History: 2 records"]
    assert shown(status(at_retry_2, None)) == ["📊 Status: running | Retry: 2 | History: 2 records"]


def test_the_summary_counts_by_routine() -> None:
    lines = shown(summary(run(2)))
    assert lines[0] == "📈 2 events · 1 data flow · 2 state changes · 3.0500 s"
    assert [line.split() for line in lines[3:]] == [
        ["data_fetch", "completed", "1", "·", "·", "1", "·", "0.8000", "0.0000"],
        ["data_process", "completed", "3", "2", "2", "·", "1", "1.5000", "0.7500"],
    ]


def test_a_routine_that_never_ran_is_in_the_summary_of_the_job() -> None:
    early = run(0).at(1)
    assert [line.split()[:2] for line in shown(summary(early))[3:]] == [
        ["data_fetch", "pending"],
        ["data_process", "pending"],
    ]


def test_the_retries_are_drawn_and_listed_with_planned_and_actual_wait() -> None:
    lines = shown(retries(run(2), 98))
    assert lines[0] == "⏳ 2 retries · 2 of 2 waits as planned, to the nanosecond"
    lane = lines[2].split("  ", 1)[1]
    assert re.fullmatch(r" +█+✗░+█+✗░+█+", lane), lane
    assert [line.split() for line in lines[-2:]] == [
        ["data_process", "1", "1.3000", "ValueError", "0.3000", "1.6000", "1.6000", "0.3000"],
        ["data_process", "2", "2.1000", "ValueError", "0.4500", "2.5500", "2.5500", "0.4500"],
    ]


def test_an_attempt_that_takes_no_time_is_drawn_all_the_same() -> None:
    flow = pipeline(2, seconds=0)
    job = flow.execute("data_fetch", {"request_id": "r7"}, runtime=Runtime(clock=FakeClock()))
    lane = shown(retries(job, 98))[2].split("  ", 1)[1]
    assert re.fullmatch(r" +✗░+✗░+█", lane), lane


def test_a_retry_that_still_waits_has_no_actual_wait() -> None:
    lines = shown(retries(run(5).at(4), 98))
    assert lines[0] == "⏳ 2 retries · 1 of 1 waits as planned, to the nanosecond"
    assert lines[-1].split()[-2:] == ["…", "waits"]


def test_a_wait_that_a_late_host_made_longer_is_not_counted_as_planned() -> None:
    late = Runtime(clock=FakeClock(start="2026-01-01T00:01:00"))
    lines = shown(retries(late.resume(pipeline(3), run(5).at(4)), 98))
    assert lines[0] == "⏳ 3 retries · 2 of 3 waits as planned, to the nanosecond"
    assert lines[-2].split()[-4:] == ["0.4500", "2.5500", "60.0000", "57.9000"]


def test_the_saved_state_is_told_by_its_file_and_what_is_pending(tmp_path: Path) -> None:
    runtime = Runtime(clock=FakeClock(autojump=False))
    path = tmp_path / "job.json"
    process = pipeline(5)
    job_run = process.start("data_fetch", {"request_id": "r7"}, job_id="order-7", runtime=runtime)
    assert isinstance(runtime.clock, FakeClock)
    runtime.clock.advance(2.2)
    job_run.checkpoint(path)
    job_run.cancel()

    lines = shown(saved_state(SavedState.read(path), path))

    size = f"{path.stat().st_size:,}"
    assert lines == [
        f"💾 job.json · {size} bytes · saved at 2026-01-01T00:00:02.200000+00:00",
        "   job      order-7 of flow shop, commit 4",
        "   status   running, 2 retries",
        "   holds    2 history records; of the monitor 2 events, 1 data flow, 1 state change",
        "   pending  data_process.input, attempt 3 next, due in 0.3500 of 0.4500 s",
    ]


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    job = run(5)
    parts = Group(timeline(job), summary(job), retries(job, width))
    assert max(map(cell_len, shown(parts, width))) <= width


# --- verifications ------------------------------------------------------------------------------


@pytest.fixture
def verify_in(
    flow_report: FlowReport, request: pytest.FixtureRequest
) -> Callable[..., tuple[str, str]]:
    """Return what a verification raises, and what it shows."""
    from pytest_routilux.plugin import REPORTS

    def verified(body: Callable[[Verification], None], *, brief: bool = False) -> tuple[str, str]:
        raised = ""
        try:
            with flow_report.verification("Saved and continued", brief=brief) as verify:
                body(verify)
        except AssertionError as error:
            raised = "\n".join([str(error), *getattr(error, "__notes__", ())])
        parts = request.node.stash[REPORTS]
        text = re.sub(r"\x1b\[[\d;]*m", "", "\n".join(parts))
        parts.clear()
        return raised, text

    return verified


def test_checks_that_hold_raise_nothing_and_have_a_green_row_each(
    verify_in: Callable[..., tuple[str, str]],
) -> None:
    def body(verify: Verification) -> None:
        verify("retry count", 2, 2)
        verify.that("items complete", True, "3 of 3")

    raised, text = verify_in(body)
    assert raised == ""
    assert text.splitlines()[0].startswith("Saved and continued ─")
    assert [line.split() for line in text.splitlines()[-2:]] == [
        ["✅", "retry", "count", "2", "2"],
        ["✅", "items", "complete", "3", "of", "3"],
    ]


def test_a_planted_wrong_count_turns_its_row_red_and_fails_when_all_were_checked(
    verify_in: Callable[..., tuple[str, str]],
) -> None:
    def body(verify: Verification) -> None:
        verify("retry count", 2, 3)
        verify("history", 2, 2)
        verify.that("items complete", False, "2 of 3")

    raised, text = verify_in(body)
    assert raised.splitlines() == [
        "Saved and continued: 2 of 3 checks failed",
        "  ❌ retry count: expected 2, actual 3",
        "  ❌ items complete: 2 of 3",
    ]
    assert [line.split()[0] for line in text.splitlines()[-3:]] == ["❌", "✅", "❌"]


def test_brief_is_one_line_while_all_is_well_and_the_table_when_not(
    verify_in: Callable[..., tuple[str, str]],
) -> None:
    _, text = verify_in(lambda verify: verify("retry count", 2, 2), brief=True)
    assert text == "  ✅ Saved and continued: 1 check"
    _, text = verify_in(lambda verify: verify("retry count", 2, 3), brief=True)
    assert "❌  retry count  2" in text


def test_a_block_that_breaks_off_keeps_its_own_error_and_tells_what_failed_before(
    verify_in: Callable[..., tuple[str, str]],
) -> None:
    def body(verify: Verification) -> None:
        verify("retry count", 2, 3)
        raise AssertionError("the file is gone")

    raised, text = verify_in(body)
    assert raised.splitlines() == [
        "the file is gone",
        "Saved and continued: failed before it broke off",
        "  ❌ retry count: expected 2, actual 3",
    ]
    assert "❌  retry count" in text


def test_a_block_that_checks_nothing_fails(verify_in: Callable[..., tuple[str, str]]) -> None:
    raised, _ = verify_in(lambda _: None)
    assert raised == "Saved and continued: nothing was checked"


def test_what_was_wrong_is_shown_in_full_and_what_was_right_in_one_line(
    verify_in: Callable[..., tuple[str, str]],
) -> None:
    def body(verify: Verification) -> None:
        verify("right", "+" * 300, "+" * 300)
        verify("wrong", "@" * 300, "%" * 300)

    raised, text = verify_in(body)
    assert sum("+" in line for line in text.splitlines()) == 1
    assert text.count("@") == text.count("%") == 300
    assert f"expected {'@' * 300}, actual {'%' * 300}" in raised


# --- where they are shown -----------------------------------------------------------------------


@pytest.fixture
def inner(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    # The plugin by its module, whether the package is installed here or not.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("COLUMNS", "100")
    for name in ("NO_COLOR", "FORCE_COLOR", "PY_COLORS", "PYTEST_ADDOPTS"):
        monkeypatch.delenv(name, raising=False)
    return pytester


def test_verbose_shows_the_report_of_a_passing_test_below_its_line(inner: pytest.Pytester) -> None:
    inner.makepyfile(TWO_TESTS)
    out = inner.runpytest_inprocess(*PLUGIN, "-v").stdout
    out.fnmatch_lines(
        ["*::test_one PASSED*", "Title one ───*", "  [[]one] of one", "*::test_two PASSED*"],
    )
    assert out.str().count("of one") == out.str().count("of two") == 1


@pytest.mark.parametrize("verbosity", [(), ("-q",), ("-v", "-q"), ("-rA",)])
def test_a_passing_test_keeps_its_report_to_itself_unless_asked(
    inner: pytest.Pytester, verbosity: tuple[str, ...]
) -> None:
    inner.makepyfile(TWO_TESTS)
    result = inner.runpytest_inprocess(*PLUGIN, *verbosity)
    result.assert_outcomes(passed=2)
    assert "of one" not in result.stdout.str()


@pytest.mark.parametrize("verbosity", ["-q", "-v", "-vv"])
def test_a_failure_has_the_report_as_a_section_once(inner: pytest.Pytester, verbosity: str) -> None:
    inner.makepyfile(FAILING)
    out = inner.runpytest_inprocess(*PLUGIN, verbosity).stdout
    out.fnmatch_lines(["E *assert 1 == 2", "*- Flow report -*", "  marker"])
    assert out.str().count("\n  marker") == 1


def test_a_failing_call_and_a_failing_teardown_have_the_report_once(
    inner: pytest.Pytester,
) -> None:
    inner.makepyfile(
        """
        import pytest

        @pytest.fixture
        def late():
            yield
            raise RuntimeError("late")

        def test_one(late, flow_report):
            flow_report.add("marker")
            assert 1 == 2
        """
    )
    result = inner.runpytest_inprocess(*PLUGIN)
    result.assert_outcomes(failed=1, errors=1)
    assert result.stdout.str().count("\n  marker") == 1


def test_a_failing_teardown_has_the_report_once_however_verbose(inner: pytest.Pytester) -> None:
    inner.makepyfile(
        """
        import pytest

        @pytest.fixture
        def late():
            yield
            raise RuntimeError("late")

        def test_one(late, flow_report):
            flow_report.add("marker")
        """
    )
    for verbosity in ("-q", "-v"):
        out = inner.runpytest_inprocess(*PLUGIN, verbosity).stdout.str()
        assert out.count("\n  marker") == 1


def test_a_verification_that_fails_points_at_its_block(inner: pytest.Pytester) -> None:
    inner.makepyfile(
        """
        def test_one(flow_report):
            with flow_report.verification("Counts") as verify:
                verify("retries", 2, 3)
        """
    )
    out = inner.runpytest_inprocess(*PLUGIN).stdout
    out.fnmatch_lines(
        [
            '>*with flow_report.verification("Counts") as verify:',
            "E *AssertionError: Counts: 1 of 1 checks failed",
            "E *❌ retries: expected 2, actual 3",
            "*- Flow report -*",
            "*❌  retries  2 *3",
        ]
    )
    assert "report.py:" not in out.str()


def test_a_thing_that_cannot_be_rendered_fails_the_test_where_it_is_added(
    inner: pytest.Pytester,
) -> None:
    inner.makepyfile(
        """
        class Broken:
            def __rich__(self):
                raise RuntimeError("no picture")

        def test_one(flow_report):
            flow_report.add(Broken())
        """
    )
    result = inner.runpytest_inprocess(*PLUGIN)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([">*flow_report.add(Broken())", "E *RuntimeError: no picture"])


def test_with_workers_the_controller_prints_every_report_once_below_its_test(
    inner: pytest.Pytester,
) -> None:
    inner.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("n", range(12))
        def test_it(flow_report, n):
            flow_report.add(f"report<{n}>", title="Title")
        """
    )
    result = inner.runpytest_inprocess(*PLUGIN, "-p", "xdist.plugin", "-n", "2", "-v")
    result.assert_outcomes(passed=12)
    lines = result.outlines
    for n in range(12):
        (place,) = (at for at, line in enumerate(lines) if line == f"  report<{n}>")
        assert f"::test_it[{n}]" in lines[place - 2]
        assert "PASSED" in lines[place - 2]
        assert cell_len(lines[place - 1]) == 100


def test_with_workers_a_failure_has_its_report_once(inner: pytest.Pytester) -> None:
    inner.makepyfile(FAILING)
    out = inner.runpytest_inprocess(*PLUGIN, "-p", "xdist.plugin", "-n", "2", "-v").stdout.str()
    assert out.count("\n  marker") == 1
    assert "Flow report" in out


# --- how they look there ------------------------------------------------------------------------


@pytest.mark.parametrize("columns", ["60", "132"])
def test_the_width_is_that_of_columns(
    inner: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    inner.makepyfile(TWO_TESTS)
    out = inner.runpytest_inprocess(*PLUGIN, "-v").outlines
    (title,) = (line for line in out if line.startswith("Title one"))
    assert cell_len(title) == int(columns)


def test_without_a_terminal_the_width_is_100_and_there_are_no_colours(
    inner: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS")
    inner.makepyfile(TWO_TESTS)
    result = inner.runpytest_subprocess(*PLUGIN, "-v")
    (title,) = (line for line in result.outlines if line.startswith("Title one"))
    assert cell_len(title) == 100
    assert ESCAPE not in result.stdout.str()


def test_colours_come_when_asked_for_also_from_workers(inner: pytest.Pytester) -> None:
    inner.makepyfile(TWO_TESTS)
    for workers in ((), ("-p", "xdist.plugin", "-n", "2")):
        out = inner.runpytest_inprocess(*PLUGIN, *workers, "-v", "--color=yes").outlines
        (title,) = (line for line in out if "Title one" in line)
        assert ESCAPE in title


def terminal_output(folder: Path, environ: dict[str, str], *args: str) -> list[str]:
    """Run pytest in a pseudo-terminal of 72 columns, and return what it wrote."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 72, 0, 0))
    unset = ("COLUMNS", "LINES", "CI")
    inherited = {name: value for name, value in os.environ.items() if name not in unset}
    with subprocess.Popen(
        [sys.executable, "-m", "pytest", *PLUGIN, "-v", *args],
        cwd=folder,
        env={**inherited, "TERM": "xterm-256color", **environ},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    ):
        os.close(theirs)
        written = b""
        with suppress(OSError):  # how Linux says that the other end is closed
            while chunk := os.read(ours, 65536):
                written += chunk
    os.close(ours)
    return written.decode().replace("\r\n", "\n").splitlines()


@pytest.mark.parametrize("workers", [(), ("-p", "xdist.plugin", "-n", "2")])
def test_in_a_terminal_the_width_is_the_terminals_and_colours_are_on(
    inner: pytest.Pytester, workers: tuple[str, ...]
) -> None:
    inner.makepyfile(TWO_TESTS)
    lines = terminal_output(inner.path, {}, *workers)
    (title,) = (line for line in lines if "Title one" in line)
    assert ESCAPE in title
    assert cell_len(re.sub(r"\x1b\[[\d;]*m", "", title)) == 72


@pytest.mark.parametrize("environ", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_color_and_dumb_terminals_get_plain_text(
    inner: pytest.Pytester, environ: dict[str, str]
) -> None:
    inner.makepyfile(TWO_TESTS)
    lines = terminal_output(inner.path, environ)
    (title,) = (line for line in lines if "Title one" in line)
    assert ESCAPE not in title
    assert cell_len(title) == 72


def test_a_suite_without_reports_imports_neither_rich_nor_the_engine(
    inner: pytest.Pytester,
) -> None:
    inner.makepyfile(
        """
        import sys

        def test_one():
            heavy = {"rich", "routilux", "freezegun", "pytest_routilux.report"}
            assert heavy & sys.modules.keys() == set()
        """
    )
    inner.runpytest_subprocess(*PLUGIN, "-v").assert_outcomes(passed=1)
