"""Any flow and any payload: a saved job is loaded equal and written again byte by byte."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from routilux import ErrorHandler, FakeClock, Flow, Routine, Runtime, SavedState
from routilux.codec.equality import first_difference
from tests.codec.values import VALUES
from tests.persist.orders import START, Captures
from tests.soak import examples


class Node(Routine):
    routine_name = "document/node"

    def __init__(self, failures: int, *, keep: object = None) -> None:
        super().__init__()
        self.failures = failures
        self.define_slot("trigger", handler=self.handle)
        self.define_event("output", ["value"])
        self.define_event("error", ["message", "payload"])

    def handle(self, **payload: object) -> None:
        if self.ctx.attempt <= self.failures:
            raise ValueError(f"failure {self.ctx.attempt}")
        self.ctx.state["seen"] = payload
        self.ctx.shared[self.ctx.task_id] = payload
        self.emit("output", value=payload.get("value"))


handlers = st.sampled_from(
    [
        None,
        ErrorHandler("stop", timeout=5),
        ErrorHandler("continue"),
        ErrorHandler("skip"),
        ErrorHandler("retry", max_retries=1, retry_delay=0.3, jitter=0.5),
        ErrorHandler("retry", max_retries=None, deadline=3, on_exhausted="continue"),
    ]
)


@st.composite
def flows(draw: st.DrawFn) -> Flow:
    count = draw(st.integers(1, 4))
    flow = Flow(
        draw(st.text("ab .", min_size=1, max_size=4)),
        execution_strategy=draw(st.sampled_from(["sequential", "concurrent"])),
        max_workers=draw(st.integers(1, 3)),
    )
    flow.set_error_handler(draw(handlers))
    for number in range(count):
        node = Node(draw(st.integers(0, 2)), keep=draw(VALUES))
        node.set_error_handler(draw(handlers))
        flow.add_routine(node, f"n{number}")
        for earlier in range(number):
            if draw(st.booleans()):
                mapping = draw(st.sampled_from([None, {"value": "renamed"}]))
                flow.connect(f"n{earlier}", "output", f"n{number}", "trigger", mapping)
    return flow


@settings(max_examples=examples(0.6))
@given(flow=flows(), value=VALUES, point=st.integers(0, 10))
def test_any_flow_and_job_are_loaded_equal_and_written_again_byte_by_byte(flow, value, point):
    captures = Captures(flow)
    with Runtime(clock=FakeClock(START), observers=[captures]) as runtime:
        flow.execute("n0", {"value": value}, runtime=runtime)
    assert [] == runtime.observer_failures
    saved = captures.taken[min(point, len(captures.taken) - 1)]
    text = saved.to_bytes()
    loaded = SavedState.from_bytes(text)
    assert None is first_difference(saved.job.pending_tasks, loaded.job.pending_tasks)
    assert None is first_difference(saved.job.shared_data, loaded.job.shared_data)
    assert saved.job == loaded.job
    assert flow.fingerprint == loaded.flow.fingerprint
    assert text == loaded.to_bytes()
