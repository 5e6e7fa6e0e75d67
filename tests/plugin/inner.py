"""Runs pytest in a process of its own with our plugin, installed or not, and no others unasked.

The process is forked from a server, so that no run pays again for what the server has done. There
are two: the plain one has imported pytest and the engine, but neither our plugin nor anything of
the tests. The prepared one has also imported what the fixtures of our plugin import, and has
searched these modules as the first frozen test does. The commands of the documentation run in the
same way.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import multiprocessing.process
import os
import re
import runpy
import subprocess
import sys
import threading
from pathlib import Path
from textwrap import dedent
from time import perf_counter
from typing import Any, Final

import pytest
from _pytest.config import default_plugins

ROOT: Final = Path(__file__).parents[2]
PLUGIN: Final = ("-p", "pytest_routilux.plugin", "-p", "no:cacheprovider")
NAP: Final = """
    import asyncio, datetime, time, unittest
    import pytest
    from routilux import ExecutionMonitor, FakeClock, Flow
    from routilux.runtime import default_runtime
    from tests.routines import Works, chain, sleeps

    def nap():
        return chain(nap=sleeps(1.5))

    def is_virtual():
        return isinstance(default_runtime().clock, FakeClock)
"""
"""The start of an inner test module: a flow that sleeps for 1.5 s."""
_IMPORTED: Final = (
    *("asyncio", "freezegun", "pdb", "rich.console", "rich.table", "routilux"),
    *(f"_pytest.{name}" for name in default_plugins),
)
# Not the module `plugin`, which pytest imports itself, and not `report.run_facts`: it is imported
# as soon as a test uses a fixture.
_PREPARED: Final = (
    *("pytest_routilux.virtual_time.watchdog", "pytest_routilux.monitor.assertions"),
    *("pytest_routilux.handler_assertions", "pytest_routilux.sim.flow_sim"),
)
_servers: Final[dict[str, subprocess.Popen[str]]] = {}


def run_inside(pytester: pytest.Pytester, *args: str) -> pytest.RunResult:
    """Run the tests of `pytester`; warnings are errors there too."""
    return run_pytest(pytester, "-W", "error", *PLUGIN, *args)


def run_first(pytester: pytest.Pytester, *args: str) -> pytest.RunResult:
    """Do the same where our plugin has imported and searched nothing, as in a new session."""
    return run_pytest(pytester, "-W", "error", *PLUGIN, *args, server="plain")


def run_fresh(pytester: pytest.Pytester, *args: str) -> pytest.RunResult:
    """Do the same in a fresh interpreter, for tests that look at what was imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        patch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        return pytester.runpytest_subprocess("-W", "error", *PLUGIN, *args)


def run_pytest(pytester: pytest.Pytester, *args: str, server: str = "prepared") -> pytest.RunResult:
    """Run `pytest` with these arguments in the folder of `pytester`."""
    out, err = pytester.path / "stdout", pytester.path / "stderr"
    temporary = next(p for n in range(99) if not (p := pytester.path / f"runpytest-{n}").exists())
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    environment.pop("PYTEST_XDIST_WORKER", None)  # of the run that this test is in
    begun = perf_counter()
    command = ["pytest", f"--basetemp={temporary}", *args]
    ret = run_command(command, Path.cwd(), environment, out=out, err=err, server=server)
    lines = [path.read_text("utf-8").splitlines() for path in (out, err)]
    for stream, printed in zip((sys.stdout, sys.stderr), lines, strict=True):
        stream.writelines(f"{line}\n" for line in printed)
    return pytest.RunResult(ret, *lines, perf_counter() - begun)


def run_command(
    command: list[str],
    folder: Path,
    environment: dict[str, str],
    *,
    out: Path,
    err: Path,
    server: str = "plain",
) -> int:
    """Run `pytest …`, `python FILE …`, `python -m MODULE …` or `routilux …`; return its status.

    The environment is the whole one of the command, and needs PYTHONPATH.
    """
    return _asked(
        server,
        {
            "command": command,
            "folder": str(folder),
            "environment": environment,
            "out": str(out),
            "err": str(err),
        },
    )


def stop() -> None:
    """End the servers that were started."""
    while _servers:
        _, server = _servers.popitem()
        server.communicate()
        assert 0 == server.returncode


def _asked(name: str, request: dict[str, Any]) -> int:
    if name not in _servers:
        _servers[name] = subprocess.Popen(
            [sys.executable, __file__, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a Ctrl-C is for the tests, which then end it
        )
    server = _servers[name]
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    return int(server.stdout.readline())


def _serve(server: str) -> None:
    del sys.path[0]  # the folder of this file
    for name in _IMPORTED:
        importlib.import_module(name)
    if server == "prepared":
        for name in _PREPARED:
            importlib.import_module(name)
        from pytest_routilux.virtual_time import freeze

        freeze._patches._search_modules()
    gc.freeze()  # no child looks through what it has in common with the others
    requests, replies = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    for line in requests:
        pid = os.fork()
        if pid == 0:
            requests.close()
            replies.close()
            _end(_status(**json.loads(line)))
        replies.write(f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n")
        replies.flush()


def _status(
    command: list[str], folder: str, environment: dict[str, str], out: str, err: str
) -> int:
    """Run the command, and return its exit status."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    multiprocessing.process.ORIGINAL_DIR = folder  # where a spawned process looks for the script
    known = environment["PYTHONPATH"].split(os.pathsep)
    sys.path[:] = [folder, *filter(None, known), *(p for p in sys.path if p not in known)]
    for name, number in (out, 1), (err, 2):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND), number)
    try:
        _run(command)
    except SystemExit as end:
        if isinstance(end.code, str):
            raise  # the interpreter prints it
        return int(end.code or 0)
    return 0


def _run(command: list[str]) -> None:
    match command:
        case ["pytest" | "routilux" as module, *args]:
            pass
        case ["python", "-m", module, *args]:
            pass
        case ["python", script, *args]:
            sys.argv[:] = [script, *args]
            runpy.run_path(script, run_name="__main__")
            return
    sys.argv[:] = [module, *args]
    if module == "pytest":
        sys.exit(pytest.main())
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _end(status: int) -> None:
    """End as an interpreter does, but free nothing: that would copy the memory of the server."""
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def assert_golden(golden: str, lines: list[str]) -> None:
    """Assert that the lines of a golden text are among those printed, side by side.

    `⏱` in it is a length of real time, such as 0.21: the one thing that may differ.
    """
    wanted = dedent(golden).strip("\n").splitlines()
    patterns = [re.escape(line).replace("⏱", r"\d+\.\d\d") for line in wanted]
    for at in range(len(lines)):
        if re.fullmatch(patterns[0], lines[at]):
            found = lines[at : at + len(wanted)]
            if len(found) == len(wanted) and all(map(re.fullmatch, patterns, found)):
                return
    shown = "\n".join(lines)
    raise AssertionError("\n".join(["expected:", *wanted, "", "printed:", shown]))


if __name__ == "__main__":
    _serve(sys.argv[1])
