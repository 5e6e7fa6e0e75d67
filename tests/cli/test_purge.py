"""`routilux purge`: old jobs are deleted, and first listed on request."""

from __future__ import annotations

import json

import pytest

from routilux import Flow, Runtime, SqliteStore
from routilux.cli import main
from routilux.cli.terminal import cells
from tests.cli.payments import NOW, after
from tests.persist.stores import damage_entry, damage_row
from tests.routines import Works, rest


def job_ids(store):
    with SqliteStore(store, clock=NOW) as jobs:
        return set(jobs.job_ids())


def test_a_dry_run_lists_the_jobs_and_deletes_none(store, output):
    before = store.read_bytes()
    text = output("purge", store, "--older-than", "1min", "--dry-run")
    assert text == (
        "done  flow payment, completed, last commit 59 min ago\nwould delete 1 job: 1 completed\n"
    )
    assert before == store.read_bytes()
    assert "would delete 0 jobs\n" == output("purge", store, "--older-than", "60min", "--dry-run")


@pytest.mark.parametrize("columns", [60, 80, 200])
@pytest.mark.parametrize("job_id", ["A7", "😀" * 20, "J" * 255])
def test_a_dry_run_cuts_the_flow_and_never_the_job(store, output, monkeypatch, columns, job_id):
    flow = Flow("flow-" + "ü😀" * 80)
    flow.add_routine(Works(rest), "rest")
    with SqliteStore(store, clock=NOW) as jobs:
        Runtime(clock=after(0), store=jobs).execute(flow, "rest", job_id=job_id)
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = output("purge", store, "--older-than", "1min", "--dry-run").splitlines()
    [line] = [line for line in lines if line.startswith(f"{job_id}  flow flow-ü")]
    assert line.endswith("…, completed, last commit 60 min ago")
    least = cells(f"{job_id}  flow flow-ü…, completed, last commit 60 min ago")
    assert cells(line) <= max(columns, least + 1)


def test_old_jobs_are_deleted_and_the_others_stay(store, output):
    every = job_ids(store)
    assert "deleted 1 job: 1 completed\n" == output("purge", store, "--older-than", "1min")
    assert every - {"done"} == job_ids(store)
    text = output("purge", store, "--older-than", "0s", "--status", "failed", "--status", "paused")
    assert "deleted 2 jobs: 1 failed, 1 paused\n" == text
    assert {"queued", "waits"} == job_ids(store)
    assert "deleted 0 jobs\n" == output("purge", store, "--older-than", "0s", "--flow", "x")


def test_the_deleted_jobs_are_an_object_for_programs(store, output):
    found = json.loads(output("purge", store, "--older-than", "1min", "--json"))
    assert ("routilux-purge/1", False, []) == (found["format"], found["dry_run"], found["damaged"])
    [job] = found["jobs"]
    assert ("done", "payment", "completed") == tuple(job.values())[:3]
    assert 59 == (found["at_ns"] - job["updated_ns"]) // (60 * 10**9)


def test_damaged_jobs_are_deleted_on_request(store, output, capsys):
    every = job_ids(store)
    with SqliteStore(store, clock=NOW) as jobs:
        damage_row(jobs, "done")
        damage_row(jobs, "queued")
        damage_entry(jobs, "failed")
    assert 1 == main(["purge", str(store), "--older-than", "1min"], clock=NOW)
    out, err = capsys.readouterr()
    assert ("deleted 0 jobs\n", True) == (out, f"job done in {store} is damaged: $.done" in err)
    damaged = ["purge", store, "--older-than", "1min", "--status", "damaged"]
    text = output(*damaged, "--dry-run")
    assert "done  flow payment, damaged\n" in text
    assert text.endswith("would delete 3 jobs: 3 damaged\n")
    assert "deleted 3 jobs: 3 damaged\n" == output(*damaged)
    assert every - {"done", "queued", "failed"} == job_ids(store)
    found = json.loads(output(*damaged, "--json"))
    assert ([], []) == (found["jobs"], found["damaged"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: --older-than"),
        (["--older-than", "30"], "must be a number and s, min, h, d or w, such as 30d, not '30'"),
        (["--older-than", "-3d"], "expected one argument"),
        (["--older-than", "1d", "--status", "running"], "invalid choice: 'running'"),
    ],
)
def test_a_wrong_selection_is_refused_and_nothing_is_deleted(store, arguments, message, capsys):
    every = job_ids(store)
    with pytest.raises(SystemExit, match="2"):
        main(["purge", str(store), *arguments], clock=NOW)
    assert message in capsys.readouterr().err
    assert every == job_ids(store)
