"""The Scaling Laws of RoPE-based Extrapolation against counting, bisection and 50 digits."""

import math
from collections.abc import Callable
from decimal import Decimal, getcontext, localcontext

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ropewalk.model import rope_laws

TWO_PI = 2 * Decimal("3.14159265358979323846264338327950288419716939937510582097494459")
LLAMA_2 = {"dimension": 128, "base": 10000.0, "trained_tokens": 4096}
dimensions = st.integers(1, 128).map(lambda pairs: 2 * pairs)
bases = st.integers(2, 2_000_000)
lengths = st.integers(7, 200_000)


def periods(dimension: int, base: float, digits: int = 50) -> list[Decimal]:
    """Return 2 pi base^(2n/d) of every pair from the definition, with many digits."""
    with localcontext() as context:
        context.prec = digits
        return [
            TWO_PI * Decimal(base) ** (Decimal(2 * n) / dimension) for n in range(dimension // 2)
        ]


def root(function: Callable[[float], float], low: float, high: float) -> float:
    """Return where a rising function crosses 0, by bisection."""
    assert function(low) < 0 < function(high)
    while high - low > 1e-14 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) < 0 else (low, middle)
    return low


@settings(deadline=None)
@given(dimensions, bases, lengths)
def test_critical_dimension_counts_completed_periods(
    dimension: int, base: int, tokens: int
) -> None:
    """Guards against a logarithm to another base, a floor for the ceiling, or no cap at d."""
    found = periods(dimension, base)
    assume(all(abs(period / tokens - 1) > Decimal("1e-12") for period in found))
    counted = 2 * sum(period <= tokens for period in found)
    assert rope_laws.critical_dimension(dimension, float(base), tokens) == counted


@settings(deadline=None)
@given(dimensions, bases, st.data())
def test_periods_are_those_of_the_definition(
    dimension: int, base: int, data: st.DataObject
) -> None:
    """Guards against the period of a neighbouring pair."""
    pair = data.draw(st.integers(0, dimension // 2 - 1))
    found = rope_laws.period(dimension, float(base), 2 * pair)
    assert found == pytest.approx(float(periods(dimension, base)[pair]), rel=1e-12)


def test_numbers_of_llama_2() -> None:
    """Guards against laws that are consistent and yet not those of the paper."""
    assert rope_laws.critical_dimension(128, 10000.0, 4096) == 92
    assert rope_laws.period(128, 10000.0, 90) == pytest.approx(4080, abs=0.5)
    assert rope_laws.period(128, 10000.0, 92) == pytest.approx(4712, abs=0.5)
    bounds = {40_000: 12_762, 80_000: 21_003, 120_000: 28_109, 600_000: 89_377, 1_000_000: 129_027}
    for base, printed in bounds.items():
        found = rope_laws.context_bound(base, **LLAMA_2, tuned_tokens=4096)
        assert found == pytest.approx(printed, abs=1)
    assert rope_laws.context_bound(10000.0, **LLAMA_2, tuned_tokens=4096) == 4096
    for tokens, printed in {8192: 26_784, 16384: 71_738, 32768: 192_144}.items():
        assert rope_laws.critical_base(10000.0, 4096, tokens) == pytest.approx(printed, abs=1)
    assert rope_laws.small_bases(4096) == pytest.approx((2608, 1304, 652), abs=0.5)
    assert rope_laws.base_for(100_000, **LLAMA_2) == pytest.approx(701_472, abs=1)
    assert rope_laws.base_for(2**20, **LLAMA_2) == pytest.approx(1.84e7, rel=5e-3)
    tuned = {500: 128, 652: 128, 1304: 116, 2608: 106}
    for base, printed in tuned.items():
        assert rope_laws.critical_dimension(128, base, 4096) == printed


@pytest.mark.parametrize(
    ("tokens", "dimension", "critical", "bounds", "small", "fourfold", "long"),
    [
        (128, 32, 12, (199, 471, 1117), (81, 41, 20), 124_807, 691_374),
        (128, 64, 22, (149, 329, 726), (81, 41, 20), 362_689, 691_374),
        (256, 32, 14, (353, 968, 2650), (163, 81, 41), 113_835, 313_145),
        (256, 64, 26, (265, 675, 1721), (163, 81, 41), 278_752, 313_145),
        (512, 64, 32, (628, 1987, 6283), (326, 163, 81), 106_243, 182_029),
    ],
)
def test_numbers_of_small_models(
    tokens: int,
    dimension: int,
    critical: int,
    bounds: tuple[int, ...],
    small: tuple[int, ...],
    fourfold: int,
    long: int,
) -> None:
    """Guards against a law that holds for 4096 tokens and 128 dimensions only."""
    given = {"dimension": dimension, "base": 10000.0, "trained_tokens": tokens}
    assert rope_laws.critical_dimension(dimension, 10000.0, tokens) == critical
    assert rope_laws.period(dimension, 10000.0, critical) == pytest.approx(bounds[0], abs=0.5)
    for base, printed in zip((1e5, 1e6), bounds[1:], strict=True):
        found = rope_laws.context_bound(base, **given, tuned_tokens=tokens)
        assert found == pytest.approx(printed, abs=0.5)
    assert rope_laws.small_bases(tokens) == pytest.approx(small, abs=0.5)
    assert rope_laws.base_for(4 * tokens, **given) == pytest.approx(fourfold, abs=0.5)
    assert rope_laws.critical_base(10000.0, tokens, 4 * tokens) == pytest.approx(long, abs=0.5)


# Below 12 tokens of pretraining a critical base can be too large for a float64.
@given(st.integers(2, 100_000), st.integers(12, 200_000), st.integers(0, 200_000))
def test_critical_base_gives_the_border_of_pretraining_the_tuned_period(
    base: int, trained: int, more: int
) -> None:
    """Guards against swapped lengths.

    A (fractional) dimension has the period `trained` under the old base; under the critical base it
    has the period `tuned`.
    """
    tuned = trained + more
    border = root(lambda x: 2 * math.pi * base**x - trained, 0.0, 40.0)
    found = rope_laws.critical_base(float(base), trained, tuned)
    assert 2 * math.pi * found**border == pytest.approx(tuned, rel=1e-9)


@settings(deadline=None)
@given(dimensions, st.integers(2, 100_000), st.integers(12, 200_000), st.integers(0, 50_000), bases)
def test_bound_is_the_period_of_the_first_incomplete_pair(
    dimension: int, base: int, trained: int, more: int, new_base: int
) -> None:
    """Guards against a bound from the last complete pair, and one below the tuned length."""
    old = periods(dimension, base)
    assume(all(abs(period / trained - 1) > Decimal("1e-12") for period in old))
    incomplete = [n for n, period in enumerate(old) if period > trained]
    arguments = {"dimension": dimension, "base": float(base), "trained_tokens": trained}
    tuned = trained + more
    critical = rope_laws.critical_base(float(base), trained, tuned)
    if new_base > critical and not incomplete:
        with pytest.raises(ValueError, match="the law sets no bound"):
            rope_laws.context_bound(float(new_base), **arguments, tuned_tokens=tuned)
        return
    found = rope_laws.context_bound(float(new_base), **arguments, tuned_tokens=tuned)
    if new_base > critical:
        assert found == pytest.approx(float(periods(dimension, new_base)[incomplete[0]]), rel=1e-9)
        assert found >= tuned * (1 - 1e-9)  # a larger base never costs context
    else:
        assert found == tuned


@given(st.integers(4097, 10_000_000))
def test_base_for_a_bound_has_that_bound(goal: int) -> None:
    """Guards against an exponent turned round: found again by bisection over the bound itself."""

    def bound(base: float) -> float:
        return float(TWO_PI) * math.exp(92 / 128 * math.log(base))

    expected = root(lambda base: bound(base) - goal, 2.0, 1e10)
    assert rope_laws.base_for(goal, **LLAMA_2) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("tokens", "dimension"), [(4096, 128), (256, 32), (512, 64)])
def test_small_bases_are_where_the_slowest_cosine_reaches_0_minus_1_and_1(
    tokens: int, dimension: int
) -> None:
    """Guards against pi where 2 pi belongs.

    In the limit of many pairs the slowest one turns by T / base; every pair of a model is faster.
    """
    beta_1, beta_2, beta_3 = rope_laws.small_bases(tokens)
    assert math.cos(tokens / beta_1) == pytest.approx(0, abs=1e-9)
    assert math.cos(tokens / beta_2) == pytest.approx(-1, abs=1e-9)
    assert math.cos(tokens / beta_3) == pytest.approx(1, abs=1e-9)
    turned = np.linspace(0, tokens, 10 * tokens)
    for base, quarters in ((beta_1, 1), (beta_2, 2), (beta_3, 4)):
        angle = turned[-1] / base
        assert angle == pytest.approx(quarters * math.pi / 2)  # and no whole turn more
        cosine = np.cos(turned * 2 * math.pi / float(periods(dimension, base)[-1]))
        assert cosine.min() < (0 if quarters == 1 else -0.999)
        if quarters == 4:
            assert (cosine[turned > tokens / 2]).max() > 0.999


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rope_laws.critical_dimension(128, 10000.0, 6), "tokens 6 must be above 2 pi"),
        (lambda: rope_laws.critical_dimension(127, 1e4, 64), "dimension 127 must be even"),
        (lambda: rope_laws.critical_dimension(0, 1e4, 64), "dimension 0 must be even and positive"),
        (lambda: rope_laws.critical_dimension(64, 1.0, 64), r"base 1\.0 must be above 1"),
        (lambda: rope_laws.critical_dimension(64, math.nan, 64), "base nan must be above 1"),
        (lambda: rope_laws.critical_dimension(64, math.inf, 64), "base inf must be above 1"),
        (lambda: rope_laws.critical_dimension(64, 1e4, math.inf), "tokens inf must be above 2 pi"),
        (lambda: rope_laws.period(64, 1e4, 64), "dimension 64 is not the first of a pair below 64"),
        (lambda: rope_laws.period(64, 1e4, 3), "dimension 3 is not the first of a pair"),
        (lambda: rope_laws.period(64, 0.5, 2), r"base 0\.5 must be above 1"),
        (lambda: rope_laws.critical_base(1e4, 4096, 4095), "tuned_tokens 4095 is below trained"),
        (lambda: rope_laws.critical_base(1e4, 6, 4096), "trained_tokens 6 must be above 2 pi"),
        (lambda: rope_laws.critical_base(1.0, 64, 64), r"base 1\.0 must be above 1"),
        (lambda: rope_laws.critical_base(1e4, 7, 10**5), r"10000\^\S+ is too large: pretraining"),
        (
            lambda: rope_laws.base_for(10**6, dimension=128, base=1e4, trained_tokens=7),
            r"\^64 is too large: pretraining completed too few periods",
        ),
        (lambda: rope_laws.small_bases(6.28), r"tuned_tokens 6\.28 must be above 2 pi"),
        (lambda: rope_laws.base_for(6, **LLAMA_2), "bound_tokens 6 must be above 2 pi"),
        (
            lambda: rope_laws.base_for(9000, dimension=64, base=500.0, trained_tokens=4096),
            r"all 64 dimensions .* within trained_tokens 4096 at base 500\.0",
        ),
        (
            lambda: rope_laws.context_bound(1.0, **LLAMA_2, tuned_tokens=4096),
            r"new_base 1\.0 must be above 1",
        ),
    ],
)
def test_what_the_laws_do_not_cover_is_refused(call: Callable[[], float], message: str) -> None:
    """Guards against a number where there is none: nan, a complex one, or the logarithm of 0."""
    with pytest.raises(ValueError, match=message):
        call()


def test_precision_of_this_file() -> None:
    """Guards the tests here: fewer digits would hide what they look for."""
    assert getcontext().prec >= 28
    assert float(TWO_PI) == 2 * math.pi
