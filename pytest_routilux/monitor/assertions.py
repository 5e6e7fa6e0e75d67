"""What a flow did, as assertions: `flow_monitor.assert_retried("charge", times=4, delays=[...])`.

Laws:
- Nothing passes by a misspelt name: a routine, event, connection, status or job that is not known
  is `FlowDefinitionError` with the names that are. It is no AssertionError, so a test that expects
  a failure does not take it for one.
- Nothing passes because nothing was watched: without a job every assertion fails.
- Without `job=` an assertion is about all jobs that were watched: counts are sums over them,
  states, statuses and orders hold for each.
- Times are exact: they are compared and written as integer nanoseconds.
- A failure says in its first line what is wrong, and marks with `>` the first record that differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pytest_routilux.monitor.emitted import Emitted, mismatch
from pytest_routilux.monitor.known_jobs import (
    Seen,
    check_connected,
    check_event,
    knowing,
    known,
    last_word,
    why_silent,
)
from pytest_routilux.monitor.messages import WIDEST, failure
from pytest_routilux.monitor.waits import first_wrong, retries_told, wait_told
from pytest_routilux.text import count, error_text, listed, short_id, shorten
from routilux import (
    CommitKind,
    ExecutionMonitor,
    FlowDefinitionError,
    JobState,
    JobStatus,
    RoutineStatus,
)
from routilux.clocks.durations import to_ns

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from routilux import Commit, Retry, StepInput

__all__ = ["FlowMonitor"]

_TASK_ENDS = frozenset({CommitKind.DONE, CommitKind.FAILED, CommitKind.DROPPED})


class FlowMonitor(ExecutionMonitor):
    """An `ExecutionMonitor` with assertions about what it has watched.

    `job=` takes a job or its id and narrows an assertion to it. `FlowMonitor.of(job)` judges a job
    that ran elsewhere. What does not hold raises `AssertionError`; a name that is not known,
    `FlowDefinitionError`.

    >>> from routilux import FakeClock, Flow, Routine, Runtime
    >>> class Hello(Routine):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.define_slot("trigger", handler=self.hello)
    ...         self.define_event("output", ["text"])
    ...     def hello(self, name):
    ...         self.emit("output", text=f"hello {name}")
    >>> flow = Flow("greeting")
    >>> _ = flow.add_routine(Hello(), "hello")
    >>> job = flow.execute("hello", {"name": "world"}, runtime=Runtime(clock=FakeClock()))
    >>> monitor = FlowMonitor.of(job)
    >>> monitor.assert_emitted("hello", event="output", times=1, data={"text": "hello world"})
    >>> monitor.assert_status("completed")
    """

    def __init__(self) -> None:
        super().__init__()
        self._jobs: dict[str, Seen] = {}

    def on_commit(self, job: JobState, commit: Commit) -> None:
        """Add what a commit tells."""
        super().on_commit(job, commit)
        seen = self._seen(job)
        seen.commits.append(commit)

    def on_step(self, job: JobState, step: StepInput) -> None:
        """Add that an attempt has begun, which has no commit until it ends."""
        task = step.task
        self._seen(job).begun.append((task.routine_id, task.task_id, step.attempt))

    def _seen(self, job: JobState) -> Seen:
        seen = self._jobs.get(job.job_id)
        if seen is None:
            seen = self._jobs[job.job_id] = Seen(job)
        seen.job = job  # a resumed job is another object
        return seen

    # --- assertions -----------------------------------------------------------------------------

    def assert_emitted(
        self,
        routine: str,
        event: str | None = None,
        *,
        times: int | None = None,
        data: Mapping[str, object] | None = None,
        job: JobState | str | None = None,
    ) -> None:
        """Assert that a routine emitted, `times` in all, or at least once.

        Without `event`, any of its events. `data` matches a part of the payload: fields that it
        does not name may be anything, in nested dicts too. Only what was committed counts: what a
        failed attempt emits was never emitted.
        """
        __tracebackhide__ = True
        jobs = knowing(self._watched(job), routine)
        if event is not None:
            check_event(jobs, routine, event)
        emitted = [
            Emitted(seen, commit, emission, mismatch(data or {}, emission.payload))
            for seen in jobs
            for commit in seen.commits
            if commit.routine_id == routine
            for emission in commit.emissions
            if event is None or emission.event == event
        ]
        matching = [one for one in emitted if one.difference is None]
        if len(matching) == times or (times is None and matching):
            return
        what = f"{routine}.{event}" if event is not None else f"any event of {routine}"
        wanted = "at least once" if times is None else f"{times}x"
        if len(matching) > (times or 0):
            culprit: Emitted | None = matching[times or 0]
        else:
            culprit = next((one for one in emitted if one.difference is not None), None)
        if culprit is not None and culprit.difference is not None:
            problem = f"{culprit.difference}\n"
            problem += f"(with this data expected {wanted}, emitted {len(matching)}x)"
        else:
            problem = f"expected {wanted}, emitted {len(matching)}x"
        lines = [
            (one is culprit, f"emission {number}", one.told())
            for number, one in enumerate(emitted, 1)
        ]
        seen, commit = (culprit.seen, culprit.commit) if culprit else last_word(jobs, routine)
        look = "the arguments of emit() in its handler" if emitted else why_silent(seen, routine)
        raise failure(f"{what}: {problem}", lines, seen, commit, look, several=len(jobs) > 1)

    def assert_not_run(self, routine: str, *, job: JobState | str | None = None) -> None:
        """Assert that no attempt of a routine was begun."""
        __tracebackhide__ = True
        jobs = knowing(self._watched(job), routine)
        for seen in jobs:
            ran = [one for one in seen.begun if one[0] == routine]
            ends = [commit for commit in seen.commits if commit.routine_id == routine]
            if not ran and not ends:
                continue
            tasks = dict.fromkeys(
                [(task, attempt) for _, task, attempt in ran]
                or [(str(commit.task_id), commit.attempt) for commit in ends]
            )
            lines = [
                (number == 0, f"task {task}", f"attempt {attempt}")
                for number, (task, attempt) in enumerate(tasks)
            ]
            raise failure(
                f"{routine}: expected never to run, began {count(len(tasks), 'attempt')}",
                lines,
                seen,
                ends[0] if ends else seen.commits[-1],
                f"what feeds it: {listed(seen.feeds(routine)) or 'the job starts with it'}",
                several=len(jobs) > 1,
            )

    def assert_flowed(
        self,
        source: str,
        target: str,
        *,
        times: int | None = None,
        job: JobState | str | None = None,
    ) -> None:
        """Assert that events of one routine reached another, `times` in all, or at least once."""
        __tracebackhide__ = True
        jobs = knowing(self._watched(job), source, target)
        check_connected(jobs, source, target)
        ids = {seen.job_id for seen in jobs}
        flows = [
            flow
            for flow in self.data_flows
            if flow.job_id in ids and (flow.source, flow.target) == (source, target)
        ]
        if len(flows) == times or (times is None and flows):
            return
        wanted = "at least once" if times is None else f"{times}x"
        excess = flows[times or 0] if len(flows) > (times or 0) else None
        if excess is not None:
            seen = self._jobs[excess.job_id]
            commit = seen.commit(excess.seq)
        else:
            seen, commit = last_word(jobs, source)
        lines = [
            (flow is excess, f"delivery {number}", f"{flow.event} -> {flow.slot}, {flow.task_id}")
            for number, flow in enumerate(flows, 1)
        ]
        raise failure(
            f"{source} -> {target}: expected {wanted}, delivered {len(flows)}x",
            lines,
            seen,
            commit,
            f"what {source} emitted, and what each event is connected to"
            if any(c.emissions for c in seen.commits if c.routine_id == source)
            else why_silent(seen, source),
            several=len(jobs) > 1,
        )

    def assert_retried(
        self,
        routine: str,
        *,
        times: int | None = None,
        delays: Sequence[float | timedelta] | None = None,
        job: JobState | str | None = None,
    ) -> None:
        """Assert how a routine's task was retried: how often, and after which waits, in seconds.

        `delays` are compared exactly with the planned waits and with the real ones; a wait that is
        not over has no real one yet. Without `times` and `delays`: at least once. Where several
        tasks of the routine were retried, it holds for each of them.
        """
        __tracebackhide__ = True
        jobs = knowing(self._watched(job), routine)
        if delays is not None and times is not None and len(delays) != times:
            raise FlowDefinitionError(
                f"assert_retried({routine!r}): times={times} contradicts the {len(delays)} delays"
            )
        wanted = None if delays is None else [to_ns(delay) for delay in delays]
        if wanted is not None:
            times = len(wanted)
        tasks: dict[tuple[str, str], list[Retry]] = {}
        ids = {seen.job_id for seen in jobs}
        for retry in self.retries:
            if retry.job_id in ids and retry.routine_id == routine:
                tasks.setdefault((retry.job_id, retry.task_id), []).append(retry)
        if not tasks and times != 0:
            seen, commit = last_word(jobs, routine)
            raise failure(
                f"{routine}: expected {retries_told(times)}, made none",
                [],
                seen,
                commit,
                f"the strategy and retryable_exceptions of {routine}'s ErrorHandler"
                if seen.ended(routine)
                else why_silent(seen, routine),
                several=len(jobs) > 1,
            )
        for (job_id, task_id), retries in tasks.items():
            whose = f"{routine} (task {task_id})" if len(tasks) > 1 else routine
            wrong = first_wrong(whose, retries, times, wanted)
            if wrong is None:
                continue
            seen = self._jobs[job_id]
            raise failure(
                wrong.problem,
                [
                    (number == wrong.at, f"retry {number + 1}", wait_told(retries, wanted, number))
                    for number in range(max(len(retries), times or 0))
                ],
                seen,
                seen.attempt(task_id, retries[min(wrong.at, len(retries) - 1)].attempt),
                wrong.look.format(routine),
                several=len(jobs) > 1,
            )

    def assert_states(
        self,
        states: Mapping[str, RoutineStatus | str],
        *,
        job: JobState | str | None = None,
    ) -> None:
        """Assert the status of routines; those that are not named may have any."""
        __tracebackhide__ = True
        jobs = knowing(self._watched(job), *states)
        statuses = [status.value for status in RoutineStatus]
        wanted = {
            routine: known(str(status), statuses, "status of a routine")
            for routine, status in states.items()
        }
        for seen in jobs:
            actual = {routine: seen.state(routine) for routine in wanted}
            wrong = [routine for routine, status in wanted.items() if actual[routine] != status]
            if not wrong:
                continue
            first = wrong[0]
            more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            _, commit = last_word([seen], first)
            raise failure(
                f"{first}: expected {wanted[first]}, is {actual[first]}{more}",
                [
                    (routine in wrong, routine, f"expected {status}, is {actual[routine]}")
                    for routine, status in wanted.items()
                ],
                seen,
                commit,
                f"the last attempt of {first}" if seen.ended(first) else why_silent(seen, first),
                several=len(jobs) > 1,
            )

    def assert_order(self, routines: Sequence[str], *, job: JobState | str | None = None) -> None:
        """Assert in which order tasks of these routines ended.

        Other routines are left out of account, and several tasks of one routine in a row count
        once: `["split", "resize", "gather"]`.
        """
        __tracebackhide__ = True
        if isinstance(routines, str) or len(routines) < 2:
            raise FlowDefinitionError(f"an order needs two routines or more, not {routines!r}")
        jobs = knowing(self._watched(job), *routines)
        wanted = _without_repeats(list(routines))
        for seen in jobs:
            ends = [
                commit
                for commit in seen.commits
                if commit.kind in _TASK_ENDS and commit.routine_id in wanted
            ]
            actual = _without_repeats([str(commit.routine_id) for commit in ends])
            if actual == wanted:
                continue
            at = next(
                (i for i, pair in enumerate(zip(wanted, actual, strict=False)) if len({*pair}) > 1),
                min(len(wanted), len(actual)),
            )
            expected = wanted[at] if at < len(wanted) else "nothing more"
            came = actual[at] if at < len(actual) else "nothing more"
            culprit = expected if at < len(wanted) else came
            before = f"after {wanted[at - 1]}" if at else "first"
            if at < len(actual):
                commit = _end_of_run(ends, at)
            else:
                _, commit = last_word([seen], expected)
            raise failure(
                f"order: expected {expected} {before}, {came} came",
                [
                    (False, "expected", " -> ".join(wanted)),
                    (True, "ended", " -> ".join(actual) or "none of them"),
                ],
                seen,
                commit,
                f"what feeds {culprit}: {listed(seen.feeds(culprit)) or 'nothing'}",
                several=len(jobs) > 1,
            )

    def assert_status(
        self, status: JobStatus | str | JobState, *, job: JobState | str | None = None
    ) -> None:
        """Assert the status of the job; a job given as `status` is to have its own status here."""
        __tracebackhide__ = True
        if isinstance(status, JobState):
            job = status if job is None else job
            status = status.status
        wanted = known(str(status), [one.value for one in JobStatus], "status of a job")
        jobs = self._watched(job)
        for seen in jobs:
            last = seen.commits[-1]
            if last.status == wanted:
                continue
            lines = [
                (
                    False,
                    f"task {task.task_id}",
                    f"{task.routine_id}.{task.slot} "
                    + (f"failed at attempt {task.attempt - 1}" if task.failed else "is pending"),
                )
                for task in seen.job.pending_tasks[:3]
            ]
            error = seen.job.error
            raise failure(
                f"job {short_id(seen.job_id)}: expected {wanted}, is {last.status.value}"
                + (
                    f": {shorten(' '.join(error_text(error).split()), WIDEST)}"
                    if error is not None
                    else ""
                ),
                lines,
                seen,
                last,
                f"the {'commit marked' if error is None else 'error'} above, which gave it this"
                " status",
                several=len(jobs) > 1,
                error=error,
            )

    def _watched(self, job: JobState | str | None) -> list[Seen]:
        __tracebackhide__ = True
        if not self._jobs:
            raise AssertionError(
                "no job was watched: run it while flow_runtime is in use, or with"
                " Runtime(observers=[flow_monitor])"
            )
        if job is None:
            return [seen for seen in self._jobs.values() if seen.commits]
        job_id = job.job_id if isinstance(job, JobState) else job
        return [self._jobs[known(job_id, self._jobs, "job that was watched")]]


def _without_repeats(names: list[str]) -> list[str]:
    return [name for i, name in enumerate(names) if i == 0 or names[i - 1] != name]


def _end_of_run(ends: Sequence[Commit], at: int) -> Commit:
    """Return the commit with which the run number `at` of one routine's tasks begins."""
    starts = [
        commit
        for i, commit in enumerate(ends)
        if i == 0 or ends[i - 1].routine_id != commit.routine_id
    ]
    return starts[at]
