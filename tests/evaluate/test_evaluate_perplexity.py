"""Numbers of scored tokens against plain sums over them."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from perplexity_cases import WORDS, Documents, contexts, loaded, numbered, random_ids, scores_of
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from ropewalk.base.stage import StageError
from ropewalk.evaluate import losses
from ropewalk.evaluate.perplexity import perplexity, summarise, weigh, writing
from ropewalk.evaluate.scorer import Scores
from ropewalk.evaluate.spec import SameTokens, SlidingWindow
from ropewalk.evaluate.texts import choose


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Compute on one thread: many tiny forwards wait for each other's threads otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def scores_from(
    document: list[int], window: list[int], nll: list[float], hit: list[bool] | None = None
) -> Scores:
    """Return scores of documents read from their beginning, each token after those before it."""
    places = [document[:i].count(d) for i, d in enumerate(document)]
    return Scores(
        document=np.array(document, dtype=np.int32),
        position=np.array(places, dtype=np.int32),
        preceding=np.array(places, dtype=np.int32) + 1,
        window=np.array(window, dtype=np.int32),
        nll=np.array(nll, dtype=np.float32),
        hit=np.array([False] * len(nll) if hit is None else hit),
    )


def four_bytes(document: int, first: int, stop: int) -> tuple[int, int]:
    return stop - first, 4 * (stop - first)


def test_the_mean_is_over_tokens_and_sums_are_float64() -> None:
    """Guards: documents weighted alike, float32 sums, documents without a score that are listed."""
    random = np.random.default_rng(0)
    document = np.repeat([2, 0], [3, 50_000]).astype(np.int32)
    nll = random.exponential(5, size=len(document)).astype(np.float32)
    hit = random.random(len(document)) < 0.3
    rows = np.arange(len(nll), dtype=np.int32)
    scores = Scores(
        document=document, position=rows, preceding=rows + 5, window=rows // 9, nll=nll, hit=hit
    )
    numbers = summarise(
        scores,
        weigh(scores, "tokens"),
        documents=["a", "b", "c"],
        context_tokens=64,
        written=four_bytes,
    )
    assert numbers["context_tokens"] == 64
    assert numbers["documents"] == ["a", "c"]
    assert numbers["tokens"] == [50_000, 3]
    exact = [math.fsum(map(float, nll[document == i])) for i in (0, 2)]
    assert numbers["nll_sums"] == pytest.approx(exact, rel=1e-12)
    assert numbers["hits"] == [int(hit[3:].sum()), int(hit[:3].sum())]
    mean = math.fsum(map(float, nll)) / len(nll)
    assert numbers["nll"] == pytest.approx(mean, rel=1e-12)
    assert numbers["perplexity"] == pytest.approx(math.exp(mean), rel=1e-12)
    assert numbers["bits_per_byte"] == pytest.approx(mean / 4 / math.log(2), rel=1e-12)
    assert numbers["preceding"] == [5, len(nll) + 4]
    assert numbers["windows"] == -(-len(nll) // 9)
    assert "weights" not in numbers


@st.composite
def scored_windows(draw: st.DrawFn) -> Scores:
    """Return scores of a few windows of a few documents, some losses not finite."""
    document, window = [], []
    number = 0
    for text in range(draw(st.integers(1, 3))):
        for _ in range(draw(st.integers(1, 3))):
            size = draw(st.integers(1, 4))
            document += [text] * size
            window += [number] * size
            number += 1
    loss = st.floats(0, 20, width=32) | st.sampled_from([math.nan, math.inf])
    nll = draw(st.lists(loss, min_size=len(document), max_size=len(document)))
    return scores_from(document, window, nll)


@settings(max_examples=300, deadline=None)
@given(scored_windows(), st.sampled_from(["tokens", "windows", "labels"]))
def test_means_are_those_of_their_definition(scores: Scores, mean: str) -> None:
    """Guards: windows weighted by something else; a loss that is not finite in a sum or a count.

    The definition goes window by window, over what is finite in each.
    """
    weighted, weights, seen = 0.0, 0.0, set()
    for number in range(int(scores.window.max()) + 1):
        rows = np.flatnonzero(scores.window == number)
        text = int(scores.document[rows[0]])
        losses = [float(scores.nll[row]) for row in rows if math.isfinite(scores.nll[row])]
        if losses:
            later = text in seen
            weight = {"tokens": len(losses), "windows": 1, "labels": len(losses) - later}[mean]
            weighted += weight * math.fsum(losses) / len(losses)
            weights += weight
        seen.add(text)
    arguments = {
        "documents": ["a", "b", "c"],
        "context_tokens": 8,
        "mean": mean,
        "written": four_bytes,
    }
    if weights == 0:
        with pytest.raises(StageError, match=f"none of {len(scores)} losses is finite"):
            summarise(scores, weigh(scores, mean), **arguments)
        return
    found = summarise(scores, weigh(scores, mean), **arguments)
    assert found["nll"] == pytest.approx(weighted / weights, rel=1e-9, abs=1e-12)
    assert found["non_finite"] == int((~np.isfinite(scores.nll)).sum())
    assert sum(found["tokens"]) == int(np.isfinite(scores.nll).sum())
    if mean != "tokens":
        sums = math.fsum(found["weighted_sums"]) / math.fsum(found["weights"])
        assert sums == found["nll"]
        assert math.fsum(found["weights"]) == pytest.approx(weights, rel=1e-12)


def test_only_text_that_was_scored_stands_in_a_denominator(
    small_model: Callable[..., LlamaForCausalLM], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Guards: words or bytes of what was cut, of a first token, or of a dropped tail."""
    texts = [
        "One two  three. Four five six seven eight nine ten eleven twelve. ",
        "a\nb c d e f g h",
    ]
    ids = [tokenizer.encode(text).ids for text in texts]
    words = loaded(tmp_path, tokenizer, opening=True)
    documents = Documents([[0, *one] for one in ids])
    model = small_model(WORDS).double()

    def parts(**settings: object) -> tuple[dict, list[str]]:
        protocol = SlidingWindow(contexts={"1x": 8}, stride_tokens=5, **settings)  # type: ignore[arg-type]
        planned = losses.plan(protocol, 0, documents, words)
        spans = planned.spans["1x"]
        scored = [
            tokenizer.decode(
                planned.document(i)[
                    spans.scored_start[spans.document == i].min() : spans.scored_end[
                        spans.document == i
                    ].max()
                ].tolist()
            )
            for i in range(2)
        ]
        return contexts(model, planned)["1x"], scored

    found, scored = parts()
    assert scored == texts
    cut, scored_of_cut = parts(cut_tokens=9)
    bare, scored_bare = parts(bos="none")
    dropped, scored_dropped = parts(tail="drop_last", bos="none")
    assert scored_of_cut == [tokenizer.decode(one[:8]) for one in ids]
    assert scored_bare == [tokenizer.decode(one[1:]) for one in ids]
    for number, parts_scored in (
        (found, scored),
        (cut, scored_of_cut),
        (bare, scored_bare),
        (dropped, scored_dropped),
    ):
        assert number["bytes"] == [len(part.encode()) for part in parts_scored]
        assert number["words"] == [len(re.split(r"\s+", part)) for part in parts_scored]
        nats = sum(number["nll_sums"]) / sum(number["bytes"])
        assert number["byte_perplexity"] == pytest.approx(math.exp(nats), rel=1e-10)
        assert number["bits_per_byte"] == pytest.approx(nats / math.log(2), rel=1e-10)
    assert len({tuple(number["bytes"]) for number in (found, cut, bare, dropped)}) == 4


def test_tokens_scored_several_times_are_no_longer_text(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Guards: bytes per token that depend on how often a token is scored."""
    documents = Documents(random_ids([60, 60]))
    words = loaded(tmp_path, tokenizer)
    found = {}
    for scored in ("new", "all"):
        protocol = SlidingWindow(
            contexts={"1x": 16}, stride_tokens=5, bos="none", tail="short", scored=scored
        )
        planned = losses.plan(protocol, 0, documents, words)
        spans = planned.spans["1x"]
        scores = dataclasses.replace(scores_of(spans), nll=np.full(spans.scored.sum(), 2.0))
        found[scored] = planned.summarise({"1x": scores}, {})["contexts"]["1x"]
    assert sum(found["all"]["tokens"]) > 2 * sum(found["new"]["tokens"])
    for name in ("bytes", "words", "byte_perplexity", "word_perplexity", "bits_per_byte"):
        assert found["all"][name] == pytest.approx(found["new"][name], rel=1e-12)
    assert found["new"]["bits_per_byte"] == pytest.approx(
        2.0 * 118 / sum(found["new"]["bytes"]) / math.log(2)
    )


def test_special_tokens_are_no_text(tokenizer: Tokenizer) -> None:
    """Guards: the spelling of an EOS counted as bytes of a text."""
    ids = tokenizer.encode("two words").ids
    written = writing(tokenizer, lambda _: np.array([*ids, 1]))
    assert written(0, 0, len(ids) + 1) == (2, 9)
    assert written(0, len(ids), len(ids) + 1) == (1, 0)


def test_a_perplexity_beyond_float64() -> None:
    """Guards: infinity in a result file, which JSON cannot hold."""
    with pytest.raises(StageError, match="no finite perplexity"):
        perplexity(1000.0)
    scores = scores_from([0] * 400, [0] * 400, [5.0] * 400)
    arguments = {"documents": ["a"], "context_tokens": 8, "weights": weigh(scores, "tokens")}
    one_word = summarise(scores, written=lambda *_: (1, 400), **arguments)
    assert one_word["word_perplexity"] is None
    assert one_word["byte_perplexity"] == pytest.approx(math.exp(5.0))
    no_text = summarise(scores, written=lambda *_: (1, 0), **arguments)
    names = ("word_perplexity", "byte_perplexity", "bits_per_byte")
    assert [no_text[name] for name in names] == [None] * 3
    assert no_text["perplexity"] == pytest.approx(math.exp(5.0))


@settings(deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=6))
def test_tokens_of_the_stream_are_given_to_their_documents(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer, lengths: list[int]
) -> None:
    """Guards: sums by document, on which intervals rest, with tokens of the neighbours."""
    words = loaded(tmp_path_factory.getbasetemp() / "stream", tokenizer)
    documents = numbered(lengths)
    chosen = choose(documents, words, documents=None, opened=False, streamed=True)
    total = sum(lengths)
    scores = scores_from([chosen.stream] * total, [0] * total, [1.0] * total)
    found = chosen.by_source(scores)
    stream = chosen.text(chosen.stream)
    assert len(stream) == total
    for token, document, position in zip(stream, found.document, found.position, strict=True):
        assert documents.document(int(document))[position] == token
    apart = scores_from([0] * lengths[0], [0] * lengths[0], [1.0] * lengths[0])
    assert chosen.by_source(apart).position.tolist() == apart.position.tolist()


def test_same_tokens_against_a_plain_loop(
    small_model: Callable[..., LlamaForCausalLM], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Guards: a context that begins or ends elsewhere than it says."""
    ids = random_ids([40, 20, 33, 50])
    documents = Documents([[0, *one] for one in ids])
    words = loaded(tmp_path, tokenizer, opening=True)
    model = small_model(WORDS).double()
    protocol = SameTokens(contexts={"1x": 12, "2x": 32}, scored_tokens=6, documents=3)
    found = contexts(model, losses.plan(protocol, 0, documents, words))
    for label, context in protocol.contexts.items():
        sums = []
        for one in (ids[0], ids[2], ids[3]):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([one[32 - context : 32]])).logits[0]
            targets = torch.tensor(one[26:32])
            entropy = torch.nn.functional.cross_entropy(logits[-7:-1], targets, reduction="sum")
            sums.append(entropy.item())
        assert found[label]["nll_sums"] == pytest.approx(sums, rel=1e-10)
        assert found[label]["documents"] == ["doc-0", "doc-2", "doc-3"]
        assert found[label]["preceding"] == [context - 6, context - 1]


def test_nothing_to_score_is_an_error(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Guards: a mean over no tokens."""
    words = loaded(tmp_path, tokenizer)
    protocol = SlidingWindow(contexts={"1x": 4, "2x": 50}, stride_tokens=3, tail="drop")
    with pytest.raises(StageError, match=r"context '2x': no token .* windows of 50 .* 'drop'"):
        losses.plan(protocol, 0, numbered([20, 30]), words)
