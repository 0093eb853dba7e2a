"""Passkey prompts: wording, exact lengths, and verdicts against greedy decoding."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from readers import PlainReader
from retrieval_sample import (
    KINDS,
    decoded,
    greedy_over_spaces,
    loaded,
    spoken,
    story,
)
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from ropewalk.base.stage import StageError
from ropewalk.data.encoding import LoadedTokenizer
from ropewalk.evaluate import intervals, passkey, retrieval
from ropewalk.evaluate.fitting import Unfit
from ropewalk.evaluate.passkey import Builder
from ropewalk.evaluate.plan import Plan, Replies
from ropewalk.evaluate.reach import k_max
from ropewalk.evaluate.retrieval import Trial, build
from ropewalk.evaluate.scorer import score
from ropewalk.evaluate.spec import Passkey

WORDING = re.compile(
    r"There is an important info hidden inside a lot of irrelevant text\. Find it and memorize "
    r"them\. I will quiz you about the important information there\.\n"
    r"(?:(?P<before>[^\n]*)\n)?"
    r"The pass key is (?P<key>\d+)\. Remember it\. (?P=key) is the pass key\.\n"
    r"(?:(?P<after>[^\n]*)\n)?"
    r"What is the pass key\? The pass key is"
)
SENTENCES = (
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
)


def prompts(tokenizer: Tokenizer, bos: int | None = 0, digits: int = 5) -> Builder:
    return Builder(tokenizer, bos, digits=digits, seed=3)


@pytest.mark.parametrize("bos", [0, None])
@pytest.mark.parametrize("context", [300, 611])
def test_prompts_have_exactly_the_demanded_tokens_and_wording(
    tokenizer: Tokenizer, context: int, bos: int | None
) -> None:
    """Guards: lengths off by the question, the BOS or a merged token; a key that is elsewhere."""
    maker = prompts(tokenizer, bos)
    built = 0
    for distance in range(40, context, 37):
        try:
            trial = maker.trial(context, distance, 0)
        except Unfit:
            continue
        built += 1
        assert len(trial.ids) == context
        ids = trial.ids.tolist()
        assert (ids[0] == 0) == (bos == 0)
        text = tokenizer.decode(ids[: trial.answer_start], skip_special_tokens=True)
        found = WORDING.fullmatch(text)
        assert found is not None
        for filler in (found["before"] or "", found["after"] or ""):
            assert (SENTENCES * 40).startswith(filler)
        # the key begins `distance` tokens from the end of the prompt, and not a token earlier
        tail = tokenizer.decode(ids[trial.answer_start - distance : trial.answer_start])
        assert tail.lstrip(" ").startswith(found["key"] + ". Remember it.")
        later = tokenizer.decode(ids[trial.answer_start - distance + 1 : trial.answer_start])
        assert not later.lstrip(" ").startswith(found["key"] + ". Remember it.")
        assert tokenizer.decode(ids[trial.answer_start :]) == f" {found['key']}"
        whole = tokenizer.encode(f"{text} {found['key']}", add_special_tokens=False).ids
        assert ids[0 if bos is None else 1 :] == whole
    assert built >= 3


def test_most_distances_can_be_built(tokenizer: Tokenizer) -> None:
    """Guards: distances dropped because the search for a cut gives up."""
    trials = build(1024, 32, 2, lambda d, n: prompts(tokenizer).trial(1024, d, n))
    text = "The pass key is 12345. Remember it. 12345 is the pass key.\nWhat is the pass key? The "
    shortest = len(tokenizer.encode(text + "pass key is").ids)
    introduction = len(tokenizer.encode("There is an important info" * 8).ids)
    assert set(trials.distances) | set(trials.untestable) == {32 * i for i in range(1, 33)}
    for distance, words in zip(trials.untestable, trials.dropped, strict=True):
        assert distance < shortest or distance > 1024 - introduction
        assert words.startswith(f"distance {distance}: ")
        assert ("the question alone" in words) == (distance < 1024 - introduction)
    assert len(trials.distances) >= 20
    assert len(trials.trials) == 2 * len(trials.distances)


@pytest.mark.parametrize("digits", [1, 3, 7])
def test_keys_have_their_digits_and_are_drawn_per_distance_and_trial(
    tokenizer: Tokenizer, digits: int
) -> None:
    """Guards: keys from 1 to 50,000 that may be short, and one key for all trials."""
    maker = prompts(tokenizer, digits=digits)
    keys = [maker.key(distance, trial) for distance in range(20) for trial in range(10)]
    assert {len(key) for key in keys} == {digits}
    assert all(key[0] != "0" for key in keys)
    assert len(set(keys)) > (180 if digits == 7 else 5)
    assert keys == [
        prompts(tokenizer, digits=digits).key(d, t) for d in range(20) for t in range(10)
    ]


def test_a_trial_does_not_depend_on_those_built_before(tokenizer: Tokenizer) -> None:
    """Guards: prompts that differ when an evaluation is resumed or has more trials."""
    maker = prompts(tokenizer)
    forwards = [maker.trial(400, 200, number) for number in range(6)]
    for number in (5, 2, 0):
        alone = prompts(tokenizer).trial(400, 200, number)
        expected = forwards[number]
        assert alone.ids.tolist() == expected.ids.tolist()


def test_a_context_without_room_is_an_error(tokenizer: Tokenizer) -> None:
    """Guards: a probe of nothing that reports an accuracy."""
    with pytest.raises(StageError, match=r"protocol\.context_tokens 64 is too short"):
        build(64, 8, 1, lambda d, n: prompts(tokenizer).trial(64, d, n))


def test_an_answer_that_changes_the_prompt_is_dropped(tmp_path: Path) -> None:
    """Guards: prompts that end in the middle of a token, which no decoding can continue."""
    words = greedy_over_spaces(tmp_path)
    tokenizer = words.tokenizer
    alone = tokenizer.encode(passkey.QUESTION).ids
    joint = tokenizer.encode(passkey.QUESTION + " 12345").ids
    assert joint[: len(alone)] != alone  # the sample is one
    maker = Builder(tokenizer, None, digits=5, seed=0)
    with pytest.raises(Unfit, match="tokens of the prompt change when the answer follows"):
        maker.trial(None, 200, 0)
    with pytest.raises(Unfit, match="tokens of the prompt change when the answer follows"):
        maker.trial(600, 200, 0)


def some_trials(model: LlamaForCausalLM, count: int, seed: int) -> tuple[list[Trial], list[bool]]:
    """Return random prompts with answers of 1 to 5 tokens, and whether decoding gives these.

    Half of the answers are what the model itself generates, half of these are then spoilt in one
    token, so that successes, near misses and failures all occur.
    """
    random = np.random.default_rng(seed)
    trials, wanted = [], []
    for number in range(count):
        size = 1 + number % 5
        prompt = random.integers(1, 97, size=20 + number % 7).tolist()
        greedy = decoded(model, prompt, size)
        answer = list(greedy)
        if number % 2:
            spoilt = int(random.integers(size))
            answer[spoilt] = (answer[spoilt] + 1 + int(random.integers(95))) % 97
        trials.append(Trial(distance=8, ids=np.array(prompt + answer), answer_start=len(prompt)))
        wanted.append(answer == greedy)
    return trials, wanted


@pytest.mark.parametrize("seed", range(3))
def test_teacher_forcing_decides_what_greedy_decoding_decides(
    small_model: Callable[..., LlamaForCausalLM], seed: int
) -> None:
    """Guards: a success that decoding would not have produced, or a failure that it would."""
    model = small_model(seed=seed)
    trials, wanted = some_trials(model, 16, seed)
    assert 0 < sum(wanted) < len(wanted)
    found = build(8, 1, len(trials), lambda _, n: trials[n])
    scores = score(PlainReader(model), found.spans, found.ids, sequences=3)
    verdicts = retrieval.forced(scores, found)
    assert verdicts == wanted
    protocol = Passkey(context_tokens=8, distances=1, trials=16, threshold=0.5)
    numbers = retrieval.summarise(verdicts, found, protocol, seed=0)
    assert numbers["successes"] == [sum(wanted)]
    assert numbers["accuracy"] == sum(wanted) / len(wanted)
    assert numbers["reach"] == (8 if sum(wanted) >= 8 else 0)


PROTOCOL = Passkey(
    context_tokens=512, distances=8, trials=4, threshold=0.5, decoded_tokens=16, allow=("dropped",)
)


@pytest.fixture(scope="module", params=KINDS)
def words(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> LoadedTokenizer:
    return loaded(request.param, tmp_path_factory.mktemp("words"))


@pytest.fixture
def planned(words: LoadedTokenizer, tmp_path: Path) -> Plan:
    return passkey.plan(PROTOCOL, 3, story(words, tmp_path), words)


def keys_of(planned: Plan, words: LoadedTokenizer) -> list[str]:
    """Return the keys as they stand in the prompts."""
    texts = [words.tokenizer.decode(ids.tolist()) for ids in planned.prompts["passkey"].ids]
    found = [re.search(r"The pass key is (\d+)\. Remember it", text) for text in texts]
    return [key[1] for key in found if key]


def test_prompts_are_the_trials_without_their_answers(
    planned: Plan, words: LoadedTokenizer
) -> None:
    """Guards: answers decoded to other prompts than those scored, or with the answer shown."""
    spans, prompts = planned.spans["answers"], planned.prompts["passkey"]
    keys = keys_of(planned, words)
    assert len(prompts) == len(spans) == len(planned.documents) == len(keys)
    assert list(prompts.names) == list(planned.documents)
    assert prompts.stop == (words.eos,)
    assert (prompts.new_tokens, prompts.temperature) == (16, 0.0)
    for row, (ids, key) in enumerate(zip(prompts.ids, keys, strict=True)):
        whole = planned.document(row)
        start, end = int(spans.scored_start[row]), int(spans.scored_end[row])
        assert (start, end) == (len(ids), len(whole))
        assert whole[:start].tolist() == ids.tolist()
        assert words.tokenizer.decode(whole[start:].tolist()).strip() == key
        assert (ids[0] == words.bos) == (words.bos is not None)
        assert len(whole) <= 512
    tested = {int(name.split("/")[0]) for name in planned.documents}
    grid = {64 * i for i in range(1, 9)}
    assert {int(re.findall(r"\d+", dropped)[0]) for dropped in planned.dropped} == grid - tested
    assert tested
    assert tested != grid


@pytest.mark.parametrize("scorer", ["tokens", "first_integer", "substring"])
def test_scorers_stand_side_by_side_and_the_named_one_decides(
    words: LoadedTokenizer, tmp_path: Path, scorer: str
) -> None:
    """Guards: one scorer's successes under another's name, replies of other trials."""
    protocol = dataclasses.replace(PROTOCOL, scorer=scorer)
    planned = passkey.plan(protocol, 3, story(words, tmp_path), words)
    keys = keys_of(planned, words)
    # per distance: right and on, right with more digits, another number first, nothing
    texts = [
        (f" {key}. The", f" {key}7", f" 3 or {key}", " none")[i % 4] for i, key in enumerate(keys)
    ]
    replies = spoken([text.lstrip() if words.bos == 1 else text for text in texts], words)
    scores = score(Hopeless(words.vocabulary_size), planned.spans["answers"], planned.document)
    found = planned.summarise({"answers": scores}, {"passkey": replies})
    tested = len(keys) // 4
    # LLaMA's kind reads digits one by one, so that a longer number begins with the key's tokens
    begins = [
        whole[: len(answer)] == answer
        for whole, answer in (
            (
                words.tokenizer.encode(f"is {key}7").ids,
                words.tokenizer.encode(f"is {key}").ids,
            )
            for key in keys
        )
    ]
    by_tokens = [1 + sum(begins[4 * i + 1 : 4 * i + 2]) for i in range(tested)]
    assert found["scorers"] == {
        "forced": [0] * tested,
        "tokens": by_tokens,
        "first_integer": [1] * tested,
        "substring": [3] * tested,
    }
    assert found["successes"] == found["scorers"][scorer]
    measured = (found["distances"], found["successes"], found["trials"], 0.5)
    assert found["reach"] == k_max(*measured)
    assert found["reach_interval"] == dataclasses.asdict(intervals.reach(*measured, seed=3))
    for successes, trials, (low, high) in zip(
        found["successes"], found["trials"], found["wilson"], strict=True
    ):
        expected = intervals.wilson(successes, trials)
        assert (low, high) == (expected.low, expected.high)
    assert [text for row in found["replies"] for text in row] == [
        words.tokenizer.decode(ids.tolist()) for ids in replies.ids
    ]
    assert [len(row) for row in found["replies"]] == [4] * tested


class Hopeless(PlainReader):
    """Thinks nothing likelier than token 0, which is no digit."""

    def __init__(self, vocabulary_size: int) -> None:
        self.vocabulary_size = vocabulary_size
        self.name = "hopeless"
        self.device = torch.device("cpu")

    def logits(self, ids: torch.Tensor, first: int, count: int) -> torch.Tensor:
        return torch.zeros(len(ids), count, self.vocabulary_size)


def test_decoded_tokens_are_those_of_teacher_forcing(
    planned: Plan, words: LoadedTokenizer, small_model: Callable[..., LlamaForCausalLM]
) -> None:
    """Guards: `forced` and `tokens` that mean two things: for a model that knows, or does not."""
    model = small_model(words.vocabulary_size)
    rows = range(0, len(planned.documents), 12)
    prompts = planned.prompts["passkey"]
    replies: list[np.ndarray] = [np.zeros(0, dtype=np.int64)] * len(prompts)
    for row in rows:
        replies[row] = np.array(decoded(model, prompts.ids[row].tolist(), 16))
    scores = score(PlainReader(model), planned.spans["answers"], planned.document)
    found = planned.summarise({"answers": scores}, {"passkey": Replies(ids=replies)})
    assert found["scorers"]["tokens"] == found["scorers"]["forced"]
    spans = planned.spans["answers"]
    knowing = dataclasses.replace(scores, hit=np.ones_like(scores.hit))
    answers = [
        planned.document(row)[spans.scored_start[row] :] for row in range(len(planned.documents))
    ]
    found = planned.summarise({"answers": knowing}, {"passkey": Replies(ids=answers)})
    full = [4] * len(found["distances"])
    assert found["scorers"] == dict.fromkeys(
        ("forced", "tokens", "first_integer", "substring"), full
    )
    assert found["reach_share"] == 1.0


def test_without_decoding_teacher_forcing_decides(words: LoadedTokenizer, tmp_path: Path) -> None:
    """Guards: prompts decoded for nothing, numbers that need replies nobody gave."""
    protocol = dataclasses.replace(PROTOCOL, decoded_tokens=None)
    planned = passkey.plan(protocol, 3, story(words, tmp_path), words)
    assert planned.prompts == {}
    scores = score(Hopeless(words.vocabulary_size), planned.spans["answers"], planned.document)
    hits = scores.hit.copy()
    hits[scores.document < 3] = True  # three of the four trials at the first distance
    hits[np.flatnonzero(scores.document == 4)[0]] = True  # a part of an answer
    found = planned.summarise({"answers": dataclasses.replace(scores, hit=hits)}, {})
    rest = len(found["distances"]) - 1
    assert found["successes"] == [3] + [0] * rest
    assert found["reach"] == found["distances"][0]
    assert "scorers" not in found
    assert "replies" not in found


def test_answers_longer_than_what_is_decoded_are_refused(
    words: LoadedTokenizer, tmp_path: Path
) -> None:
    """Guards: a scorer that no reply can satisfy, reported as a reach of 0."""
    protocol = dataclasses.replace(PROTOCOL, decoded_tokens=2)
    with pytest.raises(StageError, match=r"decoded_tokens 2 is below the \d+ tokens of an answer"):
        passkey.plan(protocol, 3, story(words, tmp_path), words)
