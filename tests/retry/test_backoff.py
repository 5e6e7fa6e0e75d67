"""Delays before retries: exact backoff, jitter, limits."""

from __future__ import annotations

import math
from datetime import timedelta
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routilux.retry.backoff import backoff_ns, half_even
from routilux.retry.error_handler import MAX_DELAY_NS, ErrorHandler
from tests.routines import SECOND, retrying

MS = 1_000_000

delays = st.one_of(st.integers(0, 10**6), st.floats(0, 1e6))
growths = st.one_of(st.integers(1, 10), st.floats(1, 10))
jitters = st.floats(0, 1)
draws = st.integers(0, 2**53 - 1)


def exact(delay: float, growth: float, retry: int) -> int:
    """The delay before a retry, from the decimal meaning of the arguments."""
    return round(Fraction(repr(delay)) * Fraction(repr(growth)) ** (retry - 1) * SECOND)


def test_a_half_is_rounded_to_the_even_neighbour():
    assert [0, 2, 2] == [half_even(n, 2) for n in (1, 3, 5)]


@given(
    st.one_of(
        st.tuples(delays, growths, st.integers(1, 120)),
        st.tuples(
            st.floats(0, 1e-6),
            st.sampled_from([1.0000001, 1 + 2**-52, 1.001]),
            st.integers(100, 1500),
        ),
    )
)
def test_a_delay_is_the_exact_fraction_rounded_half_even_and_capped(drawn):
    delay, growth, retry = drawn
    handler = retrying(retry_delay=delay, retry_backoff=growth)
    assert min(exact(delay, growth, retry), MAX_DELAY_NS) == handler.delay_ns(retry)


@given(
    delay=st.one_of(delays, st.sampled_from([2**22 * 1e-9, 5e-10, 2.5])),
    growth=st.one_of(growths, st.sampled_from([1.5, 1.25, 1.0000000000000002])),
    retry=st.integers(1, 60),
    digits=st.integers(7, 20),
)
def test_the_result_does_not_depend_on_the_precision_it_is_sought_with(
    delay, growth, retry, digits
):
    expected = min(exact(delay, growth, retry), MAX_DELAY_NS)
    assert expected == backoff_ns(delay, growth, retry, digits)


@pytest.mark.parametrize(
    ("delay", "growth", "retry", "expected"),
    [
        (0.3, 1.5, 4, 1_012_500_000),
        (1e-9, 1.5, 2, 2),  # 1.5 ns
        (1e-9, 2.5, 2, 2),  # 2.5 ns
        (3e-9, 1.5, 2, 4),  # 4.5 ns
        (5e-10, 3, 2, 2),  # 1.5 ns
        (2e9, 1.5, 2, 3 * 10**18),  # 95 years, just below the cap
        (0.004194304, 1.5, 24, 47_071_589_414),  # 47 071 589 413.5 ns, of 24 digits in the power
    ],
)
def test_a_tie_goes_to_the_even_nanosecond_and_the_cap_starts_at_a_hundred_years(
    delay, growth, retry, expected
):
    assert expected == exact(delay, growth, retry)
    assert expected == retrying(retry_delay=delay, retry_backoff=growth).delay_ns(retry)


@given(delay=delays, growth=growths, retry=st.integers(1, 10**9), further=st.integers(1, 10**9))
def test_delays_never_shrink(delay, growth, retry, further):
    handler = retrying(max_retries=None, retry_delay=delay, retry_backoff=growth)
    assert handler.delay_ns(retry) <= handler.delay_ns(retry + further) <= MAX_DELAY_NS


@pytest.mark.parametrize("growth", [1.0000001, 1.5, 2.0, 1e308])
def test_a_huge_retry_is_capped_at_a_hundred_years(growth):
    handler = retrying(max_retries=None, retry_backoff=growth)
    assert MAX_DELAY_NS == handler.delay_ns(10**9) == handler.delay_ns(10**18)
    assert timedelta(days=36_525) == handler.delay_before(10**9)


def test_slow_growth_at_a_huge_retry_equals_the_closed_form():
    # (1 + 2**-52)^n is 1 + n·2.2e-16 here, and the repr of the argument ends at 1e-16.
    handler = retrying(max_retries=None, retry_delay=1, retry_backoff=1.0000000000000002)
    assert round(math.exp(10**9 * 2e-16) * SECOND) == handler.delay_ns(10**9 + 1)


@given(
    delay=delays,
    growth=growths,
    jitter=jitters,
    cap=st.none() | delays,
    retry=st.integers(1, 60),
    draw=draws,
)
def test_jitter_spreads_the_delay_exactly_and_at_the_cap_only_shortens(
    delay, growth, jitter, cap, retry, draw
):
    options = {"retry_delay": delay, "retry_backoff": growth, "max_delay": cap}
    plain = retrying(**options).delay_ns(retry)
    ceiling = MAX_DELAY_NS
    if cap is not None:
        ceiling = min(round(Fraction(repr(cap)) * SECOND), ceiling)
    assert plain <= ceiling
    share = Fraction(repr(jitter))
    shortest, longest = plain * (1 - share), min(plain * (1 + share), Fraction(ceiling))
    expected = round(shortest + (longest - shortest) * Fraction(draw, 2**53))
    jittered = retrying(**options, jitter=jitter).delay_ns(retry, draw if jitter else None)
    assert expected == jittered
    assert math.floor(shortest) <= jittered <= math.ceil(longest)


@given(
    delay=st.floats(0.1, 1e6), growth=growths, jitter=st.floats(0.05, 1), retry=st.integers(1, 60)
)
def test_draws_that_differ_give_delays_that_differ_also_at_the_cap(delay, growth, jitter, retry):
    for cap in (delay, 1.5 * delay, None):
        options = {"retry_delay": delay, "retry_backoff": growth, "max_delay": cap}
        handler = retrying(**options, jitter=jitter)
        waits = [handler.delay_ns(retry, number * 2**46) for number in range(128)]
        assert len(set(waits)) == len(waits), "tasks that fail together are retried together"
        assert waits == sorted(waits)


def test_a_draw_changes_nothing_without_jitter_and_no_draw_means_no_jitter():
    assert SECOND == retrying().delay_ns(1, draw=0)
    assert SECOND == retrying(jitter=0.5).delay_ns(1)
    assert timedelta(seconds=1) == retrying(jitter=0.5).delay_before(1)
    assert timedelta(microseconds=2) == retrying(retry_delay=1.5e-6).delay_before(1)


def test_a_delay_stays_the_same_when_asked_in_any_order_and_past_the_cache():
    handler = retrying(max_retries=None, retry_delay=0.001, retry_backoff=1.001)
    backwards = {retry: handler.delay_ns(retry) for retry in range(2000, 0, -1)}
    fresh = retrying(max_retries=None, retry_delay=0.001, retry_backoff=1.001)
    assert backwards == {retry: fresh.delay_ns(retry) for retry in range(2000, 0, -1)}
    assert backwards == {retry: handler.delay_ns(retry) for retry in backwards}


@pytest.mark.parametrize(
    ("retry", "draw", "message"),
    [
        (0, None, "retry must be 1 or more, not 0"),
        (-1, None, "retry must be 1 or more, not -1"),
        (1, -1, "draw must be a 53-bit integer, not -1"),
        (1, 2**53, f"draw must be a 53-bit integer, not {2**53}"),
    ],
)
def test_a_retry_or_a_draw_out_of_range_is_refused(retry, draw, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        retrying(jitter=0.1).delay_ns(retry, draw)
    if draw is None:
        with pytest.raises(ValueError, match=f"^{message}$"):
            retrying().delay_before(retry)


def test_timeout_and_deadline_are_known_in_nanoseconds():
    assert 2_500 * MS == ErrorHandler(timeout=2.5).timeout_ns
    assert 100 * MS == retrying(deadline=0.1).deadline_ns
    assert ErrorHandler().timeout_ns is None
    assert ErrorHandler().deadline_ns is None
    assert MAX_DELAY_NS == ErrorHandler(timeout=1e300).timeout_ns
