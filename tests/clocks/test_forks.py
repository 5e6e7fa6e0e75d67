"""A forked child has clocks, stores and a runtime of its own, whatever its parent's threads do."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from routilux import FakeClock, MemoryStore, Runtime
from tests.engine.concurrency import in_a_child
from tests.routines import PATIENCE, chain, rest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


def held_while(lock: threading.Lock, does: Callable[[], None]) -> None:
    """Do it while another thread holds the lock."""
    taken, done = threading.Event(), threading.Event()

    def holds() -> None:
        with lock:
            taken.set()
            done.wait(PATIENCE)

    thread = threading.Thread(target=holds)
    thread.start()
    taken.wait(PATIENCE)
    try:
        does()
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("kind", ["memory", "clock", "runtime"])
def test_a_child_uses_what_a_thread_of_its_parent_has_locked(kind):
    clock = FakeClock()
    memory = MemoryStore(clock)
    runtime = Runtime(clock=clock, store=memory)
    uses: Callable[[], object]
    lock, uses = {
        "memory": (memory._lock, memory.job_ids),
        "clock": (clock._lock, lambda: clock.advance(1)),
        "runtime": (runtime.environment.lock, lambda: runtime.execute(chain(a=rest), "a")),
    }[kind]
    held_while(lock, lambda: in_a_child(uses))


def test_a_child_that_a_step_forks_does_not_wait_for_steps_of_its_parent():
    clock = FakeClock()

    def forks(self, n=0):
        in_a_child(lambda: clock.wait(None, clock.monotonic_ns() + 10**9))

    def sleeps(self, n=0):
        self.ctx.sleep(0.5)

    with Runtime(clock=clock) as runtime:
        runs = [runtime.start(chain(a=does), "a") for does in (sleeps, forks)]
        for run in runs:
            run.wait(60).raise_for_status()


@pytest.mark.parametrize("kept", ["MemoryStore()", "Runtime()"])
def test_a_program_that_ends_writes_nothing(kept):
    program = f"""
from routilux import MemoryStore, Runtime

kept = {kept}
kept.cycle = kept  # only the collector of the ending interpreter frees it
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (0, "", "") == (done.returncode, done.stdout, done.stderr)
