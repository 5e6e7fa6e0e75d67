"""Imports point one way: each module may know those below it, and only those.

The check reads the sources. What stands under `if TYPE_CHECKING` is for the type checker alone and
may point upwards; what stands inside a function counts like any other import, except where
`flow.py` reaches for the runtime.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[1]

LAYERS: Final = (
    {"errors"},
    {"instants", "values", "copying", "bounds", "fields", "tags", "encoding", "decoding", "codec"}
    | {"clock", "fake_clock", "shape", "backoff", "options", "policy", "exchange", "outage"},
    {"context"},
    {"routine"},
    {"plan", "saved_flow", "flow"},
    {"core"},
    {"step", "monitor", "persist"},
    {"drivers"},
    {"admission", "audience", "crew", "drive", "loop", "run"},
    {"runtime"},
    {"worker", "console"},
    {"cli"},
    {"__main__"},
    {""},  # the public face of the package
)
"""The parts of the engine, the lowest first; parts of one layer may know each other."""

RANK: Final = {part: rank for rank, layer in enumerate(LAYERS) for part in layer}
UPWARDS: Final = {("routilux.flow", "routilux.runtime")}
"""The imports that may point upwards, inside a function: `Flow.execute` and its twins."""

BEHIND: Final = {"encoding": {"codec", "decoding"}, "decoding": {"codec"}}
"""What stands behind the face of another module, and who may know it."""

EXTRAS: Final = {("routilux.persist.database", "psycopg")}
"""What an extra brings, and who imports it, inside a function: when it is asked for."""

PURE: Final = "the core has no time, no threads, no randomness, no I/O"
TIMELESS: Final = "the core is given the time and has no clock"
STANDARD: Final = "the engine needs the standard library only"
PLUGIN: Final = "the engine knows nothing of its plugin"
FACE: Final = "codec is the one way to saved forms and back"
IMPURE: Final = {"time", "threading", "random", "logging", "os", "asyncio"}


@dataclass(frozen=True)
class Import:
    """One import: who, whom, where; `typing` if it is for the type checker, `inner` if late."""

    importer: str
    imported: str
    place: str
    typing: bool
    inner: bool


def modules(root: Path, package: str) -> Iterator[tuple[str, Path]]:
    for path in sorted((root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports_of(root: Path, package: str) -> list[Import]:
    known = {name for name, _ in modules(root, package)}
    found: list[Import] = []
    for name, path in modules(root, package):
        place = path.relative_to(root)
        for node, typing, inner in _imports(ast.parse(path.read_text("utf-8")), False, False):
            found += [
                Import(name, imported, f"{place}:{node.lineno}", typing, inner)
                for imported in _imported(node, known)
            ]
    return found


def _imports(
    node: ast.AST, typing: bool, inner: bool
) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool, bool]]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node, typing, inner
    inner = inner or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    guard = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
    for child in ast.iter_child_nodes(node):
        guarded = guard and isinstance(node, ast.If) and child in node.body
        yield from _imports(child, typing or guarded, inner)


def _imported(node: ast.Import | ast.ImportFrom, known: set[str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    source = "." * node.level + (node.module or "")
    for alias in node.names:  # `from routilux import codec` imports a module, not a name
        member = f"{source}.{alias.name}"
        yield member if member in known else source


def part_of(module: str) -> str:
    return module.partition(".")[2].partition(".")[0]


def faults(root: Path) -> list[str]:
    """What breaks the layers of the package `routilux` under `root`, one sentence each."""
    found = []
    for name, path in modules(root, "routilux"):
        if part_of(name) not in RANK:
            found.append(f"{path.relative_to(root)} is in no layer; give it one in LAYERS")
    for edge in imports_of(root, "routilux"):
        reason = _reason(edge)
        if reason is not None:
            found.append(f"{edge.place} {edge.importer} imports {edge.imported}: {reason}")
    return found


def _reason(edge: Import) -> str | None:
    top = edge.imported.partition(".")[0]
    if top == "pytest_routilux":
        return PLUGIN
    if top == "":
        return "imports are absolute"
    if top != "routilux":
        extra = edge.inner and (edge.importer, top) in EXTRAS
        if top not in sys.stdlib_module_names and top != "__future__" and not extra:
            return STANDARD
        if edge.typing:
            return None
        if part_of(edge.importer) == "core" and top in IMPURE:
            return PURE
        if top == "time" and edge.importer != "routilux.clock":
            return "only clock.py may"
        return None
    if edge.typing:
        return None
    if part_of(edge.importer) == "core" and part_of(edge.imported) == "clock":
        return TIMELESS
    other, own = part_of(edge.imported), part_of(edge.importer)
    if other in BEHIND and own not in BEHIND[other]:
        return FACE
    if other not in RANK or own not in RANK or RANK[other] <= RANK[own]:
        return None
    if edge.inner and (edge.importer, edge.imported) in UPWARDS:
        return None
    return above(other or "the package itself", own)


def above(other: str, own: str) -> str:
    return f"{other} is above {own}; move what both need downwards"


def cycles(edges: list[Import]) -> list[str]:
    """The circles of imports that happen while a module is loaded."""
    graph: dict[str, set[str]] = {}
    for edge in edges:
        if not edge.typing and not edge.inner:
            graph.setdefault(edge.importer, set()).add(edge.imported)
    found: list[str] = []
    closed: set[str] = set()

    def walk(module: str, trail: list[str]) -> None:
        if module in trail:
            found.append(" -> ".join([*trail[trail.index(module) :], module]))
        elif module not in closed:
            for imported in sorted(graph.get(module, ())):
                walk(imported, [*trail, module])
            closed.add(module)

    for module in sorted(graph):
        walk(module, [])
    return found


# --- the engine -----------------------------------------------------------------------------------


def test_imports_of_the_engine_point_one_way() -> None:
    assert not faults(ROOT), "\n".join(["", *faults(ROOT)])


def test_no_two_modules_need_each_other_to_be_loaded() -> None:
    assert not cycles(imports_of(ROOT, "routilux"))


def test_the_check_has_read_the_whole_engine() -> None:
    names = {name for name, _ in modules(ROOT, "routilux")}
    gone = set(RANK) - {part_of(name) for name in names}
    assert not gone, f"LAYERS names parts that are gone: {gone}"
    edges = {(e.importer, e.imported) for e in imports_of(ROOT, "routilux")}
    assert ("routilux.core.machine", "routilux.core.state") in edges
    assert ("routilux.context", "routilux.codec") in edges
    assert {
        (e.importer, e.imported)
        for e in imports_of(ROOT, "routilux")
        if e.inner and e.imported.startswith("routilux")
    } == UPWARDS
    assert {e.importer for e in imports_of(ROOT, "routilux") if e.imported == "time"} == {
        "routilux.clock"
    }


# --- the check itself: planted faults -------------------------------------------------------------

SOUND: Final = {
    "__init__.py": "from routilux.runtime import Runtime",
    "errors.py": "from __future__ import annotations\nimport json.decoder",
    "clock.py": "import time\nfrom routilux.errors import RoutiluxError",
    "flow.py": "def run():\n    from routilux.runtime import Runtime",
    "core/__init__.py": "",
    "core/state.py": (
        "from typing import TYPE_CHECKING\n"
        "from routilux import errors\n"
        "if TYPE_CHECKING:\n"
        "    from routilux.runtime import Runtime\n"
        "    from threading import Lock"
    ),
    "runtime.py": "import routilux.core.state",
}


def plant(root: Path, **changed: str) -> Path:
    for name, text in {**SOUND, **changed}.items():
        path = root / "routilux" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return root


LATE: Final = "def run():\n    from routilux.runtime import Runtime\n    import routilux.core.state"
EARLY: Final = "from routilux.runtime import Runtime"
GUARDED: Final = "if TYPE_CHECKING:\n    import threading\nelse:\n    import threading"


def test_a_sound_tree_has_no_faults(tmp_path: Path) -> None:
    assert faults(plant(tmp_path)) == []


@pytest.mark.parametrize(
    ("name", "text", "line", "imported", "reason"),
    [
        (
            "errors.py",
            "from routilux.flow import Flow",
            1,
            "routilux.flow",
            above("flow", "errors"),
        ),
        ("errors.py", "\nimport routilux", 2, "routilux", above("the package itself", "errors")),
        (
            "errors.py",
            "from routilux import x",
            1,
            "routilux",
            above("the package itself", "errors"),
        ),
        ("core/state.py", LATE, 2, "routilux.runtime", above("runtime", "core")),
        ("flow.py", LATE, 3, "routilux.core.state", above("core", "flow")),
        ("flow.py", EARLY, 1, "routilux.runtime", above("runtime", "flow")),
        ("core/state.py", GUARDED, 4, "threading", PURE),
        ("core/state.py", "import os.path", 1, "os.path", PURE),
        ("core/state.py", "from routilux.clock import Clock", 1, "routilux.clock", TIMELESS),
        ("runtime.py", "class Run:\n    from time import sleep", 2, "time", "only clock.py may"),
        ("runtime.py", "if TYPE_CHECKING:\n    import rich.table", 2, "rich.table", STANDARD),
        ("runtime.py", "def f():\n    import pytest_routilux.x", 2, "pytest_routilux.x", PLUGIN),
        ("runtime.py", "from . import errors", 1, ".", "imports are absolute"),
        ("clock.py", "from routilux.encoding import x", 1, "routilux.encoding", FACE),
        ("codec.py", "from routilux.crew import Crew", 1, "routilux.crew", above("crew", "codec")),
        ("run.py", "import routilux.runtime", 1, "routilux.runtime", above("runtime", "run")),
        ("plan.py", "import routilux.core.forms", 1, "routilux.core.forms", above("core", "plan")),
    ],
)
def test_a_planted_fault_is_named_by_its_place_and_reason(
    tmp_path: Path, name: str, text: str, line: int, imported: str, reason: str
) -> None:
    importer = "routilux." + name.removesuffix(".py").replace("/", ".")
    assert faults(plant(tmp_path, **{name: text})) == [
        f"routilux/{name}:{line} {importer} imports {imported}: {reason}"
    ]


def test_a_module_without_a_layer_is_named(tmp_path: Path) -> None:
    assert faults(plant(tmp_path, **{"helpers.py": ""})) == [
        "routilux/helpers.py is in no layer; give it one in LAYERS"
    ]


def test_a_planted_circle_is_named(tmp_path: Path) -> None:
    plant(tmp_path, **{"core/parts.py": "from routilux.core import state"})
    plant(tmp_path, **{"core/state.py": "import routilux.core.parts"})
    assert cycles(imports_of(tmp_path, "routilux")) == [
        "routilux.core.state -> routilux.core.parts -> routilux.core.state"
    ]


# --- what importing it brings ---------------------------------------------------------------------


def test_importing_the_engine_loads_nothing_heavy_and_nothing_foreign() -> None:
    program = (
        "import sys; before = set(sys.modules); import routilux;"
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    )
    told = subprocess.run(
        [sys.executable, "-S", "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(told.stdout.split())
    assert "routilux" in loaded
    assert not loaded & {"asyncio", "freezegun", "rich", "pytest", "hypothesis", "sqlite3"}
    foreign = loaded - sys.stdlib_module_names - {"routilux"}
    assert not {name for name in foreign if not name.startswith("_sysconfigdata")}
