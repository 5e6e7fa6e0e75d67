"""Compares the visible results of runs with and without a crash.

Invariants:
- A view holds what a user can see of a job: status, routines, shared data, outputs, emissions,
  attempts and effects. The order of the user's own data counts; the work of the engine is a
  multiset, since another schedule is no fault.
- A part that differs between undisturbed runs is compared by presence only: the start instant, the
  length of steps and, on several workers, the order of work may change it.
- A difference that an undisturbed run of the same flow could show is never reported.
"""

from __future__ import annotations

import json
import marshal
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, cast

from pytest_routilux.sim.simulator.model import Finding
from pytest_routilux.text import bare_name, shorten, shown, without_addresses
from routilux import CommitKind, codec
from routilux.codec.equality import SCALARS, first_difference, same_value

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pytest_routilux.sim.simulator.model import Call, World
    from routilux import JobState

View = dict[str, Any]
Mask = frozenset[tuple[str, ...]]
"""Paths of a view that vary without a crash, from the top; `*` for any index of a list."""
Trie = dict[str, Any]
"""A mask as a tree, whose leaves are empty."""

_HIDDEN: Final = "~"
_LONGEST_KEY: Final = 18
_BAGS: Final = ("tasks", "emissions", "outputs")
"""The parts of a view that are multisets, by routine and slot or event."""


def view_of(job: JobState, world: World) -> View:
    """Return what a user can see of a job and its effects."""
    tasks: dict[str, list[View]] = {}
    emissions: dict[str, list[object]] = {}
    by_id: dict[str, View] = {}
    for commit in job.commits:
        kind = commit.kind
        known = by_id.get(commit.task_id or "")
        if known is not None and kind.ends_attempt:
            known["attempts"] = commit.attempt
            if commit.error is not None:
                known["errors"].append(commit.error.type)
            if kind is not CommitKind.RETRY:
                known["ended"] = kind.value
        for task in commit.tasks:
            if task.into is not None:
                continue  # it never runs; what it delivers is an emission
            entry = {"payload": task.payload, "attempts": 0, "errors": [], "ended": "pending"}
            by_id[task.task_id] = entry
            tasks.setdefault(f"{task.routine_id}.{task.slot}", []).append(entry)
        for emission in commit.emissions:
            name = f"{commit.routine_id}.{emission.event}"
            emissions.setdefault(name, []).append(emission.payload)
    outputs: dict[str, list[object]] = {}
    for output in job.outputs:
        outputs.setdefault(f"{output.routine_id}.{output.event}", []).append(output.data)
    effects: dict[str, list[object]] = {}
    for call in world.calls:
        effects.setdefault(call.effect, []).append(call.arguments)
    return {
        "status": job.status.value,
        "error": None if job.error is None else job.error.type,
        "shared": job.shared_data,
        "routines": {
            name: {
                "status": state.status.value,
                "state": state.state,
                "attempts": state.attempts,
                "retries": state.retry_count,
                "error": None if state.error is None else state.error.type,
            }
            for name, state in job.routine_states.items()
        },
        "tasks": tasks,
        "emissions": emissions,
        "outputs": outputs,
        "effects": effects,
    }


# --- what varies without a crash ------------------------------------------------------------------


def varying(view: View, others: Iterable[View], *, ordered: bool) -> Mask:
    """Return the paths at which `view` differs from any of `others`."""
    found: set[tuple[str, ...]] = set()
    base = view if ordered else unordered(view)  # several workers append in any order
    for other in others:
        _vary(base, other if ordered else unordered(other), (), found)
    return frozenset(found)


def _vary(a: object, b: object, path: tuple[str, ...], found: set[tuple[str, ...]]) -> None:
    if type(a) is dict and type(b) is dict:
        for key in {**a, **b}:
            if key in a and key in b and type(key) is str:
                _vary(a[key], b[key], (*path, key), found)
            elif type(key) is str:
                found.add((*path, key))
            elif not same_value(a, b):
                found.add(path)
    elif type(a) is type(b) and isinstance(a, list | tuple) and len(a) == len(cast("Any", b)):
        for x, y in zip(a, cast("Any", b), strict=True):
            _vary(x, y, (*path, "*"), found)
    elif not same_value(a, b):
        found.add(path)


def unordered(value: Any) -> Any:
    """Return a copy of `value` with all lists sorted."""
    if type(value) is dict:
        return {key: unordered(item) for key, item in value.items()}
    if type(value) is list:
        return sorted(map(unordered, value), key=canonical)
    return value


def _sorted_bags(view: View) -> View:
    bags = {
        bag: {name: sorted(items, key=canonical) for name, items in view[bag].items()}
        for bag in _BAGS
    }
    return {**view, **bags}


def canonical(value: Any) -> str:
    """Return a text that is the same for equal values."""
    kind = type(value)
    if kind in SCALARS:
        return repr(value)
    if kind is dict:
        items = sorted(f"{canonical(key)}: {canonical(item)}" for key, item in value.items())
        return f"{{{', '.join(items)}}}"
    if kind is list or kind is tuple:
        return f"{kind.__name__}[{', '.join(map(canonical, value))}]"
    try:
        return json.dumps(codec.encode(value), sort_keys=True)
    except Exception:
        # The repr of many classes is an address, which differs between copies.
        return f"{kind.__qualname__} {without_addresses(repr(value))} {_attributes(value)}"


def _attributes(value: object) -> str:
    attributes = getattr(value, "__dict__", None)
    try:
        return canonical(attributes) if type(attributes) is dict else ""
    except RecursionError:
        return ""


def trie_of(mask: Iterable[tuple[str, ...]]) -> Trie:
    """Convert a set of paths to a tree."""
    root: Trie = {}
    for path in sorted(mask, reverse=True):  # a path replaces all paths below it
        node = root
        for step in path[:-1]:
            node = node.setdefault(step, {})
        node[path[-1]] = {}
    return root


def masked(value: Any, trie: Trie) -> Any:
    """Return a copy of `value` that hides the paths in `trie`."""
    if type(value) is dict:
        kept = value.copy()  # shares the other parts
        for step, below in trie.items():
            if not below:
                kept[step] = _HIDDEN  # also if it is missing: either may be
            elif step in kept:
                kept[step] = masked(kept[step], below)
        return kept
    if isinstance(value, list | tuple) and "*" in trie:
        below = trie["*"]
        if not below:
            return type(value)(_HIDDEN for _ in value)
        return type(value)(masked(item, below) for item in value)
    return value


# --- comparing ------------------------------------------------------------------------------------

_KINDS: Final = {
    "status": "status-differs",
    "error": "status-differs",
    "shared": "shared-differs",
    "tasks": "attempts-differ",
    "emissions": "emissions-differ",
    "outputs": "outputs-differ",
}


class Expected:
    """The view that a run with a crash must have.

    Parts in `trie` may vary. `ordered`: one worker, so that the order of the user's lists counts.
    """

    def __init__(self, view: View, trie: Trie, *, ordered: bool) -> None:
        self._trie = trie
        self._sort = _sorted_bags if ordered else unordered
        self._plain = _without_effects(masked(view, trie))
        self._sorted: View | None = None  # made when it is first needed: most views are equal
        self._bytes = _bytes(self._plain)

    def compare(self, view: View) -> Finding | None:
        """Return a finding if `view` differs from the expected view."""
        other = _without_effects(masked(view, self._trie))
        if self._bytes is None:
            if same_value(self._plain, other):
                return None
        elif self._bytes == _bytes(other):
            return None
        if self._sorted is None:
            self._sorted = self._sort(self._plain)
        a, b = self._sorted, self._sort(other)
        difference = first_difference(a, b)
        if difference is None:
            return None
        path = difference.path.removeprefix("$.")
        part, routine = _where(path, a, b)
        kind = _KINDS.get(part, "state-differs")
        if part == "tasks" or path.endswith((".attempts", ".retries")):
            kind = "attempts-differ"
        expected, actual = shown(difference.expected), shown(difference.actual)
        what = f"{path}: {expected} without a crash, {actual} with this crash"
        return Finding(kind, what, path, routine, rows=_rows(a, b))


def _bytes(view: View) -> bytes | None:
    # Ten times as fast as a walk over plain data: equal bytes are equal values. Version 2 of the
    # format does not write which objects are shared.
    try:
        return marshal.dumps(view, 2)
    except ValueError:
        return None


def _without_effects(view: View) -> View:
    return {part: value for part, value in view.items() if part != "effects"}


def _where(path: str, a: View, b: View) -> tuple[str, str | None]:
    """Return the first name in `path` and the routine that differs."""
    part = path.partition(".")[0].partition("[")[0]
    if part == "routines" or part in _BAGS:
        for name in {**a[part], **b[part]}:
            if not same_value(a[part].get(name), b[part].get(name)):
                return part, name if part == "routines" else name.rpartition(".")[0]
    if part in ("status", "error"):
        for name, state in a["routines"].items():
            if not same_value(state["status"], b["routines"].get(name, {}).get("status")):
                return part, name
    return part, None


_OF_ROUTINES: Final = ("status", "attempts", "retries")


def _rows(a: View, b: View) -> list[tuple[str, str, str]]:
    rows = [
        (part, bare_name(str(a[part])), bare_name(str(b[part])))
        for part in ("status", "error")
        if not same_value(a[part], b[part])
    ]
    counted = set()
    for name in {**a["routines"], **b["routines"]}:
        was, is_ = a["routines"].get(name, {}), b["routines"].get(name, {})
        differ = [w for w in _OF_ROUTINES if not same_value(was.get(w), is_.get(w))]
        if differ:
            counted.add(name)
        if "attempts" in differ or (rows and rows[0][0] == "status"):
            # The attempts and the job's own status say the rest.
            differ = [what for what in differ if what == "attempts"]
        rows += [(f"{name} {what}", str(was.get(what)), str(is_.get(what))) for what in differ]
        rows += _first_row(f"{name} ctx.state", was.get("state"), is_.get("state"))
    rows += _first_row("shared", a["shared"], b["shared"])
    for bag in ("outputs", "emissions", "tasks"):
        for name in {**a[bag], **b[bag]}:
            was, is_ = a[bag].get(name, []), b[bag].get(name, [])
            known = bag == "emissions" and name in {**a["outputs"], **b["outputs"]}
            known = known or (bag == "tasks" and name.rpartition(".")[0] in counted)
            if len(was) != len(is_):
                rows.append((f"{bag} {name}", f"{len(was)}x", f"{len(is_)}x"))
            elif not known:
                rows += _first_row(f"{bag} {name}", was, is_)
    return rows


def _first_row(name: str, a: object, b: object) -> list[tuple[str, str, str]]:
    found = first_difference(a, b, name)
    if found is None:
        return []
    was = "nothing" if found.what == "added" else shown(found.expected)
    is_ = "nothing" if found.what == "missing" else shown(found.actual)
    return [(found.path, was, is_)]


# --- effects --------------------------------------------------------------------------------------


def compare_effects(before: World, after: World, trie: Trie) -> Finding | None:
    """Return a finding if two runs differ in effect calls or keys."""
    if not before.calls and not after.calls:
        return None
    inputs = trie.get("effects", {})
    was, is_ = _deliveries(before.calls, inputs), _deliveries(after.calls, inputs)
    for identity, calls in is_.items():
        known = was.get(identity, [])
        if _distinct(calls) <= _distinct(known):
            continue
        text = str(calls[-1])
        if _keys(calls) <= _keys(known) and None not in _keys(calls):
            many, usual = _distinct(calls), _distinct(known)
            what = f"{text} ran {many}x in one attempt, undisturbed run {usual}x"
            row = text, f"x{usual} in one attempt", f"x{many} in one attempt"
            return _finding("effect-repeated", what, calls[-1], row)
        keys = ", ".join(
            "none" if call.key is None else shorten(str(call.key), _LONGEST_KEY, "both")
            for call in calls
        )
        row = text, f"x{len(known)}", f"x{len(calls)}   keys: {keys}"
        if all(call.key is None for call in calls):
            what = f"{text} ran {len(calls)}x, undisturbed run {len(known)}x"
            return _finding("effect-repeated", what, calls[-1], row)
        what = f"{text} ran {len(calls)}x under different keys: {keys}"
        return _finding("key-unstable", what, calls[-1], row)
    for identity, calls in was.items():
        known = is_.get(identity, [])
        if _distinct(known) < _distinct(calls):
            text = str(calls[-1])
            what = f"{text} ran {len(known)}x, undisturbed run {len(calls)}x"
            row = text, f"x{len(calls)}", f"x{len(known)}"
            return _finding("effect-lost", what, calls[-1], row)
    return None


def unstable_key(world: World) -> Finding | None:
    """Return a finding if a task's attempts call an effect with different keys."""
    made: dict[tuple[str, str, str], dict[int, list[Call]]] = {}
    for call in world.calls:
        if call.key is None or call.reads:
            continue
        identity = (call.task_id, call.effect, canonical(call.arguments))
        attempts = made.setdefault(identity, {})
        calls = attempts.setdefault(call.attempt, [])
        calls.append(call)
        # An attempt may make the same call several times, under a key for each.
        first = next(iter(attempts.values()))
        if len(calls) > len(first):
            continue
        known = first[len(calls) - 1]
        if canonical(known.key) != canonical(call.key):
            what = f"{call} ran 2x under different keys: {known.key}, {call.key}"
            was, is_ = (f"attempt {one.attempt}: {one.key}" for one in (known, call))
            return _finding("key-unstable", what, call, ("key", was, is_))
    return None


def reused_key(world: World, trie: Trie) -> Finding | None:
    """Return a finding if one key belongs to two effects, or to two inputs of one effect."""
    inputs = trie.get("effects", {})
    first: dict[str, tuple[Call, str]] = {}
    for call in world.calls:
        if call.key is None or call.reads:
            continue
        key, arguments = canonical(call.key), _inputs(call, inputs)
        known, of_known = first.setdefault(key, (call, arguments))
        if (known.effect, of_known) != (call.effect, arguments):
            what = f"{call} has the key of {known}: {call.key}"
            row = "key", f"{known}: {known.key}", f"{call}: {call.key}"
            return _finding("key-reused", what, call, row)
    return None


def repeated_in_attempt(world: World) -> str | None:
    """Return a text about a call that one attempt makes twice under one key; None if none does."""
    made: Counter[tuple[str, ...]] = Counter()
    for call in world.calls:
        if call.key is None or call.reads or call.error is not None:
            continue
        inputs = canonical(call.arguments), canonical(call.key)
        which = call.effect, *inputs, call.task_id, str(call.attempt)
        made[which] += 1
        if made[which] == 2:
            return (
                f"{call.routine_id} makes the call {call} twice in one attempt under one key: the"
                " service does it once"
            )
    return None


def _finding(kind: str, what: str, call: Call, row: tuple[str, str, str]) -> Finding:
    path = f"effects.{call.effect}"
    return Finding(kind, what, path, call.routine_id, [row], call.where, call)


def _deliveries(calls: Sequence[Call], trie: Trie) -> Mapping[tuple[str, str], list[Call]]:
    found: dict[tuple[str, str], list[Call]] = {}
    for call in calls:
        if not call.reads:
            found.setdefault((call.effect, _inputs(call, trie)), []).append(call)
    return found


def _inputs(call: Call, trie: Trie) -> str:
    return canonical(masked(dict(call.arguments), trie.get(call.effect, {}).get("*", {})))


def _keys(calls: Sequence[Call]) -> set[str | None]:
    return {None if call.key is None else canonical(call.key) for call in calls}


def _distinct(calls: Sequence[Call]) -> int:
    """Return how many of these calls count.

    A service counts calls under one key as one call, whatever the number of attempts. But an
    attempt that makes the same call twice counts as two, so that it is seen if only one host does.
    """
    count = 0
    in_attempt: dict[tuple[str, str, int], tuple[int, Counter[str]]] = {}
    most: Counter[str] = Counter()
    for call in calls:
        if call.key is None:
            count += 1
            continue
        key, attempt = canonical(call.key), (call.task_id, call.effect, call.attempt)
        last, made = in_attempt.get(attempt, (call.number, Counter()))
        if call.number <= last:  # another host runs the attempt
            made = Counter()
        # A call that raised an error is followed by the handler's own retry.
        made[key] += call.error is None
        in_attempt[attempt] = call.number, made
        most[key] = max(most[key], made[key], 1)
    return count + most.total()
