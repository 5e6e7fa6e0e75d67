"""`routilux show`: a job with its commits and its pending tasks."""

from __future__ import annotations

from pathlib import Path

from routilux import Runtime, SqliteStore, cancel_job
from tests.cli.pages import DONE
from tests.cli.payments import NOW, after, payment, replace_in_rows


def test_a_job_is_shown_with_all_its_commits_and_its_pending_tasks(store, output):
    assert DONE == output("show", store, "done")
    lines = output("show", store, "waits").splitlines()
    assert "held by web-1:4711:9f86d081884c7d65 without a lease" == lines[2]
    waits = "  charge.trigger attempt 2, due in 11 s (13:00:10 UTC): order=A3 · task 0"
    assert ["pending", waits] == lines[-4:-2]


def test_resumptions_recoveries_pauses_and_reasons_are_shown(store, output):
    with SqliteStore(store, clock=NOW) as jobs:
        host = Runtime(clock=after(3620, autojump=False), store=jobs)
        host.resumed(payment(), host.load("paused"))
        later = Runtime(clock=after(3650, autojump=False), store=jobs)
        later.resumed(payment(), later.load("paused"))
        cancel_job(jobs, "paused", "the customer\nhas called", clock=after(3660))
    lines = output("show", store, "paused").splitlines()
    assert [
        "🛑 [ 0.120s] job paused",
        "⏩ [40.000s] resumed, job running · after 39.880 s",
        "⏩ [70.000s] resumed, job running · after 30.000 s · recovery 1 without progress",
        "🛑 [80.000s] job cancelled: the customer has called",
    ] == [line for line in lines if line[:1] in ("🛑", "⏩")]


def test_stored_text_never_controls_the_terminal(store, output):
    evil = "A\x1b[2J\u202eB"
    with SqliteStore(store, clock=NOW) as jobs:
        Runtime(clock=NOW, store=jobs).submit(payment(), "charge", {"order": evil}, job_id=evil)
    for out in (output("show", store, evil), output("jobs", store)):
        assert "A\\x1b[2J\\u202eB" in out
        assert "\x1b" not in out


def test_values_of_types_that_only_the_flows_program_knows_are_shown_and_exported_as_they_are(
    store, output
):
    order = '{"$type":"shop.types:Order","value":{"id":7}}'
    replace_in_rows(store, '"A2"', order)
    assert "  order  Order({'id': 7})\n" in output("show", store, "failed")
    output("export", store, "failed", "job.json")
    assert 2 == Path("job.json").read_text("utf-8").count(order)
    output("retry", store, "failed")
