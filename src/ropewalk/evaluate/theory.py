"""The theory of Position Interpolation in float64: bounds and the random fit of figure 2.

Legend: d head dimension, c base, theta_j = c^(-2j/d) for j = 0 .. d/2-1, s positional difference,
a(s) = Re sum_j h_j exp(i s theta_j) the attention score (PI, arXiv 2306.15595, eq. 3), h_j complex.
"""

import math

import numpy as np


def frequencies(dimension: int, base: float) -> np.ndarray:
    """Return theta_j = base^(-2j/dimension), float64 [dimension/2] (RoFormer, 2104.09864, eq. 15).

    Raises:
        ValueError: if the dimension is not even and positive or the base not above 1.
    """
    if dimension < 2 or dimension % 2 or base <= 1:
        raise ValueError(
            f"dimension {dimension} must be even and positive, and base {base} above 1"
        )
    return base ** (-np.arange(0, dimension, 2) / dimension)


def attention_score(h: np.ndarray, s: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Return a(s) = Re sum_j h_j exp(i s theta_j), float64 [n] for s [n] (PI, eq. 3)."""
    phase = np.multiply.outer(s, theta)
    return np.cos(phase) @ h.real - np.sin(phase) @ h.imag


def interpolation_error(
    h: np.ndarray, left: np.ndarray, fraction: np.ndarray, theta: np.ndarray
) -> np.ndarray:
    """Return |a(s) - a_linear(s)| at s = left + fraction, between grid points left and left + 1.

    a_linear joins the two grid points by a straight line (PI, eq. 6). Shapes [n].
    """
    straight = (1 - fraction) * attention_score(h, left, theta) + fraction * attention_score(
        h, left + 1, theta
    )
    return np.abs(attention_score(h, left + fraction, theta) - straight)


def printed_bound(fraction: np.ndarray, dimension: int, base: float) -> np.ndarray:
    """Return the bound of theorem 2.1 on a unit grid over max|h_j|, [n].

    d (s - s1)(s2 - s) / (8 ln c) (PI, eq. 5); at the middle d / (32 ln c) (eq. 7).
    """
    return dimension * fraction * (1 - fraction) / (8 * math.log(base))


def bound_coefficient(base: float) -> float:
    """Return 32 ln c, 294.73 for base 10000 (PI, eq. 7)."""
    return 32 * math.log(base)


def sound_coefficient(dimension: int, base: float) -> float:
    """Return x such that d max|h_j| / x bounds the error: 8 d / sum_j theta_j^2.

    The proof bounds |a''| by max|h_j| sum_j theta_j^2 (PI, eq. 12) and that sum by d / (4 ln c)
    with c^x <= 1 + x ln c for x < 0 (eq. 14). Convexity of c^x gives the opposite, so the sum is
    larger: 4.00 and not 3.47 for d = 128, c = 10000. This is what eq. 12 alone yields.
    """
    return 8 * dimension / float(np.sum(frequencies(dimension, base) ** 2))


def aligned_coefficients(left: float, theta: np.ndarray) -> np.ndarray:
    """Return the h_j, all of size 1, whose terms all bend the same way at left + 1/2.

    Each term is then cos((s - left - 1/2) theta_j): no h of this size has a larger error there.
    """
    return np.exp(-1j * (left + 0.5) * theta)


def extrapolation_sum(s: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Return B(s) = sum_{k=1}^{d/2} |sum_{j<k} exp(i s theta_j)|, float64 [n] for s [n].

    |a(s)| <= 2 max|h_j| B(s) (RoFormer, section 3.4.3; PI, eq. 8).
    """
    return np.abs(np.cumsum(np.exp(1j * np.multiply.outer(s, theta)), axis=-1)).sum(axis=-1)


def trigonometric_basis(s: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Return cos(s theta_j) and sin(s theta_j) side by side, float64 [n, d]."""
    phase = np.multiply.outer(s, theta)
    return np.concatenate([np.cos(phase), np.sin(phase)], axis=-1)


def least_squares(basis: np.ndarray, targets: np.ndarray, ridge: float = 0.0) -> np.ndarray:
    """Return the x that minimises |basis x - targets|^2 + ridge |x|^2, float64 [d].

    Solved by an SVD of the basis and not by normal equations, which would square its condition.
    In PI's figure 2 without ridge the slow frequencies are alike to within rounding, so singular
    values below n * epsilon of the largest are dropped; how large the fit grows outside the window
    depends on where they are cut. A ridge is rows of sqrt(ridge) on the diagonal with targets 0
    (Bjorck 1996, Numerical methods for least squares problems, ch. 2.7).
    """
    if ridge:
        size = basis.shape[1]
        basis = np.concatenate([basis, np.sqrt(ridge) * np.eye(size)])
        targets = np.concatenate([targets, np.zeros(size)])
    return np.linalg.lstsq(basis, targets, rcond=None)[0]
