"""`SavedState`: a job and its flow, saved together as one JSON document.

Invariants:
- A document is a copy, not a lock: any number of hosts may resume the job from it.
- It is captured between two commits; steps in flight are pending in it.
- Capturing changes neither the flow nor the job.
- A crash during a write leaves the old file or the new file; see `atomic_write`.
- The digest covers every byte before its own member. It shows damage, not an attack. A signature
  protects a file that other people can change; it is checked before anything is parsed.
- No content of a file raises anything but `SavedStateError`; a file that can't be opened raises
  the system's `OSError`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from routilux import codec
from routilux.clocks.clock import SystemClock
from routilux.clocks.durations import SECOND, from_ns, instant_ns
from routilux.codec.signature import DIGEST_BYTES, new_mac, with_digest, without_digest
from routilux.core.commits import history_length
from routilux.core.state import JobState
from routilux.core.wire.ranges import in_range
from routilux.errors import CorruptStateError, SavedStateError
from routilux.flow import Flow
from routilux.monitor import ExecutionMonitor
from routilux.persist.atomic_write import write_atomically
from routilux.persist.versions import FORMAT, loads_versioned

_FIELDS: codec.Fields = {
    "flow": dict,
    "job_state": dict,
    "saved_at": float,
    "saved_at_iso": str,
    "retry_count": int,
    "execution_history_count": int,
    "monitor_summary": dict,
}
_SUMMARY: codec.Fields = {"events": int, "data_flows": int, "state_changes": int}


@dataclass(frozen=True, slots=True, eq=False)
class SavedState:
    """A flow and a job that are saved together.

    >>> import tempfile, pathlib
    >>> from routilux import Flow, Routine
    >>> class Hello(Routine):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.define_slot("trigger", handler=self.hello)
    ...     def hello(self):
    ...         self.ctx.state["word"] = "hello"
    >>> flow = Flow("greeting")
    >>> _ = flow.add_routine(Hello(), "hello")
    >>> job = flow.execute("hello")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "job.json")
    ...     SavedState.capture(flow, job).write(path)
    ...     SavedState.read(path).job == job
    True
    """

    flow: Flow
    """The flow, with its routines and error handlers."""
    job: JobState
    """The job, a copy."""
    saved_at_ns: int
    """The time of saving by the job's clock, in UTC nanoseconds."""
    monitor_summary: dict[str, int]
    """The counts of events, data flows and state changes."""
    _captured: tuple[str, str] | None = None  # the texts of flow and job

    @property
    def saved_at(self) -> float:
        """The time of saving, in seconds since the start of 1970 (UTC)."""
        return self.saved_at_ns / SECOND

    @property
    def retry_count(self) -> int:
        """The most retries that one task of the job has used."""
        return self.job.retry_count()

    @classmethod
    def capture(cls, flow: Flow, job: JobState, monitor: ExecutionMonitor | None = None) -> Self:
        """Return a `SavedState` with `flow` and a copy of `job`.

        Call this from an observer, or while no step commits. The saved state has the counts of
        `monitor`; with `monitor=None`, counts made from the commits of the job. Raises
        `UnserializableError` for a value without a saved form.
        """
        own = job.copy()
        now = job.clock_ns() if job.clock_ns is not None else SystemClock().now_ns()
        now -= now % 1000  # the precision of ISO text
        summary = ExecutionMonitor.summary_of(own) if monitor is None else monitor.summary()
        return cls(flow, own, now, summary, _texts(flow, own))

    def to_bytes(self, *, key: bytes | None = None) -> bytes:
        """Return the document as bytes; a `key` adds a signature.

        >>> from routilux import Flow, JobState
        >>> flow, key = Flow("empty"), b"sixteen bytes or more"
        >>> text = SavedState.capture(flow, JobState("job-1")).to_bytes(key=key)
        >>> SavedState.from_bytes(text, key=key).job.job_id
        'job-1'
        >>> SavedState.from_bytes(text, key=b"the key of others").job.job_id
        Traceback (most recent call last):
        routilux.CorruptStateError: $.signature: does not match this key: the file was...
        """
        try:
            mac = new_mac(key)
        finally:
            del key
        flow, job = self._captured or _texts(self.flow, self.job)
        members = {
            "format": codec.dumps(FORMAT),
            "flow": flow,
            "job_state": job,
            "saved_at": codec.dumps(self.saved_at),
            "saved_at_iso": codec.dumps(from_ns(self.saved_at_ns).isoformat()),
            "retry_count": codec.dumps(self.retry_count),
            "execution_history_count": codec.dumps(_history_length(self.job)),
            "monitor_summary": codec.dumps(self.monitor_summary),
        }
        # One line a member, so that people find the counts.
        lines = [f"{json.dumps(name)}: {text}" for name, text in members.items()]
        text = codec.bounded("{" + ",\n".join(lines) + "}")
        return with_digest(text.removesuffix("}").encode(), mac)

    def write(self, path: str | os.PathLike[str], *, key: bytes | None = None) -> None:
        """Write the document atomically to a file of mode 0600; follows a symbolic link.

        With a `key` of at least 16 bytes the document is signed by HMAC-SHA256, for a file that
        other people can change: reading the file with that key returns the written state, or
        raises. The file is not encrypted. Raises `UnserializableError` for a value without a saved
        form, `OSError` if the file can't be written, `TypeError` and `ValueError` for an invalid
        key.
        """
        try:
            data = self.to_bytes(key=key)
        finally:
            del key
        write_atomically(path, data)

    @classmethod
    def read(
        cls, path: str | os.PathLike[str], *, verify: bool = True, key: bytes | None = None
    ) -> Self:
        """Read a saved flow and job from the file at `path`.

        The routine classes of the flow must be imported before. `verify=False` ignores the digest,
        for a file that was edited by hand. With a `key` the file must have been written with that
        key and not changed, whatever `verify` is; without a key a signature is ignored. Raises
        `OSError` if the file can't be opened; `SavedStateError` if it is damaged, of another
        program, of a newer version or not signed with the key; `TypeError` and `ValueError` for
        an invalid key.
        """
        try:
            with Path(path).open("rb") as file:
                data = file.read(codec.MAX_BYTES + DIGEST_BYTES + 1)  # a device may never end
            return cls.from_bytes(data, verify=verify, key=key)
        except SavedStateError as error:
            first, *rest = error.reason.split("\n")
            cure = ""
            if type(error) is CorruptStateError and "; " not in first:  # a reason has no cure then
                cure = "; restore the file or read another one"
            reason = "\n".join([f"{first} (in {os.fspath(path)}){cure}", *rest])
            raise type(error)(error.path, reason) from None
        finally:
            del key

    @classmethod
    def from_bytes(cls, data: bytes, *, verify: bool = True, key: bytes | None = None) -> Self:
        """Read a saved flow and job from bytes; see `read`."""
        try:
            mac = new_mac(key)
        finally:
            del key
        if len(data) > codec.MAX_BYTES + DIGEST_BYTES:
            raise CorruptStateError("$", f"must have at most {codec.MAX_BYTES:,} bytes")
        if not data.strip():
            raise CorruptStateError("$", "is empty: no state was written to it")
        text = without_digest(data, mac, verify=verify)
        if text is not None:
            data = text
        elif verify:
            loads_versioned(data)  # raises for a text that is cut off, newer or of another program
            raise CorruptStateError(
                "$.digest", "is missing at the end; read(path, verify=False) reads the file anyway"
            )
        return cls._load(loads_versioned(data))

    @classmethod
    def _load(cls, document: object) -> Self:
        f = codec.check_fields(document, "$", _FIELDS, {"digest": str, "signature": str})
        job = JobState.load(f["job_state"], "$.job_state")
        flow = Flow.load(f["flow"], "$.flow", job.shape)
        saved_at_ns = _saved_at(f["saved_at_iso"], f["saved_at"])
        counts = [
            ("$.retry_count", f["retry_count"], job.retry_count()),
            ("$.execution_history_count", f["execution_history_count"], _history_length(job)),
        ]
        for path, handler, retries in _handler_retries(f["flow"], job):
            counts.append((f"{path}.retry_count", handler["retry_count"], retries))
        for path, saved, count in counts:
            if saved != count:
                raise CorruptStateError(
                    path, f"is {saved}, but the commits of the job show {count}"
                )
        summary = codec.check_fields(f["monitor_summary"], "$.monitor_summary", _SUMMARY)
        for name, count in summary.items():
            in_range(count, f"$.monitor_summary.{name}")
        return cls(flow, job, saved_at_ns, summary)


def _texts(flow: Flow, job: JobState) -> tuple[str, str]:
    data = flow.serialize()
    for _, handler, retries in _handler_retries(data, job):
        handler["retry_count"] = retries
    return codec.dumps(data), job.dumps()


def _handler_retries(
    flow: dict[str, Any], job: JobState
) -> Iterator[tuple[str, dict[str, Any], int]]:
    """Yield the path, data and used retries of each error handler.

    The handler of the flow has the most retries of the routines without a handler of their own.
    """
    most = 0
    for index, routine in enumerate(flow["routines"]):
        state = job.routine_states.get(routine["id"])
        spent = 0 if state is None else state.retry_count
        if routine["error_handler"] is None:
            most = max(most, spent)
        else:
            yield f"$.flow.routines[{index}].error_handler", routine["error_handler"], spent
    if flow["error_handler"] is not None:
        yield "$.flow.error_handler", flow["error_handler"], most


def _history_length(job: JobState) -> int:
    return sum(map(history_length, job.commits))


def _saved_at(text: str, seconds: float) -> int:
    # The text is exact; a float of seconds loses microseconds in distant centuries.
    try:
        found = instant_ns(text)
        if from_ns(found).isoformat() != text:
            raise ValueError(f"the text must be {from_ns(found).isoformat()!r}, not {text!r}")
    except (OverflowError, ValueError) as error:
        raise CorruptStateError("$.saved_at_iso", f"is not a UTC instant: {error}") from None
    if found / SECOND != seconds:
        raise CorruptStateError("$.saved_at", f"is {seconds!r}, but saved_at_iso says {text!r}")
    return found
