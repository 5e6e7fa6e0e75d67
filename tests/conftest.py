"""What all tests share: the end of what they have started, what is left out, and their test bed."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest

from tests.persist import postgres_server
from tests.plugin import inner

# A project of its own: `make downstream` runs it where it belongs, in an environment of its own.
collect_ignore = ["downstream"]


@pytest.fixture(scope="session", autouse=True)
def _servers() -> Iterator[None]:
    yield
    postgres_server.stop()
    inner.stop()


# What makes a program print in colours, in other widths or otherwise than where none is set.
_TASTES = (
    *("NO_COLOR", "FORCE_COLOR", "PY_COLORS", "COLUMNS", "LINES"),
    *("PYTEST_ADDOPTS", "PYTEST_DISABLE_PLUGIN_AUTOLOAD", "PYTHONDONTWRITEBYTECODE"),
)


@pytest.fixture(scope="session", autouse=True)
def _plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the tests start prints the same whoever runs the suite, and compiles a module once."""
    compiled = tmp_path_factory.getbasetemp() / "compiled"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPYCACHEPREFIX", str(compiled))
        for name in _TASTES:
            patch.delenv(name, raising=False)
        patch.setenv("PYTHONUTF8", "1")
        yield


@pytest.fixture
def pytester(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """pytest's test bed, which prints as it does for a person: long texts cut, colours where asked.

    In a CI the suite's own pytest goes on to show them whole.
    """
    for name in ("CI", "BUILD_NUMBER", "PY_COLORS"):  # the last is set by the test bed itself
        monkeypatch.delenv(name, raising=False)
    return pytester


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let all tests that lack a server be one line of the summary, whatever place they stand at."""
    report = yield
    if isinstance(report.longrepr, tuple) and postgres_server.MISSING in report.longrepr[2]:
        report.longrepr = (postgres_server.__file__, None, report.longrepr[2])  # type: ignore[assignment]  # no line, as pytest has it for a mark
    return report
