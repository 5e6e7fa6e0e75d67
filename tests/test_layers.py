"""Imports of both packages run one way, and no module imports itself in a circle.

The check reads the sources, and counts every import alike: at the top of a module, inside a
function, and under `if TYPE_CHECKING`. An import inside a function of the engine is listed here
with its reason.
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

PACKAGES: Final = ("routilux", "pytest_routilux")
LAYERS: Final = {
    "routilux": (
        ("errors",),
        ("clocks", "codec"),
        ("retry",),
        ("graph",),
        ("core",),
        ("persist", "monitor"),
        ("engine",),
        ("timeline", "run"),
        ("cli",),
        ("flow",),
        ("saved_state",),
        ("runtime",),
        ("worker",),
        ("__init__", "__main__"),
    ),
    "pytest_routilux": (
        ("text", "frames", "settings"),
        ("discarding_store", "factory", "faults", "handler_assertions"),
        ("virtual_time", "monitor", "report"),
        ("hosts",),
        ("sim",),
        ("strategies",),
        ("plugin", "__init__"),
    ),
    "pytest_routilux.sim": (
        ("simulator",),
        ("crash_points", "oracle"),
        ("recovery", "conformance", "repro", "repeats"),
        ("results",),
        ("checks",),
        ("orders",),
        ("other_hosts", "pairs"),
        ("isolation", "replay"),
        ("explore",),
        ("shrink", "determinism"),
        ("explain",),
        ("flow_sim", "__init__"),
    ),
}
"""The parts of each package, the lowest first. A part may import itself and the parts below it."""

LATE: Final = {
    ("routilux.clocks.clock", "asyncio"): "slow, and only async handlers need it",
    ("routilux.clocks.fake_clock", "routilux"): "the virtual loop imports asyncio, which is slow",
    ("routilux.engine.environment", "platform"): "slow, and only a runtime with a store needs it",
    ("routilux.engine.environment", "routilux"): "asyncio is slow, and only async handlers need it",
    ("routilux.engine.remote.run", "asyncio"): "slow, and only async handlers need it",
    ("routilux.engine.threads", "routilux"): "sockets are slow, and few runtimes need them",
    ("routilux.errors", "difflib"): "slow, and only a misspelt name needs it",
    ("routilux.persist.postgres_connection", "psycopg"): "an extra: it may not be installed",
    ("routilux.runtime", "asyncio"): "slow, and only aexecute needs it",
}
"""The imports inside functions of the engine: module, what it imports, and why it is late."""
LARGEST_FOLDER: Final = 12

PURE: Final = "the core has no time, no threads, no randomness and no I/O"
STANDARD: Final = "the engine needs the standard library only"
PLUGIN: Final = "the engine does not import its plugin"
ABSOLUTE: Final = "imports are absolute"
ONE_CLOCK: Final = "only routilux.clocks.clock may read the time"
IMPURE: Final = {"time", "threading", "random", "logging", "os", "asyncio"}


@dataclass(frozen=True)
class Import:
    """One import: the module that imports, the module that it imports, and the line."""

    importer: str
    imported: str
    place: str
    late: bool


def modules(root: Path, package: str) -> Iterator[tuple[str, Path]]:
    for path in sorted((root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports_of(root: Path) -> list[Import]:
    sources = [(name, path) for package in PACKAGES for name, path in modules(root, package)]
    known = {name for name, _ in sources}
    return [
        Import(name, imported, f"{path.relative_to(root)}:{node.lineno}", late)
        for name, path in sources
        for node, late in _imports(ast.parse(path.read_text("utf-8")), False)
        for imported in _imported(node, known)
    ]


def _imports(node: ast.AST, late: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node, late
    late = late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for child in ast.iter_child_nodes(node):
        yield from _imports(child, late)


def _imported(node: ast.Import | ast.ImportFrom, known: set[str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    source = "." * node.level + (node.module or "")
    for alias in node.names:  # `from routilux import codec` imports a module, not a name
        member = f"{source}.{alias.name}"
        yield member if member in known else source


def part_of(module: str, package: str) -> str:
    return module.removeprefix(package).lstrip(".").partition(".")[0] or "__init__"


def faults(root: Path, edges: list[Import]) -> list[str]:
    """Return each import that breaks a rule, and each part under `root` without a layer."""
    found = []
    for package, layers in LAYERS.items():
        parts = {part for layer in layers for part in layer}
        for name, path in modules(root, package.replace(".", "/")):
            name = ".".join(path.relative_to(root).with_suffix("").parts)
            if part_of(name, package) not in parts:
                found.append(f"{path.relative_to(root)} is in no layer; give it one in LAYERS")
    for edge in edges:
        reason = _reason(edge)
        if reason is not None:
            found.append(f"{edge.place} {edge.importer} imports {edge.imported}: {reason}")
    return found


def _reason(edge: Import) -> str | None:
    top, own = edge.imported.partition(".")[0], edge.importer.partition(".")[0]
    if top == "":
        return ABSOLUTE
    if own == "routilux":
        if top == "pytest_routilux":
            return PLUGIN
        if top != "routilux":
            return _foreign(edge, top)
    for package, layers in LAYERS.items():
        ends = (edge.imported, edge.importer)
        if all(name == package or name.startswith(package + ".") for name in ends):
            rank = {part: number for number, layer in enumerate(layers) for part in layer}
            lower, upper = (part_of(name, package) for name in ends)
            if lower != upper and rank.get(lower, 0) >= rank.get(upper, 0):
                return above(lower, upper)
    return None


def _foreign(edge: Import, top: str) -> str | None:
    if top not in sys.stdlib_module_names and top != "__future__":
        return None if edge.late and (edge.importer, top) in LATE else STANDARD
    if edge.importer.startswith("routilux.core") and top in IMPURE:
        return PURE
    if top == "time" and edge.importer != "routilux.clocks.clock":
        return ONE_CLOCK
    return None


def above(other: str, own: str) -> str:
    return f"{other} is not below {own}; move the part that both need into a lower layer"


def circles(edges: list[Import]) -> list[str]:
    """Return the circles of imports, each from its first module back to it."""
    graph: dict[str, set[str]] = {}
    for edge in edges:
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


# --- both packages --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def edges() -> list[Import]:
    return imports_of(ROOT)


def test_imports_run_one_way(edges: list[Import]) -> None:
    found = faults(ROOT, edges)
    assert not found, "\n".join(["", *found])


def test_no_module_imports_itself_in_a_circle(edges: list[Import]) -> None:
    found = circles(edges)
    assert not found, "\n".join(["", *found])


def test_every_late_import_of_the_engine_is_listed_with_its_reason(edges: list[Import]) -> None:
    late = {
        (edge.importer, edge.imported.partition(".")[0])
        for edge in edges
        if edge.late and edge.importer.startswith("routilux")
    }
    assert set(LATE) == late


@pytest.mark.parametrize("package", PACKAGES)
def test_no_folder_has_more_than_12_modules(package: str) -> None:
    folders = [path for path in (ROOT / package).rglob("*") if path.is_dir()]
    sizes = {
        folder.relative_to(ROOT).as_posix(): len(
            [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        )
        for folder in (ROOT / package, *folders)
    }
    assert {} == {folder: size for folder, size in sizes.items() if size > LARGEST_FOLDER}


def test_the_check_reads_both_packages(edges: list[Import]) -> None:
    pairs = {(edge.importer, edge.imported) for edge in edges}
    assert ("routilux.core.machine", "routilux.core.state") in pairs
    assert ("pytest_routilux.sim.flow_sim", "pytest_routilux.sim.explore") in pairs
    assert {"routilux.clocks.clock"} == {
        importer
        for importer, imported in pairs
        if imported == "time" and importer.startswith("routilux.")
    }
    for package, layers in LAYERS.items():
        folder = ROOT / package.replace(".", "/")
        named = {part for layer in layers for part in layer}
        gone = {n for n in named if not list(folder.glob(f"{n}.py")) + list(folder.glob(f"{n}/"))}
        assert not gone, f"LAYERS names parts of {package} that are gone: {gone}"


# --- the check itself: planted faults -------------------------------------------------------------

SOUND: Final = {
    "routilux/__init__.py": "from routilux.runtime import Runtime",
    "routilux/errors.py": "from __future__ import annotations\nimport json.decoder",
    "routilux/clocks/clock.py": "import time\nfrom routilux.errors import RoutiluxError",
    "routilux/core/state.py": (
        "from typing import TYPE_CHECKING\n"
        "from routilux import errors\n"
        "if TYPE_CHECKING:\n"
        "    from routilux.clocks.clock import Clock"
    ),
    "routilux/runtime.py": "import routilux.core.state",
    "pytest_routilux/text.py": "from routilux import Runtime",
    "pytest_routilux/sim/oracle.py": "import pytest_routilux.text",
    "pytest_routilux/sim/flow_sim.py": "from pytest_routilux.sim import oracle",
}
GUARDED: Final = "if TYPE_CHECKING:\n    from routilux.runtime import Runtime"
LATE_IMPORT: Final = "def run():\n    from routilux.runtime import Runtime"


def plant(root: Path, changed: dict[str, str]) -> Path:
    for name, text in {**SOUND, **changed}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return root


def test_a_sound_tree_has_no_faults(tmp_path: Path) -> None:
    edges = imports_of(plant(tmp_path, {}))
    assert ([], []) == (faults(tmp_path, edges), circles(edges))


@pytest.mark.parametrize(
    ("name", "text", "line", "imported", "reason"),
    [
        ("routilux/errors.py", "\nimport routilux", 2, "routilux", above("__init__", "errors")),
        ("routilux/core/state.py", GUARDED, 2, "routilux.runtime", above("runtime", "core")),
        ("routilux/core/state.py", LATE_IMPORT, 2, "routilux.runtime", above("runtime", "core")),
        ("routilux/core/state.py", "import os.path", 1, "os.path", PURE),
        ("routilux/runtime.py", "class Run:\n    from time import sleep", 2, "time", ONE_CLOCK),
        ("routilux/runtime.py", "if TYPE_CHECKING:\n    import rich", 2, "rich", STANDARD),
        ("routilux/runtime.py", "import pytest_routilux.x", 1, "pytest_routilux.x", PLUGIN),
        ("routilux/runtime.py", "from . import errors", 1, ".", ABSOLUTE),
        (
            "routilux/clocks/clock.py",
            "import routilux.codec.x",
            1,
            "routilux.codec.x",
            above("codec", "clocks"),
        ),
        (
            "pytest_routilux/text.py",
            "def f():\n    import pytest_routilux.sim.oracle",
            2,
            "pytest_routilux.sim.oracle",
            above("sim", "text"),
        ),
        (
            "pytest_routilux/sim/oracle.py",
            "if TYPE_CHECKING:\n    import pytest_routilux.sim.flow_sim",
            2,
            "pytest_routilux.sim.flow_sim",
            above("flow_sim", "oracle"),
        ),
    ],
)
def test_a_planted_fault_is_named_by_its_place_and_reason(
    tmp_path: Path, name: str, text: str, line: int, imported: str, reason: str
) -> None:
    importer = name.removesuffix(".py").replace("/", ".")
    expected = f"{name}:{line} {importer} imports {imported}: {reason}"
    assert [expected] == faults(tmp_path, imports_of(plant(tmp_path, {name: text})))


def test_a_module_without_a_layer_is_named(tmp_path: Path) -> None:
    edges = imports_of(plant(tmp_path, {"routilux/helpers.py": ""}))
    expected = "routilux/helpers.py is in no layer; give it one in LAYERS"
    assert [expected] == faults(tmp_path, edges)


@pytest.mark.parametrize("indent", ["", "if TYPE_CHECKING:\n    ", "def late():\n    "])
def test_a_planted_circle_is_named(tmp_path: Path, indent: str) -> None:
    plant(tmp_path, {"routilux/core/parts.py": "from routilux.core import state"})
    plant(tmp_path, {"routilux/core/state.py": f"{indent}import routilux.core.parts"})
    [circle] = circles(imports_of(tmp_path))
    assert {"routilux.core.parts", "routilux.core.state"} == set(circle.split(" -> "))


# --- the cost of importing the engine -------------------------------------------------------------


def test_importing_the_engine_loads_nothing_heavy_and_nothing_foreign() -> None:
    program = (
        "import sys; before = set(sys.modules); import routilux;"
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    )
    printed = subprocess.run(
        [sys.executable, "-S", "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(printed.stdout.split())
    assert "routilux" in loaded
    assert not loaded & {"asyncio", "freezegun", "rich", "pytest", "hypothesis", "sqlite3"}
    foreign = loaded - sys.stdlib_module_names - {"routilux"}
    assert not {name for name in foreign if not name.startswith("_sysconfigdata")}
