"""Checks of PoSE (arXiv 2309.10400): distances that an example covers, and what a step costs."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from ropewalk.base.rng import generator
from ropewalk.base.stage import StageError
from ropewalk.evaluate.coverage import covered, scattered_far, two_chunks
from ropewalk.evaluate.findings import Check, Findings, Series, series, thinned
from ropewalk.model.flops import attended_pairs, step_flops
from ropewalk.model.positions import position_ids
from ropewalk.model.spec import (
    Architecture,
    NaturalPositions,
    PosePositions,
    Positions,
    RandPosPositions,
)

Place = Callable[[Positions, int, list[np.random.Generator]], np.ndarray]  # see `position_ids`
LARGEST_DEVIATION = 8.0  # standard errors; sound draws stay below 5
GROUPS = (1, 8, 64)  # examples whose distances are put together
WINDOWS = (2, 4, 8)  # of the targets of figure 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class PoseCoverage:
    """How likely an example is to cover each relative distance, for several ways to place it."""

    target_tokens: int = 16384
    window_tokens: int = 2048
    draws: int = 4096  # examples drawn per way
    examples: int = 64_000  # of a whole training: 1000 steps of 64
    points: int = 512  # of the series over distances
    seed: int = 0

    def __post_init__(self) -> None:
        if not 3 <= self.window_tokens < self.target_tokens or self.target_tokens < 8:
            raise ValueError(
                f"window_tokens {self.window_tokens} must lie between 3 and target_tokens "
                f"{self.target_tokens} minus 1, and target_tokens be at least 8"
            )
        if self.draws < GROUPS[-1]:
            raise ValueError(f"draws {self.draws} is below {GROUPS[-1]}, the largest group")

    def run(self, place: Place = position_ids) -> Findings:
        """Draw examples with the sampler that training uses, and compare with closed forms.

        `place` is that sampler. Numbers in closed form are given only of rows that it draws.

        The ways are `two` and `three` chunks, two with the `short_first` rule of lengths, two with
        a `random_first` position (version 1 of the paper), and `randpos`. For each:
        `<way>_at_<k>_of_8` is how often an example covered distance k Lt / 8, `<way>_far_mean` the
        mean over distances from the window on, `<way>_share_after_<n>` the mean share of [0, Lt)
        that n examples cover together.

        With two chunks the same stand there in closed form as `<way>_exact_...`, and
        `<way>_exact_share_after_training` is the share that `examples` are expected to cover.
        `<way>_deviation` is the largest difference between draws and closed form over distances
        (RandPos: from Lt/2 on), in standard errors with one example added to the variance, which
        keeps distances that nearly never or nearly always occur comparable.
        `first_ratio_at_<k>_of_8` is how many times likelier a first position of 0 covers a far
        distance than a random one; `lengths_difference` the largest difference that the rule of
        lengths makes; `three_over_two` how many times likelier three chunks cover a distance from
        the window on than two.

        Raises:
            StageError: if rows as they are drawn do not cover distances as the closed form says.
        """
        target, window = self.target_tokens, self.window_tokens
        eighths = {k: k * target // 8 for k in range(1, 8)}
        shown = thinned(target, self.points)
        numbers: dict[str, float] = {}
        curves: dict[str, Series] = {}
        exact: dict[str, np.ndarray] = {}
        for way, positions in self._ways().items():
            found, together = self._drawn(way, positions, place)
            numbers |= {f"{way}_at_{k}_of_8": float(found[at]) for k, at in eighths.items()}
            numbers[f"{way}_far_mean"] = float(found[window:].mean())
            numbers |= {f"{way}_share_after_{n}": share for n, share in together.items()}
            curves[way] = series(shown, found[shown])
            if isinstance(positions, RandPosPositions):
                far = scattered_far(window, target)
                numbers[f"{way}_deviation"] = self._sound(way, found[-len(far) :], far)
            elif positions.chunks == 2:
                exact[way] = p = two_chunks(positions, window)
                numbers |= {f"{way}_exact_at_{k}_of_8": float(p[at]) for k, at in eighths.items()}
                numbers[f"{way}_exact_far_mean"] = float(p[window:].mean())
                for n, name in [*((n, str(n)) for n in GROUPS), (self.examples, "training")]:
                    numbers[f"{way}_exact_share_after_{name}"] = float((1 - (1 - p) ** n).mean())
                numbers[f"{way}_deviation"] = self._sound(way, found, p)
                curves[f"{way}_exact"] = series(shown, p[shown])
        numbers["three_over_two"] = numbers["three_far_mean"] / numbers["two_far_mean"]
        numbers["lengths_difference"] = float(np.abs(exact["two"] - exact["short_first"]).max())
        ratio = exact["two"] / exact["random_first"]
        numbers |= {f"first_ratio_at_{k}_of_8": float(ratio[at]) for k, at in eighths.items()}
        return Findings(numbers=numbers, series=curves)

    def _ways(self) -> dict[str, PosePositions | RandPosPositions]:
        target = self.target_tokens
        return {
            "two": PosePositions(target_tokens=target),
            "three": PosePositions(target_tokens=target, chunks=3),
            "short_first": PosePositions(target_tokens=target, lengths="short_first"),
            "random_first": PosePositions(target_tokens=target, first="random"),
            "randpos": RandPosPositions(target_tokens=target),
        }

    def _drawn(
        self, way: str, positions: PosePositions | RandPosPositions, place: Place
    ) -> tuple[np.ndarray, dict[int, float]]:
        """Return how often a distance was covered, float64 [Lt], and shares by size of group."""
        counts = np.zeros(self.target_tokens, dtype=np.int64)
        unions = {n: np.zeros(self.target_tokens, dtype=bool) for n in GROUPS}
        totals = dict.fromkeys(GROUPS, 0)
        for draw in range(self.draws):
            rng = generator(self.seed, f"pose coverage {way}", draw)
            ids = place(positions, self.window_tokens, [rng])[0]
            found = covered(ids, self.target_tokens)
            counts += found
            for n, union in unions.items():
                union |= found
                if (draw + 1) % n == 0:
                    totals[n] += int(union.sum())
                    union[:] = False
        shares = {n: totals[n] / (self.draws // n * self.target_tokens) for n in GROUPS}
        return counts / self.draws, shares

    def _sound(self, way: str, found: np.ndarray, p: np.ndarray) -> float:
        deviation = self._deviation(found, p)
        if deviation > LARGEST_DEVIATION:
            raise StageError(
                f"pose coverage, {way}: rows as training draws them cover some distance "
                f"{deviation:.0f} standard errors more or less often than the closed form says; at "
                f"most {LARGEST_DEVIATION:g} can be chance: positions are not placed as they should"
            )
        return deviation

    def _deviation(self, found: np.ndarray, p: np.ndarray) -> float:
        error = np.sqrt(self.draws * p * (1 - p) + 1) / self.draws
        return float((np.abs(found - p) / error).max())


@dataclasses.dataclass(frozen=True, kw_only=True)
class PoseCost:
    """What a step of training computes, for targets of 2, 4 and 8 windows (figure 3).

    The defaults are LLaMA-7B and the paper's batch there.
    """

    layers: int = 32
    hidden: int = 4096
    heads: int = 32
    ffn: int = 11008
    vocabulary_size: int = 32000
    window_tokens: int = 2048
    sequences: int = 16  # of a step
    seed: int = 0

    def run(self, place: Place = position_ids) -> Findings:
        """Count the matrix products of a step, `flops.step_flops`, from the rows it reads.

        `place` gives the positions of a row, and so its tokens.
        `pose_at_<n>x` and `full_at_<n>x` are FLOPs of a step with a target of n windows, of PoSE
        and of full-length training; `pose_growth` and `full_growth` those at 8 windows over those
        at 2; `full_over_pose` full-length training over PoSE at 8. Recomputed activations and what
        is bound by memory are not counted.
        """
        flops: dict[str, dict[int, int]] = {"pose": {}, "full": {}}
        for windows in WINDOWS:
            target = windows * self.window_tokens
            pose = PosePositions(target_tokens=target)
            flops["pose"][windows] = self._step(pose, self.window_tokens, place)
            flops["full"][windows] = self._step(NaturalPositions(), target, place)
        numbers = {
            f"{method}_at_{windows}x": float(count)
            for method, counts in flops.items()
            for windows, count in counts.items()
        }
        first, last = WINDOWS[0], WINDOWS[-1]
        numbers |= {f"{m}_growth": counts[last] / counts[first] for m, counts in flops.items()}
        numbers["full_over_pose"] = flops["full"][last] / flops["pose"][last]
        targets = self.window_tokens * np.array(WINDOWS)
        curves = {m: series(targets, np.array(list(c.values()))) for m, c in flops.items()}
        return Findings(numbers=numbers, series=curves)

    def _step(self, positions: Positions, tokens: int, place: Place) -> int:
        """Return the FLOPs of a step whose rows have `tokens` tokens; a row is one document."""
        rngs = [generator(self.seed, "pose cost", row) for row in range(self.sequences)]
        rows = [len(place(positions, tokens, [rng])[0]) for rng in rngs]
        architecture = Architecture(
            layers=self.layers,
            hidden=self.hidden,
            heads=self.heads,
            ffn=self.ffn,
            vocabulary_size=self.vocabulary_size,
            context_tokens=self.window_tokens,
        )
        pairs = attended_pairs((0, row) for row in rows)
        return step_flops(architecture, tokens=sum(rows), pairs=pairs)


CHECKS: Mapping[str, type[Check]] = {
    "pose_coverage": PoseCoverage,
    "pose_cost": PoseCost,
}
