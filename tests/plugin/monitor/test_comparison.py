"""`assert job == other` shows the paths that differ, the first commit that differs, and advice."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from itertools import product
from typing import Any

import pytest

from pytest_routilux.monitor.comparison import explain_comparison
from pytest_routilux.monitor.diff import flow_differences, handler_differences, job_differences
from pytest_routilux.monitor.divergence import divergence
from routilux import ErrorHandler, FakeClock, Flow, JobState, Routine, Runtime
from tests.plugin.golden import compare, sections
from tests.plugin.inner import run_inside
from tests.plugin.monitor.pricing import shop
from tests.routines import chain, run
from tests.soak import also

INNER = """
    from routilux import ErrorHandler, FakeClock, Runtime
    from tests.plugin.monitor.pricing import shop

    def job(failures=2, start="2026-01-01", job_id="A7", **options):
        runtime = Runtime(clock=FakeClock(start))
        return shop(failures, **options).execute("fetch", job_id=job_id, runtime=runtime)

    def test_a_retry_more():
        assert job(2) == job(3)

    def test_a_failure():
        assert job(5) == job(1)

    def test_another_payload():
        assert job(0, orders=1) == job(0, orders=2)

    def test_another_delay():
        flow = shop(2)
        flow.routines["price"].set_error_handler(ErrorHandler("retry", retry_delay=0.5))
        other = flow.execute("fetch", job_id="A7", runtime=Runtime(clock=FakeClock()))
        assert job(2) == other

    def test_another_id():
        assert job() == job(job_id="an id that is longer than others")

    def test_another_start():
        assert job() == job(start="2026-03-01T12:00")

    def test_an_earlier_state():
        assert job() == job().at(4)

    def test_no_difference():
        assert job() != job()

    def test_a_status():
        assert job(5) == "completed"

    def test_flows():
        other = shop(3)
        other.set_error_handler(ErrorHandler("skip"))
        other.routines["price"].set_error_handler(ErrorHandler("retry", max_retries=4))
        other.connect("fetch", "empty", "fetch", "trigger")
        assert shop(2) == other

    def test_flows_alike():
        assert shop() == shop()

    def test_handlers():
        a = ErrorHandler("retry", 4, 0.3, 1.5)
        assert a == ErrorHandler("retry", 4, 0.3, 1.2, (OSError, ValueError))

    def test_handlers_of_two_kinds():
        assert ErrorHandler("retry", timeout=2) == ErrorHandler("skip")
"""


def shown_by(pytester: pytest.Pytester, *args: str, ci: bool = False) -> dict[str, str]:
    """Return the error lines of each inner test, by its name."""
    pytester.makepyfile(test_inner=INNER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "80")
        if ci:
            patch.setenv("CI", "true")
        result = run_inside(pytester, *args)
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in result.outlines:
        if title := re.fullmatch(r"_+ (test_\w+) _+", line):
            lines = found.setdefault(title[1].removeprefix("test_"), [])
        elif line.startswith("E "):
            lines.append(
                line.replace("AssertionError: assert", "assert")
            )  # depends on the version of pytest
        elif line.startswith("= short test summary"):
            break
    return {
        name: "\n".join(lines).partition("\nE     \nE     ...Full")[0]
        for name, lines in found.items()
    }


@pytest.mark.parametrize(
    ("args", "ci", "file"),
    [
        (["--tb=short"], False, "comparisons.txt"),
        (["--tb=short", "-vv"], False, "comparisons-vv.txt"),
        *also(
            (["--tb=short"], True, "comparisons.txt"),
            (["--tb=short", "-v"], False, "comparisons.txt"),
            (["--tb=short", "-q"], False, "comparisons.txt"),
        ),
    ],
    ids=str,
)
def test_the_whole_text_as_pytest_shows_it(pytester, args, ci, file):
    golden = sections(file)
    shown = shown_by(pytester, *args, ci=ci)
    assert set(golden) == set(shown)
    for name, text in shown.items():
        compare(golden[name], text, name)
        assert 80 >= max(map(len, text.splitlines()[1:]))
        assert "-vv" in args or 25 >= len(text.splitlines())


def test_without_assertion_rewriting_pytest_shows_reprs(pytester):
    pytester.makepyfile(test_inner=INNER)
    result = run_inside(pytester, "--assert=plain", "--showlocals", "-k", "handlers or a_failure")
    result.assert_outcomes(failed=3, deselected=10)
    handler = "a          = ErrorHandler(ErrorStrategy.RETRY, max_retries=4, retry_delay=0.3,*"
    result.stdout.fnmatch_lines([handler])


def keep(self: Routine, n: object) -> None:
    self.ctx.state["value"] = self.ctx.shared["value"] = n
    self.emit("out", n=n)


def kept(value: object) -> JobState:
    return run(chain(keep=keep), "keep", job_id="A7", n=value)


def lines_of(op: str, left: object, right: object) -> list[str]:
    lines = explain_comparison(op, left, right, whole=False)
    assert lines is not None
    return lines


@pytest.mark.parametrize(
    ("left", "right", "sides"),
    [
        (1, True, "int 1 != bool True"),
        (1, 1.0, "int 1 != float 1.0"),
        (0.0, -0.0, "0.0 != -0.0"),
        (Decimal("1.0"), Decimal("1.00"), "Decimal('1.0') != Decimal('1.00')"),
        ("x" * 60 + "a", "x" * 60 + "b", "…xxxxxxxxa' != …xxxxxxxxb'"),
    ],
)
def test_values_differ_by_type_and_where_eq_sees_no_difference(left, right, sides):
    found = [str(path) for path in job_differences(kept(left), kept(right))]
    assert [
        f'routine_states["keep"].state["value"]: {sides}',
        f'shared_data["value"]: {sides}',
        f"outputs[0].data.n: {sides}",
    ] == found


def test_a_text_shows_differences_exactly_if_jobs_differ():
    jobs = [
        shop(failures, orders).execute(
            "fetch", job_id=job_id, runtime=Runtime(clock=FakeClock(start))
        )
        for failures, orders, start, job_id in product(
            (0, 2, 5), (1, 2), ("2026-01-01", "2026-01-02"), ("A7", "A8")
        )
    ]
    jobs += [jobs[0].at(seq) for seq in range(jobs[0].seq)]
    for job, other in product(jobs, jobs):
        paths = list(job_differences(job, other))
        parted = divergence(job, other, whole=False)[0].startswith("first commit")
        assert bool(paths or parted) == (job != other)
        moved = {path.path for path in paths} <= {"started", "job_id"}
        assert moved == (not parted)  # only the start or the id differs
        assert 25 >= len(explain_comparison("==", job, other, whole=False) or ())


def test_the_same_nan_is_no_difference():
    assert [] == list(job_differences(kept(float("nan")), kept(float("nan"))))


class Hostile:
    """Has an `__eq__` and a `repr` that raise."""

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no equality")

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


def test_a_value_whose_eq_and_repr_raise_is_shown_by_its_type():
    text = "\n".join(lines_of("==", kept(1), kept([Hostile()])))
    assert 'routine_states["keep"].state["value"]: int 1 != <list whose repr()' in text


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (shop(2), shop(3)),
        (shop(2), Flow("shop")),
        (ErrorHandler("retry", jitter=0.1), ErrorHandler("retry", jitter=0.2)),
        (ErrorHandler("retry"), ErrorHandler("stop")),
        (kept(1), JobState("A7")),
        (JobState("A7"), JobState("A7").at(0)),
        (kept({"a": [1, 2]}), kept({"a": [1, 3]})),
    ],
)
def test_the_two_sides_are_swapped_with_the_operands(left, right):
    differences: Callable[[Any, Any], Any]
    differences = {
        Flow: flow_differences,
        ErrorHandler: handler_differences,
        JobState: job_differences,
    }[type(left)]
    there, back = list(differences(left, right)), list(differences(right, left))
    assert sorted((p.path, p.left, p.right) for p in there) == sorted(
        (p.path, p.right, p.left) for p in back
    )
    assert [] == list(differences(left, left))
    assert bool(there) == (isinstance(left, Flow) or left != right)


def test_a_difference_in_a_commit_alone_is_named_with_its_commit():
    job, other = kept(1), kept(1)
    other._commits[0].worker = 7
    assert job != other
    assert "worker of commit #1" in "\n".join(lines_of("==", job, other))


def test_without_commits_only_paths_are_shown():
    job, other = kept(1), kept(2)
    job._commits.clear()
    other._commits.clear()
    lines = lines_of("==", job, other)
    assert 'shared_data["value"]: 1 != 2' in "\n".join(lines)
    assert "look at  code that changed a job directly: the commits are equal or not" in lines


def test_an_explanation_that_fails_does_not_replace_the_failure():
    broken = shop()
    broken._routines = None
    head, explanation = lines_of("==", broken, shop())
    assert "flow shop == flow shop" == head
    assert explanation.startswith("(the comparison can't be explained: AttributeError(")


@pytest.mark.parametrize(
    ("op", "left", "right"),
    [
        ("==", {"a": 1}, {"a": 2}),
        ("==", kept(1), 7),
        ("==", [kept(1)], [kept(2)]),
        *((op, kept(1), kept(2)) for op in ("<", "in", "is", "not in")),
    ],
)
def test_other_comparisons_are_left_to_pytest(op, left, right):
    assert explain_comparison(op, left, right, whole=False) is None


def test_a_path_leads_to_the_value_that_differs():
    job, other = kept({"items": [{"price": 1}]}), kept({"items": [{"price": 2}]})
    [path, *_] = list(job_differences(job, other))
    assert 'routine_states["keep"].state["value"].items[0].price' == path.path
    assert job.routine_states["keep"].state["value"]["items"][0]["price"] == 1
