"""Lost connections to PostgreSQL: each call takes effect once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from routilux import (
    Acquired,
    DuplicateJobError,
    JobStatus,
    LeaseLostError,
    PostgresStore,
    Routine,
    Runtime,
    Worker,
)
from tests.persist.hosts import (
    APPENDS,
    PATIENCE,
    Call,
    end_backends,
    line_of,
    locked,
    processes,
    until_one_waits,
)
from tests.persist.losses import Losses
from tests.persist.postgres_server import Server
from tests.persist.stores import acquire
from tests.routines import SECOND, chain, rest

# --- on the server --------------------------------------------------------------------------------


def test_a_backend_that_was_ended_is_not_noticed_by_the_caller(postgres, admin):
    postgres.create("j", b"1", "a", flow_id="f", queued=False)
    for seq in range(2, 5):
        assert 1 <= end_backends(admin)
        postgres.append("j", seq, b"%d" % seq, "a", stopped=False)
    assert [b"1", b"2", b"3", b"4"] == postgres.rows("j")


def test_a_backend_that_is_ended_in_the_middle_of_an_append_loses_nothing(postgres, admin, dsn):
    postgres.create("j", b"1", "a", flow_id="f", queued=False)
    with locked(dsn):
        append = Call(partial(postgres.append, "j", 2, b"2", "a", stopped=False))
        admin.execute("SELECT pg_terminate_backend(%s, 10000)", (until_one_waits(admin),))
        until_one_waits(admin)  # it has been sent again
    assert None is append.result()
    assert [b"1", b"2"] == postgres.rows("j")


def test_a_backend_that_is_ended_a_second_time_raises(postgres, admin, dsn):
    postgres.create("j", b"1", "a", flow_id="f", queued=False)
    with locked(dsn):
        append = Call(partial(postgres.append, "j", 2, b"2", "a", stopped=False))
        for _ in range(2):
            admin.execute("SELECT pg_terminate_backend(%s, 10000)", (until_one_waits(admin),))
        error = append.result()
    assert isinstance(error, OSError)
    assert "terminating connection" in str(error)
    postgres.append("j", 2, b"2", "a", stopped=False)


def test_a_restart_of_the_server_is_not_noticed_by_the_caller(postgres, server):
    postgres.create("j", b"1", "a", flow_id="f", queued=True)
    server.restart()
    assert "j" == acquire(postgres, "b", ["f"], 60 * SECOND)
    postgres.claim("j", 2, b"2", "b", stopped=False)
    server.restart()
    assert ["j"] == postgres.renew("b", SECOND)


def test_a_server_that_is_down_is_reported_with_its_name_and_a_cure(postgres, server):
    server.stop()
    try:
        with pytest.raises(OSError, match=rf"the store host={server.folder} .*; does the server"):
            postgres.job_ids()
    finally:
        server.start()
    assert [] == postgres.job_ids()


def test_a_worker_continues_when_a_server_that_was_down_answers_again(dsn, server, monkeypatch):
    monkeypatch.setattr("routilux.worker._RENEWALS", 1000)  # the job that broke off is resumed soon
    done: list[str] = []
    starting = threading.Thread(target=server.start)

    def falls(self: Routine) -> None:
        if not done:
            server.stop(signal.SIGQUIT)
            starting.start()
        done.append(self.ctx.job_id)
        self.emit("out", n=1)

    flow = chain(a=falls, b=rest)
    with PostgresStore(dsn) as store, Runtime(store=store) as runtime:
        job_ids = [runtime.submit(flow, "a") for _ in range(5)]
        try:
            Worker(store, [flow], runtime=runtime, lease=PATIENCE).run(until_idle=True)
        finally:
            starting.join(PATIENCE)
        jobs = [runtime.load(job_id, history=True) for job_id in job_ids]
    for job in jobs:
        assert JobStatus.COMPLETED is job.status
        assert 2 == sum(commit.kind.value == "done" for commit in job.commits)
        assert 0 == job.recoveries


# --- on the way -----------------------------------------------------------------------------------


@pytest.fixture
def losses(server: Server) -> Iterator[Losses]:
    with Losses(server.folder / ".s.PGSQL.5432") as losses:
        yield losses


@pytest.fixture
def far(dsn: str, server: Server, losses: Losses) -> Iterator[PostgresStore]:
    """A store behind a network that loses connections."""
    there = f"host=127.0.0.1 port={losses.port}"
    with PostgresStore(dsn.replace(f"host={server.folder}", there)) as store:
        yield store


LOST = pytest.mark.parametrize("lost", ["question", "answer"])


@LOST
@pytest.mark.parametrize("queued", [True, False])
def test_a_create_whose_connection_is_lost_makes_one_job(far, losses, lost, queued):
    with losses.once(lost):
        far.create("j", b"1", "a", flow_id="f", queued=queued)
    assert [b"1"] == far.rows("j")
    assert ("j" if queued else None) == acquire(far, "b", ["f"], SECOND)
    with pytest.raises(DuplicateJobError):
        far.create("j", b"another", "a", flow_id="f", queued=queued)


@LOST
@pytest.mark.parametrize("stopped", [True, False])
def test_an_append_whose_connection_is_lost_is_there_once(far, losses, lost, stopped):
    far.create("j", b"1", "a", flow_id="f", queued=True)
    far.acquire("a", ["f"], 60 * SECOND)
    with losses.once(lost):
        far.append("j", 2, b"2", "a", stopped=stopped)
    far.append("j", 3, b"3", "a", stopped=stopped)
    assert [b"1", b"2", b"3"] == far.rows("j")
    assert ([] if stopped else ["j"]) == far.renew("a", SECOND)


@LOST
@pytest.mark.parametrize("acquired", [True, False])
def test_a_claim_whose_connection_is_lost_makes_one_owner(far, losses, lost, acquired):
    far.create("j", b"1", "a", flow_id="f", queued=True)
    if acquired:
        far.acquire("b", ["f"], 60 * SECOND)
    with losses.once(lost):
        far.claim("j", 2, b"2", "b", stopped=False)
    assert [b"1", b"2"] == far.rows("j")
    assert (["j"] if acquired else []) == far.renew("b", SECOND)
    with pytest.raises(LeaseLostError):
        far.append("j", 3, b"3", "a", stopped=False)


@LOST
@pytest.mark.parametrize("free", [True, False])
def test_an_operator_whose_connection_is_lost_overrules_once(far, losses, lost, free):
    far.create("j", b"1", "a", flow_id="f", queued=False)
    with losses.once(lost):
        far.overrule("j", 2, b"2", "operator", free=free)
    assert [b"1", b"2"] == far.rows("j")
    assert ("j" if free else None) == acquire(far, "b", ["f"], SECOND)


@LOST
def test_an_acquire_whose_connection_is_lost_gives_one_job_and_holds_no_other(far, losses, lost):
    for job_id in "jkl":
        far.create(job_id, b"1", "a", flow_id="f", queued=True)
    with losses.once(lost):
        assert "j" == acquire(far, "b", ["f"], 60 * SECOND)
    assert ["j"] == far.renew("b", 60 * SECOND)
    assert "k" == acquire(far, "b", ["f"], 60 * SECOND)


@LOST
@pytest.mark.parametrize("clean", [True, False])
def test_an_acquire_whose_connection_is_lost_knows_if_the_job_was_given_back(
    far, losses, lost, clean
):
    far.create("j", b"1", "a", flow_id="f", queued=True)
    far.acquire("a", ["f"], 60 * SECOND)
    far.release("j", "a", 0, clean=clean)
    with losses.once(lost):
        assert Acquired("j", clean) == far.acquire("b", ["f"], 60 * SECOND)


def test_an_acquire_sent_again_while_the_server_executes_the_first_holds_one_job(
    far, losses, admin, dsn
):
    for job_id in "jkl":
        far.create(job_id, b"1", "a", flow_id="f", queued=True)
    admin.execute(
        "CREATE FUNCTION waits() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END'"
    )
    admin.execute("CREATE TRIGGER w AFTER UPDATE ON routilux_jobs EXECUTE FUNCTION waits()")
    with locked(dsn, "SELECT pg_advisory_xact_lock(1)"):
        asked = Call(acquire, far, "b", ["f"], 60 * SECOND)
        first = until_one_waits(admin)
        losses.leave()
        until_one_waits(admin, other_than=first)  # it has been sent again
    assert "j" == asked.result()
    assert ["j"] == far.renew("b", 60 * SECOND), "the first call holds another job"


@LOST
def test_every_other_call_is_repeated_after_its_connection_is_lost(far, losses, lost):
    far.create("j", b"1", "a", flow_id="f", queued=True)
    far.acquire("b", ["f"], 60 * SECOND)
    with losses.once(lost):
        assert ["j"] == far.renew("b", 50 * SECOND)
    with losses.once(lost):
        far.keep_snapshot("j", 1, b"one")
    with losses.once(lost):
        assert (1, b"one") == far.snapshot("j")
    with losses.once(lost):
        assert [b"1"] == far.rows("j")
    with losses.once(lost):
        far.release("j", "b", 0)
    with losses.once(lost):
        assert 0 == far.free_in(["f"])


@pytest.fixture
def overtaken(
    far: PostgresStore, losses: Losses, admin: Any, monkeypatch: pytest.MonkeyPatch
) -> PostgresStore:
    """The next answer of the store is lost; before it asks again, host `b` resumes the job."""
    opened = far._database._opened

    def late(lost: Any) -> Any:
        admin.execute("UPDATE routilux_jobs SET owner = 'b'")
        admin.execute(
            "INSERT INTO routilux_commits SELECT job, max(seq) + 1, 'b', 'of b'"
            " FROM routilux_commits GROUP BY job"
        )
        return opened(lost)

    def next_is_lost(lost: str) -> None:
        monkeypatch.setattr(far._database, "_opened", late)
        losses._lost = lost

    monkeypatch.setattr(losses, "next", next_is_lost)
    return far


def test_a_create_whose_answer_is_lost_is_no_duplicate_if_another_host_resumes_the_job(
    overtaken, losses
):
    losses.next("answer")
    overtaken.create("j", b"1", "a", flow_id="f", queued=True)
    assert [b"1", b"of b"] == overtaken.rows("j")
    with pytest.raises(DuplicateJobError):
        overtaken.create("j", b"1", "a", flow_id="f", queued=True)


def test_an_overrule_whose_answer_is_lost_succeeds_if_another_host_resumes_the_job(
    overtaken, losses
):
    overtaken.create("j", b"1", "a", flow_id="f", queued=True)
    losses.next("answer")
    overtaken.overrule("j", 2, b"2", "operator", free=True)
    assert [b"1", b"2", b"of b"] == overtaken.rows("j")
    with pytest.raises(LeaseLostError, match="has 3 commits"):
        overtaken.overrule("j", 2, b"2", "operator", free=True)


def test_an_append_whose_answer_is_lost_loses_the_lease_if_another_host_resumes_the_job(
    overtaken, losses
):
    overtaken.create("j", b"1", "a", flow_id="f", queued=False)
    losses.next("answer")
    with pytest.raises(LeaseLostError, match="belongs to 'b' now"):
        overtaken.append("j", 2, b"2", "a", stopped=False)
    assert [b"1", b"2", b"of b"] == overtaken.rows("j")


# --- in the caller --------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, LookupError])
def test_an_interrupt_in_the_middle_of_a_call_leaves_the_store_usable(postgres, admin, dsn, error):
    def handler(*_: object) -> None:
        raise error

    def interrupt() -> None:
        until_one_waits(admin)
        signal.pthread_kill(main, signal.SIGUSR1)

    postgres.create("j", b"1", "a", flow_id="f", queued=False)
    main = threading.get_ident()
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with locked(dsn):
            call = Call(interrupt)
            with pytest.raises(error):
                postgres.append("j", 2, b"2", "a", stopped=False)
            assert None is call.result()
    finally:
        signal.signal(signal.SIGUSR1, before)
    postgres.append("j", 2, b"2", "a", stopped=False)
    assert [b"1", b"2"] == postgres.rows("j")


def test_a_host_that_is_suspended_locks_no_other_out(postgres, dsn):
    def claims() -> None:
        while b"claimed" != postgres.rows("j")[-1]:
            with suppress(LeaseLostError):  # the last append was still under way
                postgres.claim("j", len(postgres.rows("j")) + 1, b"claimed", "b", stopped=False)

    with processes(APPENDS, [dsn]) as [child]:
        line_of(child)
        child.send_signal(signal.SIGSTOP)
        assert None is Call(claims).result()
        child.send_signal(signal.SIGCONT)
        assert 0 != child.wait(PATIENCE)
    assert b"claimed" == postgres.rows("j")[-1]
