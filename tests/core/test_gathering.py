"""Gathers: each runs once for its scope, with its deliveries in the order of lineage."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from routilux import Flow, JobStatus
from routilux.core.machine import Machine
from routilux.core.state import JobState
from routilux.graph.messages import Emission, ErrorInfo, StepInput, StepOutcome
from tests.core.gather_flows import Behaviour, Expected, Got, gather_ids, plain_id, random_flow
from tests.core.stories import by_document, by_folding, by_text
from tests.soak import examples

RESTORED_BY = [by_document, by_text, by_folding]
MOST_TASKS = 400


def outcome(step: StepInput, flow: Flow, behaviour: Behaviour) -> StepOutcome:
    routine, task_id = flow.routines[step.task.routine_id], plain_id(step.task.task_id, flow)
    if step.attempt == 1 and behaviour.fails(task_id):
        error = ValueError("attempt 1")
        return StepOutcome(step.number, [], error=ErrorInfo.of(error), error_type=ValueError)
    sent = behaviour.emits(task_id, routine)
    return StepOutcome(step.number, [Emission(event, {"n": n}, True) for event, n in sent])


def got(step: StepInput, flow: Flow) -> Got:
    assert step.collected is not None
    [payloads] = step.task.payload.values()
    assert isinstance(payloads, list)
    return (
        [payload if "n" in payload else None for payload in payloads],
        list(step.collected.sources),
        [plain_id(task.task_id, flow) for task in step.collected.dropped],
    )


def driven(
    flow: Flow, behaviour: Behaviour, random: Random
) -> tuple[JobState, dict[tuple[str, str], Got]]:
    """Run a job with steps, ends and crashes at random; return what each gather got."""
    found: dict[tuple[str, str], Got] = {}
    machine = Machine(flow.plan(), JobState("j"))
    machine.accept(machine.start("a", "trigger", {}, 0))
    flying: list[StepInput] = []
    while not machine.job.is_final:
        now = machine.job.updated_ns + 1
        if machine.job.status is JobStatus.FAILED:
            machine.accept(machine.resume(now, retry_failed=True, max_recoveries=None))
        ready = machine.startable(now)
        room = len(flying) < flow.max_workers
        action = random.randrange(3)
        if action == 2 and random.random() < 0.2:
            before = machine.job
            machine = Machine(flow.plan(), random.choice(RESTORED_BY)(before))
            assert before == machine.job == machine.job.copy()
            machine.accept(machine.resume(now, retry_failed=False, max_recoveries=None))
            flying = []
        elif flying and (action == 1 or not (ready and room)):
            step = flying.pop(random.randrange(len(flying)))
            commit = machine.finish(step, outcome(step, flow, behaviour), now)
            assert commit is not None
            machine.accept(commit)
            if step.collected is not None:
                scope = plain_id(step.task.task_id, flow).rpartition(".")[0]
                key = scope, step.task.routine_id
                assert found.setdefault(key, got(step, flow)) == got(step, flow)
                assert step.attempt == 1 or behaviour.fails(f"{scope}.g({step.task.routine_id})")
        elif ready:
            flying.append(machine.begin(random.choice(ready), now))
        else:
            assert flying, machine.job.pending_tasks
    return machine.job, found


@settings(max_examples=examples(6))
@given(st.integers(0, 10**9))
def test_each_gather_runs_once_with_its_scope_in_the_order_of_lineage(seed):
    random = Random(seed)
    flow, splits = random_flow(random)
    behaviour = Behaviour(seed)
    expected = Expected(flow, behaviour, splits)
    wanted = expected.of("a")
    if len(expected.tasks) > MOST_TASKS:
        return
    for _ in range(3):
        job, found = driven(flow, behaviour, random)
        assert wanted == found
        assert (job.status.value, ()) == ("completed", job.pending_tasks)
        assert len(set(gather_ids(job))) == len(found)
