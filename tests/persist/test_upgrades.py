"""Documents of other versions: earlier ones are read step by step, newer ones are refused.

The versions 2 and 3 of these stories are made up: version 2 calls `job_state` `job` and writes a
date as three numbers, version 3 is what this program reads today.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from datetime import date
from typing import Any

import pytest

from routilux import CorruptStateError, FakeClock, Runtime, SavedState, UnsupportedVersionError
from routilux.persist import seal, upgrades
from tests.persist import orders  # the classes of the golden files
from tests.persist.orders import GOLDEN, KEY

FIRST = GOLDEN / "routilux-1.json"
SIGNED = GOLDEN / "routilux-1-signed.json"


def everywhere(data: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """A copy of JSON data in which each object has been changed."""
    if isinstance(data, list):
        return [everywhere(item, change) for item in data]
    if isinstance(data, dict):
        return change({name: everywhere(item, change) for name, item in data.items()})
    return data


def to_numbers(found: dict[str, Any]) -> dict[str, Any]:
    if found.get("$type") != "date":
        return found
    return {"$type": "day", "value": [int(part) for part in found["value"].split("-")]}


def to_text(found: dict[str, Any]) -> dict[str, Any]:
    if found.get("$type") != "day":
        return found
    return {"$type": "date", "value": date(*found["value"]).isoformat()}


def second(document: Mapping[str, Any]) -> dict[str, Any]:
    names = {"job_state": "job"}
    return {names.get(n, n): everywhere(value, to_numbers) for n, value in document.items()}


def third(document: Mapping[str, Any]) -> dict[str, Any]:
    names = {"job": "job_state"}
    return {names.get(n, n): everywhere(value, to_text) for n, value in document.items()}


@pytest.fixture
def version_three(monkeypatch: pytest.MonkeyPatch) -> dict[int, upgrades.Upgrade]:
    steps: dict[int, upgrades.Upgrade] = {1: second, 2: third}
    monkeypatch.setattr(upgrades, "VERSION", 3)
    monkeypatch.setattr(upgrades, "UPGRADES", steps)
    monkeypatch.setattr("routilux.persist.document.FORMAT", "routilux/3")
    return steps


def of_version_two() -> bytes:
    members = second(json.loads(FIRST.read_bytes()))
    del members["digest"]
    text = json.dumps({**members, "format": "routilux/2"}, ensure_ascii=False)
    return seal.sealed(text.removesuffix("}").encode())


# --- what holds for every version -----------------------------------------------------------------


def test_there_is_a_step_from_each_version_to_the_next_and_none_too_many():
    assert set(range(1, upgrades.VERSION)) == set(upgrades.UPGRADES)
    assert f"routilux/{upgrades.VERSION}" == upgrades.FORMAT


@pytest.mark.parametrize("version", range(1, upgrades.VERSION + 1))
def test_a_document_of_every_version_is_kept_unsigned_and_signed_and_read(version):
    plain = SavedState.read(GOLDEN / f"routilux-{version}.json")
    signed = SavedState.read(GOLDEN / f"routilux-{version}-signed.json", key=KEY)
    assert plain.job == signed.job
    assert plain.flow.fingerprint == signed.flow.fingerprint


# --- earlier versions -----------------------------------------------------------------------------


@pytest.mark.usefixtures("version_three")
@pytest.mark.parametrize("key", [None, KEY])
def test_a_document_is_upgraded_one_version_at_a_time_and_goes_on(key):
    saved = SavedState.read(FIRST if key is None else SIGNED, key=key)
    clock = FakeClock("2026-01-03T12:59:05.100000+00:00")
    job = saved.flow.resume(saved.job, runtime=Runtime(clock=clock))
    assert "completed" == job.status.value
    assert date(2026, 1, 3) == job.shared_data["day"]


@pytest.mark.usefixtures("version_three")
def test_what_was_upgraded_is_written_in_the_version_of_today():
    text = SavedState.read(FIRST).to_bytes()
    body = FIRST.read_bytes().partition(b',\n"digest"')[0]
    assert seal.sealed(body.replace(b"routilux/1", b"routilux/3")) == text
    assert SavedState.read(FIRST).job == SavedState.from_bytes(text).job


def test_only_the_steps_that_are_needed_are_made(version_three):
    def fail(document: Mapping[str, Any]) -> dict[str, Any]:
        pytest.fail("the document was of version 2 already")

    version_three[1] = fail
    assert SavedState.from_bytes(of_version_two()).retry_count == 2
    version_three[2] = fail
    today = orders.at_retry(orders.pipeline(), 2).to_bytes()
    assert b'"routilux/3"' in today
    assert SavedState.from_bytes(today).retry_count == 2


def test_an_upgrade_is_given_the_json_as_it_stands_and_changes_nothing_of_it(version_three):
    seen = []

    def watched(document: Mapping[str, Any]) -> dict[str, Any]:
        before = copy.deepcopy(document)
        made = second(document)
        seen.append(before == document)
        written = json.loads(FIRST.read_bytes())
        del written["digest"]
        seen.append(written == document)
        return made

    version_three[1] = watched
    SavedState.read(FIRST)
    assert [True, True] == seen


@pytest.mark.usefixtures("version_three")
def test_an_earlier_document_that_was_laid_out_anew_is_upgraded_too():
    members = json.loads(of_version_two())
    text = json.dumps(dict(sorted(members.items())), indent=1).encode()
    assert text.index(b'"execution_history_count"') < text.index(b'"format"')
    with pytest.raises(CorruptStateError, match=r"unknown \$type 'day'"):
        SavedState.from_bytes(text, verify=False)
    first = json.loads(FIRST.read_bytes())
    text = json.dumps(dict(sorted(first.items())), indent=1).encode()
    assert 2 == SavedState.from_bytes(text, verify=False).retry_count


def test_what_was_upgraded_is_judged_like_any_other_document(version_three):
    version_three[2] = lambda document: {**third(document), "retry_count": 9}
    with pytest.raises(CorruptStateError) as caught:
        SavedState.read(FIRST)
    assert "$.retry_count" == caught.value.path
    assert caught.value.reason.startswith("is 9, but the job has 2")


def test_damage_is_told_before_anything_is_upgraded(version_three):
    version_three[1] = lambda document: pytest.fail("it was upgraded although it is damaged")
    text = FIRST.read_bytes().replace(b'"retry_count": 2', b'"retry_count": 3')
    with pytest.raises(CorruptStateError) as caught:
        SavedState.from_bytes(text)
    assert "$.digest" == caught.value.path
    with pytest.raises(CorruptStateError) as caught:
        SavedState.from_bytes(SIGNED.read_bytes()[:-3], key=KEY)
    assert "$.signature" == caught.value.path


def test_an_earlier_document_that_is_none_is_refused_whatever_the_step_makes_of_it(version_three):
    text = seal.sealed(b'{"format": "routilux/1"')
    with pytest.raises(CorruptStateError) as caught:
        SavedState.from_bytes(text)
    assert "$.flow" == caught.value.path
    version_three[1] = lambda document: {"job": document["job_state"]["commits"]}
    with pytest.raises(CorruptStateError) as caught:
        SavedState.from_bytes(text)
    assert (
        "$",
        "is no document of routilux/1: it can't be upgraded (KeyError: 'job_state')",
    ) == (caught.value.path, caught.value.reason)


@pytest.mark.usefixtures("version_three")
def test_the_bounds_and_the_rules_of_json_hold_for_earlier_documents_too():
    for text, place in (
        (b'{"format": "routilux/1", "a": 1, "a": 2', "$.a"),
        (b'{"format": "routilux/1", "a": NaN', "$.a"),
        (b'{"format": "routilux/1", "a": 1e999', "$.a"),
        (b'{"format": "routilux/1", "a": ' + b"9" * 5_000, "$.a"),
        (b'{"format": "routilux/1", "a": "\\ud800"', "$.a"),
        (b'{"format": "routilux/1", "a": ' + b"[" * 101 + b"]" * 101, "$.a" + "[0]" * 99),
    ):
        with pytest.raises(CorruptStateError) as caught:
            SavedState.from_bytes(seal.sealed(text))
        assert place == caught.value.path


# --- newer versions -------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, KEY])
def test_a_newer_version_is_refused_with_what_to_do_and_the_file_stays(key, tmp_path):
    body = b'{"format": "routilux/7",\n"state": {"$type": "of the future"}'
    path = tmp_path / "job.json"
    path.write_bytes(seal.sealed(body, seal.keyed(key)))
    before = path.read_bytes()
    with pytest.raises(UnsupportedVersionError) as caught:
        SavedState.read(path, key=key)
    assert (
        "$.format",
        (
            "is 'routilux/7', of a newer routilux; this one reads up to 'routilux/1': install a"
            f" newer one here, or go on with the job where it was saved (in {path})"
        ),
    ) == (caught.value.path, caught.value.reason)
    assert before == path.read_bytes()


@pytest.mark.parametrize("found", ["routilux/0", "routilux/01", "routilux/-1", "routilux/1.5", "1"])
def test_what_is_no_version_was_not_written_by_routilux(found):
    text = seal.sealed(f'{{"format": "{found}"'.encode())
    with pytest.raises(CorruptStateError) as caught:
        SavedState.from_bytes(text)
    assert ("$.format", f"is {found!r}: this was not written by routilux") == (
        caught.value.path,
        caught.value.reason,
    )
