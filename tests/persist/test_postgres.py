"""What the store in PostgreSQL promises beyond the contract: many connections, and its errors."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from routilux import (
    LeaseLostError,
    PostgresStore,
    Routine,
    Runtime,
    UnsupportedVersionError,
    Worker,
)
from tests.drivers.workshop import PATIENCE, chain
from tests.persist import postgres_server
from tests.persist.stores import acquire

SECOND = 10**9


@pytest.fixture
def dsn() -> str:
    postgres_server.need()
    return postgres_server.fresh_dsn()


@pytest.fixture
def stores(dsn: str) -> Iterator[list[PostgresStore]]:
    """Four hosts, each with a connection of its own."""
    made = [PostgresStore(dsn) for _ in range(4)]
    yield made
    for store in made:
        store.close()


@pytest.fixture
def store(stores: list[PostgresStore]) -> PostgresStore:
    return stores[0]


def at_once(stores: list[PostgresStore], call: Callable[[PostgresStore, str], Any]) -> list[Any]:
    """What the hosts get from a call that all make at once: its result, or LeaseLostError."""
    gate = threading.Barrier(len(stores))
    got: list[Any] = []

    def run(store: PostgresStore, owner: str) -> None:
        gate.wait(PATIENCE)
        try:
            got.append(call(store, owner))
        except LeaseLostError:
            got.append(LeaseLostError)

    threads = [
        threading.Thread(target=run, args=(store, f"host {i}")) for i, store in enumerate(stores)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    return got


def test_of_many_hosts_that_make_the_tables_at_once_all_succeed(dsn: str) -> None:
    gate = threading.Barrier(6)
    made: list[PostgresStore] = []

    def make() -> None:
        gate.wait(PATIENCE)
        made.append(PostgresStore(dsn))

    threads = [threading.Thread(target=make) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert 6 == len(made)
    for store in made:
        store.close()


def test_of_many_hosts_that_claim_at_once_exactly_one_succeeds(stores: list[PostgresStore]) -> None:
    for number in range(10):
        job_id = f"job {number}"
        stores[0].create(job_id, b"1", "a", flow_id="f", queued=False)
        got = at_once(stores, partial(_claim, job_id))
        assert (1, 3) == (got.count(None), got.count(LeaseLostError))


def _claim(job_id: str, store: PostgresStore, owner: str) -> None:
    store.claim(job_id, 2, b"2", owner, rests=False)


def test_many_hosts_that_acquire_at_once_get_a_job_each(stores: list[PostgresStore]) -> None:
    for number in range(10):
        for job in range(4):
            stores[0].create(f"{number}.{job}", b"1", "a", flow_id="f", queued=True)
        got = at_once(stores, lambda store, owner: acquire(store, owner, ["f"], 60 * SECOND))
        assert {f"{number}.{job}" for job in range(4)} == set(got)


def test_an_append_waits_for_a_host_that_is_about_to_take_the_job_and_is_then_refused(
    stores: list[PostgresStore],
) -> None:
    old, new = stores[:2]
    old.create("j", b"1", "old", flow_id="f", queued=False)
    refused: list[LeaseLostError] = []

    def append() -> None:
        try:
            old.append("j", 2, b"late", "old", rests=False)
        except LeaseLostError as error:
            refused.append(error)

    thread = threading.Thread(target=append)
    with new._writing() as db:
        db.execute("UPDATE routilux_jobs SET owner = 'new'")
        thread.start()
        waits = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        while not db.execute(waits).fetchone()[0]:
            assert thread.is_alive(), "it did not wait for the lock"
    thread.join(PATIENCE)
    assert ["job 'j' belongs to 'new' now; commit 2 of 'old' was refused"] == list(
        map(str, refused)
    )
    assert [b"1"] == new.rows("j")


def test_workers_on_many_hosts_share_the_jobs_and_each_is_done_once(
    stores: list[PostgresStore],
) -> None:
    ran: list[str] = []

    def notes(self: Routine) -> None:
        ran.append(self.ctx.job_id)

    flow = chain(a=notes)
    runtimes = [Runtime(store=store) for store in stores]
    job_ids = [runtimes[0].submit(flow, "a") for _ in range(20)]
    threads = [
        threading.Thread(
            target=Worker(store, [flow], runtime=runtime).run, kwargs={"until_idle": True}
        )
        for store, runtime in zip(stores, runtimes, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(job_ids) == sorted(ran)
    assert {"completed"} == {runtimes[0].load(job_id).status.value for job_id in job_ids}
    for runtime in runtimes:
        runtime.close()


def test_the_time_is_the_servers(store: PostgresStore) -> None:
    store.create("j", b"1", "a", flow_id="f", queued=True)
    assert 0 == store.free_in(["f"])
    assert "j" == acquire(store, "b", ["f"], 60 * SECOND)
    assert 59 * SECOND < (store.free_in(["f"]) or 0) <= 60 * SECOND


def test_a_forked_child_uses_a_connection_of_its_own(store: PostgresStore) -> None:
    store.create("j", b"1", "a", flow_id="f", queued=False)
    child = os.fork()
    if child == 0:
        try:
            store.append("j", 2, b"2", "a", rests=False)
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert 0 == os.waitstatus_to_exitcode(status)
    store.append("j", 3, b"3", "a", rests=False)
    assert [b"1", b"2", b"3"] == store.rows("j")


# --- what can be wrong ----------------------------------------------------------------------------


def test_a_server_that_is_not_there_is_named_without_the_password() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(OSError, match=r"the store host=/nowhere dbname=d: .*No such file") as told:
        PostgresStore("host=/nowhere dbname=d password=secret")
    assert "secret" not in str(told.value)


def test_a_connection_that_broke_is_told_and_the_next_use_opens_another(
    stores: list[PostgresStore],
) -> None:
    store, other = stores[:2]
    store.create("j", b"1", "a", flow_id="f", queued=False)
    with store._using() as db:
        (process,) = db.execute("SELECT pg_backend_pid()").fetchone()
    with other._using() as db:
        db.execute("SELECT pg_terminate_backend(%s, 10000)", (process,))
    with pytest.raises(OSError, match=r"terminating connection.*what was committed before"):
        store.append("j", 2, b"2", "a", rests=False)
    store.append("j", 2, b"2", "a", rests=False)
    assert [b"1", b"2"] == store.rows("j")


def test_tables_of_a_newer_version_are_refused(dsn: str, store: PostgresStore) -> None:
    with store._using() as db:
        db.execute("INSERT INTO routilux_version VALUES (2)")
    with pytest.raises(UnsupportedVersionError, match=r"has version 2.*install a newer routilux"):
        PostgresStore(dsn)


def test_without_its_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ImportError, match=r"pip install 'routilux\[postgres\]'"):
        PostgresStore("host=/nowhere")
