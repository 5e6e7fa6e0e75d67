"""The names of our classes in saved jobs outlive every move of their modules.

`saved-names.json` was written before the modules moved into folders, and is never made anew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import pytest

import routilux
from pytest_routilux.factory import FunctionRoutine
from routilux import ErrorInfo, SavedState

GOLDEN: Final = Path(__file__).parent / "golden" / "saved-names.json"
ERRORS: Final = {
    name: kind
    for name in routilux.__all__
    if isinstance(kind := getattr(routilux, name), type) and issubclass(kind, Exception)
}


def test_an_old_file_is_read_with_its_routine_its_exception_classes_and_its_error():
    saved = SavedState.read(GOLDEN)

    routine = saved.flow.routines["loads"]
    assert FunctionRoutine is type(routine)
    assert json.loads is routine.function.function
    assert {ValueError, *ERRORS.values()} >= set(routine.error_handler.retryable_exceptions)
    assert "routilux.StepLimitError" == saved.job.error.type


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_an_error_is_stored_under_its_public_name(name):
    error = ERRORS[name].__new__(ERRORS[name])
    assert f"routilux.{name}" == ErrorInfo.of(error).type
