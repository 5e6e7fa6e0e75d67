"""Runs saved jobs again, and finds the first step that would do something else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_routilux.sim.replay.judge import Difference, Replay, first_other_step
from pytest_routilux.sim.replay.sources import saved_jobs

if TYPE_CHECKING:
    from collections.abc import Callable

    from routilux import Flow


def replay_jobs(source: object, build: Callable[[], Flow]) -> tuple[Replay, list[Difference]]:
    """Run the jobs of a source again, each on a new flow; return the first difference of each."""
    replay = Replay()
    differences = []
    for place, job in saved_jobs(source):
        difference = first_other_step(build(), job, place, replay)
        if difference is not None:
            differences.append(difference)
    return replay, differences
