"""Passkey prompts: wording, exact lengths, and the verdict against greedy decoding."""

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from ropewalk.base.stage import StageError
from ropewalk.evaluate.passkey import Prompts
from ropewalk.evaluate.retrieval import Trial, build, summarise
from ropewalk.evaluate.scorer import Scorer, score

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


def prompts(tokenizer: Tokenizer, bos: int | None = 0, digits: int = 5) -> Prompts:
    return Prompts(tokenizer, bos, digits=digits, seed=3)


@pytest.mark.parametrize("bos", [0, None])
@pytest.mark.parametrize("context", [300, 611])
def test_prompts_have_exactly_the_demanded_tokens_and_wording(
    tokenizer: Tokenizer, context: int, bos: int | None
) -> None:
    """Guards: lengths off by the question, the BOS or a merged token; a key that is elsewhere."""
    maker = prompts(tokenizer, bos)
    built = 0
    for distance in range(40, context, 37):
        trial = maker.trial(context, distance, 0)
        if trial is None:
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
    for distance in trials.untestable:
        assert distance < shortest or distance > 1024 - introduction
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
        assert alone is not None
        assert expected is not None
        assert alone.ids.tolist() == expected.ids.tolist()


def test_a_context_without_room_is_an_error(tokenizer: Tokenizer) -> None:
    """Guards: a probe of nothing that reports an accuracy."""
    with pytest.raises(StageError, match=r"protocol\.context_tokens 64 is too short"):
        build(64, 8, 1, lambda d, n: prompts(tokenizer).trial(64, d, n))


def test_teacher_forcing_decides_what_greedy_decoding_decides(
    small_model: Callable[..., LlamaForCausalLM], as_scorer: Callable[..., Scorer]
) -> None:
    """Guards: a success that decoding would not have produced, or a failure that it would.

    Half of the answers are what the model itself generates, half of these are then spoilt in one
    token, so that successes, near misses and failures all occur.
    """
    model = small_model()
    random = np.random.default_rng(5)
    trials, wanted = [], []
    for number in range(24):
        prompt = torch.from_numpy(random.integers(1, 97, size=(1, 20 + number % 5)))
        with torch.no_grad():
            greedy = model.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=4, do_sample=False
            )[0, prompt.shape[1] :].tolist()
        answer = list(greedy)
        if number % 2:
            spoilt = int(random.integers(4))
            answer[spoilt] = (answer[spoilt] + 1) % 97
        ids = np.array(prompt[0].tolist() + answer)
        trials.append(Trial(distance=8, ids=ids, answer_start=prompt.shape[1]))
        wanted.append(answer == greedy)
    assert 0 < sum(wanted) < len(wanted)
    found = build(8, 1, len(trials), lambda _, n: trials[n])
    scores = score(as_scorer(model), found.spans, lambda i: found.trials[i].ids, found.names)
    hits = [bool(scores.hit[scores.document == i].all()) for i in range(len(trials))]
    assert hits == wanted
    numbers = summarise(scores, found, threshold=0.5)
    assert numbers["successes"] == [sum(wanted)]
    assert numbers["accuracy"] == sum(wanted) / len(wanted)
    assert numbers["reach"] == 8
