"""What an evaluation scores at every snapshot, built once from the protocol and the tokens."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ropewalk.base.spec import SpecError
from ropewalk.base.stage import StageError
from ropewalk.data import recall
from ropewalk.data.encoding import LoadedTokenizer
from ropewalk.data.tokens import Tokens
from ropewalk.evaluate import perplexity, retrieval
from ropewalk.evaluate.passkey import Prompts
from ropewalk.evaluate.retrieval import Trial, Trials
from ropewalk.evaluate.scorer import Scores
from ropewalk.evaluate.spec import EvaluateJob, Passkey, RecallProbe, SameTokens, SlidingWindow
from ropewalk.evaluate.windows import Spans, same_tokens, sliding_window


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """Spans per context label over a list of documents, and what to make of their scores."""

    spans: Mapping[str, Spans]
    documents: Sequence[str]  # names
    document: Callable[[int], np.ndarray]  # index -> token ids
    summarise: Callable[[Mapping[str, Scores]], dict[str, Any]]  # label -> scores: a snapshot

    @property
    def windows(self) -> int:
        """Return the forward passes of single sequences at one snapshot."""
        return sum(len(spans) for spans in self.spans.values())

    @property
    def tokens(self) -> int:
        """Return the tokens read at one snapshot."""
        return sum(int(spans.lengths.sum()) for spans in self.spans.values())

    @property
    def scored(self) -> int:
        """Return the tokens scored at one snapshot."""
        return sum(int(spans.scored.sum()) for spans in self.spans.values())


def plan(spec: EvaluateJob, tokens: Tokens, tokenizer: LoadedTokenizer) -> Plan:
    """Return what `spec.protocol` scores on these tokens.

    Raises:
        StageError: if the tokens or the context cannot give what the protocol asks for.
    """
    protocol = spec.protocol
    if isinstance(protocol, SameTokens):
        return _losses(same_tokens(tokens.lengths, protocol), protocol.contexts, tokens)
    if isinstance(protocol, SlidingWindow):
        return _losses(sliding_window(tokens.lengths, protocol), protocol.contexts, tokens)
    if isinstance(protocol, Passkey):
        prompts = Prompts(
            tokenizer.tokenizer, tokenizer.bos, digits=protocol.digits, seed=spec.seed
        )
        return _retrieval(
            protocol,
            lambda distance, n: prompts.trial(
                protocol.context_tokens if protocol.prompt == "full" else None,
                distance,
                n,
                at_most=protocol.context_tokens,
            ),
        )
    return _retrieval(protocol, _recall(protocol, spec.seed, tokens, tokenizer))


def _losses(spans: Mapping[str, Spans], contexts: Mapping[str, int], tokens: Tokens) -> Plan:
    documents = tokens.ids

    def summarise(scores: Mapping[str, Scores]) -> dict[str, Any]:
        return {
            "contexts": {
                label: perplexity.summarise(scores[label], documents, contexts[label])
                for label in contexts
            }
        }

    return Plan(spans=spans, documents=documents, document=tokens.document, summarise=summarise)


def _retrieval(protocol: Passkey | RecallProbe, make: Callable[[int, int], Trial | None]) -> Plan:
    trials: Trials = retrieval.build(
        protocol.context_tokens, protocol.distances, protocol.trials, make
    )
    label = protocol.kind
    return Plan(
        spans={label: trials.spans},
        documents=trials.names,
        document=lambda index: trials.trials[index].ids,
        summarise=lambda scores: retrieval.summarise(scores[label], trials, protocol.threshold),
    )


def _recall(
    protocol: RecallProbe, seed: int, tokens: Tokens, tokenizer: LoadedTokenizer
) -> Callable[[int, int], Trial | None]:
    try:
        filler = recall.filler_of(tokens)
    except SpecError as error:
        raise StageError(f"protocol recall: {error}") from None
    shape = (protocol.pairs, tokenizer.bos, protocol.shown)
    possible = recall.distance_range(protocol.context_tokens, *shape)

    def make(distance: int, number: int) -> Trial | None:
        if possible is None or not possible[0] <= distance <= possible[1]:
            return None
        full = protocol.prompt == "full"
        ids, _, position = recall.probe(
            protocol.context_tokens if full else recall.shortest_context(distance, *shape),
            distance,
            protocol.pairs,
            protocol.keys,
            number,
            seed,
            filler,
            tokenizer.reserved,
            tokenizer.bos,
            protocol.shown,
        )
        return Trial(distance=distance, ids=ids, answer_start=position)

    return make
