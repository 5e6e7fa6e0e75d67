"""A handler that waits in real time is told by name, with its line and its stack, and hangs nobody.

Each of the handlers here waits for what never comes, or for what the test lets come when it has
seen the report; so nothing is waited for but the report itself.
"""

from __future__ import annotations

import queue
import select
import signal
import socket
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

from pytest_routilux import places, polls, watchdog
from pytest_routilux.polls import polled_line
from routilux import FakeClock, Flow, Routine, Runtime
from routilux.errors import ClockStalledError
from tests.plugin.inner import run_inside

SHOP = """
    import asyncio, os, queue, threading
    import pytest
    from routilux import Flow, Routine

    class Charge(Routine):
        def __init__(self, wait):
            super().__init__()
            self.wait = wait
            self.define_slot("trigger", handler=self.charge)

        def charge(self):
            self.wait()

    class Later(Routine):
        def __init__(self):
            super().__init__()
            self.define_slot("trigger", handler=self.charge)

        async def charge(self):
            await self.answer()

        async def answer(self):
            await asyncio.sleep(10**6)

    def event():
        threading.Event().wait()

    def polled():
        while not threading.Event().wait(0.01):
            pass

    def queued():
        queue.Queue().get(timeout=10**6)

    def pipe():
        os.read(os.pipe()[0], 1)

    def shop(wait, strategy="sequential"):
        flow = Flow("shop", execution_strategy=strategy)
        flow.add_routine(wait() if wait is Later else Charge(wait), "charge")
        return flow
"""
HEAD = "charge (task 0, attempt 1) of job j is blocked: for 0.05 s of real time its virtual clock"


@pytest.fixture
def shop(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makepyfile(shop=SHOP)
    pytester.makeini("[pytest]\npythonpath = .\nroutilux_blocked_after = 0.05")
    return pytester


def test_the_report_names_the_step_the_line_and_the_call_on_every_driver(
    shop: pytest.Pytester,
) -> None:
    shop.makepyfile(
        """
        import pytest
        import shop as s

        @pytest.mark.parametrize("strategy", ["sequential", "concurrent"])
        @pytest.mark.parametrize("wait", [s.event, s.polled, s.queued, s.pipe, s.Later])
        def test_executes(flow_runtime, wait, strategy):
            s.shop(wait, strategy).execute("charge", job_id="j")
        """
    )
    result = run_inside(shop)
    result.assert_outcomes(failed=10)
    heads = [i for i, line in enumerate(result.outlines) if line.startswith(HEAD)]
    assert 10 == len(heads)
    told = [result.outlines[i + 1 : i + 3] for i in heads]
    for line, call in (
        ("shop.py:26: threading.Event().wait()", "threading.Event.wait()"),
        ("shop.py:29: while not threading.Event().wait(0.01):", "threading.Event.wait()"),
        ("shop.py:33: queue.Queue().get(timeout=10**6)", "queue.Queue.get()"),
        ("shop.py:23: await asyncio.sleep(10**6)", "asyncio.sleep()"),
    ):
        assert 2 == told.count([f"  at {line}", f"  in {call}, which waits in real time"])
    assert 2 == sum("  at shop.py:36: os.read(os.pipe()[0], 1)" == t[0] for t in told)


def test_the_report_is_the_whole_failure(shop: pytest.Pytester) -> None:
    shop.makepyfile(
        """
        from shop import event, shop

        def test_executes(flow_runtime):
            shop(event, "concurrent").execute("charge", job_id="j")
        """
    )
    lines = run_inside(shop).outlines
    begin = next(i for i, line in enumerate(lines) if line.startswith(HEAD))
    assert "_ test_executes _" in lines[begin - 1]
    assert [
        "  at shop.py:26: threading.Event().wait()",
        "  in threading.Event.wait(), which waits in real time",
        "  to let time pass, use self.ctx.sleep(seconds); to wait for other work, let it come",
        "  as an event; what must wait for so long needs a higher routilux_blocked_after",
        "  (seconds; 0 never tells)",
        "  its stack, innermost last:",
        "    shop.py:12 in Charge.charge",
        "    shop.py:26 in event",
    ] == lines[begin + 1 : begin + 9]


def test_whoever_waits_on_the_clock_is_told(shop: pytest.Pytester) -> None:
    shop.makepyfile(
        """
        import asyncio
        from shop import event, shop

        def test_waits(flow_runtime):
            shop(event).start("charge", job_id="j").wait()

        def test_moves_the_time(flow_runtime, flow_clock):
            shop(event).start("charge", job_id="j")
            flow_clock.advance(1)

        def test_awaits(flow_runtime):
            asyncio.run(shop(event).aexecute("charge", job_id="j"))

        def test_simulates(flow_sim):
            flow_sim.run(lambda: shop(event), "charge")

        def test_on_the_bare_clock(flow_clock_bare, flow_runtime):
            shop(event).execute("charge", job_id="j")
        """
    )
    result = run_inside(shop)
    result.assert_outcomes(failed=5)
    heads = [line for line in result.outlines if " is blocked: for 0.05 s of real time" in line]
    of_simulation = HEAD.replace("of job j", "of a simulation")
    assert [4, 1] == [
        sum(line.startswith(head) for line in heads) for head in (HEAD, of_simulation)
    ]


def test_a_step_that_swallows_the_end_of_its_wait_fails_the_test_all_the_same(
    shop: pytest.Pytester,
) -> None:
    shop.makepyfile(
        """
        from shop import event, shop

        def stubborn():
            try:
                event()
            except:
                pass

        def test_executes(flow_runtime):
            shop(stubborn).execute("charge", job_id="j")
        """
    )
    result = run_inside(shop)
    result.assert_outcomes(passed=1, errors=1)
    assert [HEAD] == [line[: len(HEAD)] for line in result.outlines if line.startswith(HEAD)]


@pytest.mark.parametrize("capture", ["fd", "sys", "no"])
def test_what_nobody_can_be_told_is_written_to_the_terminal(
    shop: pytest.Pytester, capture: str
) -> None:
    # The test itself waits in real time, until the report has been written.
    shop.makepyfile(
        """
        import threading
        from pytest_routilux import watchdog
        from shop import shop

        def test_waits_in_real_time(flow_runtime, monkeypatch):
            come, gone = threading.Event(), threading.Event()
            write = watchdog._Watch._write

            def write_and_go_on(watch, text):
                write(watch, text)
                come.set()

            def wait():
                come.wait()
                gone.set()

            monkeypatch.setattr(watchdog._Watch, "_write", write_and_go_on)
            shop(wait).start("charge", job_id="j")
            gone.wait()
        """
    )
    result = run_inside(shop, f"--capture={capture}")
    result.assert_outcomes(passed=1, errors=1)
    assert [HEAD] == [line[: len(HEAD)] for line in result.errlines if line.startswith(HEAD)]


@pytest.mark.skipif(not hasattr(signal, "SIGURG"), reason="this system has no such signal")
def test_a_thread_that_does_not_hear_is_told_of_once(shop: pytest.Pytester) -> None:
    shop.makepyfile(
        """
        import signal, threading
        from pytest_routilux import watchdog
        from shop import shop

        def test_is_deaf(flow_runtime, monkeypatch):
            come = threading.Event()
            write = watchdog._Watch._write

            def write_and_go_on(watch, text):
                write(watch, text)
                come.set()

            def wait():
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGURG})
                come.wait()

            monkeypatch.setattr(watchdog._Watch, "_write", write_and_go_on)
            try:
                shop(wait).execute("charge", job_id="j").raise_for_status()
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGURG})
        """
    )
    result = run_inside(shop, "-o", "routilux_blocked_after=0.05")
    result.assert_outcomes(passed=1)
    assert [HEAD] == [line[: len(HEAD)] for line in result.errlines if line.startswith(HEAD)]


def test_a_look_that_fails_fails_the_test_and_not_the_others(shop: pytest.Pytester) -> None:
    shop.makepyfile(
        """
        from pytest_routilux import watchdog
        from shop import event, shop

        def test_breaks(flow_runtime, monkeypatch):
            def broken(watch):
                raise LookupError("no eyes")

            monkeypatch.setattr(watchdog._Watch, "look", broken)
            while watchdog._dog._watches:
                pass

        def test_is_blocked(flow_runtime):
            shop(event).execute("charge", job_id="j")
        """
    )
    result = run_inside(shop)
    result.assert_outcomes(passed=1, failed=1, errors=1)
    result.stdout.fnmatch_lines(
        ["looking for blocked steps failed, our bug: LookupError('no eyes')"]
    )
    assert [HEAD] == [line[: len(HEAD)] for line in result.outlines if line.startswith(HEAD)]


def test_a_step_that_computes_or_goes_on_is_not_blocked(shop: pytest.Pytester) -> None:
    shop.makepyfile(
        """
        import time
        import pytest
        from shop import Charge
        from routilux import Flow

        @pytest.mark.skipif(not hasattr(time, "pthread_getcpuclockid"), reason="nothing tells")
        @pytest.mark.parametrize("strategy", ["sequential", "concurrent"])
        def test_computes(flow_runtime, strategy):
            def compute():
                begun = time.thread_time()
                while time.thread_time() < begun + 1.2:
                    pass

            flow = Flow("busy", execution_strategy=strategy)
            flow.add_routine(Charge(compute), "charge")
            flow.execute("charge").raise_for_status()

        def test_many_short_waits(flow_runtime, flow_clock):
            def naps():
                for _ in range(100):
                    flow_clock.advance(1)
                    real_sleep(0.001)

            from routilux.clock import real_sleep
            flow = Flow("naps")
            flow.add_routine(Charge(naps), "charge")
            flow.execute("charge").raise_for_status()
        """
    )
    # For so long that a machine with much to do lets the thread have its part of it.
    run_inside(shop, "-o", "routilux_blocked_after=0.5").assert_outcomes(passed=3)


WORK = """
    import asyncio, queue, threading, time
    from shop import Charge
    from routilux import Flow
    from routilux.clock import real_sleep

    class Budget:
        "Of CPU time: what it is spent on ends with it, so nothing here hangs."

        def __init__(self, seconds):
            self.end = time.clock_gettime(time.CLOCK_THREAD_CPUTIME_ID) + seconds

        def left(self):
            spin(0.0001)
            return time.clock_gettime(time.CLOCK_THREAD_CPUTIME_ID) < self.end

    def spin(seconds):
        clock = time.CLOCK_THREAD_CPUTIME_ID
        begun = time.clock_gettime(clock)
        while time.clock_gettime(clock) < begun + seconds:
            pass

    def flow_of(handler, strategy="sequential"):
        flow = Flow("work", execution_strategy=strategy)
        flow.add_routine(Charge(handler), "charge")
        return flow
"""
needs_cpu_time = pytest.mark.skipif(
    not hasattr(time, "pthread_getcpuclockid"), reason="nothing tells what a thread computes"
)


@needs_cpu_time
def test_a_poll_in_short_waits_is_told_though_it_costs_work(shop: pytest.Pytester) -> None:
    shop.makepyfile(
        work=WORK,
        test_polls="""
        import pytest
        from work import *

        def event(budget):
            while budget.left():
                threading.Event().wait(0.001)

        def kept(budget, sleep=real_sleep):
            while budget.left():
                sleep(
                    0.001
                )

        def locked(budget):
            lock = threading.Lock()
            lock.acquire()
            while budget.left() and not lock.acquire(timeout=0.001):
                pass

        def queued(budget):
            come = queue.Queue()
            while budget.left():
                try:
                    come.get(timeout=0.001)
                except queue.Empty:
                    pass

        def looped(budget):
            async def poll():
                while budget.left():
                    await asyncio.sleep(0.001)

            asyncio.run(poll())

        def slept(budget):
            while budget.left():
                time.sleep(0.001)

        @pytest.mark.parametrize("strategy", ["sequential", "concurrent"])
        @pytest.mark.parametrize("poll", [event, kept, locked, queued, looped, slept])
        def test_polls(flow_runtime, poll, strategy):
            flow_of(lambda: poll(Budget(0.5)), strategy).execute("charge")

        def test_polls_in_a_simulation(flow_sim):
            flow_sim.run(lambda: flow_of(lambda: event(Budget(0.5))), "charge")

        def test_polls_by_the_name_of_the_real_sleep(flow_clock_bare, flow_runtime):
            flow_of(lambda: slept(Budget(0.5))).execute("charge")
        """,
    )
    result = run_inside(shop, "-o", "routilux_sleep=real", "-o", "routilux_blocked_after=0.1")
    result.assert_outcomes(failed=14)
    told = [line for line in result.outlines if line.startswith("  at test_polls.py:")]
    assert {
        "6: threading.Event().wait(0.001)": 3,
        "10: sleep(": 2,
        "17: while budget.left() and not lock.acquire(timeout=0.001):": 2,
        "24: come.get(timeout=0.001)": 2,
        "31: await asyncio.sleep(0.001)": 2,
        "37: time.sleep(0.001)": 3,
    } == Counter(line.removeprefix("  at test_polls.py:") for line in told)


SECOND = 1_000_000_000


@pytest.mark.parametrize(
    ("share", "lines", "told"),
    [
        (0.04, [None, None, None, None], True),  # it does not compute
        (0.24, ["a", "a", "a", "a"], True),
        (0.24, ["a", "a", None, "a"], False),  # it was seen at work
        (0.24, ["a", "a", "b", "b"], False),  # it has gone on
        (0.26, ["a", "a", "a", "a"], False),  # it mostly computes, as far as a busy machine lets it
    ],
)
def test_whoever_computes_polls_if_every_look_finds_it_in_the_wait_of_one_line(
    monkeypatch: pytest.MonkeyPatch, share: float, lines: list[str | None], told: bool
) -> None:
    seen: list[object] = []
    looks = 0

    def sight(_: object) -> watchdog._Sight:
        return watchdog._Sight(1, sys._getframe(), None, (step,), int(looks * share * SECOND))

    step = object()
    monkeypatch.setattr(watchdog, "_now", lambda: looks * SECOND)
    monkeypatch.setattr(watchdog._Watch, "_sight", sight)
    monkeypatch.setattr(watchdog._Watch, "_tell", lambda *seeing: seen.append(seeing))
    monkeypatch.setattr(polls, "polled_line", lambda _: lines[looks - 1])
    config: Any = None
    watch = watchdog._Watch(None, 4, config)
    for _ in range(5):
        watch.look()
        looks += 1
    assert told == bool(seen)


@pytest.mark.parametrize(
    ("call", "innermost", "is_poll"),
    [
        ("come.wait(60)", "wait", True),
        ("box.get(timeout=60)", "wait", True),
        ("taken.acquire(\n timeout=60)", "<module>", True),
        ("select.select([inn], [], [], 60)", "<module>", True),
        ("library(come)", "wait", False),  # a library's wait, which may bring something
        ("inn.recv(1)", "<module>", False),
        ("[come.is_set() for _ in forever]", "<listcomp>", False),
    ],
)
def test_a_line_polls_if_it_calls_a_wait_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, innermost: str, is_poll: bool
) -> None:
    if innermost == "<listcomp>" and sys.version_info >= (3, 12):
        innermost = "<module>"  # where such a list has no frame of its own
    monkeypatch.setattr(places, "_LIBRARY", (*places._LIBRARY, str(tmp_path / "library")))
    library = _made_of("library = lambda come: come.wait(60)", tmp_path / "library.py")
    come, box, taken = threading.Event(), queue.Queue[int](), threading.Lock()
    inn, out = socket.socketpair()
    taken.acquire()
    users = tmp_path / "users.py"
    users.write_text(call)
    names = {
        "__name__": "users",
        "come": come,
        "box": box,
        "taken": taken,
        "inn": inn,
        "library": library["library"],
        "select": select,
        "forever": iter(come.is_set, True),
    }
    code = compile(call, str(users), "exec")
    thread = threading.Thread(target=exec, args=(code, names))
    thread.start()
    try:
        found = None
        while found is None or (found.f_code.co_name, code in _codes(found)) != (innermost, True):
            found = watchdog._frame_of(thread.ident or 0)
        stands = polled_line(found)
        while is_poll and stands is None:  # it is on its way to the wait
            stands = polled_line(watchdog._frame_of(thread.ident or 0) or found)
    finally:
        come.set()
        box.put(1)
        taken.release()
        out.send(b"!")
        thread.join()
        inn.close()
        out.close()
    assert ((code, 1) if is_poll else None) == stands


def _made_of(source: str, file: Path) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": file.stem}
    exec(compile(source, str(file), "exec"), names)
    return names


def _codes(frame: FrameType) -> list[CodeType]:
    return [outer.f_code for outer in places.outwards(frame)]


def test_a_step_that_stands_in_a_debugger_is_left_alone(shop: pytest.Pytester) -> None:
    # Whose prompt waits for a human; here for forty looks, ten times as long as is allowed.
    shop.makepyfile(
        """
        import pdb, threading
        from pytest_routilux import watchdog
        from shop import shop

        def test_stops(flow_runtime, monkeypatch):
            looked, look = threading.Semaphore(0), watchdog._Watch.look

            def count(watch):
                look(watch)
                looked.release()

            def prompt(debugger, _):
                for _ in range(40):
                    looked.acquire()
                return "continue"

            monkeypatch.setattr(watchdog._Watch, "look", count)
            monkeypatch.setattr(pdb.Pdb, "precmd", prompt)
            monkeypatch.setattr(pdb.Pdb, "use_rawinput", 0)
            shop(lambda: pdb.Pdb(readrc=False, nosigint=True).set_trace()).execute("charge")
        """
    )
    result = run_inside(shop, "-s", "-o", "routilux_blocked_after=0.02")
    result.assert_outcomes(passed=1)


def test_0_never_looks(shop: pytest.Pytester) -> None:
    shop.makepyfile(
        """
        from pytest_routilux import watchdog
        from shop import shop

        def test_waits(flow_runtime):
            shop(lambda: None).execute("charge")
            assert watchdog._dog._watches == [] and not watchdog._dog._gone.locked()
        """
    )
    run_inside(shop, "-o", "routilux_blocked_after=0").assert_outcomes(passed=1)


def test_others_go_on_when_the_turn_is_taken_from_a_blocked_thread() -> None:
    clock = FakeClock()
    come, ended = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    def block(self: Any) -> None:
        come.wait()
        try:
            self.ctx.sleep(1)
        except BaseException as error:
            errors.append(error)
            raise
        finally:
            ended.set()

    def flow_of(handler: Any) -> Flow:
        class Do(Routine):
            def __init__(self) -> None:
                super().__init__()
                self.define_slot("trigger", handler=self.do)

            def do(self) -> None:
                handler(self)

        flow = Flow("do")
        flow.add_routine(Do(), "do")
        return flow

    with Runtime(clock=clock) as runtime, Runtime(clock=clock) as other:
        blocked = flow_of(block).start("do", runtime=runtime)
        while (turn := clock.turn()) is None or not turn.who.startswith("do "):
            pass
        error = RuntimeError("it is blocked")
        assert watchdog._failed(blocked._drive, error)
        assert clock.revoke(turn, error)
        assert not clock.revoke(turn, error)
        with pytest.raises(RuntimeError, match="it is blocked"):
            blocked.wait()
        job = flow_of(lambda self: self.ctx.sleep(5)).execute("do", runtime=other)
        assert 5_000_000_000 == job.updated_ns - job.started_ns
        come.set()
        ended.wait()
        # Its job is over, and so is its part in the turns.
        assert errors
        clock.advance(2)
        assert 7_000_000_000 == clock.monotonic_ns()


def test_a_thread_that_lost_its_turn_is_refused_when_it_waits() -> None:
    clock = FakeClock()
    worker = clock.worker("late")
    worker.start()
    turn = clock.turn()
    assert turn is not None
    assert "late" == turn.who
    assert clock.revoke(turn, RuntimeError("too late"))
    with pytest.raises(ClockStalledError, match="too late"):
        clock.wait(None, 10)
    begun, done = threading.Event(), threading.Event()

    def work() -> None:
        following = clock.worker("the next")
        following.start()
        begun.set()
        done.wait()
        following.stop()

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait()
    worker.stop()  # of a turn that it has no longer
    taken = clock.turn()
    done.set()
    thread.join()
    assert taken is not None
    assert "the next" == taken.who
    assert clock.turn() is None
    clock.advance(1)


# --- what it leaves behind ------------------------------------------------------------------------


def test_no_thread_shows_and_a_fork_finds_none(pytester: pytest.Pytester) -> None:
    # From 3.12 on a fork beside a thread warns.
    if not Path("/proc/self/task").is_dir():
        pytest.skip("needs a system that lists threads")
    pytester.makepyfile(
        """
        import os, threading
        from pathlib import Path
        from pytest_routilux import watchdog

        def count():
            return len(list(Path("/proc/self/task").iterdir()))

        def test_forks(flow_clock):
            assert (1, 2) == (threading.active_count(), count())
            if (child := os.fork()) == 0:
                os._exit(0)
            os.waitpid(child, 0)
            assert not watchdog._dog._gone.locked()

        def test_looks_again(flow_clock):
            assert watchdog._dog._gone.locked()
        """
    )
    run_inside(pytester).assert_outcomes(passed=2)


def test_the_thread_ends_when_there_is_nothing_to_look_at() -> None:
    dog = watchdog._Watchdog()

    class Watch:
        every = 0.001
        seen = 0

        def look(self) -> None:
            self.seen += 1
            looked.set()

    looked = threading.Event()
    watch: Any = Watch()
    dog.add(watch)
    looked.wait()
    dog.remove(watch)
    assert dog._gone.acquire(timeout=60)  # which the thread holds to its end
    dog._gone.release()
    assert watch.seen
    looked.clear()
    dog.add(watch)
    looked.wait()
    dog.remove(watch)


@pytest.mark.skipif(not hasattr(signal, "SIGURG"), reason="this system has no such signal")
def test_the_signal_is_as_before_and_one_of_the_users_own_stays(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import signal

        def test_ours(flow_clock):
            assert callable(signal.getsignal(signal.SIGURG))

        def test_none():
            assert signal.SIG_DFL is signal.getsignal(signal.SIGURG)

        def test_users_own(request):
            mine = lambda *_: None
            signal.signal(signal.SIGURG, mine)
            request.getfixturevalue("flow_clock")
            assert mine is signal.getsignal(signal.SIGURG)

        def test_still_the_users():
            assert "<lambda>" == signal.getsignal(signal.SIGURG).__name__
        """
    )
    run_inside(pytester).assert_outcomes(passed=4)


def test_a_signal_that_comes_too_late_breaks_nothing_off() -> None:
    watchdog._pending = "blocked", object()  # type: ignore[assignment]  # a step that is gone
    watchdog._break_off(0, sys._getframe())
    assert watchdog._pending is None
