"""Fan-out and fan-in in concurrent mode: a budget for each picture, shared totals, one result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

import pytest

from routilux import CommitKind, JobStatus
from showcase.flows import fan_out_and_in
from showcase.lanes import Lanes, most_at_once, worked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_routilux import FlowReport, FlowSim
    from routilux import Commit, FakeClock, Flow, JobState, Runtime

SECOND = 1_000_000_000

# name, seconds an attempt, failures before success; more than 2 failures exhaust the budget
ALBUM = (
    ("ash", 0.4, 0),
    ("birch", 0.6, 1),
    ("cedar", 0.3, 2),
    ("elm", 0.5, 9),
    ("fir", 0.7, 0),
    ("hazel", 0.2, 1),
    ("larch", 0.4, 9),
    ("maple", 0.5, 0),
    ("oak", 0.3, 2),
    ("pine", 0.6, 0),
)


def pictures(album: Sequence[tuple[str, float, int]]) -> dict[str, object]:
    return {
        "pictures": [
            {"name": name, "seconds": seconds, "failures": failures}
            for name, seconds, failures in album
        ]
    }


def attempts_at_each(job: JobState) -> dict[str, int]:
    """Return how many attempts `resize` made at each picture, counted in the commits."""
    names = {
        task.task_id: cast(str, task.payload["name"])
        for commit in job.commits
        for task in commit.tasks
        if task.routine_id == "resize"
    }
    counts = dict.fromkeys(names.values(), 0)
    for commit in job.commits:
        if commit.routine_id == "resize" and commit.task_id is not None:
            counts[names[commit.task_id]] += 1
    return counts


def conflicts(job: JobState) -> list[Commit]:
    return [commit for commit in job.commits if commit.kind is CommitKind.CONFLICT]


def label(job: JobState) -> dict[str, str]:
    """Return what a task's block in the lanes is called: the picture, in capitals when tallied."""
    return {
        task.task_id: name.upper() if task.routine_id == "tally" else name
        for commit in job.commits
        for task in commit.tasks
        if isinstance(name := task.payload.get("name"), str)
    }


def workers(number: int) -> str:
    return "1 worker" if number == 1 else f"{number} workers"


@pytest.mark.parametrize("max_workers", [1, 2, 4, 8])
def test_every_picture_has_its_own_budget_and_the_album_is_emitted_once(
    max_workers: int, flow_runtime: Runtime, flow_clock_bare: FakeClock, flow_report: FlowReport
) -> None:
    job = fan_out_and_in(max_workers).execute("split", pictures(ALBUM))

    done = {name: failures for name, _, failures in ALBUM if failures <= 2}
    dropped = {name for name, _, failures in ALBUM if failures > 2}
    sizes = sum(100 + 10 * len(name) for name in done)
    busy = sum(commit.at_ns - (commit.started_ns or 0) for commit in worked(job))
    names = label(job)

    flow_report.add(
        Lanes(job, lambda commit: names[str(commit.task_id)]),
        title=f"🪢 Fan-out and fan-in, {workers(max_workers)}: resize (small), tally (CAPITALS)",
    )
    in_full = max_workers == 4
    if in_full:
        flow_report.summary(job)
        flow_report.retries(job, title="Each picture's own retries")
    with flow_report.verification(
        "Budgets, totals and the one result", brief=not in_full
    ) as verify:
        verify("status", JobStatus.COMPLETED, job.status)
        verify(
            "attempts at each picture",
            {name: min(failures, 2) + 1 for name, _, failures in ALBUM},
            attempts_at_each(job),
        )
        verify("albums emitted", 1, len(job.outputs))
        verify(
            "what it tells",
            {
                "done": [name for name, _, _ in ALBUM if name in done],
                "dropped": [name for name, _, _ in ALBUM if name in dropped],
            },
            dict(job.outputs[0].data),
        )
        verify("dropped", sorted(dropped), sorted(str(d.payload["name"]) for d in job.dropped))
        resized = job.routine_states["resize"].state
        verify("accumulated pictures", len(done), resized.get("pictures", 0))
        verify("shared count", len(done), job.shared_data["count"])
        verify("shared bytes", sizes, job.shared_data["bytes"])
        verify("conflicts cost no retry", 0, job.retry_count("tally"))
        verify("busiest instant", max_workers, most_at_once(job))
        verify("workers", list(range(max_workers)), sorted({c.worker for c in worked(job)}))
        verify.that(
            "overlap iff workers > 1",
            (job.updated_ns - job.started_ns < busy) == (max_workers > 1),
            f"{busy / SECOND:g} s of work in {(job.updated_ns - job.started_ns) / SECOND:g} s",
        )
        verify.that(
            "conflicts iff workers > 1",
            bool(conflicts(job)) == (max_workers > 1),
            f"{len(conflicts(job))} conflicts",
        )


@pytest.mark.parametrize(("max_workers", "seconds"), [(1, 8), (2, 4), (4, 2), (8, 1)])
def test_eight_pictures_of_a_second_take_as_long_as_the_workers_allow(
    max_workers: int,
    seconds: int,
    flow_runtime: Runtime,
    flow_clock_bare: FakeClock,
    flow_report: FlowReport,
) -> None:
    album = [(f"p{number}", 1.0, 0) for number in range(8)]

    job = fan_out_and_in(max_workers, tally_seconds=0).execute("split", pictures(album))

    names = label(job)
    flow_report.add(
        Lanes(job, lambda commit: names[str(commit.task_id)]),
        title=f"🪢 8 × 1 s on {workers(max_workers)}",
    )
    assert seconds * SECOND == job.updated_ns - job.started_ns
    assert 8 == len(worked(job))


def test_a_task_that_waits_for_a_retry_holds_no_worker(
    flow_runtime: Runtime, flow_clock_bare: FakeClock, flow_report: FlowReport
) -> None:
    # One worker: while `slow` waits 0.25 s for its retry, the others run in its place.
    album = [("slow", 0.1, 1), ("quick", 0.1, 0), ("brisk", 0.1, 0)]

    job = fan_out_and_in(1, tally_seconds=0).execute("split", pictures(album))

    names = label(job)
    flow_report.add(
        Lanes(job, lambda commit: names[str(commit.task_id)]),
        title="🪢 A task that waits for a retry holds no worker",
    )
    started = [(names[str(c.task_id)], (c.started_ns or 0) - job.started_ns) for c in worked(job)]
    assert [
        ("slow", 0),
        ("quick", SECOND // 10),
        ("brisk", SECOND * 2 // 10),
        ("slow", SECOND * 35 // 100),
    ] == started


def test_three_hundred_pictures_lose_no_update(
    flow_runtime: Runtime, flow_clock_bare: FakeClock, flow_report: FlowReport
) -> None:
    album = [(f"p{number}", 0.01 * (number % 7), number % 4) for number in range(300)]

    job = fan_out_and_in(8, tally_seconds=0).execute("split", pictures(album))

    done = [name for name, _, failures in album if failures <= 2]
    flow_report.summary(job, title="🪢 Three hundred pictures")
    with flow_report.verification("Three hundred pictures on 8 workers", brief=True) as verify:
        verify("status", JobStatus.COMPLETED, job.status)
        verify("shared count", len(done), job.shared_data["count"])
        verify("dropped", 300 - len(done), len(job.dropped))
        verify("albums emitted", 1, len(job.outputs))
        verify("nothing is pending", (), job.pending_tasks)


@pytest.mark.parametrize("collector", ["gather", "count"])
def test_the_album_is_the_same_in_every_order_of_the_work(
    collector: Literal["gather", "count"], flow_sim: FlowSim
) -> None:
    def build() -> Flow:
        return fan_out_and_in(4, collector=collector)

    albums = [flow_sim.run(build, "split", pictures(ALBUM), seed=n) for n in range(5)]
    names = [name for name, _, failures in ALBUM if failures <= 2]
    dropped = [name for name, _, failures in ALBUM if failures > 2]
    assert 5 * [{"done": names, "dropped": dropped}] == [a.job.outputs[0].data for a in albums]


# --- a collector that is wrong --------------------------------------------------------------------

FEW = (("ash", 0.4, 0), ("birch", 0.4, 0), ("cedar", 0.4, 0))


def test_a_collector_that_waits_for_the_last_picture_is_found(
    flow_sim: FlowSim, flow_report: FlowReport
) -> None:
    with pytest.raises(pytest.fail.Exception) as failure:
        flow_sim.explore(
            lambda: fan_out_and_in(3, collector="last"),
            "split",
            pictures(FEW),
            schedules="all",
            crashes="none",
        )

    found = str(failure.value)
    flow_report.add(found, title="🪢 The report on a collector that waits for the last picture")
    assert found.startswith("DEPENDS ON ORDER: ")
    words = " ".join(found.split())
    assert 'why gather reads ctx.state["names"] (showcase/routines/fan.py:' in words
    assert "its tasks come in another order, and so does the result" in words
    assert "fix wait for all with a gather slot (gather=True)" in words


def test_the_gather_slot_gives_one_album_in_all_orders(flow_sim: FlowSim) -> None:
    coverage = flow_sim.explore(
        lambda: fan_out_and_in(4), "split", pictures(FEW), schedules="all", crashes="none"
    )
    assert "complete" == coverage.word
