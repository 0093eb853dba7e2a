"""Summaries: prompts and references of a fine-tuning corpus, nucleus sampling, ROUGE."""

import itertools
import json
import math
import socket
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from perplexity_cases import BOS, EOS, WORDS, loaded
from readers import PlainReader
from tokenizers import Tokenizer

from ropewalk.base.manifest import write_manifest
from ropewalk.base.stage import StageError
from ropewalk.data.encoding import LoadedTokenizer
from ropewalk.data.shards import ShardWriter
from ropewalk.data.tokens import Tokens
from ropewalk.evaluate import summaries
from ropewalk.evaluate.plan import Prompts, Replies
from ropewalk.evaluate.rouge import METRICS, Rouge
from ropewalk.evaluate.sampling import Nucleus, chooser, nucleus
from ropewalk.evaluate.spec import Summaries
from ropewalk.model.reader import greedy

# Sampling.


def kept_by_hand(logits: np.ndarray, temperature: float, top_p: float) -> dict[int, float]:
    """Return the nucleus with its probabilities, made by taking tokens until they are enough."""
    weights = np.exp((logits - logits.max()) / temperature)
    probabilities = weights / weights.sum()
    kept: dict[int, float] = {}
    for token in sorted(range(len(logits)), key=lambda i: (-probabilities[i], i)):
        if sum(kept.values()) >= top_p:
            break
        kept[token] = float(probabilities[token])
    return {token: share / sum(kept.values()) for token, share in kept.items()}


@given(
    logits=st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=12),
    temperature=st.sampled_from([0.3, 0.5, 1.0, 2.5]),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 0.95, 1.0]),
)
def test_exactly_the_nucleus_can_be_drawn_in_its_proportions(
    logits: list[float], temperature: float, top_p: float
) -> None:
    """Guards against a token more or less: the first past the limit, or the only one."""
    expected = kept_by_hand(np.array(logits), temperature, top_p)
    steps = 4000
    numbers = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    rows = torch.tensor(logits, dtype=torch.float32).repeat(steps, 1)
    drawn = Counter(nucleus(rows, temperature, top_p, numbers).tolist())
    # A limit that falls between two tokens of a sum in another order decides nothing.
    doubtful = any(
        math.isclose(total, top_p, rel_tol=1e-9)
        for total in itertools.accumulate(sorted(_shares(logits, temperature), reverse=True))
    )
    if not doubtful:
        assert set(drawn) <= set(expected)
        for token, share in expected.items():
            # An interval holds as many even steps as it is long, give or take one.
            assert abs(drawn[token] - share * steps) <= 1 + 1e-6 * steps
        if len(expected) < len(logits):
            assert len(drawn) <= len(expected)


def _shares(logits: list[float], temperature: float) -> np.ndarray:
    weights = np.exp(np.array(logits) / temperature)
    return weights / weights.sum()


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [(0.2, [0]), (0.25, [0]), (0.5, [0, 1]), (0.75, [0, 1, 2]), (1.0, [0, 1, 2, 3])],
)
def test_tokens_that_are_just_enough_are_enough(top_p: float, expected: list[int]) -> None:
    """Guards against one token too many where the probabilities add up to the limit exactly."""
    size = len(expected)
    numbers = torch.arange(size, dtype=torch.float64) / size  # where a token's share begins
    logits = torch.zeros(size, 4)  # of 0.25 each
    assert nucleus(logits, 0.5, top_p, numbers).tolist() == expected
    end = torch.tensor([1 - 2**-53], dtype=torch.float64)
    assert nucleus(logits[:1], 0.5, top_p, end).tolist() == expected[-1:]


@pytest.mark.parametrize("number", [0.0, 0.5, 1 - 2**-53])
def test_the_ends_of_the_interval_are_tokens_of_the_nucleus(number: float) -> None:
    """Guards against a token of no probability, or none at all, once in 2 ** 53 draws."""
    logits = torch.tensor([[0.0, -math.inf, 1.0, 0.1, -math.inf, 0.3]])
    for top_p in (0.2, 0.7, 1.0):
        (token,) = nucleus(logits, 0.7, top_p, torch.tensor([number], dtype=torch.float64)).tolist()
        assert token in kept_by_hand(np.array([0, -1e9, 1, 0.1, -1e9, 0.3]), 0.7, top_p)


def test_drawn_tokens_are_as_frequent_as_the_nucleus_says() -> None:
    """Guards against numbers that are not uniform, or the same at every step."""
    logits = torch.tensor([[2.0, 1.0, 0.5, -1.0, 1.5, -3.0]])
    expected = kept_by_hand(logits[0].numpy(), 0.8, 0.9)
    draws = 3000
    drawn: Counter[int] = Counter()
    for prompt in range(30):
        choose = Nucleus(temperature=0.8, top_p=0.9, seed=1, prompts=[prompt])
        drawn.update(int(choose(logits, step)) for step in range(draws // 30))
    assert set(drawn) == set(expected)
    for token, share in expected.items():
        spread = math.sqrt(draws * share * (1 - share))
        assert abs(drawn[token] - draws * share) < 4 * spread


def test_a_reply_does_not_depend_on_its_batch(small_model) -> None:
    """Guards against replies that change with sequences_per_forward, or after a restart."""
    reader = PlainReader(small_model())
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 97, size=(6, 5)))
    ids[3] = ids[0]
    prompts = Prompts(
        ids=[row.numpy() for row in ids],
        names=[str(n) for n in range(6)],
        new_tokens=7,
        temperature=1.3,
        top_p=0.95,
    )

    def replies(rows: list[int], seed: int = 5) -> list[list[int]]:
        found = reader.generate(ids[rows], 7, chooser(prompts, rows, seed))
        return [row.tolist() for row in found]

    whole = replies([0, 1, 2, 3, 4, 5])
    assert replies([4, 1]) == [whole[4], whole[1]]
    assert [replies([row])[0] for row in range(6)] == whole
    assert whole[0] != whole[3]  # the same prompt twice, as two documents
    assert replies([0, 1, 2, 3, 4, 5], seed=6) != whole


def test_temperature_zero_is_greedy() -> None:
    """Guards against a division by zero in place of the most probable token."""
    assert chooser(Prompts(ids=[], names=[], new_tokens=1), [], 0) is greedy


def test_a_prompt_that_is_left_out_changes_no_other_draw(small_model) -> None:
    """Guards against summaries that change because another document was dropped."""
    reader = PlainReader(small_model())
    ids = torch.from_numpy(np.random.default_rng(1).integers(0, 97, size=(3, 5)))

    def replies(rows: list[int]) -> list[list[int]]:
        prompts = Prompts(
            ids=[ids[row].numpy() for row in rows],
            names=[f"document {row}" for row in rows],
            new_tokens=7,
            temperature=1.3,
        )
        choose = chooser(prompts, range(len(rows)), 5)
        return [found.tolist() for found in reader.generate(ids[rows], 7, choose)]

    whole = replies([0, 1, 2])
    assert replies([0, 2]) == [whole[0], whole[2]]


# ROUGE.


def f1(hits: int, reference: int, text: int) -> float:
    return 2 * hits / (reference + text) if hits else 0.0


def grams(words: list[str], size: int) -> Counter:
    return Counter(tuple(words[i : i + size]) for i in range(len(words) - size + 1))


def longest(one: list[str], other: list[str]) -> int:
    """Return the length of the longest common subsequence, by trying all of the shorter text."""
    short, long = sorted((one, other), key=len)
    for size in range(len(short), 0, -1):
        for kept in itertools.combinations(short, size):
            rest = iter(long)
            if all(word in rest for word in kept):
                return size
    return 0


words = st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=1, max_size=7)


@given(reference=words, text=words)
def test_rouge_is_that_of_lin(reference: list[str], text: list[str]) -> None:
    """Guards against another ROUGE under its name: recall for F1, bigrams for unigrams."""
    found = Rouge(stemmer=False, sentences="full_stops").scores(" ".join(reference), " ".join(text))
    for size in (1, 2):
        one, other = grams(reference, size), grams(text, size)
        expected = f1((one & other).total(), one.total(), other.total())
        assert found[f"rouge{size}"] == pytest.approx(expected)
    common = f1(longest(reference, text), len(reference), len(text))
    assert found["rougeL"] == found["rougeLsum"] == pytest.approx(common)  # one sentence


def test_sentences_of_rouge_lsum_are_what_the_protocol_says() -> None:
    """Guards against the 0.46 for 1.00 that a text without newlines gives ROUGE-Lsum."""
    reference = "The sky is blue. The sun is yellow! Is grass green? It is."
    turned = "It is. Is grass green? The sun is yellow! The sky is blue."
    full_stops = Rouge(stemmer=False, sentences="full_stops")
    newlines = Rouge(stemmer=False, sentences="newlines")
    assert full_stops.scores(reference, turned)["rougeLsum"] == 1.0
    as_is = newlines.scores(reference, turned)
    assert as_is["rougeLsum"] == as_is["rougeL"] < 0.6
    lines = [
        text.replace(". ", ".\n").replace("! ", "!\n").replace("? ", "?\n")
        for text in (reference, turned)
    ]
    assert newlines.scores(*lines)["rougeLsum"] == 1.0
    for metric in ("rouge1", "rouge2", "rougeL"):
        assert full_stops.scores(reference, turned)[metric] == as_is[metric]


@pytest.mark.parametrize(
    ("between", "ends"),
    [
        (". ", True),
        ("! ", True),
        ("? ", True),
        (".\n", True),
        (".", False),
        ("\n", False),
        (", ", False),
    ],
)
def test_what_ends_a_sentence(between: str, ends: bool) -> None:
    """Guards against 1.5 and wrapped lines that end sentences, and a question that does not."""
    rouge = Rouge(stemmer=False, sentences="full_stops")
    found = rouge.scores(f"one two{between}three four", "three four one two")["rougeLsum"]
    # Words in another order: a sentence is found whole, the whole text by half.
    assert found == (1.0 if ends else 0.5)


def test_the_stemmer_is_used_where_it_is_asked_for() -> None:
    """Guards against a setting without effect."""
    assert Rouge(stemmer=True, sentences="newlines").scores("testing", "tested")["rouge1"] == 1.0
    assert Rouge(stemmer=False, sentences="newlines").scores("testing", "tested")["rouge1"] == 0.0


def test_scoring_reaches_for_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against language data that is fetched on a node without network."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr("nltk.sent_tokenize", refuse)
    for stemmer in (True, False):
        for sentences in ("newlines", "full_stops"):
            Rouge(stemmer=stemmer, sentences=sentences).scores("One. Two.", "Two.\nOne.")


# The protocol.


def corpus(folder: Path, rows: list[tuple[list[int], list[int]]]) -> Tokens:
    """Return documents of a prompt and a target each, as the tokenize stage leaves them."""
    folder.mkdir()
    with ShardWriter(folder, vocabulary_size=WORDS, shard_tokens=1000) as writer:
        for number, (prompt, target) in enumerate(rows):
            writer.add(
                f"report:{number}",
                np.array([*prompt, *target]),
                subset=None,
                text_bytes=1,
                prompt=len(prompt),
            )
    return Tokens(
        write_manifest(
            folder,
            stage="tokenize",
            spec={},
            inputs={},
            files=writer.files,
            result={"documents": len(rows)},
        )
    )


@pytest.fixture
def plain(tmp_path: Path, tokenizer: Tokenizer) -> LoadedTokenizer:
    return loaded(tmp_path / "tokenizer", tokenizer)


TEXTS = ("The sky is blue. Here we go.", "Remember 10 20.", "grass and sun")


def rows_of(tokenizer: LoadedTokenizer, *, eos: bool) -> list[tuple[list[int], list[int]]]:
    prompt = tokenizer.encode("Read this: the grass is green\nSummary:").tolist()
    return [
        ([BOS, *prompt[number:]], [*tokenizer.encode(f" {text}").tolist(), *[EOS] * eos])
        for number, text in enumerate(TEXTS)
    ]


@pytest.mark.parametrize("eos", [True, False])
def test_prompts_are_read_and_targets_are_references(
    tmp_path: Path, plain: LoadedTokenizer, eos: bool
) -> None:
    """Guards against a reference in the prompt, and against an EOS among its words."""
    rows = rows_of(plain, eos=eos)
    planned = summaries.plan(
        Summaries(new_tokens=9, temperature=0.25, top_p=0.5), 0, corpus(tmp_path / "t", rows), plain
    )
    (prompts,) = planned.prompts.values()
    assert [ids.tolist() for ids in prompts.ids] == [prompt for prompt, _ in rows]
    assert all(ids.dtype == np.int64 for ids in prompts.ids)
    assert list(prompts.names) == ["report:0", "report:1", "report:2"]
    assert (prompts.new_tokens, prompts.temperature, prompts.top_p) == (9, 0.25, 0.5)
    assert prompts.stop == (EOS,)
    assert planned.sequences == 3
    assert not planned.dropped
    replies = [
        plain.encode(f" {TEXTS[0]}").astype(np.int64),  # word for word
        plain.encode(" 20 10").astype(np.int64),
        np.array([], dtype=np.int64),
    ]
    found = planned.summarise({}, {summaries.LABEL: Replies(ids=replies)})
    assert set(found["cells"]) == set(METRICS)
    assert found["cells"]["rouge1"]["scores"] == [1.0, pytest.approx(0.8), 0.0]
    assert found["cells"]["rouge2"]["scores"] == [1.0, 0.0, 0.0]
    assert found["cells"]["rougeL"]["scores"] == [1.0, pytest.approx(0.4), 0.0]
    for cell in found["cells"].values():
        assert cell["mean"] == pytest.approx(sum(cell["scores"]) / 3)
    assert found["summaries"] == [TEXTS[0], "20 10", ""]
    assert found["tokens"] == [len(reply) for reply in replies]
    assert found["documents"] == ["report:0", "report:1", "report:2"]
    json.dumps(found)


def test_the_first_documents_are_taken(tmp_path: Path, plain: LoadedTokenizer) -> None:
    """Guards against scores of a reply against another document's reference."""
    tokens = corpus(tmp_path / "t", rows_of(plain, eos=True))
    planned = summaries.plan(Summaries(documents=2), 0, tokens, plain)
    assert list(planned.prompts[summaries.LABEL].names) == ["report:0", "report:1"]
    with pytest.raises(StageError, match=r"documents: 4, but the corpus has 3"):
        summaries.plan(Summaries(documents=4), 0, tokens, plain)


def test_a_reference_that_rouge_cannot_read_is_dropped_and_said(
    tmp_path: Path, plain: LoadedTokenizer
) -> None:
    """Guards against a Chinese summary that counts as 0, however good the reply."""
    rows = rows_of(plain, eos=True)
    rows[1] = (rows[1][0], [*plain.encode("天空是蓝的。").tolist(), EOS])
    planned = summaries.plan(Summaries(), 0, corpus(tmp_path / "t", rows), plain)
    prompts = planned.prompts[summaries.LABEL]
    assert list(prompts.names) == ["report:0", "report:2"]
    assert [ids.tolist() for ids in prompts.ids] == [rows[0][0], rows[2][0]]
    (dropped,) = planned.dropped
    assert dropped.startswith("report:1: ")
    replies = Replies(ids=[plain.encode(f" {TEXTS[n]}").astype(np.int64) for n in (0, 2)])
    found = planned.summarise({}, {summaries.LABEL: replies})
    assert found["cells"]["rouge1"]["scores"] == [1.0, 1.0]
    with pytest.raises(StageError, match="none of 1 documents has a summary"):
        summaries.plan(Summaries(), 0, corpus(tmp_path / "u", [rows[1]]), plain)


def test_a_corpus_without_prompts_is_refused(tmp_path: Path, plain: LoadedTokenizer) -> None:
    """Guards against summaries of nothing, scored against whole documents."""
    tokens = corpus(tmp_path / "t", [*rows_of(plain, eos=True), ([], [5, 6, 7])])
    with pytest.raises(StageError, match=r"'report:3' has no prompt: .* a corpus with `prompt`"):
        summaries.plan(Summaries(), 0, tokens, plain)
    assert summaries.plan(Summaries(documents=3), 0, tokens, plain).sequences == 3


def test_a_tokenizer_without_eos_stops_at_nothing(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Guards against a stop at token 0 where there is none to stop at."""
    words = loaded(tmp_path / "tokenizer", tokenizer, eos=None)
    tokens = corpus(tmp_path / "t", rows_of(words, eos=False))
    assert summaries.plan(Summaries(), 0, tokens, words).prompts[summaries.LABEL].stop == ()


def test_planning_summaries_loads_no_harness() -> None:
    """Guards against seconds of imports of an extra that need not be there."""
    import subprocess

    code = (
        "import sys, ropewalk.evaluate.summaries, ropewalk.evaluate.harness; "
        "sys.exit('lm_eval' in sys.modules or 'datasets' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
