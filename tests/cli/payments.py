"""The flow, the clock and the program calls of the tests of the command line."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol

from routilux import ErrorHandler, FakeClock, Flow, Routine
from routilux.persist.rows import row_place, with_checksum, without_checksum
from tests.routines import PATIENCE, Works, retrying

ROOT = Path(__file__).parents[2]
START = "2026-01-01T12:00:00"
SECOND = 10**9

# Compiled under a short file name, because a timeline shows where an error was raised.
_shop: dict[str, Any] = {}
exec(
    compile(
        "def unreachable():\n    raise ConnectionError('the gateway does not answer')\n"
        "def homeless():\n    raise ValueError('no address')\n",
        "shop.py",
        "exec",
    ),
    _shop,
)
unreachable, homeless = _shop["unreachable"], _shop["homeless"]


def payment(failures: int = 2, *, retries: int = 4, delay: float = 0.5) -> Flow:
    def charge(self: Routine, order: str) -> None:
        self.ctx.sleep(0.12)
        if self.ctx.attempt <= failures:
            unreachable()
        receipt = self.ctx.once("charge", f"{order} is {{}}".format, "paid")
        self.ctx.state["order"] = order
        self.ctx.shared["paid"] = True
        items = [{"id": k, "name": "pen"} for k in (1, 2, 3)]
        self.emit("output", receipt=receipt, items=items)

    def ship(self: Routine, receipt: str) -> None:
        self.ctx.sleep(0.8)
        self.emit("shipped", parcel=f"parcel of what {receipt}")

    def mail(self: Routine, receipt: str) -> None:
        homeless()

    flow = Flow("payment")
    flow.add_routine(Works(charge, output=["receipt", "items"]), "charge")
    flow.add_routine(Works(ship, shipped=["parcel"]), "ship")
    flow.add_routine(Works(mail, ErrorHandler("continue")), "mail")
    for target in ("ship", "mail"):
        flow.connect("charge", "output", target, "trigger")
    flow.set_error_handler(retrying(max_retries=retries, retry_delay=delay))
    return flow


def after(seconds: float, **options: bool) -> FakeClock:
    clock = FakeClock(START, autojump=False)
    clock.advance(seconds)
    return FakeClock(clock.now(), **options)


NOW = after(3600)


def replace_in_rows(store: Path, old: str, new: str, where: str = "") -> None:
    """Replace a text in the rows of a store and update their checksums."""

    def replaced(job_id: str, seq: int, row: bytes) -> bytes:
        place = row_place(job_id, seq)
        text = without_checksum(row, place).replace(old.encode(), new.encode())
        return with_checksum(text, place)

    with sqlite3.connect(store) as db:
        db.create_function("replaced", 3, replaced)
        job_id = "(SELECT job_id FROM jobs WHERE jobs.job = commits.job)"
        db.execute(f"UPDATE commits SET row = replaced({job_id}, seq, row) {where}")
    db.close()


class Call(Protocol):
    """Runs a command and returns its output."""

    def __call__(self, *arguments: object, status: int = 0) -> str: ...


def command(
    *arguments: object, folder: Path, encoding: str = "utf-8", **options: Any
) -> subprocess.CompletedProcess[str]:
    env = {name: text for name, text in os.environ.items() if name != "COLUMNS"}
    return subprocess.run(
        [sys.executable, "-m", "routilux", *map(str, arguments)],
        cwd=folder,
        env={**env, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding},
        encoding="utf-8",
        timeout=PATIENCE,
        check=False,
        **{"capture_output": True, **options},
    )
