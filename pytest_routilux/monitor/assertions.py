"""Assertions about what jobs did: `flow_monitor.assert_retried("charge", times=4, delays=[...])`.

Invariants:
- A misspelt name never passes: an unknown routine, event, connection, status or job raises
  `FlowDefinitionError` with the known names. That is no `AssertionError`, so that a test which
  expects a failure does not take it for one.
- Without a recorded job every assertion fails.
- Without `job=` an assertion is about all recorded jobs: counts are sums over them; states,
  statuses and orders must hold for each.
- Times are exact: they are compared and written as integer nanoseconds.
- The first line of a failure says what is wrong; `>` marks the first record that differs.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from pytest_routilux.monitor.known_jobs import (
    KnownJob,
    check_connected,
    jobs_with,
    known_name,
    last_commit,
    reason_of_silence,
)
from pytest_routilux.monitor.messages import (
    WIDEST,
    Emitted,
    assertion_error,
    first_wrong_retry,
    payload_difference,
    retries_text,
    retry_text,
)
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
    from collections.abc import Mapping, Sequence
    from datetime import timedelta

    from routilux import Commit, PendingTask, Retry, StepInput

_TASK_ENDS = frozenset({CommitKind.DONE, CommitKind.FAILED, CommitKind.DROPPED})


class FlowMonitor(ExecutionMonitor):
    """Records jobs, and offers assertions about the recorded jobs.

    `job=` takes a job or its id and limits an assertion to it. `FlowMonitor.of(job)` checks a job
    that ran elsewhere. An assertion that does not hold raises `AssertionError`; an unknown name
    raises `FlowDefinitionError`.

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
        self._jobs: dict[str, KnownJob] = {}

    def on_commit(self, job: JobState, commit: Commit) -> None:
        """Record one commit of `job`."""
        super().on_commit(job, commit)
        self._record_of(job).commits.append(commit)

    def on_step(self, job: JobState, step: StepInput) -> None:
        """Record that an attempt started."""
        task = step.task
        self._record_of(job).started.append((task.routine_id, task.task_id, step.attempt))

    def _record_of(self, job: JobState) -> KnownJob:
        known = self._jobs.get(job.job_id)
        if known is None:
            known = self._jobs[job.job_id] = KnownJob(job)
        known.job = job  # a resumed job is another object
        return known

    def _known(self, job: JobState | str | None) -> list[KnownJob]:
        __tracebackhide__ = True
        if not self._jobs:
            raise AssertionError(
                "flow_monitor recorded no job: run the job in flow_runtime, or in"
                " Runtime(observers=[flow_monitor])"
            )
        if job is None:
            return [known for known in self._jobs.values() if known.commits]
        job_id = job.job_id if isinstance(job, JobState) else job
        return [self._jobs[known_name(job_id, self._jobs, "recorded job")]]

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
        """Assert that a routine emitted an event `times` times, by default at least once.

        Without `event`, every event of the routine counts. `data` is a part of the payload: other
        fields may have any value, in nested dicts too. Only committed emissions count: what a
        failed attempt emits is dropped.
        """
        __tracebackhide__ = True
        jobs = jobs_with(self._known(job), routine)
        if event is not None:
            events = [name for known in jobs for name in known.events(routine)]
            known_name(event, events, f"event of {routine}")
        emitted = [
            Emitted(known, commit, emission, payload_difference(data or {}, emission.payload))
            for known in jobs
            for commit in known.commits
            if commit.routine_id == routine
            for emission in commit.emissions
            if event is None or emission.event == event
        ]
        matching = [one for one in emitted if one.difference is None]
        if len(matching) == times or (times is None and matching):
            return
        others = [one for one in emitted if one.difference is not None]
        culprit = next(iter(matching[times or 0 :] or others), None)
        problem = f"expected {_times(times)}, emitted {len(matching)}x"
        if culprit is not None and culprit.difference is not None:
            problem = f"{culprit.difference}\n(with this data {problem})"
        name = f"{routine}.{event}" if event is not None else f"any event of {routine}"
        at = (culprit.known, culprit.commit) if culprit else last_commit(jobs, routine)
        raise assertion_error(
            f"{name}: {problem}",
            [(one is culprit, f"emission {n}", str(one)) for n, one in enumerate(emitted, 1)],
            jobs,
            at,
            f"the arguments of emit() in {routine}'s handler"
            if emitted
            else reason_of_silence(at[0], routine),
        )

    def assert_not_run(self, routine: str, *, job: JobState | str | None = None) -> None:
        """Assert that no attempt of a routine started."""
        __tracebackhide__ = True
        jobs = jobs_with(self._known(job), routine)
        for known in jobs:
            ends = [commit for commit in known.commits if commit.routine_id == routine]
            attempts = dict.fromkeys(
                [(task, attempt) for name, task, attempt in known.started if name == routine]
                or [(str(commit.task_id), commit.attempt) for commit in ends]
            )
            if not attempts:
                continue
            connections = listed(known.connections_to(routine))
            raise assertion_error(
                f"{routine}: expected no attempt, but {count(len(attempts), 'attempt')} started",
                [(True, f"task {task}", f"attempt {attempt}") for task, attempt in attempts],
                jobs,
                (known, ends[0] if ends else known.commits[-1]),
                f"the connections to {routine}: {connections}"
                if connections
                else f"the entry of the job: it starts with {routine}",
            )

    def assert_flowed(
        self,
        source: str,
        target: str,
        *,
        times: int | None = None,
        job: JobState | str | None = None,
    ) -> None:
        """Assert that `target` received `times` events from `source`, by default at least one."""
        __tracebackhide__ = True
        jobs = jobs_with(self._known(job), source, target)
        check_connected(jobs, source, target)
        ids = {known.job.job_id for known in jobs}
        flows = [
            flow
            for flow in self.data_flows
            if flow.job_id in ids and (flow.source, flow.target) == (source, target)
        ]
        if len(flows) == times or (times is None and flows):
            return
        excess = next(iter(flows[times or 0 :]), None)
        at = last_commit(jobs, source)
        if excess is not None:
            known = self._jobs[excess.job_id]
            at = known, next(c for c in known.commits if c.seq == excess.seq)
        raise assertion_error(
            f"{source} -> {target}: expected {_times(times)}, delivered {len(flows)}x",
            [
                (
                    flow is excess,
                    f"delivery {n}",
                    f"{flow.event} -> {flow.slot}, task {flow.task_id}",
                )
                for n, flow in enumerate(flows, 1)
            ],
            jobs,
            at,
            f"what {source} emitted, and the connections of its events"
            if any(c.emissions for c in at[0].commits if c.routine_id == source)
            else reason_of_silence(at[0], source),
        )

    def assert_retried(
        self,
        routine: str,
        *,
        times: int | None = None,
        delays: Sequence[float | timedelta] | None = None,
        job: JobState | str | None = None,
    ) -> None:
        """Assert how often a routine was retried, and after which delays.

        `delays` are in seconds, and must equal the planned and the real waits exactly; a wait that
        has not ended has no real one. Without `times` and `delays`: at least once. If several tasks
        of the routine were retried, the assertion must hold for each.
        """
        __tracebackhide__ = True
        jobs = jobs_with(self._known(job), routine)
        if delays is not None and times not in (None, len(delays)):
            raise FlowDefinitionError(
                f"assert_retried({routine!r}): times={times} does not fit the"
                f" {count(len(delays), 'delay')}; give only delays"
            )
        wanted = None if delays is None else [to_ns(delay) for delay in delays]
        times = times if wanted is None else len(wanted)
        tasks: dict[tuple[str, str], list[Retry]] = {}
        ids = {known.job.job_id for known in jobs}
        for retry in self.retries:
            if retry.job_id in ids and retry.routine_id == routine:
                tasks.setdefault((retry.job_id, retry.task_id), []).append(retry)
        if not tasks and times != 0:
            at = last_commit(jobs, routine)
            raise assertion_error(
                f"{routine}: expected {retries_text(times)}, but none was made",
                [],
                jobs,
                at,
                f"the strategy, deadline and retryable_exceptions of {routine}'s ErrorHandler"
                if at[0].ended(routine)
                else reason_of_silence(at[0], routine),
            )
        for (job_id, task_id), retries in tasks.items():
            task = f"{routine} (task {task_id})" if len(tasks) > 1 else routine
            wrong = first_wrong_retry(task, retries, times, wanted)
            if wrong is None:
                continue
            problem, number, look = wrong
            known = self._jobs[job_id]
            if number < len(retries):
                ended = known.attempt(task_id, retries[number].attempt)
            else:  # the attempt that was not retried: its error may say why
                ended = known.last_attempt(task_id)
            raise assertion_error(
                problem,
                [
                    (i == number, f"retry {i + 1}", retry_text(retries, wanted, i))
                    for i in range(max(len(retries), times or 0))
                ],
                jobs,
                (known, ended),
                look.format(routine),
            )

    def assert_states(
        self,
        states: Mapping[str, RoutineStatus | str],
        *,
        job: JobState | str | None = None,
    ) -> None:
        """Assert the status of each routine in `states`."""
        __tracebackhide__ = True
        jobs = jobs_with(self._known(job), *states)
        statuses = [status.value for status in RoutineStatus]
        wanted = {
            routine: known_name(str(status), statuses, "status of a routine")
            for routine, status in states.items()
        }
        for known in jobs:
            actual = {name: known.job.routine_states[name].status.value for name in wanted}
            wrong = [routine for routine, status in wanted.items() if actual[routine] != status]
            if not wrong:
                continue
            first = wrong[0]
            more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            raise assertion_error(
                f"{first}: expected {wanted[first]}, is {actual[first]}{more}",
                [
                    (routine in wrong, routine, f"expected {status}, is {actual[routine]}")
                    for routine, status in wanted.items()
                ],
                jobs,
                last_commit([known], first),
                f"the last attempt of {first}"
                if known.ended(first)
                else reason_of_silence(known, first),
            )

    def assert_order(self, routines: Sequence[str], *, job: JobState | str | None = None) -> None:
        """Assert the order in which tasks of the given routines ended.

        Other routines do not count, and several tasks of one routine in a row count once:
        `["split", "resize", "gather"]`.
        """
        __tracebackhide__ = True
        if isinstance(routines, str) or len(routines) < 2:
            raise FlowDefinitionError(f"an order must name two routines or more, not {routines!r}")
        jobs = jobs_with(self._known(job), *routines)
        wanted = [name for name, _ in groupby(routines)]
        for known in jobs:
            ends = [c for c in known.commits if c.kind in _TASK_ENDS and c.routine_id in wanted]
            # The first commit of each run of commits of one routine.
            firsts = [next(group) for _, group in groupby(ends, key=lambda c: c.routine_id)]
            actual = [str(commit.routine_id) for commit in firsts]
            if actual == wanted:
                continue
            i = next(i for i in range(len(wanted) + 1) if wanted[: i + 1] != actual[: i + 1])
            expected = wanted[i] if i < len(wanted) else "nothing more"
            found = actual[i] if i < len(actual) else "nothing more"
            culprit = expected if i < len(wanted) else found
            after = f"after {wanted[i - 1]}" if i else "first"
            raise assertion_error(
                f"order: expected {expected} {after}, found {found}",
                [
                    (False, "expected", " -> ".join(wanted)),
                    (True, "ended", " -> ".join(actual) or "none of them"),
                ],
                jobs,
                (known, firsts[i]) if i < len(firsts) else last_commit([known], expected),
                f"the connections to {culprit}: {listed(known.connections_to(culprit)) or 'none'}",
            )

    def assert_status(
        self, status: JobStatus | str | JobState, *, job: JobState | str | None = None
    ) -> None:
        """Assert the last recorded status of a job.

        A job as `status` gives both the job and the expected status.
        """
        __tracebackhide__ = True
        if isinstance(status, JobState):
            job = status if job is None else job
            status = status.status
        wanted = known_name(str(status), [one.value for one in JobStatus], "status of a job")
        jobs = self._known(job)
        for known in jobs:
            last, error = known.commits[-1], known.job.error
            if last.status == wanted:
                continue
            problem = f"job {short_id(known.job.job_id)}: expected {wanted}, is {last.status.value}"
            if error is not None:
                problem += f": {shorten(' '.join(error_text(error).split()), WIDEST)}"
            raise assertion_error(
                problem,
                [
                    (False, f"task {task.task_id}", _task_text(task))
                    for task in known.job.pending_tasks[:3]
                ],
                jobs,
                (known, last),
                "the marked commit above, which set this status"
                if error is None
                else "the error above, which ended the job",
                error,
            )


def _times(times: int | None) -> str:
    return "at least once" if times is None else f"{times}x"


def _task_text(task: PendingTask) -> str:
    state = f"failed at attempt {task.attempt - 1}" if task.failed else "is pending"
    if task.gathers:
        state = f"gathers: {task.gathering}"
    return f"{task.routine_id}.{task.slot} {state}"
