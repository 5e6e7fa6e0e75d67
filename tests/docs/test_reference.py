"""The reference has each public name, fixture, setting, command and saved member, and no other."""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any
from zlib import crc32

import pytest

import pytest_routilux
import routilux
from pytest_routilux.settings import add_options
from routilux import Runtime, SqliteStore, codec, saved_state
from routilux.cli import _parser, main
from routilux.codec import registry
from routilux.core import commits, parts, saved
from routilux.core.wire import errors, tasks, writes
from routilux.flow import _CONNECTION_FIELDS, _FLOW_FIELDS
from routilux.graph import saved_routine
from routilux.graph.patches import ACCUMULATORS
from routilux.retry.options import CHECKS, WITH_ANY_STRATEGY
from tests.docs.pages import DOCS, ROOT
from tests.routines import chain, fails

REFERENCE = DOCS / "reference"


def page(name: str) -> str:
    return (REFERENCE / f"{name}.md").read_text("utf-8")


def sections(text: str) -> dict[str, str]:
    """Return the text below each heading, by the heading's words."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    _, *parts = re.split(r"^#+ (.*)\n", prose, flags=re.M)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def rows(text: str) -> list[list[str]]:
    """Return the cells of the rows of the tables in a text, without their heads."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    body = [
        line for line, after in pairwise(["", *lines, ""]) if line and "|---" not in line + after
    ]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in body]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


# --- names ----------------------------------------------------------------------------------------


def test_each_public_name_stands_once_in_the_reference() -> None:
    public = {
        f"{module.__name__}.{name}"
        for module in (routilux, pytest_routilux)
        for name in module.__all__
    }
    text = "\n".join(path.read_text("utf-8") for path in REFERENCE.glob("*.md"))
    shown = Counter(re.findall(r"^\.\. auto\w+:: ([\w.]+)", text, re.M))

    assert set() == public - shown.keys()
    assert [] == [name for name, times in shown.items() if times > 1]
    # Others are types of a public name's fields, and are shown by their module.
    assert [] == [name for name in shown.keys() - public if name.count(".") == 1]


def test_each_page_of_the_reference_is_in_its_contents() -> None:
    listed = re.findall(r"^([\w-]+)$", page("index"), re.M)

    assert sorted([*listed, "index"]) == sorted(path.stem for path in REFERENCE.glob("*.md"))


def test_the_rules_have_their_numbers() -> None:
    numbers = [int(n) for n in re.findall(r"^(\d+)\. \*\*", page("rules"), re.M)]

    assert [*range(1, 21)] == numbers


# --- the plugin -----------------------------------------------------------------------------------


def test_the_page_of_fixtures_has_all_of_them() -> None:
    source = (ROOT / "pytest_routilux" / "plugin.py").read_text("utf-8")
    fixtures = re.findall(
        r"^@pytest\.fixture\ndef (\w+)\(.*?\) -> (?:Iterator\[)?(\w+)", source, re.M | re.S
    )
    shown = [(names(row[0])[0], names(row[2])[0]) for row in rows(page("fixtures"))]

    assert sorted(fixtures) == sorted(shown)


class Recorder:
    """Collects the options that the plugin registers with pytest."""

    def __init__(self) -> None:
        self.options: dict[str, str] = {}
        self.settings: dict[str, str] = {}

    def getgroup(self, name: str, description: str) -> Recorder:
        return self

    def addoption(self, name: str, **given: str) -> None:
        self.options[f"{name}={given['metavar']}"] = "none"

    def addini(self, name: str, _: str, **given: object) -> None:
        self.settings[name] = str(given["default"])


def test_the_page_of_settings_has_all_of_them_with_their_defaults() -> None:
    recorder: Any = Recorder()
    add_options(recorder)
    shown = sections(page("settings"))
    source = (ROOT / "pytest_routilux" / "plugin.py").read_text("utf-8")

    assert recorder.settings == {
        names(name)[0]: names(default)[0] for name, default, _ in rows(shown["Configuration"])
    }
    assert recorder.options == {
        names(name)[0]: default for name, default, _ in rows(shown["Command line options"])
    }
    assert ["flow_time(start=…, zone=…)"] == re.findall(r"`@pytest\.mark\.(.*?)`", shown["Marker"])
    assert 1 == source.count('"markers",') == source.count('"flow_time(start=..., zone=...): ')


# --- the command line -----------------------------------------------------------------------------


def commands() -> dict[str, argparse.ArgumentParser]:
    [action] = [a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return {**action.choices}


@pytest.mark.parametrize("name", commands())
def test_the_page_of_commands_has_each_with_its_options(name: str) -> None:
    actions = commands()[name]._actions
    text = sections(page("command-line"))[name]
    usage, *_ = names(text)
    required = [f"{a.option_strings[0]} {a.metavar}" for a in actions if a.option_strings]
    required = [shown for shown in required if shown in usage]
    shown = [names(cell)[0] for cell, _ in rows(text)]

    positional = [str(a.metavar) for a in actions if not a.option_strings]
    assert usage == " ".join(["routilux", name, *positional, *required])
    assert [a.option_strings[0] for a in actions if a.required and a.option_strings] == [
        option.partition(" ")[0] for option in required
    ]
    assert shown == [
        " ".join(filter(None, (a.option_strings[0], a.metavar)))
        for a in actions
        if a.option_strings and a.option_strings[0] not in ("-h", "--json")
    ]


def test_each_section_of_the_page_of_commands_is_a_command() -> None:
    others = {"Command line", "The JSON output", "An example", "The columns of jobs"}

    assert commands().keys() == sections(page("command-line")).keys() - others


@pytest.mark.parametrize("command", commands())
def test_the_page_of_commands_has_the_members_of_json(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, copy = str(tmp_path / "jobs.db"), str(tmp_path / "copy")
    with SqliteStore(path) as store:
        chain(a=fails(1)).execute("a", job_id="A7", runtime=Runtime(store=store))
    job = ["A7"] if command in ("show", "retry", "cancel", "export") else []
    more = {"export": [copy], "backup": [copy], "purge": ["--older-than", "0s", "--dry-run"]}
    more["purge"] += ["--status", "failed"]

    assert 0 == main([command, path, *job, *more.get(command, []), "--json"])

    written = json.loads(capsys.readouterr().out)
    entries = [entry for value in written.values() if isinstance(value, list) for entry in value]
    found = {*written, *(name for entry in entries for name in entry)}
    cells = rows(sections(page("command-line"))["The JSON output"])
    shown = {n for row in cells if command in (*names(row[0]), "") for n in names(row[1])}
    shown |= {name for name in names(cells[0][1]) if "/" not in name}
    of_damage = {"job_id", "path", "reason"}  # the store has none
    assert found == shown - (of_damage - found) - {"JobState.deserialize"}


# --- the saved format -----------------------------------------------------------------------------

GOLDEN = ROOT / "tests" / "golden" / "routilux-1"
FORMAT = sections(page("saved-format"))
TYPES = {
    "text": (str,),
    "integer": (int,),
    "number": (float,),
    "object": (dict,),
    "list": (list,),
    "true or false": (bool,),
    "value": (object,),
}
MEMBERS: dict[str, tuple[codec.Fields, codec.Fields]] = {
    "The document": ({"format": str, "digest": str, **saved_state._FIELDS}, {"signature": str}),
    "A flow": (_FLOW_FIELDS, {}),
    "A routine": (saved_routine._FIELDS, saved_routine._OPTIONAL),
    "A connection": (_CONNECTION_FIELDS, {}),
    "A job": (saved._JOB_FIELDS, saved._OPTIONAL_FIELDS),
    "The state of a routine": (parts._ROUTINE_STATE, {}),
    "A pending task": (parts._PENDING_TASK, parts._SPECIAL),
    "An output": (parts._OUTPUT, {}),
    "A dropped task": (parts._DROPPED_TASK, {}),
    "An error": (errors._ERROR_REQUIRED, errors._ERROR_OPTIONAL),
    "An effect": (errors._EFFECT_FIELDS, {}),
    "A commit": (commits._COMMON, commits._OTHERS),
    "A created task": (tasks._TASK_REQUIRED, tasks._TASK_OPTIONAL),
    "What a step changed": ({}, writes._WRITES_FIELDS),
}


def members(heading: str) -> dict[str, str]:
    """Return the types of a table of the page by the names of the members."""
    return {names(row[0])[0]: row[1] for row in rows(FORMAT[heading]) if len(row) == 3}


def types(text: str) -> tuple[type, ...]:
    """Return the types that a cell of a table names."""
    kind = re.sub(r"^list of \w+", "list", text.removesuffix(", optional"))
    found = TYPES[kind.removesuffix(" or null")]
    return (*found, NoneType) if kind.endswith(" or null") else found


@pytest.mark.parametrize("heading", MEMBERS)
def test_a_table_of_members_is_that_of_the_code(heading: str) -> None:
    required, optional = MEMBERS[heading]
    fields = {**required, **optional}
    shown = members(heading)

    assert fields.keys() == shown.keys()
    assert optional.keys() == {n for n, kind in shown.items() if kind.endswith(", optional")}
    expected = {n: kind if isinstance(kind, tuple) else (kind,) for n, kind in fields.items()}
    assert expected == {name: types(kind) for name, kind in shown.items()}


def test_the_patches_are_those_of_the_code() -> None:
    shown = [names(row[0])[0] for row in rows(FORMAT["A patch"])]

    assert [*ACCUMULATORS, "splice", "entries"] == shown


def test_the_members_of_an_error_handler_are_those_of_the_code() -> None:
    shown = members("An error handler")

    assert [*CHECKS, "retry_count"] == [*shown]
    always = [name for name, kind in shown.items() if not kind.endswith(", optional")]
    assert [*WITH_ANY_STRATEGY, "retry_count"] == always


def test_the_kinds_of_commits_have_the_members_of_the_code() -> None:
    kinds = {names(row[0])[0]: row[1:] for row in rows(FORMAT["A commit"]) if len(row) == 4}
    common = {*commits._COMMON}

    assert {
        kind: (required.keys() - common, {*optional})
        for kind, (required, optional) in commits._FORMS.items()
    } == {kind: ({*names(has)}, {*names(may)}) for kind, (has, may, _) in kinds.items()}
    assert {
        kind.value: {*required, *optional}
        for kind, (required, optional) in commits._DETAILS.items()
    } == {
        kind: {*names(detail)} - {"error_continued", "skipped"}
        for kind, (*_, detail) in kinds.items()
        if names(detail)
    }


def test_the_tags_of_values_are_those_of_the_code() -> None:
    shown = [tag for tags, _ in rows(FORMAT["Values"]) for tag in names(tags)]
    shown.remove("register_type")

    assert sorted(shown) == sorted(form.tag for form in registry._FORMS)


def test_a_saved_file_has_the_members_of_the_tables() -> None:
    document = json.loads(GOLDEN.with_suffix(".json").read_text("utf-8"))
    flow, job = document["flow"], document["job_state"]
    found: list[tuple[str, dict[str, object]]] = [
        ("The document", document),
        ("A flow", flow),
        *(("A routine", entry) for entry in flow["routines"]),
        *(("A connection", entry) for entry in flow["connections"]),
        ("An error handler", flow["error_handler"]),
        ("A job", job),
        *(("The state of a routine", entry) for entry in job["routine_states"].values()),
        *(("A pending task", entry) for entry in job["pending_tasks"]),
        *(("A dropped task", entry) for entry in job["dropped"]),
        *(("An error", entry["error"]) for entry in job["dropped"]),
        *(("A commit", entry) for entry in job["commits"]),
        *(("A created task", t) for entry in job["commits"] for t in entry.get("tasks", [])),
        *(("What a step changed", entry["state"]) for entry in job["commits"] if "state" in entry),
    ]

    for heading, entry in found:
        shown = members(heading)
        assert [] == [name for name in entry if name not in shown], heading
        for name, kind in shown.items():
            assert name in entry or kind.endswith(", optional"), f"{heading}: {name}"
            if name in entry and heading != "An error handler":
                assert isinstance(entry[name], types(kind)), f"{heading}: {name}"
    assert {heading for heading, _ in found} >= MEMBERS.keys() - {
        *("An output", "An effect", "What a step changed"),
    }


def test_checksums_cover_what_the_page_says() -> None:
    data = GOLDEN.with_suffix(".json").read_bytes()
    row = GOLDEN.with_name("routilux-1-rows.jsonl").read_bytes().splitlines()[1]
    snapshot = GOLDEN.with_name("routilux-1-snapshot.json").read_bytes()

    digest = sha256(data.rpartition(b',\n"digest"')[0]).hexdigest()
    assert f"sha256:{digest}" == json.loads(data)["digest"]
    for place, text in (("$.job-1[2]", row), ("$.job-1.snapshot", snapshot)):
        covered = place.encode() + text.rpartition(b',"crc"')[0]
        assert f"{crc32(covered):08x}" == json.loads(text)["crc"]
