"""Every preset against the published loop it stands for, written anew in plain transformers.

All arithmetic is float64, so that a token, weight or window more or less shows in the tenth digit.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from perplexity_cases import BOS, EOS, WORDS, contexts, loaded, random_ids, stored
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from ropewalk.base.stage import StageError
from ropewalk.evaluate import losses
from ropewalk.evaluate.plan import Plan
from ropewalk.evaluate.presets import PRESETS, resolve
from ropewalk.evaluate.scorer import score
from ropewalk.evaluate.spec import Conventions, SlidingWindow

WINDOWS = [(24, 7), (24, 8), (16, 15), (12, 1)]  # (L, S); 24 / 8 divides, 15 is the most 16 allows


def lengths_for(window: int, stride: int) -> list[int]:
    """Return lengths of documents at which loops of this kind go wrong."""
    around = (stride - 1, stride, window - 1, window, window + 1)
    multiples = (2 * stride, 3 * stride, window + stride - 1, window + stride, window + 2 * stride)
    return sorted({n for n in (*around, *multiples, window + 3 * stride + 1, 2 * window) if n >= 2})


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Compute on one thread: many tiny forwards wait for each other's threads otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(small_model: Callable[..., LlamaForCausalLM]) -> LlamaForCausalLM:
    return small_model(WORDS).double()


def mean_loss(model: LlamaForCausalLM, ids: Sequence[int], labels: Sequence[int]) -> torch.Tensor:
    """Return what a transformers model gives as its loss for labels, in float64.

    The mean over labels that are not -100, after the shift: the first label is never used.
    """
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([list(ids)])).logits[0]
    return torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(list(labels))[1:])


def test_the_loss_these_loops_are_built_on(model: LlamaForCausalLM) -> None:
    """Guards: reference loops that agree with each other and not with transformers."""
    (ids,) = random_ids([40])
    labels = [-100] * 15 + ids[15:]
    with torch.no_grad():
        found = model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss
    assert mean_loss(model, ids, labels).item() == pytest.approx(found.item(), rel=1e-6)
    assert mean_loss(model, ids, ids).item() != pytest.approx(found.item(), rel=1e-3)


def script_of_yarn(
    model: LlamaForCausalLM,
    documents: Sequence[Sequence[int]],
    window: int,
    stride: int | None,
    bos: int | None,
) -> tuple[list[float], list[int]]:
    """Return the mean loss and the targets of every window, as the scripts of YaRN and PoSE do.

    `stride` None is PoSE's --truncate.
    """
    usable = window if bos is None else window - 1
    means, targets = [], []
    for whole in documents:
        document = whole[:usable] if stride is None else whole
        before = 0
        for begin in range(0, len(document), usable if stride is None else stride):
            end = min(begin + usable, len(document))
            count = end - before
            ids = ([] if bos is None else [bos]) + list(document[begin:end])
            labels = [-100] * (len(ids) - count) + ids[-count:]
            means.append(mean_loss(model, ids, labels).item())
            # without BOS the shift takes the first label of a document
            targets.append(count - (bos is None and begin == 0))
            before = end
            if end == len(document):
                break
    return means, targets


def token_mean(means: Sequence[float], targets: Sequence[int]) -> float:
    return sum(m * n for m, n in zip(means, targets, strict=True)) / sum(targets)


@pytest.mark.parametrize("opening", [False, True])
@pytest.mark.parametrize(("window", "stride"), WINDOWS)
def test_windows_of_pi_pose_and_yarn(
    model: LlamaForCausalLM,
    tokenizer: Tokenizer,
    tmp_path: Path,
    window: int,
    stride: int,
    opening: bool,
) -> None:
    """Guards: windows lost or counted twice, another mean, BOS missing, scored or read twice."""
    documents = random_ids([*lengths_for(window, stride), 1])
    words = loaded(tmp_path / "words", tokenizer, opening=opening)
    tokens = stored(tmp_path / "tokens", [[BOS] * opening + ids for ids in documents])

    def measured(name: str, count: int | None = None) -> dict:
        protocol = resolve(name, contexts={"1x": window}, stride_tokens=stride, minimum_tokens=0)
        protocol = SlidingWindow(**{**vars(protocol), "documents": count, "cut_tokens": None})
        return contexts(model, losses.plan(protocol, 0, tokens, words))["1x"]

    means, targets = script_of_yarn(model, documents, window, stride, BOS)
    pose = measured("pose_sliding")
    assert pose["tokens"] == [len(ids) for ids in documents]
    assert pose["nll"] == pytest.approx(token_mean(means, targets), rel=1e-10)
    assert pose["perplexity"] == pytest.approx(math.exp(token_mean(means, targets)), rel=1e-10)
    assert pose["windows"] == len(means)
    assert measured("pose_long") == pose

    yarn = measured("yarn_window_mean")
    assert yarn["nll"] == pytest.approx(sum(means) / len(means), rel=1e-10)
    assert sum(yarn["weights"]) == pytest.approx(len(means), rel=1e-12)
    assert sum(yarn["weighted_sums"]) == pytest.approx(sum(means), rel=1e-10)
    assert yarn["nll_sums"] == pose["nll_sums"]
    assert yarn["nll"] != pytest.approx(pose["nll"], rel=1e-6)

    # PI: as YaRN's script without BOS, but for a last window that is full.
    pi = measured("pi_sliding", count=len(documents) - 1)
    assert pi["tokens"] == [len(ids) - 1 for ids in documents[:-1]]
    sums = []
    for ids in documents[:-1]:
        total, end = mean_loss(model, ids[:window], ids[:window]).item(), min(window, len(ids))
        total *= end - 1
        while end < len(ids):
            scored_from, end = end, min(end + stride, len(ids))
            read = ids[end - window : end]
            labels = [-100] * (window - (end - scored_from)) + ids[scored_from:end]
            total += mean_loss(model, read, labels).item() * (end - scored_from)
        sums.append(total)
    assert pi["nll_sums"] == pytest.approx(sums, rel=1e-10)
    assert pi["nll"] == pytest.approx(sum(sums) / sum(pi["tokens"]), rel=1e-10)
    bare = script_of_yarn(model, documents[:-1], window, stride, None)
    assert pi["windows"] == len(bare[0])


def test_truncated_perplexity_of_pose(
    model: LlamaForCausalLM, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Guards: truncated columns that differ from one forward per column, or count BOS wrongly."""
    documents = random_ids([60, 31, 32, 33, 24, 90, 7])
    words = loaded(tmp_path / "words", tokenizer)
    tokens = stored(tmp_path / "tokens", documents)
    asked = {"1x": 8, "2x": 16, "3x": 25, "4x": 32}
    protocol = resolve("pose_truncated", contexts=asked, documents=5, minimum_tokens=33)
    kept = [ids for ids in documents if len(ids) + 1 >= 33]
    with pytest.raises(StageError, match=r"has 4 \(of 7\)"):
        losses.plan(protocol, 0, tokens, words)
    protocol = resolve("pose_truncated", contexts=asked, documents=4, minimum_tokens=33)
    for alone in (False, True):
        planned = losses.plan(protocol, 0, tokens, words, depends_on_length=alone)
        assert planned.sequences == (16 if alone else 4)
        found = contexts(model, planned)
        for label, window in asked.items():
            means, targets = script_of_yarn(model, kept, window, None, BOS)
            assert targets == [window - 1] * 4
            assert found[label]["nll"] == pytest.approx(token_mean(means, targets), rel=1e-10)
            assert found[label]["preceding"] == [1, window - 1]
            assert found[label]["context_tokens"] == window


def test_cut_and_minimum_of_pose(
    model: LlamaForCausalLM, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Guards: documents cut to a token more or less than the script does, BOS counted."""
    documents = random_ids([40, 39, 38, 70, 55])
    words = loaded(tmp_path / "words", tokenizer)
    tokens = stored(tmp_path / "tokens", documents)
    protocol = resolve(
        "pose_sliding",
        contexts={"1x": 16},
        stride_tokens=5,
        documents=3,
        minimum_tokens=40,
        cut_tokens=40,
    )
    found = contexts(model, losses.plan(protocol, 0, tokens, words))["1x"]
    # the script: encode to at most max - 1 tokens, keep those of at least min - 1, take the first
    kept = [ids[:39] for ids in documents if len(ids[:39]) >= 39][:3]
    assert found["documents"] == ["doc-0", "doc-1", "doc-3"]
    means, targets = script_of_yarn(model, kept, 16, 5, BOS)
    assert found["nll"] == pytest.approx(token_mean(means, targets), rel=1e-10)


def stream_of(documents: Sequence[Sequence[int]]) -> list[int]:
    return [token for ids in documents for token in ids]


def cuts_of(total: int) -> list[int]:
    """Return lengths of documents that make up `total`, some of one token."""
    lengths = [9, 1, 30, 2, 17]
    while sum(lengths) < total:
        lengths.append(min(23, total - sum(lengths)))
    while sum(lengths) > total:
        lengths.pop()
    return [*lengths, total - sum(lengths)] if sum(lengths) < total else lengths


@pytest.mark.parametrize("opening", [False, True])
@pytest.mark.parametrize(("window", "stride"), WINDOWS)
@pytest.mark.parametrize("extra", [0, 1, -1, 4])
def test_windows_of_longlora_and_of_the_guide(
    model: LlamaForCausalLM,
    tokenizer: Tokenizer,
    tmp_path: Path,
    window: int,
    stride: int,
    extra: int,
    opening: bool,
) -> None:
    """Guards: windows that stop at documents, BOS within the stream, other starts at its end.

    And overlaps counted once, or the off-by-one of the guide left out.
    """
    documents = random_ids(cuts_of(window + 3 * stride + extra), seed=extra + 1)
    words = loaded(tmp_path / "words", tokenizer, opening=opening)
    tokens = stored(tmp_path / "tokens", [[BOS] * opening + ids for ids in documents])
    stream = stream_of(documents)
    asked = {"contexts": {"1x": window}, "stride_tokens": stride}

    starts = list(range(0, len(stream) - window, stride))
    starts.pop()
    means = []
    for start in starts:
        ids = stream[start : start + window]
        means.append(mean_loss(model, ids, ids).item())
    planned = losses.plan(resolve("longlora_all_windows", **asked), 0, tokens, words)
    found = contexts(model, planned)["1x"]
    assert found["windows"] == len(means)
    assert sum(found["tokens"]) == len(means) * (window - 1)
    assert found["nll"] == pytest.approx(sum(means) / len(means), rel=1e-10)
    assert found["perplexity"] == pytest.approx(2.71828 ** (sum(means) / len(means)), rel=1e-5)
    assert found["left_out_tokens"] == len(stream) - (starts[-1] + window)

    total, weight, before, counted = 0.0, 0, 0, 0
    for begin in range(0, len(stream), stride):
        end = min(begin + window, len(stream))
        ids = stream[begin:end]
        labels = [-100] * (len(ids) - (end - before)) + ids[-(end - before) :]
        valid = sum(label != -100 for label in labels)
        total += mean_loss(model, ids, labels).item() * (valid - 1) if valid > 1 else 0.0
        weight += valid - 1
        counted += 1
        before = end
        if end == len(stream):
            break
    planned = losses.plan(resolve("hf_guide", **asked), 0, tokens, words)
    found = contexts(model, planned)["1x"]
    assert found["windows"] == counted
    assert found["nll"] == pytest.approx(total / weight, rel=1e-10)
    assert sum(found["weights"]) == pytest.approx(weight, rel=1e-12)
    # Every token is attributed to the document it is of, whatever the windows are.
    named = dict(zip(found["documents"], found["tokens"], strict=True))
    assert named == {
        f"doc-{i}": n for i, ids in enumerate(documents) if (n := len(ids) - (i == 0)) > 0
    }


def rolling(
    model: LlamaForCausalLM, ids: Sequence[int], window: int, prefix: int
) -> tuple[float, list[tuple[list[int], list[int]]]]:
    """Return the sum of losses and (context, continuation) of windows as lm-eval makes them."""
    windows, total, done = [], 0.0, 0
    while done < len(ids):
        count = min(window, len(ids) - done)
        end = done + count
        read = [prefix, *ids][max(0, end - window) : end]
        continuation = list(ids[done:end])
        windows.append((read[: len(read) - (count - 1)], continuation))
        with torch.no_grad():
            logs = torch.log_softmax(model(input_ids=torch.tensor([read])).logits[0], -1)
        total -= logs[-count:].gather(1, torch.tensor(continuation)[:, None]).sum().item()
        done = end
    return total, windows


@pytest.mark.parametrize(("bos", "opening"), [(BOS, False), (BOS, True), (None, False)])
@pytest.mark.parametrize("window", [1, 8, 24])
def test_rolling_windows_of_lm_eval(
    model: LlamaForCausalLM,
    tokenizer: Tokenizer,
    tmp_path: Path,
    window: int,
    bos: int | None,
    opening: bool,
) -> None:
    """Guards: BOS read twice, the last window not moved, a first token left unscored."""
    documents = random_ids([1, 2, window - 1, window, window + 1, 3 * window, 3 * window + 2, 50])
    documents = [ids for ids in documents if ids]
    words = loaded(tmp_path / "words", tokenizer, bos=bos, opening=opening)
    tokens = stored(tmp_path / "tokens", [[BOS] * opening + ids for ids in documents])
    planned = losses.plan(resolve("lm_eval_rolling", contexts={"1x": window}), 0, tokens, words)
    found = contexts(model, planned)["1x"]
    prefix = EOS if bos is None else bos
    sums = [rolling(model, ids, window, prefix)[0] for ids in documents]
    assert found["nll_sums"] == pytest.approx(sums, rel=1e-10)
    assert found["tokens"] == [len(ids) for ids in documents]


def test_rolling_windows_are_those_lm_eval_itself_makes(
    model: LlamaForCausalLM, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Guards: a reference loop of ours that is wrong in the same way as the planner."""
    theirs = pytest.importorskip("lm_eval.utils")
    words = loaded(tmp_path / "words", tokenizer)
    for window in (1, 2, 7, 24):
        documents = [
            ids for ids in random_ids([1, 2, 3, window, window + 1, 4 * window, 59]) if ids
        ]
        tokens = stored(tmp_path / f"tokens-{window}", documents)
        planned = losses.plan(resolve("lm_eval_rolling", contexts={"1x": window}), 0, tokens, words)
        spans = planned.spans["1x"]
        row = 0
        for i, ids in enumerate(documents):
            pairs = theirs.get_rolling_token_windows(ids, BOS, window, 1)
            windows = [tuple(map(list, theirs.make_disjoint_window(pair))) for pair in pairs]
            assert rolling(model, ids, window, BOS)[1] == windows
            for context, continuation in windows:
                assert spans.document[row] == i
                text = planned.document(i).tolist()
                read = [BOS] * bool(spans.opening[row]) + text[spans.start[row] : spans.end[row]]
                assert read == (context + continuation)[:-1]
                assert text[spans.scored_start[row] : spans.scored_end[row]] == continuation
                row += 1
        assert row == len(spans)


TEXTS = (
    "The grass is green and the sky is blue.\n\nHere we go there and back again, said the sun. ",
    " Remember 10 20 305. I will quiz you\tabout the  information in the naïve café: 東京.",
    "def find(items, key):\n    for item in items:\n        if item == key:\n            return\n",
)


def test_word_and_byte_perplexity_are_those_of_lm_eval(
    model: LlamaForCausalLM, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Guards: perplexity per word or byte of another text than the one that was scored."""
    documents = [tokenizer.encode(text).ids for text in TEXTS]
    words = loaded(tmp_path / "words", tokenizer)
    tokens = stored(tmp_path / "tokens", documents)
    protocol = resolve("lm_eval_rolling", contexts={"1x": 16})
    found = contexts(model, losses.plan(protocol, 0, tokens, words))["1x"]
    nats = [rolling(model, ids, 16, BOS)[0] for ids in documents]
    counts = [len(re.split(r"\s+", text)) for text in TEXTS]
    sizes = [len(text.encode()) for text in TEXTS]
    assert found["words"] == counts
    assert found["bytes"] == sizes
    assert found["word_perplexity"] == pytest.approx(math.exp(sum(nats) / sum(counts)), rel=1e-9)
    assert found["byte_perplexity"] == pytest.approx(math.exp(sum(nats) / sum(sizes)), rel=1e-10)
    assert found["bits_per_byte"] == pytest.approx(sum(nats) / sum(sizes) / math.log(2), rel=1e-10)


def test_lm_eval_itself_gives_the_same_sums(
    small_model: Callable[..., LlamaForCausalLM],
    tokenizer: Tokenizer,
    tmp_path: Path,
    as_reader: Callable,
) -> None:
    """Guards: the whole of it, from text to nats: ours in float32 as lm-eval's."""
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    from lm_eval.api.instance import Instance
    from transformers import PreTrainedTokenizerFast

    single = small_model(WORDS)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    theirs = huggingface.HFLM(
        pretrained=single, tokenizer=fast, max_length=16, add_bos_token=False, batch_size=1
    )
    requests = [
        Instance("loglikelihood_rolling", {}, (text,), number) for number, text in enumerate(TEXTS)
    ]
    expected = [-found for found in theirs.loglikelihood_rolling(requests, disable_tqdm=True)]
    words = loaded(tmp_path / "words", tokenizer)
    tokens = stored(tmp_path / "tokens", [tokenizer.encode(text).ids for text in TEXTS])
    planned = losses.plan(resolve("lm_eval_rolling", contexts={"1x": 16}), 0, tokens, words)
    scores = score(
        as_reader(single), planned.spans["1x"], planned.document, opening=planned.opening
    )
    found = planned.summarise({"1x": scores}, {})["contexts"]["1x"]
    assert found["nll_sums"] == pytest.approx(expected, rel=1e-6)


def reads(planned: Plan) -> list[tuple[int, int, int, bool]]:
    """Return what every span reads."""
    (spans,) = planned.spans.values()
    columns = (spans.document, spans.start, spans.end, spans.opening)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def test_conventions_give_what_each_preset_gives_alone(
    model: LlamaForCausalLM, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Guards: a preset with the windows or texts of another, and a read that is done twice."""
    documents = random_ids([40, 41, 12, 1, 90, 33, 56])
    words = loaded(tmp_path / "words", tokenizer)
    tokens = stored(tmp_path / "tokens", documents)
    names = tuple(PRESETS)
    protocol = Conventions(
        context_tokens=16,
        stride_tokens=5,
        documents=5,
        minimum_tokens=12,
        cut_tokens=56,
        presets=names,
    )
    with pytest.raises(StageError, match=r"has 4 \(of 7\)"):
        losses.plan(
            Conventions(context_tokens=16, stride_tokens=5, documents=5, minimum_tokens=40),
            0,
            tokens,
            words,
        )
    planned = losses.plan(protocol, 0, tokens, words)
    assert list(planned.spans) == ["conventions"]
    found = contexts(model, planned)
    assert list(found) == list(names)
    kept = [ids[:56] for ids in documents if len(ids) >= 12][:5]
    alone = stored(tmp_path / "alone", kept)
    sequences, apart = 0, set()
    for name in names:
        choice = PRESETS[name].stride == "given"
        own = resolve(name, contexts={"1x": 16}, stride_tokens=5 if choice else None)
        own = SlidingWindow(
            **{**vars(own), "documents": None, "minimum_tokens": 0, "cut_tokens": None}
        )
        plan = losses.plan(own, 0, alone, words)
        sequences += plan.sequences
        apart |= set(reads(plan))
        expected = contexts(model, plan)["1x"]
        assert found[name].pop("documents") == [f"doc-{i}" for i in (0, 1, 2, 4, 5)]
        expected.pop("documents")
        assert found[name] == expected, name
    # Each read is one of some preset: none is longer, so it holds whatever the rope is (of document
    # 2, shorter than a window, lm-eval reads a token less than PoSE). PoSE and YaRN read the same,
    # the guide what LongLoRA reads.
    once = reads(planned)
    assert set(once) == apart
    assert len(set(once)) == len(once) < sequences / 2
    values = [found[name]["nll"] for name in Conventions.__dataclass_fields__["presets"].default]
    assert len(set(values)) == len(values)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pi_sliding", (256, None, 0, None, [2048, 4096, 8192, 16384, 32768])),
        ("pose_sliding", (1024, 50, 32768, 32768, [2048, 4096, 8192, 16384, 32768])),
        ("pose_truncated", (None, 50, 32768, 32768, [1024 * n for n in range(1, 17)])),
        ("pose_long", (16384, 20, 131072, 131072, [32768, 65536, 98304, 131072])),
    ],
)
def test_settings_of_the_papers(name: str, expected: tuple) -> None:
    """Guards: a preset that measures something else than its paper's table."""
    own = resolve(name)
    found = (own.stride_tokens, own.documents, own.minimum_tokens, own.cut_tokens)
    assert (*found, list(own.contexts.values())) == expected
    assert all(float(label[:-1]) * 2048 == tokens for label, tokens in own.contexts.items())


def test_strides_of_the_scripts() -> None:
    """Guards: another stride than the one a script has by default."""
    asked = {"1x": 2048}
    names = ("yarn_window_mean", "longlora_all_windows", "hf_guide", "lm_eval_rolling")
    strides = [resolve(name, contexts=asked).stride_tokens for name in names]
    assert strides == [256, 256, 512, 2048]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("pose_slidng", {}, "preset 'pose_slidng' is unknown: did you mean 'pose_sliding'"),
        ("hf_guide", {}, "names no contexts"),
        ("lm_eval_rolling", {"contexts": {"1x": 8, "2x": 16}}, "one context at a time"),
        ("lm_eval_rolling", {"contexts": {"1x": 8}, "stride_tokens": 4}, "it has its context"),
        ("pose_truncated", {"stride_tokens": 4}, "it has no stride"),
        ("pi_sliding", {"contexts": {"1x": 8}, "stride_tokens": 8}, "preset 'pi_sliding': stride_"),
    ],
)
def test_a_preset_that_cannot_be_had_is_refused(name: str, settings: dict, message: str) -> None:
    """Guards: a setting that is ignored, or a traceback in place of a message."""
    with pytest.raises(StageError, match=message):
        resolve(name, **settings)
