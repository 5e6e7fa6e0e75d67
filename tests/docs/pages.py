"""The examples of the documentation's pages: files to write, commands to run, output to expect.

Invariants:
- Each block of a page is written, run, or is one of a language that is only shown (`SHOWN`).
- A block whose first line is `# name` is a whole file. A later block of that name replaces it.
- A `console` block has commands after `$ `, and below each what it prints. `…` there is any text
  within a line, and alone on a line any number of lines. Lengths of real time (`in 0.02s`,
  `complete, 0.02 s`) may differ. The environment is fixed: a terminal of 80 columns, in UTC.
- Blocks with `>>>` are doctests. Those of a page share their names, and run after its commands.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[2]
DOCS: Final = ROOT / "docs"
SHOWN: Final = {"sh", "{toctree}", "{eval-rst}", "{warning}", "{note}"}
_FILES: Final = {"python", "ini", "toml", "yaml", "dockerfile"}
_FENCE: Final = re.compile(r"^```(\S*)(?: [^\n]*)?\n(.*?)^```$", re.M | re.S)
_NAMED: Final = re.compile(r"# ([\w./@-]+)\n")
_TIMED: Final = re.compile(r"\b(in|complete,) \d+\.\d\d ?s\b")

Run = Callable[[list[str], Path], tuple[int, str]]
"""Runs a command in a folder; returns its exit status and what it printed."""


class Block(NamedTuple):
    """One fenced block of a page, and the line at which it begins."""

    language: str
    text: str
    line: int


@dataclass(frozen=True)
class Page:
    """A page of the documentation, or the README."""

    path: Path

    def __str__(self) -> str:
        return str(self.path.relative_to(ROOT) if self.path.is_relative_to(ROOT) else self.path)

    @property
    def blocks(self) -> Iterator[Block]:
        """The fenced blocks, in order."""
        text = self.path.read_text("utf-8")
        for found in _FENCE.finditer(text):
            yield Block(found[1], found[2], text.count("\n", 0, found.start()) + 1)

    def where(self, block: Block) -> str:
        """Return the page and line of a block, for messages."""
        return f"{self}:{block.line}"


class Differs(AssertionError):
    """A page says something else than what happens."""


def all_pages() -> list[Page]:
    """Return the README and all pages below `docs`, those of the tutorial in their order."""
    built = DOCS / "_build"
    pages = [path for path in sorted(DOCS.rglob("*.md")) if not path.is_relative_to(built)]
    return [Page(path) for path in (ROOT / "README.md", *pages)]


def environment(programs: Path, folder: Path) -> dict[str, str]:
    """Return the environment variables of a command: `programs` has the installed ones."""
    return {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(folder),
        "PYTHONIOENCODING": "utf-8",
        "PYTHONDONTWRITEBYTECODE": "1",  # a page replaces a file within a second
        "COLUMNS": "80",
        "TZ": "UTC",
    }


def run_process(command: list[str], folder: Path, variables: dict[str, str]) -> tuple[int, str]:
    """Run a command in a process; returns its exit status and what it printed."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        check=False,
    )
    return done.returncode, done.stdout


def run_page(page: Page, folder: Path, run: Run) -> int:
    """Do in `folder` what the page says, and raise `Differs` where the result is another one.

    Return how many commands and doctests there were.
    """
    fences = len(re.findall("^```", page.path.read_text("utf-8"), re.M))
    if fences != 2 * len([*page.blocks]):
        raise Differs(f"{page}: a block has no end, so that it would not be run")
    for earlier in _earlier_pages(page):
        _write_files(earlier, folder)
    done = 0
    doctests: list[str] = []
    for block in page.blocks:
        if not block.language:
            raise Differs(f"{page.where(block)}: the block has no language")
        if block.language in SHOWN:
            continue
        if block.language == "console":
            for command, expected in _commands(page, block):
                done += 1
                _check(page, block, command, expected, run(shlex.split(command), folder))
        elif block.text.startswith(">>> ") and block.language == "python":
            doctests.append(block.text)
        elif _NAMED.match(block.text) and block.language in _FILES:
            _write(block, folder)
        else:
            raise Differs(
                f"{page.where(block)}: a block of {block.language} is neither a file (its first"
                " line would be `# name`), nor a doctest, nor a console session"
            )
    if doctests:
        Path(folder, "doctests.txt").write_text("\n\n".join(doctests), encoding="utf-8")
        command = "python -m doctest -o ELLIPSIS doctests.txt"
        code, printed = run(shlex.split(command), folder)
        if code:
            raise Differs(f"{page}: the doctests of the page fail\n{printed}")
    return done + len(doctests)


def _earlier_pages(page: Page) -> list[Page]:
    """Return the pages whose files a page continues: the chapters of the tutorial before it."""
    if page.path.parent.name != "tutorial":
        return []
    pages = all_pages()
    before = pages[: pages.index(page)]
    return [earlier for earlier in before if earlier.path.parent == page.path.parent]


def _write_files(page: Page, folder: Path) -> None:
    """Write all files that a page shows; of several of one name the last remains."""
    for block in page.blocks:
        if _NAMED.match(block.text) and block.language in _FILES:
            _write(block, folder)


def _write(block: Block, folder: Path) -> None:
    named = _NAMED.match(block.text)
    assert named
    path = folder / named[1]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.text, encoding="utf-8")


def _commands(page: Page, block: Block) -> Iterator[tuple[str, str]]:
    first, *parts = re.split(r"^\$ ", block.text, flags=re.M)
    if first or not parts:
        raise Differs(f"{page.where(block)}: a console block begins with `$ ` and a command")
    for part in parts:
        command, _, output = part.partition("\n")
        yield command, output


def _check(page: Page, block: Block, command: str, expected: str, got: tuple[int, str]) -> None:
    code, printed = got
    lines = [_TIMED.sub(r"\1 … s", line.rstrip()) for line in printed.strip("\n").splitlines()]
    wanted = [_TIMED.sub(r"\1 … s", line.rstrip()) for line in expected.strip("\n").splitlines()]
    pattern = "".join(
        r"(?:.*\n)*?" if line == "…" else _line_pattern(line) + r"\n" for line in wanted
    )
    if not re.fullmatch(pattern, "".join(f"{line}\n" for line in lines)):
        shown = "\n".join(lines)
        raise Differs(
            f"{page.where(block)}: $ {command}\nprints something else than the page says"
            f" (exit status {code}):\n{shown}"
        )


def _line_pattern(line: str) -> str:
    # A genuine `…` of the output is any text, too.
    return r"[^\n]*".join(map(re.escape, line.split("…")))
