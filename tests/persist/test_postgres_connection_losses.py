"""Lost connections to PostgreSQL: each call takes effect once."""

from __future__ import annotations

import signal
import threading
from functools import partial

import pytest

from routilux import (
    DuplicateJobError,
    FakeClock,
    JobStatus,
    LeaseLostError,
    MemoryStore,
    PostgresStore,
    Runtime,
    Worker,
)
from tests.persist.hosts import (
    PATIENCE,
    Call,
    end_backends,
    locked,
    until_one_waits,
)
from tests.persist.losses import Losses
from tests.persist.stores import CALLS, acquire, with_jobs
from tests.routines import SECOND, chain, rest
from tests.soak import also, sampled

# --- on the server --------------------------------------------------------------------------------


def test_a_backend_that_was_ended_is_not_noticed_by_the_caller(postgres, admin):
    postgres.create("j", b"1", "a", flow_id="f", status="running")
    for seq in range(2, 5):
        assert 1 <= end_backends(admin)
        postgres.append("j", seq, b"%d" % seq, "a", status="running")
    assert [b"1", b"2", b"3", b"4"] == postgres.rows("j")


@pytest.mark.parametrize("times", [1, 2])
def test_a_backend_that_is_ended_in_the_middle_of_an_append_raises_the_second_time(
    postgres, admin, dsn, times
):
    postgres.create("j", b"1", "a", flow_id="f", status="running")
    with locked(dsn):
        append = Call(partial(postgres.append, "j", 2, b"2", "a", status="running"))
        for _ in range(times):
            admin.execute("SELECT pg_terminate_backend(%s, 10000)", (until_one_waits(admin),))
        if times == 1:
            until_one_waits(admin)  # it has been sent again
    if times == 1:
        assert None is append.result()
    else:
        error = append.result()
        assert isinstance(error, OSError)
        assert "terminating connection" in str(error)
    postgres.append("j", 2, b"2", "a", status="running")
    assert [b"1", b"2"] == postgres.rows("j")


def test_a_restart_of_the_server_is_not_noticed_by_the_caller(postgres, server):
    postgres.create("j", b"1", "a", flow_id="f", status="pending")
    server.restart()
    assert "j" == acquire(postgres, "b", ["f"], 60 * SECOND)
    postgres.claim("j", 2, b"2", "b", status="running")
    server.restart()
    assert ["j"] == postgres.renew("b", SECOND)


def test_a_server_that_is_down_is_reported_with_its_name_and_a_cure(postgres, server):
    server.stop()
    try:
        with pytest.raises(
            OSError, match=rf"the store host={server.folder} .*; check that the server"
        ):
            postgres.job_ids()
    finally:
        server.start()
    assert [] == postgres.job_ids()


def test_a_worker_continues_when_a_server_that_was_down_answers_again(dsn, server, monkeypatch):
    # The job that broke off is resumed soon.
    monkeypatch.setattr("routilux.worker.leases._RENEWALS", 1000)
    done: list[str] = []
    starting, first = threading.Thread(target=server.start), threading.Lock()

    def falls(self, n=0):
        if first.acquire(blocking=False):  # the jobs run in threads
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
def losses(server):
    with Losses(server.folder / ".s.PGSQL.5432") as losses:
        yield losses


@pytest.fixture
def far(dsn, server, losses):
    """A store behind a network that loses connections."""
    there = f"host=127.0.0.1 port={losses.port}"
    dsn = dsn.replace(f"host={server.folder}", there)
    with PostgresStore(dsn, clock=FakeClock()) as store:
        yield store


@pytest.mark.parametrize("lost", also("answer", "question"))
@pytest.mark.parametrize("call", sampled(CALLS, [*CALLS][::3]))
def test_a_call_whose_connection_is_lost_takes_effect_once(far, losses, lost, call):
    model = with_jobs(MemoryStore(FakeClock()))
    with_jobs(far)
    with losses.once(lost):
        found = CALLS[call](far)
    assert CALLS[call](model) == found
    assert model.holders() == far.holders()
    for job_id in model.job_ids():
        assert model.rows(job_id) == far.rows(job_id)
        assert model.snapshot(job_id) == far.snapshot(job_id)


def test_an_acquire_sent_again_while_the_server_executes_the_first_holds_one_job(
    far, losses, admin, dsn
):
    for job_id in "jkl":
        far.create(job_id, b"1", "a", flow_id="f", status="pending")
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


@pytest.fixture
def overtaken(far, losses, admin, monkeypatch):
    """The next answer of the store is lost; before it asks again, host `b` resumes the job."""
    opened = far._database._opened

    def late(lost):
        admin.execute("UPDATE routilux_jobs SET owner = 'b', seq = seq + 1")
        admin.execute(
            "INSERT INTO routilux_commits SELECT job, max(seq) + 1, 'b', 'of b'"
            " FROM routilux_commits GROUP BY job"
        )
        return opened(lost)

    def is_overtaken():
        monkeypatch.setattr(far._database, "_opened", late)
        losses.next("answer")

    return is_overtaken


def test_a_create_whose_answer_is_lost_is_no_duplicate_if_another_host_resumes_the_job(
    far, overtaken
):
    overtaken()
    far.create("j", b"1", "a", flow_id="f", status="pending")
    assert [b"1", b"of b"] == far.rows("j")
    with pytest.raises(DuplicateJobError):
        far.create("j", b"1", "a", flow_id="f", status="pending")


def test_an_overrule_whose_answer_is_lost_succeeds_if_another_host_resumes_the_job(far, overtaken):
    far.create("j", b"1", "a", flow_id="f", status="pending")
    overtaken()
    far.overrule("j", 2, b"2", "operator", status="pending")
    assert [b"1", b"2", b"of b"] == far.rows("j")
    with pytest.raises(LeaseLostError, match="the last commit of job 'j' is 3,"):
        far.overrule("j", 2, b"2", "operator", status="pending")


def test_an_append_whose_answer_is_lost_loses_the_lease_if_another_host_resumes_the_job(
    far, overtaken
):
    far.create("j", b"1", "a", flow_id="f", status="running")
    overtaken()
    with pytest.raises(LeaseLostError, match="belongs to 'b' now"):
        far.append("j", 2, b"2", "a", status="running")
    assert [b"1", b"2", b"of b"] == far.rows("j")


# --- in the caller --------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, LookupError])
def test_an_interrupt_in_the_middle_of_a_call_leaves_the_store_usable(postgres, admin, dsn, error):
    def handler(*_: object) -> None:
        raise error

    def interrupt() -> None:
        until_one_waits(admin)
        signal.pthread_kill(main, signal.SIGUSR1)

    postgres.create("j", b"1", "a", flow_id="f", status="running")
    main = threading.get_ident()
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with locked(dsn):
            call = Call(interrupt)
            with pytest.raises(error):
                postgres.append("j", 2, b"2", "a", status="running")
            assert None is call.result()
    finally:
        signal.signal(signal.SIGUSR1, before)
    postgres.append("j", 2, b"2", "a", status="running")
    assert [b"1", b"2"] == postgres.rows("j")
