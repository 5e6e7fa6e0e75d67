"""Saves the commits of a job that are alike as rows, which name nothing twice.

Invariants:
- A form is a commit in which each null is a cell; a row has the number of its form and these cells.
- A commit is a row if enough commits have its form; all others are objects of their own. So is the
  last one, whose number and time then prove those of the job.
- A row is read as the object that it represents, with all the checks of that object, at the path of
  the row.
- The values that rows represent have the limits of values that are written in full.
"""

from __future__ import annotations

import json
from collections import Counter
from itertools import count
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from routilux import codec
from routilux.codec import quoted
from routilux.codec.encoding import TAG
from routilux.core.wire.errors import effect_data, error_data
from routilux.core.wire.tasks import emissions_text, tasks_text
from routilux.core.wire.writes import patches_text, writes_text
from routilux.errors import CorruptStateError, UnserializableError
from routilux.graph.patches import ACCUMULATORS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from routilux.core.commits import Commit
    from routilux.graph.messages import Emission, ErrorInfo, RecordedEffect, Task, Writes

FEWEST: Final = 20
"""The fewest commits of one form that are written as rows."""
_MOST_KEYS: Final = 4  # of written keys that are cells of their own
_MOST_TASKS: Final = 4  # the same of created tasks
_LARGEST: Final = 100  # values of a form, so that a short row does not mean many

_Cell = tuple["Callable[[Any, str], str]", Any]
"""How to write a cell: a function that takes a value and its path, and the value."""


class Rows(NamedTuple):
    """Commits in their saved form."""

    forms: list[str]
    commits: Iterator[str]


def write(commits: Sequence[Commit], since_ns: int, path: str) -> Rows:
    """Return the saved forms of a job's commits; times in rows count from `since_ns`.

    Raises `UnserializableError` with the path (below `path`) of a value that can't be saved.
    """
    found = [_form(commit, since_ns) for commit in commits[:-1]] if len(commits) > FEWEST else []
    often = Counter([form for form, _ in found])
    forms = [form for form, count in often.items() if count >= FEWEST]
    if sum(often[form] * _size(json.loads(form)) for form in forms) > codec.MAX_NODES:
        reason = f"have more than {codec.MAX_NODES:,} values; save fewer values"
        raise UnserializableError(path, reason)
    numbers = {form: number for number, form in enumerate(forms)}

    def texts() -> Iterator[str]:
        for i, (form, cells) in enumerate(found):
            number = numbers.get(form)
            if number is None:
                yield commits[i].dumps(f"{path}[{i}]")
                continue
            try:
                row = [encode(value, "") for encode, value in cells]
            except UnserializableError:
                commits[i].dumps(f"{path}[{i}]")  # which knows the path
                raise
            yield f"[{number},{','.join(row)}]"
        for i in range(len(found), len(commits)):
            yield commits[i].dumps(f"{path}[{i}]")

    return Rows(forms, texts())


def expand(
    commits: Sequence[Any], forms: Sequence[object], first: int, since_ns: int, path: str
) -> Iterator[tuple[str, object]]:
    """Yield the path and the data of each commit of the job at `path`; `first` is the first number.

    Raises `CorruptStateError` for a row that fits no form.
    """
    known = [_Form(form, f"{path}.commit_forms[{i}]") for i, form in enumerate(forms)]
    if commits and type(commits[-1]) is list:
        place = f"{path}.commits[{len(commits) - 1}]"
        raise CorruptStateError(place, "is the last commit, which must be an object, not a row")
    left = codec.MAX_NODES
    for i, entry in enumerate(commits):
        place = f"{path}.commits[{i}]"
        if type(entry) is not list:
            yield place, entry
            continue
        number = entry[0] if entry else None
        if type(number) is not int or not 0 <= number < len(known):
            raise CorruptStateError(f"{place}[0]", "must be the number of a form")
        form = known[number]
        if len(entry) != form.cells + 1:
            reason = f"must have {form.cells} cells of form {number}, not {len(entry) - 1}"
            raise CorruptStateError(place, reason)
        left -= form.size
        if left < 0:
            reason = f"have more values than the limit of {codec.MAX_NODES:,}"
            raise CorruptStateError(f"{path}.commits", reason)
        yield place, form.filled(entry, first + i, since_ns, place)


# --- writing --------------------------------------------------------------------------------------


def _form(commit: Commit, since_ns: int) -> tuple[str, list[_Cell]]:
    """Return the form of a commit, and its cells in the order of the form's nulls."""
    cells: list[_Cell] = [(_plain, commit.at_ns - since_ns)]
    text = f'{{"kind":"{commit.kind._value_}","status":"{commit.status._value_}","after_ns":null'
    if commit.started_ns is not None:
        text += ',"took_ns":null'
        cells.append((_plain, commit.at_ns - commit.started_ns))
    if commit.task_id is not None:
        text += ',"task_id":null'
        cells.append((_quoted, commit.task_id))
    if commit.routine_id is not None:
        text += f',"routine_id":{quoted(commit.routine_id)}'
    if commit.attempt:
        text += f',"attempt":{commit.attempt}'
    if commit.worker:
        text += f',"worker":{commit.worker}'
    if len(commit.emissions) == 1 and len(commit.tasks) <= _MOST_TASKS:
        [emission] = commit.emissions
        text += f',"emissions":[{{"event":{quoted(emission.event)},"payload":null}}]'
        cells.append((codec.value_text, emission.payload))
        if commit.tasks:
            tasks = [_task_form(task, emission, cells) for task in commit.tasks]
            text += f',"tasks":[{",".join(tasks)}]'
    else:
        if commit.emissions:
            text += ',"emissions":null'
            cells.append((emissions_text, commit.emissions))
        if commit.tasks:
            text += ',"tasks":null'
            cells.append((_tasks_text, commit))
    if commit.state is not None:
        text += f',"state":{_writes_form(commit.state, cells)}'
    if commit.shared is not None:
        text += f',"shared":{_writes_form(commit.shared, cells)}'
    if commit.error is not None:
        text += ',"error":null'
        cells.append((_error_text, commit.error))
    if commit.delay_ns is not None:
        text += ',"delay_ns":null'
        cells.append((_plain, commit.delay_ns))
    if commit.due_ns is not None:
        text += ',"due_ns":null'
        cells.append((_plain, commit.due_ns))
    if commit.detail is not None:
        text += ',"detail":null'
        cells.append((codec.value_text, commit.detail))
    if commit.effect is not None:
        text += ',"effect":null'
        cells.append((_effect_text, commit.effect))
    return f"{text}}}", cells


def _task_form(task: Task, emission: Emission, cells: list[_Cell]) -> str:
    text = (
        f'{{"task_id":null,"routine_id":{quoted(task.routine_id)}'
        f',"slot":{quoted(task.slot)},"emission":{task.emission}'
    )
    cells.append((_quoted, task.task_id))
    if task.emission < 0 or task.payload is not emission.payload:
        text += ',"payload":null'
        cells.append((codec.value_text, task.payload))
    if task.keeps:
        text += ',"keeps":null'
        cells.append((codec.value_text, list(task.keeps)))
    if task.into is not None:
        text += ',"into":null'
        cells.append((_quoted, task.into))
    return f"{text}}}"


def _writes_form(writes: Writes, cells: list[_Cell]) -> str:
    patches = writes.patches
    keys = [*writes.values, *patches]
    if writes.removed or len(keys) > _MOST_KEYS or TAG in keys:
        cells.append((writes_text, writes))
        return "null"
    parts = []
    if writes.values:
        parts.append(f'"values":{{{",".join([f"{quoted(key)}:null" for key in writes.values])}}}')
        cells += [(codec.value_text, value) for value in writes.values.values()]
    if patches:
        found = []
        for key, each in patches.items():
            if len(each) == 1 and each[0].kind in ACCUMULATORS:
                found.append(f'{quoted(key)}:[{{"{each[0].kind}":null}}]')
                cells.append((codec.value_text, each[0].operand))
            else:
                found.append(f"{quoted(key)}:null")
                cells.append((patches_text, each))
        parts.append(f'"patches":{{{",".join(found)}}}')
    return f"{{{','.join(parts)}}}"


def _plain(value: object, path: str) -> str:
    return str(value)


def _quoted(value: str, path: str) -> str:
    return quoted(value)


def _tasks_text(commit: Commit, path: str) -> str:
    return tasks_text(commit.tasks, commit.emissions, path)


def _error_text(error: ErrorInfo, path: str) -> str:
    return codec.dumps(error_data(error))


def _effect_text(effect: RecordedEffect, path: str) -> str:
    return codec.dumps(effect_data(effect, path))


# --- reading --------------------------------------------------------------------------------------


class _Form:
    """A form that was read, and how to fill it."""

    __slots__ = ("_after", "_build", "_took", "cells", "size")

    def __init__(self, form: object, path: str) -> None:
        if type(form) is not dict or form.get("after_ns", 0) is not None:
            raise CorruptStateError(path, "must be a JSON object in which after_ns is null")
        for name in ("seq", "at_ns", "started_ns"):
            if name in form:
                raise CorruptStateError(f"{path}.{name}", "is an unknown field")
        if form.get("took_ns") is not None:
            raise CorruptStateError(f"{path}.took_ns", "must be null")
        self.size = _size(form)
        if self.size > _LARGEST:
            raise CorruptStateError(path, f"must have at most {_LARGEST} values, not {self.size}")
        places = count(1)
        cells: dict[str, int] = {}
        self._build = _builder(form, places, cells)
        self.cells = next(places) - 1
        self._after, self._took = cells["after_ns"], cells.get("took_ns")

    def filled(self, row: list[Any], seq: int, since_ns: int, path: str) -> dict[str, Any]:
        """Return the commit that a row represents."""
        after, took = row[self._after], 0 if self._took is None else row[self._took]
        for name, value in (("after_ns", after), ("took_ns", took)):
            if type(value) is not int:
                raise CorruptStateError(f"{path}.{name}", "must be an integer")
        commit: dict[str, Any] = self._build(row)
        commit["seq"], commit["at_ns"] = seq, since_ns + after
        if self._took is not None:
            commit["started_ns"] = since_ns + after - took
        return commit


def _builder(
    form: Any, places: Iterator[int], top: dict[str, int] | None = None
) -> Callable[[list[Any]], Any]:
    """Return what fills a part of a form with the cells of a row, which is a new value each time.

    For the commit itself `top` gets the places of its times, which are then left out.
    """
    if form is None:
        return itemgetter(next(places))
    blank, parts = form.copy(), []
    for key, part in form.items() if type(form) is dict else enumerate(form):
        if top is not None and key in ("after_ns", "took_ns"):
            top[key] = next(places)
            del blank[key]
        elif part is None or type(part) in (dict, list):
            parts.append((key, _builder(part, places)))

    def build(row: list[Any]) -> Any:
        filled = blank.copy()
        for key, part in parts:
            filled[key] = part(row)
        return filled

    return build


def _size(form: object) -> int:
    """Return the number of values in a form."""
    if type(form) is dict:
        return 1 + sum(map(_size, form.values()))
    return 1 + sum(map(_size, form)) if type(form) is list else 1
