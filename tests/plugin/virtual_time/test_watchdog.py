"""A handler that waits in real time fails its test with a report, and never hangs it.

Each handler here waits for ever, or until the test has seen the report.
"""

from __future__ import annotations

import re
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pytest_routilux.virtual_time import watchdog
from routilux import FakeClock, Runtime
from routilux.errors import ClockStalledError
from tests.plugin.inner import run_inside
from tests.routines import chain, sleeps

CONFTEST = """
    import threading
    import pytest
    from pytest_routilux.virtual_time import watchdog

    @pytest.fixture
    def written(monkeypatch):
        "An event that is set when a report has been written to the terminal."
        come, write = threading.Event(), watchdog._Watch._write
        monkeypatch.setattr(
            watchdog._Watch, "_write", lambda *what: (write(*what), come.set())
        )
        return come

    @pytest.fixture
    def checks(monkeypatch):
        "A semaphore that is released at each check."
        checked, check = threading.Semaphore(0), watchdog._Watch.check
        monkeypatch.setattr(
            watchdog._Watch, "check", lambda watch: (check(watch), checked.release())
        )
        return checked
"""
HEAD = "charge (task 0, attempt 1) of job j is blocked: "
needs_signal = pytest.mark.skipif(
    not hasattr(signal, "SIGURG"), reason="this system has no such signal"
)


@pytest.fixture
def shop(shop: pytest.Pytester) -> pytest.Pytester:
    shop.makeconftest(CONFTEST)
    shop.makeini("[pytest]\npythonpath = .\nroutilux_blocked_after = 0.05")
    return shop


def heads(lines: list[str]) -> list[str]:
    return [HEAD for line in lines if line.startswith(HEAD)]


def test_the_report_names_the_step_the_line_and_the_call_on_every_driver(shop):
    shop.makepyfile(
        """
        import pytest
        import shop as s

        @pytest.mark.parametrize("strategy", ["sequential", "concurrent"])
        @pytest.mark.parametrize("wait", [s.event, s.polled, s.queued, s.pipe, s.later])
        def test_executes(flow_runtime, wait, strategy):
            s.shop(wait, strategy).execute("charge", job_id="j")
        """
    )
    result = run_inside(shop)
    result.assert_outcomes(failed=10)
    lines = result.outlines
    assert [HEAD] * 10 == heads(lines)
    begin = next(i for i, line in enumerate(lines) if line.startswith(HEAD))
    assert "_ test_executes[event-sequential] _" in lines[begin - 1]
    assert [
        "  at shop.py:7: threading.Event().wait()",
        "  in threading.Event.wait()",
        "  to let time pass, call self.ctx.sleep(seconds); to wait for other work, let that",
        "  work emit an event; to allow longer waits, raise routilux_blocked_after (seconds;",
        "  0: no limit)",
        "  the stack of the blocked thread, innermost last:",
    ] == lines[begin + 1 : begin + 7]
    assert "    shop.py:7 in event" in lines[begin + 7 : begin + 11]
    for line, call in (
        ("shop.py:7: threading.Event().wait()", "threading.Event.wait()"),
        ("shop.py:14: queue.Queue().get(timeout=10**6)", "queue.Queue.get()"),
        ("shop.py:20: threading.Event().wait()", "threading.Event.wait()"),
    ):
        places = [i for i, printed in enumerate(lines) if printed == f"  at {line}"]
        assert [f"  in {call}"] * 2 == [lines[i + 1] for i in places]
    assert 2 == lines.count("  at shop.py:17: os.read(os.pipe()[0], 1)")
    # A poll may be seen between two waits.
    poll = r"    shop\.py:(10|11) in polled"
    assert 2 == sum(bool(re.match(poll, line)) for line in lines)


def test_every_way_of_waiting_on_the_clock_fails_with_the_report(shop):
    shop.makepyfile(
        """
        import asyncio
        from shop import event, polled, shop

        def test_waits(flow_runtime):
            shop(event).start("charge", job_id="j").wait()

        def test_moves_the_time(flow_runtime, flow_clock):
            shop(event).start("charge", job_id="j")
            flow_clock.advance(1)

        def test_awaits(flow_runtime):
            asyncio.run(shop(event).aexecute("charge", job_id="j"))

        def test_simulates(flow_sim):
            flow_sim.run(lambda: shop(event), "charge")

        def test_simulates_a_poll(flow_sim):
            flow_sim.run(lambda: shop(polled), "charge")

        def test_on_the_bare_clock(flow_clock_bare, flow_runtime):
            shop(event).execute("charge", job_id="j")

        def test_swallows_the_error(flow_runtime):
            def stubborn():
                try:
                    event()
                except:
                    pass

            shop(stubborn).execute("charge", job_id="j")
        """
    )
    result = run_inside(shop)
    result.assert_outcomes(failed=6, passed=1, errors=1)
    of_simulation = HEAD.replace("of job j", "of a simulation")
    assert 5 == len(heads(result.outlines))
    assert 2 == sum(line.startswith(of_simulation) for line in result.outlines)


@pytest.mark.parametrize("capture", ["fd", "sys", "no"])
def test_a_report_that_no_test_can_raise_is_written_to_the_terminal(shop, capture):
    # The test itself waits in real time, until the report has been written.
    shop.makepyfile(
        """
        import threading
        from shop import shop

        def test_waits_in_real_time(flow_runtime, written):
            ended = threading.Event()
            shop(lambda: (written.wait(), ended.set())).start("charge", job_id="j")
            ended.wait()
        """
    )
    result = run_inside(shop, f"--capture={capture}")
    result.assert_outcomes(passed=1, errors=1)
    assert [HEAD] == heads(result.errlines)


def test_a_failing_check_fails_its_test_alone_and_progress_is_never_reported(shop):
    # The CPU time is a count, so that nothing depends on how busy the machine is.
    shop.makepyfile(
        """
        import itertools
        import pytest
        from pytest_routilux.virtual_time import watchdog
        from routilux.clocks import fake_clock
        from shop import event, shop

        both = pytest.mark.parametrize("strategy", ["sequential", "concurrent"])

        def test_breaks(flow_runtime, monkeypatch):
            def broken(watch):
                raise LookupError("no eyes")

            monkeypatch.setattr(watchdog._Watch, "check", broken)
            while watchdog._watchdog._watches:
                pass

        def test_is_blocked(flow_runtime):
            shop(event).execute("charge", job_id="j")

        @both
        def test_computes(flow_runtime, checks, monkeypatch, strategy):
            seconds = itertools.count(0, 10**9)
            monkeypatch.setattr(fake_clock, "thread_busy_ns", lambda _: next(seconds))
            compute = lambda: [checks.acquire() for _ in range(12)]
            shop(compute, strategy).execute("charge").raise_for_status()

        @both
        def test_many_short_waits(flow_runtime, flow_clock, checks, strategy):
            naps = lambda: [(checks.acquire(), flow_clock.advance(1)) for _ in range(12)]
            shop(naps, strategy).execute("charge").raise_for_status()
        """
    )
    result = run_inside(shop)
    result.assert_outcomes(passed=5, failed=1, errors=1)
    result.stdout.fnmatch_lines(
        ["the check for blocked steps failed by a bug of routilux: LookupError('no eyes')"]
    )
    assert [HEAD] == heads(result.outlines)


@needs_signal
def test_a_thread_that_blocks_the_signal_is_reported_once(shop):
    shop.makepyfile(
        """
        import signal
        import pytest
        from pytest_routilux.virtual_time import watchdog
        from shop import shop

        def test_is_deaf(flow_runtime, written, monkeypatch):
            def wait():
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGURG})
                written.wait()

            monkeypatch.setattr(watchdog, "_PATIENCE", 0.02)
            try:
                shop(wait).execute("charge", job_id="j").raise_for_status()
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGURG})
        """
    )
    result = run_inside(shop)
    result.assert_outcomes(passed=1)
    assert [HEAD] == heads(result.errlines)


def test_a_step_that_waits_in_real_time_for_longer_than_its_timeout_fails_and_says_where(shop):
    shop.makepyfile(
        """
        import threading
        import time
        from pathlib import Path
        import pytest
        from routilux import ErrorHandler
        from pytest_routilux.virtual_time import watchdog
        from shop import chain

        @pytest.fixture
        def seen(monkeypatch):
            # The wait ends when the watchdog has seen it for longer than the timeout.
            charged = threading.Event()
            charge = watchdog._Watch._charge

            def tells(watch, frame, step, waited):
                charge(watch, frame, step, waited)
                if step.context.charged:
                    charged.set()

            monkeypatch.setattr(watchdog._Watch, "_charge", tells)
            return charged

        def run(flow, how):
            flow.set_error_handler(ErrorHandler("retry", timeout=0.05, retry_delay=3))
            if how == "execute":
                return flow.execute("charge", job_id="j")
            return flow.start("charge", job_id="j").wait()

        @pytest.mark.parametrize("how", ["execute", "start"])
        @pytest.mark.parametrize("is_async", [False, True])
        def test_times_out(flow_runtime, flow_monitor, seen, how, is_async):
            def charge(self, n=0):
                if self.ctx.attempt == 1:
                    seen.wait()

            async def charge_later(self, n=0):
                charge(self)

            job = run(chain(charge=charge_later if is_async else charge), how)
            assert job.status == "completed"
            flow_monitor.assert_retried("charge", times=1, delays=[3])
            error = job.commits[1].error
            assert error.type == "routilux.StepTimeoutError"
            line = charge.__code__.co_firstlineno + 2
            assert error.message == (
                "attempt 1 of charge took longer than its timeout of 0.05 s of real time: it waited"
                f" at {Path(__file__).name}:{line}: seen.wait()"
            )

        def test_one_that_computes_does_not(flow_runtime):
            def charge(self, n=0):
                until = time.thread_time() + 0.3
                while time.thread_time() < until:
                    pass

            assert run(chain(charge=charge), "start").status == "completed"
        """
    )
    run_inside(shop, "-o", "routilux_blocked_after=5").assert_outcomes(passed=5)


@pytest.mark.parametrize(
    ("shares", "at"),
    [
        ([0.0] * 9, 4),
        ([0.06] * 9, 4),
        ([0.11] * 9, 6),
        ([0.19] * 20, 13),
        ([0.25] * 99, None),
        ([1.0] * 99, None),
        ([*[1.0] * 50, *[0.0] * 9], 54),  # what was computed is no credit
        ([*[0.0] * 3, 1.0, *[0.0] * 9], 8),
        ([0.0, 0.0, 0.75] * 33, None),
    ],
)
def test_a_step_is_blocked_when_it_has_waited_for_so_long_less_four_times_its_cpu_time(
    monkeypatch, shares, at
):
    reported: list[int] = []
    step, computed, checks = object(), 0.0, 0

    def sight(_: object) -> watchdog._Sight:
        return watchdog._Sight(1, sys._getframe(), None, (step,), None, round(computed * 1e9))

    monkeypatch.setattr(watchdog._Watch, "_sight", sight)
    monkeypatch.setattr(watchdog._Watch, "_report", lambda *_: reported.append(checks))
    config: Any = None
    watch = watchdog._Watch(None, 0.4, config)
    watch.check()
    for share in shares:
        checks += 1
        computed += share * watch.every
        watch.check()
    assert ([] if at is None else [at]) == reported


@pytest.mark.skipif(
    not hasattr(time, "pthread_getcpuclockid"), reason="this system reports no CPU time of a thread"
)
def test_a_turn_reports_the_cpu_time_of_its_thread():
    clock = FakeClock()
    worker = clock.party("busy")
    worker.start()
    before = clock.turn()
    end = time.thread_time_ns() + 5_000_000
    while time.thread_time_ns() < end:
        pass
    after = clock.turn()
    worker.stop()
    assert 5_000_000 <= (after.busy_ns or 0) - (before.busy_ns or 0)


def test_a_step_in_a_debugger_is_not_blocked(shop):
    # Its prompt waits for a human; here for three times as many checks as are allowed.
    shop.makepyfile(
        """
        import pdb
        from shop import shop

        def test_stops(flow_runtime, checks, monkeypatch):
            prompt = lambda *_: [checks.acquire() for _ in range(12)] and "continue"
            monkeypatch.setattr(pdb.Pdb, "precmd", prompt)
            monkeypatch.setattr(pdb.Pdb, "use_rawinput", 0)
            shop(lambda: pdb.Pdb(readrc=False, nosigint=True).set_trace()).execute("charge")
        """
    )
    run_inside(shop, "-s").assert_outcomes(passed=1)


def test_blocked_after_0_checks_nothing(shop):
    shop.makepyfile(
        """
        from pytest_routilux.virtual_time import watchdog
        from shop import shop

        def test_waits(flow_runtime):
            shop(lambda: None).execute("charge")
            assert watchdog._watchdog._watches == [] and not watchdog._watchdog._runs.locked()
        """
    )
    run_inside(shop, "-o", "routilux_blocked_after=0").assert_outcomes(passed=1)


def test_other_jobs_run_when_the_turn_is_taken_from_a_blocked_thread():
    clock = FakeClock()
    begun, come, ended = threading.Event(), threading.Event(), threading.Event()
    errors: list[BaseException] = []

    def block(self: Any, n: object = 0) -> None:
        begun.set()
        come.wait()
        try:
            self.ctx.sleep(1)
        except BaseException as error:
            errors.append(error)
            raise
        finally:
            ended.set()

    with Runtime(clock=clock) as runtime, Runtime(clock=clock) as other:
        blocked = chain(do=block).start("do", runtime=runtime)
        begun.wait()  # the turn may have been given to a thread that has not come yet
        turn = clock.turn()
        assert turn is not None
        assert turn.who.startswith("do ")
        error = RuntimeError("it is blocked")
        assert watchdog._failed(blocked._drive, error)
        assert clock.revoke(turn, error)
        assert not clock.revoke(turn, error)
        with pytest.raises(RuntimeError, match="it is blocked"):
            blocked.wait()
        job = chain(do=sleeps(5)).execute("do", runtime=other)
        assert 5_000_000_000 == job.updated_ns - job.started_ns
        come.set()
        ended.wait()
        # Its job is over, and so is its part in the turns.
        assert errors
        clock.advance(2)
        assert 7_000_000_000 == clock.monotonic_ns()


def test_a_thread_that_lost_its_turn_is_refused_when_it_waits():
    clock = FakeClock()
    worker = clock.party("late")
    worker.start()
    turn = clock.turn()
    assert "late" == turn.who
    assert clock.revoke(turn, RuntimeError("too late"))
    with pytest.raises(ClockStalledError, match="too late"):
        clock.wait(None, 10)
    begun, done = threading.Event(), threading.Event()

    def work() -> None:
        following = clock.party("the next")
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
    assert "the next" == taken.who
    assert clock.turn() is None
    clock.advance(1)


def test_threading_does_not_list_the_watchdog_and_a_fork_finds_no_thread(pytester):
    # From 3.12 on a fork warns if the process has other threads.
    if not Path("/proc/self/task").is_dir():
        pytest.skip("needs a system that lists threads")
    pytester.makepyfile(
        """
        import os, threading
        from pathlib import Path
        from pytest_routilux.virtual_time import watchdog

        def count():
            return len(list(Path("/proc/self/task").iterdir()))

        def test_forks(flow_clock):
            assert (1, 2) == (threading.active_count(), count())
            if (child := os.fork()) == 0:
                os._exit(watchdog._watchdog._runs.locked())
            assert (child, 0) == os.waitpid(child, 0)
            assert watchdog._watchdog._runs.locked(), "the parent checks no more"

        def test_checks_again(flow_clock):
            assert watchdog._watchdog._runs.locked()
        """
    )
    run_inside(pytester).assert_outcomes(passed=2)


def test_the_thread_ends_when_there_is_nothing_to_check():
    dog = watchdog._Watchdog()

    class Watch:
        every = 0.001

        def check(self) -> None:
            checked.set()

    checked = threading.Event()
    watch: Any = Watch()
    dog.add(watch)
    checked.wait()
    dog.remove(watch)
    assert dog._runs.acquire(timeout=60)  # which the thread holds to its end
    dog._runs.release()
    checked.clear()
    dog.add(watch)
    checked.wait()
    dog.remove(watch)


@needs_signal
def test_the_signal_is_as_before_and_one_of_the_users_own_stays(pytester):
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


def test_a_signal_that_comes_too_late_interrupts_nothing():
    watchdog._pending = "blocked", object()  # type: ignore[assignment]  # a step that is gone
    watchdog._fail_step(0, sys._getframe())
    assert watchdog._pending is None


TIMEOUTS = """
    from shop import event
    from tests.routines import chain, sleeps

    def test_waits_for_days_in_virtual_time(flow_runtime):
        for workers in (None, 1):
            flow = chain(charge=sleeps(10**6), workers=workers)
            flow.execute("charge", job_id=f"j{workers}").raise_for_status()

    def test_waits_for_ever_in_real_time(flow_runtime):
        chain(charge=lambda self, n=0: event()).execute("charge", job_id="j")
"""


@pytest.mark.parametrize("method", ["signal", "thread"])
def test_pytest_timeout_counts_real_time(shop, method):
    shop.makepyfile(TIMEOUTS)
    result = run_inside(
        shop,
        *("-p", "pytest_timeout", "--timeout=1.5", f"--timeout-method={method}", "-v"),
        *("-o", "routilux_blocked_after=0"),
    )
    assert any("in_virtual_time PASSED" in line for line in result.outlines)
    if method == "signal":
        result.assert_outcomes(passed=1, failed=1)
        result.stdout.fnmatch_lines(["*Failed: Timeout (>1.5s) from pytest-timeout."])
    else:  # which ends the whole process
        assert 1 == result.ret
        result.stdout.fnmatch_lines(["*++ Timeout ++*", "*chain(charge=lambda self, n=0: event*"])


def test_the_faster_of_both_plugins_reports(shop):
    shop.makepyfile(TIMEOUTS)
    result = run_inside(
        shop, "-p", "pytest_timeout", "--timeout=60", "-o", "routilux_blocked_after=0.05"
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines([f"{HEAD}*"])
