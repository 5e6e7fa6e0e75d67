"""From an HTTP API into a SQLite database, and a notification: real parts that fail for real.

Invariants:
- A routine turns the errors of its parts into the errors that its retry policy names.
- A write carries the task's idempotency key. So an attempt whose answer was lost can run again, and
  the row exists once.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, Request, build_opener

from routilux import Routine

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["APICallRoutine", "DatabaseWriteRoutine", "NotificationRoutine"]

_PASSING: Final = (502, 503, 504)
_open = build_opener(ProxyHandler({})).open

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS order_lines (
    idempotency_key TEXT, line INTEGER, sku TEXT, quantity INTEGER, price REAL, written_at TEXT,
    PRIMARY KEY (idempotency_key, line)
);
CREATE TABLE IF NOT EXISTS inserts (idempotency_key TEXT, attempt INTEGER, added INTEGER);
"""


class APICallRoutine(Routine):
    """Gets an order from an HTTP API; an outage that may pass is a `ConnectionError`."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.define_slot("trigger", handler=self.call)
        self.define_event("output", ["order", "request_id", "fetched_at"])

    def call(self, order_id: str, request_id: str) -> None:
        request = Request(f"{self.url}/orders/{order_id}", headers={"X-Request-Id": request_id})
        try:
            with _open(request, timeout=10) as answer:
                order = json.load(answer)
        except HTTPError as error:
            with error:
                if error.code not in _PASSING:
                    raise LookupError(f"order {order_id}: HTTP {error.code}") from None
                raise ConnectionError(f"HTTP {error.code} {error.reason}") from None
        except URLError as error:
            raise ConnectionError(getattr(error.reason, "strerror", None)) from None
        fetched_at = datetime.now(UTC).isoformat()
        self.emit("output", order=order, request_id=request_id, fetched_at=fetched_at)


class DatabaseWriteRoutine(Routine):
    """Writes an order's lines; a database that is busy or lost is a `RuntimeError`.

    On the attempts in `lost_answers` the connection is lost after the rows were committed.
    The table `inserts` keeps how many rows each attempt added.
    """

    def __init__(self, path: str, lost_answers: Sequence[int] = ()) -> None:
        super().__init__()
        self.path = path
        self.lost_answers = frozenset(lost_answers)
        self.define_slot("input", handler=self.write)
        self.define_event("output", ["order_id", "customer", "rows"])

    def write(self, order: dict[str, object]) -> None:
        lines = cast("list[dict[str, object]]", order["lines"])
        try:
            self._insert(lines)
        except sqlite3.OperationalError as error:
            raise RuntimeError(str(error)) from None
        if self.ctx.attempt in self.lost_answers:
            raise RuntimeError("connection lost after COMMIT")
        self.emit("output", order_id=order["order_id"], customer=order["customer"], rows=len(lines))

    def _insert(self, lines: list[dict[str, object]]) -> None:
        key = self.ctx.idempotency_key
        written_at = datetime.now(UTC).isoformat()
        # timeout=0: the retry policy waits for a lock, not the database driver.
        with closing(sqlite3.connect(self.path, timeout=0)) as database:
            database.executescript(_SCHEMA)
            with database:  # one transaction
                added = database.executemany(
                    "INSERT INTO order_lines VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                    [
                        (key, number, line["sku"], line["quantity"], line["price"], written_at)
                        for number, line in enumerate(lines, 1)
                    ],
                ).rowcount
                database.execute(
                    "INSERT INTO inserts VALUES (?, ?, ?)", (key, self.ctx.attempt, added)
                )


class NotificationRoutine(Routine):
    """Notifies the customer once: appends a message to an outbox file."""

    def __init__(self, outbox: str) -> None:
        super().__init__()
        self.outbox = outbox
        self.define_slot("input", handler=self.notify)
        self.define_event("output", ["message"])

    def notify(self, order_id: str, customer: str, rows: int) -> None:
        message = f"{customer}: order {order_id} is in, {rows} lines"
        self.ctx.once("send", self._send, message)
        self.emit("output", message=message)

    def _send(self, message: str) -> None:
        with Path(self.outbox).open("a", encoding="utf-8") as outbox:
            outbox.write(f"{message}\n")
