"""The README is true: its code runs, real runs print its outputs, its files and commands exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.plugin.inner import assert_golden, run_inside

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)


def whole_tests() -> list[str]:
    return [code for code in blocks("python") if not code.startswith("# ")]


@pytest.mark.parametrize("code", whole_tests(), ids=("outlives", "crash", "outage", "durable"))
def test_each_code_block_runs_and_passes(code: str, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_readme_block=code)

    result = run_inside(pytester, "-q")

    result.assert_outcomes(passed=len(re.findall(r"^def test_", code, re.M)))


def test_the_showcase_prints_the_report() -> None:
    excerpt, *_ = blocks("text")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider"),
            *("-p", "pytest_routilux.plugin"),
            *("showcase/test_data_pipeline.py", "-k", "fails-5x-sequential"),
        ],
        cwd=ROOT,
        env={
            **os.environ,
            "COLUMNS": "100",
            "PYTHONIOENCODING": "utf-8",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        },
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    printed = done.stdout.splitlines()

    assert 0 == done.returncode, done.stdout
    assert [] == [line for line in excerpt.splitlines() if line and line not in printed]
    [line] = re.findall(r"`(routilux: .*) in \d\.\d\d s`", README)
    assert_golden(f"{line} in ⏱ s", printed)


def test_without_the_key_the_test_fails_with_the_text_that_is_shown(
    pytester: pytest.Pytester,
) -> None:
    [excerpt] = [block for block in blocks("text") if "EFFECT REPEATED" in block]
    [code] = [block for block in blocks("python") if "crash_everywhere" in block]
    bare = code.replace(', key=self.ctx.key("charge")', "")
    assert bare != code
    pytester.makepyfile(test_payment=bare)

    result = run_inside(pytester)

    result.assert_outcomes(failed=1)
    printed = [_untimed(line) for line in result.stdout.lines]
    assert [] == [line for line in excerpt.splitlines() if line and _untimed(line) not in printed]


def test_with_the_wrong_policy_the_assertion_fails_with_the_text_that_is_shown(
    pytester: pytest.Pytester,
) -> None:
    [excerpt] = [block for block in blocks("text") if "look at" in block]
    [code] = [block for block in whole_tests() if "flow_faults" in block]
    assert 1 == code.count("retry_backoff=1.5")
    pytester.makepyfile(test_outage=code.replace("retry_backoff=1.5", "retry_backoff=2.0"))

    result = run_inside(pytester)

    result.assert_outcomes(failed=1)
    marked = [line.removeprefix("E").strip() for line in result.outlines if line[:1] == "E"]
    printed = "\n".join(marked).removeprefix("AssertionError: ")
    assert [line.strip() for line in excerpt.splitlines()] == printed.splitlines()


def _untimed(line: str) -> str:
    return re.sub(r"\d+\.\d\d s;", "… s;", line).rstrip()


def test_the_files_of_a_new_project_fail_with_the_text_that_is_shown(
    pytester: pytest.Pytester,
) -> None:
    files = [code for code in blocks("python") if code.startswith("# ")]
    [excerpt] = [block for block in blocks("text") if "test_orders.py:" in block]
    for code in files:
        Path(pytester.path, code.split()[1]).write_text(code, encoding="utf-8")

    result = run_inside(pytester)

    result.assert_outcomes(failed=1)
    assert [] == [line for line in excerpt.splitlines() if line and line not in result.outlines]


def test_the_table_has_all_fixtures_of_the_plugin_and_no_others() -> None:
    source = (ROOT / "pytest_routilux" / "plugin.py").read_text(encoding="utf-8")
    fixtures = set(re.findall(r"^@pytest\.fixture\ndef (\w+)", source, re.M))

    assert fixtures == set(re.findall(r"^\| `(\w+)` \|", README, re.M))


def test_each_make_command_is_a_target_of_the_makefile() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.M))

    assert {"make showcase", "make test"} == set(blocks("sh")[0].split("\n")) - {""}
    assert set(re.findall(r"make (\w+)`", README)) | {"showcase", "test"} <= targets


def test_lines_with_a_wheel_name_the_file_that_is_built() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

    assert {project["name"].replace("-", "_")} == set(re.findall(r"dist/(\w+)-\*\.whl", README))
    assert [] == [block for block in blocks("sh") if "…" in block]


NAME = "routilux"
FETCHES = re.compile(
    rf"""install\b.*[\s'"]{NAME}(?![\w/.-])"""  # a command
    rf"""|["']{NAME}(?:\[|\s*[=<>~!]=)"""  # a requirement
    rf"""|dependencies\s*=\s*\[.*["']{NAME}["']"""
)


@pytest.mark.parametrize(
    "line",
    [
        f"pip install {NAME}",
        f"pip install '{NAME}[postgres]'",
        f'    "{NAME}[pytest]",',
        f'dependencies = ["{NAME}"]',
    ],
)
def test_a_line_that_would_install_the_other_project_is_found(line: str) -> None:
    assert FETCHES.search(line)


def test_no_line_of_the_repository_installs_the_other_project() -> None:
    folders = ("routilux", "pytest_routilux", "showcase", "tests")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.*")]
    texts = [path for path in files if path.suffix in {".py", ".toml", ".md"}]
    texts += [*ROOT.glob("*.md"), ROOT / "pyproject.toml", ROOT / "Makefile"]
    for path in texts:
        assert not FETCHES.search(path.read_text("utf-8")), path


def test_links_and_folders_exist() -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).is_file(), link
    for row in re.findall(r"^\| (`[\w/]+/`.*?) \|", README, re.M):
        first, *others = re.findall(r"`([\w/]+/)`", row)
        for folder in (first, *(f"{first.partition('/')[0]}/{other}" for other in others)):
            assert (ROOT / folder).is_dir(), folder
