"""From an HTTP API into a database: two outages, two budgets, every row exactly once."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import pytest
from rich.table import Table

from routilux import CommitKind, JobStatus, Runtime
from routilux.clocks.durations import seconds_text
from showcase.flows import api_to_database
from showcase.services.outages import LoopbackApi, Outage

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_routilux import FlowMonitor, FlowReport
    from routilux import ExecutionStrategy, FakeClock, Flow, JobState
    from showcase.services.outages import Answer

SECOND = 1_000_000_000
API_WAITS = (300_000_000, 450_000_000, 675_000_000, 1_012_500_000)
DATABASE_WAITS = (200_000_000, 400_000_000, 800_000_000)

ORDER_LINES = [
    {"sku": "tea", "quantity": 2, "price": 4.5},
    {"sku": "pot", "quantity": 1, "price": 19.9},
    {"sku": "cup", "quantity": 4, "price": 3.25},
]
ORDER: dict[str, object] = {"order_id": "A7", "customer": "Ada", "lines": ORDER_LINES}
PARAMS = {"order_id": "A7", "request_id": "req-4711"}

Trouble = Literal["locked", "lost"]  # before the rows are in, or after


@dataclass(frozen=True)
class Case:
    """The outages, attempt by attempt; later attempts succeed."""

    name: str
    api: tuple[Answer, ...] = ()
    database: tuple[Trouble, ...] = ()

    @property
    def api_fails(self) -> bool:
        return len(self.api) > len(API_WAITS)

    @property
    def database_fails(self) -> bool:
        return len(self.database) > len(DATABASE_WAITS)

    @property
    def is_written(self) -> bool:
        """Whether any attempt reaches its COMMIT."""
        return not self.api_fails and not (self.database_fails and set(self.database) == {"locked"})


IN_FULL = ("API stays away", "answer of the COMMIT lost", "both at their last retry")

CASES = (
    Case("all is well"),
    Case("API refused, then 503", api=("refused", "503")),
    Case("API back at its last retry", api=("refused", "503", "reset", "503")),
    Case("API stays away", api=("refused", "503", "refused", "reset", "503")),
    Case("database locked", database=("locked", "locked")),
    Case("answer of the COMMIT lost", database=("lost",)),
    Case("locked, lost, locked", database=("locked", "lost", "locked")),
    Case("database stays locked", database=("locked",) * 4),
    Case("every answer lost", database=("lost",) * 4),
    Case("both in trouble", api=("refused", "503", "503"), database=("locked", "lost")),
    Case(
        "both at their last retry",
        api=("refused", "503", "reset", "503"),
        database=("lost", "locked", "lost"),
    ),
)


class World:
    """A flow and the real parts that it uses: an API, a database file, an outbox file."""

    def __init__(
        self,
        case: Case,
        folder: Path,
        clock: FakeClock,
        monitor: FlowMonitor,
        strategy: ExecutionStrategy = "sequential",
    ) -> None:
        self.database = folder / "orders.db"
        self.outbox = folder / "outbox.txt"
        self.api = LoopbackApi(ORDER, case.api)
        lost, locked = (
            [attempt for attempt, trouble in enumerate(case.database, 1) if trouble == kind]
            for kind in ("lost", "locked")
        )
        self.flow: Flow = api_to_database(
            self.api.url,
            str(self.database),
            str(self.outbox),
            lost_answers=lost,
            execution_strategy=strategy,
        )
        outage = Outage(self.api, self.database, locked)
        self.runtime = Runtime(clock=clock, observers=[monitor, outage])

    def execute(self) -> JobState:
        with self.api:
            job = self.flow.execute("api_call", PARAMS, runtime=self.runtime, job_id="order-1")
        assert [] == self.runtime.observer_failures
        return job

    def select(self, columns: str, table: str) -> list[tuple[Any, ...]]:
        """Read a table of the database file; a missing table is empty."""
        with closing(sqlite3.connect(self.database)) as database:
            try:
                return database.execute(f"SELECT {columns} FROM {table} ORDER BY rowid").fetchall()
            except sqlite3.OperationalError:
                return []

    @property
    def messages(self) -> list[str]:
        return self.outbox.read_text("utf-8").splitlines() if self.outbox.exists() else []


def waits(job: JobState, routine_id: str) -> tuple[int, ...]:
    """Return how long the retries of a routine really waited, from started and finished times."""
    attempts = [c for c in job.commits if c.routine_id == routine_id and c.attempt]
    return tuple(
        (later.started_ns or 0) - earlier.at_ns
        for earlier, later in pairwise(attempts)
        if earlier.kind is CommitKind.RETRY
    )


def seconds(lengths: tuple[int, ...]) -> str:
    return " ".join(seconds_text(length, 4) for length in lengths) or "none"


def what_the_database_saw(world: World, case: Case) -> Table:
    table = Table("attempt", "what happened", "rows added", box=None, pad_edge=False)
    added = dict(world.select("attempt, added", "inserts"))
    for attempt, trouble in enumerate((*case.database, "ok")[:4], 1):
        answer = {
            "locked": "database is locked, before the INSERT",
            "lost": "COMMIT, then the connection is lost",
            "ok": "COMMIT",
        }[trouble]
        rows = added.get(attempt, "none")
        table.add_row(str(attempt), answer, "0: its key is there" if rows == 0 else str(rows))
    return table


@pytest.mark.parametrize("strategy", ["sequential", "concurrent"])
@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: case.name.replace(",", "").replace(" ", "-")
)
def test_an_order_is_written_exactly_once_whatever_fails(
    case: Case,
    strategy: ExecutionStrategy,
    tmp_path: Path,
    flow_clock: FakeClock,
    flow_monitor: FlowMonitor,
    flow_report: FlowReport,
) -> None:
    world = World(case, tmp_path, flow_clock, flow_monitor, strategy)

    job = world.execute()

    api_waits = API_WAITS[: len(case.api)]
    database_waits = () if case.api_fails else DATABASE_WAITS[: len(case.database)]
    succeeds = not case.api_fails and not case.database_fails
    rows = world.select("idempotency_key, sku, quantity", "order_lines")
    added = [count for (count,) in world.select("added", "inserts")]

    title = f"🌐 API to database: {case.name} ({strategy})"
    in_full = case.name in IN_FULL and strategy == "sequential"
    if in_full:
        flow_report.timeline(job, title=title)
        flow_report.retries(job, title="Two budgets in one flow")
        if rows:
            flow_report.add(what_the_database_saw(world, case), title="What the database saw")
    with flow_report.verification(title, brief=not in_full) as verify:
        verify("status", JobStatus.COMPLETED if succeeds else JobStatus.FAILED, job.status)
        verify("retries of api_call", len(api_waits), job.retry_count("api_call"))
        verify("retries of database_write", len(database_waits), job.retry_count("database_write"))
        verify("waits of api_call, s", seconds(api_waits), seconds(waits(job, "api_call")))
        verify(
            "waits of database_write, s",
            seconds(database_waits),
            seconds(waits(job, "database_write")),
        )
        verify(
            "ns from start to end",
            sum(api_waits) + sum(database_waits),
            job.updated_ns - job.started_ns,
        )
        verify(
            "answers of the API",
            [answer for answer in (*case.api, "200")[:5] if answer != "refused"],
            [answer for _, _, answer in world.api.seen],
        )
        verify(
            "request id in each",
            {("/orders/A7", "req-4711")} if world.api.seen else set(),
            {(path, request_id) for path, request_id, _ in world.api.seen},
        )
        verify(
            "rows in order_lines",
            [f"{line['sku']} {line['quantity']}" for line in ORDER_LINES] * case.is_written,
            [f"{sku} {quantity}" for _, sku, quantity in rows],
        )
        verify("their key", {"order-1/0.0"} if rows else set(), {key for key, *_ in rows})
        verify("rows added, in sum", len(ORDER_LINES) * case.is_written, sum(added))
        verify("messages sent", ["Ada: order A7 is in, 3 lines"] * succeeds, world.messages)


def test_without_its_key_the_lost_answer_would_have_doubled_the_rows(
    tmp_path: Path, flow_clock: FakeClock, flow_monitor: FlowMonitor, flow_report: FlowReport
) -> None:
    # The database took two INSERTs of the same rows; only the key made the second add nothing.
    case = Case("answer lost", database=("lost",))
    world = World(case, tmp_path, flow_clock, flow_monitor)

    world.execute()

    flow_report.add(what_the_database_saw(world, case), title="🌐 Two INSERTs, one set of rows")
    assert [("order-1/0.0", 1, 3), ("order-1/0.0", 2, 0)] == world.select("*", "inserts")
    assert [(3,)] == world.select("count(*)", "order_lines")


def test_user_code_stamps_rows_with_the_flows_own_time(
    tmp_path: Path, flow_clock: FakeClock, flow_monitor: FlowMonitor
) -> None:
    # The handlers call datetime.now(UTC) like any program; flow_clock makes that the flow's time.
    case = Case("both", api=("refused", "503"), database=("locked", "locked"))
    world = World(case, tmp_path, flow_clock, flow_monitor)

    job = world.execute()

    stamps = {
        datetime.fromisoformat(str(stamp)).timestamp()
        for (stamp,) in world.select("written_at", "order_lines")
    }
    expected = job.started_ns + sum(API_WAITS[:2]) + sum(DATABASE_WAITS[:2])
    assert {expected / SECOND} == stamps


def test_a_permanent_error_is_not_retried(
    tmp_path: Path, flow_clock: FakeClock, flow_monitor: FlowMonitor, flow_report: FlowReport
) -> None:
    world = World(Case("no such order", api=("404",)), tmp_path, flow_clock, flow_monitor)

    job = world.execute()

    flow_report.timeline(job, title="🌐 API to database: no such order")
    assert JobStatus.FAILED is job.status
    assert "LookupError: order A7: HTTP 404" == str(job.error)
    assert (1, 0) == (job.routine_states["api_call"].attempts, job.retry_count())
    assert [] == world.select("*", "inserts")


def test_a_fresh_budget_for_the_database_does_not_call_the_api_again(
    tmp_path: Path, flow_clock: FakeClock, flow_monitor: FlowMonitor, flow_report: FlowReport
) -> None:
    # Attempts 1-4 find it locked and use up the budget; the lock is gone an hour later.
    world = World(Case("locked", database=("locked",) * 4), tmp_path, flow_clock, flow_monitor)
    failed = world.execute()
    flow_clock.advance(3600)

    job = world.flow.resume(failed, runtime=world.runtime, retry_failed=True)

    flow_report.timeline(job, title="🌐 Database locked for an hour, then retry_failed")
    with flow_report.verification("Only the failed step runs again") as verify:
        verify("status before", JobStatus.FAILED, failed.status)
        verify("status after", JobStatus.COMPLETED, job.status)
        verify("attempts at the API", 1, job.routine_states["api_call"].attempts)
        verify("requests at the API", 1, len(world.api.seen))
        verify("attempts at the database", 5, job.routine_states["database_write"].attempts)
        verify("rows", [(3,)], world.select("count(*)", "order_lines"))
        verify("messages", ["Ada: order A7 is in, 3 lines"], world.messages)
