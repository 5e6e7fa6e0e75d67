"""Each rule of the soak can be broken: by faults of a store or the engine, or forged evidence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from routilux import Commit, CommitKind, JobState, JobStatus
from tests.kills.soak import hosts
from tests.kills.verdicts import Evidence, broken, evidence

# The order of a worker without the fault, of one with it, and the broken rule. Without a lease,
# which a busy machine may lose, it is certain what was committed.
EXECUTED = {"execute": "j", "aim": ["before append", 3, 0]}
FAULTS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "loses a commit": (
        {"submit": ["j"], "aim": ["before append", 5, 0]},
        {},
        "of job j was acknowledged, and the store has another",
    ),
    "keeps a commit twice": (
        {"submit": ["j"], "aim": ["before append", 1, 0]},
        {},
        "attempt 3 of task 0 of 'first' is not pending",
    ),
    "forgets effects": (
        EXECUTED,
        {"resume": ["j"]},
        "the effect j/0/charge was done again after it was recorded",
    ),
    "resets retries": (
        EXECUTED,
        {"resume": ["j"]},
        "waited (2000000, 2000000) ns before its retries, not",
    ),
}


Lives = Callable[..., Evidence]


@pytest.fixture(scope="module")
def lives() -> Iterator[Lives]:
    """Runs some workers in a folder, one after the other, and returns what is left of them."""
    with hosts(1) as (host,):

        def lived(folder: Path, *orders: dict[str, Any]) -> Evidence:
            folder.mkdir(exist_ok=True)
            host.events = []
            where, effects = str(folder / "jobs.db"), folder / "effects"
            for order in orders:
                host.live(store=where, effects=str(effects), **order)
            return evidence(where, effects, host.events)

        yield lived


@pytest.mark.parametrize("plant", FAULTS)
def test_a_fault_of_a_store_or_the_engine_is_reported(plant, lives, tmp_path):
    killed, resumed, message = FAULTS[plant]
    assert [] == broken(lives(tmp_path / "sound", killed, resumed))
    lines = broken(lives(tmp_path / "faulty", killed, {"plant": plant, **resumed}, {}))
    assert [line for line in lines if message in line], lines


# --- forged evidence ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def left(lives, tmp_path_factory):
    """The folder of one undisturbed job, and its commits that were acknowledged."""
    folder = tmp_path_factory.mktemp("sound")
    return folder, lives(folder, {"submit": ["j"]}).acknowledged


@pytest.fixture
def found(left):
    folder, acknowledged = left
    read = evidence(str(folder / "jobs.db"), folder / "effects", [])
    read.acknowledged = set(acknowledged)
    assert [] == broken(read)
    return read


Forge = Callable[[Evidence, JobState], object]


def _changed(kind: CommitKind, **values: Any) -> Forge:
    return lambda _, job: job._commits.__setitem__(*_first(job, kind, **values))


def _again(kind: CommitKind) -> Forge:
    """A commit that is applied once more, after all others."""

    def forge(found, job):
        _, commit = _first(job, kind, at_ns=job.updated_ns)
        job._commits.append(replace(commit, seq=job.seq + 1))

    return forge


def _without(kind: CommitKind) -> Forge:
    return lambda _, job: job._commits.pop(_first(job, kind)[0])


def _first(job: JobState, kind: CommitKind, **values: Any) -> tuple[int, Commit]:
    """The place of the first commit of a kind, and the commit with other values."""
    at = next(i for i, commit in enumerate(job.commits) if commit.kind is kind)
    return at, replace(job.commits[at], **values)


def _early(found, job):
    first, second = (i for i, c in enumerate(job.commits) if c.kind is CommitKind.RETRY)
    due = job.commits[first].due_ns or 0
    job._commits[second] = replace(job.commits[second], started_ns=due - 7)


FORGED: dict[str, Forge] = {
    "commit 3 of job j was acknowledged, and is lost": _without(CommitKind.EFFECT),
    "commit 2 of job j was acknowledged, and the store has another": _changed(
        CommitKind.RESUMED, at_ns=1
    ),
    "attempt 3 of task 0 was applied 1 times too often": _again(CommitKind.DONE),
    "attempt 1 of task 0 was applied 1 times too often": _again(CommitKind.RETRY),
    "attempt 3 of task 0 was never applied": _without(CommitKind.DONE),
    "job j has shared {'sent': 3}": lambda found, job: job.shared_data.update(sent=3),
    "job j is paused": lambda found, job: setattr(job, "status", JobStatus.PAUSED),
    "ns before its retries, not (2000000, 4000000)": _changed(CommitKind.RETRY, delay_ns=1),
    "attempt 2 began 7 ns before it was due": _early,
    "job j is another when it is read from its snapshot": lambda found, job: setattr(
        found.from_snapshots["j"], "recoveries", 9
    ),
    "only 0 of 1 jobs were read from a snapshot": lambda found, job: found.from_snapshots.update(
        j=job.copy()
    ),
    "job j recorded the effects": _again(CommitKind.EFFECT),
    "the effect j/0/charge is recorded, and was never done": lambda found, job: found.effects.pop(
        0
    ),
    "the effect j/0/charge was done again after it was recorded": lambda found, job: (
        found.effects.append(("j/0/charge", "another", 3))
    ),
}


@pytest.mark.parametrize("message", FORGED)
def test_a_broken_rule_is_reported(message, found):
    FORGED[message](found, found.jobs["j"])
    lines = broken(found)
    assert [line for line in lines if message in line], lines


def test_an_effect_of_a_step_that_began_before_the_record_breaks_no_rule(found):
    found.effects.append(("j/0/charge", "of a suspended host", 2))
    assert [] == broken(found)
