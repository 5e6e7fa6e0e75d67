"""PostgresStore: durability, many hosts on one database, forks, and ids that it can't hold."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial

import pytest

from routilux import (
    Append,
    FakeClock,
    LeaseLostError,
    PostgresStore,
    Runtime,
    SavedStateError,
    UnserializableError,
)
from tests.engine.concurrency import at_once, in_a_child
from tests.persist.hosts import (
    Call,
    go,
    line_of,
    locked,
    processes,
    rest_of,
    until_one_waits,
)
from tests.persist.postgres_server import with_option
from tests.persist.stores import acquire
from tests.routines import PATIENCE, SECOND, chain, rest
from tests.soak import also

# --- durable --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "name", "used"),
    [
        ("synchronous_commit=off", "synchronous_commit", "on"),
        ("synchronous_commit=local", "synchronous_commit", "local"),
        ("synchronous_commit=remote_apply", "synchronous_commit", "remote_apply"),
        ("default_transaction_isolation=serializable", "transaction_isolation", "read committed"),
    ],
)
def test_a_commit_is_flushed_whatever_the_defaults_of_the_server_are(dsn, asked, name, used):
    with PostgresStore(with_option(dsn, asked)) as store:
        assert [(used,)] == store._do(f"SHOW {name}").rows


def test_rows_that_were_accepted_are_there_after_a_crash_of_the_server(postgres, server):
    postgres.create("j", b"1", "a", flow_id="f", status="running")
    for seq in range(2, 10):
        postgres.append("j", seq, b"%d" % seq, "a", status="running")
    server.restart(signal.SIGQUIT)
    postgres.append("j", 10, b"10", "a", status="running")
    assert [b"%d" % seq for seq in range(1, 11)] == postgres.rows("j")


# --- many hosts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rounds", also(1, 5))
def test_of_many_hosts_that_make_the_tables_at_once_all_succeed(server, rounds):
    def opens(dsn, gate):
        gate.wait(PATIENCE)
        PostgresStore(dsn).close()

    for _ in range(rounds):
        dsn, gate = server.dsn(), threading.Barrier(8)
        calls = [Call(opens, dsn, gate) for _ in range(8)]
        assert [None] * 8 == [call.result() for call in calls]


def test_an_append_that_waited_while_another_host_took_the_job_is_refused(postgres, admin):
    postgres.create("j", b"1", "a", flow_id="f", status="running")
    with admin.transaction():
        admin.execute("UPDATE routilux_jobs SET owner = 'b'")
        late = Call(partial(postgres.append, "j", 2, b"2", "a", status="running"))
        until_one_waits(admin)
    refused = late.result()
    assert isinstance(refused, LeaseLostError)
    assert "job 'j' belongs to 'b' now; commit 2 of 'a' was refused" == str(refused)
    assert [b"1"] == postgres.rows("j")


@pytest.mark.parametrize("other", ["append_all", "renew"])
@pytest.mark.parametrize("held_up", ["j", "k"])
def test_hosts_that_write_to_the_same_jobs_in_another_order_do_not_deadlock(
    dsn, admin, held_up, other
):
    rows = {job_id: Append(job_id, 2, b"2", "a", "running") for job_id in "jk"}
    with PostgresStore(dsn) as one, PostgresStore(dsn) as two:
        for job_id in "kj":  # by number they stand in the other order
            one.create(job_id, b"1", "a", flow_id="f", status="pending")
            one.acquire("a", ["f"], 60 * SECOND)
        calls = {
            "renew": partial(two.renew, "a", 60 * SECOND),
            "append_all": partial(two.append_all, [rows["j"], rows["k"]]),
        }
        with locked(dsn, f"SELECT FROM routilux_jobs WHERE job_id = '{held_up}' FOR UPDATE"):
            first = Call(one.append_all, [rows["k"], rows["j"]])
            started = until_one_waits(admin)
            second = Call(calls[other])
            until_one_waits(admin, other_than=started)
        assert [None, None] == first.result()
        assert second.result() in ([None, None], ["j", "k"], ["k", "j"])


def test_each_row_has_one_writer_that_owned_the_job_under_concurrent_hosts(dsn):
    """Four hosts claim, append to, release and acquire one job, each as fast as it can."""
    accepted: list[tuple[int, str]] = []

    def host(owner: str) -> None:
        chance = random.Random(owner)
        with PostgresStore(dsn) as store:
            for _ in range(60):
                seq = len(store.rows("j")) + 1
                row = f"{owner} {seq}".encode()
                status = "paused" if chance.random() < 0.3 else "running"
                store.acquire(owner, ["f"], SECOND // 1000)
                try:
                    if chance.random() < 0.5:
                        store.claim("j", seq, row, owner, status=status)
                    else:
                        store.append("j", seq, row, owner, status=status)
                    accepted.append((seq, owner))
                except LeaseLostError:
                    store.release("j", owner, 0)

    with PostgresStore(dsn) as store:
        store.create("j", b"1", "a", flow_id="f", status="pending")
        calls = [Call(host, owner) for owner in "bcde"]
        assert [None] * 4 == [call.result() for call in calls]
        rows = store.rows("j")
    assert [f"{owner} {seq}".encode() for seq, owner in sorted(accepted)] == rows[1:]
    assert len(rows) > 20


def test_the_time_is_the_servers(postgres, admin):
    at = "SELECT extract(epoch FROM clock_timestamp())"
    before = admin.execute(at).fetchone()[0]
    postgres.create("j", b"1", "a", flow_id="f", status="pending")
    after = admin.execute(at).fetchone()[0]
    (free_at,) = admin.execute("SELECT free_at FROM routilux_jobs").fetchone()
    assert before * SECOND <= free_at <= after * SECOND
    assert "j" == acquire(postgres, "b", ["f"], 1)
    assert "j" == acquire(postgres, "c", ["f"], 60 * SECOND)  # that lease is over, this one is not
    assert None is acquire(postgres, "d", ["f"], 1)


# --- a server whose clock is set ------------------------------------------------------------------


@pytest.fixture
def pair(dsn):
    """Two stores with clocks that show the server's time, which `jump` sets for both."""
    one, two = FakeClock(), FakeClock()
    with PostgresStore(dsn, clock=one) as first, PostgresStore(dsn, clock=two) as second:

        def passes(seconds: float, *, jump: float = 0) -> None:
            for clock in (one, two):
                clock.advance(seconds)
                clock.jump(jump)

        yield first, second, passes


def test_a_lease_outlives_a_servers_clock_that_is_set_forward(pair):
    first, second, passes = pair
    passes(100)
    for job_id in "jk":
        first.create(job_id, b"1", "a", flow_id="f", status="pending")
    assert "j" == acquire(first, "a", ["f"], 30 * SECOND)
    passes(1, jump=60)
    assert "k" == acquire(second, "b", ["f"], 10**6 * SECOND), "it was queued, and needs no clock"
    assert None is acquire(second, "b", ["f"], 30 * SECOND)
    assert 30 * SECOND == second.free_in(["f"])
    passes(20)
    assert ["j"] == first.renew("a", 30 * SECOND)
    passes(20)
    assert None is acquire(second, "b", ["f"], 30 * SECOND), "it was renewed"
    passes(11)
    assert "j" == acquire(second, "b", ["f"], 30 * SECOND), "it was renewed 31 s ago"


def test_no_wait_is_longer_than_it_was_after_a_servers_clock_was_set_back(pair):
    first, second, passes = pair
    for job_id, flow_id in (("j", "f"), ("k", "g")):
        first.create(job_id, b"1", "a", flow_id=flow_id, status="pending")
        assert job_id == acquire(first, "a", [flow_id], 30 * SECOND)
    first.release("k", "a", 2 * SECOND)
    passes(1, jump=-3600)
    assert [30 * SECOND, 2 * SECOND] == [second.free_in([flow_id]) for flow_id in "fg"]
    assert 30 * SECOND == second.holders("j")["j"].free_in_ns
    passes(2)
    assert "k" == acquire(second, "b", ["g"], SECOND)
    assert 28 * SECOND == second.free_in(["f"])
    passes(28)
    assert "j" == acquire(second, "b", ["f"], SECOND)


def test_a_store_that_opens_after_the_servers_clock_was_set_back_begins_the_waits_again(dsn):
    clock = FakeClock()
    with PostgresStore(dsn, clock=clock) as store:
        store.create("j", b"1", "a", flow_id="f", status="pending")
        assert "j" == acquire(store, "a", ["f"], 30 * SECOND)
    with PostgresStore(dsn, clock=FakeClock("2025-01-01")) as store:
        assert 30 * SECOND == store.free_in(["f"])


# --- workers --------------------------------------------------------------------------------------

HOSTS = 3
JOBS = 70  # more than all but one of the hosts can have in hand


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


def test_processes_share_the_load_and_each_job_is_driven_exactly_once(postgres, dsn):
    with Runtime(store=postgres) as runtime:
        job_ids = [runtime.submit(chain(a=rest), "a") for _ in range(JOBS)]
    with processes(DRIVES, *[[dsn]] * HOSTS) as children:
        first = [line_of(child) for child in children]
        assert HOSTS == len({*first} & {*job_ids}), "not every process got a job of its own"
        go(children)
        others = [job_id for child in children for job_id in rest_of(child).split()]
    assert sorted(job_ids) == sorted([*first, *others])
    with Runtime(store=postgres) as runtime:
        for job_id in job_ids:
            commits = runtime.load(job_id, history=True).commits
            assert ["start", "resumed", "done"] == [commit.kind.value for commit in commits]


# --- threads and forks ----------------------------------------------------------------------------


def test_threads_that_ask_at_once_have_a_few_connections_between_them(postgres):
    backends: set[int] = set()
    for _ in range(10):
        at_once(*[lambda: backends.add(backend_of(postgres))] * 8)
    assert 1 <= len(backends) <= 8


def backend_of(store: PostgresStore) -> int:
    return int(store._do("SELECT pg_backend_pid()").rows[0][0])


def test_a_forked_child_uses_connections_of_its_own(postgres):
    def uses_its_own():
        # Python reports a connection that is dropped while it is open.
        sys.unraisablehook = lambda _: os._exit(2)
        postgres.append("j", 2, b"2", "a", status="running")
        assert backend != backend_of(postgres)
        postgres.close()

    postgres.create("j", b"1", "a", flow_id="f", status="running")
    backend = backend_of(postgres)
    in_a_child(uses_its_own)
    postgres.append("j", 3, b"3", "a", status="running")
    assert backend == backend_of(postgres)
    assert [b"1", b"2", b"3"] == postgres.rows("j")


# --- ids ------------------------------------------------------------------------------------------

CALLS_WITH_IDS: dict[str, Callable[[PostgresStore, str], object]] = {
    "create, job_id": lambda store, text: store.create(
        text, b"", "a", flow_id="f", status="pending"
    ),
    "create, owner": lambda store, text: store.create(
        "j", b"", text, flow_id="f", status="pending"
    ),
    "create, flow_id": lambda store, text: store.create(
        "j", b"", "a", flow_id=text, status="pending"
    ),
    "append, job_id": lambda store, text: store.append(text, 2, b"", "a", status="running"),
    "claim, owner": lambda store, text: store.claim("j", 2, b"", text, status="running"),
    "overrule, owner": lambda store, text: store.overrule("j", 2, b"", text, status="pending"),
    "rows, job_id": lambda store, text: store.rows(text),
    "acquire, flow_id": lambda store, text: store.acquire("a", ["f", text], SECOND),
    "free_in, flow_id": lambda store, text: store.free_in([text]),
}
NO_TEXTS = {
    "order\0A7": "can't store this value: PostgreSQL text fields cannot contain NUL",
    "order \ud800": r"can't store this value: .*'\\ud800' in position 6",
}


@pytest.mark.parametrize("call", CALLS_WITH_IDS)
def test_an_id_that_postgresql_can_not_hold_is_refused(postgres, call):
    for text, reason in NO_TEXTS.items():
        with pytest.raises(UnserializableError, match=reason):
            CALLS_WITH_IDS[call](postgres, text)
    assert [] == postgres.job_ids()


def test_an_id_of_any_other_characters_is_kept(postgres):
    names = ["", "jöb 🍵'\"\\", "\x01\x7f\ufffe", "%s %(job_id)s", "x" * 2_000]
    for name in names:
        postgres.create(name, b"1", name, flow_id=name, status="pending")
    assert sorted(names) == postgres.job_ids()
    taken = [acquire(postgres, name or "b", [name], SECOND) for name in names]
    assert names == taken


def test_an_id_that_the_databases_encoding_can_not_hold_is_refused(server, dsn, admin):
    admin.execute("CREATE DATABASE narrow ENCODING latin1 LOCALE 'C' TEMPLATE template0")
    try:
        narrow = dsn.replace("dbname=postgres", "dbname=narrow").split(" options")[0]
        with PostgresStore(narrow) as store:
            store.create("jöb", b"1", "a", flow_id="f", status="pending")
            with pytest.raises(
                SavedStateError, match=r"dbname=narrow: can't store this value: .*UTF8"
            ):
                store.create("job 🍵", b"1", "a", flow_id="f", status="pending")
            assert ["jöb"] == store.job_ids()
    finally:
        admin.execute("DROP DATABASE narrow WITH (FORCE)")
