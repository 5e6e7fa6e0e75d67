"""flow_hosts: jobs that are started, killed and resumed in fresh interpreters."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from pytest_routilux import FlowHosts
from pytest_routilux.hosts.flow_hosts import At, HostError
from routilux import FakeClock, Flow, Routine, Runtime, SavedState
from tests.plugin import shop as shop_module
from tests.plugin.shop import Money, breaking, doubts, facts, napping, shop
from tests.soak import also

PRICE = {"price": Decimal("19.90")}
RETRY_2 = At(kind="retry", routine_id="charge", attempt=2)
SECOND = 10**9


def start(hosts, tries=1, calls=None, **options):
    args = {"tries": tries, "calls": None if calls is None else str(calls)}
    return hosts.start(shop, "order", PRICE, build_args=args, **options)


def lengths(waits) -> list[float]:
    return [wait.length_ns / SECOND for wait in waits]


def calls_of(path: Path) -> list[tuple[int, int]]:
    lines = [line.split() for line in path.read_text("utf-8").splitlines()]
    return [(int(pid), int(attempt)) for pid, attempt, *_ in lines]


def test_a_job_runs_to_its_end_on_another_host(flow_hosts):
    host = start(flow_hosts, 3, job_id="A7")
    assert host.pid != os.getpid()
    assert ("A7", "completed") == (host.job.job_id, host.job.status)
    assert Money(Decimal("19.90")) == host.job.outputs[0].data["charged"]
    assert [0.8, 0.3, 0.45] == lengths(host.waits)
    assert [300_000_000, 450_000_000] == [retry.actual_ns for retry in host.monitor.retries]
    assert host.killed_at is None
    assert "" == host.output


def test_the_clock_of_a_host_starts_where_the_test_says(flow_hosts):
    start_at = "2030-02-03T04:05:06"
    host = flow_hosts.start("tests.plugin.shop:shop", "order", PRICE, clock_start=start_at)
    assert f"{start_at}.800000+00:00" == host.job.outputs[0].data["at"].isoformat()


def test_user_code_on_a_host_finds_the_time_of_its_clock(flow_hosts):
    host = flow_hosts.start(napping, "nap", clock_start="2030-02-03T04:05:06")
    [output] = host.job.outputs
    naive = datetime(2030, 2, 3, 4, 5, 6)
    instant = naive.replace(tzinfo=UTC)
    hour = timedelta(hours=1)
    assert [
        *(naive, instant.timestamp()),
        *(naive + hour, (instant + hour).timestamp(), instant + hour),
    ] == output.data["times"]
    assert [3600.0] == lengths(host.waits)


def test_routilux_sleep_error_fails_a_host_that_sleeps(tmp_path):
    with (
        FlowHosts(tmp_path, sleeping="error") as hosts,
        pytest.raises(HostError, match=r"called time\.sleep\(3600\) at .*shop\.py"),
    ):
        hosts.start(napping, "nap")


def test_a_job_resumes_from_the_document_of_a_killed_host(flow_hosts, tmp_path):
    calls = tmp_path / "calls"
    a = start(flow_hosts, 99, calls, save_at=At(), kill_at=RETRY_2)
    assert 4 == a.killed_at
    assert [1, 2, 3, 4] == list(a.saved)
    assert a.end is None
    assert [(a.pid, 1), (a.pid, 2)] == calls_of(calls)
    assert ("running", 2) == (a.job.status, a.job.retry_count())
    b = flow_hosts.resume(a.document, imports=[shop_module], look=facts)
    assert len({os.getpid(), a.pid, b.pid}) == 3
    assert {
        "pid": b.pid,
        "retries": 2,
        "amount": Money(Decimal("19.90")),
        "history": ["start", "output"],
        "pytest": False,  # it takes as long to import as all the rest
    } == b.seen
    assert [(a.pid, 1), (a.pid, 2), (b.pid, 3), (b.pid, 4), (b.pid, 5)] == calls_of(calls)
    assert ("failed", 4) == (b.job.status, b.job.retry_count())
    assert [300, 450, 675, 1012.5] == [retry.actual_ns / 10**6 for retry in b.monitor.retries]


def test_work_that_no_document_holds_is_done_again_with_the_same_key(flow_hosts, tmp_path):
    calls = tmp_path / "calls"
    a = start(flow_hosts, 3, calls, save_at=At(kind="done", routine_id="order"), kill_at=RETRY_2)
    assert [2] == list(a.saved)
    b = flow_hosts.resume(a.document, imports=[shop_module])
    assert "completed" == b.job.status
    assert [(a.pid, 1), (a.pid, 2), (b.pid, 1), (b.pid, 2), (b.pid, 3)] == calls_of(calls)
    assert 1 == len({line.split()[2] for line in calls.read_text("utf-8").splitlines()})


@pytest.mark.soak
def test_a_second_kill_leaves_what_the_second_host_saved(flow_hosts):
    a = start(flow_hosts, 4, save_at=At(), kill_at=At(seq=3))
    b = flow_hosts.resume(
        a.document, imports=[shop_module], save_at=At(kind="retry"), kill_at=RETRY_2
    )
    c = flow_hosts.resume(b.document, imports=[shop_module])
    assert 2 == b.job.retry_count()
    assert "completed" == c.job.status
    assert [1, 2, 3, 4] == [r.attempt for r in c.job.commits if r.routine_id == "charge"]


def test_a_document_of_this_process_is_resumed_on_a_host_that_starts_when_it_was_saved(
    flow_hosts, tmp_path
):
    clock = FakeClock("2026-03-01", autojump=False)
    run = shop(tries=3).start("order", PRICE, runtime=Runtime(clock=clock))
    clock.advance(1.0)  # order took 0.8 s, the first retry is due at 1.1 s
    run.checkpoint(tmp_path / "job.json")
    b = flow_hosts.resume(tmp_path / "job.json", imports=["tests.plugin.shop"])
    first, *_ = [c for c in b.job.commits if c.attempt == 2]
    assert 1.1 == (first.started_ns - b.job.started_ns) / SECOND
    assert "completed" == b.job.status


@pytest.mark.parametrize(
    ("strategy", "thread"),
    also(("concurrent", "routilux-"), ("sequential", "MainThread"), (None, "MainThread")),
)
def test_the_strategy_of_a_saved_flow_can_be_another_one_on_the_next_host(
    flow_hosts, tmp_path, strategy, thread
):
    calls = tmp_path / "calls"
    a = start(flow_hosts, 1, calls, save_at=At(seq=2), kill_at=At(seq=2))
    b = flow_hosts.resume(a.document, imports=[shop_module], execution_strategy=strategy)
    assert "completed" == b.job.status
    assert calls.read_text("utf-8").split()[-1].startswith(thread)


def test_a_failed_job_gets_a_fresh_budget_on_a_changed_flow(flow_hosts):
    a = start(flow_hosts, 99)
    assert "failed" == a.job.status
    b = flow_hosts.resume(a.document, build=shop, build_args={"tries": 7}, retry_failed=True)
    assert "completed" == b.job.status
    assert 7 == b.job.routine_states["charge"].attempts


def test_a_flow_of_functions_runs_on_another_host(flow_hosts, flow_factory, tmp_path):
    flow = flow_factory(chain=[half, half])
    job = flow.execute("half", {"n": 8}, runtime=Runtime())
    SavedState.capture(flow, job.at(2)).write(tmp_path / "job.json")
    b = flow_hosts.resume(tmp_path / "job.json", imports=[__name__])
    assert {"n": 2} == b.job.outputs[0].data


def half(n):
    return {"n": n // 2}


@pytest.mark.soak
def test_a_module_outside_of_the_path_is_imported_from_its_file(flow_hosts, tmp_path, monkeypatch):
    # As pytest imports test modules with --import-mode=importlib.
    path = tmp_path / "far.py"
    path.write_text("from tests.plugin.shop import shop\ndef build(): return shop()")
    spec = importlib.util.spec_from_file_location("far.away", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "far.away", module)
    spec.loader.exec_module(module)
    host = flow_hosts.start(module.build, "order", PRICE, imports=[shop_module])
    assert "completed" == host.job.status


def test_a_job_resumes_from_a_store_at_the_commit_of_the_kill(flow_hosts, tmp_path):
    calls, store = tmp_path / "calls", tmp_path / "jobs.db"
    args = {"tries": 99, "calls": str(calls)}
    a = start(flow_hosts, 99, calls, job_id="A7", store=store, kill_at=RETRY_2)
    assert (4, {}, None) == (a.killed_at, a.saved, a.end)
    b = flow_hosts.resume(store=store, job_id="A7", build=shop, build_args=args, look=facts)
    assert 2 == b.seen["retries"]
    assert ("running", 4, 2) == (a.job.status, a.job.seq, a.job.retry_count())
    assert ("failed", 4) == (b.job.status, b.job.retry_count())
    assert [(a.pid, 1), (a.pid, 2), (b.pid, 3), (b.pid, 4), (b.pid, 5)] == calls_of(calls)
    assert [300, 450, 675, 1012.5] == [retry.actual_ns / 10**6 for retry in b.monitor.retries]
    assert (None, {}) == (b.end, b.saved)
    with pytest.raises(HostError, match=r"keeps its jobs in a store and saved no document; add"):
        _ = b.document


class Opens(Routine):
    """Has an argument that no document can hold."""

    def __init__(self, connect) -> None:
        super().__init__()
        self.connect = connect
        self.define_slot("trigger", handler=self.opens)
        self.define_event("output", ["at"])

    def opens(self) -> None:
        self.emit("output", at=self.connect())


def unsavable() -> Flow:
    flow = Flow("unsavable")
    flow.add_routine(Opens(lambda: "a connection"), "opens")
    return flow


def test_a_store_needs_no_flow_that_can_be_saved(flow_hosts, tmp_path):
    store = tmp_path / "jobs.db"
    a = flow_hosts.start(unsavable, "opens", job_id="A7", store=store, kill_at=At(seq=1))
    b = flow_hosts.resume(store=store, job_id="A7", build=unsavable)
    assert (1, "completed") == (a.killed_at, b.job.status)
    with pytest.raises(HostError, match=r"can't be saved as a document: .*args.*; give store="):
        flow_hosts.start(unsavable, "opens")


def test_a_job_of_a_store_resumes_at_the_instant_of_its_last_commit(flow_hosts, tmp_path):
    store = tmp_path / "jobs.db"
    kill_at = At(kind="retry", attempt=1)
    a = start(flow_hosts, 3, store=store, clock_start="2030-01-01", kill_at=kill_at)
    b = flow_hosts.resume(store=store, job_id=a.job_id, build=shop, build_args={"tries": 3})
    assert "2030-01-01T00:00:01.550000+00:00" == b.job.outputs[0].data["at"].isoformat()
    rest, _ = b.waits  # the first delay begins anew on the clock of the host, at its own instant
    assert (0.8, 0.3) == ((rest.at_ns - a.job.started_ns) / SECOND, rest.length_ns / SECOND)


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ({}, r"^resume\(\) needs either a document, or a store with job_id= and build=$"),
        ({"document": "a", "store": "b"}, r"^resume\(\) needs either a document, or a store"),
        ({"store": "b", "build": shop}, "needs job_id=, and build= to make the job's flow"),
        ({"store": "b", "job_id": "A7"}, "needs job_id=, and build= to make the job's flow"),
        ({"document": "gone.json"}, r"there is no document .*gone\.json; write"),
    ],
)
def test_resume_takes_either_a_document_or_a_store(flow_hosts, where, says):
    with pytest.raises(HostError, match=says):
        flow_hosts.resume(**where)


@pytest.mark.parametrize(
    ("instant", "says"),
    [
        (
            "soon",
            r"^clock_start='soon' is no instant; give a datetime or an ISO text such as '2024",
        ),
        (5, "^clock_start=5 is no instant; give"),
        ("", "^clock_start='' is no instant; give"),
        (
            "0001-01-01",
            r"^clock_start='0001-01-01' is too near .*; give an instant from 0001-01-03T",
        ),
        (datetime.max, r"^clock_start=datetime\.datetime\(9999.* to 9999-12-30T00:00:00\+00:00$"),
    ],
)
def test_a_host_whose_clock_can_not_start_there_is_refused(flow_hosts, tmp_path, instant, says):
    with pytest.raises(HostError, match=says):
        start(flow_hosts, 1, clock_start=instant)
    store = tmp_path / "jobs.db"
    with pytest.raises(HostError, match=says):
        flow_hosts.resume(store=store, job_id="A7", build=shop, clock_start=instant)


def test_a_job_that_the_store_does_not_hold_is_named_with_those_that_it_does(flow_hosts, tmp_path):
    store = tmp_path / "jobs.db"
    start(flow_hosts, job_id="A7", store=store)
    with pytest.raises(HostError, match=r"jobs\.db holds no job 'A8'; known jobs: 'A7'"):
        flow_hosts.resume(store=store, job_id="A8", build=shop)


def test_a_point_that_is_never_reached_is_an_error(flow_hosts):
    with pytest.raises(HostError) as error:
        start(flow_hosts, 2, kill_at=RETRY_2)
    assert re.fullmatch(
        r"host 1 \(pid \d+\) was to be killed at At\(kind='retry', routine_id='charge',"
        r" attempt=2\), but made no such commit; the commits were\n"
        r"  1 start\n  2 done order 1\n  3 retry charge 1\n  4 done charge 2",
        str(error.value),
    )


def test_a_save_point_that_is_never_reached_is_an_error(flow_hosts):
    with pytest.raises(HostError, match=r"was to save the job at At\(seq=4\), but made"):
        start(flow_hosts, save_at=[At(seq=2), At(seq=4)])


@pytest.mark.parametrize("point", ["save_at", "kill_at"])
@pytest.mark.parametrize("value", [2, "retry", [2], [At(seq=2), None]])
def test_a_point_that_is_no_at_is_refused(flow_hosts, point, value):
    with pytest.raises(HostError, match=rf"{point}=.* selects no commit; give {point}=At\(seq=2\)"):
        start(flow_hosts, **{point: value})


def test_a_kind_that_does_not_exist_is_refused_at_once():
    with pytest.raises(ValueError, match="kind='rety' is not a kind of commit; known: ") as refused:
        At(kind="rety")
    assert str(refused.value).endswith("; did you mean 'retry'?")


def test_a_host_that_was_killed_before_it_saved_has_no_document(flow_hosts):
    host = start(flow_hosts, kill_at=At(seq=2))
    with pytest.raises(HostError, match=r"was killed at commit 2 and saved no document; add"):
        _ = host.document


def test_the_traceback_of_a_host_is_shown(flow_hosts):
    with pytest.raises(HostError) as error:
        flow_hosts.start(breaking, "break", build_args={"how": "interrupt itself"})
    text = str(error.value)
    assert "died with exit status" in text or "died with SIGINT" in text
    assert "  | about to interrupt itself\n" in text
    assert 'shop.py", line ' in text
    assert text.endswith("KeyboardInterrupt: interrupt itself")


@pytest.mark.parametrize(("how", "end"), also(("abort", "SIGABRT"), ("exit", "exit status 3")))
def test_the_error_says_how_a_host_died(flow_hosts, how, end):
    with pytest.raises(HostError, match=rf"died with {end}; its output:\n  \| about to {how}"):
        flow_hosts.start(breaking, "break", build_args={"how": how})


def test_a_check_that_fails_on_the_host_is_shown(flow_hosts):
    a = start(flow_hosts, 99)
    with pytest.raises(HostError, match=r"AssertionError: retry 4 is not 7"):
        flow_hosts.resume(a.document, imports=[shop_module], look=doubts)


def test_a_missing_module_is_named(flow_hosts):
    with pytest.raises(HostError) as error:
        flow_hosts.start("nowhere.flows:build", "order")
    text = str(error.value)
    assert "module 'nowhere.flows' can't be imported on the host (No module named" in text
    assert f"\n  {Path.cwd()}" in text


@pytest.mark.parametrize(
    ("build", "error"),
    [
        *also(
            ("tests.plugin.shop:shp", r"module 'tests\.plugin\.shop' has no function 'shp'"),
            ("tests.plugin.shop:nothing", r"tests\.plugin\.shop:nothing must return a Flow, not 7"),
        ),
        (lambda: shop(), r"another host can't import .*<lambda>"),
        ("shop", r"'shop' names no function; write 'package\.module:func"),
    ],
)
def test_a_name_that_leads_to_no_flow_is_an_error(flow_hosts, build, error):
    with pytest.raises(HostError, match=error):
        flow_hosts.start(build, "order")


def test_a_class_that_the_host_does_not_import_is_named(flow_hosts):
    a = start(flow_hosts)
    SavedState.capture(shop(), a.job.at(1)).write(a.document)
    with pytest.raises(HostError) as error:
        flow_hosts.resume(a.document)
    assert "no routine class 'tests.plugin.shop:Order' is defined" in str(error.value)
    assert "the host imported no modules; add the missing modules" in str(error.value)
