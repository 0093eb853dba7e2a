"""Scores against transformers' own loss, and numbers against plain sums."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from ropewalk.base.stage import StageError
from ropewalk.evaluate.perplexity import perplexity, summarise
from ropewalk.evaluate.scorer import Scorer, Scores, score
from ropewalk.evaluate.spec import SameTokens, SlidingWindow
from ropewalk.evaluate.store import Blocks, cut
from ropewalk.evaluate.windows import Spans, same_tokens, sliding_window

Make = Callable[..., LlamaForCausalLM]
Show = Callable[..., Scorer]


@pytest.fixture(scope="module")
def documents() -> list[np.ndarray]:
    random = np.random.default_rng(1)
    return [random.integers(0, 97, size=size).astype(np.uint16) for size in (70, 33, 64, 90)]


@pytest.fixture
def spans(documents: list[np.ndarray]) -> Spans:
    protocol = SlidingWindow(contexts={"1x": 24}, stride_tokens=7, documents=4)
    return sliding_window(np.array([len(d) for d in documents]), protocol)["1x"]


NAMES = ["a", "b", "c", "d"]


def test_losses_equal_those_of_transformers(
    small_model: Make, as_scorer: Show, documents: list[np.ndarray], spans: Spans
) -> None:
    """Guards: targets shifted by one, heads applied to the wrong state, wrong order of batches.

    The reference is the loss transformers returns for labels that are -100 outside the scored part.
    """
    model = small_model()
    scores = score(as_scorer(model), spans, documents.__getitem__, NAMES)
    offset = 0
    for row in range(len(spans)):
        ids = documents[spans.document[row]][spans.start[row] : spans.end[row]]
        labels = torch.full((1, len(ids)), -100)
        first = int(spans.scored_start[row] - spans.start[row])
        last = int(spans.scored_end[row] - spans.start[row])
        tokens = torch.from_numpy(ids.astype(np.int64))[None]
        labels[:, first:last] = tokens[:, first:last]
        with torch.no_grad():
            found = model(input_ids=tokens, labels=labels)
        size = last - first
        mine = scores.nll[offset : offset + size]
        assert mine.mean() == pytest.approx(found.loss.item(), rel=1e-5)
        chosen = found.logits[0, first - 1 : last - 1].argmax(-1) == tokens[0, first:last]
        assert scores.hit[offset : offset + size].tolist() == chosen.tolist()
        assert (scores.document[offset : offset + size] == spans.document[row]).all()
        assert scores.position[offset : offset + size].tolist() == list(
            range(spans.scored_start[row], spans.scored_end[row])
        )
        offset += size
    assert offset == len(scores.nll)
    assert scores.nll.std() > 0


@pytest.mark.parametrize("sequences", [1, 2, 64])
def test_losses_do_not_depend_on_the_batch(
    small_model: Make,
    as_scorer: Show,
    documents: list[np.ndarray],
    spans: Spans,
    sequences: int,
) -> None:
    """Guards: rows of a forward pass that see each other, or scores that land in another row."""
    model = small_model()
    one = score(as_scorer(model, 3), spans, documents.__getitem__, NAMES)
    other = score(as_scorer(model, sequences), spans, documents.__getitem__, NAMES)
    np.testing.assert_allclose(one.nll, other.nll, rtol=1e-5, atol=1e-5)
    assert (one.position == other.position).all()


def test_logits_in_chunks_equal_logits_at_once(
    small_model: Make,
    as_scorer: Show,
    documents: list[np.ndarray],
    spans: Spans,
) -> None:
    """Guards: chunks of the output head that lose or repeat positions."""
    scorer = as_scorer(small_model())
    whole = score(scorer, spans, documents.__getitem__, NAMES)
    five_rows = dataclasses.replace(scorer, logits_at_once=97 * 5)
    chunked = score(five_rows, spans, documents.__getitem__, NAMES)
    np.testing.assert_allclose(whole.nll, chunked.nll, rtol=1e-5, atol=1e-5)
    assert (whole.hit == chunked.hit).all()


def test_same_targets_at_full_context_equal_one_long_forward(
    small_model: Make, as_scorer: Show, documents: list[np.ndarray]
) -> None:
    """Guards: window positions that do not start at 0, a stretch read from elsewhere."""
    model = small_model()
    protocol = SameTokens(contexts={"1x": 30, "2x": 60}, scored_tokens=10, documents=3)
    planned = same_tokens(np.array([len(d) for d in documents]), protocol)
    scores = score(as_scorer(model), planned["2x"], documents.__getitem__, NAMES)
    assert sorted(set(scores.document.tolist())) == [0, 2, 3]
    for document in (0, 2, 3):
        ids = torch.from_numpy(documents[document].astype(np.int64))[None, 1:61]
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0]
        wanted = torch.nn.functional.cross_entropy(logits[49:59], ids[0, 50:60], reduction="none")
        mine = scores.nll[scores.document == document]
        np.testing.assert_allclose(mine, wanted.numpy(), rtol=1e-4, atol=1e-5)


def test_a_loss_that_is_not_finite_names_run_document_and_position() -> None:
    """Guards: NaN or infinity that enters a mean, or a message that points elsewhere."""
    states = torch.eye(8)
    states[5] = math.nan
    scorer = Scorer(hidden=lambda ids: states[ids], head=torch.eye(8), name="small", sequences=4)
    texts = [np.zeros(40, dtype=np.int64), np.zeros(40, dtype=np.int64)]
    texts[1][21] = 5
    protocol = SlidingWindow(contexts={"1x": 12}, stride_tokens=5, documents=2)
    spans = sliding_window(np.array([40, 40]), protocol)["1x"]
    with pytest.raises(StageError, match=r"small: the loss of document 'b' at position 22 is nan"):
        score(scorer, spans, texts.__getitem__, NAMES)


def test_summary_is_a_mean_over_tokens_not_over_documents() -> None:
    """Guards: documents or windows weighted alike, and float32 sums."""
    random = np.random.default_rng(0)
    document = np.repeat([2, 0], [3, 50_000]).astype(np.int32)
    nll = random.exponential(5, size=len(document)).astype(np.float32)
    hit = random.random(len(document)) < 0.3
    scores = Scores(document=document, position=np.arange(len(nll)), nll=nll, hit=hit)
    numbers = summarise(scores, ["a", "b", "c"], 64)
    assert numbers["documents"] == ["a", "c"]
    assert numbers["tokens"] == [50_000, 3]
    exact = [math.fsum(map(float, nll[document == i])) for i in (0, 2)]
    assert numbers["nll_sums"] == pytest.approx(exact, rel=1e-12)
    assert numbers["hits"] == [int(hit[3:].sum()), int(hit[:3].sum())]
    assert numbers["nll"] == pytest.approx(math.fsum(map(float, nll)) / len(nll), rel=1e-12)
    assert numbers["perplexity"] == pytest.approx(math.exp(numbers["nll"]), rel=1e-12)


def test_a_perplexity_beyond_float64_is_an_error() -> None:
    """Guards: infinity in a result file, which JSON cannot hold."""
    with pytest.raises(StageError, match="no finite perplexity"):
        perplexity(1000.0)


def test_blocks_hold_every_span_once_in_order(
    spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards: spans lost or repeated where blocks meet."""
    blocks = cut(spans, 100)
    assert len(blocks) > 2
    assert all(block.lengths.sum() <= 100 for block in blocks)
    for name in ("document", "start", "end", "scored_start", "scored_end"):
        joined = np.concatenate([getattr(block, name) for block in blocks])
        assert (joined == getattr(spans, name)).all()


def test_blocks_of_other_code_are_not_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards: scores of an older version of the code merged into a new result."""
    scores = Scores(
        document=np.zeros(2, np.int32),
        position=np.arange(2, dtype=np.int32),
        nll=np.array([1.5, 2.5], np.float32),
        hit=np.array([True, False]),
    )
    first = Blocks(tmp_path / "b", {"code": "one"})
    path = first.path(7, 0, 0)
    first.write(path, scores)
    assert Blocks(tmp_path / "b", {"code": "one"}).read([path, path]).nll.tolist() == [
        1.5,
        2.5,
        1.5,
        2.5,
    ]
    assert first.read([path]).hit.tolist() == [True, False]
    Blocks(tmp_path / "b", {"code": "two"})
    assert not path.exists()
    assert "starting anew" in capsys.readouterr().out
