"""Errors of a PostgreSQL database, each with its name and a cure."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from routilux import (
    CorruptStateError,
    PostgresStore,
    UnserializableError,
    UnsupportedVersionError,
)
from tests.persist.hosts import Call, line_of, locked, processes, until_one_waits
from tests.persist.postgres_server import GUARDED, Server, with_option


def schema_of(admin: Any) -> str:
    return str(admin.execute("SELECT current_schema").fetchone()[0])


# --- its driver -----------------------------------------------------------------------------------


def test_psycopg_is_imported_when_a_store_is_made_and_not_before():
    program = "import sys; from routilux import PostgresStore; print('psycopg' in sys.modules)"
    with processes(program, []) as [child]:
        assert "False" == line_of(child)


def test_without_its_extra_it_says_what_to_install(monkeypatch):
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


def test_a_password_with_anything_in_it_is_understood(guarded):
    with PostgresStore(guarded("".join(f"%{byte:02X}" for byte in PASSWORD.encode()))) as store:
        assert [] == store.job_ids()


def test_a_wrong_password_is_reported_with_the_name_of_the_user(guarded):
    with pytest.raises(OSError, match=f"user={GUARDED}.*authentication failed.*lets this user"):
        PostgresStore(guarded("wrong"))


def test_a_password_is_in_no_error(guarded):
    for dsn in (
        guarded("secret"),  # refused by the server
        guarded("secret%"),  # no connection string
        f"host=/nowhere password='secret {PASSWORD}",  # nor this
        "host=/nowhere dbname=d password=secret",  # no server
        "secret",
    ):
        with pytest.raises(OSError) as caught:
            PostgresStore(dsn)
        error: BaseException | None = caught.value
        while error is not None:
            assert "secret" not in f"{error!r} {error}"
            shown = None if error.__suppress_context__ else error.__context__
            error = error.__cause__ or shown


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("^.*$", "host=/nowhere dbname=d", r"the store host=/nowhere dbname=d: .*No such file"),
        ("^.*$", "jobs", "can't be read; write postgresql://user@host/database, with"),
        ("dbname=postgres", "dbname=no", r'dbname=no: .*"no" does not exist; check that'),
        ("test_[0-9]+", "no", r"no schema has been selected.*of search_path must exist"),
    ],
    ids=["server", "connection string", "database", "schema"],
)
def test_what_does_not_exist_is_named(dsn, old, new, message):
    with pytest.raises(OSError, match=message):
        PostgresStore(re.sub(old, new, dsn))


# --- what a user may do ---------------------------------------------------------------------------


@pytest.fixture
def guest(dsn: str, admin: Any) -> Iterator[str]:
    """How a user connects who may look into the schema, and nothing else."""
    admin.execute("CREATE ROLE guest LOGIN")
    admin.execute(f"GRANT USAGE ON SCHEMA {schema_of(admin)} TO guest")
    yield dsn.replace("user=test", "user=guest")
    admin.execute("DROP OWNED BY guest; DROP ROLE guest")


def test_a_user_without_the_right_to_create_tables_gets_an_error_with_the_cure(guest, admin):
    with pytest.raises(OSError, match=r"permission denied for schema .*; grant the right"):
        PostgresStore(guest)
    admin.execute(f"GRANT CREATE ON SCHEMA {schema_of(admin)} TO guest")
    PostgresStore(guest).close()


def test_a_user_with_read_rights_can_read_a_store(postgres, guest, admin):
    postgres.create("j", b"1", "a", flow_id="f", status="pending")
    admin.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema_of(admin)} TO guest")
    with PostgresStore(guest, read_only=True) as store:
        assert ["j"] == store.job_ids()
        assert [b"1"] == store.rows("j")
        assert None is store.snapshot("j")
        assert 0 == store.free_in(["f"])
        assert ["j"] == list(store.holders())


def test_one_that_only_reads_makes_no_tables_and_writes_nothing(dsn, admin):
    with pytest.raises(CorruptStateError, match="has no tables of routilux; check database"):
        PostgresStore(dsn, read_only=True)
    made = "SELECT count(*) FROM pg_tables WHERE schemaname = current_schema"
    assert (0,) == admin.execute(made).fetchone()
    PostgresStore(dsn).close()
    with PostgresStore(dsn, read_only=True) as store:
        with pytest.raises(
            OSError, match=r"read-only transaction; .* open the store without read_only"
        ):
            store.create("j", b"1", "a", flow_id="f", status="pending")
        assert [] == store.job_ids()


def test_a_read_only_server_is_reported(postgres, dsn):
    with pytest.raises(OSError, match=r"read-only transaction; .* the primary server"):
        PostgresStore(with_option(dsn, "default_transaction_read_only=on"))


def test_a_statement_that_the_server_cancels_raises_and_can_be_repeated(postgres, dsn, admin):
    postgres.create("j", b"1", "a", flow_id="f", status="running")
    with locked(dsn):
        append = Call(partial(postgres.append, "j", 2, b"2", "a", status="running"))
        admin.execute("SELECT pg_cancel_backend(%s)", (until_one_waits(admin),))
        error = append.result()
    assert isinstance(error, OSError)
    assert "canceling statement due to user request; statement_timeout or an" in str(error)
    postgres.append("j", 2, b"2", "a", status="running")
    assert [b"1", b"2"] == postgres.rows("j")


def test_a_connection_is_kept_after_an_error_that_left_it_idle(postgres, admin):
    def backends() -> list[Any]:
        return admin.execute(
            "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' ORDER BY pid"
        ).fetchall()

    postgres.create("j", b"1", "a", flow_id="f", status="running")
    before = backends()
    with pytest.raises(UnserializableError):
        postgres.rows("\ud800")
    assert [b"1"] == postgres.rows("j")
    assert before == backends()


# --- tables ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("read_only", [False, True])
def test_tables_of_a_newer_version_are_refused_unchanged(postgres, dsn, admin, read_only):
    admin.execute("UPDATE routilux_version SET version = 2")
    with pytest.raises(UnsupportedVersionError, match=r"has version 2.*upgrade routilux"):
        PostgresStore(dsn, read_only=read_only)
    assert [(2,)] == admin.execute("SELECT version FROM routilux_version").fetchall()


def test_tables_that_have_lost_their_version_are_refused(postgres, dsn, admin):
    admin.execute("DELETE FROM routilux_version")
    with pytest.raises(CorruptStateError, match="has version None in routilux_version; restore"):
        PostgresStore(dsn)
    admin.execute("DROP TABLE routilux_version")
    with pytest.raises(OSError, match="already exists; its tables are of another program or"):
        PostgresStore(dsn)
    assert (None,) == admin.execute("SELECT to_regclass('routilux_version')").fetchone()


def test_a_missing_table_is_reported(postgres, admin):
    admin.execute("DROP TABLE routilux_commits CASCADE")
    with pytest.raises(CorruptStateError, match=r"has no valid tables .*routilux_commits.*restore"):
        postgres.rows("j")
