"""The copy probe: its rows, its losses against transformers, its effective length by hand."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from readers import PlainReader
from retrieval_sample import corpus, loaded, story
from transformers import LlamaForCausalLM

from ropewalk.base.stage import StageError
from ropewalk.data.encoding import LoadedTokenizer
from ropewalk.data.tokens import Tokens
from ropewalk.evaluate import copying
from ropewalk.evaluate.filler import corpus_tokens
from ropewalk.evaluate.plan import Plan
from ropewalk.evaluate.reach import effective_length
from ropewalk.evaluate.scorer import Scores, score
from ropewalk.evaluate.spec import CopyProbe

PROBE = CopyProbe(context_tokens=150, distances=6, trials=5, segment_tokens=9)


@pytest.fixture(scope="module", params=["byte level", "without bos"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: Any) -> LoadedTokenizer:
    return loaded(request.param, tmp_path_factory.mktemp("words"))


@pytest.fixture
def tokens(tokenizer: LoadedTokenizer, tmp_path: Path) -> Tokens:
    return story(tokenizer, tmp_path / "tokens")


def scored(planned: Plan, reader: PlainReader) -> dict[str, Scores]:
    return {
        label: score(reader, spans, planned.document, sequences=3)
        for label, spans in planned.spans.items()
    }


def plain_text(tokens: Tokens, tokenizer: LoadedTokenizer) -> list[int]:
    whole = [int(i) for index in range(tokens.count) for i in tokens.document(index)]
    return [i for i in whole if i > 17]  # BOS, EOS and 16 reserved tokens come first


def test_rows_are_opening_segment_filler_segment(
    tokenizer: LoadedTokenizer, tokens: Tokens
) -> None:
    """Guards: showings that differ, a distance off by the opening or the segment, odd filler."""
    planned = copying.plan(PROBE, 3, tokens, tokenizer)
    text = plain_text(tokens, tokenizer)
    twice = ",".join(map(str, text + text))
    size, trials = 9, 5
    distances = sorted({int(name.split("/")[0]) for name in planned.documents})
    assert distances[0] == size
    assert distances[-1] == 150 - size - 1
    assert len(planned.documents) == trials * len(distances)
    for index, name in enumerate(planned.documents):
        distance, trial = map(int, name.split("/"))
        row = planned.document(index).tolist()
        assert len(row) == 1 + distance + size <= 150
        assert row[1 : 1 + size] == row[1 + distance :]
        if tokenizer.bos is not None:
            assert row[0] == tokenizer.bos
        assert set(row[1:]) <= set(text)
        filler = row[1 + size : 1 + distance]
        assert ",".join(map(str, filler)) in twice
        longest = planned.document((len(distances) - 1) * trials + trial).tolist()
        assert row[: 1 + size] == longest[: 1 + size]
        assert row[1 + size :] == longest[len(longest) - len(row) + 1 + size :]
    gaps = np.diff(np.log(distances))
    assert gaps.max() < 1.2 * gaps.min()


def test_numbers_are_those_of_a_plain_loop(
    tokenizer: LoadedTokenizer, tokens: Tokens, small_model: Callable[..., LlamaForCausalLM]
) -> None:
    """Guards: losses of other tokens than the showings', means over them, a lost first token.

    The loop reads every row whole, so that a first showing read alone must have the same loss.
    """
    model = small_model(420)
    planned = copying.plan(PROBE, 3, tokens, tokenizer)
    found = planned.summarise(scored(planned, PlainReader(model)), {})
    size, trials = 9, 5
    for index, name in enumerate(planned.documents):
        place, trial = divmod(index, trials)
        distance = int(name.split("/")[0])
        ids = torch.from_numpy(planned.document(index))
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0].double()
        losses = torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none")
        first = losses[1:size].mean().item()
        second = losses[1 + distance : distance + size].mean().item()
        assert found["distances"][place] == distance
        assert found["first_nll"][place][trial] == pytest.approx(first, abs=1e-4)
        assert found["second_nll"][place][trial] == pytest.approx(second, abs=1e-4)
        assert found["drops"][place][trial] == pytest.approx(first - second, abs=2e-4)


class Copyist(PlainReader):
    """Predicts what followed the last appearance of a token, if that is not too far back."""

    def __init__(self, back: int, vocabulary_size: int) -> None:
        self.back = back
        self.vocabulary_size = vocabulary_size
        self.name = "copyist"
        self.device = torch.device("cpu")

    def logits(self, ids: torch.Tensor, first: int, count: int) -> torch.Tensor:
        logits = torch.zeros(*ids.shape, self.vocabulary_size)
        for row, text in enumerate(ids.tolist()):
            for place, token in enumerate(text):
                for before in range(place - 1, max(place - self.back, 0) - 1, -1):
                    if text[before] == token:
                        logits[row, place, text[before + 1]] = 20.0
                        break
        return logits[:, first : first + count]


@pytest.mark.parametrize("back", [9, 40, 41, 400])
def test_reach_is_how_far_back_a_model_looks(tmp_path: Path, back: int) -> None:
    """Guards: a distance measured from another token than the first, a reach one step off."""
    words = loaded("byte level", tmp_path / "words")
    random = np.random.default_rng(1)
    # many words, so that hardly any token of a row is there by chance
    tokens = corpus(tmp_path / "tokens", [random.permutation(np.arange(18, 60_000))], 60_000)
    probe = dataclasses.replace(PROBE, context_tokens=130, distances=20)
    planned = copying.plan(probe, 0, tokens, words)
    found = planned.summarise(scored(planned, Copyist(back, 60_000)), {})
    distances = found["distances"]
    assert found["reach"] == max(d for d in distances if d <= back)
    assert found["reach_share"] == found["reach"] / distances[-1]
    assert found["reach_interval"] == {"low": found["reach"], "high": found["reach"]}
    expected = [1.0 if distance <= back else 0.0 for distance in distances]
    assert found["accuracy"] == pytest.approx(expected)
    assert found["chance_accuracy"] == 0
    for distance, drops in zip(distances, found["drops"], strict=True):
        assert (
            np.mean(drops) == pytest.approx(math.log(60_000), abs=0.1)
            if distance <= back
            else (abs(np.mean(drops)) < 0.01)
        )


@settings(deadline=None)
@given(
    drops=st.lists(st.floats(-1, 3, allow_nan=False), min_size=1, max_size=8),
    share=st.sampled_from([0.25, 0.5, 1.0]),
    least=st.sampled_from([0.0, 0.5]),
)
def test_effective_length_is_the_rule_in_words(
    drops: list[float], share: float, least: float
) -> None:
    """Guards: a reach that skips a failed distance, or counts from nothing."""
    distances = [10 * 2**i for i in range(len(drops))]
    expected = 0
    if drops[0] > least:
        for distance, drop in zip(distances, drops, strict=True):
            if drop < share * drops[0]:
                break
            expected = distance
    found = effective_length(distances, np.array([drops, drops]), share=share, least_nats=least)
    assert found.tolist() == [expected, expected]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31), spread=st.sampled_from([0.0, 0.3, 2.0]))
def test_interval_is_that_of_the_plain_bootstrap(seed: int, spread: float) -> None:
    """Guards: trials resampled apart at each distance, an interval of something else."""
    random = np.random.default_rng(seed)
    probe = dataclasses.replace(PROBE, trials=12)
    distances = copying.distances_of(probe)
    rows = copying.build(probe, 0, np.arange(20, 400), 0)
    trials = random.normal(0, spread, size=12)  # what a trial has at every distance
    curve = np.linspace(2.0, 0.2, len(distances))
    drops = curve[:, None] + trials

    def scores(nll: np.ndarray) -> Scores:
        empty = np.zeros(nll.size, dtype=np.int32)
        return Scores(
            document=empty,
            position=empty,
            preceding=empty,
            window=empty,
            nll=nll.ravel().astype(np.float32),
            hit=np.zeros(nll.size, dtype=bool),
        )

    first = np.full((12, 9), 5.0)
    second = np.repeat(5.0 - drops.reshape(-1, 1), 9, axis=1)
    found = copying.summarise(
        {"first": scores(first), "second": scores(second)}, rows, probe, seed=7
    )
    assert found["drops"] == pytest.approx(drops, abs=1e-5)
    means = drops[:, random.integers(12, size=(20_000, 12))].mean(axis=2)  # [distances, draws]
    plain = np.zeros(20_000)
    still = means[0] > 0.5
    for distance, mean in zip(distances, means, strict=True):
        still = still & (mean >= 0.5 * means[0])
        plain[still] = distance
    # 0.015: four standard errors of a tail of 2.5 % in 2,000 draws
    low, high = found["reach_interval"]["low"], found["reach_interval"]["high"]
    assert (plain < low).mean() <= 0.025 + 0.015
    assert (plain <= low).mean() >= 0.025 - 0.015
    assert (plain < high).mean() <= 0.975 + 0.015
    assert (plain <= high).mean() >= 0.975 - 0.015
    if spread == 0.0:
        assert found["reach_interval"]["low"] == found["reach_interval"]["high"] == found["reach"]


def test_tokens_have_the_frequencies_of_the_corpus(tmp_path: Path) -> None:
    """Guards: segments of rare tokens, of special ones, or of running text."""
    words = loaded("byte level", tmp_path / "words")
    document = np.array([0, *([30] * 60 + [31] * 30 + [32] * 10) * 20, 1])
    tokens = corpus(tmp_path / "tokens", [document, np.array([0, 5, 6, 7])])
    probe = dataclasses.replace(PROBE, trials=400)
    planned = copying.plan(probe, 0, tokens, words)
    drawn = np.concatenate([planned.document(i)[1:10] for i in range(400)])
    shares = [float((drawn == token).mean()) for token in (30, 31, 32)]
    assert shares == pytest.approx([0.6, 0.3, 0.1], abs=0.03)  # 6 standard errors
    assert sum(shares) == pytest.approx(1.0)
    # running text would repeat a token most of the time
    repeated = np.mean([np.diff(planned.document(i)[1:10]) == 0 for i in range(400)])
    assert repeated == pytest.approx(0.6**2 + 0.3**2 + 0.1**2, abs=0.05)


def test_of_a_large_corpus_only_the_beginning_is_read(tmp_path: Path) -> None:
    """Guards: a corpus of a billion tokens read for filler; limits passed by a document."""
    words = loaded("byte level", tmp_path / "words")

    class Counting:
        count = 1000
        asked: ClassVar[list[int]] = []

        def document(self, index: int) -> np.ndarray:
            self.asked.append(index)
            return np.array([0, *range(30, 40), 1])

    found = corpus_tokens(Counting(), words, limit=25)  # type: ignore[arg-type]
    assert [len(ids) for ids in found] == [10, 10, 5]
    assert Counting.asked == [0, 1, 2]


def test_losses_that_are_not_finite_copy_nothing(
    tokenizer: LoadedTokenizer, tokens: Tokens, small_model: Callable[..., LlamaForCausalLM]
) -> None:
    """Guards: one overflow that turns a whole curve, or a result file, into NaN."""
    planned = copying.plan(PROBE, 3, tokens, tokenizer)
    whole = scored(planned, PlainReader(small_model(420)))
    second = whole["second"].nll.copy()
    second[:9] = np.nan  # trial 0 at the shortest distance
    second[10] = np.inf  # one token of trial 1
    broken = {**whole, "second": dataclasses.replace(whole["second"], nll=second)}
    expected, found = planned.summarise(whole, {}), planned.summarise(broken, {})
    assert found["second_nll"][0][0] is None
    assert found["drops"][0][0] == 0.0
    kept = np.delete(whole["second"].nll[9:18].astype(float), [0, 1]).mean()
    assert found["second_nll"][0][1] == pytest.approx(kept)
    assert found["drops"][1:] == expected["drops"][1:]


def test_a_corpus_without_text_is_an_error(tmp_path: Path) -> None:
    """Guards: a probe of nothing."""
    words = loaded("byte level", tmp_path / "words")
    tokens = corpus(tmp_path / "tokens", [np.array([0, 1, 3])])
    with pytest.raises(StageError, match="no tokens to cut filler from"):
        copying.plan(PROBE, 0, tokens, words)
