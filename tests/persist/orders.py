"""A flow of orders, captured after each commit; shared by the tests of saved forms."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

from routilux import (
    Commit,
    ErrorHandler,
    ExecutionMonitor,
    FakeClock,
    Flow,
    JobState,
    Routine,
    Runtime,
    SavedState,
)

START = "2026-01-03T12:59:03+00:00"
GOLDEN = Path(__file__).parent.parent / "golden"
KEY = b"the key that the golden files are signed with"


class Fetch(Routine):
    routine_name = "document/fetch"

    def __init__(self, items: tuple[str, ...] = ("tea", "cup"), *, took: float = 0.8) -> None:
        super().__init__()
        self.items, self.took = items, took
        self.define_slot("trigger", handler=self.fetch)
        self.define_event("output", ["data", "metadata"])

    def fetch(self, request_id: str) -> None:
        self.ctx.sleep(self.took)
        data = {"items": self.items, "price": Decimal("1.50"), "day": date(2026, 1, 3)}
        self.emit("output", data=data, metadata={"request_id": request_id, "ids": {1, 2}})


class Process(Routine):
    routine_name = "document/process"

    def __init__(self, failures: int = 2) -> None:
        super().__init__()
        self.failures = failures
        self.define_slot("input", handler=self.process)
        self.define_event("output", ["total", "seen"])

    def process(self, data: dict[str, Any], metadata: dict[str, Any]) -> None:
        self.ctx.sleep(0.5)
        receipt = self.ctx.once("reserve", str, len(data["items"]))
        if self.ctx.attempt <= self.failures:
            raise ValueError(f"attempt {self.ctx.attempt} of {metadata['request_id']}")
        self.ctx.state["receipt"] = receipt
        self.ctx.shared["day"] = data["day"]
        self.emit("output", total=data["price"] * 2, seen=float("nan"))


class Audit(Routine):
    routine_name = "document/audit"

    def __init__(self) -> None:
        super().__init__()
        self.define_slot("input", handler=self.audit)

    def audit(self, metadata: dict[str, Any]) -> None:
        raise LookupError("no auditor")


def pipeline(failures: int = 2, *, audit: bool = False, **options: Any) -> Flow:
    flow = Flow("orders", **options)
    flow.add_routine(Fetch(("tea", "cup", "pot")), "fetch")
    flow.add_routine(Process(failures), "process")
    flow.connect("fetch", "output", "process", "input")
    flow.routines["process"].set_error_handler(
        ErrorHandler(
            "retry",
            max_retries=4,
            retry_delay=0.3,
            retry_backoff=1.5,
            retryable_exceptions=(ValueError,),
        )
    )
    if audit:
        flow.add_routine(Audit(), "audit")
        flow.set_error_handler(ErrorHandler("skip"))
        flow.connect("fetch", "output", "audit", "input")
    return flow


class Captures:
    """Captures a job after each commit, as an observer may."""

    def __init__(self, flow: Flow, monitor: ExecutionMonitor | None = None) -> None:
        self.flow, self.monitor = flow, monitor
        self.commits: list[Commit] = []
        self.taken: list[SavedState] = []

    def on_commit(self, job: JobState, commit: Commit) -> None:
        self.commits.append(commit)
        self.taken.append(SavedState.capture(self.flow, job, self.monitor))


def run(flow: Flow, **options: Any) -> tuple[JobState, Captures]:
    captures = Captures(flow)
    with Runtime(clock=FakeClock(START), observers=[captures], **options) as runtime:
        job = flow.execute("fetch", {"request_id": "r-1"}, job_id="job-1", runtime=runtime)
    assert [] == runtime.observer_failures
    return job, captures


def at_retry(flow: Flow, number: int) -> SavedState:
    _, captures = run(flow)
    return next(saved for saved in captures.taken if saved.retry_count == number)


def seal(members: dict[str, Any]) -> bytes:
    """Write a document in its usual layout, with the right digest."""
    lines = [
        f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}"
        for name, value in members.items()
        if name != "digest"
    ]
    body = ("{" + ",\n".join(lines)).encode()
    return body + f',\n"digest": "sha256:{hashlib.sha256(body).hexdigest()}"}}\n'.encode()


DROPPED, DOUBLED = object(), object()


def spoil(document: Any, path: str, value: object) -> None:
    """Change the member of a document that has a path such as `commits[4].attempt`.

    `DROPPED` removes it, and `DOUBLED` repeats the last entry of a list.
    """
    *above, last = (int(n) if n.isdigit() else n for n in re.findall(r"[^.\[\]]+", path))
    for step in above:
        document = document[step]
    if value is DROPPED:
        del document[last]
    elif value is DOUBLED:
        document[last].append(copy.deepcopy(document[last][-1]))
    else:
        document[last] = value
