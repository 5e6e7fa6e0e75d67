"""Saves the commits of a job that are alike as rows, which name nothing twice.

Invariants:
- A form is a commit in which each null is a cell; a row has the number of its form and these cells.
- A commit is a row if enough commits have its form; all others are objects of their own. So is the
  last one, whose number and time then prove those of the job.
- A row is read as the object that it stands for, with all the checks of that object, at the path of
  the row.
- The values that rows stand for have the limits of values that are written in full.
"""

from __future__ import annotations

from collections import Counter
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

_LARGEST: Final = 100  # values of a form, so that a short row does not stand for many

_Cell = tuple["Callable[[Any, str], str]", Any, str]
"""How to write a cell: a function, its value, and the path in the commit."""


class Rows(NamedTuple):
    """Commits in their saved form."""

    forms: list[str]
    commits: Iterator[str]


def write(commits: Sequence[Commit], since_ns: int, path: str) -> Rows:
    """Return the saved forms of a job's commits; times in rows count from `since_ns`.

    Raises `UnserializableError` with the path (below `path`) of a value that can't be saved.
    """
    found = [_form(commit, since_ns) for commit in commits[:-1]] if len(commits) > FEWEST else []
    often = Counter(form for form, _ in found)
    forms = [form for form, count in often.items() if count >= FEWEST]
    if sum(often[form] * _size(codec.loads(form, untag=False)) for form in forms) > codec.MAX_NODES:
        reason = f"have more than {codec.MAX_NODES:,} values; save fewer values"
        raise UnserializableError(path, reason)
    numbers = {form: number for number, form in enumerate(forms)}

    def texts() -> Iterator[str]:
        for i, commit in enumerate(commits):
            place = f"{path}[{i}]"
            number = numbers.get(found[i][0]) if i < len(found) else None
            if number is None:
                yield commit.dumps(place)
            else:
                cells = [encode(value, place + where) for encode, value, where in found[i][1]]
                yield f"[{number},{','.join(cells)}]"

    return Rows(forms, texts())


def expand(
    commits: Sequence[Any], forms: Sequence[object], first: int, since_ns: int, path: str
) -> Iterator[tuple[str, object]]:
    """Yield the path and the data of each commit of the job at `path`; `first` is the first number.

    Raises `CorruptStateError` for a row that fits no form.
    """
    sizes = []
    for i, form in enumerate(forms):
        place = f"{path}.commit_forms[{i}]"
        if type(form) is not dict or "after_ns" not in form:
            raise CorruptStateError(place, "must be a JSON object with after_ns")
        for name in ("seq", "at_ns", "started_ns"):
            if name in form:
                raise CorruptStateError(f"{place}.{name}", "is an unknown field")
        if (size := _size(form)) > _LARGEST:
            raise CorruptStateError(place, f"must have at most {_LARGEST} values, not {size}")
        sizes.append((size, _holes(form)))
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
        if type(number) is not int or not 0 <= number < len(forms):
            raise CorruptStateError(f"{place}[0]", "must be the number of a form")
        size, holes = sizes[number]
        if len(entry) != holes + 1:
            reason = f"must have {holes} cells of form {number}, not {len(entry) - 1}"
            raise CorruptStateError(place, reason)
        left -= size
        if left < 0:
            reason = f"have more values than the limit of {codec.MAX_NODES:,}"
            raise CorruptStateError(f"{path}.commits", reason)
        cells = iter(entry)
        next(cells)
        data: Any = _filled(forms[number], cells)
        yield place, _with_times(data, first + i, since_ns, place)


# --- writing --------------------------------------------------------------------------------------


def _form(commit: Commit, since_ns: int) -> tuple[str, list[_Cell]]:
    """Return the form of a commit, and its cells in the order of the form's nulls."""
    cells: list[_Cell] = [(_plain, commit.at_ns - since_ns, "")]
    text = f'{{"kind":"{commit.kind._value_}","status":"{commit.status._value_}","after_ns":null'
    if commit.started_ns is not None:
        text += ',"took_ns":null'
        cells.append((_plain, commit.at_ns - commit.started_ns, ""))
    if commit.task_id is not None:
        text += ',"task_id":null'
        cells.append((_quoted, commit.task_id, ""))
    if commit.routine_id is not None:
        text += f',"routine_id":{quoted(commit.routine_id)}'
    if commit.attempt:
        text += f',"attempt":{commit.attempt}'
    if commit.worker:
        text += f',"worker":{commit.worker}'
    if len(commit.emissions) == 1 and len(commit.tasks) <= _MOST_TASKS:
        [emission] = commit.emissions
        text += f',"emissions":[{{"event":{quoted(emission.event)},"payload":null}}]'
        cells.append((codec.value_text, emission.payload, ".emissions[0].payload"))
        if commit.tasks:
            found = [
                _task_form(task, emission, f".tasks[{i}]", cells)
                for i, task in enumerate(commit.tasks)
            ]
            text += f',"tasks":[{",".join(found)}]'
    else:
        if commit.emissions:
            text += ',"emissions":null'
            cells.append((emissions_text, commit.emissions, ".emissions"))
        if commit.tasks:
            text += ',"tasks":null'
            emissions = commit.emissions
            cells.append(
                (lambda tasks, at: tasks_text(tasks, emissions, at), commit.tasks, ".tasks")
            )
    if commit.state is not None:
        text += f',"state":{_writes_form(commit.state, ".state", cells)}'
    if commit.shared is not None:
        text += f',"shared":{_writes_form(commit.shared, ".shared", cells)}'
    if commit.error is not None:
        text += ',"error":null'
        cells.append((_error_text, commit.error, ""))
    if commit.delay_ns is not None:
        text += ',"delay_ns":null'
        cells.append((_plain, commit.delay_ns, ""))
    if commit.due_ns is not None:
        text += ',"due_ns":null'
        cells.append((_plain, commit.due_ns, ""))
    if commit.detail is not None:
        text += ',"detail":null'
        cells.append((codec.value_text, commit.detail, ".detail"))
    if commit.effect is not None:
        text += ',"effect":null'
        cells.append((_effect_text, commit.effect, ".effect"))
    return f"{text}}}", cells


def _task_form(task: Task, emission: Emission, path: str, cells: list[_Cell]) -> str:
    text = (
        f'{{"task_id":null,"routine_id":{quoted(task.routine_id)}'
        f',"slot":{quoted(task.slot)},"emission":{task.emission}'
    )
    cells.append((_quoted, task.task_id, ""))
    if task.emission < 0 or task.payload is not emission.payload:
        text += ',"payload":null'
        cells.append((codec.value_text, task.payload, f"{path}.payload"))
    if task.keeps:
        text += ',"keeps":null'
        cells.append((codec.value_text, list(task.keeps), f"{path}.keeps"))
    if task.into is not None:
        text += ',"into":null'
        cells.append((_quoted, task.into, ""))
    return f"{text}}}"


def _writes_form(writes: Writes, path: str, cells: list[_Cell]) -> str:
    patches = writes.patches
    keys = [*writes.values, *patches]
    if writes.removed or len(keys) > _MOST_KEYS or TAG in keys:
        cells.append((writes_text, writes, path))
        return "null"
    parts = []
    if writes.values:
        parts.append(f'"values":{{{",".join([f"{quoted(key)}:null" for key in writes.values])}}}')
        for key, value in writes.values.items():
            cells.append((codec.value_text, value, f"{path}.values[{key!r}]"))
    if patches:
        found = []
        for key, each in patches.items():
            place = f"{path}.patches[{key!r}]"
            if len(each) == 1 and each[0].kind in ACCUMULATORS:
                found.append(f'{quoted(key)}:[{{"{each[0].kind}":null}}]')
                cells.append((codec.value_text, each[0].operand, f"{place}[0].{each[0].kind}"))
            else:
                found.append(f"{quoted(key)}:null")
                cells.append((patches_text, each, place))
        parts.append(f'"patches":{{{",".join(found)}}}')
    return f"{{{','.join(parts)}}}"


def _plain(value: object, path: str) -> str:
    return str(value)


def _quoted(value: str, path: str) -> str:
    return quoted(value)


def _error_text(error: ErrorInfo, path: str) -> str:
    return codec.dumps(error_data(error))


def _effect_text(effect: RecordedEffect, path: str) -> str:
    return codec.dumps(effect_data(effect, path))


# --- reading --------------------------------------------------------------------------------------


def _holes(form: object) -> int:
    if type(form) is dict:
        return sum(map(_holes, form.values()))
    return sum(map(_holes, form)) if type(form) is list else form is None


def _size(form: object) -> int:
    """Return the number of values in a form."""
    if type(form) is dict:
        return 1 + sum(map(_size, form.values()))
    return 1 + sum(map(_size, form)) if type(form) is list else 1


def _filled(form: Any, cells: Iterator[object]) -> Any:
    if form is None:
        return next(cells)
    if type(form) is dict:
        return {
            name: _filled(part, cells) if part is None or type(part) in _NESTED else part
            for name, part in form.items()
        }
    return [_filled(part, cells) for part in form] if type(form) is list else form


def _with_times(commit: dict[str, Any], seq: int, since_ns: int, path: str) -> dict[str, Any]:
    for name in ("after_ns", "took_ns"):
        if type(commit.get(name, 0)) is not int:
            raise CorruptStateError(f"{path}.{name}", "must be an integer")
    commit["seq"] = seq
    commit["at_ns"] = at_ns = since_ns + commit.pop("after_ns")
    if "took_ns" in commit:
        commit["started_ns"] = at_ns - commit.pop("took_ns")
    return commit


_NESTED: Final = (dict, list)
