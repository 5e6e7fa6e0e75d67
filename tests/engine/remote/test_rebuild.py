"""Routines that other processes rebuild, and steps that they refuse."""

from __future__ import annotations

import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import pytest

from routilux import FlowDefinitionError, MemoryStore, Routine, Runtime, Worker
from routilux.engine.remote import run
from routilux.engine.remote.rebuild import forms_of, rebuilt
from tests.engine.concurrency import remote
from tests.engine.remote.bodies import Counted, Elsewhere, add
from tests.engine.test_step import step
from tests.routines import Watcher, Works, chain, kinds, outputs, rest, saveable, send

NOWHERE = ("127.0.0.1", 1, b"")


def local_class() -> Routine:
    class Local(Routine):
        def __init__(self) -> None:
            super().__init__()
            self.define_slot("trigger", handler=print)

    return Local()


class Takes(Routine):
    def __init__(self, **options: object) -> None:
        super().__init__()
        self.define_slot("trigger", handler=print)


REFUSED = {
    "a closure": (lambda: Works(lambda self: None), "argument args[0] of Works has no saved form"),
    "a local class": (local_class, "no other process finds its class tests.engine.remote.test_reb"),
    "an argument": (lambda: Takes(client=object()), "argument kwargs.client of Takes has no saved"),
}


@pytest.mark.parametrize("how", ["execute", "start", "submit", "worker"])
@pytest.mark.parametrize("case", REFUSED)
def test_what_can_not_be_rebuilt_is_refused_before_anything_is_stored_or_sent(case, how):
    make, message = REFUSED[case]
    flow, store, watcher = chain(a=rest_there(), b=make()), MemoryStore(), Watcher()
    with Elsewhere() as executor:
        runtime = Runtime(executor=executor, store=store, observers=[watcher])
        if how == "worker":
            begin: Any = partial(Worker, store, [flow], runtime=runtime)
        else:
            begin = partial(getattr(runtime, how), flow, "a")
        with pytest.raises(FlowDefinitionError) as refused:
            begin()
        runtime.close()
    assert f"routine 'b' of flow 'tale' can't run in another process: {message}" in str(
        refused.value
    )
    assert ([], []) == (executor.calls, watcher.commits)


def rest_there() -> Routine:
    return saveable(rest)


def test_a_process_builds_a_routine_once_for_each_id_and_arguments():
    flow = chain(a=Counted("x"), b=Counted("x"), c=Counted("y"))
    with (
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor,
        Runtime(executor=executor) as runtime,
    ):
        jobs = [flow.execute("a", runtime=runtime) for _ in range(3)]
    assert [[3]] * 2 == [outputs(job) for job in jobs[1:]]


# --- in one process -------------------------------------------------------------------------------


def form(**changes: str) -> tuple[str, ...]:
    names = ("flow", "routine", "module", "name", "arguments", "digest")
    found = dict(zip(names, forms_of(chain(a=saveable(add)).plan())["a"], strict=True))
    return tuple((found | changes).values())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"module": "no_such"},
            "importing no_such raised ModuleNotFoundError: No module",
        ),
        ({"name": "Gone"}, "its module tests.routines has no routine class Gone; install"),
        ({"name": "Watcher"}, "its module tests.routines has no routine class Watcher"),
        ({"arguments": "[[], {}]"}, "building tests.routines:Importable from its arguments"),
        (
            {"digest": "0"},
            "another shape here than where the job runs; here it has slot",
        ),
    ],
)
def test_a_process_with_another_program_refuses_the_step(changes, reason):
    kind, text, _ = call(form=form(**changes))
    assert "refused" == kind
    assert text.startswith("this process can't run routine 'a' of flow 'tale': ")
    assert reason in text


def call(version: str = run.PACKAGE, **changes: Any) -> run.Reply:
    sent = {
        "form": form(),
        "step": pickle.dumps(step({"n": 1})),
        "variables": (),
        "channel": NOWHERE,
    }
    return run.run_remote(version, 7, **(sent | changes), sent=1)


def test_a_process_with_another_version_of_routilux_refuses_the_step():
    kind, text, _ = call("0.0.1")
    assert "refused" == kind
    assert f"has routilux {run.PACKAGE}, and the job runs with routilux 0.0.1; install" in text


def test_a_refusal_is_trouble_of_the_host_and_the_job_stays_as_it_was(monkeypatch):
    watcher, flow = Watcher(), chain(a=remote(send))
    monkeypatch.setattr(run, "PACKAGE", "0.0.1")
    with (
        Elsewhere() as executor,
        Runtime(executor=executor, observers=[watcher]) as runtime,
        pytest.raises(Exception, match=r"has routilux 0\.0\.1, and the job runs with"),
    ):
        flow.execute("a", runtime=runtime)
    job = watcher.jobs[-1]
    assert ["start", "interrupted"] == kinds(job)
    assert [("a", 1)] == [(task.routine_id, task.attempt) for task in job.pending_tasks]
    assert job.interrupted_task is None, "the next resume is no recovery"


def test_a_module_that_was_loaded_anew_gets_a_new_routine(monkeypatch):
    plan = chain(a=Counted("z")).plan()
    first = rebuilt(forms_of(plan)["a"])
    assert first is rebuilt(forms_of(plan)["a"])
    again = type("Counted", (Counted,), {"__module__": Counted.__module__, "routine_name": "new"})
    monkeypatch.setattr("tests.engine.remote.bodies.Counted", again)
    assert again is type(rebuilt(forms_of(plan)["a"]))
