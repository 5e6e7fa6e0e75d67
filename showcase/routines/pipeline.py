"""A data pipeline of four routines: fetch, process (which fails at first), validate, store.

The results are computed; only the durations and the fault are scripted. Time comes from `ctx`, so
the same classes run on the fake clock of a test and on a real host.
"""

from __future__ import annotations

from typing import Final, TypedDict

from routilux import Routine

__all__ = [
    "DataFetchRoutine",
    "DataProcessRoutine",
    "DataStorageRoutine",
    "DataValidatorRoutine",
]


class Item(TypedDict):
    """One article, as it was fetched."""

    id: int
    name: str
    price: float


class Order(TypedDict):
    """The order of one request, as it was fetched."""

    user_id: str
    items: list[Item]
    total_items: int
    request_id: str


class Processed(TypedDict):
    """A processed order: prices with tax, and statistics."""

    user_id: str
    items: list[dict[str, object]]
    total_items: int
    request_id: str
    statistics: dict[str, float]


_CATALOGUE: Final[tuple[Item, ...]] = (
    {"id": 1, "name": "Laptop", "price": 999.99},
    {"id": 2, "name": "Mouse", "price": 29.5},
    {"id": 3, "name": "Monitor", "price": 349.0},
)
_TAX: Final = 0.2


class DataFetchRoutine(Routine):
    """Fetches the order of a request; `fetch_duration` is in seconds."""

    def __init__(self, fetch_duration: float = 0.8) -> None:
        super().__init__()
        self.fetch_duration = fetch_duration
        self.define_slot("trigger", handler=self.fetch)
        self.define_event("output", ["data", "metadata", "timestamp"])

    def fetch(self, request_id: str) -> None:
        """Emit the order, where it came from, and when."""
        self.ctx.sleep(self.fetch_duration)
        data: Order = {
            "user_id": "user-42",
            "items": list(_CATALOGUE),
            "total_items": len(_CATALOGUE),
            "request_id": request_id,
        }
        self.emit(
            "output",
            data=data,
            metadata={"source": "catalogue", "schema": 1, "region": "eu"},
            timestamp=self.ctx.now().isoformat(),
        )


class DataProcessRoutine(Routine):
    """Adds tax and statistics; the first `failures` attempts meet a transient `ValueError`.

    The fault depends on the number of the attempt, which the job keeps: a fresh host that resumes
    at attempt 3 meets the same fault as the host of attempts 1 and 2.
    """

    def __init__(self, failures: int = 0, process_duration: float = 0.5) -> None:
        super().__init__()
        self.failures = failures
        self.process_duration = process_duration
        self.define_slot("input", handler=self.process)
        self.define_event("output", ["data", "metadata"])

    def process(self, data: Order, metadata: dict[str, object]) -> None:
        """Emit the order with its items transformed and counted."""
        self.ctx.sleep(self.process_duration)
        if self.ctx.attempt <= self.failures:
            raise ValueError(f"tax table is locked, try {self.ctx.attempt}")
        prices = [item["price"] for item in data["items"]]
        processed: Processed = {
            "user_id": data["user_id"],
            "items": [
                {**item, "gross": round(item["price"] * (1 + _TAX), 2)} for item in data["items"]
            ],
            "total_items": data["total_items"],
            "request_id": data["request_id"],
            "statistics": {
                "sum": round(sum(prices), 2),
                "mean": round(sum(prices) / len(prices), 2),
                "dearest": max(prices),
            },
        }
        self.emit("output", data=processed, metadata={**metadata, "attempt": self.ctx.attempt})


class DataValidatorRoutine(Routine):
    """Checks the quality of what was processed and reports on it."""

    def __init__(self) -> None:
        super().__init__()
        self.define_slot("input", handler=self.validate)
        self.define_event("output", ["data", "report"])

    def validate(self, data: Processed) -> None:
        """Emit the data with its validation report; data that fails a check is an error."""
        items = data["items"]
        checks = {
            "complete": len(items) == data["total_items"],
            "unique_ids": len({item["id"] for item in items}) == len(items),
            "priced": all(item["gross"] for item in items),
        }
        if not all(checks.values()):
            raise RuntimeError(f"order {data['request_id']} is of poor quality: {checks}")
        report = {"request_id": data["request_id"], "valid": True, "checks": checks}
        self.emit("output", data=data, report=report)


class DataStorageRoutine(Routine):
    """Writes the items to the job's shared data, with a record of the transaction."""

    def __init__(self) -> None:
        super().__init__()
        self.define_slot("input", handler=self.store)
        self.define_event("output", ["transaction"])

    def store(self, data: Processed, report: dict[str, object]) -> None:
        """Write every item, then emit the transaction that did it."""
        transaction = {
            "transaction_id": self.ctx.idempotency_key,
            "request_id": data["request_id"],
            "rows": len(data["items"]),
            "valid": report["valid"],
            "committed_at": self.ctx.now().isoformat(),
        }
        self.ctx.shared["rows"] = data["items"]
        self.ctx.shared["transactions"] = [transaction]
        self.emit("output", transaction=transaction)
