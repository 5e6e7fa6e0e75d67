"""Verifications: every check is made, a ❌ fails the test, and what was wrong is shown in full."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_routilux import FlowReport, Verification


@pytest.fixture
def verify_in(
    flow_report: FlowReport, request: pytest.FixtureRequest
) -> Callable[..., tuple[str, str]]:
    """Return what a verification raises, and what it shows."""
    from pytest_routilux.report.run_facts import facts_of

    def verified(body: Callable[[Verification], None], *, brief: bool = False) -> tuple[str, str]:
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
