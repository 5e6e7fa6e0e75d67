"""Saved forms of a commit's emissions and of the tasks that it creates.

Invariants:
- Emissions of one event in a row are one object; so are tasks of which the next emissions make
  the like. What is read from both is in proportion to the saved payloads.
- A task that is saved without a payload has the payload of its emission.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from routilux import codec
from routilux.codec import quoted
from routilux.codec.copying import is_flat
from routilux.codec.schema import check_fields, fits
from routilux.core.wire.ranges import LONGEST_ID, TEXT, in_range, load_keeps, payload, task_id
from routilux.errors import CorruptStateError
from routilux.graph.messages import GATHER, Emission, Task

if TYPE_CHECKING:
    from collections.abc import Sequence

_EMISSION_FIELDS: codec.Fields = {"event": str, "payload": dict}
_EMISSIONS_FIELDS: codec.Fields = {"event": str, "payloads": list}
_TASK_REQUIRED: codec.Fields = {"task_id": str, "routine_id": str, "slot": str, "emission": int}
_TASK_OPTIONAL: codec.Fields = {"payload": dict, "keeps": list, "into": str}
_REPEATED_FIELDS: codec.Fields = {"times": int, "tasks": list}
_MOST_REPEATED: Final = 4  # of the tasks of one emission: few, so that no short text makes many
_MOST_DIGITS: Final = 16  # of the number in a task's id


def emissions_text(emissions: Sequence[Emission], path: str) -> str:
    """Return the saved form of a commit's emissions as JSON text.

    Emissions of one event in a row are one object.
    """
    if len(emissions) == 1:
        [emission] = emissions
        text = codec.value_text(emission.payload, f"{path}[0].payload")
        return f'[{{"event":{quoted(emission.event)},"payload":{text}}}]'
    parts: list[str] = []
    payloads: list[str] = []
    event = None
    for i, emission in enumerate(emissions):
        if emission.event != event and payloads:
            parts.append(_emissions_text(event, payloads))
            payloads = []
        event = emission.event
        payloads.append(codec.value_text(emission.payload, f"{path}[{i}].payload"))
    if payloads:
        parts.append(_emissions_text(event, payloads))
    return f"[{','.join(parts)}]"


def _emissions_text(event: str | None, payloads: Sequence[str]) -> str:
    name = quoted(str(event))
    if len(payloads) == 1:
        return f'{{"event":{name},"payload":{payloads[0]}}}'
    return f'{{"event":{name},"payloads":[{",".join(payloads)}]}}'


def load_emissions(data: Sequence[Any]) -> tuple[Emission, ...]:
    """Make the emissions of a commit from saved data."""
    found: list[Emission] = []
    for i, f in enumerate(data):
        if type(f) is dict and "payloads" in f:
            check_fields(f, f".emissions[{i}]", _EMISSIONS_FIELDS)
            if len(f["payloads"]) < 2:
                raise CorruptStateError(f".emissions[{i}].payloads", "must have 2 or more payloads")
            for k, values in enumerate(f["payloads"]):
                if type(values) is not dict or not TEXT.issuperset(map(type, values)):
                    place = f".emissions[{i}].payloads[{k}]"
                    if type(values) is not dict:
                        raise CorruptStateError(place, "must be a JSON object")
                    payload(values, place)
                found.append(Emission(f["event"], values, is_flat(values)))
            continue
        if type(f) is not dict or not fits(f, _EMISSION_FIELDS):
            check_fields(f, f".emissions[{i}]", _EMISSION_FIELDS)
        values = f["payload"]
        if not TEXT.issuperset(map(type, values)):
            payload(values, f".emissions[{i}].payload")
        found.append(Emission(f["event"], values, is_flat(values)))
    return tuple(found)


def tasks_text(tasks: Sequence[Task], emissions: Sequence[Emission], path: str) -> str:
    """Return the saved form of a commit's tasks as JSON text.

    Tasks of which the next emissions make the like are written once, with their number.
    """
    if len(tasks) == 1:
        return f"[{_task_text(tasks[0], emissions, f'{path}[0]')}]"
    parts: list[str] = []
    at = 0
    while at < len(tasks):
        block, count = _repeated(tasks, emissions, at)
        text = ",".join(
            _task_text(task, emissions, f"{path}[{at + i}]")
            for i, task in enumerate(tasks[at : at + block])
        )
        parts.append(text if count == 1 else f'{{"times":{count},"tasks":[{text}]}}')
        at += block * count
    return f"[{','.join(parts)}]"


def _repeated(tasks: Sequence[Task], emissions: Sequence[Emission], at: int) -> tuple[int, int]:
    """Return how many tasks from `at` on are repeated, and how often.

    They deliver one emission, and their repetitions the emissions after it.
    """
    first = tasks[at]
    if first.emission < 0:
        return 1, 1
    end = at + 1
    while end < len(tasks) and tasks[end].emission == first.emission:
        end += 1
    block = end - at
    prefix, _, number = first.task_id.rpartition(".")
    if block > _MOST_REPEATED or not number.isdecimal() or len(number) > _MOST_DIGITS:
        return 1, 1
    start, position = int(number), at
    while position < len(tasks):
        task, like = tasks[position], tasks[at + (position - at) % block]
        emission = first.emission + (position - at) // block
        if (
            task.emission != emission
            or task.routine_id != like.routine_id
            or task.slot != like.slot
            or task.keeps != like.keeps
            or task.into != like.into
            or task.payload is not emissions[emission].payload
            or task.task_id != f"{prefix}.{start + position - at}"
        ):
            break
        position += 1
    count = (position - at) // block
    return (block, count) if count > 1 else (1, 1)


def _task_text(task: Task, emissions: Sequence[Emission], path: str) -> str:
    text = (
        f'{{"task_id":{quoted(task.task_id)},"routine_id":{quoted(task.routine_id)}'
        f',"slot":{quoted(task.slot)},"emission":{task.emission}'
    )
    if task.emission < 0 or emissions[task.emission].payload is not task.payload:
        text += f',"payload":{codec.value_text(task.payload, f"{path}.payload")}'
    if task.keeps:
        text += f',"keeps":[{",".join(map(quoted, task.keeps))}]'
    if task.into is not None:
        text += f',"into":{quoted(task.into)}'
    return f"{text}}}"


def load_tasks(data: Sequence[Any], emissions: Sequence[Emission]) -> tuple[Task, ...]:
    """Make the tasks of a commit from saved data."""
    found: list[Task] = []
    free = 0  # the first emission that no repeated tasks have delivered
    for i, f in enumerate(data):
        path = f".tasks[{i}]"
        if type(f) is not dict or "times" not in f:
            found.append(_load_task(f, emissions, path))
            continue
        check_fields(f, path, _REPEATED_FIELDS)
        times, block = f["times"], f["tasks"]
        tasks = [_load_task(task, emissions, f"{path}.tasks[{k}]") for k, task in enumerate(block)]
        if not 1 <= len(tasks) <= _MOST_REPEATED:
            raise CorruptStateError(f"{path}.tasks", f"must be 1 to {_MOST_REPEATED} tasks")
        emission = tasks[0].emission
        if emission < free or not 2 <= times <= len(emissions) - emission:
            reason = "must be the number of emissions that the tasks deliver, each once"
            raise CorruptStateError(f"{path}.times", reason)
        free = emission + times
        prefix, _, text = tasks[0].task_id.rpartition(".")
        start = int(text) if text.isdecimal() and len(text) <= _MOST_DIGITS else None
        for k, task in enumerate(tasks):
            if start is None or task.task_id != f"{prefix}.{start + k}":
                place = f"{path}.tasks[{k}].task_id"
                raise CorruptStateError(place, "must end in a number that counts on")
            if task.emission != emission or "payload" in block[k]:
                place = f"{path}.tasks[{k}]"
                raise CorruptStateError(place, "must deliver the same emission, with its payload")
        assert start is not None
        task_id(f"{prefix}.{start + times * len(tasks) - 1}", f"{path}.times")
        found += tasks
        number = start + len(tasks)
        for delivered in range(emission + 1, free):
            source = emissions[delivered]
            for like in tasks:
                found.append(
                    Task(
                        f"{prefix}.{number}",
                        like.routine_id,
                        like.slot,
                        source.payload,
                        source.flat,
                        delivered,
                        like.keeps,
                        like.into,
                    )
                )
                number += 1
    return tuple(found)


def _load_task(f: Any, emissions: Sequence[Emission], path: str) -> Task:
    """Make a task of a commit from saved data.

    A task that was saved without a payload gets the payload of its emission.
    """
    if type(f) is not dict or not fits(f, _TASK_REQUIRED, _TASK_OPTIONAL):
        check_fields(f, path, _TASK_REQUIRED, _TASK_OPTIONAL)
    if len(f["task_id"]) > LONGEST_ID:
        task_id(f["task_id"], f"{path}.task_id")
    index = f["emission"]
    if not GATHER <= index < len(emissions):
        in_range(index, f"{path}.emission", least=GATHER)
        raise CorruptStateError(f"{path}.emission", f"the commit has no emission {index}")
    if "payload" in f:
        values = payload(f["payload"], f"{path}.payload")
        flat = is_flat(values)
    elif index < 0:
        raise CorruptStateError(f"{path}.payload", "is missing")
    else:
        delivered = emissions[index]
        values, flat = delivered.payload, delivered.flat
    task = Task(f["task_id"], f["routine_id"], f["slot"], values, flat, index)
    if "keeps" in f:
        task.keeps = load_keeps(f, path)
    if "into" in f:
        task.into = f["into"]
    return task
