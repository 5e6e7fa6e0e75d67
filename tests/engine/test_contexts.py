"""Context variables: those of the code that starts a job reach its handlers, copied once a job."""

from __future__ import annotations

import asyncio
import contextvars
import decimal
import gc
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from routilux import Clock, FakeClock, MemoryStore, Runtime, SystemClock, Worker
from routilux.engine.drive import Drive
from tests.routines import MODES, PATIENCE, Works, chain, fan, rest, retrying, run_by, send

TENANT: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")
POOLS = pytest.mark.parametrize("pool", [None, 1, 3])
HANDLERS = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])


def recording(seen: list[str], *, is_async: bool) -> Any:
    def body(self, n=0):
        seen.append(TENANT.get())
        TENANT.set("a handler")
        if self.ctx.attempt == 1:
            raise ValueError
        self.emit("out", n=n)

    async def async_body(self, n=0):
        await asyncio.sleep(0)
        body(self, n)

    return Works(async_body if is_async else body, retrying(retry_delay=0))


def start_by(how: str, flow: Any, runtime: Runtime) -> None:
    """Start a job as one tenant, and become another tenant before it has ended."""
    if how == "start":
        run = flow.start("a", runtime=runtime)
        TENANT.set("someone else")
        run.wait(PATIENCE)
    elif how == "resume":
        job = flow.execute("a", job_id="first", runtime=Runtime(clock=FakeClock())).at(1)
        TENANT.set("blue")
        flow.resume(job, runtime=runtime)
    else:
        run_by(how, flow, "a", runtime)


@pytest.mark.parametrize("how", ["execute", "start", "aexecute", "resume"])
@POOLS
@HANDLERS
@MODES
def test_the_context_of_the_starter_reaches_every_attempt_of_every_handler(
    how, pool, is_async, workers
):
    seen: list[str] = []
    flow = chain(workers=workers, a=recording(seen, is_async=is_async), b=rest)
    flow.add_routine(recording(seen, is_async=is_async), "c")
    flow.connect("a", "out", "c", "trigger")

    def starts() -> None:
        TENANT.set("blue")
        with ExitStack() as stack:
            clock: Clock = FakeClock()
            executor = None
            if pool is not None:
                clock = SystemClock()
                executor = stack.enter_context(ThreadPoolExecutor(pool))
            runtime = stack.enter_context(Runtime(clock=clock, executor=executor))
            start_by(how, flow, runtime)
        assert "a handler" != TENANT.get(), "a handler changes the context of its caller"

    contextvars.copy_context().run(starts)
    assert ["blue"] * 4 == seen[-4:]


def test_jobs_of_two_tenants_on_one_runtime_do_not_mix():
    seen: dict[str, set[str]] = {}

    def body(self, n=0):
        seen.setdefault(self.ctx.job_id, set()).add(TENANT.get())
        self.ctx.sleep(1)

    flow = fan(send, workers=3, a=body, b=body, c=body)
    with Runtime(clock=FakeClock()) as runtime:
        runs = []
        for tenant in ("red", "blue", "green") * 5:
            token = TENANT.set(tenant)
            runs.append(flow.start("source", job_id=f"{tenant} {len(runs)}", runtime=runtime))
            TENANT.reset(token)
        for run in runs:
            run.wait()
    assert 15 == len(seen)
    assert all({job_id.split()[0]} == tenants for job_id, tenants in seen.items())


@pytest.mark.parametrize("pool", [None, 2])
def test_a_job_of_a_worker_has_no_context_of_its_starter(pool):
    seen: list[str] = []
    flow = chain(a=recording(seen, is_async=False))

    def submits() -> None:
        TENANT.set("blue")
        store = MemoryStore()
        with ExitStack() as stack:
            executor = None if pool is None else stack.enter_context(ThreadPoolExecutor(pool))
            runtime = stack.enter_context(Runtime(store=store, executor=executor))
            runtime.submit(flow, "a")
            Worker(store, [flow], runtime=runtime).run(until_idle=True)

    contextvars.copy_context().run(submits)
    assert ["nobody"] * 2 == seen


def test_a_child_job_has_the_context_of_the_handler_that_starts_it():
    seen: list[str] = []

    def child_body(self, n=0):
        seen.append(TENANT.get())

    def parent(self, n=0):
        TENANT.set("the parent")
        chain(a=child_body).execute("a", runtime=runtime)
        chain(a=child_body).start("a", runtime=runtime).wait()

    with Runtime(clock=FakeClock()) as runtime:
        chain(a=parent).start("a", runtime=runtime).wait().raise_for_status()
    assert ["the parent"] * 2 == seen


def test_the_decimal_precision_of_the_starter_holds_in_its_handlers():
    def body(self, n=0):
        self.emit("out", n=str(decimal.Decimal(1) / 3))

    with decimal.localcontext(prec=5), Runtime(clock=FakeClock()) as runtime:
        for how in ("execute", "start"):
            job = (
                chain(a=body).start("a", runtime=runtime).wait()
                if how == "start"
                else chain(a=body).execute("a", runtime=runtime)
            )
            assert ["0.33333"] == [output.data["n"] for output in job.outputs]


def test_a_job_that_starts_the_next_one_is_freed():
    last, ended = 60, []

    def starts_the_next(self, n=0):
        ended.append(n)
        if n < last:
            runs.append(flow.start("a", {"n": n + 1}, runtime=runtime))

    def drives():
        gc.collect()
        return sum(type(found) is Drive for found in gc.get_objects())

    before = drives()  # what earlier tests have left
    flow = chain(a=starts_the_next)
    with Runtime(clock=FakeClock()) as runtime:
        runs = [flow.start("a", runtime=runtime)]
        for n in range(last + 1):
            runs[n].wait(PATIENCE)
            runs[n] = None
    assert last == ended[-1]
    alive = drives() - before
    assert alive < 10, f"{alive} of {last} jobs are still in memory"
