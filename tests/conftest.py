"""Fixtures of all tests: servers that end with the session, and a plain environment."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.persist import postgres_server
from tests.persist.postgres_server import Server
from tests.plugin import inner
from tests.routines import let_sigint_through

# A project of its own, which `make downstream` runs in its own environment.
collect_ignore = ["downstream"]


@pytest.fixture(scope="session", autouse=True)
def _servers() -> Iterator[None]:
    yield
    postgres_server.stop()
    inner.stop()


# Variables that change how a program prints.
_PRINTING = (
    *("NO_COLOR", "FORCE_COLOR", "PY_COLORS", "COLUMNS", "LINES"),
    *("PYTEST_ADDOPTS", "PYTEST_DISABLE_PLUGIN_AUTOLOAD", "PYTHONDONTWRITEBYTECODE"),
)


@pytest.fixture(scope="session", autouse=True)
def _plain() -> Iterator[None]:
    """Make started programs print the same for every user, and compile each module once."""
    let_sigint_through()
    with pytest.MonkeyPatch.context() as patch:
        for name in _PRINTING:
            patch.delenv(name, raising=False)
        patch.setenv("PYTHONUTF8", "1")
        yield


@pytest.fixture
def server() -> Server:
    """The server that the tests share; a test that stops it starts it again."""
    postgres_server.need()
    return postgres_server.running()


@pytest.fixture
def dsn(server: Server) -> str:
    """The connection string of an empty schema."""
    return server.dsn()


@pytest.fixture(params=["sqlite", "postgres"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The place of a new store that processes can share; see `stores.at`."""
    if request.param == "sqlite":
        return str(tmp_path / "jobs.db")
    postgres_server.need()
    return postgres_server.fresh_dsn()


@pytest.fixture
def pytester(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """pytest's test bed, which prints as for a person: long texts cut, colours on request.

    In CI the suite's own pytest still shows them whole.
    """
    for name in ("CI", "BUILD_NUMBER", "PY_COLORS"):  # the test bed sets the last
        monkeypatch.delenv(name, raising=False)
    return pytester


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Report all tests that lack a server as one line of the summary."""
    report = yield
    if isinstance(report.longrepr, tuple) and postgres_server.MISSING in report.longrepr[2]:
        report.longrepr = (postgres_server.__file__, None, report.longrepr[2])  # type: ignore[assignment]  # no line, as pytest has it for a mark
    return report
