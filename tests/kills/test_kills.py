"""Killed and suspended workers on both stores: a short run of the soak, and single stories."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

import pytest

from routilux import JobStatus, Runtime, Worker, cli
from tests.kills.__main__ import main
from tests.kills.soak import Soak, hosts
from tests.kills.stores import fresh_stores
from tests.kills.story import asking
from tests.persist import postgres_server
from tests.persist.stores import at
from tests.routines import kinds
from tests.soak import also, sampled

KILLS = {"sqlite": 50, "postgres": 60}  # and more until every place is hit


@pytest.mark.parametrize("kind", sampled(KILLS, ["sqlite"]))
def test_no_kill_loses_a_commit_or_repeats_what_was_done(kind, tmp_path, record_property):
    if kind == "postgres":
        postgres_server.need()
    with hosts(2) as pair:
        soak = Soak(pair, fresh_stores(kind, tmp_path), tmp_path)
        soak.rehearse()
        assert [] == soak.missing(), "the rehearsal never passed these places"
        soak.round(KILLS[kind], fewest=1)
    record_property("kills", {when: dict(where) for when, where in soak.hits.items()})
    assert [] == soak.broken
    assert KILLS[kind] <= soak.kills()
    assert {} == soak.rare(1), "no kill hit these places"
    assert soak.hits["after"].total() >= 5, "too few hits at random"


@pytest.mark.parametrize(
    ("fault", "asked", "message", "code"),
    [
        *also(
            (["a fault"], "--count=5", "a fault\n1 broken rules; the stores are in ", 1),
            ([], "--minutes=0", "the time was too short", 2),
            ([], "--count=1", "too seldom: {'before create': ", 2),
        )
    ],
)
def test_the_script_fails_if_a_rule_is_broken_or_a_place_left_out(
    fault, asked, message, code, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("tests.kills.soak.broken", lambda _: fault)
    monkeypatch.setattr("tests.persist.postgres_server.stop", lambda: None)  # others use it
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["kills", asked])
    assert code == main()
    output = capsys.readouterr().out
    assert message in output
    assert "\nappend: INSERT commits " in output
    assert (code == 1) is bool(list(tmp_path.iterdir())), "only a broken store is kept"


def test_a_rehearsal_that_passed_no_statement_of_a_write_is_reported(tmp_path):
    soak = Soak([], str, tmp_path)
    soak.places.update(["before renew", "renew: UPDATE jobs", "in a handler"])
    missing = soak.missing()
    assert {"after renew", "before release", "a statement of append_all"} <= set(missing)
    assert not {"before renew", "a statement of renew", "in a handler"} & set(missing)


# --- a host that is suspended ---------------------------------------------------------------------


@pytest.fixture
def about(where, tmp_path):
    """The order of a worker whose flow asks."""
    return {"store": where, "effects": str(tmp_path / "effects"), "asks": True}


@pytest.mark.parametrize("wakes", also("first", "last", "never"))
def test_the_late_commit_of_a_host_that_was_suspended_past_its_lease_is_refused(about, wakes):
    with hosts(2) as (first, second), at(about["store"]) as store:
        runtime = Runtime(store=store)
        job_id = runtime.submit(asking(about["effects"]), "first")
        # Not in the middle of a write, which would keep the file locked.
        lazy = first.begun(**about, lease=0.3, late=[job_id], stops_at="after renew")
        first.until("stopped")
        second.begun(**about, lease=60)  # long enough for a busy machine
        if wakes == "first":
            first.order("go on")
            os.kill(lazy, signal.SIGCONT)
            assert job_id in first.until("log")[0]  # it knows that it is no longer the owner
        second.order("go on")
        assert 0 == second.until("end")[0]
        if wakes == "last":
            first.order("go on")
            os.kill(lazy, signal.SIGCONT)
        if wakes == "never":
            os.kill(lazy, signal.SIGKILL)
        else:
            assert 0 == first.until("end")[0]
            [refused] = [event for event in first.events if event[0] == "refused"]
            assert "LeaseLostError" == refused[1]
            assert any(event[0] == "log" and job_id in event[1] for event in first.events)
            assert "done" not in [event[4] for event in first.events if event[0] == "commit"]
        job = runtime.load(job_id, history=True)
    assert ["start", "resumed", "resumed", "done", "effect", "done"] == kinds(job)
    assert {"sent": 1} == job.shared_data
    assert 1 == len(Path(about["effects"]).read_text("utf-8").splitlines())


@pytest.mark.parametrize("write", also("append", "append_all", "claim"))
def test_a_host_that_is_suspended_in_a_write_locks_no_other_host_out(write, dsn, tmp_path):
    # On a server; a process that is suspended in a write keeps a file locked.
    effects = str(tmp_path / "effects")
    order = {"lingers": True, "submit": list("abcd"), "resume": "a" if write == "claim" else ""}
    with hosts(2) as (first, second):
        assert 0 == first.live(store=dsn, effects=effects, **order)[0]
        places = [p for p in first.events[-2][1] if p.startswith(f"{write}: ")]
        assert places
        for place in places:
            about = {"store": postgres_server.fresh_dsn(), "effects": effects}
            first.order({**about, **order, "stops_at": place})
            process = first.until("stopped")[0]
            status, _ = second.live(**about, resume="all")
            assert 0 == status, f"no host could write while one was suspended in {place}"
            os.kill(process, signal.SIGCONT)
            assert 0 == first.until("end")[0]
            with at(about["store"]) as store:
                runtime = Runtime(store=store)
                assert {"completed"} == {runtime.load(j).status for j in store.job_ids()}, place


@pytest.mark.parametrize("where", also("sqlite", "postgres"), indirect=True)
def test_a_worker_ends_its_step_on_sigterm_and_another_worker_resumes_the_job(about):
    with hosts(1) as (host,), at(about["store"]) as store:
        runtime = Runtime(store=store)
        flow = asking(about["effects"])
        job_id = runtime.submit(flow, "first")
        os.kill(host.begun(**about, lease=30), signal.SIGTERM)
        host.order("go on")
        assert 0 == host.until("end")[0]
        ran = kinds(runtime.load(job_id, history=True))
        assert ["start", "resumed", "done"] == ran[:3]
        assert 0 == store.free_in([flow.flow_id]) or len(ran) > 3, "it was not given back"
        Worker(store, [flow], runtime=runtime).run(until_idle=True)
        assert JobStatus.COMPLETED is runtime.load(job_id).status


# --- recoveries and killed processes --------------------------------------------------------------


@pytest.mark.parametrize("where", also("sqlite", "postgres"), indirect=True)
def test_a_job_that_kills_its_workers_again_and_again_fails_as_poisoned(about):
    with hosts(1) as (host,), at(about["store"]) as store:
        runtime = Runtime(store=store)
        job_id = runtime.submit(asking(about["effects"]), "first")
        for _ in range(3):
            os.kill(host.begun(**about, most=2), signal.SIGKILL)
            assert -signal.SIGKILL == host.until("end")[0]
        assert 0 == host.live(**about, most=2)[0]
        job = runtime.load(job_id, history=True)
    assert ["start", "resumed", "resumed", "resumed", "failed"] == kinds(job)
    assert "recovered 2 times without progress" in str(job.error)


@pytest.mark.parametrize("where", ["sqlite"], indirect=True)
def test_an_operator_takes_over_the_job_of_a_killed_execute(about, capsys):
    path = about["store"]
    with hosts(2) as (first, second):
        pid = first.begun(**about, execute="j")
        os.kill(pid, signal.SIGKILL)
        assert -signal.SIGKILL == first.until("end")[0]
        assert 1 == cli.main(["retry", path, "j"])
        output = capsys.readouterr().err
        assert re.search(rf"j is running, held by \S+:{pid}:\w+ without a lease; if that", output)
        assert 0 == cli.main(["retry", path, "j", "--take-over"])
        second.begun(**about, lease=30)  # which a busy machine does not lose
        second.order("go on")
        assert 0 == second.until("end")[0]
    with at(path) as store:
        job = Runtime(store=store).load("j", history=True)
    assert JobStatus.COMPLETED is job.status
    assert ["start", "resumed", "resumed", "done"] == kinds(job)[:4]
    assert [1, 1] == [(c.detail or {})["recoveries"] for c in job.commits if c.kind == "resumed"]
