"""A store with a job of every status, and calls of the command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from routilux import Runtime, SqliteStore
from routilux.cli import main
from tests.cli.payments import NOW, Call, after, payment


@pytest.fixture
def store(jobs_of_all_kinds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of a store with one job of every kind, which is what the commands are about."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copyfile(jobs_of_all_kinds, "jobs.db"))


@pytest.fixture(scope="session")
def jobs_of_all_kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that each test gets as its `store`."""
    path = tmp_path_factory.mktemp("store") / "jobs.db"
    with SqliteStore(path, clock=NOW) as store:

        def host(at: float, **options: bool) -> Runtime:
            return Runtime(clock=after(at, **options), store=store)

        payment().execute("charge", {"order": "A1"}, job_id="done", runtime=host(0))
        payment(9, retries=1).execute(
            "charge", {"order": "A2"}, job_id="failed", runtime=host(3000)
        )
        waits = host(3510, autojump=False)
        waits.environment.owner = "web-1:4711:9f86d081884c7d65"
        payment(delay=100).start("charge", {"order": "A3"}, job_id="waits", runtime=waits)
        waits.clock.advance(0.12)  # type: ignore[attr-defined]  # a FakeClock
        waits.close()
        host(3590).submit(payment(), "charge", {"order": "A4"}, job_id="queued")
        slow = host(3580, autojump=False)
        run = payment().start("charge", {"order": "A5"}, job_id="paused", runtime=slow)
        slow.clock.advance(0.12)  # type: ignore[attr-defined]  # a FakeClock
        run.pause()
        slow.close()
    return path


@pytest.fixture
def output(capsys: pytest.CaptureFixture[str]) -> Call:
    """What a command writes; on stdout where it succeeds, else on stderr, as one line."""

    def called(*arguments: object, status: int = 0) -> str:
        assert status == main([str(argument) for argument in arguments], clock=NOW)
        out, err = capsys.readouterr()
        assert ("" == err) is (status == 0)
        assert "Traceback" not in err
        return out if status == 0 else err

    return called


@pytest.fixture
def refused(output: Call) -> Call:
    """Why a command is refused, in one line."""

    def called(*arguments: object, status: int = 1) -> str:
        err = output(*arguments, status=status)
        assert err.startswith("routilux: ")
        assert 1 == err.count("\n")
        return err.removeprefix("routilux: ").rstrip("\n")

    return called
