"""The command line on a store in PostgreSQL."""

from __future__ import annotations

import json
import sys

import pytest

from routilux import PostgresStore, Runtime
from routilux.cli import main
from tests.cli.pages import FAILED
from tests.cli.payments import after, payment
from tests.persist import postgres_server


@pytest.fixture
def dsn(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of an empty database; its user needs no password, and is given one all the same."""
    postgres_server.need()
    monkeypatch.setenv("COLUMNS", "100")
    return postgres_server.url(postgres_server.fresh_dsn())


def test_a_store_in_postgresql_is_read_and_changed_in_the_same_way(dsn, tmp_path, output, refused):
    with PostgresStore(dsn) as jobs:
        host = Runtime(clock=after(0), store=jobs)
        payment(9, retries=1).execute("charge", {"order": "A2"}, job_id="failed", runtime=host)
    assert output("jobs", dsn).endswith("\n1 job: 1 failed\n")
    shown = output("show", dsn, "failed").splitlines()
    assert FAILED.splitlines()[4:] == shown[4:]
    assert "a fresh budget" in output("retry", dsn, "failed")
    assert "is cancelled (commit 5)" in output("cancel", dsn, "failed")
    output("export", dsn, "failed", tmp_path / "job.json")
    store = json.loads(output("jobs", dsn, "--json"))["store"]
    assert store.startswith("postgresql://test:***@/postgres?host=")
    err = refused("show", dsn, "fail")
    assert "did you mean failed?" in err
    assert "secret" not in err


def test_each_damaged_job_in_postgresql_is_named(dsn, output, capsys):
    with PostgresStore(dsn) as jobs:
        for job_id in ("a", "b", "c"):
            jobs.create(job_id, b"no commit", "x", flow_id="f", status="pending")
        host = Runtime(clock=after(0), store=jobs)
        payment(1).execute("charge", {"order": "A2"}, job_id="d", runtime=host)
    assert 1 == main(["check", dsn])
    out, err = capsys.readouterr()
    assert "" == out
    assert ["$.c[1]", "$.b[1]", "$.a[1]"] == [line.split(": ")[2] for line in err.splitlines()]
    assert "secret" not in err


def test_a_database_without_a_store_is_refused_and_gets_no_tables(dsn, refused):
    for arguments in (("jobs",), ("cancel", "j")):
        err = refused(arguments[0], dsn, *arguments[1:])
        assert err.endswith("=postgres: has no tables of routilux; check database and schema"), err


@pytest.mark.parametrize(
    ("dsn", "message"),
    [
        ("postgresql:///postgres?host=/no/such/folder", "the store host=/no/such/folder"),
        ("postgresql://user:secret@[host/jobs", "the connection string can't be read"),
    ],
)
def test_a_server_that_does_not_answer_is_named_without_its_password(refused, dsn, message):
    pytest.importorskip("psycopg")
    err = refused("jobs", dsn)
    assert err.startswith(message), err
    assert "secret" not in err


def test_without_its_driver_a_store_in_postgresql_is_refused_with_the_cure(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    err = refused("jobs", "postgresql://user@host/jobs")
    assert "PostgresStore needs psycopg 3; run: pip install 'psycopg[binary]>=3.1'" == err
