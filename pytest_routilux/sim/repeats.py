"""Compares undisturbed runs that begin alike.

Invariants:
- The first run, in a fork, the second, in this process, and a plain repeat of it have the same
  shape: what ran how often and how it ended, without the values.
- Another shape is a finding, also if its cause is not known: the run that others are compared with
  proves nothing then. Values that differ are not compared, and a note says so.
- With `fresh` nothing outside of the job differs. Without it the second run finds what the first
  one left: a file, a row, a global.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pytest_routilux.sim.simulator.model import Finding
from pytest_routilux.text import listed, shorten, shown
from routilux.codec.equality import first_difference

if TYPE_CHECKING:
    from pytest_routilux.sim.oracle import Mask, View
    from pytest_routilux.sim.simulator.model import Undisturbed

REPEAT: Final = "repeat-differs"
"""The kind of a finding on two runs that begin alike."""
Shape = dict[str, Any]
"""What a view says of a job, without the values of the user."""


def shape_of(view: View) -> Shape:
    """Return the shape of a view: plain data that any process can read."""
    return {
        "status": view["status"],
        "error": view["error"],
        "routines": {
            name: {part: state[part] for part in ("status", "attempts", "retries", "error")}
            for name, state in view["routines"].items()
        },
        "tasks": {
            name: sorted([task["attempts"], task["ended"], *task["errors"]] for task in tasks)
            for name, tasks in view["tasks"].items()
        },
        **{
            part: {name: len(items) for name, items in view[part].items()}
            for part in ("emissions", "outputs", "effects")
        },
    }


def changed_shape(run: Undisturbed, first: Shape, second: Shape, which: str) -> Finding | None:
    """Return a finding if two runs that begin alike have another shape.

    `which` says what the second run is; `run` is the one in this process.
    """
    effects = dict.fromkeys([*first["effects"], *second["effects"]])
    for name in effects:
        was, is_ = first["effects"].get(name, 0), second["effects"].get(name, 0)
        if was != is_:
            call = next((call for call in run.world.calls if call.effect == name), None)
            routine, hint = (None, "") if call is None else (call.routine_id, call.where)
            what = f"{name} is called {was}x in the first run and {is_}x in {which}"
            rows = [(f"calls of {name}", f"{was}x", f"{is_}x")]
            return Finding(REPEAT, what, f"repeat.{name}", routine, rows, hint)
    difference = first_difference(first, second)
    if difference is None:
        return None
    path = difference.path.removeprefix("$.")
    was, is_ = (
        "nothing" if value is None else shown(value)
        for value in (difference.expected, difference.actual)
    )
    part, _, rest = path.partition(".")
    routine = next(
        (
            name
            for name in run.host.flow.routines
            if part not in ("status", "error") and (rest == name or rest.startswith(f"{name}."))
        ),
        None,
    )
    what = f"{path} is {was} in the first run and {is_} in {which}"
    return Finding(REPEAT, what, f"repeat.{path}", routine, [(path, was, is_)])


def changed_values(mask: Mask) -> list[str]:
    """Return a note about the values that differ between two runs that begin alike."""
    if not mask:
        return []
    paths = listed([shorten(".".join(path), 40, "both") for path in sorted(mask)], 3)
    text = f"a second run that begins alike has other values at {paths}, which are not compared"
    return [f"{text}; flow_sim.check_determinism finds the call that makes them"]
