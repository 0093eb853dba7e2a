"""Position frequency: how often training attends over each relative distance.

An et al. 2024, "Why Does the Effective Context Length of LLMs Fall Short?" (arXiv 2410.18745),
figure 1 and equation 2: a segment of n tokens that attends to itself holds distance i exactly
max(n - i, 0) times, so that over all segments of a corpus

    f(i) = sum of max(n - i, 0),    0 <= i < L.

f(0) is the number of tokens. Only who attends to whom counts, not which tokens are targets. A
segment is what attention does not look out of: a piece of a document where packing keeps documents
apart, a whole window where it does not.

Theorem: of segments no longer than L, the share of distances at or above any c is at most that of
full windows, with equality only if all segments are full. (Of the distances in n tokens, the share
(n - c)(n - c + 1) / (n (n + 1)) is; it grows with n.) For the last third that is 1/9 + O(1/L).
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ropewalk.base.files import read_json

STATISTICS = "statistics.json"  # what stage `pack` leaves beside the index
_BLOCK = 1 << 22


def histogram(lengths: np.ndarray, longest: int) -> np.ndarray:
    """Return how many of `lengths`, each in [0, longest], have each length: int64 [longest + 1]."""
    counts = np.zeros(longest + 1, dtype=np.int64)
    for begin in range(0, len(lengths), _BLOCK):  # bincount makes an int64 copy of what it is given
        counts += np.bincount(lengths[begin : begin + _BLOCK], minlength=longest + 1)
    return counts


def position_frequency(counts: np.ndarray) -> np.ndarray:
    """Return f, int64 [L], of segments given as a histogram of their lengths, int64 [L + 1]."""
    at_least = np.cumsum(counts[:0:-1])  # segments of at least L, L - 1, ..., 1 tokens
    return np.cumsum(at_least)[::-1]


def packed(statistics: Path) -> np.ndarray:
    """Return f, int64 [L], of windows as they were packed, from the file of their statistics."""
    found = read_json(statistics)["total"]["position_frequency"]["f"]
    return np.asarray(found, dtype=np.int64)


def concatenated(windows: int, length_tokens: int) -> np.ndarray:
    """Return f of full windows, in closed form: windows * (L - i), linear in i; int64 [L]."""
    return windows * np.arange(length_tokens, 0, -1, dtype=np.int64)


def uniform(segments_of_each_length: int, length_tokens: int) -> np.ndarray:
    """Return f of equally many segments of 1, 2, ..., L tokens: (L - i)(L - i + 1) / 2 of each."""
    left = np.arange(length_tokens, 0, -1, dtype=np.int64)
    return segments_of_each_length * (left * (left + 1) // 2)


def shares(frequency: np.ndarray) -> Mapping[str, float]:
    """Return the shares of all distances that the paper's figure 1 is described by.

    `below_half`: i <= L/2, `last_quarter`: i >= 3L/4, `last_third`: i >= 2L/3. The paper has above
    0.8 and below 0.05 for the first two with document lengths of SlimPajama and L = 2048; full
    windows have 0.750 and 0.063, uniform lengths 0.875 and 0.016.
    """
    length = len(frequency)
    distance = np.arange(length)
    total = int(frequency.sum())
    chosen = {
        "below_half": 2 * distance <= length,
        "last_quarter": 4 * distance >= 3 * length,
        "last_third": 3 * distance >= 2 * length,
    }
    return {name: int(frequency[which].sum()) / total for name, which in chosen.items()}
