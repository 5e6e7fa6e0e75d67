"""The README is short, and its commands and links exist; its code runs in tests/docs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_is_a_screen_and_a_half() -> None:
    assert len(README.splitlines()) <= 180


def test_each_make_command_is_a_target_of_the_makefile() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    first, *_ = re.findall(r"^```sh\n(.*?)^```$", README, re.M | re.S)

    assert ["make showcase", "make test"] == first.splitlines()
    assert {"showcase", "test", "bench", "docs"} <= set(re.findall(r"make (\w+)[`\n]", README))
    assert set(re.findall(r"make (\w+)[`\n]", README)) <= targets


def test_links_exist() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)

    assert [] == [link for link in links if not (ROOT / link).exists()]


NAME = "routilux"
FETCHES = re.compile(
    rf"""install\b.*[\s'"]{NAME}(?![\w/.-])"""  # a command
    rf"""|["']{NAME}(?:\[|\s*[=<>~!]=)"""  # a requirement
    rf"""|dependencies\s*=\s*\[.*["']{NAME}["']"""
    rf"""|^{NAME}(?:\[\w+\])?(?:\s*[=<>~!]=.*)?$""",  # a line of a requirements file
    re.M,
)


@pytest.mark.parametrize(
    "line",
    [
        f"pip install {NAME}",
        f"pip install '{NAME}[postgres]'",
        f'    "{NAME}[pytest]",',
        f'dependencies = ["{NAME}"]',
        f"pytest\n{NAME}[pytest]>=0.1\n",
    ],
)
def test_a_line_that_would_install_the_other_project_is_found(line: str) -> None:
    assert FETCHES.search(line)


def test_no_line_of_the_repository_installs_the_other_project() -> None:
    folders = ("routilux", "pytest_routilux", "showcase", "tests", "docs")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.*")]
    texts = [path for path in files if path.suffix in {".py", ".toml", ".md"}]
    texts += [*ROOT.glob("*.md"), ROOT / "pyproject.toml", ROOT / "Makefile"]
    for path in texts:
        assert not FETCHES.search(path.read_text("utf-8")), path
