"""Check of the Scaling Laws of RoPE-based Extrapolation (arXiv 2310.05209): what they predict.

Each formula is set beside what it is about, read from the frequencies that models are given.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from ropewalk.evaluate.findings import Check, Findings, Series, series
from ropewalk.model import rope_laws
from ropewalk.model.rope import inverse_frequencies
from ropewalk.model.spec import Architecture, BaseRope

LARGER_BASES = (20_000, 40_000, 80_000, 120_000, 600_000, 1_000_000)
MULTIPLES = (4, 16, 256)  # of the pretraining length, to which bases are found
SMALLEST = 500 / 4096  # the paper's smallest base over its tuning length


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeBounds:
    """Critical dimension and bases, and the bound on the context for a range of bases."""

    dimension: int = 128  # rotary dimensions of a head
    base: float = 10000.0  # of pretraining
    trained_tokens: int = 4096  # pretraining length, which is the first of two tuning lengths
    tuned_tokens: int = 16384  # the longer tuning length
    goal_tokens: int = 100_000  # a context to find the base of
    points: int = 128  # of the series over bases

    def __post_init__(self) -> None:
        if self.trained_tokens * SMALLEST <= 1:
            raise ValueError(f"trained_tokens {self.trained_tokens} leaves no base above 1 to test")
        rope_laws.critical_base(self.base, self.trained_tokens, self.tuned_tokens)
        self._base_for(self.goal_tokens)

    def run(self) -> Findings:
        """Compute the laws' numbers, and count and measure what they stand for.

        `counted_dimensions` is how many dimensions complete a period within the pretraining length,
        counted over frequencies, and `counted_difference` the largest difference between such a
        count and the formula, over the bases and tuning lengths used here. `period_difference` is
        the largest relative difference, over the larger bases, between T_extra and the period of
        the first pair that completed none in pretraining, under the new base.

        `bound_<base>` and `bound_<base>_long` are the bounds after tuning at the pretraining length
        and at the longer one, for the larger bases that are above that of pretraining.
        `beta_<n>` and `beta_<n>_long` are critical bases likewise, `trained_dimensions_...` how
        many dimensions tuning at the pretraining length brings to a whole period under a small
        base, and `slowest_angle_beta_<n>` how far in radians its slowest pair really turns.
        """
        periods = self._periods(self.base)
        critical = rope_laws.critical_dimension(self.dimension, self.base, self.trained_tokens)
        complete = periods <= self.trained_tokens
        counted = 2 * int(complete.sum())
        numbers: dict[str, float] = {
            "critical_dimension": critical,
            "counted_dimensions": counted,
            "untrained_dimensions": self.dimension - critical,
            "last_complete_period": float(periods[complete].max()),
            "first_incomplete_period": float(periods[~complete].min()),
        }
        larger = [base for base in LARGER_BASES if base > self.base]
        numbers |= self._bounds(larger) | self._critical_bases()
        betas = rope_laws.small_bases(self.trained_tokens)
        smaller = dict(zip(("beta_1", "beta_2", "beta_3"), betas, strict=True))
        smaller["smallest"] = numbers["smallest_base"] = SMALLEST * self.trained_tokens
        numbers |= self._trained(smaller)
        numbers["counted_difference"] = self._counted_difference([*larger, *smaller.values()])
        measured = {base: float(self._periods(base)[counted // 2]) for base in larger}
        numbers["period_difference"] = max(
            (abs(numbers[f"bound_{base}"] / measured[base] - 1) for base in larger), default=0.0
        )
        return Findings(numbers=numbers, series=self._series(periods))

    def _bounds(self, bases: list[int]) -> dict[str, float]:
        numbers = {f"bound_{base}": self._bound(base, self.trained_tokens) for base in bases}
        numbers |= {f"bound_{base}_long": self._bound(base, self.tuned_tokens) for base in bases}
        numbers["base_for_goal"] = self._base_for(self.goal_tokens)
        for multiple in MULTIPLES:
            numbers[f"base_for_{multiple}x"] = self._base_for(multiple * self.trained_tokens)
        return numbers

    def _critical_bases(self) -> dict[str, float]:
        numbers: dict[str, float] = {}
        for ending, tokens in (("", self.trained_tokens), ("_long", self.tuned_tokens)):
            critical = rope_laws.critical_base(self.base, self.trained_tokens, tokens)
            small = rope_laws.small_bases(tokens)
            numbers |= {f"beta_{n}{ending}": value for n, value in enumerate((critical, *small))}
        return numbers

    def _trained(self, bases: dict[str, float]) -> dict[str, float]:
        numbers: dict[str, float] = {}
        for name, base in bases.items():
            found = rope_laws.critical_dimension(self.dimension, base, self.trained_tokens)
            slowest = 2 * math.pi * self.trained_tokens / self._periods(base)[-1]
            numbers[f"trained_dimensions_{name}"] = found
            numbers[f"slowest_angle_{name}"] = float(slowest)
        return numbers

    def _counted_difference(self, bases: list[float]) -> float:
        """Return the largest |formula - count| of dimensions, over bases and tuning lengths."""
        return max(
            abs(
                rope_laws.critical_dimension(self.dimension, base, tokens)
                - 2 * int((self._periods(base) <= tokens).sum())
            )
            for base in [self.base, *bases]
            for tokens in (self.trained_tokens, self.tuned_tokens)
        )

    def _series(self, periods: np.ndarray) -> dict[str, Series]:
        """Return periods by dimension and, by base, bounds and dimensions that tuning completes."""
        smallest = SMALLEST * self.trained_tokens
        largest = max(LARGER_BASES[-1], 100 * self.base)
        bases = np.geomspace(smallest, largest, self.points)
        curves = {"period": series(np.arange(0, self.dimension, 2), periods)}
        for ending, tokens in (("", self.trained_tokens), ("_long", self.tuned_tokens)):
            bounds = [self._bound(base, tokens) for base in bases]
            trained = [rope_laws.critical_dimension(self.dimension, b, tokens) for b in bases]
            curves[f"bound{ending}"] = series(bases, np.array(bounds))
            curves[f"trained_dimensions{ending}"] = series(bases, np.array(trained))
        return curves

    def _bound(self, base: float, tuned_tokens: int) -> float:
        return rope_laws.context_bound(
            float(base),
            dimension=self.dimension,
            base=self.base,
            trained_tokens=self.trained_tokens,
            tuned_tokens=tuned_tokens,
        )

    def _base_for(self, bound_tokens: int) -> float:
        return rope_laws.base_for(
            bound_tokens,
            dimension=self.dimension,
            base=self.base,
            trained_tokens=self.trained_tokens,
        )

    def _periods(self, base: float) -> np.ndarray:
        """Return the period in tokens of every pair of a model with this base, float64 [d/2]."""
        architecture = Architecture(
            layers=1,
            hidden=self.dimension,
            heads=1,
            ffn=1,
            vocabulary_size=1,
            context_tokens=self.trained_tokens,
            rope_base=self.base,
        )
        return 2 * math.pi / inverse_frequencies(architecture, BaseRope(base=base))


CHECKS: Mapping[str, type[Check]] = {
    "rope_bounds": RopeBounds,
}
