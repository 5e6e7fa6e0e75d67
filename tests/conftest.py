"""What the tests of the engine share: the end of what they have started, and what is left out."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest

from tests.persist import postgres_server


@pytest.fixture(scope="session", autouse=True)
def _servers() -> Iterator[None]:
    yield
    postgres_server.stop()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let all tests that lack a server be one line of the summary, whatever place they stand at."""
    report = yield
    if isinstance(report.longrepr, tuple) and postgres_server.MISSING in report.longrepr[2]:
        report.longrepr = (postgres_server.__file__, None, report.longrepr[2])  # type: ignore[assignment]  # no line, as pytest has it for a mark
    return report
