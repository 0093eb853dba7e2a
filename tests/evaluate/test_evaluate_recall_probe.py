"""The recall probe's plan: what is asked, what is dropped, and chance."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from retrieval_sample import corpus, loaded, story

from ropewalk.base.stage import StageError
from ropewalk.data.encoding import LoadedTokenizer
from ropewalk.evaluate import intervals, recall_probe, retrieval
from ropewalk.evaluate.retrieval import Trial, Trials
from ropewalk.evaluate.scorer import Scores
from ropewalk.evaluate.spec import RecallProbe

PROTOCOL = RecallProbe(context_tokens=96, distances=8, trials=3, threshold=0.5, keys=8)


@pytest.fixture(scope="module", params=["byte level", "without bos"])
def words(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> LoadedTokenizer:
    return loaded(request.param, tmp_path_factory.mktemp("words"))


@pytest.mark.parametrize("prompt", ["shortest", "full"])
def test_questions_are_about_a_pair_at_the_distance(
    words: LoadedTokenizer, tmp_path: Path, prompt: str
) -> None:
    """Guards: a key that was never shown, another distance, an answer that is not scored."""
    protocol = dataclasses.replace(PROTOCOL, prompt=prompt)
    planned = recall_probe.plan(protocol, 2, story(words, tmp_path), words)
    spans = planned.spans["answers"]
    tested = sorted({int(name.split("/")[0]) for name in planned.documents})
    for row, name in enumerate(planned.documents):
        distance, ids = int(name.split("/")[0]), planned.document(row).tolist()
        assert (int(spans.scored_start[row]), int(spans.scored_end[row])) == (
            len(ids) - 1,
            len(ids),
        )
        question, answer = ids[:-1], ids[-1]
        key = question[-1]
        assert question[-2] == 1  # the marker
        assert question[-distance] == key
        assert question[-distance - 1] == 1
        assert question[-distance + 1] == answer
        assert key not in question[len(question) - distance + 1 : -1]
        assert len(ids) == 96 if prompt == "full" else len(ids) <= 96
    assert len(tested) + len(planned.dropped) == 8
    assert all("pairs can stand" in text for text in planned.dropped)


def test_numbers_of_a_snapshot(words: LoadedTokenizer, tmp_path: Path) -> None:
    """Guards: successes counted over other trials, a chance of something else, no intervals."""
    planned = recall_probe.plan(PROTOCOL, 2, story(words, tmp_path), words)
    count = len(planned.documents)
    hit = np.zeros(count, dtype=bool)
    hit[:5] = True
    column = np.arange(count, dtype=np.int32)
    found = planned.summarise(
        {
            "answers": Scores(
                document=column,
                position=column,
                preceding=column,
                window=column,
                nll=np.ones(count, dtype=np.float32),
                hit=hit,
            )
        },
        {},
    )
    rest = len(found["distances"]) - 2
    assert found["successes"] == [3, 2] + [0] * rest
    assert found["trials"] == [3] * (rest + 2)
    assert found["chance"] == 1 / 8
    assert found["reach"] == found["distances"][1]
    assert found["untestable"] == [int(text.split()[1][:-1]) for text in planned.dropped]
    assert found["wilson"][1] == list(dataclasses.astuple(intervals.wilson(2, 3)))
    assert found["reach_interval"]["low"] <= found["reach"] <= found["reach_interval"]["high"]
    assert found["accuracy"] == 5 / count


def test_the_interval_of_the_reach_is_drawn_with_the_seed() -> None:
    """Guards: intervals of two evaluations that share their luck, or none that can be had again."""
    distances = tuple(range(10, 330, 10))
    trials = tuple(
        Trial(distance=distance, ids=np.arange(3), answer_start=2)
        for distance in distances
        for _ in range(10)
    )
    probe = Trials(context_tokens=320, trials=trials, distances=distances, untestable=())
    verdicts = (np.random.default_rng(0).random(320) < 0.45).tolist()
    measured = (distances, retrieval.successes(verdicts, probe), [10] * 32, 0.2)
    expected = [intervals.reach(*measured, seed=seed) for seed in range(40)]
    assert len({(interval.low, interval.high) for interval in expected}) > 1
    for seed, interval in enumerate(expected):
        found = retrieval.summarise(
            verdicts, probe, dataclasses.replace(PROTOCOL, threshold=0.2), seed
        )
        assert found["reach_interval"] == dataclasses.asdict(interval)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keys": 9}, "need 18 reserved tokens"),
        ({"context_tokens": 20}, "pairs do not fit 20 tokens"),
    ],
)
def test_a_probe_that_cannot_be_is_an_error(
    words: LoadedTokenizer, tmp_path: Path, changes: dict, message: str
) -> None:
    """Guards: a traceback in place of the setting that is wrong."""
    protocol = dataclasses.replace(PROTOCOL, **changes)
    with pytest.raises(StageError, match=message):
        recall_probe.plan(protocol, 2, story(words, tmp_path), words)


def test_an_empty_corpus_is_an_error(words: LoadedTokenizer, tmp_path: Path) -> None:
    """Guards: filler cut from nothing."""
    with pytest.raises(StageError, match="no tokens to cut filler from"):
        recall_probe.plan(PROTOCOL, 2, corpus(tmp_path, [np.array([0, 1])]), words)
