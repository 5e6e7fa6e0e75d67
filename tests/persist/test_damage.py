"""No damage of a store's file is silent; `make soak` tries many."""

from __future__ import annotations

import pytest

from routilux import CorruptStateError, SqliteStore
from tests.persist.damage import verdicts
from tests.soak import also


@pytest.mark.parametrize("count", also(20, 2000))
def test_no_damage_of_a_file_is_silent_and_each_error_is_typed(count):
    found = [*verdicts(count, seed=1)]
    assert [] == [each for each in found if each[2] not in ("named", "same")]
    assert {"named", "same"} == {verdict for _, _, verdict in found}


def test_a_schema_that_is_no_utf_8_is_an_error_of_the_store(tmp_path):
    path = tmp_path / "jobs.db"
    SqliteStore(path).close()
    data = path.read_bytes()
    key = b"PRIMARY KEY (job, seq)"
    assert 1 == data.count(key)
    path.write_bytes(data.replace(key, b"PRIMARY KEY (job, se\xf1)"))
    with pytest.raises(CorruptStateError, match="is not a valid database"):
        SqliteStore(path)
