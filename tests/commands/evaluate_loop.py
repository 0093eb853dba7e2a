"""Losses of a checkpoint by a plain loop: what numbers of `ropewalk evaluate` are compared with."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from evaluate_home import Json
from transformers import AutoModelForCausalLM, AutoTokenizer

from ropewalk.evaluate import intervals
from ropewalk.model import build, forward
from ropewalk.model.spec import Rope

Spans = Callable[[int], list[tuple[int, int, int]]]


def losses_by_loop(
    folder: Path, texts: Sequence[str], spans: Spans, bos: int, rope: Rope | None = None
) -> list[list[np.ndarray]]:
    """Return the losses of every span of every text, by transformers and nothing else.

    `spans(tokens)` gives (start, end, first scored) for a text of so many tokens; before every span
    `bos` copies of BOS are read. With a rope it is our model that reads, which the tests of models
    compare with other implementations.
    """
    logits_of = _logits_of(folder, rope)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    found: list[list[np.ndarray]] = [[] for _ in texts]
    rows = [(i, *span) for i, own in enumerate(ids) for span in spans(len(own))]
    losses: dict[tuple[int, ...], np.ndarray] = {}
    for length in {end - start for _, start, end, _ in rows}:
        alike = [row for row in rows if row[2] - row[1] == length]
        read = torch.tensor(
            [[tokenizer.bos_token_id] * bos + ids[i][start:end] for i, start, end, _ in alike]
        )
        with torch.no_grad():
            logits = logits_of(read).double()
        for row, own in zip(alike, logits, strict=True):
            i, start, end, first = row
            predicting = own[first - start + bos - 1 : end - start + bos - 1]
            targets = torch.tensor(ids[i][first:end])
            losses[row] = F.cross_entropy(predicting, targets, reduction="none").numpy()
    for row in rows:
        found[row[0]].append(losses[row])
    return found


def _logits_of(folder: Path, rope: Rope | None) -> Callable[[torch.Tensor], torch.Tensor]:
    if rope is None:
        theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
        return lambda ids: theirs(ids).logits
    model = build.load(folder, rope)
    return lambda ids: model.lm_head(forward.hidden(model, ids, None))


def sums_by_loop(
    folder: Path, texts: Sequence[str], spans: Spans, bos: int, rope: Rope | None = None
) -> tuple[list[float], list[int]]:
    """Return summed losses and scored tokens of each text, see `losses_by_loop`."""
    losses = losses_by_loop(folder, texts, spans, bos, rope)
    found = [np.concatenate(windows) for windows in losses]
    return [float(own.sum()) for own in found], [len(own) for own in found]


def after_press(window: int, stride: int) -> Spans:
    """Return the windows of Press et al.: the last ones full, each token scored once."""

    def spans(tokens: int) -> list[tuple[int, int, int]]:
        end = min(window, tokens)
        found = [(0, end, 1)]
        while end < tokens:
            new = min(end + stride, tokens)
            found.append((new - window, new, end))
            end = new
        return found

    return spans


def with_bos_everywhere(window: int, stride: int) -> Spans:
    """Return PoSE's windows: BOS takes one token of each, windows begin a stride apart."""

    def spans(tokens: int) -> list[tuple[int, int, int]]:
        end = min(window - 1, tokens)
        found, begin = [(0, end, 0)], 0
        while end < tokens:
            begin, new = begin + stride, min(end + stride, tokens)
            found.append((begin, new, end))
            end = new
        return found

    return spans


def assert_agrees(found: Json, sums: Sequence[float], counts: Sequence[int], seed: int = 0) -> None:
    """Compare a context's numbers with losses by document that something else computed."""
    assert found["by_document"]["nll_sums"] == pytest.approx(sums, rel=1e-5)
    assert found["by_document"]["tokens"] == list(counts)
    assert found["tokens_scored"] == sum(counts)
    assert found["documents"] == len(counts)
    assert found["nll_sum"] == pytest.approx(math.fsum(sums), rel=1e-5)
    nll = math.fsum(sums) / sum(counts)
    assert found["token_perplexity"] == pytest.approx(math.exp(nll), rel=1e-5)
    drawn = intervals.mean_nll(sums, counts, seed=seed)
    ends = [found["interval"]["low"], found["interval"]["high"]]
    assert ends == pytest.approx([math.exp(drawn.low), math.exp(drawn.high)], rel=1e-5)
    assert found["interval"]["of"] == "token_perplexity"
    assert (found["interval"]["level"], found["interval"]["draws"]) == (0.95, intervals.DRAWS)
