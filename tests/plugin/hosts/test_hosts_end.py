"""flow_hosts: no host outlives its test, however that ends; the output of a host is shown."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pytest_routilux import FlowHosts
from pytest_routilux.hosts.child import quoted
from pytest_routilux.hosts.flow_hosts import At, HostError
from tests.plugin.hosts.actions import args, hangs, has_a_child, prints
from tests.plugin.inner import PLUGIN, ROOT, run_inside
from tests.plugin.shop import breaking
from tests.soak import also

PATIENCE = 30_000  # milliseconds after which a test that would hang fails instead


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_host_that_hangs_is_killed_after_its_timeout_of_real_time(flow_clock, tmp_path):
    with (
        FlowHosts(tmp_path, timeout=0.3) as hosts,
        pytest.raises(HostError, match=r"was killed after 0\.3 s") as error,
    ):
        hosts.start(breaking, "break", build_args={"how": "hang"})
    assert not is_alive(pid_in(error.value))


def test_no_host_outlives_the_block(tmp_path):
    errors: list[HostError] = []
    fifo, end = fifo_in(tmp_path)

    def start(hosts: FlowHosts) -> None:
        with pytest.raises(HostError) as error:
            hosts.start(**args(hangs, str(fifo)))
        errors.append(error.value)

    with FlowHosts(tmp_path) as hosts:
        thread = threading.Thread(target=start, args=[hosts])
        thread.start()
        pid = int(read(end))  # the host is in its handler, which never ends
        assert is_alive(pid)
    os.close(end)
    thread.join()
    assert not is_alive(pid)
    assert "died with SIGKILL" in str(errors[0])
    with pytest.raises(HostError, match="was killed: the test that started it has ended"):
        hosts.start(**args(hangs, str(fifo)))


@pytest.mark.parametrize("kill_at", [At(seq=2), None])
def test_the_children_of_a_host_end_with_it(flow_hosts, tmp_path, kill_at):
    fifo, end = fifo_in(tmp_path)
    host = flow_hosts.start(**args(has_a_child, str(fifo)), kill_at=kill_at)
    assert int(read(end)) not in (host.pid, os.getpid())
    assert b"" == read(end)  # no process holds the other end of the fifo any more
    os.close(end)
    assert host.killed_at == (None if kill_at is None else 2)
    assert kill_at is not None or host.job.status == "completed"


INNER = """
    import os, signal, threading
    from pathlib import Path
    from tests.plugin.hosts.actions import args, hangs

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background has none

    ARGS = args(hangs, os.environ["OUTER"])

    def test_waits_for_its_host(flow_hosts):
        flow_hosts.start(**ARGS)

    def test_fails_while_its_host_runs(flow_hosts):
        threading.Thread(target=flow_hosts.start, kwargs=ARGS, daemon=True).start()
        Path(os.environ["GATE"]).read_text("utf-8")
        assert not "the host runs"
"""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="tells the end of a process")
@pytest.mark.parametrize(
    ("test", "end", "status"),
    [
        *also(
            ("waits", signal.SIGINT, 2),
            ("fails", None, 1),
            ("waits", signal.SIGKILL, -signal.SIGKILL),
            ("waits", signal.SIGTERM, -signal.SIGTERM),
        ),
    ],
)
def test_no_host_outlives_a_test_that_is_interrupted_killed_or_fails(
    pytester, monkeypatch, test, end, status
):
    pytester.makepyfile(test_inner=INNER)
    fifo, reads = fifo_in(pytester.path)
    gate = pytester.path / "gate"
    os.mkfifo(gate)
    monkeypatch.setenv("OUTER", str(fifo))
    monkeypatch.setenv("GATE", str(gate))
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    run = pytester.popen(
        [
            *(sys.executable, "-m", "pytest", *PLUGIN, "-k", test),
            *("-p", "no:threadexception"),  # the thread of a host that was killed says so
        ],
        stdin=subprocess.DEVNULL,
    )
    try:
        host = os.pidfd_open(int(read(reads)))
        if end is None:
            gate.write_text("go on")
        else:
            run.send_signal(end)
        poll = select.poll()
        poll.register(host, select.POLLIN)
        assert poll.poll(PATIENCE), "the host outlives the test"
        out, _ = run.communicate()
    finally:
        run.kill()
        run.communicate()
    assert status == run.returncode, out.decode()
    os.close(host)
    os.close(reads)


def test_the_output_of_hosts_is_shown_if_the_test_fails(pytester):
    pytester.makepyfile(
        """
        from tests.plugin.hosts.actions import args, prints

        def test_fails_later(flow_hosts):
            host = flow_hosts.start(**args(prints, 100))
            assert host.output.count("line") == 100
            assert host.job.status == "failed"

        def test_passes(flow_hosts):
            flow_hosts.start(**args(prints, 1))

        def test_fails_silently(flow_hosts):
            flow_hosts.start(**args(prints, 0))
            assert False
        """
    )
    result = run_inside(pytester)
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.re_match_lines(
        [
            r"-+ Captured output of host 1 \(pid \d+\) call -+",
            r"  \| … 60 lines before these",
            r"  \| line 60",
            r"  \| line 61",
            r"  \| line 99",
        ]
    )
    assert 1 == sum("Captured output" in line for line in result.outlines)


def test_output_without_end_is_bounded_in_memory_and_in_the_message(flow_hosts):
    host = flow_hosts.start(**args(prints, 200_000))
    assert host.output.endswith("line 199998\nline 199999\n")
    assert 1 << 20 >= len(host.output)
    assert 41 == len(quoted(host.output).splitlines())
    assert 410 >= len(quoted("x" * 10_000))


def fifo_in(folder: Path) -> tuple[Path, int]:
    path = folder / "fifo"
    os.mkfifo(path)
    return path, os.open(path, os.O_RDONLY | os.O_NONBLOCK)


def read(end: int) -> bytes:
    poll = select.poll()
    poll.register(end, select.POLLIN)
    assert poll.poll(PATIENCE), "nothing came through the fifo within 30 s"
    return os.read(end, 100)


def pid_in(error: HostError) -> int:
    found = re.search(r"\(pid (\d+)\)", str(error))
    return int(found[1])
