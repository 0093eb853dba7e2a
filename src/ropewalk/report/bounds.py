"""The extrapolation bound: how far a model reads before its loss leaves that of its window.

Measured: the loss by position (`evaluate.curve`) is compared with the loss in the last half of the
window, and the bound is the first position where it is `EXCESS_NATS` above that, with straight
lines in the logarithm of the position between the centres of bins. Predicted: what the extended law
of arXiv 2310.05209 says of a run's own settings.

Both are in tokens. A curve that never rises so far has no bound among the positions that were read:
infinity here, "at least the longest" in what is shown.
"""

import math

import numpy as np

from ropewalk.model import rope_laws
from ropewalk.model.spec import BaseRope, PlainRope
from ropewalk.train.spec import Run

EXCESS_NATS = 0.5  # a perplexity 1.65 times that of the window


def last_half(edges: np.ndarray, context_tokens: int) -> np.ndarray:
    """Return which bins of a curve lie in the last half of a context, bool [bins].

    Bin i holds the positions [edges[i], edges[i + 1]); whole bins only.

    Raises:
        ValueError: if there is none: the curve has too few points, or ends before the context.
    """
    chosen = (edges[:-1] >= context_tokens // 2) & (edges[1:] <= context_tokens)
    if not chosen.any():
        raise ValueError(
            f"the curve has no bin from position {context_tokens // 2} to {context_tokens}: "
            "give its protocol more points"
        )
    return chosen


def measured(
    edges: np.ndarray, losses: np.ndarray, window_losses: np.ndarray, window_tokens: int
) -> np.ndarray:
    """Return the bound of every draw, float64 [draws]; infinite where there is none.

    `losses` [bins, draws] are means by bin, `window_losses` [draws] those in the last half of the
    window. Positions before that half are not looked at: there a model has read too little. A loss
    that is not a number counts as beyond the bound.
    """
    later = edges[:-1] >= window_tokens // 2
    places = np.log(np.sqrt(edges[:-1] * (edges[1:] - 1.0)))[later]
    excess = losses[later] - window_losses - EXCESS_NATS
    beyond = ~(excess < 0)
    first = beyond.argmax(axis=0)
    draws = np.arange(losses.shape[1])
    before = np.maximum(first - 1, 0)
    below, above = excess[before, draws], excess[first, draws]
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(first > 0, -below / (above - below), 0.0)
    share = np.where(np.isfinite(share), share, 0.0)
    crossed = np.exp(places[before] + share * (places[first] - places[before]))
    return np.where(beyond.any(axis=0), crossed, np.inf)


def predicted(run: Run) -> float | None:
    """Return the bound on the context of a run by the extended law (`rope_laws.context_bound`).

    None for a rope that is neither plain nor another base: the law says nothing of others.
    """
    shape = run.architecture
    rope = run.phases[-1].rope if run.phases else PlainRope()
    if not isinstance(rope, PlainRope | BaseRope):
        return None
    return rope_laws.context_bound(
        rope.base if isinstance(rope, BaseRope) else shape.rope_base,
        dimension=int(shape.head_dimension * shape.rotary_share),
        base=shape.rope_base,
        trained_tokens=shape.context_tokens,
        tuned_tokens=run.phases[-1].length_tokens if run.phases else shape.context_tokens,
    )


def rank_correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation of `a` [n] with each row of `b` [rows, n], float64 [rows].

    Equal numbers share the mean of their ranks; where all of one side are equal it is 0: no order
    was shown.
    """
    x, y = _ranks(a[None])[0], _ranks(b)
    x, y = x - x.mean(), y - y.mean(axis=1, keepdims=True)
    size = np.sqrt((x**2).sum() * (y**2).sum(axis=1))
    return np.divide(y @ x, size, out=np.zeros(len(y)), where=size > 0)


def _ranks(rows: np.ndarray) -> np.ndarray:
    """Return ranks within each row [rows, n], equal numbers sharing their mean, float64."""
    below = (rows[:, None, :] < rows[:, :, None]).sum(axis=2)
    same = (rows[:, None, :] == rows[:, :, None]).sum(axis=2)
    return below + (same - 1) / 2


def shown(bound: float, longest_tokens: int) -> float:
    """Return a bound as a number that can be shown: at least the longest position read."""
    return bound if math.isfinite(bound) else float(longest_tokens)
