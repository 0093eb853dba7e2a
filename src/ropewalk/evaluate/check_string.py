"""Check of STRING's position frequency (arXiv 2410.18745, figure 1): closed forms and a theorem."""

import dataclasses
from collections.abc import Iterator, Mapping
from fractions import Fraction

import numpy as np

from ropewalk.base.rng import generator
from ropewalk.data.frequency import concatenated, histogram, position_frequency, shares, uniform
from ropewalk.evaluate.findings import Check, Findings, series, thinned


@dataclasses.dataclass(frozen=True, kw_only=True)
class PositionFrequency:
    """How often training attends over each distance, with windows full or cut by documents."""

    length_tokens: int = 2048  # L
    corpora: int = 200  # random ones, for the theorem
    segments: int = 2000  # of a random corpus, at most
    masks: int = 50  # attention masks in which pairs are counted
    mask_tokens: int = 96
    points: int = 512  # of the series
    seed: int = 0

    def __post_init__(self) -> None:
        if self.length_tokens < 4:
            raise ValueError(f"length_tokens {self.length_tokens} is below 4: it has no quarters")

    def run(self) -> Findings:
        """Compute shares of full windows and of uniform lengths, and try to break the theorem.

        `<case>_below_half`, `..._last_quarter` and `..._last_third` are shares of all distances,
        for the cases `concatenated` and `uniform`; `<case>_difference` is the largest difference
        between the closed form and the frequency of such a corpus. `count_differences` is how many
        distances, over random masks, do not occur as often as the formula has it.

        The theorem says that no corpus has a larger share in the last third than full windows.
        `theorem_violations` counts random corpora that have, `theorem_largest_ratio` is the largest
        share over that of full windows among corpora that are not full, and `theorem_exceptions`
        counts lengths below L whose own share is not smaller. As the share of a corpus is a mean of
        those of its lengths, 0 exceptions prove the theorem for this L.

        `doubled_at_zero` is f(0) of windows of 2 L over f(0) of windows of L with as many tokens,
        `doubled_falls` at how many distances that ratio is below the one before.
        """
        length = self.length_tokens
        full = np.zeros(length + 1, dtype=np.int64)
        full[length] = 1
        each = np.ones(length + 1, dtype=np.int64)
        each[0] = 0
        closed = {"concatenated": concatenated(1, length), "uniform": uniform(1, length)}
        numbers: dict[str, float] = {}
        for (case, frequency), counts in zip(closed.items(), (full, each), strict=True):
            numbers |= {f"{case}_{name}": share for name, share in shares(frequency).items()}
            difference = np.abs(frequency - position_frequency(counts)).max()
            numbers[f"{case}_difference"] = int(difference)
        numbers["count_differences"] = self._count_differences()
        bound = _last_third(closed["concatenated"])
        found = [_last_third(f) for f in self._random_corpora()]
        numbers["theorem_violations"] = sum(share > bound for share in found)
        numbers["theorem_largest_ratio"] = float(
            max((share / bound for share in found if share != bound), default=Fraction(0))
        )
        numbers["theorem_exceptions"] = sum(
            _of_length(n, length) >= bound for n in range(1, length)
        )
        short, long = concatenated(2, length), concatenated(1, 2 * length)[:length]
        numbers["doubled_at_zero"] = float(long[0] / short[0])
        numbers["doubled_falls"] = int((long[1:] * short[:-1] < long[:-1] * short[1:]).sum())
        at = thinned(length, self.points)
        return Findings(
            numbers=numbers,
            series={case: series(at, f[at] / f[0]) for case, f in closed.items()},
        )

    def _random_corpora(self) -> Iterator[np.ndarray]:
        """Yield f of corpora from nearly all full to nearly all short: length L u^e, e random."""
        for corpus in range(self.corpora):
            random = generator(self.seed, "position frequency corpus", corpus)
            segments = int(random.integers(1, self.segments, endpoint=True))
            skew = random.choice([0.001, 0.01, 0.1, 1.0]) * random.uniform(0, 5)
            lengths = np.ceil(self.length_tokens * random.uniform(size=segments) ** skew)
            lengths = lengths.clip(1).astype(np.int64)
            yield position_frequency(histogram(lengths, self.length_tokens))

    def _count_differences(self) -> int:
        """Count the pairs of masks in which a query sees its own segment up to itself."""
        size, wrong = self.mask_tokens, 0
        place = np.arange(size)
        for index in range(self.masks):
            random = generator(self.seed, "position frequency mask", index)
            segment = np.cumsum(random.uniform(size=size) < random.uniform())
            mask = (segment[:, None] == segment) & (place[:, None] >= place)
            query, key = np.nonzero(mask)
            counted = np.bincount(query - key, minlength=size)
            lengths = np.unique(segment, return_counts=True)[1]
            wrong += int((counted != position_frequency(histogram(lengths, size))).sum())
        return wrong


def _last_third(frequency: np.ndarray) -> Fraction:
    """Return the exact share of distances i >= 2 L / 3."""
    far = 3 * np.arange(len(frequency)) >= 2 * len(frequency)
    return Fraction(int(frequency[far].sum()), int(frequency.sum()))


def _of_length(segment: int, length: int) -> Fraction:
    """Return the exact share of distances i >= 2 L / 3 within one segment."""
    beyond = max(segment - -(-2 * length // 3), 0)
    return Fraction(beyond * (beyond + 1), segment * (segment + 1))


CHECKS: Mapping[str, type[Check]] = {
    "position_frequency": PositionFrequency,
}
