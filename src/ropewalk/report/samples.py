"""Numbers and the samples they rest on: what an interval is drawn from."""

import dataclasses

import numpy as np
import numpy.typing as npt

from ropewalk.report import bounds
from ropewalk.report.measurements import Counted, PerRound, PerStep
from ropewalk.report.spec import Quantity


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerUnit:
    """Sums by unit of resampling, sorted by its name; the mean is `sum(sums) / sum(weights)`."""

    names: tuple[str, ...]
    sums: npt.NDArray[np.float64]  # [units], nats for losses, hits for accuracy, points for scores
    weights: npt.NDArray[np.float64]
    # [units], what the sums are over: scored tokens, words, bytes, samples, or weights of the mean
    unit: str = "document"

    @property
    def mean(self) -> float:
        """Return the mean over all units."""
        return float(self.sums.sum() / self.weights.sum())


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerDistance:
    """Retrieval trials, one row per distance between the key and the end of the prompt.

    Of a task that was asked at several lengths, one row per length of the prompt.
    """

    threshold: float  # share of trials that must succeed, for the reach
    distances: npt.NDArray[np.int64]  # [distances], tokens, ascending
    trials: npt.NDArray[np.int64]
    successes: npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerTrial:
    """Trials of a copy probe: how much less the second showing costs, the same at all distances."""

    distances: npt.NDArray[np.int64]  # [distances], tokens, ascending
    drops: npt.NDArray[np.float64]  # [distances, trials], nats per token
    share: float  # of the drop at the shortest distance that counts as copied
    least_nats: float  # that the drop at the shortest must exceed


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerPosition:
    """A curve by position with its documents, sorted by name, and the window a bound is of."""

    names: tuple[str, ...]
    edges: npt.NDArray[np.int64]  # [bins + 1], positions
    sums: npt.NDArray[np.float64]  # [bins, documents], nats
    counts: npt.NDArray[np.float64]  # [bins, documents], scored tokens
    window_tokens: int

    @property
    def arms(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return sums and counts of every bin and, last, of the last half of the window."""
        half = bounds.last_half(self.edges, self.window_tokens)
        return (
            np.vstack([self.sums, self.sums[half].sum(axis=0)]),
            np.vstack([self.counts, self.counts[half].sum(axis=0)]),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Between:
    """Two ends between which a number lies, because nothing was measured between two snapshots."""

    low: float
    high: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seen:
    """How often training shows every distance (see `ropewalk.data.frequency`)."""

    per_token: npt.NDArray[np.float64]  # [distances]: f(i) / f(0)
    tokens_per_step: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerSeed:
    """The same run trained with several seeds, each with its own number and sample."""

    each: tuple["Measured", ...]  # in the order of the seeds


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """A number and what it was computed from."""

    quantity: Quantity
    number: float  # in nats, perplexity, tokens, or a share; a mean over seeds, where several
    sample: (
        PerUnit
        | PerDistance
        | PerTrial
        | PerPosition
        | Between
        | PerRound
        | PerStep
        | Counted
        | PerSeed
    )

    @property
    def by_seed(self) -> tuple["Measured", ...]:
        """Return the number of every seed; of a run with one it is this one."""
        return self.sample.each if isinstance(self.sample, PerSeed) else (self,)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Missing:
    """Why there is no number. `broken` tells a result that cannot be read from one not made."""

    quantity: Quantity
    reason: str
    broken: bool = False
