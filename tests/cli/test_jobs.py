"""`routilux jobs`: the jobs of a store, in a table that fits the terminal."""

from __future__ import annotations

import pytest

from routilux import Runtime, SqliteStore
from tests.cli.pages import JOBS
from tests.cli.payments import NOW, after, command, payment


def test_the_jobs_are_listed_with_the_newest_first(store, output):
    assert JOBS == output("jobs", store)


def test_jobs_can_be_filtered_by_status_and_flow_and_limited_to_the_newest(store, output):
    lines = output("jobs", store, "--status", "failed").splitlines()
    assert ["job", "failed", "", "1 of 5 jobs: 1 failed"] == [line.split("  ")[0] for line in lines]
    assert 5 == output("jobs", store, "--flow", "payment").count(" payment ")
    lines = output("jobs", store, "--limit", 2).splitlines()
    assert ["job", "queued", "paused", ""] == [line.split("  ")[0] for line in lines[:-1]]
    assert lines[-1].endswith("1 failed; the 2 newest are shown, --limit shows more")
    assert "0 of 5 jobs; flows: payment\n" == output("jobs", store, "--flow", "refunds")


def test_a_job_that_was_submitted_with_a_delay_is_due_when_it_has_passed(store, output):
    with SqliteStore(store, clock=NOW) as jobs:
        Runtime(clock=NOW, store=jobs).submit(payment(), "charge", {"order": "A6"}, delay=90)
    line = output("jobs", store).splitlines()[1]
    assert "  in 90 s, 13:01:30  " in line


def test_an_empty_store_has_0_jobs(tmp_path, output, refused):
    SqliteStore(tmp_path / "new.db").close()
    assert "0 jobs\n" == output("jobs", tmp_path / "new.db")
    err = refused("show", tmp_path / "new.db", "j")
    assert err.endswith("new.db; the store holds no jobs; check its name")


@pytest.mark.parametrize("columns", [50, 90])
def test_a_narrow_terminal_gets_cut_lines_with_whole_ids(store, output, monkeypatch, columns):
    job_id = "f58be812-0654-9787-994d-a80c990fd1b7-ab"
    with SqliteStore(store, clock=NOW) as jobs:
        late = Runtime(clock=after(3595, autojump=False), store=jobs)
        late.submit(payment(), "charge", {"order": "A6"}, job_id=job_id)
    monkeypatch.setenv("COLUMNS", str(columns))
    head, first, *rest = output("jobs", store).splitlines()
    assert ("job ", "…") == (head[:4], head[-1])
    assert first.startswith(f"{job_id}  payment")
    assert all(len(line) <= columns for line in (head, first, *rest[:4]))


def test_a_pipe_gets_every_column_whole(store):
    job_id = "x" * 200
    with SqliteStore(store) as jobs:
        Runtime(store=jobs).submit(payment(), "charge", {"order": "A6"}, job_id=job_id)
    done = command("jobs", store, folder=store.parent)
    head, first, *_ = done.stdout.splitlines()
    assert head.endswith("held by")
    assert first.startswith(f"{job_id}  payment  pending")
    assert "\x1b" not in done.stdout
