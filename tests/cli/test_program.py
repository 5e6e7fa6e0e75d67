"""The program `routilux`: its arguments, its output and its exit status."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import routilux.cli
from routilux.cli import main
from routilux.cli.open_store import without_password
from tests.cli.pages import FAILED
from tests.cli.payments import NOW, ROOT, command
from tests.routines import PATIENCE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "required: COMMAND"),
        (("jobs",), "required: STORE"),
        (("show", "jobs.db"), "required: JOB"),
        (("jobs", "jobs.db", "--status", "lost"), "invalid choice: 'lost'"),
        (("jobs", "jobs.db", "--limit", "0"), "must be a whole number, at least 1, not '0'"),
        (("export", "jobs.db", "done"), "required: FILE"),
    ],
)
def test_wrong_usage_ends_with_status_2(capsys, arguments, message):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert 2 == end.value.code
    assert message in capsys.readouterr().err


class Terminal(io.StringIO):
    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True


def test_only_terminals_get_colours_unless_they_are_switched_off(store, monkeypatch):
    def coloured(**env):
        with monkeypatch.context() as patch:
            terminal = Terminal()
            patch.setattr(sys, "stdout", terminal)
            patch.setenv("TERM", "xterm")
            for name, value in env.items():
                patch.setenv(name, value)
            assert 0 == main(["show", str(store), "failed"], clock=NOW)
        return terminal.getvalue()

    assert "job \x1b[31mfailed\x1b[0m" in coloured().replace("\x1b[1;31m", "\x1b[31m")
    assert FAILED == re.sub(r"\x1b\[[\d;]*m", "", coloured())
    assert FAILED == coloured(NO_COLOR="1")
    assert FAILED == coloured(TERM="dumb")


def test_a_terminal_that_lacks_letters_gets_question_marks(store):
    done = command("show", store, "done", folder=store.parent, encoding="ascii")
    assert (0, "") == (done.returncode, done.stderr)
    assert "? [ 2.660s] job completed" in done.stdout


def test_the_module_runs_as_a_program(store):
    done = command("jobs", store, folder=store.parent)
    assert (0, "") == (done.returncode, done.stderr)
    assert "5 jobs: 1 pending, 1 running, 1 paused, 1 completed, 1 failed" in done.stdout
    failed = command("show", store, "order", folder=store.parent)
    assert (1, "") == (failed.returncode, failed.stdout)
    assert "routilux: there is no job order in jobs.db; run `routilux jobs" in failed.stderr
    strange = command("show", store, b"\xff".decode(errors="surrogateescape"), folder=store.parent)
    assert "routilux: there is no job \\udcff in jobs.db" in strange.stderr
    assert 2 == command("look", folder=store.parent).returncode


def shown_to(out: object, store: Path) -> tuple[int, str]:
    """The exit status and the errors of `routilux show` with another stdout."""
    pipes = {"capture_output": False, "stdout": out, "stderr": subprocess.PIPE}
    done = command("show", store, "done", folder=store.parent, **pipes)
    return done.returncode, done.stderr


def test_a_reader_that_goes_away_is_no_error(store):
    reader, writer = os.pipe()
    os.close(reader)
    assert (141, "") == shown_to(writer, store)
    os.close(writer)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_reported(store):
    with Path("/dev/full").open("w") as out:
        assert (1, "routilux: No space left on device\n") == shown_to(out, store)


def test_a_closed_output_is_reported(store):
    shell = 'exec "$0" -m routilux show "$1" done >&-'
    done = subprocess.run(
        ["sh", "-c", shell, sys.executable, str(store)],
        cwd=store.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        encoding="utf-8",
        timeout=PATIENCE,
        check=False,
    )
    assert (1, "") == (done.returncode, done.stdout)
    assert "routilux: stdout is closed; run the command with an open stdout\n" == done.stderr


def test_a_command_without_stderr_still_ends_with_its_status(store, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert 1 == main(["show", str(store), "nobody"])


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("postgresql://u:secret@h/d", "postgresql://u:***@h/d"),
        ("postgresql://u:sec@ret@h/d", "postgresql://u:***@h/d"),
        ("postgres://:secret@h:5/d?a=b@c", "postgres://:***@h:5/d?a=b@c"),
        ("postgresql://u:se/c?ret@h/d", "postgresql://u:***@h/d"),
        ("postgresql://h:5/d?a=b@c", "postgresql://h:5/d?a=b@c"),
        ("postgresql://h/d?password=secret&a=b", "postgresql://h/d?password=***&a=b"),
        ("postgresql://h/d?a=b&sslpassword=secret", "postgresql://h/d?a=b&sslpassword=***"),
        ("postgresql://u@h:5/d", "postgresql://u@h:5/d"),
        ("u:secret@h", "u:secret@h"),  # a path
    ],
)
def test_a_name_is_shown_without_its_password(name, safe):
    assert safe == without_password(name)


def test_a_password_that_a_url_can_not_hold_is_refused_and_not_shown(refused):
    assert refused("jobs", "postgresql://u:se/cret@h/d") == (
        "postgresql://u:***@h/d: the password has a / or a ?; write it as %2F or %3F"
    )


@pytest.mark.parametrize("name", ["host=db password=secret", "password = secret dbname=jobs"])
def test_a_connection_string_that_is_no_url_is_refused_without_its_password(name, refused):
    assert refused("jobs", name) == (
        "the store's name can't be a key=value string; give the URL of the database:"
        " postgresql://user@host/database"
    )


def test_an_interrupt_ends_it_quietly(store, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(routilux.cli, "read_store", interrupted)
    assert 130 == main(["jobs", str(store)])
    assert ("", "") == tuple(capsys.readouterr())


def test_what_was_changed_is_said_with_the_next_commit(store, output):
    failed, waits = output("retry", store, "failed"), output("retry", store, "waits", "--take-over")

    assert failed == (
        "job failed has a fresh budget; a worker of flow payment can resume it (commit 4)\n"
    )
    assert waits == "job waits is taken over; a worker of flow payment can resume it (commit 3)\n"


def test_help_says_what_each_command_does(capsys):
    for name in ("jobs", "show", "retry", "cancel", "export"):
        with pytest.raises(SystemExit) as end:
            main([name, "--help"])
        assert 0 == end.value.code
        assert f"usage: routilux {name} " in capsys.readouterr().out
