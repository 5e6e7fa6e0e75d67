"""Real clients in async handlers: kept on the routine, closed at a timeout, and in simulations."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import httpx
import pytest

from pytest_routilux.sim.explore import explore
from pytest_routilux.sim.results import Checks
from pytest_routilux.sim.simulator.model import Case
from routilux import FakeClock, Flow, Routine, Runtime, SystemClock
from tests.clocks.real_clients import HOUR, Client, each_client
from tests.clocks.real_servers import Server, get, real_server
from tests.routines import PATIENCE, Works, chain, delays, retrying, run_by

HOWS = pytest.mark.parametrize("how", ["execute", "start", "aexecute"])
CLOCKS = pytest.mark.parametrize("make_clock", [FakeClock, SystemClock])


@pytest.fixture
def remote() -> Iterator[Server]:
    with real_server() as made:
        yield made


@each_client
@CLOCKS
@HOWS
def test_a_real_client_is_kept_on_the_routine_and_used_in_every_attempt(
    client: Client, make_clock, how, remote, dsn
):
    kept: list[Any] = []
    stack = AsyncExitStack()

    async def calls(self: Routine, n: object = 0) -> None:
        if not kept:
            kept.append(await stack.enter_async_context(client(remote, dsn)))
        await kept[0]()
        if self.ctx.attempt < 3:
            raise ConnectionError("busy")
        await stack.aclose()

    flow = chain(a=Works(calls, retrying(max_retries=2, retry_delay=0.001, retry_backoff=1)))
    with Runtime(clock=make_clock()) as runtime:
        job = run_by(how, flow, "a", runtime)
    assert [0.001, 0.001] == delays(job)
    assert "completed" == job.status


@asynccontextmanager
async def by_httpx(url: str) -> AsyncIterator[None]:
    async with httpx.AsyncClient(timeout=HOUR) as client:
        await client.get(url)
        yield


@asynccontextmanager
async def by_aiohttp(url: str) -> AsyncIterator[None]:
    async with aiohttp.ClientSession() as client:
        await get(client, url)
        yield


@asynccontextmanager
async def by_stream(url: str) -> AsyncIterator[None]:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rstrip("/").split(":")[2]))
    try:
        writer.write(b"hello\n")
        await reader.readline()
        yield
    finally:
        writer.close()


@pytest.mark.parametrize("request_by", [by_httpx, by_aiohttp, by_stream])
@CLOCKS
@HOWS
def test_a_server_sees_the_connection_close_when_the_attempt_that_made_it_times_out(
    request_by: Any, make_clock, how, remote
):
    remote.answers.clear()

    async def calls(self: Routine, n: object = 0) -> None:
        if not remote.seen:  # on a busy machine an attempt may end before it has sent anything
            async with request_by(remote.url):
                raise AssertionError("the server does not answer")

    flow = chain(a=Works(calls, retrying(max_retries=None, timeout=0.05, retry_delay=0)))
    with Runtime(clock=make_clock()) as runtime:
        job = run_by(how, flow, "a", runtime)
        remote.answers.set()
        assert remote.closed.acquire(timeout=PATIENCE)
    errors = [commit.error for commit in job.commits if commit.error is not None]
    assert {"routilux.StepTimeoutError"} == {error.type for error in errors}
    assert [None] == [*{error.traceback for error in errors}], "kept of the last attempt alone"
    message = errors[-1].message
    assert " took longer than its timeout of 0.05 s: it waited at " in message
    assert ("real_servers.py" if request_by is by_aiohttp else "test_async_clients.py") in message


@pytest.mark.parametrize("request_by", [by_aiohttp, by_stream])
def test_every_crash_point_of_a_handler_with_a_real_client_is_tried(request_by: Any, remote):
    async def calls(self: Routine, n: object = 0) -> None:
        async with request_by(remote.url):
            self.emit("out")

    def build() -> Flow:
        return chain(a=calls, b=lambda self, n=0: None)

    found = explore(Case(build, "a"), FakeClock().now_ns(), Checks())
    assert [] == found.failures
    assert found.coverage.word == "complete"
