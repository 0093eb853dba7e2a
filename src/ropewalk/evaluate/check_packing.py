"""Check of packed windows: how often training attends over each distance (STRING, figure 1).

Beside the closed forms of `check_string` it says what a corpus, as it was packed, really holds.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from fractions import Fraction

import numpy as np

from ropewalk.data.frequency import concatenated, shares, uniform
from ropewalk.evaluate.findings import Findings, Series, series, thinned


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedFrequency:
    """Position frequency f of windows as they were packed, against full windows and each other."""

    points: int = 512  # of the series

    def run(self, packed: Mapping[str, np.ndarray]) -> Findings:
        """Compute shares of f, int64 [L] by label, and what longer windows add to it.

        `<label>_below_half`, `..._last_quarter` and `..._last_third` are shares of all distances
        (see `frequency.shares`), `<label>_tokens` is f(0). `<label>_linear` is the largest
        difference between f(i) / f(0) and (L - i) / L, that of full windows; `<label>_above_full`
        how many of the three tails i >= L/2, 2L/3, 3L/4 have a larger share than in full windows,
        which the theorem in `frequency` excludes.

        For every pair of labels, the first with the shorter windows, f of both per token:
        `<long>_below_<short>` is at how many distances the long windows have fewer pairs,
        `<long>_falls_<short>` at how many the ratio is below that of the distance before;
        `<long>_over_<short>_at_half` and `..._at_last_quarter` are the ratio at L/2 and 3L/4 of the
        short windows (0 where the short windows have no pair there).

        Raises:
            ValueError: if windows hold no token.
        """
        numbers: dict[str, float] = {}
        curves: dict[str, Series] = {}
        for label, f in packed.items():
            if not f[0]:
                raise ValueError(f"windows {label!r} hold no token")
            length = len(f)
            numbers |= {f"{label}_{name}": share for name, share in shares(f).items()}
            numbers[f"{label}_tokens"] = int(f[0])
            full = concatenated(1, length)
            numbers[f"{label}_linear"] = float(np.abs(f / f[0] - full / length).max())
            starts = [-(-length // 2), -(-2 * length // 3), -(-3 * length // 4)]
            numbers[f"{label}_above_full"] = sum(_tail(f, c) > _tail(full, c) for c in starts)
            curves[label] = _curve(f, self.points)
        for (short, a), (long, b) in itertools.permutations(packed.items(), 2):
            if len(a) < len(b):
                numbers |= _pair(f"{long}", f"{short}", b, a)
        longest = max(map(len, packed.values()))
        for name, form in (("full windows", concatenated), ("uniform lengths", uniform)):
            curves[name] = _curve(form(1, longest), self.points)
        return Findings(numbers=numbers, series=curves)


def _tail(f: np.ndarray, start: int) -> Fraction:
    """Return the exact share of distances i >= start."""
    return Fraction(int(f[start:].sum()), int(f.sum()))


def _pair(long: str, short: str, b: np.ndarray, a: np.ndarray) -> dict[str, float]:
    """Compare f of long windows, b, with that of short ones, a, exactly: in whole numbers."""
    held = [int(x) for x in a if x]  # f falls, so these are the first distances
    more = [int(x) for x in b[: len(held)]]
    fewer = sum(y * int(a[0]) < x * int(b[0]) for x, y in zip(held, more, strict=True))
    falls = sum(
        more[i] * held[i - 1] < more[i - 1] * held[i] for i in range(1, len(held))
    )  # b(i) / a(i) < b(i - 1) / a(i - 1)

    def ratio(i: int) -> float:
        return more[i] * int(a[0]) / (held[i] * int(b[0])) if i < len(held) else 0.0

    return {
        f"{long}_below_{short}": fewer,
        f"{long}_falls_{short}": falls,
        f"{long}_over_{short}_at_half": ratio(len(a) // 2),
        f"{long}_over_{short}_at_last_quarter": ratio(3 * len(a) // 4),
    }


def _curve(f: np.ndarray, points: int) -> Series:
    """Return f(i) / f(0): the share of tokens that see one i before them."""
    at = thinned(len(f), points)
    return series(at, f[at] / f[0])


CHECKS: Mapping[str, type[PackedFrequency]] = {"packed_frequency": PackedFrequency}
