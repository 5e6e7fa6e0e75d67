"""Every page of the documentation is true: its files run, its commands print what it shows."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.docs.pages import ROOT, Differs, Page, all_pages, environment, run_page, run_process
from tests.plugin.inner import PLUGIN, run_command

PAGES = all_pages()
OTHER_PLUGINS: Final = {
    "-n": "xdist",
    "--timeout": "pytest_timeout",
    "--random-order": "random_order.plugin",
    "--benchmark-only": "pytest_benchmark.plugin",
}
"""Plugins of others that pages use, by an option; all others stay off, so that output is steady."""


def run(command: list[str], folder: Path) -> tuple[int, str]:
    """Run a command as a reader would who has installed the project."""
    out = folder / ".printed"
    out.unlink(missing_ok=True)
    variables = {
        **environment(Path(sys.executable).parent, folder),
        "PYTHONPATH": str(ROOT),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    server = "plain"
    match command:
        case ["pytest", *args]:
            server = "prepared"
            others = [f"-p{name}" for option, name in OTHER_PLUGINS.items() if option in args]
            command = ["pytest", *PLUGIN, *others, f"--basetemp={folder / '.tmp'}", *args]
        case ["python" | "routilux", *_]:
            pass
        case _:
            for compiled in folder.rglob("__pycache__"):
                shutil.rmtree(compiled)  # an edit in the same second would keep the old code
            return run_process(command, folder, variables)
    code = run_command(command, folder, variables, out=out, err=out, server=server)
    return code, out.read_text("utf-8")


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder with a short path, because tables and lines are cut to the terminal."""
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_a_page_says_what_happens(page: Page, folder: Path) -> None:
    difference = None
    try:
        run_page(page, folder, run)
    except Differs as found:
        difference = str(found)
    if difference is not None:
        pytest.fail(difference, pytrace=False)


GREETING = """
```python
# greet.py
print("hello", "world")
```

```console
$ python greet.py
{output}
```
"""


@pytest.mark.parametrize("output", ["hello world", "hello …", "…", "…\nhello world\n…"])
def test_an_output_may_leave_out_text(output: str, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(GREETING.format(output=output), encoding="utf-8")

    assert 1 == run_page(Page(tmp_path / "page.md"), tmp_path, run)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (GREETING.format(output="hello you"), r"page\.md:7: \$ python greet\.py\nprints something"),
        (GREETING.format(output=""), r"else than the page says \(exit status 0\):\nhello world$"),
        ("```python\nprint(1)\n```\n", r"page\.md:1: a block of python is neither a file"),
        ("```\nwhat\n```\n", r"page\.md:1: .* has no language"),
        ("```sh\nls\n\n```sh\nls\n```\n", r"page\.md: a block has no end"),
        ("```console\nls\n```\n", r"page\.md:1: a console block begins with"),
        ("```python\n>>> 1 + 1\n3\n```\n", r"page\.md: the doctests of the page fail"),
    ],
)
def test_a_page_that_is_wrong_is_found(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(text, encoding="utf-8")

    with pytest.raises(Differs, match=says):
        run_page(Page(tmp_path / "page.md"), tmp_path, run)
