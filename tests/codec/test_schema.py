"""Records: exactly the expected fields, of exactly the expected types."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routilux.codec import check_fields
from routilux.codec.schema import fits
from routilux.errors import CorruptStateError
from tests.routines import refused_at

RECORD: dict[str, Any] = {"seq": int, "error": (str, type(None)), "any": object}


def test_a_record_with_its_fields_is_returned_unchanged():
    record = {"seq": 1, "error": None, "any": [1]}
    assert check_fields(record, "$", RECORD, {}) is record
    assert check_fields({**record, "more": 2}, "$", RECORD, {"more": int, "less": int})


@pytest.mark.parametrize(
    ("data", "path", "reason"),
    [
        ([], "$.commits[2]", "is of type list, not a JSON object"),
        ({"seq": True, "error": "", "any": 1}, "$.commits[2].seq", "is of type bool, not int"),
        ({"seq": 1, "error": 1, "any": 1}, "$.commits[2].error", "not str or NoneType"),
        ({"seq": 1, "error": None}, "$.commits[2].any", "is missing"),
        ({"seq": 1, "error": "", "any": 1, "x y": 1}, '$.commits[2]["x y"]', "unknown field"),
        ({"seq": 1, "error": "", "any": 1, "more": ""}, "$.commits[2].more", "str, not int"),
        ({"seq": 1, "error": "", "any": 1, 5: ""}, "$.commits[2][5]", "unknown field"),
    ],
)
def test_a_record_that_is_not_as_expected_is_refused_with_the_path(data, path, reason):
    with refused_at(path, reason):
        check_fields(data, "$.commits[2]", RECORD, {"more": int})


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "seq": st.sampled_from([1, 1, True]),
            "error": st.sampled_from(["", "", 1]),
            "more": st.sampled_from([1, None]),
            "any": st.sampled_from([[1], ()]),
            "x": st.just(1),
        },
    )
)
def test_the_quick_check_of_a_record_agrees_with_the_check_field_by_field(data):
    required: dict[str, Any] = {"seq": int, "error": str}
    optional: dict[str, Any] = {"more": int, "any": list}
    fitting = (
        data.keys() >= required.keys()
        and data.keys() <= required.keys() | optional.keys()
        and all(type(value) is {**required, **optional}[name] for name, value in data.items())
    )
    assert fits(data, required, optional) is fitting
    with contextlib.nullcontext() if fitting else pytest.raises(CorruptStateError):
        check_fields(data, "$", required, optional)
