"""Which relative distances a row's positions hold (PoSE, arXiv 2309.10400, figures 5 and 6).

A row covers distance d if two of its tokens lie d positions apart; p(d) is how likely that is.

Legend: T tokens of a row, Lt target_tokens, R = Lt - T the room for skips, d distance.
"""

import numpy as np

from ropewalk.model.spec import PosePositions

_FEW_RUNS = 16  # up to here marking intervals is quicker than a Fourier transform of Lt


def covered(positions: np.ndarray, target_tokens: int) -> np.ndarray:
    """Return which distances 0 ... Lt - 1 lie between two tokens of a row, bool [Lt].

    `positions` is int64 [T], strictly increasing and below `target_tokens`.
    """
    ends = np.append(np.flatnonzero(np.diff(positions) != 1), len(positions) - 1)
    last = positions[ends]
    first = positions[np.append(0, ends[:-1] + 1)]
    if len(first) > _FEW_RUNS:
        marks = np.zeros(2 * target_tokens)
        marks[positions] = 1
        pairs = np.fft.irfft(np.abs(np.fft.rfft(marks)) ** 2, len(marks))  # at every distance
        return pairs[:target_tokens] > 0.5
    found = np.zeros(target_tokens, dtype=bool)
    found[: (last - first).max() + 1] = True
    for near in range(len(first)):
        for far in range(near + 1, len(first)):
            found[first[far] - last[near] : last[far] - first[near] + 1] = True
    return found


def two_chunks(positions: PosePositions, tokens: int) -> np.ndarray:
    """Return p(d) of two chunks in closed form, float64 [Lt].

    A row covers d inside its longer chunk, d < max(l_0, T - l_0), or across the gap g = u_1 - u_0,
    g < d < g + T. Both are drawn apart, so p = 1 - (1 - P(inside)) (1 - P(across)). The gap is one
    of 0 ... R, each as likely as any other where u_0 = 0. Where u_0 is drawn evenly from 0 ... R
    and u_1 from u_0 ... R, each gap from 0 to R - u_0 has the chance 1 / ((R + 1) (R - u_0 + 1)),
    so that P(g) = (1 / (R + 1) + ... + 1 / (g + 1)) / (R + 1).

    Raises:
        ValueError: if the positions do not have two chunks, or a row cannot be placed.
    """
    room = positions.target_tokens - tokens
    if positions.chunks != 2 or tokens < 2 or room < 0:
        raise ValueError(
            f"the closed form is for 2 chunks in 2 ... {positions.target_tokens} tokens "
            f"(positions.target_tokens), not for {positions.chunks} in {tokens}"
        )
    if positions.first == "zero":
        gap = np.full(room + 1, 1 / (room + 1))
    else:
        gap = np.cumsum(1 / np.arange(room + 1, 0, -1))[::-1] / (room + 1)
    below = np.append(0.0, np.cumsum(gap))  # [g]: P(gap < g)
    distance = np.arange(positions.target_tokens)
    across = below[distance.clip(max=room + 1)] - below[(distance - tokens + 1).clip(0, room + 1)]
    half = positions.lengths == "short_first"
    first = np.arange(1, (tokens + 1) // 2 + 1 if half else tokens)
    longer = np.sort(np.maximum(first, tokens - first))
    inside = 1 - np.searchsorted(longer, distance, side="right") / len(longer)
    return 1 - (1 - inside) * (1 - across)


def scattered_far(tokens: int, target_tokens: int) -> np.ndarray:
    """Return p(d) of RandPos for Lt/2 <= d < Lt in closed form, float64 [Lt // 2].

    So far apart the pairs (i, i + d) have no position in common: m = Lt - d of them, and Lt - 2 m
    positions in none. Of the C(Lt, T) rows, sum_k C(m, k) 2^k C(Lt - 2 m, T - k) hold no whole
    pair: k pairs give one position each.
    """
    logs = np.append(0.0, np.cumsum(np.log(np.arange(1, target_tokens + 1))))  # [n]: ln n!

    def choose(n: int, k: np.ndarray) -> np.ndarray:
        return logs[n] - logs[k] - logs[n - k]

    distances = range(target_tokens - target_tokens // 2, target_tokens)
    chances = np.empty(len(distances))
    whole = choose(target_tokens, np.array(tokens))
    for index, distance in enumerate(distances):
        pairs = target_tokens - distance
        alone = target_tokens - 2 * pairs
        k = np.arange(max(0, tokens - alone), min(pairs, tokens) + 1)
        none = choose(pairs, k) + k * np.log(2) + choose(alone, tokens - k) - whole
        chances[index] = 1 - np.exp(none).sum()
    return chances
