"""The simulation finds changes of the engine's core, with no other test."""

from __future__ import annotations

import pytest

from tests.plugin.sim.mutants.core_mutants import MUTANTS, found_by_simulation
from tests.plugin.sim.mutants.flows import CASES, first_finding


@pytest.mark.parametrize("number", range(len(MUTANTS)), ids=lambda number: str(MUTANTS[number]))
def test_each_mutant_changes_one_place(number: int) -> None:
    assert MUTANTS[number].source != MUTANTS[number].path.read_text("utf-8")


@pytest.mark.soak
@pytest.mark.parametrize("number", range(len(MUTANTS)), ids=lambda number: str(MUTANTS[number]))
def test_the_simulation_finds_a_mutant_of_the_core(number: int) -> None:
    assert found_by_simulation(number)


@pytest.mark.soak
@pytest.mark.parametrize("name", [name for name, _ in CASES])
def test_the_simulation_finds_nothing_in_the_core_as_it_is(name: str) -> None:
    assert first_finding([case for case in CASES if case[0] == name]) is None
