"""The server of the tests: it ends with them, and without it tests are skipped with a reason."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import pytest

from tests.persist.hosts import PATIENCE, line_of, processes
from tests.soak import also


@pytest.mark.parametrize("how", also(signal.SIGKILL, signal.SIGTERM))
def test_the_server_of_tests_that_were_killed_ends_and_leaves_nothing(server, how):
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


@pytest.mark.soak
def test_tests_that_are_skipped_without_a_server_are_one_line_with_the_cure():
    with processes(WITHOUT, ["tests/persist/test_store.py", "-k", "not_there"]) as [child]:
        lines = child.communicate(timeout=PATIENCE)[0].splitlines()
    skipped = [line for line in lines if line.startswith("SKIPPED")]
    assert 1 == len(skipped), lines
    assert re.fullmatch(
        r"SKIPPED \[\d+\] tests/persist/postgres_server.py: no PostgreSQL: there is no server in"
        r" /nowhere/\*/bin: apt-get install postgresql",
        skipped[0],
    )
    assert re.search(r"\d+ passed, \d+ skipped", lines[-1])
