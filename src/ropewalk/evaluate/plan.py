"""What an evaluation asks of a model at every snapshot: built once, before any model is loaded."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ropewalk.evaluate.scorer import Scores
from ropewalk.evaluate.spans import Spans


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Prompts:
    """Prompts that are answered by decoding."""

    ids: Sequence[np.ndarray]  # int64 [tokens] of each prompt
    names: Sequence[str]  # of each, unique
    new_tokens: int  # at most, of every answer
    stop: tuple[int, ...] = ()  # tokens that end an answer and are no part of it
    temperature: float = 0.0  # 0: greedy
    top_p: float = 1.0

    def __len__(self) -> int:
        return len(self.ids)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Replies:
    """The decoded tokens of every prompt, in the order of the prompts."""

    ids: Sequence[np.ndarray]  # int64 [at most new_tokens] of each


# (scores by label of the spans, replies by label of the prompts) -> a snapshot of `result.json`
Summarise = Callable[[Mapping[str, Scores], Mapping[str, Replies]], dict[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """Spans to score and prompts to answer, each by label, and what to make of them."""

    documents: Sequence[str]  # names of what the spans read
    document: Callable[[int], np.ndarray]  # index -> token ids
    spans: Mapping[str, Spans]
    summarise: Summarise
    prompts: Mapping[str, Prompts] = dataclasses.field(default_factory=dict)
    opening: int | None = None  # the token before spans that have one
    dropped: Sequence[str] = ()  # what could not be made, in words; fails unless allowed
    truncated: Sequence[str] = ()  # what was cut although no setting says so; likewise

    @property
    def sequences(self) -> int:
        """Return the spans and prompts of one snapshot."""
        return sum(map(len, self.spans.values())) + sum(map(len, self.prompts.values()))

    @property
    def tokens(self) -> int:
        """Return the tokens read at one snapshot, those of decoded answers left out."""
        read = sum(int(spans.lengths.sum()) for spans in self.spans.values())
        return read + sum(len(ids) for p in self.prompts.values() for ids in p.ids)

    @property
    def scored(self) -> int:
        """Return the tokens scored at one snapshot."""
        return sum(int(spans.scored.sum()) for spans in self.spans.values())
