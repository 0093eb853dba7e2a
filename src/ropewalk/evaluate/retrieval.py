"""Retrieval by distance: the trials to score, and what their scores say.

A trial is a sequence whose last tokens are the answer. It succeeds if every answer token is the
model's first choice given what stands before it. That is what greedy decoding with token equality
decides: by induction, greedy decoding emits the answer exactly if each of its tokens is the first
choice after the tokens before it. Teacher forcing needs one forward pass and no decoding.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from ropewalk.base.stage import StageError
from ropewalk.evaluate.reach import grid, k_max
from ropewalk.evaluate.scorer import Scores
from ropewalk.evaluate.windows import Spans


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """One prompt with its answer."""

    distance: int  # tokens from the first token of the key's first appearance to the prompt's end
    ids: np.ndarray  # int64 [context], prompt and answer
    answer_start: int  # index of the first answer token; the answer ends the sequence


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Trials:
    """All trials of a probe, in order of distance."""

    context_tokens: int
    trials: tuple[Trial, ...]
    distances: tuple[int, ...]  # that were built, ascending
    untestable: tuple[int, ...]  # distances of the grid that no prompt of this context can have

    @property
    def names(self) -> list[str]:
        """Return a name per trial: distance and number within it."""
        per_distance = len(self.trials) // len(self.distances)
        return [f"{t.distance}/{i % per_distance}" for i, t in enumerate(self.trials)]

    @property
    def spans(self) -> Spans:
        """Return one span per trial, scoring its answer."""
        lengths = np.array([len(trial.ids) for trial in self.trials], dtype=np.int64)
        return Spans(
            document=np.arange(len(self.trials), dtype=np.int64),
            start=np.zeros(len(self.trials), dtype=np.int64),
            end=lengths,
            scored_start=np.array([t.answer_start for t in self.trials], dtype=np.int64),
            scored_end=lengths,
        )


def build(
    context_tokens: int,
    distances: int,
    trials: int,
    make: Callable[[int, int], Trial | None],
) -> Trials:
    """Build every trial of the grid; `make(distance, trial)` gives None where it cannot exist.

    A distance is untestable if one of its trials cannot be built.

    Raises:
        StageError: if no distance can be tested.
    """
    built: list[Trial] = []
    tested: list[int] = []
    untestable: list[int] = []
    for distance in grid(context_tokens, distances):
        attempts: list[Trial] = []
        for number in range(trials):
            attempt = make(distance, number)
            if attempt is None:
                break
            attempts.append(attempt)
        if len(attempts) == trials:
            tested.append(distance)
            built += attempts
        else:
            untestable.append(distance)
    if not tested:
        raise StageError(
            f"protocol.context_tokens {context_tokens} is too short: none of its "
            f"{len(untestable)} distances {untestable} leaves room for the prompt"
        )
    return Trials(
        context_tokens=context_tokens,
        trials=tuple(built),
        distances=tuple(tested),
        untestable=tuple(untestable),
    )


def summarise(scores: Scores, trials: Trials, threshold: float) -> dict[str, Any]:
    """Return the numbers of one snapshot, as they stand in `result.json`.

    `reach_share` is the reach over the longest distance that could be tested: 1.0 says that nothing
    tested failed.
    """
    answer_tokens = np.bincount(scores.document, minlength=len(trials.trials))
    hits = np.bincount(scores.document, weights=scores.hit, minlength=len(trials.trials))
    success = (hits == answer_tokens).reshape(len(trials.distances), -1)
    successes = success.sum(axis=1)
    counts = np.full(len(trials.distances), success.shape[1])
    reach = k_max(trials.distances, successes.tolist(), counts.tolist(), threshold)
    return {
        "context_tokens": trials.context_tokens,
        "distances": list(trials.distances),
        "untestable": list(trials.untestable),
        "trials": counts.tolist(),
        "successes": successes.tolist(),
        "accuracy": float(success.mean()),
        "reach": reach,
        "reach_share": reach / trials.distances[-1],
    }
