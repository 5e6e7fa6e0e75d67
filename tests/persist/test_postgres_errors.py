"""Errors of a PostgreSQL database, each with its name and a cure."""

from __future__ import annotations

import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from routilux import (
    CorruptStateError,
    PostgresStore,
    SavedStateError,
    UnserializableError,
    UnsupportedVersionError,
)
from tests.persist.hosts import PATIENCE, Call, line_of, locked, processes, until_one_waits
from tests.persist.postgres_server import GUARDED, Server, with_option
from tests.persist.stores import acquire
from tests.routines import SECOND
from tests.soak import also


def schema_of(admin: Any) -> str:
    return str(admin.execute("SELECT current_schema").fetchone()[0])


# --- its driver -----------------------------------------------------------------------------------


def test_psycopg_is_imported_when_a_store_is_made_and_not_before() -> None:
    program = "import sys; from routilux import PostgresStore; print('psycopg' in sys.modules)"
    with processes(program, []) as [child]:
        assert "False" == line_of(child)


def test_without_its_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ImportError, match=r"run: pip install 'psycopg\[binary\]>=3\.1'"):
        PostgresStore("host=/nowhere")


# --- who may connect, and where -------------------------------------------------------------------

PASSWORD = "pass word/@#%"  # nothing in it that needs no escaping


@pytest.fixture
def guarded(server: Server, admin: Any) -> Iterator[Callable[[str], str]]:
    """How a user who is asked for a password connects, with a password as a URL has it."""
    admin.execute(f"CREATE ROLE {GUARDED} SUPERUSER LOGIN PASSWORD '{PASSWORD}'")
    folder = str(server.folder).replace("/", "%2F")
    schema = schema_of(admin)

    def dsn(secret: str) -> str:
        option = f"options=-csearch_path%3D{schema}"
        return f"postgresql://{GUARDED}:{secret}@{folder}/postgres?{option}"

    yield dsn
    admin.execute(f"DROP OWNED BY {GUARDED}; DROP ROLE {GUARDED}")


def test_a_password_with_anything_in_it_is_understood(guarded: Callable[[str], str]) -> None:
    with PostgresStore(guarded("".join(f"%{byte:02X}" for byte in PASSWORD.encode()))) as store:
        assert [] == store.job_ids()


def test_a_wrong_password_is_reported_with_the_name_of_the_user(
    guarded: Callable[[str], str],
) -> None:
    with pytest.raises(OSError, match=f"user={GUARDED}.*authentication failed.*may this user"):
        PostgresStore(guarded("wrong"))


def test_a_password_is_in_no_error(guarded: Callable[[str], str]) -> None:
    for dsn in (
        guarded("secret"),  # refused by the server
        guarded("secret%"),  # no connection string
        f"host=/nowhere password='secret {PASSWORD}",  # nor this
        "host=/nowhere dbname=d password=secret",  # no server
        "secret",
    ):
        with pytest.raises(OSError) as told:
            PostgresStore(dsn)
        error: BaseException | None = told.value
        while error is not None:
            assert "secret" not in f"{error!r} {error}"
            shown = None if error.__suppress_context__ else error.__context__
            error = error.__cause__ or shown


def test_a_server_that_is_not_there_is_named() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(OSError, match=r"the store host=/nowhere dbname=d: .*No such file"):
        PostgresStore("host=/nowhere dbname=d")


def test_a_text_that_is_no_connection_string_is_refused() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(OSError, match="can't be read; write postgresql://user@host/database, with"):
        PostgresStore("jobs")


def test_a_database_that_is_not_there_is_named(dsn: str) -> None:
    with pytest.raises(OSError, match=r'dbname=nowhere: .*"nowhere" does not exist; does the'):
        PostgresStore(dsn.replace("dbname=postgres", "dbname=nowhere"))


def test_a_schema_that_is_not_there_is_named(dsn: str, admin: Any) -> None:
    with pytest.raises(OSError, match=r"no schema has been selected.*of search_path must exist"):
        PostgresStore(dsn.replace(schema_of(admin), "nowhere"))


# --- what a user may do ---------------------------------------------------------------------------


@pytest.fixture
def guest(dsn: str, admin: Any) -> Iterator[str]:
    """How a user connects who may look into the schema, and nothing else."""
    admin.execute("CREATE ROLE guest LOGIN")
    admin.execute(f"GRANT USAGE ON SCHEMA {schema_of(admin)} TO guest")
    yield dsn.replace("user=test", "user=guest")
    admin.execute("DROP OWNED BY guest; DROP ROLE guest")


def test_a_user_without_the_right_to_create_tables_gets_an_error_with_the_cure(
    guest: str, admin: Any
) -> None:
    with pytest.raises(OSError, match=r"permission denied for schema .*; grant the right"):
        PostgresStore(guest)
    admin.execute(f"GRANT CREATE ON SCHEMA {schema_of(admin)} TO guest")
    PostgresStore(guest).close()


def test_a_user_with_read_rights_can_read_a_store(
    postgres: PostgresStore, guest: str, admin: Any
) -> None:
    postgres.create("j", b"1", "a", flow_id="f", queued=True)
    admin.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema_of(admin)} TO guest")
    with PostgresStore(guest, read_only=True) as store:
        assert ["j"] == store.job_ids()
        assert [b"1"] == store.rows("j")
        assert None is store.snapshot("j")
        assert 0 == store.free_in(["f"])
        assert ["j"] == list(store.holders())


def test_one_that_only_reads_makes_no_tables_and_writes_nothing(dsn: str, admin: Any) -> None:
    with pytest.raises(CorruptStateError, match="holds no store: its tables were never created"):
        PostgresStore(dsn, read_only=True)
    made = "SELECT count(*) FROM pg_tables WHERE schemaname = current_schema"
    assert (0,) == admin.execute(made).fetchone()
    PostgresStore(dsn).close()
    with PostgresStore(dsn, read_only=True) as store:
        with pytest.raises(OSError, match=r"read-only transaction; .* open it without read_only"):
            store.create("j", b"1", "a", flow_id="f", queued=True)
        assert [] == store.job_ids()


def test_a_read_only_server_is_reported(postgres: PostgresStore, dsn: str) -> None:
    with PostgresStore(with_option(dsn, "default_transaction_read_only=on")) as store:
        assert [] == store.job_ids()
        with pytest.raises(OSError, match=r"read-only transaction; .* name the primary"):
            store.create("j", b"1", "a", flow_id="f", queued=True)


def test_a_statement_that_the_server_cancels_raises_and_can_be_repeated(
    postgres: PostgresStore, dsn: str, admin: Any
) -> None:
    postgres.create("j", b"1", "a", flow_id="f", queued=False)
    with locked(dsn):
        append = Call(partial(postgres.append, "j", 2, b"2", "a", stopped=False))
        admin.execute("SELECT pg_cancel_backend(%s)", (until_one_waits(admin),))
        error = append.result()
    assert isinstance(error, OSError)
    assert "canceling statement due to user request; the server's statement_timeout" in str(error)
    postgres.append("j", 2, b"2", "a", stopped=False)
    assert [b"1", b"2"] == postgres.rows("j")


# --- tables ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("read_only", [False, True])
def test_tables_of_a_newer_version_are_refused_and_left_as_they_were(
    postgres: PostgresStore, dsn: str, admin: Any, read_only: bool
) -> None:
    admin.execute("UPDATE routilux_version SET version = 2")
    with pytest.raises(UnsupportedVersionError, match=r"has version 2.*install a newer version"):
        PostgresStore(dsn, read_only=read_only)
    assert [(2,)] == admin.execute("SELECT version FROM routilux_version").fetchall()


def test_tables_that_have_lost_their_version_are_refused(
    postgres: PostgresStore, dsn: str, admin: Any
) -> None:
    admin.execute("DELETE FROM routilux_version")
    with pytest.raises(CorruptStateError, match="routilux_version says None; restore it"):
        PostgresStore(dsn)
    admin.execute("DROP TABLE routilux_version")
    with pytest.raises(OSError, match="already exists; it is of another program, or its"):
        PostgresStore(dsn)
    assert (None,) == admin.execute("SELECT to_regclass('routilux_version')").fetchone()


def test_a_missing_table_is_reported(postgres: PostgresStore, admin: Any) -> None:
    admin.execute("DROP TABLE routilux_commits CASCADE")
    with pytest.raises(CorruptStateError, match=r"has no valid tables .*routilux_commits.*restore"):
        postgres.rows("j")


# --- ids ------------------------------------------------------------------------------------------

CALLS: dict[str, Callable[[PostgresStore, str], object]] = {
    "create, job_id": lambda store, text: store.create(text, b"", "a", flow_id="f", queued=True),
    "create, owner": lambda store, text: store.create("j", b"", text, flow_id="f", queued=True),
    "create, flow_id": lambda store, text: store.create("j", b"", "a", flow_id=text, queued=True),
    "append, job_id": lambda store, text: store.append(text, 2, b"", "a", stopped=False),
    "claim, owner": lambda store, text: store.claim("j", 2, b"", text, stopped=False),
    "overrule, owner": lambda store, text: store.overrule("j", 2, b"", text, free=True),
    "rows, job_id": lambda store, text: store.rows(text),
    "acquire, flow_id": lambda store, text: store.acquire("a", ["f", text], SECOND),
    "free_in, flow_id": lambda store, text: store.free_in([text]),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("order\0A7", "'order\\x00A7' has a NUL, which no text of PostgreSQL can hold; choose one"),
        ("order \ud800", "'order \\ud800' has half of a surrogate pair, which is no text; choose"),
    ],
)
def test_an_id_that_postgresql_can_not_hold_is_refused_by_name_and_never_sent(
    postgres: PostgresStore, monkeypatch: pytest.MonkeyPatch, call: str, text: str, reason: str
) -> None:
    sent: list[object] = []
    monkeypatch.setattr(postgres._database, "do", lambda *what: sent.append(what))
    with pytest.raises(UnserializableError) as told:
        CALLS[call](postgres, text)
    assert f"$.{call.split()[-1]}" == told.value.path
    assert told.value.reason.startswith(reason)
    assert [] == sent


def test_an_id_of_any_other_characters_is_kept(postgres: PostgresStore) -> None:
    names = ["", "jöb 🍵'\"\\", "\x01\x7f\ufffe", "%s %(job_id)s", "x" * 2_000]
    for name in names:
        postgres.create(name, b"1", name, flow_id=name, queued=True)
    assert sorted(names) == postgres.job_ids()
    taken = [acquire(postgres, name or "b", [name], SECOND) for name in names]
    assert names == taken


def test_an_id_that_the_databases_encoding_can_not_hold_is_refused(
    server: Server, dsn: str, admin: Any
) -> None:
    admin.execute("CREATE DATABASE narrow ENCODING latin1 LOCALE 'C' TEMPLATE template0")
    try:
        narrow = dsn.replace("dbname=postgres", "dbname=narrow").split(" options")[0]
        with PostgresStore(narrow) as store:
            store.create("jöb", b"1", "a", flow_id="f", queued=True)
            with pytest.raises(SavedStateError, match=r"dbname=narrow: can't keep this: .*UTF8"):
                store.create("job 🍵", b"1", "a", flow_id="f", queued=True)
            assert ["jöb"] == store.job_ids()
    finally:
        admin.execute("DROP DATABASE narrow WITH (FORCE)")


# --- the server of the tests ----------------------------------------------------------------------


@pytest.mark.parametrize("how", also(signal.SIGKILL, signal.SIGTERM))
def test_the_server_of_tests_that_were_killed_ends_and_leaves_nothing(
    server: Server, how: signal.Signals
) -> None:
    program = (
        "from tests.persist.postgres_server import Server;"
        "server = Server(); print(server.folder, flush=True); input()"
    )
    with processes(program, []) as [child]:
        folder = Path(line_of(child))
        assert (folder / "data").exists()
        child.send_signal(how)
        child.wait(PATIENCE)
        ends = time.monotonic() + PATIENCE
        while folder.exists():
            assert time.monotonic() < ends, "the server is still there"


WITHOUT = """
import sys, pytest
from tests.persist import postgres_server
postgres_server._PLACES = "/nowhere/*/bin"
pytest.main(["-q", "-p", "no:cacheprovider", *sys.argv[1:]])
"""


def test_tests_that_are_skipped_without_a_server_are_one_line_with_the_cure() -> None:
    tests = ["tests/persist/test_store.py", "tests/persist/test_postgres.py"]
    with processes(WITHOUT, [*tests, "-k", "not_there or at_once or time"]) as [child]:
        told = child.communicate(timeout=PATIENCE)[0].splitlines()
    skipped = [line for line in told if line.startswith("SKIPPED")]
    assert 1 == len(skipped), told
    assert re.fullmatch(
        r"SKIPPED \[\d+\] tests/persist/postgres_server.py: no PostgreSQL: there is no server in"
        r" /nowhere/\*/bin: apt-get install postgresql",
        skipped[0],
    )
    assert re.search(r"\d+ passed, \d+ skipped", told[-1])
