"""Questions of remote steps to the process that runs the job."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from routilux import (
    JobStatus,
    LeaseLostError,
    MemoryStore,
    RoutiluxError,
    Runtime,
    SqliteStore,
    retry_job,
)
from routilux.engine.remote import channel
from routilux.engine.remote.channel import Channel, ask, reachable_host
from routilux.graph.messages import RecordedEffect
from tests.engine.concurrency import engine_threads, in_a_child, no_thread_remains, remote
from tests.engine.remote.bodies import (
    Elsewhere,
    lines,
    meet,
    pay,
    pay_and_die,
    pipe,
    release,
    take_over,
    until_cancelled,
)
from tests.engine.test_step import step
from tests.routines import PATIENCE, chain, kinds, outputs, saveable

HOST = "127.0.0.1"


class StaysEmpty(dict[bytes, Channel]):
    def __setitem__(self, key: bytes, value: Channel) -> None:
        pass


@pytest.fixture(autouse=True)
def _by_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the threads of `Elsewhere` ask as other processes do."""
    monkeypatch.setattr(channel, "_here", StaysEmpty())


@pytest.fixture
def opened() -> Iterator[Channel]:
    with no_thread_remains():
        opened = Channel(HOST)
        yield opened
        opened.close()


# --- what is asked --------------------------------------------------------------------------------


def test_an_effect_is_committed_before_the_handler_goes_on_and_outlives_its_process(tmp_path):
    path, store = str(tmp_path / "paid"), SqliteStore(tmp_path / "jobs.db")
    flow = chain(a=remote(pay_and_die))
    for last in (False, True):
        with ProcessPoolExecutor(1) as executor:
            runtime = Runtime(executor=executor, store=store)
            if last:
                job = runtime.resume(flow, runtime.load("j"))
            else:
                with pytest.raises(Exception, match="terminated abruptly"):
                    runtime.execute(flow, "a", {"n": path}, job_id="j")
            runtime.close()
    assert ["start", "effect", "interrupted", "resumed", "done"] == kinds(job)
    assert ["paid"] == lines(path)
    assert ["1 j/0/pay"] * 2 == lines(f"{path}.keys")
    assert [1] == outputs(job)
    store.close()


def test_a_step_of_a_lost_job_runs_no_effect(tmp_path):
    path, store = str(tmp_path / "paid"), MemoryStore()
    running, goes_on = pipe(Path(f"{path}.in")), pipe(Path(f"{path}.out"))
    with Elsewhere() as executor, Runtime(executor=executor, store=store) as runtime:
        run = chain(a=saveable(take_over)).start("a", {"n": path}, job_id="j", runtime=runtime)
        meet(running)
        retry_job(store, "j", take_over=True)
        release(goes_on)
        with pytest.raises(LeaseLostError):
            run.wait(PATIENCE)
    assert [] == lines(path)
    assert lines(f"{path}.error")[0].startswith("LeaseLostError: job 'j' is free to be taken")


def test_a_running_step_is_told_that_its_job_was_cancelled(tmp_path):
    path = pipe(tmp_path / "runs")
    with Elsewhere() as executor, Runtime(executor=executor) as runtime:
        run = chain(a=saveable(until_cancelled)).start("a", {"n": path}, runtime=runtime)
        meet(path)
        run.cancel("enough")
        assert JobStatus.CANCELLED is run.wait(PATIENCE).status
    assert ["cancelled"] == lines(f"{path}.answer")


class Keeps:
    """A job of which two runs of the same step record an effect."""

    cancelled = False

    def __init__(self) -> None:
        self.effects: dict[str, RecordedEffect] = {}

    def check(self, _: Any) -> None:
        pass

    def recorded(self, _: Any) -> dict[str, RecordedEffect]:
        return self.effects

    def record_first(self, _: Any, name: str, effect: RecordedEffect) -> RecordedEffect:
        return self.effects.setdefault(name, effect)


def test_the_first_of_two_runs_of_a_step_records_and_the_other_one_gets_its_result(opened):
    opened.add(Keeps(), step())
    request = {"step": 7, "ask": "record", "name": "pay"}
    assert {} == ask(opened.address, request | {"effect": ["digest", (1, 2)]})
    assert {"effect": ["digest", (1, 2)]} == ask(opened.address, request | {"effect": ["d", 3]})
    check = {"step": 7, "ask": "check"}
    assert {"effects": {"pay": ["digest", (1, 2)]}} == ask(opened.address, check | {"known": []})
    assert {"effects": {}} == ask(opened.address, check | {"known": ["pay"]})


def test_a_step_that_has_ended_records_nothing_and_is_told_so(opened):
    opened.add(Keeps(), step())
    opened.remove(step())
    reply = ask(opened.address, {"step": 7, "ask": "check", "known": []})
    assert "NoActiveStepError" == reply["error"]
    assert {"cancelled": True} == ask(opened.address, {"step": 7, "ask": "cancelled"})


def test_trouble_of_the_host_in_an_answer_ends_the_run_and_not_the_attempt(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "routilux.engine.drive.Drive.record_first",
        lambda *_: (_ for _ in ()).throw(OSError("full")),
    )
    with Elsewhere() as executor, Runtime(executor=executor) as runtime:
        run = chain(a=remote(pay)).start("a", {"n": str(tmp_path / "paid")}, runtime=runtime)
        with pytest.raises(RoutiluxError, match="can't answer: OSError: full"):
            run.wait(PATIENCE)
    assert ["start", "interrupted"] == kinds(run.job)


# --- who asks, and whom ---------------------------------------------------------------------------


def test_a_step_that_reaches_nobody_pays_nothing_and_names_the_cure(tmp_path, monkeypatch):
    path = str(tmp_path / "paid")
    monkeypatch.setattr(Channel, "add", lambda self, *_: self.close())
    with (
        no_thread_remains(),
        Elsewhere() as executor,
        Runtime(executor=executor) as runtime,
        pytest.raises(RoutiluxError, match=r"can't reach it at 127\.0\.0\.1:\d+ \(.*\); let the"),
    ):
        chain(a=remote(pay)).execute("a", {"n": path}, runtime=runtime)
    assert [] == lines(path)


def test_a_message_without_the_key_changes_nothing(opened, caplog):
    job = Keeps()
    opened.add(job, step())
    host, port, _ = opened.address
    with pytest.raises(ConnectionError):
        ask(
            (host, port, b"another key"),
            {"step": 7, "ask": "record", "name": "pay", "effect": ["digest", 1]},
        )
    assert {} == job.effects
    assert "got a message without its signature" in caplog.text
    with socket.create_connection((host, port)) as idle:
        idle.sendall(b"GET / HTTP/1.1\r\n")
        # It delays nobody else.
        assert {"cancelled": False} == ask(opened.address, {"step": 7, "ask": "cancelled"})


def test_an_answer_of_another_program_is_refused():
    with socket.create_server((HOST, 0)) as stranger:

        def answers() -> None:
            connection, _ = stranger.accept()
            with connection:
                channel._received(connection)
                connection.sendall(channel._framed(b"x" * 32, b'{"cancelled":true}'))

        thread = threading.Thread(target=answers)
        thread.start()
        with pytest.raises(ConnectionError, match="another program answered"):
            ask((HOST, stranger.getsockname()[1], b"key"), {"step": 7, "ask": "cancelled"})
        thread.join(PATIENCE)


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("tcp://127.0.0.1:8786", "127.0.0.1"),
        ("tls://[::1]:8786", "::1"),
        ("inproc://10.0.0.1/12/1", "127.0.0.1"),
        (None, "127.0.0.1"),
    ],
)
def test_the_channel_listens_where_the_scheduler_of_dask_is_reached(address, host):
    class Client:
        class scheduler:  # noqa: N801 - an attribute of the client
            pass

    class Named:
        _client = Client

    Client.scheduler.address = address
    assert host == reachable_host(Named() if address else object())


# --- its end --------------------------------------------------------------------------------------


def test_a_runtime_that_was_never_closed_leaves_no_channel():
    before = engine_threads()
    with Elsewhere() as executor:
        runtime = Runtime(executor=executor)
        chain(a=remote(pay)).execute("a", {"n": os.devnull}, runtime=runtime)
        started = engine_threads() - before  # one that answered may not have ended yet
        [accepting] = [thread for thread in started if thread.name == "routilux-channel"]
        del runtime
        gc.collect()
        accepting.join(PATIENCE)
        assert not accepting.is_alive()


def test_a_forked_child_holds_no_socket_of_it(opened):
    def is_gone() -> None:
        assert [-1] == [each.fileno() for each in opened._sockets]

    in_a_child(is_gone)
    assert {"cancelled": True} == ask(opened.address, {"step": 7, "ask": "cancelled"})


OWNER = """
import sys
from concurrent.futures import ProcessPoolExecutor
from routilux import Runtime
from tests.engine.remote.bodies import take_over
from tests.routines import chain, saveable

flow = chain(a=saveable(take_over))
flow.execute("a", {"n": sys.argv[1]}, runtime=Runtime(executor=ProcessPoolExecutor(1)))
"""


def test_a_step_whose_owner_was_killed_pays_nothing_and_ends(tmp_path):
    path = str(tmp_path / "paid")
    running, goes_on = pipe(Path(f"{path}.in")), pipe(Path(f"{path}.out"))
    answer = pipe(Path(f"{path}.error"))
    owner = subprocess.Popen([sys.executable, "-c", OWNER, path], start_new_session=True)
    try:
        meet(running)
        os.kill(owner.pid, signal.SIGKILL)
        owner.wait(PATIENCE)
        release(goes_on)
        assert "can't reach it at 127.0.0.1:" in Path(answer).read_text()
        assert [] == lines(path)
    finally:
        os.killpg(owner.pid, signal.SIGKILL)  # the process of its pool, which waits for more calls
