"""Runs another project's tests with the wheel, in a clean environment of each installed Python.

    python tests/downstream/run.py dist/pytest_routilux-*.whl

Invariants:
- Nothing of this repository is importable there except the contents of the wheel.
- The project's tests pass in every way of running them. Its bugs fail with the expected words, and
  a printed reproducer can be pasted.
- Each page of the documentation says what happens there, on the first Python.
- A Python that is not on this machine is reported as skipped. Without any Python this fails.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))
from tests.docs.pages import (  # noqa: E402  # this script runs outside of the repository
    Differs,
    all_pages,
    environment,
    run_page,
    run_process,
)

VERSIONS = ("3.11", "3.12", "3.13")
COMPANIONS = ("pytest-xdist", "pytest-random-order")
PAGES_NEED = (
    *("psycopg[binary]", "pytest-benchmark", "pytest-timeout", "tenacity", "freezegun"),
    *("hypothesis", "opentelemetry-sdk", "distributed"),
)
# Variables that change what Python or pytest does or prints.
UNWANTED = {
    *("PYTHONPATH", "PYTEST_ADDOPTS", "PYTEST_PLUGINS", "PYTEST_DISABLE_PLUGIN_AUTOLOAD"),
    *("CI", "BUILD_NUMBER", "NO_COLOR", "FORCE_COLOR", "PY_COLORS"),
}
PASSED = 14
WAYS = {
    "plain": [],
    "on two processes": ["-n", "2"],
    "in random order": ["-p", "random_order", "--random-order"],
    "strict": ["-W", "error", "--strict-markers", "--strict-config"],
}
BUGS = [
    r"EFFECT REPEATED: gateway\.charge\('A7', 19\.9\) ran 2x, undisturbed run 1x",
    r"fix    gateway\.charge\(\.\.\., key=self\.ctx\.key\(\"charge\"\)\)",
    r"^E .*\b1\.75\b",
    r"^E .*\b2\.15\b",
    r"charge \(task 0\.0, attempt 1\) of job \w+ is blocked: it has .* for 0\.2 s",
    r"  at .*test_bugs\.py:\d+: answered\.wait\(\)",
    r"  in threading\.Event\.wait\(\)",
    r"3 failed in ",
]


class Missed(Exception):
    """A command did not do what it should."""


def interpreter(version: str) -> str | None:
    """Return the path of a working Python of this version, from the usual places."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv", "versions")
    found = [
        sys.executable if sys.version.startswith(f"{version}.") else None,
        *(str(path) for path in sorted(pyenv.glob(f"{version}.*/bin/python"), reverse=True)),
        shutil.which(f"python{version}"),
    ]
    ask = "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"
    for path in filter(None, found):
        printed = subprocess.run([path, "-c", ask], capture_output=True, text=True, check=False)
        if printed.stdout.strip() == version:
            return path
    return None


def run(*command: str | Path, cwd: Path, expect: int = 0) -> str:
    """Run a command and return what it prints."""
    environment = {name: value for name, value in os.environ.items() if name not in UNWANTED}
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**environment, "COLUMNS": "100", "PYTHONIOENCODING": "utf-8"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        check=False,
    )
    if done.returncode != expect:
        shown = shlex.join(map(str, command))
        raise Missed(f"{shown}\nended with {done.returncode}, not {expect}:\n{done.stdout}")
    return done.stdout


def check(version: str, path: str, wheel: Path, folder: Path) -> list[str]:
    """Install the wheel for one Python and run everything; return what was done, a line each."""
    run(path, "-m", "venv", folder / "env", cwd=folder)
    python = folder / "env" / "bin" / "python"
    install = ("-m", "pip", "install", "--disable-pip-version-check", "--quiet", "--no-compile")
    run(python, *install, f"{wheel}[pytest]", *COMPANIONS, cwd=folder)
    shutil.copytree(HERE / "orderdesk", folder / "orderdesk")
    shutil.copytree(HERE / "checks", folder / "checks")
    pytest = (python, "-m", "pytest", "-p", "no:cacheprovider")
    done = []
    for way, options in WAYS.items():
        printed = run(*pytest, *options, cwd=folder / "orderdesk")
        if f" {PASSED} passed" not in f" {printed}":
            raise Missed(f"{version} {way}: not {PASSED} passed:\n{printed}")
        done.append(f"{way}: {PASSED} passed")
    run(*pytest, cwd=folder / "checks")
    bugs = run(
        *pytest,
        *("bugs", "-o", "routilux_blocked_after=0.2"),
        cwd=folder / "orderdesk",
        expect=1,
    )
    for pattern in BUGS:
        if not re.search(pattern, bugs, re.MULTILINE):
            raise Missed(f"{version}: the bugs' output has no {pattern}:\n{bugs}")
    [repro] = re.findall(r"^repro  python -m pytest (.*)$", bugs, re.MULTILINE)
    again = run(*pytest, *shlex.split(repro), cwd=folder / "orderdesk", expect=1)
    if "fails" not in again.partition("reproducer")[2]:
        raise Missed(f"{version}: {repro} does not say that it fails:\n{again}")
    return [*done, "3 bugs are reported, and one is reproduced"]


def check_pages(path: str, wheel: Path, folder: Path) -> list[str]:
    """Run every page of the documentation with the wheel; return what was done, a line each."""
    run(path, "-m", "venv", folder / "env", cwd=folder)
    programs = folder / "env" / "bin"
    install = ("-m", "pip", "install", "--disable-pip-version-check", "--quiet")
    run(programs / "python", *install, f"{wheel}[pytest]", *COMPANIONS, *PAGES_NEED, cwd=folder)

    def run_there(command: list[str], where: Path) -> tuple[int, str]:
        return run_process(command, where, environment(programs, where))

    pages, commands = all_pages(), 0
    for page in pages:
        with tempfile.TemporaryDirectory() as own:
            try:
                commands += run_page(page, Path(own), run_there)
            except Differs as differs:
                raise Missed(str(differs)) from None
    return [f"{len(pages)} pages of the documentation: {commands} commands and doctests"]


def main(wheel: Path) -> int:
    """Check with each Python there is; return how many failed, or 1 without any."""
    found = {version: interpreter(version) for version in VERSIONS}
    first = next((path for path in found.values() if path is not None), None)
    with tempfile.TemporaryDirectory() as folder:
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            runs = {}
            for version, path in found.items():
                if path is not None:
                    own = Path(folder, version)
                    own.mkdir()
                    runs[f"python {version}"] = threads.submit(check, version, path, wheel, own)
            if first is not None:
                own = Path(folder, "pages")
                own.mkdir()
                runs["documentation"] = threads.submit(check_pages, first, wheel, own)
        failed = 0
        for version in VERSIONS:
            if found[version] is None:
                print(f"python {version}: skipped, it is not on this machine")
        for name, future in runs.items():
            try:
                lines = future.result()
            except Missed as missed:
                failed += 1
                lines = [str(missed)]
            print(f"{name}:", *lines, sep="\n  ")
    return failed if runs else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
