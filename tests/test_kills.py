"""A job survives whatever is killed, whenever: real processes, SIGKILL, and a look at what is left.

Nothing is slept for: whoever kills waits for what the workers say, and they for their leases.
"""

from __future__ import annotations

import json
import os
import random
import re
import select
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from time import time_ns
from typing import Any

import pytest

from routilux import CommitKind, JobState, JobStatus, Runtime, SqliteStore, Worker
from routilux.cli import main
from tests.kill_host import DELAYS_NS, digest, story

ROOT = Path(__file__).parents[1]
AT_WRITES = 80
AT_RANDOM = 20
PATIENCE = 120  # seconds that a busy machine may take to say a word


class Host:
    """The process that forks workers; `told` is everything that they said."""

    def __init__(self, folder: Path) -> None:
        self.store = str(folder / "jobs.db")
        self.effects = str(folder / "effects")
        self.told: list[list[Any]] = []
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from tests.kill_host import serve; serve()"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        self._rest = b""
        self._handles: list[int] = []

    def order(self, order: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")

    def begin(self, **order: Any) -> int:
        """Start a worker; return what it can be signalled by, whatever process has its id then."""
        self.order({"store": self.store, "effects": self.effects, **order})
        said = self.until("ready", "end")
        if said[0] == "end":
            return -1
        handle = os.pidfd_open(said[1])
        self._handles.append(handle)
        self.order("go")
        self.until("runs")
        return handle

    def hear(self, patience: float = PATIENCE) -> list[Any] | None:
        """Return what a worker says next; None if it says nothing for so long."""
        assert self._process.stdout is not None
        while b"\n" not in self._rest:
            if not select.select([self._process.stdout], [], [], patience)[0]:
                return None
            data = self._process.stdout.read(65536)
            assert data, "the host has ended"
            self._rest += data
        line, self._rest = self._rest.split(b"\n", 1)
        said: list[Any] = json.loads(line)
        self.told.append(said)
        return said

    def until(self, *kinds: str) -> list[Any]:
        while (said := self.hear()) is not None:
            if said[0] in kinds:
                return said
            assert said[0] != "end", f"the worker ended ({said[1]}) and said none of {kinds}"
        raise AssertionError(f"nobody said any of {kinds}")

    def close(self) -> None:
        for handle in self._handles:
            with suppress(ProcessLookupError):
                kill(handle)
            os.close(handle)
        self._process.kill()
        self._process.communicate()


@contextmanager
def hosts(folder: Path, count: int) -> Iterator[list[Host]]:
    made = [Host(folder) for _ in range(count)]
    try:
        yield made
    finally:
        for host in made:
            host.close()


def kill(handle: int) -> None:
    signal.pidfd_send_signal(handle, signal.SIGKILL)


def soak(host: Host, name: str) -> Counter[str]:
    """Live many lives; return in which phase each was ended by a kill."""
    phases: Counter[str] = Counter()
    chance = random.Random(name)
    for life in range(AT_WRITES + AT_RANDOM):
        begun = len(host.told)
        kill_at = life + 1 if life < AT_WRITES else 0
        handle = host.begin(kill_at=kill_at, submit=[f"{name}-{life}-0", f"{name}-{life}-1"])
        if not kill_at:
            for _ in range(chance.randrange(40)):
                if host.told[-1][0] == "end" or host.hear(chance.random() / 20) is None:
                    break
            kill(handle)
        if host.told[-1][0] != "end":
            host.until("end")
        status = host.told[-1][1]
        assert status in (0, -signal.SIGKILL)
        if status:
            killed = [said[1] for said in host.told[begun:] if said[0] == "killed"]
            assert len(killed) == (kill_at > 0)
            phases[killed[0] if killed else f"at random, after {host.told[-2][0]}"] += 1
    return phases


def test_no_kill_loses_a_commit_or_repeats_what_was_done(
    tmp_path: Path, record_property: Any
) -> None:
    phases: Counter[str] = Counter()
    with hosts(tmp_path, 2) as pair:
        with ThreadPoolExecutor(2) as threads:
            for found in threads.map(soak, pair, "ab"):
                phases += found
        pair[0].begin()  # what is left is done by a worker that nobody kills
        assert ["end", 0] == pair[0].until("end")
        told = [said for host in pair for said in host.told]
    record_property("phases", dict(phases))
    assert sum(phases.values()) >= 100, phases
    for write in ("create", "append", "claim", "keep_snapshot", "acquire"):
        assert phases[f"before {write}"], phases
        assert phases[f"after {write}"], phases
    for statement in ("COMMIT of create", "COMMIT of claim", "INSERT of append"):
        assert phases[statement], phases

    with SqliteStore(tmp_path / "jobs.db") as store:
        runtime = Runtime(store=store)
        jobs = {job_id: runtime.load(job_id, history=True) for job_id in store.job_ids()}
        assert all(job == _without_history(runtime, job) for job in jobs.values())
    assert len(jobs) >= 100
    acknowledged = {(said[1], said[2], said[3]) for said in told if said[0] == "commit"}
    kept = {(i, c.seq, digest(c)) for i, job in jobs.items() for c in job.commits}
    assert set() == acknowledged - kept, "a commit was lost"
    for job in jobs.values():
        _check(job)
    _check_effects((tmp_path / "effects").read_text().splitlines(), jobs)


def _without_history(runtime: Runtime, job: JobState) -> JobState:
    """The job, loaded from its snapshot, with the history that it lacks."""
    loaded = runtime.load(job.job_id)
    assert len(loaded.commits) < len(job.commits), "there was no snapshot"
    loaded._commits = list(job.commits)
    return loaded


def _check(job: JobState) -> None:
    """Each step was applied once, with its retries and due times, whatever was killed."""
    assert JobStatus.COMPLETED is job.status
    assert {"sent": 2} == job.shared_data
    ended = Counter((c.task_id, c.attempt) for c in job.commits if c.kind in _ENDS)
    expected = [("0", 1), ("0", 2), ("0", 3), ("0.0", 1), ("0.1", 1)]
    assert Counter(expected) == ended
    assert (3, 2) == (job.routine_states["first"].attempts, job.retry_count("first"))
    effects = [(c.task_id, (c.detail or {})["name"]) for c in job.commits if c.effect]
    assert [("0", "charge"), ("0.0", "send"), ("0.1", "send")] == sorted(effects)
    retries = [c for c in job.commits if c.kind is CommitKind.RETRY]
    assert DELAYS_NS == tuple(c.delay_ns for c in retries)
    for retry in retries:
        assert retry.due_ns == retry.at_ns + (retry.delay_ns or 0)
        after = next(c for c in job.commits if c.task_id == "0" and c.attempt == retry.attempt + 1)
        assert (after.started_ns or 0) >= retry.due_ns
    times = [commit.at_ns for commit in job.commits]
    assert sorted(times) == times


_ENDS = (CommitKind.DONE, CommitKind.RETRY, CommitKind.FAILED, CommitKind.DROPPED)


def _check_effects(lines: list[str], jobs: dict[str, JobState]) -> None:
    recorded: set[str] = set()
    done: set[str] = set()
    for line in lines:
        what, key = line.split(" ", 1)
        if what == "does":
            assert key not in recorded, f"{key} was recorded, and done again"
            done.add(key)
        else:
            recorded.add(key)
    assert done == recorded
    assert 3 * len(jobs) == len(done)


# --- a host that stands still ---------------------------------------------------------------------

STILL = 0.3


@pytest.mark.parametrize("ends", ["continued", "killed"])
def test_a_host_that_stands_still_past_its_lease_is_taken_over_and_its_commit_refused(
    tmp_path: Path, ends: str, record_property: Any
) -> None:
    with hosts(tmp_path, 2) as (first, second), SqliteStore(tmp_path / "jobs.db") as store:
        runtime = Runtime(store=store)
        job_id = runtime.submit(story(first.effects, asks=True), "first")
        lazy = first.begin(asks=True, lease=STILL, late=[job_id])
        first.until("begun")
        signal.pidfd_send_signal(lazy, signal.SIGSTOP)
        stopped = time_ns()
        second.begin(asks=True, lease=STILL)
        second.until("begun")
        second.order("go on")
        assert ["end", 0] == second.until("end")
        if ends == "continued":
            first.order("go on")
            signal.pidfd_send_signal(lazy, signal.SIGCONT)
            assert ["end", 0] == first.until("end")
            [refused] = [said for said in first.told if said[0] == "refused"]
            assert "LeaseLostError" == refused[1]
            assert any(said[0] == "log" and job_id in said[1] for said in first.told)
            assert "done" not in [said[-1] for said in first.told if said[0] == "commit"]
        job = runtime.load(job_id, history=True)
    assert ["start", "resumed", "resumed", "done", "effect", "done"] == [
        c.kind for c in job.commits
    ]
    assert {"sent": 1} == job.shared_data
    # How soon is said and not asserted: lease + 1 s on a machine that has time for it.
    record_property("taken over after, s", (job.commits[2].at_ns - stopped) / 10**9)
    assert ["does", "has"] == [
        line.split()[0] for line in Path(first.effects).read_text().splitlines()
    ]


def test_sigterm_lets_the_step_in_flight_end_and_another_worker_goes_on(tmp_path: Path) -> None:
    with hosts(tmp_path, 1) as (host,), SqliteStore(tmp_path / "jobs.db") as store:
        runtime = Runtime(store=store)
        flow = story(host.effects, asks=True)
        job_id = runtime.submit(flow, "first")
        handle = host.begin(asks=True, lease=30)
        host.until("begun")
        signal.pidfd_send_signal(handle, signal.SIGTERM)
        host.order("go on")
        assert ["end", 0] == host.until("end")
        ran = [commit.kind for commit in runtime.load(job_id, history=True).commits]
        assert ["start", "resumed", "done"] == ran[:3]
        began = time_ns()
        Worker(store, [flow], runtime=runtime).run(until_idle=True)
        assert JobStatus.COMPLETED is runtime.load(job_id).status
        assert time_ns() - began < 10 * 10**9, "the job was not given back, but left to its lease"


# --- which stops count, and what a killed process leaves ------------------------------------------


def test_workers_that_are_killed_again_and_again_poison_their_job(tmp_path: Path) -> None:
    with hosts(tmp_path, 1) as (host,), SqliteStore(tmp_path / "jobs.db") as store:
        runtime = Runtime(store=store)
        job_id = runtime.submit(story(host.effects, asks=True), "first")
        for _ in range(3):
            handle = host.begin(asks=True, most=2)
            host.until("begun")
            kill(handle)
            assert ["end", -signal.SIGKILL] == host.until("end")
        host.begin(asks=True, most=2)
        assert ["end", 0] == host.until("end")
        job = runtime.load(job_id, history=True)
    assert ["start", "resumed", "resumed", "resumed", "failed"] == [c.kind for c in job.commits]
    assert "recovered 2 times without progress" in str(job.error)


def test_a_job_of_a_killed_execute_is_taken_over_by_an_operator_and_done_by_a_worker(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "jobs.db")
    with hosts(tmp_path, 2) as (first, second):
        first.order({"store": path, "effects": first.effects, "asks": True, "execute": "j"})
        pid = first.until("begun")[1]
        os.kill(pid, signal.SIGKILL)
        assert ["end", -signal.SIGKILL] == first.until("end")
        assert 1 == main(["retry", path, "j"])
        told = capsys.readouterr().err
        assert re.search(rf"j is running, held by \S+:{pid}:\w+ without a lease; if that", told)
        assert 0 == main(["retry", path, "j", "--take-over"])
        second.begin(asks=True)
        second.until("begun")
        second.order("go on")
        assert ["end", 0] == second.until("end")
    with SqliteStore(path) as store:
        job = Runtime(store=store).load("j", history=True)
    assert JobStatus.COMPLETED is job.status
    assert ["start", "resumed", "resumed", "done"] == [c.kind for c in job.commits][:4]
    assert [1, 1] == [(c.detail or {})["recoveries"] for c in job.commits if c.kind == "resumed"]
