"""Protocols that measure the loss of a given text: what is read, and what is made of the scores."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from ropewalk.base.stage import StageError
from ropewalk.data.encoding import LoadedTokenizer
from ropewalk.data.tokens import Tokens
from ropewalk.evaluate import curve, perplexity, presets, texts
from ropewalk.evaluate.plan import Plan, Replies
from ropewalk.evaluate.scorer import Scores
from ropewalk.evaluate.sharing import Shared, share
from ropewalk.evaluate.spans import Spans, same_tokens, sliding
from ropewalk.evaluate.spec import (
    Conventions,
    Losses,
    PositionCurve,
    SameTokens,
    SlidingWindow,
)
from ropewalk.evaluate.texts import Texts

ScoresByLabel = Mapping[str, Scores]
RepliesByLabel = Mapping[str, Replies]


def plan(
    protocol: Losses,
    seed: int,  # noqa: ARG001 - nothing is drawn here; all protocols are called alike
    tokens: Tokens,
    tokenizer: LoadedTokenizer,
    *,
    depends_on_length: bool = False,
) -> Plan:
    """Return what the protocol reads and scores of these tokens.

    `depends_on_length`: whether the rope, or what else attention does, depends on the length that
    is read. Then a forward says nothing about a shorter one, and each context has its own.

    Raises:
        StageError: if the tokens, the tokenizer or the rope cannot give what the protocol asks for.
    """
    if isinstance(protocol, SameTokens):
        return _same(protocol, tokens, tokenizer)
    if isinstance(protocol, SlidingWindow):
        return _sliding(protocol, tokens, tokenizer, depends_on_length=depends_on_length)
    if isinstance(protocol, PositionCurve):
        if depends_on_length:
            raise StageError(
                "protocol.kind: a position_curve reads the longest context once for all shorter "
                "ones, but the rope of this evaluation depends on the length that is read, as "
                "dynamic_ntk does: use a sliding_window with stride_tokens null, which then reads "
                "every context on its own"
            )
        return _curve(protocol, tokens, tokenizer)
    return _conventions(protocol, tokens, tokenizer)


def _same(protocol: SameTokens, tokens: Tokens, tokenizer: LoadedTokenizer) -> Plan:
    spans = same_tokens(tokens.lengths, protocol)
    documents = tokens.ids
    written = perplexity.writing(tokenizer.tokenizer, tokens.document)

    def summarise(scores: ScoresByLabel, _: RepliesByLabel) -> dict[str, Any]:
        return {
            "contexts": {
                label: perplexity.summarise(
                    scores[label],
                    perplexity.weigh(scores[label], "tokens"),
                    documents=documents,
                    context_tokens=context,
                    written=written,
                )
                for label, context in protocol.contexts.items()
            }
        }

    return Plan(documents=documents, document=tokens.document, spans=spans, summarise=summarise)


def _sliding(
    protocol: SlidingWindow, tokens: Tokens, tokenizer: LoadedTokenizer, *, depends_on_length: bool
) -> Plan:
    streamed = protocol.text == "stream"
    chosen = texts.choose(
        tokens,
        tokenizer,
        documents=protocol.documents,
        skip_tokens=protocol.skip_tokens,
        minimum_tokens=protocol.minimum_tokens,
        cut_tokens=protocol.cut_tokens,
        opened=protocol.bos != "none" and not streamed,
        streamed=streamed,
    )
    reads = {
        label: _Read(
            protocol=protocol,
            name=f"context {label!r}",
            context_tokens=context,
            spans=sliding(*chosen.asked(streamed), protocol, context),
        )
        for label, context in protocol.contexts.items()
    }
    opening = None if protocol.bos == "none" else texts.opening_token(tokenizer, "protocol.bos")
    shared = None
    if protocol.stride_tokens is None and not depends_on_length:
        shared = share(_tables(reads), label="truncated", beginnings=True)
    return _planned(chosen, reads, shared, tokenizer, opening)


def _curve(protocol: PositionCurve, tokens: Tokens, tokenizer: LoadedTokenizer) -> Plan:
    longest = max(protocol.contexts.values())
    beginnings = SlidingWindow(
        contexts=protocol.contexts,
        stride_tokens=None,
        documents=protocol.documents,
        skip_tokens=protocol.skip_tokens,
        minimum_tokens=longest,
        bos=protocol.bos,
    )
    planned = _sliding(beginnings, tokens, tokenizer, depends_on_length=False)
    (label,) = planned.spans
    bins = curve.edges(longest, protocol.points)

    def summarise(scores: ScoresByLabel, replies: RepliesByLabel) -> dict[str, Any]:
        return {
            **planned.summarise(scores, replies),
            "curve": curve.curve(scores[label], planned.documents, bins),
        }

    return dataclasses.replace(planned, summarise=summarise)


def _conventions(protocol: Conventions, tokens: Tokens, tokenizer: LoadedTokenizer) -> Plan:
    # One text for all presets: what is read before it counts neither in the minimum nor in the cut.
    chosen = texts.choose(
        tokens,
        tokenizer,
        documents=protocol.documents,
        minimum_tokens=protocol.minimum_tokens,
        cut_tokens=protocol.cut_tokens,
        opened=False,
    )
    reads, opening = {}, None
    for name in protocol.presets:
        context = protocol.context_tokens
        own = presets.at(name, context, protocol.stride_tokens)
        if own.bos != "none":
            opening = texts.opening_token(tokenizer, f"protocol.presets: {name!r}")
        spans = sliding(*chosen.asked(own.text == "stream"), own, context)
        reads[name] = _Read(
            protocol=own, name=f"preset {name!r}", context_tokens=context, spans=spans
        )
    shared = share(_tables(reads), label="conventions", beginnings=False)
    return _planned(chosen, reads, shared, tokenizer, opening)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Read:
    """What is read for one number."""

    protocol: SlidingWindow
    name: str  # of the number, for messages
    context_tokens: int
    spans: Spans


def _tables(reads: Mapping[str, _Read]) -> dict[str, Spans]:
    """Return the spans of every number.

    Raises:
        StageError: if one has none.
    """
    for read in reads.values():
        if not len(read.spans):
            raise StageError(
                f"{read.name}: no token of the documents chosen can be scored in windows of "
                f"{read.context_tokens} tokens with tail {read.protocol.tail!r}: give longer texts "
                "or a shorter context"
            )
    return {label: read.spans for label, read in reads.items()}


def _planned(
    chosen: Texts,
    reads: Mapping[str, _Read],
    shared: Shared | None,
    tokenizer: LoadedTokenizer,
    opening: int | None,
) -> Plan:
    """Return the plan of some numbers by label; `shared` is what is read in place of them."""
    written = perplexity.writing(tokenizer.tokenizer, chosen.read)

    def number(label: str, read: _Read, scores: ScoresByLabel) -> dict[str, Any]:
        own = scores[label] if shared is None else shared.part(label, scores[shared.label])
        mean = read.protocol.mean
        return {
            **perplexity.summarise(
                chosen.by_source(own),
                perplexity.weigh(own, mean),
                documents=chosen.sources,
                context_tokens=read.context_tokens,
                mean=mean,
                written=written,
            ),
            **_left_out(read, chosen),
        }

    def summarise(scores: ScoresByLabel, _: RepliesByLabel) -> dict[str, Any]:
        return {"contexts": {label: number(label, read, scores) for label, read in reads.items()}}

    streamed = any(read.protocol.text == "stream" for read in reads.values())
    return Plan(
        documents=chosen.names(streamed),
        document=chosen.text,
        spans=_tables(reads) if shared is None else {shared.label: shared.spans},
        summarise=summarise,
        opening=opening,
        dropped=chosen.dropped,
    )


def _left_out(read: _Read, chosen: Texts) -> dict[str, int]:
    """Return how many tokens of the texts come after the last that is scored, by the tail."""
    if read.protocol.tail not in ("drop", "drop_last"):
        return {}
    documents, lengths = chosen.asked(read.protocol.text == "stream")
    last = np.zeros(chosen.stream + 1, dtype=np.int64)
    np.maximum.at(last, read.spans.document, read.spans.scored_end)
    return {"left_out_tokens": int((lengths - last[documents]).sum())}
