"""Before an effect the store is asked for the owner: a host that lost its job runs no effect."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from routilux import (
    FakeClock,
    Flow,
    JobStatus,
    JobStore,
    LeaseLostError,
    Runtime,
    Worker,
    cancel_job,
    retry_job,
)
from routilux.engine.drive import Drive
from tests.persist.stores import STORES, acquire
from tests.routines import PATIENCE, SECOND, Works, chain, run_by
from tests.worker.jobs import TAKEN_OVER, hosted, statuses, worker

LOST = "now: this host runs no further effect of it and ignores its steps"


@pytest.fixture
def stepped() -> FakeClock:
    """The clock of the store, which a test sets; the hosts have clocks of their own."""
    return FakeClock()


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path, stepped: FakeClock) -> Iterator[JobStore]:
    with STORES[request.param](tmp_path, stepped) as made:
        yield made


def once(self: Any, done: list[str]) -> None:
    self.ctx.once("charge", done.append, f"charge {self.ctx.job_id}")


def key(self: Any, done: list[str]) -> None:
    done.append(f"charge {self.ctx.key('charge').split('/')[0]}")


def idempotency_key(self: Any, done: list[str]) -> None:
    done.append(f"charge {self.ctx.idempotency_key.split('/')[0]}")


class Charges(Works):
    """Its first host loses each job between two effects; `ended` tells when that handler ended."""

    def __init__(
        self, done: list[str], loses: Callable[[Any], object], charges: Callable[..., None] = once
    ) -> None:
        ran: set[str] = set()

        def pays(self):
            self.ctx.once("reserve", done.append, f"reserve {self.ctx.job_id}")
            first = self.ctx.job_id not in ran
            ran.add(self.ctx.job_id)
            try:
                if first:
                    loses(self)
                charges(self, done)
            finally:
                if first:
                    self.ended.set()

        super().__init__(pays)
        self.ended = threading.Event()


def charging(
    done: list[str], loses: Callable[[Any], object], charges: Callable[..., None] = once
) -> Flow:
    return chain(a=Charges(done, loses, charges))


def lost_by(host: Worker, flow: Flow, job_id: str) -> Drive:
    """The drive of a job that a worker takes and loses, after its handler has ended."""
    assert host._take(False)
    drive = host._drives[job_id]
    drive.environment.clock.wait(drive.stopped, None, who="the test")
    assert flow.routines["a"].ended.wait(PATIENCE)
    with drive.environment.lock:  # until the worker is notified
        host._maintain()
    assert {} == host._drives
    return drive


def run_elsewhere(store: JobStore, flow: Flow) -> None:
    """Let a worker of another process run all jobs that it can take."""
    with Runtime(clock=FakeClock(), store=store) as other:
        host = worker(other, flow)
        while host._take(False):
            pass
        host.stop()
        host.run()


# --- a clock that is set --------------------------------------------------------------------------


def test_a_store_whose_clock_runs_ahead_of_the_hosts_runs_no_effect_on_two_hosts(
    runtime, store, stepped, caplog
):
    caplog.set_level("INFO")
    done: list[str] = []
    steps: list[str] = []

    def loses(self):
        self.ctx.sleep(1)  # until all jobs are here
        if not steps:
            steps.append("60 s ahead")
            stepped.advance(60)
            run_elsewhere(store, flow)
        assert done.count(f"charge {self.ctx.job_id}") == 1, "the other host ran them all"

    flow = charging(done, loses)
    ids = [runtime.submit(flow, "a", job_id=f"job {number:02}") for number in range(16)]
    worker(runtime, flow).run(until_idle=True)
    assert [f"charge {job_id}" for job_id in ids] == sorted(d for d in done if "charge" in d)
    assert {"completed"} == statuses(runtime, ids)
    assert 16 == sum(message.endswith(LOST) for message in caplog.messages)


def test_a_store_clock_set_back_leaves_a_job_to_its_owner(runtime, store, stepped):
    done: list[str] = []
    flow = charging(done, lambda _: stepped.jump(-3600))
    host, job_id = hosted(runtime, flow)
    host.run(until_idle=True)
    assert [f"reserve {job_id}", f"charge {job_id}"] == done
    assert {"completed"} == statuses(runtime, [job_id])


# --- an operator, or another process --------------------------------------------------------------


def take_over(store: JobStore, flow: Flow, job_id: str) -> None:
    retry_job(store, job_id, take_over=True, clock=FakeClock())


def take_over_and_run(store: JobStore, flow: Flow, job_id: str) -> None:
    take_over(store, flow, job_id)
    run_elsewhere(store, flow)


def cancel(store: JobStore, flow: Flow, job_id: str) -> None:
    cancel_job(store, job_id, clock=FakeClock())


def resume_elsewhere(store: JobStore, flow: Flow, job_id: str) -> None:
    with Runtime(clock=FakeClock(), store=store) as other:
        other.resume(flow, other.load(job_id))


def losing(
    how: str, charges: Callable[..., None], loses: Callable[..., None], runtime: Runtime
) -> tuple[list[str], list[str], LeaseLostError]:
    """Run job j until it loses its owner; return effects and refusals, and the owner's error."""
    store = runtime.store
    assert store is not None
    done: list[str] = []
    refused: list[str] = []

    def charges_or_notes(self: Any, done: list[str]) -> None:
        try:
            charges(self, done)
        except LeaseLostError as error:
            refused.append(str(error))
            raise

    flow = charging(done, lambda self: loses(store, flow, self.ctx.job_id), charges_or_notes)
    if how != "worker":
        with pytest.raises(LeaseLostError) as caught:
            run_by(how, flow, "a", runtime)
        assert flow.routines["a"].ended.wait(PATIENCE)
        return done, refused, caught.value
    runtime.submit(flow, "a", job_id="j")
    drive = lost_by(worker(runtime, flow), flow, "j")
    assert isinstance(drive.error, LeaseLostError)
    return done, refused, drive.error


@pytest.mark.parametrize("loses", [take_over, take_over_and_run, cancel, resume_elsewhere])
@pytest.mark.parametrize("how", ["execute", "start", "worker"])
def test_a_living_owner_is_fenced_before_its_next_effect(how, loses, runtime, store, caplog):
    if (how, loses) == ("worker", resume_elsewhere):
        loses = take_over  # its lease forbids to resume it elsewhere
    caplog.set_level("INFO")
    done, refused, error = losing(how, once, loses, runtime)
    elsewhere = loses in (take_over_and_run, resume_elsewhere)
    assert ["reserve j", *["charge j"] * elsewhere] == done
    assert [str(error)] == refused
    assert str(error).startswith("job 'j' ")
    assert str(error).endswith(LOST)
    assert refused == [m for m in caplog.messages if m.endswith(LOST)] or how != "worker"
    status = JobStatus.CANCELLED if loses is cancel else JobStatus.PENDING
    assert runtime.load("j").status is (JobStatus.COMPLETED if elsewhere else status)


@pytest.mark.parametrize("charges", [once, key, idempotency_key])
@pytest.mark.parametrize("store", ["memory"], indirect=True)
def test_each_way_to_an_effect_asks_the_store(charges, runtime, store):
    done, refused, error = losing("start", charges, take_over, runtime)
    assert ["reserve j"] == done
    assert [str(error)] == refused
    assert f"job 'j' is free to be taken by any host {LOST}" == str(error)


@pytest.mark.parametrize("store", ["memory"], indirect=True)
def test_a_job_that_is_not_in_the_store_any_more_has_no_further_effect(runtime, store):
    def removes(store, flow, job_id):
        del store._jobs[job_id]

    done, _, error = losing("execute", once, removes, runtime)
    assert ["reserve j"] == done
    assert f"job 'j' is not in the store {LOST}" == str(error)


@pytest.mark.parametrize("store", ["memory"], indirect=True)
def test_a_store_that_can_not_be_asked_ends_the_run_and_no_effect_runs(runtime, store):
    done: list[str] = []

    def fails(self):
        store.holders = partial(_raises, OSError("it is down"))

    with pytest.raises(OSError, match="it is down"):
        run_by("execute", charging(done, fails), "a", runtime)
    assert ["reserve j"] == done
    assert JobStatus.RUNNING is runtime.load("j").status, "it is no failure of the handler"


def _raises(error: Exception, *_: object) -> Any:
    raise error


@pytest.mark.parametrize("store", ["memory"], indirect=True)
def test_a_host_that_knows_its_loss_does_not_ask_again(runtime, store):
    done: list[str] = []

    def loses(self):
        take_over(store, flow, self.ctx.job_id)
        host._renew()
        store.holders = partial(_raises, AssertionError("it asks"))

    flow = charging(done, loses)
    host, job_id = hosted(runtime, flow)
    drive = lost_by(host, flow, job_id)
    assert [f"reserve {job_id}"] == done
    assert f"job '{job_id}' {TAKEN_OVER}" == str(drive.error)


# --- a host that was suspended for longer than its lease ------------------------------------------


def test_a_host_whose_lease_has_ended_renews_it_before_an_effect(runtime, store, stepped):
    done: list[str] = []

    def loses(self):
        stepped.advance(31)

    def charges(self, done):
        self.ctx.once("charge", lambda: done.append(str(acquire(store, "b", ["tale"], SECOND))))

    flow = charging(done, loses, charges)
    host, job_id = hosted(runtime, flow)
    host.run(until_idle=True)
    assert [f"reserve {job_id}", "None"] == done, "no host can take the job during the effect"
    assert {"completed"} == statuses(runtime, [job_id])


def test_of_two_hosts_only_the_faster_one_has_the_effect_when_a_lease_ended(
    runtime, store, stepped
):
    done: list[str] = []
    renew = store.renew

    def renews(owner, lease_ns):
        store.renew = renew
        assert job_id == acquire(store, "b", ["tale"], 3600 * SECOND)
        return renew(owner, lease_ns)

    def loses(self):
        stepped.advance(31)
        store.renew = renews

    flow = charging(done, loses)
    host, job_id = hosted(runtime, flow)
    drive = lost_by(host, flow, job_id)
    assert [f"reserve {job_id}"] == done
    assert f"job '{job_id}' belongs to 'b' {LOST}" == str(drive.error)
