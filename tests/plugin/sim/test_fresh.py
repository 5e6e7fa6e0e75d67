"""`fresh=`: handlers that change a real database or a real folder."""

from __future__ import annotations

import sqlite3
from functools import partial

import pytest

from pytest_routilux.sim.explore import explore
from pytest_routilux.sim.results import Checks
from pytest_routilux.sim.simulator.model import Case
from routilux import FakeClock, Flow, FlowDefinitionError
from tests.routines import Works, chain, retrying, send
from tests.soak import also

START = FakeClock().now_ns()


class Shop:
    """A database with its flow: an order is entered, looked up and paid; it never runs twice."""

    def __init__(self, path, *, keyed=True, workers=None, tries=0) -> None:
        self.path, self.keyed, self.workers, self.tries = path, keyed, workers, tries
        self.resets = 0

    def fresh(self) -> None:
        self.resets += 1
        self.path.unlink(missing_ok=True)
        self.sql("CREATE TABLE orders (id TEXT PRIMARY KEY)")
        self.sql("CREATE TABLE payments (key TEXT PRIMARY KEY, amount INT)")

    def sql(self, text, *values):
        with sqlite3.connect(self.path) as db:
            found = db.execute(text, values).fetchall()
        db.close()
        return found

    def enters(self, routine, n=0) -> None:
        self.sql("INSERT OR IGNORE INTO orders VALUES (?)", routine.ctx.idempotency_key)
        routine.emit("out", n=routine.ctx.idempotency_key)

    def pays(self, routine, n="") -> None:
        assert [(n,)] == self.sql("SELECT id FROM orders"), "the order of the commit before"
        routine.ctx.sleep(1)
        routine.ctx.once("note", str, "paid")
        count = self.sql("SELECT count(*) FROM payments")[0][0]
        key = routine.ctx.key("pay") if self.keyed else f"payment {count}"
        self.sql("INSERT OR IGNORE INTO payments VALUES (?, 20)", key)
        if routine.ctx.attempt <= self.tries:
            raise ConnectionError

    def build(self) -> Flow:
        handler = retrying(retry_delay=2.0)
        return chain(
            workers=self.workers,
            start=send,
            enter=Works(partial(lambda shop, routine, n: shop.enters(routine, n), self)),
            pay=Works(partial(lambda shop, routine, n: shop.pays(routine, n), self), handler),
        )

    def paid(self, outcome=None) -> bool:
        return self.sql("SELECT count(*), sum(amount) FROM payments") == [(1, 20)]

    def tables(self, outcome=None) -> list[object]:
        return self.sql("SELECT * FROM orders") + self.sql("SELECT * FROM payments")


@pytest.mark.parametrize("tries", also(1, 0))
@pytest.mark.parametrize("workers", also(None, 2))
@pytest.mark.parametrize("isolated", also(True, False))
def test_each_run_finds_the_database_as_the_crash_left_it(
    isolated, workers, tries, tmp_path, flow_sim
):
    shop = Shop(tmp_path / "shop.db", workers=workers, tries=tries)
    coverage = flow_sim.crash_everywhere(
        shop.build,
        "start",
        isolated=isolated,
        fresh=shop.fresh,
        invariant=shop.paid,
        view=shop.tables,
    )
    assert "complete" == coverage.word
    assert shop.resets > coverage.executed.total()


def test_a_row_that_is_inserted_again_after_a_crash_is_found(tmp_path, flow_sim):
    shop = Shop(tmp_path / "shop.db", keyed=False)
    crashes = partial(flow_sim.crash_everywhere, shop.build, "start", fresh=shop.fresh)
    with pytest.raises(pytest.fail.Exception) as failed:
        crashes(invariant=shop.paid)
    text = str(failed.value)
    assert "INVARIANT: the invariant does not hold: the function returned False" in text
    assert "task 0.0.0 pay, attempt 1: " in text
    assert "0 crashes" not in text
    with pytest.raises(pytest.fail.Exception, match=r"VIEW DIFFERS: view\(outcome\).*\[view-"):
        crashes(view=shop.tables)


def test_without_fresh_the_first_run_is_in_the_way_of_all_others(tmp_path, flow_sim):
    shop = Shop(tmp_path / "shop.db", keyed=False)
    shop.fresh()
    with pytest.raises(pytest.fail.Exception, match="smallest cause  0 crashes"):
        flow_sim.crash_everywhere(shop.build, "start", invariant=shop.paid)


def test_a_check_of_determinism_resets_before_each_run(tmp_path, flow_sim):
    shop = Shop(tmp_path / "shop.db", keyed=False)

    def counts(self, n=0) -> None:
        shop.sql("INSERT INTO payments VALUES (?, 1)", f"{len(shop.tables())}")
        self.emit("out", n=len(shop.tables()))

    flow_sim.check_determinism(partial(chain, a=counts), "a", fresh=shop.fresh)
    shop.fresh()
    with pytest.raises(pytest.fail.Exception, match="NOT DETERMINISTIC"):
        flow_sim.check_determinism(partial(chain, a=counts), "a")


def test_an_error_of_fresh_reaches_the_test(flow_sim):
    def fresh() -> None:
        raise OSError("no database")

    with pytest.raises(OSError, match="no database"):
        flow_sim.crash_everywhere(partial(chain, a=send), "a", fresh=fresh)


def test_fresh_is_a_plain_function(flow_sim):
    async def resets() -> None:
        """Never awaited."""

    crashes = partial(flow_sim.crash_everywhere, partial(chain, a=send), "a")
    with pytest.raises(FlowDefinitionError, match=r"fresh=\[\] can't be called; give a function"):
        crashes(fresh=[])
    for name in ("fresh", "invariant", "always", "view"):
        with pytest.raises(FlowDefinitionError, match=f"{name}=.* is async, and nothing awaits it"):
            crashes(**{name: resets})


def test_each_crash_repeats_the_handlers_that_had_started(tmp_path):
    """The prefix of every crash point is the undisturbed run's, handler by handler."""
    ran: list[str] = []
    runs: list[list[str]] = []

    def fresh() -> None:
        runs.append(ran.copy())
        ran.clear()

    def logs(self, n=0) -> None:
        ran.append(f"{self.ctx.task_id}@{self.ctx.attempt}")
        self.ctx.sleep(1)
        if self.ctx.attempt == 1:
            raise ConnectionError
        self.emit("out", n=n)

    def build() -> Flow:
        flow = chain(a=logs, b=logs, c=logs)
        flow.set_error_handler(retrying(retry_delay=3.0))
        return flow

    result = explore(Case(build, "a", fresh=fresh), START, Checks(isolated=False))
    assert [] == result.failures
    whole = [f"{task}@{attempt}" for task in ("0", "0.0", "0.0.0") for attempt in (1, 2)]
    for run in runs[1:]:
        assert whole == list(dict.fromkeys(run)), "each handler ran, in order"
    twice = [len(run) - len(whole) for run in runs[1:]]
    executed = result.coverage.executed
    interrupted = executed["before a write"] + executed["store refuses"] - 2  # not the start
    interrupted += executed["in a sleep"]
    assert interrupted == sum(twice) == twice.count(1)
