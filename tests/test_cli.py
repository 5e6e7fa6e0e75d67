"""The command line: what it shows of a store, what it does to it, and how it refuses."""

from __future__ import annotations

import io
import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

import routilux.cli
from routilux import (
    CorruptStateError,
    ErrorHandler,
    FakeClock,
    Flow,
    JobState,
    JobStatus,
    JobStore,
    LeaseLostError,
    MemoryStore,
    NotResumableError,
    PostgresStore,
    Routine,
    Runtime,
    SqliteStore,
    Worker,
)
from routilux.cli import main
from routilux.persist import operator
from routilux.persist.opening import looked, shown
from tests.drivers.workshop import PATIENCE, chain
from tests.persist import postgres_server
from tests.persist.stores import acquire

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
SECOND = 10**9
START = "2026-01-01T12:00:00"

# In a file of a short name, since the story tells where an error was raised.
_shop: dict[str, Any] = {}
exec(
    compile(
        "def unreachable():\n    raise ConnectionError('the gateway does not answer')\n"
        "def homeless():\n    raise ValueError('no address')\n",
        "shop.py",
        "exec",
    ),
    _shop,
)
unreachable, homeless = _shop["unreachable"], _shop["homeless"]


class Charge(Routine):
    def __init__(self, failures: int) -> None:
        super().__init__()
        self.failures = failures
        self.define_slot("trigger", handler=self.charge)
        self.define_event("output", ["receipt", "items"])

    def charge(self, order: str) -> None:
        self.ctx.sleep(0.12)
        if self.ctx.attempt <= self.failures:
            unreachable()
        receipt = self.ctx.once("charge", f"{order} is {{}}".format, "paid")
        self.ctx.state["order"] = order
        self.ctx.shared["paid"] = True
        self.emit("output", receipt=receipt, items=[{"id": k, "name": "pen"} for k in (1, 2, 3)])


class Ship(Routine):
    def __init__(self) -> None:
        super().__init__()
        self.define_slot("input", handler=self.ship)
        self.define_event("shipped", ["parcel"])

    def ship(self, receipt: str) -> None:
        self.ctx.sleep(0.8)
        self.emit("shipped", parcel=f"parcel of what {receipt}")


class Mail(Routine):
    def __init__(self) -> None:
        super().__init__()
        self.define_slot("input", handler=self.mail)
        self.set_error_handler(ErrorHandler("continue"))

    def mail(self, receipt: str) -> None:
        homeless()


def payment(failures: int = 2, *, retries: int = 4, delay: float = 0.5) -> Flow:
    flow = Flow("payment")
    flow.add_routine(Charge(failures), "charge")
    flow.add_routine(Ship(), "ship")
    flow.add_routine(Mail(), "mail")
    flow.connect("charge", "output", "ship", "input")
    flow.connect("charge", "output", "mail", "input")
    flow.set_error_handler(ErrorHandler("retry", max_retries=retries, retry_delay=delay))
    return flow


def after(seconds: float, **options: bool) -> FakeClock:
    clock = FakeClock(START, autojump=False)
    clock.advance(seconds)
    return FakeClock(clock.now(), **options)


NOW = after(3600)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of a store with one job of every kind, which is what the commands are about."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.chdir(tmp_path)
    path = Path("jobs.db")
    with SqliteStore(path, clock=NOW) as store:

        def host(at: float, **options: bool) -> Runtime:
            return Runtime(clock=after(at, **options), store=store)

        payment().execute("charge", {"order": "A1"}, job_id="done", runtime=host(0))
        payment(9, retries=1).execute(
            "charge", {"order": "A2"}, job_id="failed", runtime=host(3000)
        )
        waits = host(3510, autojump=False)
        waits.owner = "web-1:4711:9f86d081884c7d65"
        payment(delay=100).start("charge", {"order": "A3"}, job_id="waits", runtime=waits)
        waits.clock.advance(0.12)  # type: ignore[attr-defined]
        waits.close()
        host(3590).submit(payment(), "charge", {"order": "A4"}, job_id="queued")
        slow = host(3580, autojump=False)
        run = payment().start("charge", {"order": "A5"}, job_id="paused", runtime=slow)
        slow.clock.advance(0.12)  # type: ignore[attr-defined]
        run.pause()
        slow.close()
    return path


def told(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 0) -> str:
    """What a command writes; on stdout where it succeeds, else on stderr, as one line."""
    assert status == main([str(argument) for argument in arguments], clock=NOW)
    out, err = capsys.readouterr()
    assert ("" == err) is (status == 0)
    assert "Traceback" not in err
    return out if status == 0 else err


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    err = told(capsys, *arguments, status=1)
    assert err.startswith("routilux: ")
    assert 1 == err.count("\n")
    return err.removeprefix("routilux: ").rstrip("\n")


def command(
    *arguments: object, folder: Path, encoding: str = "utf-8", **options: Any
) -> subprocess.CompletedProcess[str]:
    env = {name: text for name, text in os.environ.items() if name != "COLUMNS"}
    return subprocess.run(
        [sys.executable, "-m", "routilux", *map(str, arguments)],
        cwd=folder,
        env={**env, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding},
        encoding="utf-8",
        timeout=PATIENCE,
        check=False,
        **{"capture_output": True, **options},
    )


# --- jobs -----------------------------------------------------------------------------------------

JOBS = """\
job     flow     status     held by                  age  commits  retries  next due, UTC
queued  payment  pending    nobody                  10 s        1        0  10 s ago, 12:59:50
paused  payment  paused     –                       20 s        3        1  –
waits   payment  running    web-1:4711, no lease    90 s        2        1  in 11 s, 13:00:10
failed  payment  failed     –                     10 min        3        1  –
done    payment  completed  –                     60 min        7        2  –

5 jobs: 1 pending, 1 running, 1 paused, 1 completed, 1 failed
"""


def test_the_jobs_are_listed_with_the_newest_first(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert JOBS == told(capsys, "jobs", store)


def test_jobs_can_be_asked_for_by_status_and_flow_and_only_the_newest(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = told(capsys, "jobs", store, "--status", "failed").splitlines()
    assert ["job", "failed", "", "1 of 5 jobs: 1 failed"] == [line.split("  ")[0] for line in lines]
    assert 5 == told(capsys, "jobs", store, "--flow", "payment").count(" payment ")
    lines = told(capsys, "jobs", store, "--limit", 2).splitlines()
    assert ["job", "queued", "paused", ""] == [line.split("  ")[0] for line in lines[:-1]]
    assert lines[-1].endswith("1 failed; the 2 newest are shown")
    assert "0 of 5 jobs; flows: payment\n" == told(capsys, "jobs", store, "--flow", "refunds")


def test_a_store_without_jobs_is_told_as_such(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    SqliteStore(tmp_path / "new.db").close()
    assert "0 jobs\n" == told(capsys, "jobs", tmp_path / "new.db")
    err = refused(capsys, "show", tmp_path / "new.db", "j")
    assert err.endswith("new.db; it holds no jobs at all")


@pytest.mark.parametrize(
    ("columns", "head"),
    [
        ("100", "job flow status age commits retries next due"),
        ("92", "job flow status age retries next due"),
    ],
)
def test_a_narrow_terminal_gets_fewer_columns_and_whole_ids(
    store: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    columns: str,
    head: str,
) -> None:
    job_id = "f58be812-0654-9787-994d-a80c990fd1b7-ab"
    with SqliteStore(store, clock=NOW) as jobs:
        late = Runtime(clock=after(3595, autojump=False), store=jobs)
        late.submit(payment(), "charge", {"order": "A6"}, job_id=job_id)
    monkeypatch.setenv("COLUMNS", columns)
    lines = told(capsys, "jobs", store).splitlines()
    assert head.split() == lines[0].split()
    assert lines[1].startswith(f"{job_id}  payment  ")
    assert all(len(line) <= int(columns) for line in lines)


def test_into_a_pipe_goes_every_column_whole(store: Path) -> None:
    job_id = "x" * 200
    with SqliteStore(store) as jobs:
        Runtime(store=jobs).submit(payment(), "charge", {"order": "A6"}, job_id=job_id)
    done = command("jobs", store, folder=store.parent)
    head, first, *_ = done.stdout.splitlines()
    assert head.endswith("next due, UTC")
    assert first.startswith(f"{job_id}  payment  pending")
    assert "\x1b" not in done.stdout


# --- show -----------------------------------------------------------------------------------------

DONE = """\
job done of flow payment
started 2026-01-01 12:00:00 UTC, 60 min ago; last commit 59 min ago

🚀 [ 0.000s] charge.trigger
               order  A1
💥 [ 0.120s] charge attempt 1 → retry 1 in 0.5000 s: ConnectionError: the gateway does not answer
               at shop.py:2 · ran 0.1200 s
💥 [ 0.740s] charge attempt 2 → retry 2 in 1.0000 s: ConnectionError: the gateway does not answer
               at shop.py:2 · waited 0.5000 s · ran 0.1200 s
📌 [ 1.860s] charge attempt 3: once('charge') recorded: A1 is paid
✅ [ 1.860s] charge attempt 3: done · waited 1.0000 s · ran 0.1200 s · state: order · shared: paid
📤 [ 1.860s] charge.output
               receipt  A1 is paid
               items    3 items: 1 pen, 2 pen, …
🔀 [ 1.860s] charge → ship: 3 items
🔀 [ 1.860s] charge → mail: 3 items
✅ [ 2.660s] ship attempt 1: done · ran 0.8000 s
📤 [ 2.660s] ship.shipped
               parcel  parcel of what A1 is paid
💥 [ 2.660s] mail attempt 1 → dropped as error_continued: ValueError: no address
               at shop.py:4 · ran 0.0000 s
🏁 [ 2.660s] job completed

outputs
  ship.shipped: parcel=parcel of what A1 is paid

dropped
  mail.input error_continued at attempt 1: ValueError: no address · task 0.1, receipt=A1 is paid,
    items=3 items: 1 pen, 2 pen, …

status completed · 2 retries · 7 commits · 2.6600 s from the first commit to the last
"""

FAILED = """\
job failed of flow payment
started 2026-01-01 12:50:00 UTC, 10 min ago; last commit 9 min ago

🚀 [ 0.000s] charge.trigger
               order  A2
💥 [ 0.120s] charge attempt 1 → retry 1 in 0.5000 s: ConnectionError: the gateway does not answer
               at shop.py:2 · ran 0.1200 s
💥 [ 0.740s] charge attempt 2: ConnectionError: the gateway does not answer
               at shop.py:2 · waited 0.5000 s · ran 0.1200 s
🏁 [ 0.740s] job failed

pending
  charge.trigger failed at attempt 2: ConnectionError: the gateway does not answer · task 0

status failed · 1 retry · 3 commits · 0.7400 s from the first commit to the last
"""

WAITS = """\
job waits of flow payment
started 2026-01-01 12:58:30 UTC, 90 s ago; last commit 89 s ago
held by web-1:4711:9f86d081884c7d65 without a lease

🚀 [ 0.000s] charge.trigger
               order  A3
💥 [ 0.120s] charge attempt 1 → retry 1 in 100.0000 s: ConnectionError: the gateway does not answer
               at shop.py:2 · ran 0.1200 s

pending
  charge.trigger attempt 2, due in 11 s (13:00:10 UTC): order=A3 · task 0

status running · 1 retry · 2 commits · 0.1200 s from the first commit to the last
"""


@pytest.mark.parametrize(("job_id", "page"), [("done", DONE), ("failed", FAILED), ("waits", WAITS)])
def test_a_job_is_told_with_all_its_commits_and_what_is_left_of_it(
    store: Path, capsys: pytest.CaptureFixture[str], job_id: str, page: str
) -> None:
    assert page == told(capsys, "show", store, job_id)


def test_resumptions_recoveries_pauses_and_reasons_are_told(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with SqliteStore(store, clock=NOW) as jobs:
        host = Runtime(clock=after(3620, autojump=False), store=jobs)
        host.resumed(payment(), host.load("paused"))
        later = Runtime(clock=after(3650, autojump=False), store=jobs)
        later.resumed(payment(), later.load("paused"))
        operator.cancel(jobs, "paused", after(3660).now_ns(), "the customer\nhas called")
    lines = told(capsys, "show", store, "paused").splitlines()
    assert [
        "🛑 [ 0.120s] job paused",
        "⏩ [40.000s] resumed, job running · after 39.880 s",
        "⏩ [70.000s] resumed, job running · after 30.000 s · recovery 1 without progress",
        "🛑 [80.000s] job cancelled: the customer has called",
    ] == [line for line in lines if line[:1] in ("🛑", "⏩")]


def test_what_a_store_holds_never_steers_the_terminal(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "A\x1b[2J\u202eB"
    with SqliteStore(store, clock=NOW) as jobs:
        Runtime(clock=NOW, store=jobs).submit(payment(), "charge", {"order": evil}, job_id=evil)
    for out in (told(capsys, "show", store, evil), told(capsys, "jobs", store)):
        assert "A\\x1b[2J\\u202eB" in out
        assert "\x1b" not in out


def test_values_of_types_that_only_the_flows_program_knows_are_shown_and_exported_as_they_are(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    order = '{"$type":"shop.types:Order","value":{"id":7}}'
    with sqlite3.connect(store) as db:
        db.execute(f"UPDATE commits SET row = CAST(replace(row, '\"A2\"', '{order}') AS BLOB)")
    db.close()
    assert "  order  Order({'id': 7})\n" in told(capsys, "show", store, "failed")
    told(capsys, "export", store, "failed", "job.json")
    assert 2 == Path("job.json").read_text().count(order)
    told(capsys, "retry", store, "failed")


# --- retry, cancel, export ------------------------------------------------------------------------


def test_a_retried_job_has_a_fresh_budget_and_is_taken_up_by_a_worker(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "job failed has a fresh budget; a worker of flow payment can take it up (commit 4)\n"
    assert line == told(capsys, "retry", store, "failed")
    assert "failed  payment  pending " in told(capsys, "jobs", store)
    with SqliteStore(store, clock=NOW) as jobs:
        operator.cancel(jobs, "queued", NOW.now_ns())
        host = Runtime(clock=after(3605), store=jobs)
        Worker(jobs, [payment(3, retries=1)], runtime=host).run(until_idle=True)
        job = host.load("failed", history=True)
    assert JobStatus.COMPLETED is job.status
    assert [1, 2, 3, 4, 4] == [c.attempt for c in job.commits if c.routine_id == "charge"]
    assert [0, 0] == [(c.detail or {})["recoveries"] for c in job.commits if c.kind == "resumed"]
    page = told(capsys, "show", store, "failed")
    assert "resumed, job pending · after 599.260 s · a fresh budget for what failed" in page


def leased(store: Path, seconds: int) -> None:
    with SqliteStore(store, clock=NOW) as jobs:
        assert "queued" == acquire(jobs, "web-2:7:cafe", ["payment"], seconds * SECOND)


def test_who_has_a_job_under_a_lease_is_told_with_its_end(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leased(store, 25)
    assert "  web-2:7, lease for 25 s  " in told(capsys, "jobs", store)
    assert "\nheld by web-2:7:cafe, whose lease ends in 25.0 s\n" in told(
        capsys, "show", store, "queued"
    )
    held = json.loads(told(capsys, "show", store, "queued", "--json"))["held"]
    assert {"owner": "web-2:7:cafe", "free_in_ns": 25 * SECOND} == held
    assert (
        "job queued is pending, held by web-2:7:cafe, whose lease ends in 25.0 s; a worker takes it"
        " up if that process does not renew it; --take-over does not wait"
    ) == refused(capsys, "retry", store, "queued")


def test_who_had_a_job_under_a_lease_that_has_ended_is_told(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leased(store, 0)
    assert "  web-2:7, lease over  " in told(capsys, "jobs", store)
    assert (
        "job queued is pending, left by web-2:7:cafe, whose lease has ended; it needs nothing but a"
        " worker of flow payment that runs"
    ) == refused(capsys, "retry", store, "queued")


def test_a_job_is_taken_over_from_a_process_that_died_and_a_worker_goes_on_with_it(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "job waits is taken over; a worker of flow payment can take it up (commit 3)\n"
    assert line == told(capsys, "retry", store, "waits", "--take-over")
    assert "\nheld by nobody, and free to be taken now\n" in told(capsys, "show", store, "waits")
    with SqliteStore(store, clock=NOW) as jobs:
        operator.cancel(jobs, "queued", NOW.now_ns())
        host = Runtime(clock=after(3601), store=jobs)
        Worker(jobs, [payment()], runtime=host).run(until_idle=True)
        job = host.load("waits", history=True)
    assert JobStatus.COMPLETED is job.status
    assert [1, 2, 3] == [
        c.attempt for c in job.commits if c.routine_id == "charge" and not c.effect
    ]
    page = told(capsys, "show", store, "waits")
    assert "⏩ [ 90.000s] taken over, job pending · after 89.880 s\n" in page


@pytest.mark.parametrize("lease", [None, 3600])
def test_a_process_that_is_alive_after_all_can_commit_no_more_to_a_job_that_was_taken_over(
    store: Path, capsys: pytest.CaptureFixture[str], lease: int | None
) -> None:
    with SqliteStore(store, clock=NOW) as jobs:
        host = Runtime(clock=NOW, store=jobs)
        if lease:
            jobs.acquire(host.owner, ["payment"], lease * SECOND)
        drive = host.resumed(payment(), host.load("queued"))
        told(capsys, "retry", store, "queued", "--take-over")
        with pytest.raises(LeaseLostError, match="'queued' is free to be taken by any host now"):
            drive.request("pause")
        job = host.load("queued")
    assert (JobStatus.PENDING, 1) == (job.status, job.recoveries)


def test_each_takeover_of_a_job_that_was_ready_to_run_counts_as_a_recovery(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with SqliteStore(store, clock=NOW) as jobs:
        statuses = []
        for _ in range(4):
            host = Runtime(clock=NOW, store=jobs, max_recoveries=2)
            host.resumed(payment(), host.load("queued"))  # it dies at once
            statuses.append(host.load("queued").status.value)
            if statuses[-1] == "running":
                told(capsys, "retry", store, "queued", "--take-over")
        job = host.load("queued", history=True)
    assert ["running"] * 3 + ["failed"] == statuses
    assert "recovered 2 times without progress" in str(job.error)


def test_a_cancelled_job_is_taken_from_the_host_that_runs_it(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with SqliteStore(store, clock=NOW) as jobs:
        host = Runtime(clock=NOW, store=jobs)
        assert "queued" == acquire(jobs, host.owner, ["payment"], 10 * SECOND)
        drive = host.resumed(payment(), host.load("queued"))
        line = "job queued is cancelled (commit 3)\n"
        assert line == told(capsys, "cancel", store, "queued", "--reason", "by phone")
        with pytest.raises(LeaseLostError, match="belongs to 'operator-"):
            drive.request("pause")
        job = host.load("queued")
    assert (JobStatus.CANCELLED, {"reason": "by phone"}) == (job.status, job.commits[-1].detail)


@pytest.mark.parametrize("at_most", [1, 19])
def test_whoever_cancels_a_job_that_goes_on_meanwhile_looks_again(at_most: int) -> None:
    class Busy(MemoryStore):
        goes_on = at_most

        def overrule(self, job_id: str, seq: int, row: bytes, *rest: Any, **free: bool) -> None:
            if self.goes_on:
                self.goes_on -= 1
                raise LeaseLostError("another host has gone on with it")
            super().overrule(job_id, seq, row, *rest, **free)

    store = Busy()
    Runtime(store=store).submit(chain(a=lambda self, n=0: None), "a", job_id="j")
    assert JobStatus.CANCELLED is operator.cancel(store, "j", 0).status
    store.goes_on = 20
    with pytest.raises(NotResumableError, match="is cancelled"):
        operator.cancel(store, "j", 0)


def test_a_host_that_is_always_faster_is_told() -> None:
    class Faster(MemoryStore):
        def overrule(self, *rest: Any, **free: bool) -> None:
            raise LeaseLostError("another host has gone on with it")

    store = Faster()
    Runtime(store=store).submit(chain(a=lambda self, n=0: None), "a", job_id="j")
    with pytest.raises(LeaseLostError):
        operator.cancel(store, "j", 0)
    with pytest.raises(KeyError):
        operator.cancel(store, "k", 0)


ONLY = "only a job that failed gets a fresh budget"
HELD = "held by web-1:4711:9f86d081884c7d65 without a lease"
GONE = "if that process is gone for good, --take-over leaves the job to a worker"
FREE = "held by nobody, and free to be taken now"
NEEDS = "it needs nothing but a worker of flow payment that runs"


@pytest.mark.parametrize(
    ("what", "job_id", "message"),
    [
        ("retry", "done", "job done is completed; only a job that failed gets a fresh budget"),
        ("retry", "waits", f"job waits is running, {HELD}; {GONE}"),
        ("retry", "queued", f"job queued is pending, {FREE}; {NEEDS}"),
        (
            "retry",
            "paused",
            f"job paused is paused; {ONLY}; where its flow is, resume(job) goes on with it",
        ),
        ("cancel", "done", "job done is completed; it can't be cancelled any more"),
    ],
)
def test_what_can_not_be_done_to_a_job_changes_nothing(
    store: Path, capsys: pytest.CaptureFixture[str], what: str, job_id: str, message: str
) -> None:
    before = told(capsys, "show", store, job_id, "--json")
    assert message == refused(capsys, what, store, job_id)
    assert before == told(capsys, "show", store, job_id, "--json")


def test_an_exported_job_can_be_read_and_resumed_where_the_flow_is(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("job.json").write_text("what was there before")
    line = told(capsys, "export", store, "waits", "job.json")
    size = Path("job.json").stat().st_size
    assert f"job waits as of commit 2 is in job.json, {size:,} bytes\n" == line
    document = json.loads(Path("job.json").read_text())
    assert ["format", "job_state"] == list(document)
    assert "routilux/1" == document["format"]
    job = JobState.deserialize(document["job_state"])
    with SqliteStore(store) as jobs:
        assert job == Runtime(store=jobs).load("waits", history=True)
    done = payment().resume(job, runtime=Runtime(clock=after(3700)))
    assert JobStatus.COMPLETED is done.status


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("jobs.db", "jobs.db is the store itself; name another file"),
        (".", ". is a folder; name a file in a folder that is there"),
        ("no/job.json", "no/job.json would stand in a folder that is not there; name a file in a"),
    ],
)
def test_a_job_is_exported_to_a_file_of_its_own(
    store: Path, capsys: pytest.CaptureFixture[str], file: str, message: str
) -> None:
    before = store.read_bytes()
    assert refused(capsys, "export", store, "done", file).startswith(message)
    assert before == store.read_bytes()


# --- for programs ---------------------------------------------------------------------------------


def test_every_command_gives_json_of_one_shape(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def data(name: str, *arguments: object) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(told(capsys, name, store, *arguments, "--json"))
        head = {"format": f"routilux-{name}/1", "store": "jobs.db", "at_ns": NOW.now_ns()}
        assert head == {key: found.pop(key) for key in head}
        return found

    found = data("jobs", "--limit", 3)
    assert ["counts", "jobs", "damaged"] == list(found)
    counts = {"pending": 1, "running": 1, "paused": 1, "completed": 1, "failed": 1}
    assert (counts, []) == (found["counts"], found["damaged"])
    waits = {
        "job_id": "waits",
        "flow_id": "payment",
        "status": "running",
        "started_ns": NOW.now_ns() - 90 * SECOND,
        "updated_ns": NOW.now_ns() - 90 * SECOND + 120_000_000,
        "commits": 2,
        "retries": 1,
        "due_ns": NOW.now_ns() + 10 * SECOND + 120_000_000,
        "error": None,
        "held": {"owner": "web-1:4711:9f86d081884c7d65", "free_in_ns": None},
    }
    assert ["queued", "paused", "waits"] == [job["job_id"] for job in found["jobs"]]
    assert waits == found["jobs"][2]
    (failed,) = data("jobs", "--status", "failed")["jobs"]
    assert "ConnectionError: the gateway does not answer" == failed["error"]
    assert None is failed["due_ns"]

    with SqliteStore(store) as jobs:
        job = Runtime(store=jobs).load("done", history=True)
    shown = data("show", "done")
    assert ["job", "held"] == list(shown)
    assert None is shown["held"]
    assert job == JobState.deserialize(shown["job"])
    assert {"job_id": "failed", "status": "pending", "seq": 4} == data("retry", "failed")
    assert {"job_id": "failed", "status": "cancelled", "seq": 5} == data("cancel", "failed")
    exported = data("export", "done", "job.json")
    size = Path("job.json").stat().st_size
    facts = {"job_id": "done", "status": "completed", "seq": 7, "file": "job.json", "bytes": size}
    assert facts == exported


# --- what can be wrong ----------------------------------------------------------------------------


def _no_store(path: Path) -> None:
    path.unlink()


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _letter(path: Path) -> None:
    path.write_text("a letter to a friend" * 100)


def _sql(statement: str) -> Callable[[Path], None]:
    def run(path: Path) -> None:
        with sqlite3.connect(path) as db:
            db.execute(statement)
        db.close()

    return run


def _other_program(path: Path) -> None:
    path.unlink()
    _sql("CREATE TABLE letters (text)")(path)


def _half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:9000])


EVERY: list[tuple[str, ...]] = [
    ("jobs", "{store}"),
    ("show", "{store}", "failed"),
    ("retry", "{store}", "failed"),
    ("cancel", "{store}", "failed"),
    ("export", "{store}", "failed", "job.json"),
]


@pytest.mark.parametrize("arguments", EVERY, ids=lambda arguments: arguments[0])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_no_store, r"there is no file jobs\.db; is the path right\?"),
        (_folder, r"jobs\.db is a folder; a store is one file in it"),
        (_empty, r"jobs\.db: is empty: no store was ever written to it"),
        (_letter, r"jobs\.db: is no sound database .*restore it from a copy"),
        (_half, r"jobs\.db: is no sound database .*restore it from a copy"),
        (_other_program, r"jobs\.db: is a database of another program; choose another file"),
        (_sql("PRAGMA user_version = 2"), r"jobs\.db: has version 2; .*install a newer routilux"),
    ],
)
def test_what_is_no_store_is_refused_by_every_command_and_left_as_it_was(
    store: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Path], None],
    message: str,
    arguments: tuple[str, ...],
) -> None:
    change(store)
    before = files(store.parent)
    err = refused(capsys, *(text.format(store=store) for text in arguments))
    assert re.fullmatch(message, err), err
    assert before == files(store.parent)


def files(folder: Path) -> dict[str, tuple[bytes, int]]:
    """What stands in a folder, and when it was written last."""
    return {
        path.name: (path.read_bytes() if path.is_file() else b"", path.stat().st_mtime_ns)
        for path in folder.iterdir()
    }


@pytest.mark.parametrize("arguments", [("jobs",), ("show", "done"), ("show", "done", "--json")])
def test_reading_leaves_no_trace(
    store: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    before = files(store.parent)
    told(capsys, arguments[0], store, *arguments[1:])
    assert ["jobs.db"] == list(before)
    assert before == files(store.parent)


def test_a_store_that_another_process_keeps_for_itself_is_named(
    store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("routilux.persist.sqlite_file._READERS_PATIENCE", 0)
    other = sqlite3.connect(store, isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("UPDATE jobs SET owner = owner")
    message = "the store jobs.db: database is locked; another process has kept it locked"
    assert refused(capsys, "jobs", store).startswith(message)
    other.close()
    assert JOBS == told(capsys, "jobs", store)


def test_a_write_waits_for_no_lock_for_ever(
    store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("routilux.persist.sqlite_file._PATIENCE", 0)
    other = sqlite3.connect(store, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert JOBS == told(capsys, "jobs", store)
    assert "database is locked; another process" in refused(capsys, "cancel", store, "waits")
    other.close()


def test_who_is_overtaken_by_a_writer_reads_again(store: Path) -> None:
    reads: list[int] = []
    with SqliteStore(store) as writer:
        writer.close()

        def look(jobs: JobStore) -> int:
            if not reads:
                writer.create("new", b"row", "a", flow_id="f", queued=True)
            reads.append(len(jobs.job_ids()))
            return reads[-1]

        assert 6 == looked(str(store), look, NOW)
    assert [5, 6] == reads


def test_what_fails_because_of_a_writer_is_read_again(store: Path) -> None:
    fails = [True]
    with SqliteStore(store) as writer:
        writer.close()

        def look(jobs: JobStore) -> list[str]:
            if fails:
                writer.create("new", b"row", "a", flow_id="f", queued=True)
                fails.clear()
                raise CorruptStateError("jobs.db", "is no sound database")
            return jobs.job_ids()

        assert "new" in looked(str(store), look, NOW)


@pytest.mark.parametrize(
    ("job_id", "cure"),
    [
        ("fail", "did you mean failed?"),
        ("quued", "did you mean queued?"),
        ("zzzzzz", "`routilux jobs jobs.db` lists those that are"),
        ("", "`routilux jobs jobs.db` lists those that are"),
    ],
)
@pytest.mark.parametrize("what", ["show", "cancel"])
def test_of_a_job_that_is_not_there_the_nearest_are_named(
    store: Path, capsys: pytest.CaptureFixture[str], what: str, job_id: str, cure: str
) -> None:
    assert f"no job {job_id} is in jobs.db; {cure}" == refused(capsys, what, store, job_id)


_FAILED_ROWS = "WHERE job = (SELECT job FROM jobs WHERE job_id = 'failed')"


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        (f"UPDATE commits SET row = X'7B' {_FAILED_ROWS} AND seq = 2", r"\$\.failed\[2\]: is cut"),
        (
            f"UPDATE commits SET row = 'text' {_FAILED_ROWS} AND seq = 2",
            r"\$\.failed\[2\]: is of type str",
        ),
        (
            f"UPDATE commits SET row = 7 {_FAILED_ROWS} AND seq = 2",
            r"\$\.failed\[2\]: is of type int",
        ),
        (f"DELETE FROM commits {_FAILED_ROWS} AND seq = 2", r"\$\.failed\[2\]: .*can't follow"),
        (f"DELETE FROM commits {_FAILED_ROWS}", r"\$\.failed: has no commits"),
    ],
)
def test_a_damaged_job_is_named_with_its_place_and_hides_no_other(
    store: Path, capsys: pytest.CaptureFixture[str], statement: str, reason: str
) -> None:
    _sql(statement)(store)
    message = rf"job failed in jobs\.db is damaged: {reason}.*; restore the store from a copy"
    for what in ("show", "retry", "cancel"):
        err = refused(capsys, what, store, "failed")
        assert re.fullmatch(message, err), err
    assert 1 == main(["jobs", str(store)], clock=NOW)
    out, err = capsys.readouterr()
    assert re.fullmatch(f"routilux: {message}\n", err), err
    assert "4 jobs: 1 pending, 1 running, 1 paused, 1 completed" == out.splitlines()[-1]
    assert 1 == main(["jobs", str(store), "--json"], clock=NOW)
    assert ["failed"] == [job["job_id"] for job in json.loads(capsys.readouterr().out)["damaged"]]


def test_a_job_of_a_newer_version_is_named_with_what_to_do_and_is_not_called_damaged(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _sql(
        "UPDATE commits SET row = CAST(replace(row, 'routilux/1', 'routilux/7') AS BLOB)"
        f" {_FAILED_ROWS} AND seq = 1"
    )(store)
    message = (
        "job failed in jobs.db can't be read: $.failed[1].format: is 'routilux/7', of a newer"
        " routilux; this one reads up to 'routilux/1': install a newer one here, or go on with the"
        " job where it was saved"
    )
    for what in ("show", "retry", "cancel"):
        assert message == refused(capsys, what, store, "failed")
    assert 1 == main(["jobs", str(store)], clock=NOW)
    assert f"routilux: {message}\n" == capsys.readouterr().err


# --- a store in PostgreSQL ------------------------------------------------------------------------


@pytest.fixture
def dsn(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of an empty database; its user needs no password, and is given one all the same."""
    postgres_server.need()
    known = dict(part.split("=", 1) for part in postgres_server.fresh_dsn().split(" ", 3))
    options = quote(known["options"].strip("'"))
    host = quote(known["host"], safe="")
    monkeypatch.setenv("COLUMNS", "100")
    return f"postgresql://test:secret@/postgres?host={host}&options={options}"


def test_a_store_in_postgresql_is_looked_into_and_changed_in_the_same_way(
    dsn: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with PostgresStore(dsn) as jobs:
        host = Runtime(clock=after(0), store=jobs)
        payment(9, retries=1).execute("charge", {"order": "A2"}, job_id="failed", runtime=host)
    assert told(capsys, "jobs", dsn).endswith("\n1 job: 1 failed\n")
    shown = told(capsys, "show", dsn, "failed").splitlines()
    assert FAILED.splitlines()[3:] == shown[3:]
    assert "a fresh budget" in told(capsys, "retry", dsn, "failed")
    assert "is cancelled (commit 5)" in told(capsys, "cancel", dsn, "failed")
    told(capsys, "export", dsn, "failed", tmp_path / "job.json")
    store = json.loads(told(capsys, "jobs", dsn, "--json"))["store"]
    assert store.startswith("postgresql://test:***@/postgres?host=")
    err = refused(capsys, "show", dsn, "fail")
    assert "did you mean failed?" in err
    assert "secret" not in err


def test_a_database_without_a_store_is_refused_and_gets_no_tables(
    dsn: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (("jobs",), ("cancel", "j")):
        err = refused(capsys, arguments[0], dsn, *arguments[1:])
        assert err.endswith("dbname=postgres: holds no store: its tables were never made"), err


def test_a_reader_of_postgresql_writes_nothing(dsn: str) -> None:
    with PostgresStore(dsn) as jobs, PostgresStore(dsn, read_only=True) as reader:
        jobs.create("j", b"row", "a", flow_id="f", queued=True)
        with pytest.raises(Exception, match="read-only transaction"):
            reader.overrule("j", 2, b"row 2", "operator", free=False)
        assert [b"row"] == reader.rows("j")


@pytest.mark.parametrize(
    ("dsn", "message"),
    [
        ("postgresql:///postgres?host=/no/such/folder", "the store host=/no/such/folder"),
        ("postgresql://user:secret@[host/jobs", "the connection string can't be read"),
    ],
)
def test_a_server_that_does_not_answer_is_named_without_its_password(
    capsys: pytest.CaptureFixture[str], dsn: str, message: str
) -> None:
    pytest.importorskip("psycopg")
    err = refused(capsys, "jobs", dsn)
    assert err.startswith(message), err
    assert "secret" not in err


def test_without_its_driver_a_store_in_postgresql_is_refused_with_the_cure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    err = refused(capsys, "jobs", "postgresql://user@host/jobs")
    assert "PostgresStore needs psycopg 3: pip install 'routilux[postgres]'" == err


# --- usage, terminals and processes ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "required: COMMAND"),
        (("jobs",), "required: STORE"),
        (("show", "jobs.db"), "required: JOB"),
        (("jobs", "jobs.db", "--status", "lost"), "invalid choice: 'lost'"),
        (("jobs", "jobs.db", "--limit", "0"), "'0' is no whole number from 1"),
        (("export", "jobs.db", "done"), "required: FILE"),
    ],
)
def test_wrong_usage_is_told_with_status_2(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert 2 == end.value.code
    assert message in capsys.readouterr().err


class Terminal(io.StringIO):
    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True


def test_colours_are_for_terminals_and_not_where_they_are_not_wanted(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def coloured(**env: str) -> str:
        with monkeypatch.context() as patch:
            terminal = Terminal()
            patch.setattr(sys, "stdout", terminal)
            patch.setenv("TERM", "xterm")
            for name, value in env.items():
                patch.setenv(name, value)
            assert 0 == main(["show", str(store), "failed"], clock=NOW)
        return terminal.getvalue()

    assert "job \x1b[31mfailed\x1b[0m" in coloured().replace("\x1b[1;31m", "\x1b[31m")
    assert FAILED == re.sub(r"\x1b\[[\d;]*m", "", coloured())
    assert FAILED == coloured(NO_COLOR="1")
    assert FAILED == coloured(TERM="dumb")


def test_a_long_line_goes_on_below_itself(
    store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    lines = told(capsys, "show", store, "failed").splitlines()
    at = next(place for place, line in enumerate(lines) if line.startswith("💥"))
    assert [
        "💥 [ 0.120s] charge attempt 1 → retry 1 in 0.5000",
        "             s: ConnectionError: the gateway does",
        "             not answer",
        "               at shop.py:2 · ran 0.1200 s",
    ] == lines[at : at + 4]


def test_a_terminal_that_lacks_letters_gets_question_marks(store: Path) -> None:
    done = command("show", store, "done", folder=store.parent, encoding="ascii")
    assert (0, "") == (done.returncode, done.stderr)
    assert "? [ 2.660s] job completed" in done.stdout


def test_the_module_runs_as_a_program(store: Path) -> None:
    done = command("jobs", store, folder=store.parent)
    assert (0, "") == (done.returncode, done.stderr)
    assert "5 jobs: 1 pending, 1 running, 1 paused, 1 completed, 1 failed" in done.stdout
    failed = command("show", store, "order", folder=store.parent)
    assert (1, "") == (failed.returncode, failed.stdout)
    assert "routilux: no job order is in jobs.db; `routilux jobs" in failed.stderr
    strange = command("show", store, b"\xff".decode(errors="surrogateescape"), folder=store.parent)
    assert "routilux: no job \\udcff is in jobs.db" in strange.stderr
    assert 2 == command("look", folder=store.parent).returncode


def test_a_reader_that_goes_away_is_no_error(store: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = command(
        "show",
        store,
        "done",
        folder=store.parent,
        capture_output=False,
        stdout=writer,
        stderr=subprocess.PIPE,
    )
    os.close(writer)
    assert (141, "") == (done.returncode, done.stderr)


def test_a_full_disk_is_told(store: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with full.open("w") as out:
        done = command(
            "show",
            store,
            "done",
            folder=store.parent,
            capture_output=False,
            stdout=out,
            stderr=subprocess.PIPE,
        )
    assert (1, "routilux: No space left on device\n") == (done.returncode, done.stderr)


def test_an_output_that_is_closed_is_told(store: Path) -> None:
    shell = 'exec "$0" -m routilux show "$1" done >&-'
    done = subprocess.run(
        ["sh", "-c", shell, sys.executable, str(store)],
        cwd=store.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        encoding="utf-8",
        timeout=PATIENCE,
        check=False,
    )
    assert (1, "") == (done.returncode, done.stdout)
    assert "routilux: stdout is closed, so nothing can be told; open it\n" == done.stderr


def test_what_can_not_be_told_still_ends_with_its_status(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert 1 == main(["show", str(store), "nobody"])


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("postgresql://u:secret@h/d", "postgresql://u:***@h/d"),
        ("postgresql://u:sec@ret@h/d", "postgresql://u:***@h/d"),
        ("postgres://:secret@h:5/d?a=b@c", "postgres://:***@h:5/d?a=b@c"),
        ("postgresql://h/d?password=secret&a=b", "postgresql://h/d?password=***&a=b"),
        ("postgresql://h/d?a=b&sslpassword=secret", "postgresql://h/d?a=b&sslpassword=***"),
        ("postgresql://u@h:5/d", "postgresql://u@h:5/d"),
        ("u:secret@h", "u:secret@h"),  # a path
    ],
)
def test_a_name_is_shown_without_what_is_secret_in_it(name: str, told: str) -> None:
    assert told == shown(name)


@pytest.mark.parametrize("name", ["host=db password=secret", "password = secret dbname=jobs"])
def test_a_connection_string_that_is_no_url_is_told_so_without_its_password(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told = refused(capsys, "jobs", name)
    assert "a PostgreSQL database is named by its URL: postgresql://user@host/database" == told


def test_an_interrupt_ends_it_quietly(
    store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(routilux.cli, "looked", interrupted)
    assert 130 == main(["jobs", str(store)])
    assert ("", "") == tuple(capsys.readouterr())


def test_the_run_in_the_readme_is_a_real_one(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = re.findall(r"^```console\n(.*?)^```$", README.read_text("utf-8"), re.M | re.S)
    runs = re.findall(r"^\$ python -m routilux (.*)\n((?:[^$].*\n|\n)+)", block, re.M)
    assert 4 == len(runs)
    for line, output in runs:
        assert output == told(capsys, *line.split())


def test_help_says_what_each_command_does(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("jobs", "show", "retry", "cancel", "export"):
        with pytest.raises(SystemExit) as end:
            main([name, "--help"])
        assert 0 == end.value.code
        assert f"usage: routilux {name} " in capsys.readouterr().out
