"""`routilux export`, and the JSON of every command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from routilux import JobState, JobStatus, Runtime, SqliteStore
from tests.cli.payments import NOW, SECOND, after, payment


def test_an_exported_job_can_be_read_and_resumed_where_the_flow_is(store, output):
    Path("job.json").write_text("what was there before")
    line = output("export", store, "waits", "job.json")
    size = Path("job.json").stat().st_size
    assert f"job waits as of commit 2 is in job.json, {size:,} bytes\n" == line
    document = json.loads(Path("job.json").read_text("utf-8"))
    assert ["format", "job_state"] == list(document)
    assert "routilux/1" == document["format"]
    job = JobState.deserialize(document["job_state"])
    with SqliteStore(store) as jobs:
        assert job == Runtime(store=jobs).load("waits", history=True)
    done = payment().resume(job, runtime=Runtime(clock=after(3700)))
    assert JobStatus.COMPLETED is done.status


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("jobs.db", "jobs.db is the store itself; export to another file"),
        (".", ". is a folder; give the path of a file"),
        ("no/job.json", "the folder of no/job.json does not exist; create that folder first"),
    ],
)
def test_a_job_is_exported_to_a_file_of_its_own(store, refused, file, message):
    before = store.read_bytes()
    assert refused("export", store, "done", file).startswith(message)
    assert before == store.read_bytes()


def test_every_command_gives_json_of_one_shape(store, output):
    def data(name, *arguments):
        found: dict[str, Any] = json.loads(output(name, store, *arguments, "--json"))
        head = {"format": f"routilux-{name}/1", "store": "jobs.db", "at_ns": NOW.now_ns()}
        assert head == {key: found.pop(key) for key in head}
        return found

    found = data("jobs", "--limit", 3)
    assert ["counts", "jobs", "damaged"] == list(found)
    counts = {"pending": 1, "running": 1, "paused": 1, "completed": 1, "failed": 1}
    assert (counts, []) == (found["counts"], found["damaged"])
    waits = {
        "job_id": "waits",
        "flow_id": "payment",
        "status": "running",
        "started_ns": NOW.now_ns() - 90 * SECOND,
        "updated_ns": NOW.now_ns() - 90 * SECOND + 120_000_000,
        "commits": 2,
        "retries": 1,
        "due_ns": NOW.now_ns() + 10 * SECOND + 120_000_000,
        "error": None,
        "task": {
            "task_id": "0",
            "routine_id": "charge",
            "slot": "trigger",
            "attempt": 2,
            "error": None,
            "more": 0,
        },
        "reason": None,
        "held": {"owner": "web-1:4711:9f86d081884c7d65", "free_in_ns": None},
    }
    assert ["queued", "paused", "waits"] == [job["job_id"] for job in found["jobs"]]
    assert waits == found["jobs"][2]
    (failed,) = data("jobs", "--status", "failed")["jobs"]
    assert "ConnectionError: the gateway does not answer" == failed["error"]
    assert None is failed["due_ns"]
    assert (2, failed["error"]) == (failed["task"]["attempt"], failed["task"]["error"])

    with SqliteStore(store) as jobs:
        job = Runtime(store=jobs).load("done", history=True)
    shown = data("show", "done")
    assert ["job", "held"] == list(shown)
    assert None is shown["held"]
    assert job == JobState.deserialize(shown["job"])
    assert {"job_id": "failed", "status": "pending", "seq": 4} == data("retry", "failed")
    assert {"job_id": "failed", "status": "cancelled", "seq": 5} == data("cancel", "failed")
    exported = data("export", "done", "job.json")
    size = Path("job.json").stat().st_size
    facts = {"job_id": "done", "status": "completed", "seq": 7, "file": "job.json", "bytes": size}
    assert facts == exported
