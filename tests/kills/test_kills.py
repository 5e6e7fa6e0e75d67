"""Killed and suspended workers on both stores: a short run of the soak, and single stories."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import time_ns
from typing import Any

import pytest

from routilux import JobStatus, Runtime, Worker, cli
from tests.kills.__main__ import main
from tests.kills.soak import ROOT, Soak, hosts, kill
from tests.kills.stores import fresh_stores
from tests.kills.story import asking
from tests.persist import postgres_server
from tests.persist.stores import at
from tests.soak import also, sampled

KILLS = {"sqlite": 100, "postgres": 60}  # and more until every place is hit
STILL = 0.3


@pytest.fixture(params=["sqlite", "postgres"])
def fresh(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """A function that returns the place of a new store."""
    if request.param == "postgres":
        postgres_server.need()
    return fresh_stores(request.param, tmp_path)


@pytest.mark.parametrize("fresh", sampled(KILLS, ["sqlite"]), indirect=True)
def test_no_kill_loses_a_commit_or_repeats_what_was_done(fresh, tmp_path, record_property, request):
    kills = KILLS[request.node.callspec.params["fresh"]]
    with hosts(2) as pair:
        soak = Soak(pair, fresh, tmp_path)
        soak.rehearse()
        assert [] == soak.missing(), "the rehearsal never passed these places"
        soak.round(kills, fewest=1)
    record_property("kills", {when: dict(where) for when, where in soak.hits.items()})
    assert [] == soak.broken
    assert kills <= soak.kills()
    assert {} == soak.rare(1), "no kill hit these places"
    assert soak.hits["after"].total() >= 5, "too few hits at random"


@pytest.mark.soak
def test_the_script_lists_the_kills_and_that_no_rule_is_broken():
    command = [sys.executable, "-m", "tests.kills", "--count", "20", "--fewest", "0"]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert 0 == output.returncode, output.stdout + output.stderr
    assert "\nappend: INSERT commits " in output.stdout
    assert " kills in " in output.stdout
    assert output.stdout.endswith("every retry as it was due\n")


@pytest.mark.parametrize(
    ("fault", "asked", "message", "code"),
    [
        ("tests.kills.soak.broken", "--count=5", "a fault\n1 broken rules; the store is in ", 1),
        ("", "--minutes=0", "the time was too short", 2),
        ("", "--count=1", "too seldom: {'before create': ", 2),
        ("tests.persist.postgres_server.available", "--store=postgres", "a fault", 2),
    ],
)
def test_the_script_fails_if_a_rule_is_broken_or_a_place_left_out(
    fault, asked, message, code, tmp_path, monkeypatch, capsys
):
    if fault:
        monkeypatch.setattr(fault, lambda *_: ["a fault"] if "soak" in fault else "a fault")
    monkeypatch.setattr("tests.persist.postgres_server.stop", lambda: None)  # others use it
    monkeypatch.setattr(sys, "argv", ["kills", f"--folder={tmp_path}", asked])
    assert code == main()
    assert message in capsys.readouterr().out
    assert (code == 1) is bool(list(tmp_path.iterdir())), "only a broken store is kept"


def test_a_rehearsal_that_passed_no_statement_of_a_write_is_reported(tmp_path):
    soak = Soak([], str, tmp_path)
    soak.places.update(["before renew", "renew: UPDATE jobs", "in a handler"])
    missing = soak.missing()
    assert {"after renew", "before release", "a statement of append_all"} <= set(missing)
    assert not {"before renew", "a statement of renew", "in a handler"} & set(missing)


# --- a host that is suspended ---------------------------------------------------------------------


@pytest.mark.parametrize("wakes", also("first", "last", "never"))
def test_the_late_commit_of_a_host_that_was_suspended_past_its_lease_is_refused(
    fresh, tmp_path, wakes, record_property
):
    where, effects = fresh(), str(tmp_path / "effects")
    about: dict[str, Any] = {"store": where, "effects": effects, "asks": True, "lease": STILL}
    with hosts(2) as (first, second), at(where) as store:
        runtime = Runtime(store=store)
        job_id = runtime.submit(asking(effects), "first")
        # Not in the middle of a write, which would keep the file locked.
        lazy = first.begin(**about, late=[job_id], stops_at="after renew")
        first.until("begun")
        first.until("stopped")
        stopped = time_ns()
        second.begin(**{**about, "lease": 60})  # long enough for a busy machine
        second.until("begun")
        if wakes == "first":
            first.order("go on")
            signal.pidfd_send_signal(lazy, signal.SIGCONT)
            assert job_id in first.until("log")[1]  # it knows that it is no longer the owner
        second.order("go on")
        assert 0 == second.until("end")[1]
        if wakes == "last":
            first.order("go on")
            signal.pidfd_send_signal(lazy, signal.SIGCONT)
        if wakes != "never":
            assert 0 == first.until("end")[1]
            [refused] = [event for event in first.events if event[0] == "refused"]
            assert "LeaseLostError" == refused[1]
            assert any(event[0] == "log" and job_id in event[1] for event in first.events)
            assert "done" not in [event[4] for event in first.events if event[0] == "commit"]
        job = runtime.load(job_id, history=True)
    assert ["start", "resumed", "resumed", "done", "effect", "done"] == [
        c.kind for c in job.commits
    ]
    assert {"sent": 1} == job.shared_data
    # How soon is not asserted: lease + 1 s on an idle machine.
    record_property("taken over after, s", (job.commits[2].at_ns - stopped) / 10**9)
    assert 1 == len(Path(effects).read_text("utf-8").splitlines())


@pytest.mark.parametrize("write", also("append", "append_all", "claim"))
def test_a_host_that_is_suspended_in_a_write_locks_no_other_host_out(write, tmp_path):
    # On a server; a process that is suspended in a write keeps a file locked.
    postgres_server.need()
    effects = str(tmp_path / "effects")
    order = {"lingers": True, "submit": list("abcd"), "resume": "a" if write == "claim" else ""}
    with hosts(2) as (first, second):
        where = postgres_server.fresh_dsn()
        assert 0 == first.live(store=where, effects=effects, **order)[0]
        places = [p for p in first.events[-2][1] if p.startswith(f"{write}: ")]
        assert places
        for place in places:
            about = {"store": postgres_server.fresh_dsn(), "effects": effects}
            first.order({**about, **order, "stops_at": place})
            process = first.until("stopped")[1]
            status, _ = second.live(**about, resume="all")
            assert 0 == status, f"no host could write while one was suspended in {place}"
            os.kill(process, signal.SIGCONT)
            assert 0 == first.until("end")[1]
            with at(about["store"]) as store:
                runtime = Runtime(store=store)
                assert {"completed"} == {runtime.load(j).status for j in store.job_ids()}, place


def test_a_worker_ends_its_step_on_sigterm_and_another_worker_resumes_the_job(fresh, tmp_path):
    where, effects = fresh(), str(tmp_path / "effects")
    with hosts(1) as (host,), at(where) as store:
        runtime = Runtime(store=store)
        flow = asking(effects)
        job_id = runtime.submit(flow, "first")
        handle = host.begin(store=where, effects=effects, asks=True, lease=30)
        host.until("begun")
        signal.pidfd_send_signal(handle, signal.SIGTERM)
        host.order("go on")
        assert 0 == host.until("end")[1]
        ran = [commit.kind for commit in runtime.load(job_id, history=True).commits]
        assert ["start", "resumed", "done"] == ran[:3]
        assert 0 == store.free_in([flow.flow_id]) or len(ran) > 3, "it was not given back"
        Worker(store, [flow], runtime=runtime).run(until_idle=True)
        assert JobStatus.COMPLETED is runtime.load(job_id).status


# --- recoveries and killed processes ------------------------------------------


def test_a_job_that_kills_its_workers_again_and_again_fails_as_poisoned(fresh, tmp_path):
    where, effects = fresh(), str(tmp_path / "effects")
    about: dict[str, Any] = {"store": where, "effects": effects, "asks": True, "most": 2}
    with hosts(1) as (host,), at(where) as store:
        runtime = Runtime(store=store)
        job_id = runtime.submit(asking(effects), "first")
        for _ in range(3):
            handle = host.begin(**about)
            host.until("begun")
            kill(handle)
            assert -signal.SIGKILL == host.until("end")[1]
        host.begin(**about)
        assert 0 == host.until("end")[1]
        job = runtime.load(job_id, history=True)
    assert ["start", "resumed", "resumed", "resumed", "failed"] == [c.kind for c in job.commits]
    assert "recovered 2 times without progress" in str(job.error)


def test_an_operator_takes_over_the_job_of_a_killed_execute(tmp_path, capsys):
    path, effects = str(tmp_path / "jobs.db"), str(tmp_path / "effects")
    about: dict[str, Any] = {"store": path, "effects": effects, "asks": True}
    with hosts(2) as (first, second):
        first.order({**about, "execute": "j"})
        pid = first.until("begun")[1]
        os.kill(pid, signal.SIGKILL)
        assert -signal.SIGKILL == first.until("end")[1]
        assert 1 == cli.main(["retry", path, "j"])
        output = capsys.readouterr().err
        assert re.search(rf"j is running, held by \S+:{pid}:\w+ without a lease; if that", output)
        assert 0 == cli.main(["retry", path, "j", "--take-over"])
        second.begin(**about)
        second.until("begun")
        second.order("go on")
        assert 0 == second.until("end")[1]
    with at(path) as store:
        job = Runtime(store=store).load("j", history=True)
    assert JobStatus.COMPLETED is job.status
    assert ["start", "resumed", "resumed", "done"] == [c.kind for c in job.commits][:4]
    assert [1, 1] == [(c.detail or {})["recoveries"] for c in job.commits if c.kind == "resumed"]
