"""What a check leaves behind, and what every check offers."""

import dataclasses
from collections.abc import Mapping
from typing import Protocol

import numpy as np

Series = dict[str, list[float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Findings:
    """What a check leaves: numbers for claims, series for figures."""

    numbers: Mapping[str, float]
    series: Mapping[str, Series]


class Check(Protocol):
    """What every check class offers."""

    def run(self) -> Findings:
        """Return the findings."""


def series(x: np.ndarray, y: np.ndarray) -> Series:
    """Return a curve as plain lists of equal length."""
    return {"x": x.tolist(), "y": y.tolist()}


def thinned(length: int, points: int) -> np.ndarray:
    """Return about `points` of the indices 0 ... length - 1, even in distance, int64; both ends."""
    return np.unique(np.linspace(0, length - 1, points).round().astype(np.int64))
