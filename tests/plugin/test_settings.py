"""The command line options and settings: what each does, and which values are refused."""

from __future__ import annotations

from typing import Final

import pytest

from tests.plugin.inner import NAP, PLUGIN, ROOT, run_inside, run_pytest
from tests.soak import also

REPORTS: Final = """
    def test_reports(flow_report, flow_clock_bare):
        flow_report.add("marker")
        flow_clock_bare.advance(1)
"""
ALLOWED: Final = "it must be auto, always or never"
NATIVE: Final = pytest.mark.skipif(
    pytest.version_tuple < (9,), reason="pytest has native tables since 9.0"
)


def counts(result: pytest.RunResult) -> tuple[int, int]:
    """Return how often the report and the summary are shown."""
    return result.outlines.count("  marker"), result.stdout.str().count("routilux: 1 s of virtual")


# --- modes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "shown"),
    [
        ((), (0, 1)),
        (("-v",), (1, 1)),
        (("-q",), (0, 0)),
        (("--routilux-report=always",), (1, 1)),
        (("--routilux-report=never", "-vv"), (0, 0)),
        *also(
            (("--routilux-report=auto", "-q", "-v"), (0, 1)),
            (("--routilux-report=always", "-q"), (1, 1)),
            (("--routilux-report=never",), (0, 0)),
            (("--routilux-report=auto",), (0, 1)),
            (("-qq",), (0, 0)),
            (("-rA",), (0, 1)),
            (("--tb=no",), (0, 1)),
            (("--routilux-report", "always", "-qq"), (1, 1)),
            (("--routilux-report=always", "-v"), (1, 1)),
        ),
    ],
)
def test_each_mode_shows_what_it_says(inner, args, shown):
    inner.makepyfile(REPORTS)
    assert shown == counts(run_pytest(inner, *PLUGIN, *args))


@pytest.mark.parametrize(
    ("args", "shown"),
    [
        ((), 1),
        (("--tb=no",), 0),
        (("--tb=no", "--routilux-report=always"), 1),
        (("--show-capture=no",), 1),
        *also(
            (("--routilux-report=never", "-v"), 0),
            (("--routilux-report=always",), 1),
            (("-q",), 1),
            (("--tb=line",), 1),
            (("--routilux-report=never",), 0),
            (("-qq",), 1),
            (("--tb=short",), 1),
            (("--show-capture=stdout", "-v"), 1),
            (("--show-capture=log", "--tb=no"), 0),
            (("-v", "-p", "xdist.plugin", "-n", "2"), 1),
        ),
    ],
)
def test_a_failure_shows_its_report_once_whatever_traceback_is_shown(inner, args, shown):
    inner.makepyfile(f"{REPORTS}        assert False")
    result = run_pytest(inner, *PLUGIN, *args)
    assert pytest.ExitCode.TESTS_FAILED == result.ret
    assert shown == result.outlines.count("  marker")


@pytest.mark.parametrize(
    ("args", "passed", "failed"),
    [
        (("--routilux-report=always",), (1, 1), (1, 1)),
        pytest.param(("--routilux-report=never", "-v"), (0, 0), (0, 0), marks=pytest.mark.soak),
        pytest.param(("--show-capture=no",), (0, 1), (1, 1), marks=pytest.mark.soak),
    ],
)
def test_workers_show_the_same_reports(inner, args, passed, failed):
    for ending, shown in (("", passed), ("        assert False", failed)):
        inner.makepyfile(REPORTS + ending)
        result = run_pytest(inner, *PLUGIN, *args, "-p", "xdist.plugin", "-n", "1")
        assert shown == counts(result)


def test_always_without_verbose_shows_the_reports_at_the_end_under_their_tests(inner):
    inner.makepyfile(
        test_two="""
        def test_one(flow_report): flow_report.add("first")
        def test_two(flow_report): flow_report.add("second")
        def test_three(): pass
        """
    )
    lines = run_pytest(inner, *PLUGIN, "--routilux-report=always").outlines
    at = next(at for at, line in enumerate(lines) if "= flow reports =" in line)
    assert [
        f"{' test_two.py::test_one ':_^100}",
        "  first",
        f"{' test_two.py::test_two ':_^100}",
        "  second",
    ] == lines[at + 1 : at + 5]


@pytest.mark.parametrize("verbose", [(), ("-v",)])
def test_a_failing_subtest_shows_the_report_of_that_moment(inner, verbose):
    if not hasattr(pytest, "Subtests"):
        pytest.skip("pytest has subtests since 9.0")
    inner.makepyfile(
        """
        def test_steps(subtests, flow_report):
            for n in (1, 2, 3):
                with subtests.test(n=n):
                    flow_report.add(f"step {n}")
                    assert n != 2
        """
    )
    result = run_pytest(inner, *PLUGIN, *verbose)
    assert 1 == result.outlines.count("  step 2")
    result.stdout.fnmatch_lines(["*test_steps (n=2)*", "E *assert 2 != 2", "*- Flow report -*"])


# --- configuration files --------------------------------------------------------------------------


WORKER: Final = ("-p", "xdist.plugin", "-n", "1")
# pytest reads all other forms as it reads these two.
FORMS: Final = [
    ("pytest.ini", "[pytest]\nroutilux_report = {}\n"),
    pytest.param("pyproject.toml", '[tool.pytest]\nroutilux_report = "{}"\n', marks=NATIVE),
]


@pytest.mark.parametrize("workers", [(), pytest.param(WORKER, marks=pytest.mark.soak)])
@pytest.mark.parametrize(("name", "text"), FORMS)
def test_the_configuration_gives_the_mode_and_the_command_line_overrules_it(
    inner, name, text, workers
):
    inner.makepyfile(REPORTS)
    (inner.path / name).write_text(text.format("always"))
    for args, shown in (
        ((), (1, 1)),
        (("--routilux-report=auto",), (0, 1)),
        (("-o", "routilux_report=never"), (0, 0)),
    ):
        assert shown == counts(run_pytest(inner, *PLUGIN, *workers, *args))


def refused(result: pytest.RunResult) -> str:
    """Return the error of a call that pytest refuses: one line, without a traceback."""
    assert pytest.ExitCode.USAGE_ERROR == result.ret
    [line] = [line for line in result.errlines if line]
    assert "INTERNALERROR" not in result.stdout.str()
    return line


@pytest.mark.parametrize("value", also("sometimes", "Always", ""))
def test_another_mode_on_the_command_line_is_refused(inner, value):
    for terminal in ((), ("-p", "no:terminal")):
        result = run_pytest(inner, *PLUGIN, *terminal, f"--routilux-report={value}")
        assert f"ERROR: --routilux-report={value!r} is not valid; {ALLOWED}" == refused(result)


@pytest.mark.parametrize(("name", "text"), FORMS)
def test_another_mode_in_the_configuration_is_refused_unless_the_command_line_gives_one(
    inner, name, text
):
    inner.makepyfile(REPORTS)
    (inner.path / name).write_text(text.format("sometimes"))
    line = f"ERROR: the setting routilux_report = 'sometimes' is not valid; {ALLOWED}"
    assert line == refused(run_pytest(inner, *PLUGIN))
    run_pytest(inner, *PLUGIN, "--routilux-report=auto").assert_outcomes(passed=1)


@NATIVE
def test_a_value_of_another_type_in_a_native_table_is_refused(inner):
    inner.makepyprojecttoml("[tool.pytest]\nroutilux_report = true\n")
    line = refused(run_pytest(inner, *PLUGIN))
    assert "config option 'routilux_report' expects a string, got bool: True" in line
    assert line.endswith(f"; {ALLOWED}")


def test_the_help_names_both_options_and_all_settings(inner):
    result = run_pytest(inner, *PLUGIN, "--help")
    result.stdout.fnmatch_lines(
        ["flows of routilux:", "*--routilux-repro=R1.…*", "*--routilux-report=MODE*"]
    )
    result.stdout.fnmatch_lines(
        [
            "*routilux_report (string):*",
            "*routilux_sleep (string):*",
            "*routilux_blocked_after (float):*",
        ]
    )


def test_an_invalid_setting_is_refused_before_any_test(pytester):
    pytester.makepyfile("def test_it(): pass")
    for setting, reason in (
        ("sleep=fake", "routilux_sleep must be virtual, error or real, not 'fake'"),
        ("blocked_after=soon", "'soon'; routilux_blocked_after must be a number of seconds"),
        ("blocked_after=-1", "routilux_blocked_after must be a number of seconds, not -1.0"),
        ("blocked_after=inf", "routilux_blocked_after must be a number of seconds, not inf"),
        ("blocked_after=nan", "routilux_blocked_after must be a number of seconds, not nan"),
    ):
        result = run_inside(pytester, "-o", f"routilux_{setting}")
        assert pytest.ExitCode.USAGE_ERROR == result.ret
        [line] = [line for line in result.errlines if line]
        assert line.startswith("ERROR: ")
        assert line.endswith(reason)


@pytest.mark.parametrize(
    ("table", "value", "problem"),
    [
        ("[tool.pytest]", "3", ""),
        ("[tool.pytest.ini_options]", '"0.25"', ""),
        *also(
            ("[tool.pytest]", '"3"', "expects a float, got str: '3'; routilux_blocked_after must"),
            ("[tool.pytest]", "0.25", ""),
            ("[tool.pytest.ini_options]", "3", ""),
            (
                "[tool.pytest]",
                "true",
                "expects a float, got bool: True; routilux_blocked_after must",
            ),
        ),
    ],
)
@NATIVE
def test_seconds_are_a_number_in_a_native_table(pytester, table, value, problem):
    pytester.makepyprojecttoml(f"{table}\nroutilux_blocked_after = {value}\n")
    number = value.strip('"')
    pytester.makepyfile(
        f"""
        def test_it(pytestconfig, flow_clock):
            assert {number} == pytestconfig.getini("routilux_blocked_after")
        """
    )
    result = run_inside(pytester)
    if problem:
        assert pytest.ExitCode.USAGE_ERROR == result.ret
        result.stderr.fnmatch_lines([f"ERROR: *'routilux_blocked_after' {problem}*"])
    else:
        result.assert_outcomes(passed=1)


# --- strictness -----------------------------------------------------------------------------------

WHOLE: Final = f"""{NAP}
    def test_runs(flow_runtime, flow_monitor, flow_report):
        flow_report.timeline(nap().execute("nap"))

    def test_survives(flow_sim):
        flow_sim.crash_everywhere(nap, "nap")

    def test_travels(serialize_roundtrip, flow_factory, flow_hosts):
        assert serialize_roundtrip({{"n": 1}}) == {{"n": 1}}
"""


STRICT: Final = "[pytest]\naddopts = --strict-config --strict-markers\nfilterwarnings = error\n"
NATIVE_STRICT: Final = '[tool.pytest]\nstrict = true\nfilterwarnings = ["error"]\n'


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pytest.ini", f"{STRICT}routilux_report = always\n"),
        pytest.param(
            "pyproject.toml", f'{NATIVE_STRICT}routilux_report = "always"\n', marks=NATIVE
        ),
    ],
)
@pytest.mark.parametrize(
    "workers", [(), pytest.param(("-p", "xdist.plugin", "-n", "2"), marks=pytest.mark.soak)]
)
def test_the_strictest_project_sees_no_warning_and_no_error(inner, name, text, workers):
    (inner.path / name).write_text(text)
    inner.makepyfile(WHOLE)
    result = run_pytest(inner, *PLUGIN, "-W", "error", "-v", *workers)
    result.assert_outcomes(passed=3)
    assert [] == result.errlines


# --- without the plugin ---------------------------------------------------------------------------


@pytest.fixture
def installed(inner: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A test bed where the plugin is found by its entry point, as after an installation."""
    facts = inner.mkdir("site") / "routilux-0.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: routilux\nVersion: 0.0\n")
    (facts / "entry_points.txt").write_text("[pytest11]\nroutilux = pytest_routilux.plugin\n")
    monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD")
    monkeypatch.setenv("PYTHONPATH", f"{facts.parent}:{ROOT}")
    return inner


def test_pytest_finds_the_installed_plugin(installed):
    installed.makepyfile(WHOLE)
    installed.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=3)


@pytest.mark.soak
def test_a_project_can_switch_the_plugin_off(installed):
    installed.makepyfile(
        """
        import pytest_routilux

        def test_plain(pytestconfig):
            names = [name for name, _ in pytestconfig.pluginmanager.list_name_plugin()]
            assert "routilux-reports" not in names
            assert not [n for n in dir(pytestconfig.option) if n.startswith("routilux")]

        def test_types():
            for name in pytest_routilux.__all__:
                assert getattr(pytest_routilux, name).__name__ == name

        def test_wants_it(flow_clock): pass
        """
    )
    result = installed.runpytest_subprocess(
        *("-p", "no:routilux", "-p", "no:asyncio", "-v", "-W", "error")
    )
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["E *fixture 'flow_clock' not found"])
    assert [] == result.errlines
    plain = installed.runpytest_subprocess("-p", "no:routilux", "--fixtures", "--markers")
    assert "flow_" not in plain.stdout.str()
    options = ("--routilux-report=auto", "--routilux-repro=R1.9f3c.fifo")
    unknown = installed.runpytest_subprocess("-p", "no:routilux", *options)
    assert pytest.ExitCode.USAGE_ERROR == unknown.ret
    unknown.stderr.fnmatch_lines([f"*unrecognized arguments: {' '.join(options)}"])
