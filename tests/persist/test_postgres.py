"""The store in PostgreSQL beyond the contract: many hosts on one database."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from collections import Counter
from functools import partial
from typing import Any, cast

import pytest

from routilux import (
    Append,
    FakeClock,
    LeaseLostError,
    PostgresStore,
    Routine,
    Runtime,
    Worker,
)
from tests.persist.hosts import (
    PATIENCE,
    Call,
    go,
    line_of,
    locked,
    processes,
    rest_of,
    until_one_waits,
)
from tests.persist.postgres_server import Server, with_option
from tests.persist.stores import acquire
from tests.routines import SECOND, chain

# --- durable --------------------------------------------------------------------------------------


def setting(store: PostgresStore, name: str) -> str:
    return str(store._do(f"SHOW {name}").rows[0][0])


def test_a_commit_is_flushed_also_where_the_server_would_not_wait_for_that(dsn: str) -> None:
    with PostgresStore(with_option(dsn, "synchronous_commit=off")) as store:
        assert "on" == setting(store, "synchronous_commit")


@pytest.mark.parametrize("chosen", ["local", "remote_write", "remote_apply"])
def test_the_number_of_servers_that_a_commit_waits_for_is_the_operators_choice(
    dsn: str, chosen: str
) -> None:
    with PostgresStore(with_option(dsn, f"synchronous_commit={chosen}")) as store:
        assert chosen == setting(store, "synchronous_commit")


def test_a_default_isolation_that_is_stricter_makes_no_difference(dsn: str) -> None:
    strict = with_option(dsn, "default_transaction_isolation=serializable")
    with PostgresStore(strict) as store:
        assert "read committed" == setting(store, "transaction_isolation")


def test_rows_that_were_accepted_are_there_after_a_crash_of_the_server(
    postgres: PostgresStore, server: Server
) -> None:
    postgres.create("j", b"1", "a", flow_id="f", queued=False)
    for seq in range(2, 10):
        postgres.append("j", seq, b"%d" % seq, "a", stopped=False)
    server.restart(signal.SIGQUIT)
    postgres.append("j", 10, b"10", "a", stopped=False)
    assert [b"%d" % seq for seq in range(1, 11)] == postgres.rows("j")


# --- many hosts -----------------------------------------------------------------------------------


def test_of_many_hosts_that_make_the_tables_at_once_all_succeed(server: Server) -> None:
    def opens(dsn: str, gate: threading.Barrier) -> None:
        gate.wait(PATIENCE)
        PostgresStore(dsn).close()

    for _ in range(5):
        dsn, gate = server.dsn(), threading.Barrier(8)
        calls = [Call(opens, dsn, gate) for _ in range(8)]
        assert [None] * 8 == [call.result() for call in calls]


SHARES = """
import sys
sys.stdin.readline()
from routilux import PostgresStore
store = PostgresStore(sys.argv[1])
for number in range(10):
    store.create(f"{sys.argv[2]}-{number}", b"row", "a", flow_id="f", queued=True)
while acquired := store.acquire(sys.argv[2], ["f"], 10**12):
    print(acquired.job_id)
print("renewed", *sorted(store.renew(sys.argv[2], 10**12)))
store.close()
"""


def test_processes_that_start_at_once_make_the_tables_once_and_get_different_jobs(dsn: str) -> None:
    with processes(SHARES, *([dsn, number] for number in range(4))) as children:
        go(children)
        told = [rest_of(child).splitlines() for child in children]
    taken = [lines[:-1] for lines in told]
    names = [f"{host}-{number}" for host in range(4) for number in range(10)]
    assert names == sorted(job_id for job_ids in taken for job_id in job_ids)
    assert [" ".join(["renewed", *sorted(mine)]) for mine in taken] == [lines[-1] for lines in told]


def test_of_many_hosts_that_claim_at_once_exactly_one_succeeds(dsn: str) -> None:
    stores = [PostgresStore(dsn) for _ in range(4)]

    def claim(store: PostgresStore, owner: str, job_id: str, gate: threading.Barrier) -> None:
        gate.wait(PATIENCE)
        store.claim(job_id, 2, b"2", owner, stopped=False)

    for number in range(10):
        job_id, gate = f"job {number}", threading.Barrier(4)
        stores[0].create(job_id, b"1", "a", flow_id="f", queued=False)
        calls = [Call(claim, store, f"host {i}", job_id, gate) for i, store in enumerate(stores)]
        got = Counter(type(call.result()) for call in calls)
        assert {type(None): 1, LeaseLostError: 3} == got
    for store in stores:
        store.close()


def test_an_append_that_waited_while_another_host_took_the_job_is_refused(
    postgres: PostgresStore, admin: Any
) -> None:
    postgres.create("j", b"1", "a", flow_id="f", queued=False)
    with admin.transaction():
        admin.execute("UPDATE routilux_jobs SET owner = 'b'")
        late = Call(partial(postgres.append, "j", 2, b"2", "a", stopped=False))
        until_one_waits(admin)
    refused = late.result()
    assert isinstance(refused, LeaseLostError)
    assert "job 'j' belongs to 'b' now; commit 2 of 'a' was refused" == str(refused)
    assert [b"1"] == postgres.rows("j")


@pytest.mark.parametrize("other", ["append_all", "renew"])
@pytest.mark.parametrize("held_up", ["j", "k"])
def test_hosts_that_write_to_the_same_jobs_in_another_order_do_not_wait_for_each_other(
    dsn: str, admin: Any, held_up: str, other: str
) -> None:
    rows = {job_id: Append(job_id, 2, b"2", "a", False) for job_id in "jk"}
    with PostgresStore(dsn) as one, PostgresStore(dsn) as two:
        for job_id in "kj":  # by number they stand in the other order
            one.create(job_id, b"1", "a", flow_id="f", queued=True)
            one.acquire("a", ["f"], 60 * SECOND)
        with locked(dsn, f"SELECT FROM routilux_jobs WHERE job_id = '{held_up}' FOR UPDATE"):
            first = Call(one.append_all, [rows["k"], rows["j"]])
            begun = until_one_waits(admin)
            if other == "renew":
                second = Call(two.renew, "a", 60 * SECOND)
            else:
                second = Call(two.append_all, [rows["j"], rows["k"]])
            until_one_waits(admin, beside=begun)
        assert [None, None] == first.result()
        found = second.result()
        assert [None, None] == found or ["j", "k"] == sorted(cast("list[str]", found))


def test_each_row_has_one_writer_that_owned_the_job_under_concurrent_hosts(dsn: str) -> None:
    """Four hosts claim, append to, release and acquire one job, each as fast as it can."""
    accepted: list[tuple[int, str]] = []

    def host(owner: str) -> None:
        chance = random.Random(owner)
        with PostgresStore(dsn) as store:
            for _ in range(60):
                seq = len(store.rows("j")) + 1
                row = f"{owner} {seq}".encode()
                stopped = chance.random() < 0.3
                store.acquire(owner, ["f"], SECOND // 1000)
                try:
                    if chance.random() < 0.5:
                        store.claim("j", seq, row, owner, stopped=stopped)
                    else:
                        store.append("j", seq, row, owner, stopped=stopped)
                    accepted.append((seq, owner))
                except LeaseLostError:
                    store.release("j", owner, 0)

    with PostgresStore(dsn) as store:
        store.create("j", b"1", "a", flow_id="f", queued=True)
        calls = [Call(host, owner) for owner in "bcde"]
        assert [None] * 4 == [call.result() for call in calls]
        rows = store.rows("j")
    assert [f"{owner} {seq}".encode() for seq, owner in sorted(accepted)] == rows[1:]
    assert len(rows) > 20


def test_the_time_is_the_servers(postgres: PostgresStore, admin: Any) -> None:
    at = "SELECT extract(epoch FROM clock_timestamp())"
    before = admin.execute(at).fetchone()[0]
    postgres.create("j", b"1", "a", flow_id="f", queued=True)
    after = admin.execute(at).fetchone()[0]
    (free_at,) = admin.execute("SELECT free_at FROM routilux_jobs").fetchone()
    assert before * SECOND <= free_at <= after * SECOND
    assert "j" == acquire(postgres, "b", ["f"], 1)
    assert "j" == acquire(postgres, "c", ["f"], 60 * SECOND)  # that lease is over, this one is not
    assert None is acquire(postgres, "d", ["f"], 1)


# --- workers --------------------------------------------------------------------------------------

HOSTS = 3
JOBS = 60  # more than all but one of the hosts can have in hand


def test_workers_share_the_load_and_each_job_is_driven_exactly_once(
    postgres: PostgresStore,
) -> None:
    """No host ends a job until all have begun one."""
    begun = threading.Event()
    driven: list[tuple[str, str]] = []
    with Runtime(store=postgres) as runtime:
        job_ids = [runtime.submit(chain(a=lambda self: None), "a") for _ in range(JOBS)]

    def host(name: str) -> None:
        def drives(self: Routine) -> None:
            driven.append((name, self.ctx.job_id))
            if HOSTS == len({host for host, _ in driven}):
                begun.set()
            assert begun.wait(PATIENCE), "not every host got a job of its own"

        with Runtime(store=postgres) as runtime:
            Worker(postgres, [chain(a=drives)], runtime=runtime).run(until_idle=True)

    calls = [Call(host, f"host {number}") for number in range(HOSTS)]
    assert [None] * HOSTS == [call.result() for call in calls]
    assert sorted(job_ids) == sorted(job_id for _, job_id in driven)
    assert {f"host {number}" for number in range(HOSTS)} == {host for host, _ in driven}
    assert {("start", "resumed", "done")} == stories(postgres)


def stories(store: PostgresStore) -> set[tuple[str, ...]]:
    with Runtime(store=store) as runtime:
        jobs = [runtime.load(job_id, history=True) for job_id in store.job_ids()]
    return {tuple(commit.kind.value for commit in job.commits) for job in jobs}


DRIVES = """
import os, sys, threading
from routilux import PostgresStore, Worker
from tests.routines import chain
first, begun = threading.Lock(), threading.Event()
def drives(self):
    os.write(1, f"{self.ctx.job_id}\\n".encode())  # print would write the line in two parts
    if first.acquire(blocking=False):
        sys.stdin.readline()
        begun.set()
    begun.wait()
with PostgresStore(sys.argv[1]) as store:
    Worker(store, [chain(a=drives)]).run(until_idle=True)
"""


def test_processes_share_the_load_and_each_job_is_driven_exactly_once(
    postgres: PostgresStore, dsn: str
) -> None:
    with Runtime(store=postgres) as runtime:
        job_ids = [runtime.submit(chain(a=lambda self: None), "a") for _ in range(JOBS)]
    with processes(DRIVES, *[[dsn]] * HOSTS) as children:
        first = [line_of(child) for child in children]
        assert HOSTS == len({*first} & {*job_ids}), "not every process got a job of its own"
        go(children)
        told = [rest_of(child).split() for child in children]
    assert sorted(job_ids) == sorted([*first, *(job_id for lines in told for job_id in lines)])
    assert {("start", "resumed", "done")} == stories(postgres)


# --- threads and forks ----------------------------------------------------------------------------


def test_threads_that_ask_at_once_have_a_few_connections_between_them(
    postgres: PostgresStore,
) -> None:
    gate = threading.Barrier(8)

    def asks() -> int:
        gate.wait(PATIENCE)
        return backend_of(postgres)

    for _ in range(10):
        calls = [Call(asks) for _ in range(8)]
        assert [int] * 8 == [type(call.result()) for call in calls]
    (count,) = postgres._do(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'routilux'"
    ).rows[0]
    assert count <= 8


def backend_of(store: PostgresStore) -> int:
    return int(store._do("SELECT pg_backend_pid()").rows[0][0])


def test_a_forked_child_uses_connections_of_its_own(postgres: PostgresStore) -> None:
    postgres.create("j", b"1", "a", flow_id="f", queued=False)
    backend = backend_of(postgres)
    child = os.fork()
    if child == 0:
        # Python tells so of a connection that is dropped while it is open.
        sys.unraisablehook = lambda _: os._exit(2)
        try:
            postgres.append("j", 2, b"2", "a", stopped=False)
            assert backend != backend_of(postgres)
            postgres.close()
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert 0 == os.waitstatus_to_exitcode(status)
    postgres.append("j", 3, b"3", "a", stopped=False)
    assert backend == backend_of(postgres)
    assert [b"1", b"2", b"3"] == postgres.rows("j")


def test_a_store_that_was_closed_is_opened_again_when_it_is_used(postgres: PostgresStore) -> None:
    with postgres:
        postgres.create("j", b"1", "a", flow_id="f", queued=False)
    assert ["j"] == postgres.job_ids()
    postgres.close()
    postgres.close()


def test_a_clock_that_is_given_is_the_stores_time(dsn: str) -> None:
    clock = FakeClock()
    with PostgresStore(dsn, clock=clock) as store:
        store.create("j", b"1", "a", flow_id="f", queued=True)
        store.acquire("b", ["f"], 60 * SECOND)
        clock.advance(60)
        assert 0 == store.free_in(["f"])
