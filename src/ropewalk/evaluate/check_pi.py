"""Checks of Position Interpolation (arXiv 2306.15595): its two bounds and its figure 2."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from ropewalk.base.rng import generator
from ropewalk.evaluate import theory
from ropewalk.evaluate.findings import Check, Findings, Series, series


@dataclasses.dataclass(frozen=True, kw_only=True)
class InterpolationBound:
    """PI, theorem 2.1: linear interpolation of an attention score between whole positions."""

    dimension: int = 128
    base: float = 10000.0
    positions: int = 2048  # grid points are drawn from [0, positions)
    draws: int = 200  # random h, standard complex normal
    points: int = 512  # random s per draw
    seed: int = 0

    def __post_init__(self) -> None:
        theory.frequencies(self.dimension, self.base)

    def run(self) -> Findings:
        """Compare errors with the printed bound: for random h, and for the worst h there is.

        `largest_error_share` and `violations` are over the random h, the quantity of the paper.
        `aligned_error_share` is the error over the bound for the h that all bend the same way;
        above 1 it shows that the printed constant is not a bound for every h.
        """
        theta = theory.frequencies(self.dimension, self.base)
        largest = 0.0
        violations = 0
        fractions = np.linspace(0, 1, 33)
        envelope = np.zeros_like(fractions)
        for draw in range(self.draws):
            random = generator(self.seed, "interpolation bound", draw)
            h = random.normal(size=(2, len(theta)))
            h = h[0] + 1j * h[1]
            left = random.integers(0, self.positions, size=self.points).astype(np.float64)
            fraction = random.uniform(0.01, 0.99, size=self.points)
            bound = np.abs(h).max() * theory.printed_bound(fraction, self.dimension, self.base)
            share = theory.interpolation_error(h, left, fraction, theta) / bound
            largest = max(largest, float(share.max()))
            violations += int((share > 1).sum())
            curve = theory.interpolation_error(
                h, np.full_like(fractions, left[0]), fractions, theta
            )
            envelope = np.maximum(envelope, curve / np.abs(h).max())
        # Where the terms are aligned does not depend on the grid point: position 0 serves.
        worst = theory.aligned_coefficients(0.0, theta)
        aligned = theory.interpolation_error(worst, np.zeros_like(fractions), fractions, theta)
        bound = theory.printed_bound(fractions, self.dimension, self.base)
        middle = len(fractions) // 2
        return Findings(
            numbers={
                "bound_coefficient": theory.bound_coefficient(self.base),
                "largest_error_share": largest,
                "violations": violations,
                "comparisons": self.draws * self.points,
                "aligned_error_share": float(aligned[middle] / bound[middle]),
                "sound_coefficient": theory.sound_coefficient(self.dimension, self.base),
            },
            series={
                "bound": series(fractions, bound),
                "largest_error": series(fractions, envelope),
                "aligned_error": series(fractions, aligned),
            },
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExtrapolationBound:
    """PI, appendix B and figure 5: B(s)/d, the RoFormer bound on an attention score anywhere."""

    dimension: int = 128
    base: float = 10000.0
    positions: int = 4096  # s from 0 to positions - 1
    points: int = 256  # of the series, spaced evenly in log s

    def __post_init__(self) -> None:
        theory.frequencies(self.dimension, self.base)
        if self.positions < 2:
            raise ValueError(f"positions {self.positions} is below 2: s = 0 is left out")

    def run(self) -> Findings:
        """Compute B(s)/d at every whole s; the mean and the minimum are over s >= 1.

        `bound_ratio` is the smallest ratio of the extrapolation bound 2 B(s) max|h| to the
        interpolation bound d max|h| / (32 ln c); the paper prints its value for B(s) = d, which is
        `bound_ratio_at_d`, as about 600.
        """
        s = np.arange(self.positions, dtype=np.float64)
        theta = theory.frequencies(self.dimension, self.base)
        share = theory.extrapolation_sum(s, theta) / self.dimension
        coefficient = theory.bound_coefficient(self.base)
        numbers: dict[str, float] = {
            f"at_{at}": float(share[at]) for at in (1, 10, 100, 1000, 2048) if at < len(share)
        }
        numbers |= {
            "minimum": float(share[1:].min()),
            "minimum_at": int(share[1:].argmin()) + 1,
            "mean": float(share[1:].mean()),
            "bound_ratio_at_d": 2 * coefficient,
            "bound_ratio": 2 * coefficient * float(share[1:].min()),
        }
        shown = np.unique(np.geomspace(1, self.positions - 1, self.points).round().astype(int))
        return Findings(numbers=numbers, series={"b_over_d": series(s[shown], share[shown])})


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomFit:
    """PI, figure 2: a curve fitted to random scores inside a window, outside it and in between."""

    dimension: int = 128
    base: float = 10000.0
    positions: int = 2048  # the fit sees 0 .. positions - 1, outside is [positions, 2 positions)
    seeds: int = 5  # independent sets of targets
    ridge: float = 10.0  # of the regularised fit shown beside the plain one
    points: int = 512  # of the series over whole positions
    seed: int = 0

    def __post_init__(self) -> None:
        theory.frequencies(self.dimension, self.base)

    def run(self) -> Findings:
        """Fit `seeds` sets of standard-normal targets, plainly and with ridge.

        Each number is the least favourable one for the paper's statement: `in_range_max` and
        `interpolated_max` are the largest |a(s)| over all seeds, `out_of_range_max` is the smallest
        over the seeds of the largest |a(s)|, `ratio` the smallest of out-of-range over in-range,
        `interpolated_ratio` the largest of interpolated over in-range.
        With ridge the statement is that the curve stays comparable, so there it is the largest.
        Without ridge the size of `out_of_range_max` depends on rounding: only its direction holds.
        """
        theta = theory.frequencies(self.dimension, self.base)
        inside = np.arange(self.positions, dtype=np.float64)
        outside = inside + self.positions
        between = np.arange(25, 75, 0.125)
        places = {
            "in_range": theory.trigonometric_basis(inside, theta),
            "out_of_range": theory.trigonometric_basis(outside, theta),
            "interpolated": theory.trigonometric_basis(between, theta),
        }
        peaks: dict[tuple[str, str], list[float]] = {}
        curves: dict[str, Series] = {}
        x = {"in_range": inside, "out_of_range": outside, "interpolated": between}
        for draw in range(self.seeds):
            targets = generator(self.seed, "random fit", draw).normal(size=self.positions)
            for fit, ridge in (("", 0.0), ("ridge_", self.ridge)):
                solution = theory.least_squares(places["in_range"], targets, ridge)
                for place, basis in places.items():
                    curve = basis @ solution
                    peaks.setdefault((fit, place), []).append(float(np.abs(curve).max()))
                    if draw == 0:
                        step = 1 if place == "interpolated" else self._step
                        curves[fit + place] = series(x[place][::step], curve[::step])
            if draw == 0:
                curves["targets"] = series(inside[:: self._step], targets[:: self._step])
        numbers: dict[str, float] = {}
        for fit in ("", "ridge_"):
            ratios = np.divide(peaks[fit, "out_of_range"], peaks[fit, "in_range"])
            worst_outside = min if fit == "" else max
            numbers |= {
                f"{fit}in_range_max": max(peaks[fit, "in_range"]),
                f"{fit}interpolated_max": max(peaks[fit, "interpolated"]),
                f"{fit}out_of_range_max": worst_outside(peaks[fit, "out_of_range"]),
                f"{fit}ratio": float(worst_outside(ratios)),
                f"{fit}interpolated_ratio": float(
                    np.divide(peaks[fit, "interpolated"], peaks[fit, "in_range"]).max()
                ),
            }
        return Findings(numbers=numbers, series=curves)

    @property
    def _step(self) -> int:
        return max(1, self.positions // self.points)


CHECKS: Mapping[str, type[Check]] = {
    "pi_interpolation_bound": InterpolationBound,
    "pi_extrapolation_bound": ExtrapolationBound,
    "pi_random_fit": RandomFit,
}
