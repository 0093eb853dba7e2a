"""Retrieval by distance: the trials to score, and what their scores say.

A trial is a sequence whose last tokens are the answer. It succeeds if every answer token is the
model's first choice given what stands before it. That is what greedy decoding with token equality
decides: by induction, greedy decoding emits the answer exactly if each of its tokens is the first
choice after the tokens before it. Teacher forcing needs one forward pass and no decoding. The two
may part where an angle depends on how many tokens are read (dynamic NTK) and the answer has more
than one: decoding reads its tokens one after the other.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from ropewalk.base.stage import StageError
from ropewalk.evaluate import intervals
from ropewalk.evaluate.fitting import Unfit
from ropewalk.evaluate.reach import grid, k_max
from ropewalk.evaluate.scorer import Scores
from ropewalk.evaluate.spans import Spans
from ropewalk.evaluate.spec import Passkey, RecallProbe

LABEL = "answers"  # of the spans


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
    dropped: tuple[str, ...] = ()  # these, in words

    @property
    def per_distance(self) -> int:
        """Return the trials at each distance."""
        return len(self.trials) // len(self.distances)

    @property
    def names(self) -> list[str]:
        """Return a name per trial: distance and number within it."""
        return [f"{t.distance}/{i % self.per_distance}" for i, t in enumerate(self.trials)]

    @property
    def spans(self) -> Spans:
        """Return one span per trial, scoring its answer; the last token of that is not read."""
        lengths = np.array([len(trial.ids) for trial in self.trials], dtype=np.int64)
        return Spans(
            document=np.arange(len(self.trials), dtype=np.int64),
            start=np.zeros(len(self.trials), dtype=np.int64),
            end=lengths - 1,
            scored_start=np.array([t.answer_start for t in self.trials], dtype=np.int64),
            scored_end=lengths,
            opening=np.zeros(len(self.trials), dtype=bool),
        )

    def ids(self, index: int) -> np.ndarray:
        """Return the tokens of one trial, int64."""
        return self.trials[index].ids

    def table(self, values: list[Any]) -> list[list[Any]]:
        """Return what was found for each trial in rows of one distance."""
        width = self.per_distance
        return [values[i : i + width] for i in range(0, len(values), width)]


def build(
    context_tokens: int,
    distances: int,
    trials: int,
    make: Callable[[int, int], Trial],
) -> Trials:
    """Build every trial of the grid; `make(distance, trial)` raises `Unfit` where it cannot exist.

    A distance is untestable if one of its trials cannot be built.

    Raises:
        StageError: if no distance can be tested.
    """
    built: list[Trial] = []
    tested: list[int] = []
    untestable: dict[int, str] = {}
    for distance in grid(context_tokens, distances):
        try:
            attempts = [make(distance, number) for number in range(trials)]
        except Unfit as error:
            untestable[distance] = f"distance {distance}: {error}"
        else:
            tested.append(distance)
            built += attempts
    if not tested:
        raise StageError(
            f"protocol.context_tokens {context_tokens} is too short: none of its "
            f"{len(untestable)} distances {list(untestable)} leaves room for the prompt "
            f"({next(iter(untestable.values()))})"
        )
    return Trials(
        context_tokens=context_tokens,
        trials=tuple(built),
        distances=tuple(tested),
        untestable=tuple(untestable),
        dropped=tuple(untestable.values()),
    )


def forced(scores: Scores, trials: Trials) -> list[bool]:
    """Return for each trial whether all tokens of its answer are first choices."""
    answers = np.array([len(trial.ids) - trial.answer_start for trial in trials.trials])
    hits = np.bincount(scores.document, weights=scores.hit, minlength=len(answers))
    return (hits == answers).tolist()


def successes(verdicts: list[bool], trials: Trials) -> list[int]:
    """Return the successes at every distance."""
    return [sum(row) for row in trials.table(verdicts)]


def summarise(
    verdicts: list[bool], trials: Trials, protocol: Passkey | RecallProbe, seed: int
) -> dict[str, Any]:
    """Return the numbers of one snapshot, as they stand in `result.json`.

    `verdicts` has a success or failure per trial. `reach_share` is the reach over the longest
    distance that could be tested: 1.0 says that nothing tested failed. `wilson` is the 95 %
    interval of the rate at every distance, `reach_interval` that of the reach (see `intervals`).
    """
    found = successes(verdicts, trials)
    counts = [trials.per_distance] * len(found)
    measured = (trials.distances, found, counts, protocol.threshold)
    reach = k_max(*measured)
    return {
        "context_tokens": trials.context_tokens,
        "distances": list(trials.distances),
        "untestable": list(trials.untestable),
        "trials": counts,
        "successes": found,
        "wilson": [
            list(dataclasses.astuple(intervals.wilson(n, of)))
            for n, of in zip(found, counts, strict=True)
        ],
        "accuracy": sum(found) / len(verdicts),
        "reach": reach,
        "reach_share": reach / trials.distances[-1],
        "reach_interval": dataclasses.asdict(intervals.reach(*measured, seed=seed)),
    }
