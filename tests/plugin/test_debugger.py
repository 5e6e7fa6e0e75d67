"""`--pdb` opens where the error was raised."""

from __future__ import annotations

import sys

import pytest

from tests.plugin.inner import PLUGIN, ROOT
from tests.soak import also

TEST = """
    from tests.routines import Works, chain, retrying

    def fails(self, n=0):
        secret = "order " + str(41 + self.ctx.attempt)
        raise OSError("no line")

    def test_it(flow_runtime):
        secret = "of the test"
        job = chain(a=Works(fails, retrying(max_retries=1))).execute("a")
        {check}
"""


@pytest.mark.parametrize(
    ("check", "secret"),
    also(
        ("job.raise_for_status()", "'order 43'"),
        ("assert job.status == 'completed'", "'of the test'"),
    ),
)
def test_pdb_opens_in_the_handler_that_failed_the_job(check, secret, pytester, monkeypatch):
    pytester.makepyfile(test_it=TEST.format(check=check))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    command = [sys.executable, "-m", "pytest", *PLUGIN, "--pdb"]
    result = pytester.run(*command, stdin=b"p secret\nq\n")
    assert f"(Pdb) {secret}" in result.stdout.str()
