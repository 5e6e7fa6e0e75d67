"""Child processes that are forked for one function each: what they send, and how they end."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pytest_routilux.hosts.fork_server import ForkServer, can_fork

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.skipif(not can_fork(), reason="needs os.fork")


def pid_of(subject: Any, send: Any) -> int:
    return os.getpid()


def leaves_a_process(subject: Any, send: Any) -> int:
    pid = os.fork()
    if pid == 0:
        while True:
            signal.pause()
    return pid


def dies_while_it_writes(subject: Any, send: Any) -> None:
    leaves_a_process(subject, send)  # and so its pipe is open after its end
    send("a")
    write = os.write

    def half(to: int, data: memoryview) -> int:
        write(to, data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    os.write = half
    send("b")


def sends_much(subject: Any, send: Any) -> bytes:
    send(bytes(200_000))
    return bytes(3_000_000)


def closes_all_files(subject: Any, send: Any) -> None:
    send("a")
    os.closerange(3, 256)


def closes_all_files_and_hangs(subject: Any, send: Any) -> None:
    closes_all_files(subject, send)
    signal.pause()


def ignores_signals_and_hangs(subject: Any, send: Any) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    while True:
        signal.pause()


def returns_what_can_not_be_pickled(subject: Any, send: Any) -> object:
    return lambda: None


def raises_when_loaded() -> None:
    raise EOFError("not here")


class Unloadable:
    """Can be sent, and not be loaded."""

    def __reduce__(self) -> Any:
        return raises_when_loaded, ()


def returns_what_can_not_be_loaded(subject: Any, send: Any) -> object:
    return Unloadable()


@pytest.mark.parametrize(
    ("work", "sent", "ended", "hung", "failed"),
    [
        (pid_of, 0, None, False, False),
        (sends_much, 1, None, False, False),
        (dies_while_it_writes, 1, "SIGKILL", False, False),
        (closes_all_files, 1, "exit status 0", False, False),
        (closes_all_files_and_hangs, 1, "no end within 0.3 s of real time", True, False),
        (ignores_signals_and_hangs, 0, "no end within 0.3 s of real time", True, False),
        (returns_what_can_not_be_pickled, 0, "AttributeError: ", False, True),
        (returns_what_can_not_be_loaded, 0, "EOFError: not here", False, True),
    ],
)
def test_a_reply_says_how_its_child_ended(monkeypatch, work, sent, ended, hung, failed):
    monkeypatch.setattr(time, "monotonic", lambda: 0)
    with ForkServer(None, timeout=0.3 if hung else 30.0) as server:
        reply = server.ask(work)
        assert server.ask(pid_of).ended is None  # another child is not affected
    assert (sent, hung, failed) == (len(reply.sent), reply.hung, reply.failed)
    assert (ended is None) == (reply.ended is None)
    assert str(reply.ended).startswith(str(ended))


def test_a_test_may_ignore_the_ends_of_its_children():
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with ForkServer(7) as server:
            assert server.ask(pid_of).result
    finally:
        signal.signal(signal.SIGCHLD, before)


def is_gone(pid: int) -> bool:
    # A dead process may wait for its new parent to reap it.
    for _ in range(1000):
        try:
            if Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        os.sched_yield()
    return False


linux = pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks into /proc")


@linux
@pytest.mark.parametrize("interrupted", [False, True])
def test_no_process_outlives_the_block(interrupted):
    pids = []
    with suppress(KeyboardInterrupt), ForkServer(None) as server:
        pids = [server._pid, server.ask(pid_of).result, server.ask(leaves_a_process).result]
        if interrupted:
            raise KeyboardInterrupt
    assert all(map(is_gone, pids))
    with pytest.raises(ChildProcessError):
        os.waitpid(pids[0], 0)


def names_itself_and_hangs(out: int, send: Any) -> None:
    child = leaves_a_process(out, send)
    os.write(out, f"{os.getppid()} {os.getpid()} {child}".encode())
    signal.pause()


@linux
def test_no_process_outlives_a_killed_test():
    out, into = os.pipe()
    program = (
        f"from {__name__} import ForkServer, names_itself_and_hangs\n"
        f"ForkServer({into}, timeout=1000).ask(names_itself_and_hangs)"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, pass_fds=[into]) as run:
        os.close(into)
        pids = [int(pid) for pid in os.read(out, 100).split()]
        run.kill()
    assert select.select([out], [], [], 20)[0], "one of them lives and holds the pipe open"
    assert b"" == os.read(out, 1)
    assert 3 == len(pids)
    assert all(map(is_gone, pids))
    os.close(out)


def prints(subject: Any, send: Any) -> None:
    sys.stdout.write("heard\n")
    os.write(1, b"heard")
    os.write(2, b"heard")


def test_what_a_child_prints_is_not_the_tests_output(capfd):
    sys.stdout.write("before")
    with ForkServer(None) as server:
        assert server.ask(prints).ended is None
    assert ("before", "") == capfd.readouterr()


def draw(subject: Any, send: Any) -> float:
    return random.random()


def test_children_do_not_share_their_random_numbers():
    with ForkServer(None) as server:
        assert 3 == len({server.ask(draw).result for _ in range(3)})
