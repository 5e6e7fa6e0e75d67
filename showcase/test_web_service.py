"""An asyncio web service over real HTTP, in virtual time: two other services fail at first."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import httpx

from routilux import JobStatus
from showcase.services.web import SECOND, Parts, listen, quotes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_routilux import FlowMonitor, FlowReport
    from routilux import Runtime
    from showcase.services.web import Answer

LAMP = {"article": "lamp", "cents": 1250, "pieces": 4}
OUTAGE: dict[str, Sequence[Answer]] = {"/price/lamp": ["503", "503"], "/stock/lamp": ["hangs"]}


async def get(
    *articles: str, scripts: Mapping[str, Sequence[Answer]], patience: float = 60
) -> tuple[Parts, list[tuple[int, object, int]]]:
    """Start all servers, ask for the quotes of all articles at once, and stop the servers.

    Returns for each article the status, the answer, and the nanoseconds that the answer took.
    """
    parts = Parts(scripts)

    async def ask(article: str) -> tuple[int, object, int]:
        began = time.monotonic_ns()
        answer = await client.get(f"{web}/quotes/{article}")
        return answer.status_code, answer.json(), time.monotonic_ns() - began

    async with (
        listen(parts.app) as services,
        listen(quotes(services, patience)) as web,
        httpx.AsyncClient(trust_env=False, timeout=None) as client,
    ):
        return parts, await asyncio.gather(*map(ask, articles))


def test_a_request_waits_for_the_retries_of_both_services(
    flow_runtime: Runtime, flow_monitor: FlowMonitor, flow_report: FlowReport
) -> None:
    parts, answers = asyncio.run(get("lamp", scripts=OUTAGE))

    flow_report.timeline(flow_monitor, title="🛎️ A web service asks two others")
    with flow_report.verification("One request, five calls, no real second") as verify:
        [(status, quote, took)] = answers
        verify("status", 200, status)
        verify("quote", LAMP, quote)
        verify("ns that it took", 2_500_000_000, took)
        verify("price answered", "503 at 0 s, 503 at 0.5 s, 200 at 1.5 s", parts.calls("price"))
        # The timeout of an attempt closes its connection.
        verify("stock answered", "hangs until 2 s, 200 at 2.5 s", parts.calls("stock"))
        verify("connections", 3, len(parts.clients))
    flow_monitor.assert_retried("price", times=2, delays=[0.5, 1.0])
    flow_monitor.assert_retried("stock", times=1, delays=[0.5])


def test_requests_wait_for_their_retries_at_the_same_time(
    flow_runtime: Runtime, flow_report: FlowReport
) -> None:
    articles = [f"lamp-{number}" for number in range(20)]
    scripts: dict[str, Sequence[Answer]] = {f"/price/{name}": ["503"] for name in articles}

    _, answers = asyncio.run(get(*articles, scripts=scripts))

    with flow_report.verification("🛎️ Twenty requests that wait", brief=True) as verify:
        verify("status", {200}, {status for status, _, _ in answers})
        verify("ns that each took", {SECOND // 2}, {took for _, _, took in answers})


def test_a_request_that_takes_too_long_cancels_its_job(
    flow_runtime: Runtime, flow_monitor: FlowMonitor, flow_report: FlowReport
) -> None:
    parts, answers = asyncio.run(get("lamp", scripts=OUTAGE, patience=1.25))

    with flow_report.verification("🛎️ A request has 1.25 s", brief=True) as verify:
        verify("answer", [(504, {"error": "try later"}, 1_250_000_000)], answers)
        verify("price answered", "503 at 0 s, 503 at 0.5 s", parts.calls("price"))
        verify("stock answered", "hangs until 1.25 s", parts.calls("stock"))
    flow_monitor.assert_status(JobStatus.CANCELLED)


def test_an_error_that_stays_is_the_answer(
    flow_runtime: Runtime, flow_monitor: FlowMonitor, flow_report: FlowReport
) -> None:
    _, answers = asyncio.run(get("lamp", scripts={"/price/lamp": ["404"]}))

    error = "LookupError: lamp: HTTP 404"
    with flow_report.verification("🛎️ No such article", brief=True) as verify:
        verify("answer", [(502, {"error": error}, 0)], answers)
    flow_monitor.assert_retried("price", times=0)
