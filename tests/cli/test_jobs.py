"""`routilux jobs`: the jobs of a store, in a table that fits the terminal."""

from __future__ import annotations

import pytest

from routilux import Runtime, SqliteStore, cancel_job
from routilux.cli.jobs import _HEAD as HEAD
from tests.cli.pages import JOBS
from tests.cli.payments import NOW, after, command, payment
from tests.routines import fan, rest
from tests.soak import sampled


def test_the_jobs_are_listed_with_the_newest_first(store, output):
    assert JOBS == output("jobs", store)


def test_jobs_can_be_filtered_by_status_and_flow_and_limited_to_the_newest(store, output):
    lines = output("jobs", store, "--status", "failed").splitlines()
    assert ["job", "failed", "", "1 of 5 jobs: 1 failed"] == [line.split("  ")[0] for line in lines]
    assert 5 == output("jobs", store, "--flow", "payment").count(" payment ")
    lines = output("jobs", store, "--limit", 2).splitlines()
    assert ["job", "queued", "paused", ""] == [line.split("  ")[0] for line in lines[:4]]
    assert "1 failed; the 2 newest are shown, --limit shows more" in " ".join(lines[4:])
    assert "0 of 5 jobs; flows: payment\n" == output("jobs", store, "--flow", "refunds")


def test_a_job_that_was_submitted_with_a_delay_is_due_when_it_has_passed(store, output):
    with SqliteStore(store, clock=NOW) as jobs:
        runtime = Runtime(clock=NOW, store=jobs)
        job_id = runtime.submit(payment(), "charge", {"order": "A6"}, delay=90)
    line = output("jobs", store).splitlines()[1]
    assert "  in 90 s   charge" in line
    page = output("show", store, job_id)
    assert f"job {job_id} of flow payment: pending at charge attempt 1, due in 90 s\n" in page
    assert "held by nobody, and free to be taken in 90 s\n" in page
    assert "charge.trigger attempt 1, due in 90 s (13:01:30 UTC)" in page


def test_a_wait_of_years_has_one_length_wherever_it_is_shown(store, output, refused):
    with SqliteStore(store, clock=NOW) as jobs:
        runtime = Runtime(clock=NOW, store=jobs)
        runtime.submit(payment(), "charge", {"order": "A6"}, job_id="late", delay=90 * 365 * 86400)
    page = output("show", store, "late")
    assert "pending at charge attempt 1, due in 32850 d\n" in page
    assert "held by nobody, and free to be taken in 32850 d\n" in page
    assert "held by nobody, and free to be taken in 32850 d; " in refused("retry", store, "late")


def test_an_empty_store_has_0_jobs(tmp_path, output, refused):
    SqliteStore(tmp_path / "new.db").close()
    assert "0 jobs\n" == output("jobs", tmp_path / "new.db")
    err = refused("show", tmp_path / "new.db", "j")
    assert err.endswith("new.db; the store holds no jobs; check its name")


@pytest.mark.parametrize("columns", sampled([40, 50, 60, 80, 90, 100, 120, 200], [40, 80]))
@pytest.mark.parametrize("length", sampled([6, 36, 60, 200], [6, 60]))
def test_no_line_is_wider_than_the_terminal_and_ids_are_whole(
    store, output, monkeypatch, columns, length
):
    job_id = "f58be812-0654-" + "x" * (length - 14) if length > 6 else "f58be8"
    with SqliteStore(store, clock=NOW) as jobs:
        late = Runtime(clock=after(3595, autojump=False), store=jobs)
        late.submit(payment(), "charge", {"order": "A6"}, job_id=job_id)
        cancel_job(jobs, "paused", "sold out", clock=NOW)
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = output("jobs", store).splitlines()
    assert [job_id] * (length > columns) == [line for line in lines if len(line) > columns]
    text = " ".join(lines)
    assert f" {job_id} " in text
    shown = [name for name in HEAD if name in text.partition(job_id)[0]]
    left_out = text.partition(f"left out to fit {columns} columns: ")[2].split(", ")
    assert set(HEAD) == {*shown, *filter(None, left_out)}
    assert {"job", "status", "at step, or why"} <= set(shown)
    assert "sold out" in text


def test_the_step_of_a_job_and_the_reason_why_it_stopped_are_listed(store, output, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    with SqliteStore(store, clock=NOW) as jobs:
        cancel_job(jobs, "queued", clock=NOW)
        cancel_job(jobs, "paused", "by\nphone", clock=NOW)
        limited = Runtime(clock=after(3600), store=jobs, max_steps=1)
        payment().execute("charge", {"order": "A6"}, job_id="limited", runtime=limited)
        Runtime(clock=NOW, store=jobs).submit(fan(rest, a=rest), "source", job_id="first")
    table = output("jobs", store).split("\n\n")[0].splitlines()
    found = {line.split("  ")[0]: line.split("  ")[-1].strip() for line in table}
    limit = found.pop("limited")
    assert "routilux.StepLimitError: job limited made 1 " in limit
    assert found == {
        "job": "at step, or why",
        "first": "source",
        "queued": "–",
        "paused": "by phone",
        "waits": "charge attempt 2",
        "failed": "charge attempt 2: ConnectionError: the gateway does not answer",
        "done": "–",
    }


def test_a_pipe_gets_every_column_whole(store):
    job_id = "x" * 200
    with SqliteStore(store) as jobs:
        Runtime(store=jobs).submit(payment(), "charge", {"order": "A6"}, job_id=job_id)
    done = command("jobs", store, folder=store.parent)
    head, first, *_ = done.stdout.splitlines()
    assert head.endswith("  at step, or why")
    assert first.startswith(f"{job_id}  payment  pending")
    assert "\x1b" not in done.stdout
