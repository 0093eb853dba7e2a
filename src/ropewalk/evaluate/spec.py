"""What the evaluation room can be asked for. Contexts are labelled 1x, 2x, ... of the window."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from ropewalk.base.canonical import EXECUTION
from ropewalk.model.spec import Numerics


def _shortest(contexts: Mapping[str, int]) -> int:
    if not contexts:
        raise ValueError("contexts is empty: name at least one label with its tokens")
    return min(contexts.values())


@dataclasses.dataclass(frozen=True, kw_only=True)
class SameTokens:
    """Loss on the same target tokens at every context: one forward per document and context.

    Each document gives the stretch of max(contexts) tokens after its first one. At context L the
    model reads its last L tokens, and the last `scored_tokens` of them are scored. So a difference
    between contexts is the effect of the context, never of other targets.
    """

    kind: Literal["same_tokens"] = "same_tokens"
    contexts: Mapping[str, int]  # label -> tokens read
    scored_tokens: int
    documents: int  # documents with more than max(contexts) tokens; fewer is an error

    def __post_init__(self) -> None:
        shortest = _shortest(self.contexts)
        if not 0 < self.scored_tokens < shortest:
            raise ValueError(
                f"scored_tokens {self.scored_tokens} must lie between 1 and the shortest context "
                f"{shortest} minus 1"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlidingWindow:
    """Sliding-window perplexity (Press et al.; used by PI).

    The first window is scored whole, each later one, `stride_tokens` further on, only on its last
    `stride_tokens` tokens.
    """

    kind: Literal["sliding_window"] = "sliding_window"
    contexts: Mapping[str, int]  # label -> window
    stride_tokens: int
    documents: int  # the first ones, in corpus order
    minimum_tokens: int = 0  # shorter documents are left out
    cut_tokens: int | None = None  # documents are cut to this length

    def __post_init__(self) -> None:
        shortest = _shortest(self.contexts)
        if not 0 < self.stride_tokens < shortest:
            raise ValueError(
                f"stride_tokens {self.stride_tokens} must lie between 1 and the shortest context "
                f"{shortest} minus 1 (nothing predicts the first token of a window)"
            )
        if self.cut_tokens is not None and self.cut_tokens < 2:
            raise ValueError(f"cut_tokens {self.cut_tokens} is below 2: no token can be scored")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Passkey:
    """Passkey retrieval in the wording of the paper (PI fig. 3), reach by its k_max rule.

    `distances` values of k (tokens between the key and the end of the prompt) lie evenly in
    (0, context]; k_max is the largest k such that every k' <= k succeeds in at least `threshold` of
    its trials (PI, section 3.3).
    """

    kind: Literal["passkey"] = "passkey"
    context_tokens: int
    distances: int = 32
    trials: int = 10  # per distance
    threshold: float = 0.2
    digits: int = 5
    prompt: Literal["shortest", "full"] = "shortest"
    # as long as the distance needs, or always `context_tokens` (filled before the key)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecallProbe:
    """Retrieval for models too small to read: recall documents, asked at chosen distances.

    Same rule for the reach as `Passkey`; chance is 1 / `keys`.
    """

    kind: Literal["recall"] = "recall"
    context_tokens: int
    distances: int = 32
    trials: int = 10
    threshold: float = 0.2
    keys: int = 64
    pairs: int = 4  # pairs shown together; one of them is asked for
    shown: int = 2  # times they are shown, one showing after the other, as the passkey prompt does
    prompt: Literal["shortest", "full"] = "shortest"
    # as long as the distance needs, or always `context_tokens` (filled before the pairs)


Protocol = SameTokens | SlidingWindow | Passkey | RecallProbe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A protocol applied to runs. For retrieval the corpus gives the filler text."""

    protocol: Protocol
    corpus: str  # name of the corpus it is measured on
    runs: tuple[str, ...]  # run names, `study/run`, or patterns such as `shared/*`
    snapshots: Literal["final", "all"] = "final"
    numerics: Numerics = Numerics()
    seed: int = 0
    device: str = dataclasses.field(default="cpu", metadata=EXECUTION)
    sequences_per_forward: int = dataclasses.field(default=8, metadata=EXECUTION)


# What the stages are given.


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateJob:
    """Stage `evaluate`: one evaluation of one run, at its final weights and snapshots."""

    protocol: Protocol
    snapshots: Literal["final", "all"]
    numerics: Numerics
    seed: int
    device: str = dataclasses.field(default="cpu", metadata=EXECUTION)
    sequences_per_forward: int = dataclasses.field(default=8, metadata=EXECUTION)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckJob:
    """Stage `check`: an exact check of theory or data that needs no model."""

    check: Literal["pi_interpolation_bound", "pi_extrapolation_bound", "pi_random_fit"]
    parameters: Mapping[str, float]
