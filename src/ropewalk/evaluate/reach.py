"""Reach of a probe: the grid of distances, k_max of retrieval, effective length of copying."""

from collections.abc import Sequence

import numpy as np


def grid(context_tokens: int, distances: int) -> tuple[int, ...]:
    """Return the distances context * i / distances for i = 1, ..., whole tokens, rounded down."""
    return tuple(sorted({context_tokens * i // distances for i in range(1, distances + 1)} - {0}))


def reaches(
    distances: np.ndarray, successes: np.ndarray, trials: np.ndarray, threshold: float
) -> np.ndarray:
    """Return k_max of each row of `successes`, int64 [rows].

    `distances` [n] ascending, `successes` [rows, n], `trials` [n]. k_max is the largest distance k
    such that every k' <= k has a success rate of at least `threshold`; 0 if the smallest fails
    (PI, arXiv 2306.15595, section 3.3).
    """
    passed = np.cumprod(successes / trials >= threshold, axis=-1).sum(axis=-1)
    return np.concatenate([[0], distances])[passed]


def k_max(
    distances: Sequence[int], successes: Sequence[int], trials: Sequence[int], threshold: float
) -> int:
    """Return k_max of one probe in tokens, see `reaches`."""
    rows = reaches(
        np.asarray(distances, dtype=np.int64),
        np.asarray(successes)[None],
        np.asarray(trials),
        threshold,
    )
    return int(rows[0])


def effective_length(
    distances: Sequence[int], drops: np.ndarray, *, share: float, least_nats: float
) -> np.ndarray:
    """Return the effective length for each row of mean drops [rows, distances], int64 [rows].

    It is the largest distance such that there and at every shorter one the drop is at least `share`
    of the drop at the shortest; 0 where that one is not above `least_nats`.
    """
    shortest = drops[:, :1]
    reached = (drops >= share * shortest) & (shortest > least_nats)
    passed = np.cumprod(reached, axis=1).sum(axis=1)
    return np.concatenate([[0], np.asarray(distances, dtype=np.int64)])[passed]
