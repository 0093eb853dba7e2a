"""Loss by position, and truncated perplexity at every context from one forward."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from perplexity_cases import BOS, WORDS, Documents, brute_force, loaded, random_ids
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from ropewalk.base.stage import StageError
from ropewalk.data.encoding import LoadedTokenizer
from ropewalk.evaluate import losses
from ropewalk.evaluate.curve import curve, edges
from ropewalk.evaluate.plan import Plan
from ropewalk.evaluate.scorer import Scores, score
from ropewalk.evaluate.spec import PositionCurve, SlidingWindow
from ropewalk.model.readers import depends_on_length, open_reader
from ropewalk.model.spec import (
    BaseRope,
    DynamicNtkRope,
    LinearRope,
    LogScaledRope,
    NtkRope,
    Numerics,
    PlainRope,
    Rope,
    StringRope,
    YarnRope,
)

CONTEXTS = {"0.5x": 24, "1x": 48, "2x": 96}
LENGTHS = (96, 130, 95, 97, 40)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Compute on one thread: many tiny forwards wait for each other's threads otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> LoadedTokenizer:
    return loaded(tmp_path_factory.mktemp("words"), tokenizer, opening=True)


@pytest.fixture(scope="module")
def documents() -> Documents:
    return Documents([[BOS, *ids] for ids in random_ids(LENGTHS)])


@settings(deadline=None)
@given(st.integers(2, 5000), st.integers(1, 80))
def test_edges_hold_every_position_once_and_grow_geometrically(longest: int, points: int) -> None:
    """Guards: positions that fall between bins, empty bins, bins of equal width."""
    bins = edges(longest, points)
    assert (bins[0], bins[-1]) == (1, longest)
    widths = np.diff(bins)
    assert (widths >= 1).all()
    assert len(widths) <= points
    ratio = longest ** (1 / points)
    wanted = {round(ratio**i) for i in range(points + 1)}
    assert all(min(abs(edge - w) for w in wanted) <= 1 for edge in bins.tolist())
    if ratio > 3:
        assert len(widths) == points


def test_a_curve_is_sums_over_tokens_at_those_positions(
    small_model: Callable[..., LlamaForCausalLM], words: LoadedTokenizer, documents: Documents
) -> None:
    """Guards: a curve shifted by one, bins that overlap, documents mixed up, BOS not counted."""
    protocol = PositionCurve(contexts=CONTEXTS, points=9)
    planned = losses.plan(protocol, 0, documents, words)
    assert planned.documents == ["doc-0", "doc-1", "doc-2", "doc-3"]  # 95 words and BOS do
    model = small_model(WORDS).double()
    found = planned.summarise(brute_force(model, planned), {})["curve"]
    bins = found["edges"]
    for row, index in enumerate((0, 1, 2, 3)):
        ids = torch.from_numpy(documents.document(index)[:96].astype(np.int64))[None]
        with torch.no_grad():
            logs = torch.log_softmax(model(input_ids=ids).logits[0], -1)
        for i, (low, high) in enumerate(itertools.pairwise(bins)):
            places = range(low, high)
            nll = [-logs[p - 1, ids[0, p]].item() for p in places]
            hits = [int(logs[p - 1].argmax() == ids[0, p]) for p in places]
            assert found["counts"][row][i] == high - low
            assert found["nll_sums"][row][i] == pytest.approx(math.fsum(nll), rel=1e-10)
            assert found["hits"][row][i] == sum(hits)
    assert found["tokens"] == [4 * (h - low) for low, h in itertools.pairwise(bins)]
    means = np.array(found["nll_sums"]).sum(0) / np.array(found["tokens"])
    assert found["nll"] == pytest.approx(means.tolist(), rel=1e-12)
    shares = np.array(found["hits"]).sum(0) / np.array(found["tokens"])
    assert found["accuracy"] == pytest.approx(shares.tolist(), rel=1e-12)
    assert sum(map(sum, found["hits"])) > 0


@pytest.mark.parametrize("opening", [True, False])
def test_what_is_skipped_might_as_well_not_be_there(
    small_model: Callable[..., LlamaForCausalLM],
    tokenizer: Tokenizer,
    tmp_path: Path,
    opening: bool,
) -> None:
    """Guards: a licence that is skipped and read all the same, or BOS skipped with it."""
    ids = random_ids((104, 110, 103, 140))
    bos = [BOS] * opening
    words = loaded(tmp_path, tokenizer, opening=opening)
    model = small_model(WORDS).double()
    whole, rest = (Documents([[*bos, *one[first:]] for one in ids]) for first in (0, 9))
    for protocol in (
        PositionCurve(contexts=CONTEXTS, documents=2, points=9),
        SlidingWindow(contexts=CONTEXTS, documents=2, minimum_tokens=96, stride_tokens=None),
        SlidingWindow(contexts=CONTEXTS, bos="none", stride_tokens=7, tail="short", cut_tokens=50),
    ):
        skipping = dataclasses.replace(protocol, skip_tokens=9)
        planned = losses.plan(skipping, 0, whole, words)
        expected = losses.plan(protocol, 0, rest, words)
        found, wanted = (p.summarise(brute_force(model, p), {}) for p in (planned, expected))
        assert found == wanted
        assert planned.documents == expected.documents


def test_losses_that_are_not_finite_are_in_no_bin() -> None:
    """Guards: a NaN that spreads, or a bin without tokens that divides by zero."""
    nll = np.array([1.0, math.nan, 3.0, 4.0, math.inf, 6.0], dtype=np.float32)
    rows = np.arange(3, dtype=np.int32)
    scores = Scores(
        document=np.repeat([0, 1], 3).astype(np.int32),
        position=np.tile(rows + 1, 2),
        preceding=np.tile(rows + 1, 2),
        window=np.repeat([0, 1], 3).astype(np.int32),
        nll=nll,
        hit=np.array([True] * 6),
    )
    found = curve(scores, ["a", "b"], np.array([1, 2, 3, 4]))
    assert found["nll"] == [2.5, None, 4.5]
    assert found["accuracy"] == [1.0, None, 1.0]
    assert found["counts"] == [[1, 0, 1], [1, 0, 1]]


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, small_model: Callable[..., LlamaForCausalLM]
) -> Path:
    """Return a folder with a model whose window is 32 tokens."""
    path = tmp_path_factory.mktemp("model")
    model = small_model(WORDS)
    model.config.max_position_embeddings = 32
    model.save_pretrained(path)
    return path


def read(folder: Path, rope: Rope, planned: Plan) -> dict:
    """Return the numbers of a plan under a rope, as the stage gets them."""
    with open_reader(folder, rope=rope, numerics=Numerics(), device=torch.device("cpu")) as reader:
        scores = {
            label: score(reader, spans, planned.document, opening=planned.opening)
            for label, spans in planned.spans.items()
        }
    return planned.summarise(scores, {})["contexts"]


def truncated(documents: Documents, words: LoadedTokenizer, *, alone: bool) -> Plan:
    """Return the plan of the same numbers as the curve's: a forward for each context, or one."""
    protocol = SlidingWindow(contexts=CONTEXTS, stride_tokens=None, minimum_tokens=96)
    return losses.plan(protocol, 0, documents, words, depends_on_length=alone)


@pytest.mark.parametrize(
    "rope",
    [
        PlainRope(),
        BaseRope(base=500.0),
        LinearRope(factor=4.0),
        NtkRope(factor=4.0),
        YarnRope(factor=4.0),
        LogScaledRope(window_tokens=20),
        StringRope(shift_tokens=40, window_tokens=8),
    ],
    ids=lambda rope: rope.kind,
)
def test_one_forward_gives_every_context(
    folder: Path, words: LoadedTokenizer, documents: Documents, rope: Rope
) -> None:
    """Guards: sharing a forward where it changes the number."""
    # STRING, whose shift is chosen for one length, is not planned so, although it would be exact.
    assert depends_on_length(folder, rope) == isinstance(rope, StringRope)
    planned = losses.plan(PositionCurve(contexts=CONTEXTS), 0, documents, words)
    assert planned.sequences == 4
    together = read(folder, rope, planned)
    alone = truncated(documents, words, alone=True)
    assert alone.sequences == 12
    apart = read(folder, rope, alone)
    for label, context in CONTEXTS.items():
        assert together[label]["nll_sums"] == pytest.approx(apart[label]["nll_sums"], rel=2e-6)
        assert together[label]["tokens"] == apart[label]["tokens"] == [context - 1] * 4
    values = [apart[label]["nll"] for label in CONTEXTS]
    assert len({round(value, 4) for value in values}) == len(values)


def test_a_rope_that_depends_on_the_length_has_a_forward_for_every_context(
    folder: Path, words: LoadedTokenizer, documents: Documents
) -> None:
    """Guards: numbers of short contexts read with the angles of the longest."""
    rope = DynamicNtkRope()
    assert depends_on_length(folder, rope)
    apart = read(folder, rope, truncated(documents, words, alone=True))
    together = read(folder, rope, truncated(documents, words, alone=False))
    assert together["2x"]["nll"] == pytest.approx(apart["2x"]["nll"], rel=1e-6)
    for label in ("0.5x", "1x"):
        assert abs(together[label]["nll"] - apart[label]["nll"]) > 1e-3
    with pytest.raises(StageError, match=r"protocol\.kind: a position_curve .* sliding_window"):
        losses.plan(PositionCurve(contexts=CONTEXTS), 0, documents, words, depends_on_length=True)
