"""STOP, CONTINUE, SKIP and RETRY on the same flow: the second of three records fails twice.

The routines call `time.sleep` and `datetime.now`; `flow_clock` makes both follow the fake clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pytest
from rich import box
from rich.table import Table
from rich.text import Text

from routilux import ErrorHandler, ErrorStrategy
from routilux.clocks.durations import seconds_text
from showcase.flows import word_count

if TYPE_CHECKING:
    from pytest_routilux import FlowMonitor, FlowReport
    from routilux import FakeClock, JobState, Runtime

RECORDS: Final = ["early", "late", "last"]
HANDLERS: Final = {
    "STOP": ErrorHandler(ErrorStrategy.STOP),
    "CONTINUE": ErrorHandler(ErrorStrategy.CONTINUE),
    "SKIP": ErrorHandler(ErrorStrategy.SKIP),
    "RETRY": ErrorHandler(ErrorStrategy.RETRY, max_retries=2, retry_delay=1.0),
    "RETRY once": ErrorHandler(ErrorStrategy.RETRY, max_retries=1, retry_delay=1.0),
}


@dataclass(frozen=True)
class Outcome:
    """The result of a job as texts: the rows of the table."""

    job: str
    parse: str
    count: str
    attempts: str
    words: str
    dropped: str
    pending: str
    history: str
    ended: str

    @classmethod
    def of(cls, job: JobState) -> Outcome:
        states = job.routine_states
        words = job.shared_data.get("words", [])
        assert isinstance(words, list)
        return cls(
            job.status.value,
            states["parse"].status.value,
            states["count"].status.value,
            str(states["parse"].attempts),
            " ".join(words),
            " ".join(str(task.payload["text"]) for task in job.dropped),
            " ".join(
                f"{task.routine_id}({next(iter(task.payload.values()))})"
                for task in job.pending_tasks
            ),
            " ".join(r.event for r in job.execution_history if r.routine_id == "parse"),
            f"{seconds_text(job.updated_ns - job.started_ns, 1)} s",
        )


ROWS: Final = {
    "job": "the job is",
    "parse": "parse is",
    "count": "count is",
    "attempts": "attempts to parse",
    "words": "ran downstream",
    "dropped": "dropped",
    "pending": "still pending",
    "history": "history of parse",
    "ended": "ended after",
}


EXPECTED: Final = {
    "STOP": Outcome(
        job="failed",
        parse="failed",
        count="pending",
        attempts="2",
        words="",
        dropped="",
        pending="parse(late) parse(last) count(EARLY)",
        history="word error",
        ended="0.2 s",
    ),
    "CONTINUE": Outcome(
        job="completed",
        parse="error_continued",
        count="completed",
        attempts="3",
        words="EARLY LAST",
        dropped="late",
        pending="",
        history="word error_continued word",
        ended="0.3 s",
    ),
    "SKIP": Outcome(
        job="completed",
        parse="skipped",
        count="completed",
        attempts="3",
        words="EARLY LAST",
        dropped="late",
        pending="",
        history="word skipped word",
        ended="0.3 s",
    ),
    "RETRY": Outcome(
        job="completed",
        parse="completed",
        count="completed",
        attempts="5",
        words="EARLY LAST LATE",
        dropped="",
        pending="",
        history="word word word",
        ended="3.4 s",
    ),
    "RETRY once": Outcome(
        job="failed",
        parse="failed",
        count="completed",
        attempts="4",
        words="EARLY LAST",
        dropped="",
        pending="parse(late)",
        history="word word error",
        ended="1.3 s",
    ),
}


def test_the_strategies_in_one_table(
    flow_runtime: Runtime, flow_clock: FakeClock, flow_report: FlowReport
) -> None:
    outcomes = {
        name: Outcome.of(word_count(handler).execute("read", {"records": RECORDS}))
        for name, handler in HANDLERS.items()
    }

    flow_report.add(side_by_side(outcomes), title="🧭 Strategies: the record `late` fails twice")
    with flow_report.verification("Strategies", brief=True) as verify:
        for name, expected in EXPECTED.items():
            for field, row in ROWS.items():
                actual = getattr(outcomes[name], field)
                verify(f"{name}, {row}", getattr(expected, field), actual)


@pytest.mark.parametrize("name", HANDLERS)
def test_a_handler_of_the_flow_does_the_same(
    name: str, flow_runtime: Runtime, flow_clock: FakeClock
) -> None:
    flow = word_count(HANDLERS[name], of_flow=True)

    job = flow.execute("read", {"records": RECORDS})

    assert Outcome.of(job) == EXPECTED[name]


def test_the_clock_of_user_code_is_the_clock_of_the_flow(
    flow_runtime: Runtime, flow_clock: FakeClock, flow_monitor: FlowMonitor
) -> None:
    word_count(HANDLERS["RETRY"]).execute("read", {"records": RECORDS})

    words = [event for event in flow_monitor.events if event.event == "word"]
    assert len(words) == 3
    assert [event.data["parsed_at"] for event in words] == [event.at for event in words]


def side_by_side(outcomes: dict[str, Outcome]) -> Table:
    """Return the outcomes as a table with a column for each strategy."""
    table = Table("", *outcomes, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    styles = {"completed": "green", "failed": "bold red"}
    for field, row in ROWS.items():
        values = [getattr(outcome, field) for outcome in outcomes.values()]
        cells = [Text(value or "·", styles.get(value, "" if value else "dim")) for value in values]
        table.add_row(Text(row, "dim"), *cells)
    return table
