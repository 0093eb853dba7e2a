"""Summaries of documents that come with one, scored by ROUGE (PI, arXiv 2306.15595, section 3.5).

PI cuts reports to 15,000 tokens and summaries to 1,000, samples at temperature 0.5 with top-p 0.95
and reports ROUGE-1, 2 and L; it names no implementation. The cuts and the wording of the prompt are
the corpus's; so a reference is the target as it was trained on.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ropewalk.base.stage import StageError
from ropewalk.data.encoding import LoadedTokenizer
from ropewalk.data.tokens import Tokens
from ropewalk.evaluate.plan import Plan, Prompts, Replies
from ropewalk.evaluate.rouge import METRICS, Rouge
from ropewalk.evaluate.scorer import Scores
from ropewalk.evaluate.spec import Summaries

LABEL = "summaries"


def plan(
    protocol: Summaries,
    seed: int,  # noqa: ARG001 - the stage draws by it; all protocols are called alike
    tokens: Tokens,
    tokenizer: LoadedTokenizer,
) -> Plan:
    """Return the prompts of a fine-tuning corpus and how replies to them are scored.

    A snapshot has `cells`: rouge1, rouge2, rougeL, rougeLsum, each with the F1 of every document
    (`scores`) and their `mean`; beside them `documents`, the `summaries` and their `tokens`. A
    document whose reference has no token that ROUGE counts is dropped.

    Raises:
        StageError: if the corpus has no prompts or too few documents, or no reference can be
            scored.
    """
    count = tokens.count if protocol.documents is None else protocol.documents
    if count > tokens.count:
        raise StageError(
            f"protocol.documents: {count}, but the corpus has {tokens.count} documents"
        )
    starts = tokens.prompts[:count]
    names = tokens.ids[:count]
    whole = np.flatnonzero(starts == 0)
    if len(whole):
        raise StageError(
            f"document {names[int(whole[0])]!r} has no prompt: summaries need a corpus with "
            "`prompt`, whose target is the summary"
        )
    rouge = Rouge(stemmer=protocol.stemmer, sentences=protocol.sentences)
    kept, references, dropped = [], [], []
    for index, (name, start) in enumerate(zip(names, starts.tolist(), strict=True)):
        reference = _text(tokens.document(index)[start:], tokenizer)
        if rouge.scorable(reference):
            kept.append(index)
            references.append(reference)
        else:
            dropped.append(f"{name}: its summary has no token that ROUGE counts (a-z, 0-9)")
    if not kept:
        raise StageError(
            f"none of {count} documents has a summary with a token that ROUGE counts (a-z, 0-9), "
            f"the first is {names[0] if names else 'missing: the corpus is empty'}"
        )
    prompts = Prompts(
        ids=[tokens.document(index)[: starts[index]].astype(np.int64) for index in kept],
        names=[names[index] for index in kept],
        new_tokens=protocol.new_tokens,
        stop=() if tokenizer.eos is None else (tokenizer.eos,),
        temperature=protocol.temperature,
        top_p=protocol.top_p,
    )

    def summarise(_: Mapping[str, Scores], replies: Mapping[str, Replies]) -> dict[str, Any]:
        ids = replies[LABEL].ids
        texts = [_text(reply, tokenizer) for reply in ids]
        return {
            "cells": _cells(rouge, references, texts),
            "documents": list(prompts.names),
            "summaries": texts,
            "tokens": [len(reply) for reply in ids],
        }

    return Plan(
        documents=(),
        document=tokens.document,
        spans={},
        summarise=summarise,
        prompts={LABEL: prompts},
        dropped=dropped,
    )


def _cells(rouge: Rouge, references: Sequence[str], texts: Sequence[str]) -> dict[str, Any]:
    found = [rouge.scores(*pair) for pair in zip(references, texts, strict=True)]
    by_metric = {metric: [scores[metric] for scores in found] for metric in METRICS}
    return {
        metric: {"scores": scores, "mean": float(np.mean(scores))}
        for metric, scores in by_metric.items()
    }


def _text(ids: np.ndarray, tokenizer: LoadedTokenizer) -> str:
    """Return the text of token ids, without special tokens (the EOS that closes a target)."""
    text: str = tokenizer.tokenizer.decode(ids.tolist(), skip_special_tokens=True)
    return text.strip()
