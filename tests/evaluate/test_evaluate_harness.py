"""Tasks of lm-evaluation-harness through our readers, against the harness's own model."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from harness_sample import (
    ANSWER,
    CHOICE,
    CPU,
    LAST_WORD,
    ROLLING,
    documents,
    in_transformers,
    model_of,
    sentence,
    theirs,
    write_task,
)
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from perplexity_cases import BOS, EOS, WORDS, loaded
from readers import PlainReader
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from ropewalk.base.stage import StageError
from ropewalk.data.encoding import LoadedTokenizer
from ropewalk.evaluate import harness
from ropewalk.evaluate.harness_model import NEW_TOKENS, Bridge, generation
from ropewalk.evaluate.scorer import TOKENS_AT_ONCE
from ropewalk.evaluate.spec import Harness
from ropewalk.model.readers import open_reader
from ropewalk.model.spec import Numerics


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away what the machine says of caches: the work folder is where they belong."""
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    monkeypatch.delenv("HF_HOME", raising=False)


@pytest.fixture(scope="module")
def model(small_model) -> LlamaForCausalLM:
    return model_of(small_model)


@pytest.fixture(params=["opens", "does not"])
def opening(request) -> bool:
    return request.param == "opens"


@pytest.fixture
def words(tmp_path: Path, tokenizer: Tokenizer, opening: bool) -> LoadedTokenizer:
    """Return the tokenizer, one that opens documents with BOS or one that does not."""
    return loaded(tmp_path / "tokenizer", tokenizer, opening=opening)


@pytest.fixture
def plain(tmp_path: Path, tokenizer: Tokenizer) -> LoadedTokenizer:
    return loaded(tmp_path / "tokenizer", tokenizer, opening=False)


@pytest.mark.parametrize("task", ["choice", "last_word", "rolling", "answer"])
def test_it_finds_what_the_harness_finds_with_its_own_model(
    tmp_path: Path,
    model: LlamaForCausalLM,
    tokenizer: Tokenizer,
    words: LoadedTokenizer,
    opening: bool,
    task: str,
) -> None:
    """Guards against numbers that carry the harness's name and are not the harness's.

    Rolling texts are compared without BOS in the tokens of the text: the harness puts one before
    them itself, and where the tokenizer adds another reads two.
    """
    settings = {"choice": CHOICE, "last_word": LAST_WORD, "rolling": ROLLING, "answer": ANSWER}[
        task
    ]
    bos = opening and task != "rolling"
    rows = documents(14)

    def harness_s() -> Any:
        write_task(tmp_path / "tasks", task, settings, rows)
        return theirs(model, in_transformers(tokenizer, bos), tmp_path / "tasks", task, bos=bos)

    expected = harness_s()
    if task == "answer":  # a model that knows nothing is right as often as wrong if told so
        for sample in expected["samples"][task][::2]:
            rows[sample["doc_id"]]["answer"] = sample["resps"][0][0]
        expected = harness_s()
    model.save_pretrained(tmp_path / "model")
    with open_reader(
        tmp_path / "model", rope=None, numerics=Numerics(), device=torch.device("cpu")
    ) as reader:
        found = harness.run(
            Harness(
                tasks=(task,),
                folder=str(tmp_path / "tasks"),
                context_tokens=32 if task == "rolling" else None,
            ),
            reader,
            words,
            seed=7,
            work_folder=tmp_path / "work",
            sequences=4,
        )
    cell = found["cells"][task]
    results, samples = expected["results"][task], expected["samples"][task]
    printed = {key: value for key, value in results.items() if key in cell["metrics"]}
    assert len(printed) == len(settings["metric_list"])
    if task == "rolling":
        assert cell["metrics"] == pytest.approx(printed, rel=1e-6)
        nats = np.multiply(cell["scores"], cell["weights"])
        assert nats == pytest.approx([-s["word_perplexity"][0] for s in samples], abs=1e-4)
        assert cell["mean"] == pytest.approx(nats.sum() / sum(cell["weights"]), rel=1e-12)
        assert max(len(words.encode(row["text"])) for row in documents(14)) > 64  # several windows
    elif task == "last_word":
        assert cell["metrics"] == pytest.approx(printed, rel=1e-6)
        assert cell["scores"] == pytest.approx([-s["perplexity"] for s in samples], abs=1e-4)
        assert cell["mean"] == pytest.approx(sum(cell["scores"]) / 14, rel=1e-12)
    else:
        assert cell["metrics"] == printed
        metric = cell["metric"]
        assert cell["scores"] == [sample[metric] for sample in samples]
        assert cell["mean"] == cell["value"] == results[f"{metric},none"]
        assert cell["stderr"] == pytest.approx(results[f"{metric}_stderr,none"], rel=1e-12)
        assert 0 < cell["mean"] < 1
    if task in ("rolling", "last_word"):
        assert cell["value"] == pytest.approx(math.exp(cell["mean"]), rel=1e-12)
    assert cell["documents"] == 14
    assert cell["version"] == "3"
    assert found["outcomes"]["truncated"] == found["outcomes"]["non_finite"] == 0


def requests_of(kind: str, arguments: list[tuple], task: str = "made") -> list[Instance]:
    return [
        Instance(request_type=kind, doc={}, arguments=one, idx=0, metadata=(task, number, 1))
        for number, one in enumerate(arguments)
    ]


def bridge(reader: Any, tokenizer: LoadedTokenizer, **settings: Any) -> Bridge:
    given = {"seed": 3, "sequences": 4, "context_tokens": None, "allow": (), **settings}
    return Bridge(reader, tokenizer, **given)


PAIRS = [
    ("The grass is green.", " The sky"),
    ("The grass is green. ", "The sky is blue"),  # its space belongs to the continuation
    ("", "back again"),
    ("  ", "back again"),
    ("Here we go", "there"),
    ("The grass is gre", "en and the sky"),  # a token lies over the border
    ("Remember 10 20", " 305"),
    ("Remember 10 20", " 417"),
]


def test_log_likelihoods_are_those_of_the_harness_s_own_model(
    model: LlamaForCausalLM,
    tokenizer: Tokenizer,
    words: LoadedTokenizer,
    opening: bool,
    as_reader,
) -> None:
    """Guards against a token more or less in context or continuation, which accuracies may hide."""
    lm = HFLM(
        pretrained=model,
        tokenizer=in_transformers(tokenizer, opening),
        add_bos_token=opening,
        softmax_dtype="float32",
        max_length=256,
    )
    whole, parts = words.encode("green"), [*words.encode("gre"), *words.encode("en")]
    assert whole.tolist() != parts
    # The harness fails where a context of spaces leaves no token at all.
    pairs = [pair for pair in PAIRS if opening or pair[0] != "  "]
    asked = requests_of("loglikelihood", pairs)
    expected = lm.loglikelihood(asked, disable_tqdm=True)
    found = bridge(as_reader(model), words).loglikelihood(asked)
    assert [x for x, _ in found] == pytest.approx([x for x, _ in expected], abs=1e-4)
    assert [x for _, x in found] == [x for _, x in expected]


def test_a_continuation_is_greedy_if_all_of_its_tokens_are(
    model: LlamaForCausalLM, plain: LoadedTokenizer, as_reader
) -> None:
    """Guards against an exact match for a first word."""

    def best(ids: list[int]) -> int:
        with torch.no_grad():
            return int(model(torch.tensor([ids])).logits[0, -1].argmax())

    pairs, expected = [], []
    for row in documents(200, seed=4):
        context = plain.encode(row["question"]).tolist()
        first = best(context)
        second = best([*context, first])
        for last in (second, (second + 7) % WORDS):
            said = plain.tokenizer.decode([first, last])
            if plain.encode(row["question"] + said).tolist() == [*context, first, last]:
                pairs.append((row["question"], said))
                expected.append(last == second)
    assert 0 < sum(expected) < len(expected)
    found = bridge(as_reader(model), plain).loglikelihood(requests_of("loglikelihood", pairs))
    assert [greedy for _, greedy in found] == expected


@pytest.mark.parametrize("until", [[], ["\n"], ["a"], ["the", "e"]])
def test_answers_are_those_of_the_harness_s_own_model(
    model: LlamaForCausalLM,
    tokenizer: Tokenizer,
    words: LoadedTokenizer,
    opening: bool,
    until: list[str],
    as_reader,
) -> None:
    """Guards against answers that begin or end a token off, which a match may forgive."""
    lm = HFLM(
        pretrained=model,
        tokenizer=in_transformers(tokenizer, opening),
        add_bos_token=opening,
        max_length=256,
    )
    contexts = [row["question"] for row in documents(6, seed=5)]
    asked = requests_of(
        "generate_until",
        [
            (context, {"until": until, "max_gen_toks": 10, "do_sample": False})
            for context in contexts
        ],
    )
    expected = lm.generate_until(asked, disable_tqdm=True)
    assert bridge(as_reader(model), words).generate_until(asked) == expected
    assert any(expected)


def test_bos_is_read_once_and_scored_never(
    model: LlamaForCausalLM, words: LoadedTokenizer, opening: bool, as_reader
) -> None:
    """Guards against a second BOS, which costs nats per document and no error."""
    seen: list[list[int]] = []

    class Watched(PlainReader):
        def logits(self, ids: torch.Tensor, first: int, count: int) -> torch.Tensor:
            seen.extend(ids.tolist())
            return super().logits(ids, first, count)

        def losses(self, ids, first, targets):
            assert not (targets == BOS).any()
            return super().losses(ids, first, targets)

    made = bridge(Watched(model), words)
    text = "The grass is green and the sky is blue."
    ids = words.encode(text).tolist()
    made.loglikelihood_rolling(requests_of("loglikelihood_rolling", [(text,)]))
    assert seen == [[BOS, *ids[:-1]]]  # the text needs something before its first token
    seen.clear()
    made.loglikelihood(requests_of("loglikelihood", [(text, " Here we go")]))
    made.generate_until(requests_of("generate_until", [(text, {"max_gen_toks": 1})]))
    start = [BOS] if opening else []
    assert len(seen) == 2
    for row in seen:
        assert row[: len(start) + len(ids)] == start + ids
        assert row.count(BOS) == len(start)


def test_a_bos_spelled_out_in_a_text_is_text(
    model: LlamaForCausalLM, plain: LoadedTokenizer
) -> None:
    """Guards against documents that bring their own special tokens into a context."""
    made = PlainReader(model)
    text = "<s> The grass"
    bridge(made, plain).loglikelihood_rolling(requests_of("loglikelihood_rolling", [(text,)]))
    assert made.calls == [(1, len(plain.encode(text)))]
    assert BOS not in plain.encode(text)


def test_a_tokenizer_without_bos_reads_eos_before_a_text(
    tmp_path: Path, model: LlamaForCausalLM, tokenizer: Tokenizer, as_reader
) -> None:
    """Guards against a first token that is not scored, or scored after nothing."""
    words = loaded(tmp_path / "a", tokenizer, bos=None)
    ids = words.encode("The sky is blue").tolist()
    (found,) = bridge(as_reader(model), words).loglikelihood_rolling(
        requests_of("loglikelihood_rolling", [("The sky is blue",)])
    )
    with torch.no_grad():
        logs = torch.log_softmax(model(torch.tensor([[EOS, *ids[:-1]]])).logits[0], -1)
    assert found == pytest.approx(sum(float(logs[i, t]) for i, t in enumerate(ids)), abs=1e-4)
    neither = loaded(tmp_path / "b", tokenizer, bos=None, eos=None)
    with pytest.raises(StageError, match="neither BOS nor EOS"):
        bridge(as_reader(model), neither).loglikelihood(requests_of("loglikelihood", [("", "x")]))


def test_neither_order_nor_batch_changes_a_score(
    model: LlamaForCausalLM, plain: LoadedTokenizer, as_reader
) -> None:
    """Guards against padding, and against results handed to the wrong request."""
    random = np.random.default_rng(1)
    pairs = [(sentence(random, 9), f" {sentence(random, 4)}") for _ in range(40)]
    pairs += [(pairs[0][0], f" {word}") for word in ("a", "b", "c")]  # of one token each
    asked = requests_of("loglikelihood", pairs)
    alone = [bridge(as_reader(model), plain).loglikelihood([one])[0] for one in asked]
    with torch.no_grad():
        for (context, continuation), (found, _) in zip(pairs[:8], alone, strict=False):
            whole = plain.encode(context + continuation).tolist()
            start = len(plain.encode(context))
            logs = torch.log_softmax(model(torch.tensor([whole])).logits[0], -1)
            by_hand = sum(float(logs[i - 1, whole[i]]) for i in range(start, len(whole)))
            assert found == pytest.approx(by_hand, abs=1e-4)
    for sequences in (1, 3, 64):
        order = random.permutation(len(asked))
        found = bridge(as_reader(model), plain, sequences=sequences).loglikelihood(
            [asked[i] for i in order]
        )
        for place, i in enumerate(order):
            assert found[place][0] == pytest.approx(alone[i][0], abs=1e-5)
            assert found[place][1] == alone[i][1]


def test_answers_of_one_token_to_one_question_are_read_once(
    model: LlamaForCausalLM, plain: LoadedTokenizer
) -> None:
    """Guards against paying for every choice of BoolQ and MMLU, as the harness does not."""
    made = PlainReader(model)
    single = [c for c in "abcdefg" if len(plain.encode("go" + c)) == len(plain.encode("go")) + 1]
    assert len(single) > 3
    found = bridge(made, plain).loglikelihood(
        requests_of("loglikelihood", [("go", choice) for choice in single])
    )
    assert made.calls == [(1, len(plain.encode("go")))]
    with torch.no_grad():
        logs = torch.log_softmax(
            model(torch.tensor([plain.encode("go").tolist()])).logits[0, -1], -1
        )
    for choice, (value, greedy) in zip(single, found, strict=True):
        token = int(plain.encode("go" + choice)[-1])
        assert value == pytest.approx(float(logs[token]), abs=1e-4)
        assert greedy == (int(logs.argmax()) == token)


def test_a_text_that_does_not_fit_is_refused(
    model: LlamaForCausalLM, words: LoadedTokenizer, opening: bool, as_reader
) -> None:
    """Guards against scores of prompts that were cut, the harness's exit code 0."""
    context, continuation = "The grass is green and the sky is blue.", " Here we go"
    ids = words.encode(context + continuation).tolist()
    read = len(ids) - 1 + opening  # the last token is scored, not read
    scored = len(ids) - len(words.encode(context))
    pair = requests_of("loglikelihood", [(context, continuation)])
    fits = bridge(as_reader(model), words, context_tokens=read)
    (whole,) = fits.loglikelihood(pair)
    assert fits.counts["truncated"] == 0
    with pytest.raises(StageError, match=r"task made, document 0: \d+ tokens do not fit in"):
        bridge(as_reader(model), words, context_tokens=read - 1).loglikelihood(pair)
    allowed = bridge(as_reader(model), words, context_tokens=read - 1, allow=("truncated",))
    (found,) = allowed.loglikelihood(pair)
    assert allowed.counts["truncated"] == 1
    assert found != whole
    kept = [*[BOS] * opening, *ids[1:]]  # cut from the left, behind BOS
    with torch.no_grad():
        logs = torch.log_softmax(model(torch.tensor([kept])).logits[0], -1)
    places = range(len(kept) - scored, len(kept))
    assert found[0] == pytest.approx(sum(float(logs[i - 1, kept[i]]) for i in places), abs=1e-4)
    for limit in range(1, scored):  # not even what is scored
        with pytest.raises(StageError, match="not even without the context"):
            bridge(
                as_reader(model), words, context_tokens=limit, allow=("truncated",)
            ).loglikelihood(pair)


def test_the_room_of_a_model_is_a_limit_and_answers_need_theirs(
    model: LlamaForCausalLM, plain: LoadedTokenizer, as_reader
) -> None:
    """Guards against an answer for which the end of the prompt had to go."""
    context = "The grass is green and the sky is blue."
    length = len(plain.encode(context))
    asked = requests_of("generate_until", [(context, {"max_gen_toks": 5})])
    reader = as_reader(model)
    reader.room = length + 5
    whole = bridge(reader, plain, context_tokens=1000)
    assert whole.context_tokens == reader.room
    (answer,) = whole.generate_until(asked)
    assert answer
    reader.room -= 1
    with pytest.raises(StageError, match=f"{length} tokens and 5 to decode do not fit in"):
        bridge(reader, plain).generate_until(asked)
    allowed = bridge(reader, plain, allow=("truncated",))
    allowed.generate_until(asked)
    assert allowed.counts["truncated"] == 1


def test_a_continuation_without_a_token_is_refused(
    model: LlamaForCausalLM, plain: LoadedTokenizer, as_reader
) -> None:
    """Guards against a choice of no tokens, which would win with a likelihood of 1."""
    with pytest.raises(StageError, match="'' adds no token"):
        bridge(as_reader(model), plain).loglikelihood(requests_of("loglikelihood", [("x", "")]))


def test_a_loss_that_is_not_finite_is_refused(
    model: LlamaForCausalLM, plain: LoadedTokenizer
) -> None:
    """Guards against choices compared by NaN, of which the first wins."""

    class Broken(PlainReader):
        def logits(self, ids: torch.Tensor, first: int, count: int) -> torch.Tensor:
            return super().logits(ids, first, count) * math.nan

    asked = requests_of("loglikelihood", [("x", " the grass is green"), ("x", "y")])
    with pytest.raises(StageError, match="task made, document 0 is not finite"):
        bridge(Broken(model), plain).loglikelihood(asked)
    for way in ({"max_gen_toks": 2}, {"max_gen_toks": 2, "temperature": 1.0}):
        answers = requests_of("generate_until", [("The grass is", way)])
        with pytest.raises(StageError, match=r"small, task made, document 0: .* not finite"):
            bridge(Broken(model), plain).generate_until(answers)


def test_a_score_that_is_not_finite_is_refused() -> None:
    """Guards against NaN in a result, which is no JSON, and in a mean that hides one document."""
    samples = [
        {"acc": score, "filter": "none", "doc_hash": "", "prompt_hash": "", "target_hash": ""}
        for score in (1.0, math.nan)
    ]
    printed = {"acc,none": math.nan}
    results = {"samples": {"t": samples}, "results": {"t": printed}, "versions": {"t": 1}}
    task = SimpleNamespace(task_name="t", aggregation=lambda: {"acc": None})
    with pytest.raises(StageError, match=r"'t': the acc of 1 documents is not finite, .* number 1"):
        harness._cell(task, results, None, 0)
    samples[1]["acc"] = 0.0
    cell = harness._cell(task, results, None, 0)
    assert (cell["mean"], cell["value"], cell["metrics"]) == (0.5, None, {"acc,none": None})


def test_long_texts_are_read_few_at_a_time(plain: LoadedTokenizer) -> None:
    """Guards against memory for as many long texts as short ones, scored or answered."""

    class Shapes(PlainReader):
        def __init__(self) -> None:
            self.name, self.device, self.vocabulary_size, self.room = "s", CPU, WORDS, None
            self.rows: list[int] = []

        def losses(self, ids, first, targets):
            self.rows.append(len(ids))
            return torch.ones(targets.shape), torch.ones(targets.shape, dtype=torch.bool)

        def logits(self, ids, first, count):
            self.rows.append(len(ids))
            return torch.zeros(len(ids), count, WORDS)

    text = " back again" * (TOKENS_AT_ONCE // (3 * len(plain.encode(" back again"))) - 100)
    for kind, argument in (
        ("loglikelihood", " Here we go"),
        ("generate_until", {"max_gen_toks": 1, "until": []}),
    ):
        reader = Shapes()
        asked = requests_of(kind, [(text, argument)] * 5)
        getattr(bridge(reader, plain, sequences=5), kind)(asked)
        assert reader.rows == [3, 2], kind


def test_an_answer_stops_where_the_task_says(
    model: LlamaForCausalLM, plain: LoadedTokenizer
) -> None:
    """Guards against decoding on after the end, and against an end that stays in the answer."""
    context = "The grass is"
    whole = bridge(PlainReader(model), plain).generate_until(
        requests_of("generate_until", [(context, {"max_gen_toks": 20})])
    )[0]
    end = whole[len(whole) // 2 :][:2]
    expected = whole.partition(end)[0]
    reader = PlainReader(model)
    asked = requests_of("generate_until", [(context, {"max_gen_toks": 20, "until": [end]})])
    assert bridge(reader, plain).generate_until(asked) == [expected]
    assert EOS not in plain.encode(whole)


def test_a_row_ends_with_its_own_text(model: LlamaForCausalLM, plain: LoadedTokenizer) -> None:
    """Guards against a batch in which one row's end ends the others'."""
    random = np.random.default_rng(2)
    some = [sentence(random, 6) for _ in range(600)]
    contexts = [text for text in some if len(plain.encode(text)) == 9]
    way = {"max_gen_toks": 16, "until": ["a", "e"]}
    asked = requests_of("generate_until", [(context, way) for context in contexts[:4]])
    alone = [bridge(PlainReader(model), plain).generate_until([one])[0] for one in asked]
    for sequences in (1, 2, 4):
        reader = PlainReader(model)
        made = bridge(reader, plain, sequences=sequences)
        assert made.generate_until(asked[::-1])[::-1] == alone
        assert {rows for rows, _ in reader.calls} == {sequences}
    assert len({len(text) for text in alone}) > 1
    assert not any(set("ae") & set(text) for text in alone)


def test_drawn_answers_depend_on_seed_and_document_alone(
    model: LlamaForCausalLM, plain: LoadedTokenizer
) -> None:
    """Guards against answers that change with the batch, and repeats that are all alike."""
    way = {"max_gen_toks": 8, "do_sample": True, "temperature": 1.5, "top_p": 0.9}
    contexts = ["The grass is", "Here we go", "The grass is"]
    asked = requests_of("generate_until", [(context, way) for context in contexts])
    first = bridge(PlainReader(model), plain, sequences=1).generate_until(asked)
    assert bridge(PlainReader(model), plain, sequences=9).generate_until(asked) == first
    assert first[0] != first[2]  # the same prompt asked again
    assert bridge(PlainReader(model), plain, seed=4).generate_until(asked) != first


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, (NEW_TOKENS, (), 0.0, 1.0)),
        ({"until": "x", "max_new_tokens": 3}, (3, ("x",), 0.0, 1.0)),
        ({"until": ["x", ""], "max_tokens": 4, "temperature": 0.0}, (4, ("x",), 0.0, 1.0)),
        ({"do_sample": False, "temperature": 0.7}, (NEW_TOKENS, (), 0.0, 1.0)),
        ({"temperature": 0.7, "top_p": 0.5}, (NEW_TOKENS, (), 0.7, 0.5)),
    ],
)
def test_ways_of_decoding_are_read_as_the_harness_does(asked: dict, expected: tuple) -> None:
    """Guards against a setting of a task that is read and has no effect."""
    found = generation(asked, "t")
    assert (found.new_tokens, found.until, found.temperature, found.top_p) == expected


@pytest.mark.parametrize(
    ("asked", "named"),
    [({"num_beams": 4}, "num_beams"), ({"do_sample": True}, "do_sample is true")],
)
def test_ways_of_decoding_there_are_none_of_are_refused(asked: dict, named: str) -> None:
    """Guards against greedy answers under the name of beam search."""
    with pytest.raises(StageError, match=f"task t: generation_kwargs.{named}"):
        generation(asked, "t")
