"""No damage of a store's file is silent; `make soak` tries many."""

from __future__ import annotations

import pytest

from tests.persist.damage import verdicts
from tests.soak import also


@pytest.mark.parametrize("count", also(150, 5000))
def test_no_damage_of_a_file_is_silent_and_each_error_is_typed(count):
    found = [*verdicts(count, seed=1)]
    assert [] == [each for each in found if each[2] not in ("named", "same")]
    assert {"named", "same"} == {verdict for _, _, verdict in found}
