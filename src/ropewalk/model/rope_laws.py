"""The Scaling Laws of RoPE-based Extrapolation (Liu et al. 2024, arXiv 2310.05209) as formulas.

A model is pretrained with base b at `trained_tokens` and fine-tuned with another base at
`tuned_tokens`. Pair n = 0 ... d/2 - 1 of a head, dimensions 2n and 2n + 1, repeats itself after
2 pi base^(2n/d) tokens, its period. A pair that completed no period in pretraining meets values of
cosine and sine it never saw as soon as its angle goes further than it went; how soon a new base
makes it do so is the upper bound on the context.

Legend: d rotary dimensions of a head (even). Lengths and periods are in tokens.
"""

import math


def critical_dimension(dimension: int, base: float, tokens: float) -> int:
    """Return d_extra, the dimensions whose pairs complete a period within `tokens`: even, <= d.

    2 ceil(d/2 log_base(tokens / 2 pi)): 92 for d = 128, base 10000 and 4096 tokens. With the base
    and length of pretraining it is the paper's critical dimension; with those of tuning it is
    d'_extra, which counts where the base is not above the critical base.

    Raises:
        ValueError: see `period`; or if `tokens` is not above 2 pi, the period of the fastest pair.
    """
    _check_dimension(dimension)
    pairs = dimension / 2 * math.log(_turned(tokens, "tokens")) / math.log(_above_one(base, "base"))
    return min(2 * math.ceil(pairs), dimension)


def period(dimension: int, base: float, at: int) -> float:
    """Return 2 pi base^(at / d), the period in tokens of the pair whose first dimension is `at`.

    Raises:
        ValueError: if d is not even and positive, the base not above 1, or `at` no such dimension.
    """
    _check_dimension(dimension)
    if at not in range(0, dimension, 2):
        raise ValueError(f"dimension {at} is not the first of a pair below {dimension}")
    return 2 * math.pi * _above_one(base, "base") ** (at / dimension)


def critical_base(base: float, trained_tokens: float, tuned_tokens: float) -> float:
    """Return beta_0 = base^(log_(trained / 2 pi)(tuned / 2 pi)): 71,738 from 4096 to 16384 tokens.

    Above it no pair that pretraining left incomplete completes a period in tuning, and the base
    sets the bound on the context; up to it the bound is `tuned_tokens`.

    Raises:
        ValueError: if the base is not above 1, a length not above 2 pi, or tuning shorter than
            pretraining; or if beta_0 is too large for a float64.
    """
    trained = _turned(trained_tokens, "trained_tokens")
    tuned = _turned(tuned_tokens, "tuned_tokens")
    if tuned_tokens < trained_tokens:
        raise ValueError(
            f"tuned_tokens {tuned_tokens} is below trained_tokens {trained_tokens}: the law is for "
            "tuning at the pretraining length or a longer one"
        )
    return _power(_above_one(base, "base"), math.log(tuned) / math.log(trained))


def context_bound(
    new_base: float, *, dimension: int, base: float, trained_tokens: float, tuned_tokens: float
) -> float:
    """Return the longest context in tokens of a model tuned with `new_base`.

    T_extra = 2 pi new_base^(d_extra / d) above the critical base, else `tuned_tokens` (the extended
    law). The first is the period that the critical pair, the first to complete none in pretraining,
    has under the new base: 129,027 for base 1,000,000 after 10000 at 4096 with d = 128.

    Raises:
        ValueError: see `critical_base`, `critical_dimension`; or if every pair completed a period
            in pretraining: then the law sets no bound.
    """
    if _above_one(new_base, "new_base") <= critical_base(base, trained_tokens, tuned_tokens):
        return tuned_tokens
    return period(dimension, new_base, _critical_pair(dimension, base, trained_tokens))


def base_for(bound_tokens: float, *, dimension: int, base: float, trained_tokens: float) -> float:
    """Return the base whose T_extra is `bound_tokens`: (bound / 2 pi)^(d / d_extra).

    701,472 for 100,000 tokens after base 10000 at 4096 with d = 128. It is a bound only where it
    is above the critical base of the tuning (see `context_bound`).

    Raises:
        ValueError: see `context_bound`; or if `bound_tokens` is not above 2 pi, or the base too
            large for a float64.
    """
    critical = _critical_pair(dimension, base, trained_tokens)
    return _power(_turned(bound_tokens, "bound_tokens"), dimension / critical)


def small_bases(tuned_tokens: float) -> tuple[float, float, float]:
    """Return beta_1, beta_2, beta_3 = 2 T / pi, T / pi, T / (2 pi): 2608, 1304, 652 for T = 4096.

    Below them every pair turns by more than pi/2, pi and 2 pi within the T tokens of tuning: the
    cosines of all pairs go to 0, to -1, and through a whole period.

    Raises:
        ValueError: if `tuned_tokens` is not above 2 pi, where beta_3 would be no base.
    """
    turns = _turned(tuned_tokens, "tuned_tokens")
    return 4 * turns, 2 * turns, turns


def _critical_pair(dimension: int, base: float, trained_tokens: float) -> int:
    critical = critical_dimension(dimension, base, trained_tokens)
    if critical == dimension:
        raise ValueError(
            f"all {dimension} dimensions complete a period within trained_tokens {trained_tokens} "
            f"at base {base}: the law sets no bound"
        )
    return critical


def _power(number: float, exponent: float) -> float:
    try:
        return number**exponent
    except OverflowError:
        raise ValueError(
            f"the base {number:g}^{exponent:g} is too large: pretraining completed too few periods"
        ) from None


def _check_dimension(dimension: int) -> None:
    if dimension < 2 or dimension % 2:
        raise ValueError(f"dimension {dimension} must be even and positive")


def _above_one(base: float, name: str) -> float:
    if not 1 < base < math.inf:
        raise ValueError(f"{name} {base} must be above 1: else no pair is slower than another")
    return base


def _turned(tokens: float, name: str) -> float:
    """Return tokens / 2 pi, the periods of the fastest pair."""
    if not 2 * math.pi < tokens < math.inf:
        raise ValueError(f"{name} {tokens} must be above 2 pi, the period of the fastest pair")
    return tokens / (2 * math.pi)
