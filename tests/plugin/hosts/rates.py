"""Saved forms for classes of others, as a project registers them: by its own functions, or not."""

from __future__ import annotations

from fractions import Fraction
from types import SimpleNamespace

from routilux import register_type


def _parts(rate: Fraction) -> list[int]:
    return [rate.numerator, rate.denominator]


def _rate(parts: list[int]) -> Fraction:
    return Fraction(*parts)


def _namespace(values: dict[str, object]) -> SimpleNamespace:
    return SimpleNamespace(**values)


register_type(Fraction, name="tests.rates.fraction", encode=_parts, decode=_rate)
# By functions of the standard library, which say nothing of who registers them.
register_type(SimpleNamespace, name="tests.rates.namespace", encode=vars, decode=_namespace)
