"""`routilux show`: a job with its commits and its pending tasks."""

from __future__ import annotations

from pathlib import Path

import pytest

from routilux import ErrorHandler, Flow, MemoryStore, Routine, Runtime, SqliteStore, cancel_job
from routilux.cli.terminal import cells
from tests.cli.pages import DONE
from tests.cli.payments import NOW, after, payment, replace_in_rows
from tests.gathers import Work, gathering
from tests.routines import Works, chain, rest, retrying, send, sends
from tests.soak import sampled


def test_a_job_is_shown_with_all_its_commits_and_its_pending_tasks(store, output):
    assert DONE == output("show", store, "done")
    lines = output("show", store, "waits").splitlines()
    assert "held by web-1:4711:9f86d081884c7d65 without a lease" == lines[3]
    assert "job waits of flow payment: running at charge attempt 2, due in 11 s" == lines[0]
    waits = "  charge.trigger attempt 2, due in 11 s (13:00:10 UTC) · task 0"
    assert ["pending", waits] == lines[-2:]


def test_resumptions_recoveries_pauses_and_reasons_are_shown(store, output):
    with SqliteStore(store, clock=NOW) as jobs:
        host = Runtime(clock=after(3620, autojump=False), store=jobs)
        host.resumed(payment(), host.load("paused"))
        later = Runtime(clock=after(3650, autojump=False), store=jobs)
        later.resumed(payment(), later.load("paused"))
        cancel_job(jobs, "paused", "the customer\nhas called", clock=after(3660))
    lines = output("show", store, "paused").splitlines()
    assert [
        "🛑 [ 0.120s] job paused",
        "⏩ [40.000s] resumed, job running · after 39.880 s",
        "⏩ [70.000s] resumed, job running · after 30.000 s · 1 unclean stop in a row",
        "🛑 [80.000s] job cancelled: the customer has called",
    ] == [line for line in lines if line[:1] in ("🛑", "⏩")]


def test_a_job_that_a_host_takes_differs_from_one_that_is_resumed(store, output):
    with SqliteStore(store, clock=NOW) as jobs:
        host = Runtime(clock=after(3620, autojump=False), store=jobs)
        host.resumed(payment(), host.load("queued"))
    taken = "⏩ [30.000s] taken by a host, job running · after 30.000 s"
    assert taken in output("show", store, "queued").splitlines()
    assert taken in output("show", store, "queued", "--last", "1").splitlines()


def test_the_length_of_a_stop_counts_from_the_commit_before_it_also_with_last(store, output):
    with SqliteStore(store, clock=NOW) as jobs:
        host = Runtime(clock=after(3620, autojump=False), store=jobs)
        host.resumed(payment(), host.load("paused"))
    line = "⏩ [40.000s] resumed, job running · after 39.880 s"
    assert line in output("show", store, "paused", "--last", "1").splitlines()


def test_the_tasks_of_a_cancelled_job_are_never_run(store, output):
    with SqliteStore(store, clock=NOW) as jobs:
        cancel_job(jobs, "waits", clock=NOW)
    lines = output("show", store, "waits").splitlines()
    assert ["never run", "  charge.trigger attempt 2 · task 0"] == lines[-2:]


@pytest.mark.parametrize("columns", [72, 80, 100])
def test_errors_and_reasons_fit_the_terminal_and_the_verdict_has_them_whole(
    store, output, monkeypatch, columns
):
    text = "bäd 😀" * 30 + "\x1b[31m" + "x" * 120 + "\nsecond line"

    def fails(self):
        raise ValueError(text)

    with SqliteStore(store, clock=NOW) as jobs:
        Runtime(clock=NOW, store=jobs).execute(chain(a=fails), "a", job_id="long")
        cancel_job(jobs, "queued", text, clock=NOW)
    monkeypatch.setenv("COLUMNS", str(columns))
    for job_id in ("long", "queued"):
        head, timeline = output("show", store, job_id).split("\n\n")[:2]
        lines = [line for line in f"{head}\n{timeline}".splitlines() if " · ran " not in line]
        assert [] == [line for line in lines if cells(line) > columns]
        shown = "".join(head.split())
        assert "".join(text.replace("\x1b", r"\x1b").split()) in shown
        assert "…" in timeline


@pytest.mark.parametrize("columns", sampled([40, 72, 80, 200], [40]))
@pytest.mark.parametrize("long", ["n" * 150, "ü 😀" * 60], ids=["one word", "words"])
def test_every_line_fits_the_terminal_with_very_long_names(
    tmp_path, output, monkeypatch, columns, long
):
    """In jobs of each end, with failed, pending, dropped and like tasks and with outputs."""

    def sends_many(self, n=0):
        for number in range(n):
            self.emit("out", n=number)

    def build(strategy: str) -> Flow:
        flow = Flow(f"flow {long}")
        flow.add_routine(Works(sends_many), f"first {long}")
        flow.add_routine(Works(raises), f"then {long}")
        flow.connect(f"first {long}", "out", f"then {long}", "trigger")
        flow.set_error_handler(ErrorHandler(strategy))
        return flow

    def raises(self, n=0):
        raise ValueError(long)

    path = tmp_path / "jobs.db"
    with SqliteStore(path, clock=NOW) as jobs:
        runtime = Runtime(clock=after(0), store=jobs)
        for strategy in ("stop", "skip"):
            for n in (0, 3, 60):
                job_id = f"job {strategy} {n} {long}"
                build(strategy).execute(f"first {long}", {"n": n}, job_id=job_id, runtime=runtime)
        runtime.submit(build("stop"), f"first {long}", job_id=f"queued {long}")
        runtime.submit(build("stop"), f"first {long}", job_id=f"cancelled {long}")
        cancel_job(jobs, f"cancelled {long}", long, clock=NOW)
        jobs.acquire(f"host {long}", [f"flow {long}"], 10**9)
        job_ids = jobs.job_ids()
    monkeypatch.setenv("COLUMNS", str(columns))
    for job_id in job_ids:
        for options in ((), ("--last", "1"), ("--routine", f"first {long}")):
            lines = output("show", path, job_id, *options).splitlines()
            assert [] == [line for line in lines if cells(line) > columns]
            assert job_id.replace(" ", "") in "".join(lines[:20]).replace(" ", "")
            if " 60 " in job_id and not options:
                assert any(line.endswith((" x60", " x59")) for line in lines)


def test_stored_text_never_controls_the_terminal(store, output):
    evil = "A\x1b[2J\u202eB"
    with SqliteStore(store, clock=NOW) as jobs:
        Runtime(clock=NOW, store=jobs).submit(payment(), "charge", {"order": evil}, job_id=evil)
    for out in (output("show", store, evil), output("jobs", store)):
        assert "A\\x1b[2J\\u202eB" in out
        assert "\x1b" not in out


def test_values_of_types_that_only_the_flows_program_knows_are_shown_and_exported_as_they_are(
    store, output
):
    order = '{"$type":"shop.types:Order","value":{"id":7}}'
    replace_in_rows(store, '"A2"', order)
    assert "  order  Order({'id': 7})\n" in output("show", store, "failed")
    output("export", store, "failed", "job.json")
    assert 2 == Path("job.json").read_text("utf-8").count(order)
    output("retry", store, "failed")


# --- the verdict, and jobs of many tasks ----------------------------------------------------------


def test_the_first_lines_say_how_a_job_stands_and_a_failed_task_is_not_pending(store, output):
    with SqliteStore(store, clock=NOW) as jobs:
        cancel_job(jobs, "queued", "sold out", clock=NOW)
        limited = Runtime(clock=after(3600), store=jobs, max_steps=1)
        payment().execute("charge", {"order": "A6"}, job_id="limited", runtime=limited)
    verdicts = {
        "failed": (
            "failed at charge attempt 2",
            "ConnectionError: the gateway does not answer (shop.py:2)",
        ),
        "limited": (
            "failed at charge attempt 2",
            "routilux.StepLimitError: job limited made 1 attempt, the",
        ),
        "done": ("completed, 1 task dropped", "2 retries · 7 commits"),
        "waits": ("running at charge attempt 2, due in 11 s", "1 retry · 2 commits"),
        "paused": ("paused at charge attempt 2", "1 retry · 3 commits"),
        "queued": ("cancelled", "sold out"),
    }
    for job_id, (first, second) in verdicts.items():
        lines = output("show", store, job_id).splitlines()
        assert lines[0].startswith(f"job {job_id} of flow payment: {first}")
        assert lines[1].startswith(second)
    page = output("show", store, "failed")
    assert "pending" not in page
    assert "\nfailed\n  charge.trigger at attempt 2: ConnectionError" in page


def tries(self: Routine, n: int) -> None:
    if n % 9 == 0 and self.ctx.attempt == 1:
        raise OSError(f"row {n} is locked")
    self.emit("out", n=n)


def splits(rows: int) -> Flow:
    work = Works(tries, retrying(retry_delay=1))
    return chain(split=sends(*range(rows)), work=work, collect=send)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with jobs of 1,000 rows: `big` is completed, and `half` has done the first step."""
    path = tmp_path_factory.mktemp("rows") / "rows.db"
    with SqliteStore(path, clock=NOW) as store:
        runtime = Runtime(clock=after(0), store=store)
        splits(1000).execute("split", job_id="big", runtime=runtime)
        job = MemoryStore()
        splits(1000).execute("split", job_id="half", runtime=Runtime(clock=after(0), store=job))
        store.create("half", job.rows("half")[0], "a", flow_id="tale", status="running")
        store.append("half", 2, job.rows("half")[1], "a", status="running")
    return path


def test_more_than_50_like_commits_and_tasks_take_one_line_with_their_number(rows, output):
    lines = output("show", rows, "big").splitlines()
    assert [
        "job big of flow tale: completed",
        "112 retries · 2,114 commits · 1.0000 s from the first commit to the last",
    ] == lines[:2]
    assert [
        "🚀 [ 0.000s] split.trigger",
        "✅ [ 0.000s] split attempt 1: done · ran 0.0000 s",
        "📤 [ 0.000s] split.out → work x1,000",
        (
            "💥 [ 0.000s] work x112: failed and retried, first with OSError: row 0 is locked"
            " · until 0.000 s"
        ),
        "✅ [ 0.000s] work x1,000: done · out x1,000 · until 1.000 s",
        "✅ [ 0.000s] collect x1,000: done · out x1,000 · until 1.000 s",
        "🏁 [ 1.000s] job completed",
        "",
        "outputs",
        "  collect.out x1,000",
    ] == lines[4:]
    lines = output("show", rows, "half").splitlines()
    assert "job half of flow tale: running at work attempt 1 (+999), due 60 min ago" == lines[0]
    assert ["pending", "  work.trigger attempt 1 x1,000"] == lines[-2:]


def test_fifty_like_tasks_are_listed_one_by_one(tmp_path, output):
    for count, listed in ((50, True), (51, False)):
        path = tmp_path / f"{count}.db"
        with SqliteStore(path, clock=NOW) as store:
            runtime = Runtime(clock=after(0), store=store)
            flow = chain(split=sends(*range(count)), work=rest)
            flow.execute("split", job_id="j", runtime=runtime)
        page = output("show", path, "j")
        assert (count if listed else 0) == page.count(" work attempt 1: done")
        assert (count if listed else 1) == page.count("split.out → work")


def test_the_last_commits_and_those_of_one_routine_can_be_selected(rows, output, refused):
    lines = output("show", rows, "big", "--routine", "work", "--last", 2).splitlines()
    assert [
        "2 of 2,114 commits of work",
        "✅ [ 1.000s] work attempt 2: done · waited 1.0000 s · ran 0.0000 s",
        "📤 [ 1.000s] work.out → collect",
        "               n  990",
        "✅ [ 1.000s] work attempt 2: done · waited 1.0000 s · ran 0.0000 s",
        "📤 [ 1.000s] work.out → collect",
        "               n  999",
    ] == lines[4:11]
    assert "1 of 2,114 commits" in output("show", rows, "big", "--last", 1).splitlines()
    assert "commits of" not in output("show", rows, "big", "--last", 9999)
    message = (
        "job big has no routine wrok; its routines: split, work, collect; did you mean 'work'?"
    )
    assert message == refused("show", rows, "big", "--routine", "wrok")
    message = "--json writes the whole job; leave out --last and --routine"
    assert message == refused("show", rows, "big", "--json", "--last", 3)


def test_a_payload_is_written_once_and_never_left_out(store, output):
    assert 1 == output("show", store, "waits").count("A3")
    page = output("show", store, "done")
    assert (1, 1) == (page.count("3 items"), page.count("parcel of what"))
    assert "task 0: order=A3" in output("show", store, "waits", "--last", 1)


def test_a_gather_that_waits_is_shown_as_such_and_is_not_next(store, output):
    with SqliteStore(store, clock=NOW) as jobs:
        runtime = Runtime(clock=NOW, store=jobs)
        flow = gathering(work=Work({1: 9}), per="split")
        flow.execute("split", {"n": 3}, job_id="gathers", runtime=runtime)
    lines = output("show", store, "gathers").splitlines()
    assert "  join.done gathers, waits for 2 tasks, has 1 delivery · task 0.g0" in lines
    assert "join" not in output("jobs", store)
