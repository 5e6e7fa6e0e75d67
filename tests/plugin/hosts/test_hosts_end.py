"""flow_hosts: no host outlives its test, whatever becomes of that; what it said is shown."""

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
from routilux import FakeClock, Flow, Routine
from tests.plugin.inner import ROOT, run_inside
from tests.plugin.shop import breaking

PATIENCE = 30_000  # milliseconds after which a test that would hang fails instead


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_host_that_hangs_is_killed_and_told(tmp_path: Path) -> None:
    with (
        FlowHosts(tmp_path, timeout=0.3) as hosts,
        pytest.raises(HostError, match=r"was killed: it ran for 0\.3 s") as error,
    ):
        hosts.start(breaking, "break", build_args={"how": "hang"})
    assert not is_alive(pid_in(error.value))


def test_no_host_outlives_the_block(tmp_path: Path) -> None:
    errors: list[HostError] = []
    fifo, end = fifo_in(tmp_path)

    def start(hosts: FlowHosts) -> None:
        with pytest.raises(HostError) as error:
            hosts.start(meet, "meet", build_args={"fifo": str(fifo)})
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
        hosts.start(meet, "meet", build_args={"fifo": str(fifo)})


def test_a_killed_host_takes_its_own_children_along(flow_hosts: FlowHosts, tmp_path: Path) -> None:
    fifo, end = fifo_in(tmp_path)
    host = flow_hosts.start(parent, "parent", build_args={"fifo": str(fifo)}, kill_at=At(seq=2))
    child = int(read(end))
    assert b"" == read(end)  # nobody holds the other end of the fifo any more: it is gone
    os.close(end)
    assert 2 == host.killed_at
    assert child not in (host.pid, os.getpid())


def test_a_host_that_ends_by_itself_leaves_no_children_either(
    flow_hosts: FlowHosts, tmp_path: Path
) -> None:
    fifo, end = fifo_in(tmp_path)
    host = flow_hosts.start(parent, "parent", build_args={"fifo": str(fifo)})
    assert int(read(end)) != host.pid
    assert b"" == read(end)
    os.close(end)
    assert "completed" == host.job.status


def test_the_timeout_of_a_host_is_real_where_time_is_not(
    flow_clock: FakeClock, tmp_path: Path
) -> None:
    with (
        FlowHosts(tmp_path, timeout=0.3) as hosts,
        pytest.raises(HostError, match=r"was killed: it ran for 0\.3 s"),
    ):
        hosts.start(breaking, "break", build_args={"how": "hang"})


# --- the test run itself ends ---------------------------------------------------------------------

INNER = f"""
    import os, signal, threading
    from pathlib import Path
    from {__name__} import meet

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background has none

    ARGS = {{"build_args": {{"fifo": os.environ["OUTER"]}}}}

    def test_waits_for_its_host(flow_hosts):
        flow_hosts.start(meet, "meet", **ARGS)

    def test_fails_beside_its_host(flow_hosts):
        start = threading.Thread(
            target=flow_hosts.start, args=[meet, "meet"], kwargs=ARGS, daemon=True
        )
        start.start()
        Path(os.environ["GATE"]).read_text("utf-8")
        assert not "the host has met us"
"""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="tells the end of a process")
@pytest.mark.parametrize(
    ("test", "end", "status"),
    [
        ("waits", signal.SIGINT, 2),
        ("waits", signal.SIGTERM, -signal.SIGTERM),
        ("waits", signal.SIGKILL, -signal.SIGKILL),
        ("fails", None, 1),
    ],
)
def test_no_host_outlives_a_test_that_is_interrupted_killed_or_fails(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    test: str,
    end: signal.Signals | None,
    status: int,
) -> None:
    pytester.makepyfile(test_inner=INNER)
    fifo, reads = fifo_in(pytester.path)
    gate = pytester.path / "gate"
    os.mkfifo(gate)
    monkeypatch.setenv("OUTER", str(fifo))
    monkeypatch.setenv("GATE", str(gate))
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    run = pytester.popen(
        [
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", test),
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
        assert poll.poll(PATIENCE), "the host lives on"
        out, _ = run.communicate()
    finally:
        run.kill()
        run.communicate()
    assert status == run.returncode, out.decode()
    os.close(host)
    os.close(reads)


# --- what they said -------------------------------------------------------------------------------


class Chatty(Routine):
    """Says a great deal on both streams."""

    def __init__(self, lines: int) -> None:
        super().__init__()
        self.lines = lines
        self.define_slot("trigger", handler=self.chat)

    def chat(self) -> None:
        for number in range(self.lines):
            os.write(1 + number % 2, f"line {number}\n".encode())


def chatty(lines: int) -> Flow:
    flow = Flow("chatty")
    flow.add_routine(Chatty(lines), "chatty")
    return flow


def test_what_hosts_said_is_shown_where_the_test_fails(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        f"""
        from {__name__} import chatty

        def test_fails_later(flow_hosts):
            host = flow_hosts.start(chatty, "chatty", build_args={{"lines": 100}})
            assert host.output.count("line") == 100
            assert host.job.status == "failed"

        def test_passes(flow_hosts):
            flow_hosts.start(chatty, "chatty", build_args={{"lines": 1}})

        def test_fails_silently(flow_hosts):
            flow_hosts.start(chatty, "chatty", build_args={{"lines": 0}})
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


def test_output_without_end_is_bounded_in_memory_and_in_the_message(
    flow_hosts: FlowHosts,
) -> None:
    host = flow_hosts.start(chatty, "chatty", build_args={"lines": 200_000})
    assert host.output.endswith("line 199998\nline 199999\n")
    assert 1 << 20 >= len(host.output)
    assert 41 == len(quoted(host.output).splitlines())
    assert 410 >= len(quoted("x" * 10_000))


class Meet(Routine):
    """Says who it is, and waits for ever."""

    def __init__(self, fifo: str) -> None:
        super().__init__()
        self.fifo = fifo
        self.define_slot("trigger", handler=self.meet)

    def meet(self) -> None:
        Path(self.fifo).write_text(str(os.getpid()))
        os.read(os.pipe()[0], 1)


def meet(fifo: str) -> Flow:
    flow = Flow("meet")
    flow.add_routine(Meet(fifo), "meet")
    return flow


class Parent(Routine):
    """Has a child that would live for ever, and holds a fifo open."""

    def __init__(self, fifo: str) -> None:
        super().__init__()
        self.fifo = fifo
        self.define_slot("trigger", handler=self.bear)

    def bear(self) -> None:
        end = os.open(self.fifo, os.O_WRONLY)
        if (child := os.fork()) == 0:
            os.read(os.pipe()[0], 1)
        os.write(end, str(child).encode())
        os.close(end)


def parent(fifo: str) -> Flow:
    flow = Flow("parent")
    flow.add_routine(Parent(fifo), "parent")
    return flow


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
    assert found is not None
    return int(found[1])
