"""flow_report: where reports are shown, how wide and how colourful they are, and verifications.

The output is that of an inner pytest; terminals are pseudo-terminals of a known width.
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
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest
from rich.cells import cell_len

from pytest_routilux import FlowReport, Verification
from pytest_routilux.report.run_facts import facts_of
from tests.plugin.inner import PLUGIN, run_pytest

Verified = Callable[..., tuple[str, str]]

ESCAPE: Final = "\x1b["
XDIST: Final = ("-p", "xdist.plugin", "-n", "2")
WORKER: Final = ("-p", "xdist.plugin", "-n", "1")

TWO_TESTS: Final = """
    def test_one(flow_report):
        flow_report.add("[one] of one", title="Title one")

    def test_two(flow_report):
        flow_report.add("[two] of two")
"""


def title_of(lines: list[str]) -> str:
    (title,) = (line for line in lines if "Title one" in line)
    return title


# --- where reports are shown ----------------------------------------------------------------------


def test_verbose_shows_the_report_of_a_passing_test_below_its_line(inner):
    inner.makepyfile(TWO_TESTS)
    out = run_pytest(inner, *PLUGIN, "-v").stdout
    out.fnmatch_lines(
        ["*::test_one PASSED*", "Title one ───*", "  [[]one] of one", "*::test_two PASSED*"]
    )
    assert out.str().count("of one") == out.str().count("of two") == 1


def test_a_report_has_the_parts_of_the_fixtures_and_of_the_test_in_order(inner):
    inner.makepyfile(
        """
        import pytest

        @pytest.fixture
        def around(flow_report):
            flow_report.add("before")
            yield
            flow_report.add("after")

        def test_one(around, flow_report):
            flow_report.add("within")
        """
    )
    lines = run_pytest(inner, *PLUGIN, "-v").outlines
    at = lines.index("  before")
    assert "::test_one PASSED" in lines[at - 1]
    assert ["  before", "  within", "  after"] == lines[at : at + 3]


@pytest.mark.parametrize("verbosity", ["-q", "-v"])
@pytest.mark.parametrize("body", ["assert 1 == 2", "pass"])
def test_a_failing_teardown_has_the_report_once(inner, body, verbosity):
    inner.makepyfile(
        f"""
        import pytest

        @pytest.fixture
        def late():
            yield
            raise RuntimeError("late")

        def test_one(late, flow_report):
            flow_report.add("marker")
            {body}
        """
    )
    result = run_pytest(inner, *PLUGIN, verbosity)
    assert 1 == result.parseoutcomes()["errors"]
    assert result.stdout.str().count("\n  marker") == 1


def test_a_verification_that_fails_points_at_its_block(inner):
    inner.makepyfile(
        """
        def test_one(flow_report):
            with flow_report.verification("Counts") as verify:
                verify("retries", 2, 3)
        """
    )
    out = run_pytest(inner, *PLUGIN).stdout
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


def test_a_renderable_that_raises_fails_the_test_at_the_line_that_adds_it(inner):
    inner.makepyfile(
        """
        class Broken:
            def __rich__(self):
                raise RuntimeError("no picture")

        def test_one(flow_report):
            flow_report.add(Broken())
        """
    )
    result = run_pytest(inner, *PLUGIN)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([">*flow_report.add(Broken())", "E *RuntimeError: no picture"])


def test_with_workers_the_controller_prints_every_report_once_below_its_test(inner):
    inner.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("n", range(12))
        def test_it(flow_report, n):
            flow_report.add(f"report<{n}>", title="Title")
        """
    )
    result = run_pytest(inner, *PLUGIN, *XDIST, "-v")
    result.assert_outcomes(passed=12)
    lines = result.outlines
    for n in range(12):
        (place,) = (at for at, line in enumerate(lines) if line == f"  report<{n}>")
        assert f"::test_it[{n}]" in lines[place - 2]
        assert "PASSED" in lines[place - 2]
        assert cell_len(lines[place - 1]) == 100


# --- width and colours ----------------------------------------------------------------------------


@pytest.mark.parametrize("columns", ["60", "132"])
def test_the_width_is_that_of_the_variable_columns(inner, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    inner.makepyfile(TWO_TESTS)
    assert cell_len(title_of(run_pytest(inner, *PLUGIN, "-v").outlines)) == int(columns)


def test_without_a_terminal_the_width_is_100_and_there_are_no_colours(inner, monkeypatch):
    monkeypatch.delenv("COLUMNS")
    inner.makepyfile(TWO_TESTS)
    result = run_pytest(inner, *PLUGIN, "-v")
    assert cell_len(title_of(result.outlines)) == 100
    assert ESCAPE not in result.stdout.str()


@pytest.mark.parametrize("workers", [(), WORKER])
def test_color_yes_gives_colours_with_workers_too(inner, workers):
    inner.makepyfile(TWO_TESTS)
    out = run_pytest(inner, *PLUGIN, *workers, "-v", "--color=yes").outlines
    assert ESCAPE in title_of(out)


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
        with suppress(OSError):  # on Linux: the other end is closed
            while chunk := os.read(ours, 65536):
                written += chunk
    os.close(ours)
    return written.decode().replace("\r\n", "\n").splitlines()


@pytest.mark.parametrize(
    ("environ", "args", "colours"),
    [
        ({}, (), True),
        ({"NO_COLOR": "1"}, (), False),
        pytest.param({}, WORKER, True, marks=pytest.mark.soak),
        pytest.param({"TERM": "dumb"}, (), False, marks=pytest.mark.soak),
    ],
)
def test_a_terminal_sets_the_width_and_gets_colours_unless_it_refuses_them(
    inner, environ, args, colours
):
    inner.makepyfile(TWO_TESTS)
    title = title_of(terminal_output(inner.path, environ, *args))
    assert colours == (ESCAPE in title)
    assert cell_len(re.sub(r"\x1b\[[\d;]*m", "", title)) == 72


# --- verifications --------------------------------------------------------------------------------


@pytest.fixture
def verify_in(flow_report: FlowReport, request: pytest.FixtureRequest) -> Verified:
    """Return the error of a verification, and what it shows."""

    def verified(body: Callable[[Verification], object], *, brief: bool = False) -> tuple[str, str]:
        raised = ""
        try:
            with flow_report.verification("Saved and continued", brief=brief) as verify:
                body(verify)
        except AssertionError as error:
            raised = "\n".join([str(error), *getattr(error, "__notes__", ())])
        parts = facts_of(request.node).parts
        text = re.sub(r"\x1b\[[\d;]*m", "", "\n".join(parts))
        parts.clear()
        return raised, text

    return verified


def test_each_check_that_holds_has_a_green_row(verify_in):
    raised, text = verify_in(
        lambda verify: [verify("retry count", 2, 2), verify.that("complete", True, "3 of 3")]
    )
    assert raised == ""
    assert text.splitlines()[0].startswith("Saved and continued ─")
    assert [line.split() for line in text.splitlines()[-2:]] == [
        ["✅", "retry", "count", "2", "2"],
        ["✅", "complete", "3", "of", "3"],
    ]


def test_a_wrong_value_has_a_red_row_and_fails_the_block_at_its_end(verify_in):
    raised, text = verify_in(
        lambda verify: [
            verify("retry count", 2, 3),
            verify("history", 2, 2),
            verify("count", "4", 4),
            verify("name", "", "shop"),
            verify.that("items complete", False, "2 of 3"),
        ]
    )
    assert raised.splitlines() == [
        "Saved and continued: 4 of 5 checks failed",
        "  ❌ retry count: expected 2, actual 3",
        "  ❌ count: expected '4', actual 4",
        "  ❌ name: expected '', actual 'shop'",
        "  ❌ items complete: 2 of 3",
    ]
    assert [line.split()[0] for line in text.splitlines()[-5:]] == [*"❌✅❌❌❌"]


def test_brief_is_one_line_if_every_check_holds_and_a_table_if_not(verify_in):
    _, text = verify_in(lambda verify: verify("retry count", 2, 2), brief=True)
    assert text == "  ✅ Saved and continued: 1 check"
    _, text = verify_in(lambda verify: verify("retry count", 2, 3), brief=True)
    assert "❌  retry count  2" in text


def test_a_block_that_raises_keeps_its_error_and_lists_the_checks_that_had_failed(verify_in):
    def body(verify: Verification) -> None:
        verify("retry count", 2, 3)
        raise AssertionError("the file is gone")

    raised, text = verify_in(body)
    assert raised.splitlines() == [
        "the file is gone",
        "Saved and continued: these checks failed before this error",
        "  ❌ retry count: expected 2, actual 3",
    ]
    assert "❌  retry count" in text


def test_a_block_without_a_check_fails(verify_in):
    raised, _ = verify_in(lambda _: None)
    assert raised == "Saved and continued: no check was made; call verify() inside `with`"


def test_a_wrong_value_is_shown_in_full_and_a_right_one_in_one_line(verify_in):
    raised, text = verify_in(
        lambda verify: [
            verify("right", "+" * 300, "+" * 300),
            verify("wrong", "@" * 300, "%" * 300),
        ]
    )
    assert sum("+" in line for line in text.splitlines()) == 1
    assert text.count("@") == text.count("%") == 300
    assert f"expected {'@' * 300}, actual {'%' * 300}" in raised
