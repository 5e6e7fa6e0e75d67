"""Runs a case in new Python processes with different hash seeds.

Invariants:
- A fresh interpreter has no patch, no double and no closure of a test: only a `build` that can be
  imported by its name runs there, without faults and without `fresh`.
- A case that can't run there is reported with the reason, and is no finding.
"""

from __future__ import annotations

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_routilux.frames import object_named
from pytest_routilux.hosts.flow_hosts import FlowHosts, HostError
from pytest_routilux.sim.recovery import run_undisturbed
from pytest_routilux.sim.simulator.model import Case
from pytest_routilux.virtual_time.freeze import frozen_simulation
from routilux import UnserializableError, codec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from routilux import Flow


def importable(case: Case) -> bool:
    """Return whether a new Python process can run `case`."""
    name = getattr(case.build, "__qualname__", "")
    found = object_named(f"{case.build.__module__}:{name}")
    return found is case.build and not case.faults and case.fresh is None


def rows_by_seed(case: Case, start_ns: int, seeds: Sequence[int]) -> list[list[str]] | str:
    """Return a list of commits per hash seed, or an error text."""
    try:
        params = codec.encode(dict(case.params or {}), "$.params")
    except UnserializableError as error:
        return str(error)
    module = case.build.__module__
    request = {
        "task": "call",
        "function": f"{__name__}:{simulate.__name__}",
        "build": f"{module}:{case.build.__qualname__}",
        "build_args": codec.encode({}, "$.build_args"),
        "entry": case.entry,
        "params": params,
        "slot": case.slot,
        "job_id": case.job_id,
        "start_ns": start_ns,
        "zone": os.environ.get("TZ", "UTC"),  # of virtual time
    }
    with (
        tempfile.TemporaryDirectory() as folder,
        FlowHosts(Path(folder)) as hosts,
        ThreadPoolExecutor(len(seeds)) as pool,
    ):
        launched = [
            pool.submit(hosts.launch, request, [module, __name__], {"PYTHONHASHSEED": str(seed)})
            for seed in seeds
        ]
        try:
            return [list(each.result().report["rows"]) for each in launched]
        except HostError as error:
            return str(error)


def simulate(build: Callable[[], Flow], request: Mapping[str, Any]) -> dict[str, object]:
    """Run the case in `request`, and return the commits as rows."""
    start_ns = request["start_ns"]
    params = codec.decode(request["params"], "$.params")
    case = Case(build, request["entry"], params, request["slot"], request["job_id"])
    with frozen_simulation(start_ns, zone=request["zone"]):
        run = run_undisturbed(case, start_ns)
    return {"rows": [commit.dumps() for commit in run.world.commits]}
