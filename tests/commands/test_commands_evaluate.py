"""`ropewalk evaluate` by flags: a checkpoint and a text of one's own, and one file of numbers."""

import dataclasses
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
import zstandard
from tokenizers import Tokenizer, processors
from train_home import TEXTS, WINDOW, Home, process, tokenise, tokenizer_of
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
)

from ropewalk.cli import main, parser
from ropewalk.commands import evaluate_flags, evaluate_spec
from ropewalk.evaluate import intervals, presets
from ropewalk.evaluate.spec import Outcome

STRIDE, COUNT = 8, 8  # COUNT: of the texts
Json = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Place:
    """Checkpoints whose losses differ from token to token, and texts."""

    llama: Path
    gpt2: Path  # not of a family that ropewalk builds
    jsonl: Path
    tokens: Path


def _sharpened(model: PreTrainedModel, folder: Path) -> Path:
    """Save a model whose logits are far apart: losses all alike would hide a wrong span."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2:
                weight.mul_(6 if "embed" in name or "wte" in name else 8)
    model.save_pretrained(folder)
    tokenizer_of(TEXTS).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Compute in one thread: the models are too small for more, and bits are those of a number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def place(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("place")
    llama = _sharpened(AutoModelForCausalLM.from_pretrained(home.llama), folder / "llama")
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": WINDOW, "vocab_size": 320}
    torch.manual_seed(0)
    gpt2 = _sharpened(GPT2LMHeadModel(GPT2Config(**shape)), folder / "gpt2")
    jsonl = folder / "texts.jsonl"
    jsonl.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS[:COUNT]))
    tokens = tokenise(folder, llama, TEXTS[:COUNT])
    return Place(llama=llama, gpt2=gpt2, jsonl=jsonl, tokens=tokens)


def run(out: Path, model: Path, *flags: str) -> Json:
    assert main(["evaluate", "--model", str(model), *flags, "--out", str(out)]) == 0
    return json.loads(out.read_text())


def settled(result: Json) -> Json:
    """Return a result without what is measured anew every time."""
    return {key: value for key, value in result.items() if key != "measured"}


Spans = Callable[[int], list[tuple[int, int, int]]]


def losses_by_loop(
    folder: Path, texts: Sequence[str], spans: Spans, bos: int
) -> list[list[np.ndarray]]:
    """Return the losses of every span of every text, by transformers and nothing else.

    `spans(tokens)` gives (start, end, first scored) for a text of so many tokens; before every span
    `bos` copies of BOS are read.
    """
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    found: list[list[np.ndarray]] = [[] for _ in texts]
    rows = [(i, *span) for i, own in enumerate(ids) for span in spans(len(own))]
    losses: dict[tuple[int, ...], np.ndarray] = {}
    for length in {end - start for _, start, end, _ in rows}:
        alike = [row for row in rows if row[2] - row[1] == length]
        read = torch.tensor(
            [[tokenizer.bos_token_id] * bos + ids[i][start:end] for i, start, end, _ in alike]
        )
        with torch.no_grad():
            logits = model(read).logits.double()
        for row, own in zip(alike, logits, strict=True):
            i, start, end, first = row
            predicting = own[first - start + bos - 1 : end - start + bos - 1]
            targets = torch.tensor(ids[i][first:end])
            losses[row] = F.cross_entropy(predicting, targets, reduction="none").numpy()
    for row in rows:
        found[row[0]].append(losses[row])
    return found


def sums_by_loop(
    folder: Path, texts: Sequence[str], spans: Spans, bos: int
) -> tuple[list[float], list[int]]:
    """Return summed losses and scored tokens of each text, see `losses_by_loop`."""
    found = [np.concatenate(windows) for windows in losses_by_loop(folder, texts, spans, bos)]
    return [float(own.sum()) for own in found], [len(own) for own in found]


def after_press(window: int, stride: int) -> Spans:
    """Return the windows of Press et al.: the last ones full, each token scored once."""

    def spans(tokens: int) -> list[tuple[int, int, int]]:
        end = min(window, tokens)
        found = [(0, end, 1)]
        while end < tokens:
            new = min(end + stride, tokens)
            found.append((new - window, new, end))
            end = new
        return found

    return spans


def with_bos_everywhere(window: int, stride: int) -> Spans:
    """Return PoSE's windows: BOS takes one token of each, windows begin a stride apart."""

    def spans(tokens: int) -> list[tuple[int, int, int]]:
        end = min(window - 1, tokens)
        found, begin = [(0, end, 0)], 0
        while end < tokens:
            begin, new = begin + stride, min(end + stride, tokens)
            found.append((begin, new, end))
            end = new
        return found

    return spans


def assert_agrees(found: Json, sums: Sequence[float], counts: Sequence[int], seed: int = 0) -> None:
    """Compare a context's numbers with losses by document that something else computed."""
    assert found["by_document"]["nll_sums"] == pytest.approx(sums, rel=1e-5)
    assert found["by_document"]["tokens"] == list(counts)
    assert found["tokens_scored"] == sum(counts)
    assert found["documents"] == len(counts)
    assert found["nll_sum"] == pytest.approx(math.fsum(sums), rel=1e-5)
    nll = math.fsum(sums) / sum(counts)
    assert found["token_perplexity"] == pytest.approx(math.exp(nll), rel=1e-5)
    drawn = intervals.mean_nll(sums, counts, seed=seed)
    ends = [found["interval"]["low"], found["interval"]["high"]]
    assert ends == pytest.approx([math.exp(drawn.low), math.exp(drawn.high)], rel=1e-5)
    assert found["interval"]["of"] == "token_perplexity"
    assert (found["interval"]["level"], found["interval"]["draws"]) == (0.95, intervals.DRAWS)


def test_commands_the_line_of_the_documentation_measures_a_checkpoint(
    place: Place, tmp_path: Path
) -> None:
    """Guards against a perplexity of other windows, other tokens or other text than is said."""
    out = tmp_path / "result.json"
    line = f"evaluate --model {place.llama} --protocol pose_sliding --context 16,{WINDOW}"
    line += f" --stride {STRIDE} --data {place.jsonl} --out {out}"
    done = process(line.split())
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert list(tmp_path.iterdir()) == [out]  # the work folder is gone
    assert set(result["contexts"]) == {"16", str(WINDOW)}
    for window in (16, WINDOW):
        spans = with_bos_everywhere(window, STRIDE)
        sums, counts = sums_by_loop(place.llama, TEXTS[:COUNT], spans, bos=1)
        assert_agrees(result["contexts"][str(window)], sums, counts)
    top = result["contexts"][str(WINDOW)]
    assert {key: result[key] for key in top if key != "by_document"} == {
        key: value for key, value in top.items() if key != "by_document"
    }
    assert (result["context_tokens"], result["stride_tokens"]) == (WINDOW, STRIDE)
    # With BOS before the text all of it is scored, so units are those of the texts themselves.
    size = sum(len(text.encode()) for text in TEXTS[:COUNT])
    words = sum(len(text.split()) for text in TEXTS[:COUNT])
    assert (result["bytes"], result["words"]) == (size, words)
    assert result["bits_per_byte"] == pytest.approx(sum(sums) / math.log(2) / size, rel=1e-5)
    assert result["byte_perplexity"] == pytest.approx(math.exp(sum(sums) / size), rel=1e-5)
    assert result["word_perplexity"] == pytest.approx(math.exp(sum(sums) / words), rel=1e-5)
    assert result["protocol"]["name"] == "pose_sliding"
    assert result["outcomes"]["dropped"] == 0
    assert result["data"]["files"][0]["name"] == "texts.jsonl"
    assert result["data"]["documents"] == COUNT
    measured = result["measured"]
    assert all(
        measured[key] > 0 for key in ("seconds", "peak_memory_bytes", "tokens_scored_per_second")
    )
    assert f"token perplexity {result['token_perplexity']:.6g}" in done.stdout


def test_commands_documents_are_all_of_them_and_the_window_is_the_model_s(
    place: Place, tmp_path: Path
) -> None:
    """Guards against the paper's 50 documents of 32,768 tokens where one's own are shorter."""
    result = run(
        tmp_path / "r.json",
        place.llama,
        *f"--protocol pi_sliding --stride {STRIDE} --data {place.jsonl} --seed 3".split(),
    )
    sums, counts = sums_by_loop(place.llama, TEXTS[:COUNT], after_press(WINDOW, STRIDE), bos=0)
    assert list(result["contexts"]) == [str(WINDOW)]
    assert_agrees(result["contexts"][str(WINDOW)], sums, counts, seed=3)


def test_commands_text_flags_choose_and_cut_documents(place: Place, tmp_path: Path) -> None:
    """Guards against flags that are read and change nothing."""
    rows = [json.dumps({"text": "no", "meta": {"body": text}}) for text in TEXTS[:COUNT]]
    (tmp_path / "[1] *.jsonl").write_text("\n".join(rows))  # a name that a pattern would misread
    flags = "--protocol pi_sliding --stride 4 --context 16 --text-field meta.body"
    flags += " --minimum-tokens 60 --documents 3 --cut-tokens 40"
    data = ["--data", str(tmp_path / "[1] *.jsonl")]
    result = run(tmp_path / "r.json", place.llama, *flags.split(), *data)
    tokenizer = AutoTokenizer.from_pretrained(place.llama)
    long = [t for t in TEXTS[:COUNT] if len(tokenizer(t).input_ids) >= 60][:3]
    windows = after_press(16, 4)
    sums, counts = sums_by_loop(place.llama, long, lambda n: windows(min(n, 40)), bos=0)
    assert_agrees(result["contexts"]["16"], sums, counts)


def test_commands_a_model_of_another_architecture_on_text_files(
    place: Place, tmp_path: Path
) -> None:
    """Guards against numbers that are right only for the families ropewalk builds."""
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(TEXTS[number])
    packed = zstandard.ZstdCompressor().compress(TEXTS[3].encode())
    (tmp_path / "3.txt.zst").write_bytes(packed)
    files = sorted(tmp_path.glob("*.txt*"))
    flags = ["--protocol", "pi_sliding", "--stride", "4", "--context", "16"]
    data = [word for file in files for word in ("--data", str(file))]
    result = run(tmp_path / "r.json", place.gpt2, *flags, *data)
    names = result["contexts"]["16"]["by_document"]["documents"]
    assert sorted(names) == ["0.txt", "1.txt", "2.txt", "3.txt.zst"]
    texts = [TEXTS[int(name[0])] for name in names]
    sums, counts = sums_by_loop(place.gpt2, texts, after_press(16, 4), bos=0)
    assert_agrees(result["contexts"]["16"], sums, counts)
    assert result["cost"]["flops"] is None  # not an architecture that is counted
    assert result["model"]["rope"] is None
    assert {f["name"] for f in result["data"]["files"]} == set(names)


def test_commands_one_document_has_no_interval(place: Place, tmp_path: Path) -> None:
    """Guards against an interval of width nought that looks like certainty."""
    (tmp_path / "one.txt").write_text(TEXTS[5])
    flags = f"--protocol pi_sliding --stride 4 --data {tmp_path / 'one.txt'}".split()
    assert run(tmp_path / "r.json", place.llama, *flags)["interval"] is None


def test_commands_tokens_give_the_numbers_of_their_text(place: Place, tmp_path: Path) -> None:
    """Guards against another tokenisation behind --data FILE than behind `ropewalk tokenize`."""
    flags = ["--protocol", "pose_sliding", "--stride", "4"]
    of_text = run(tmp_path / "text.json", place.llama, *flags, "--data", str(place.jsonl))
    of_tokens = run(tmp_path / "tokens.json", place.llama, *flags, "--data", str(place.tokens))
    for result in (of_text, of_tokens):
        result["contexts"][str(WINDOW)]["by_document"].pop("documents")  # named after their files
    assert of_text["contexts"] == of_tokens["contexts"]
    assert place.tokens.is_dir()
    assert of_tokens["data"]["tokens"] == of_text["data"]["tokens"]


def test_commands_a_sentencepiece_tokenizer_is_the_model_s_own(
    place: Place, tmp_path: Path
) -> None:
    """Guards against folders that bring no tokenizer.json being out of reach."""
    import sentencepiece

    shutil.copytree(place.llama, tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").unlink()
    (tmp_path / "text").write_text("\n".join(TEXTS))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"),
        model_prefix=str(tmp_path / "model" / "tokenizer"),
        model_type="bpe",
        vocab_size=300,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    result = run(
        tmp_path / "r.json",
        tmp_path / "model",
        *f"--protocol pi_sliding --stride 4 --data {place.jsonl}".split(),
    )
    pieces = sentencepiece.SentencePieceProcessor(str(tmp_path / "model" / "tokenizer.model"))
    assert result["data"]["tokens"] == sum(1 + len(pieces.encode(text)) for text in TEXTS[:COUNT])
    assert result["tokens_scored"] == result["data"]["tokens"] - 2 * COUNT  # BOS and the first


def test_commands_a_rope_replaces_that_of_the_checkpoint(place: Place, tmp_path: Path) -> None:
    """Guards against --rope that is written down and never applied."""
    flags = ["--protocol", "pi_sliding", "--context", "48", "--data", str(place.jsonl)]
    flags += ["--stride", "16"]
    found = run(tmp_path / "r.json", place.llama, *flags, "--rope", "linear", "--factor", "4")
    shutil.copytree(place.llama, tmp_path / "linear")
    config = json.loads((tmp_path / "linear" / "config.json").read_text())
    config["rope_parameters"] |= {"rope_type": "linear", "factor": 4.0}
    (tmp_path / "linear" / "config.json").write_text(json.dumps(config))
    sums, counts = sums_by_loop(tmp_path / "linear", TEXTS[:COUNT], after_press(48, 16), bos=0)
    assert_agrees(found["contexts"]["48"], sums, counts)
    assert found["model"]["rope"] == {"kind": "linear", "factor": 4.0}
    own = run(tmp_path / "own.json", tmp_path / "linear", *flags)
    assert own["contexts"] == found["contexts"]


@pytest.mark.parametrize(
    ("flags", "rope"),
    [
        ("dynamic_ntk --factor 2", {"kind": "dynamic_ntk", "factor": 2.0}),
        (
            "string --shift 12 --string-window 4",
            {
                "kind": "string",
                "shift_tokens": 12,
                "window_tokens": 4,
                "attention_factor": 1.0,
                "variant": "exact",
                "frequencies": {"kind": "plain"},
            },
        ),
        ("log_scaled --base 5000", {"kind": "log_scaled", "window_tokens": WINDOW}),
    ],
)
def test_commands_ropes_of_inference(flags: str, rope: Json, place: Place, tmp_path: Path) -> None:
    """Guards against methods that no training takes being out of reach of evaluation too."""
    line = f"--protocol pi_sliding --context 48 --stride 16 --data {place.jsonl} --documents 3"
    plain = run(tmp_path / "plain.json", place.llama, *line.split())
    found = run(tmp_path / "r.json", place.llama, *line.split(), "--rope", *flags.split())
    assert found["model"]["rope"].items() >= rope.items()
    assert found["key"]["rope"] == found["model"]["rope"]
    assert abs(found["nll"] - plain["nll"]) > 1e-3


def test_commands_a_protocol_can_be_given_whole(place: Place, tmp_path: Path) -> None:
    """Guards against a result whose protocol, as it is written there, measures something else."""
    flags = ["--data", str(place.jsonl)]
    named = run(
        tmp_path / "named.json",
        place.llama,
        *("--protocol", "hf_guide", "--stride", "4", "--documents", "6", *flags),
    )
    protocol = named["protocol"]
    (tmp_path / "protocol.json").write_text(json.dumps(protocol))
    for number, given in enumerate([json.dumps(protocol), str(tmp_path / "protocol.json")]):
        found = run(tmp_path / f"{number}.json", place.llama, "--protocol", given, *flags)
        assert found["contexts"] == named["contexts"]
        assert found["key"] == named["key"]


def test_commands_means_that_are_not_over_tokens_have_their_own_interval(
    place: Place, tmp_path: Path
) -> None:
    """Guards against the interval of one mean beside the number of another."""
    flags = f"--protocol yarn_window_mean --stride 4 --data {place.jsonl}".split()
    found = run(tmp_path / "r.json", place.llama, *flags)
    losses = losses_by_loop(place.llama, TEXTS[:COUNT], with_bos_everywhere(WINDOW, 4), bos=1)
    sums = [float(sum(window.mean() for window in own)) for own in losses]
    counts = [len(own) for own in losses]
    nll = math.fsum(sums) / sum(counts)
    assert found["token_perplexity"] == pytest.approx(math.exp(nll), rel=1e-5)
    drawn = intervals.mean_nll(sums, counts, seed=0)
    ends = [found["interval"]["low"], found["interval"]["high"]]
    assert ends == pytest.approx([math.exp(drawn.low), math.exp(drawn.high)], rel=1e-5)


def test_commands_conventions_stand_side_by_side(place: Place, tmp_path: Path) -> None:
    """Guards against a strip whose numbers are not those of the presets one by one."""
    flags = ["--stride", "8", "--data", str(place.jsonl), "--documents", "6"]
    strip = run(tmp_path / "strip.json", place.llama, "--protocol", "conventions", *flags)
    assert "token_perplexity" not in strip  # there is no one number
    for name in ("pi_sliding", "pose_sliding", "longlora_all_windows", "hf_guide"):
        alone = run(tmp_path / f"{name}.json", place.llama, "--protocol", name, *flags)
        found = strip["conventions"][name]
        assert found["token_perplexity"] == pytest.approx(alone["token_perplexity"], rel=1e-6)
        assert found["tokens_scored"] == alone["tokens_scored"]


def test_commands_a_curve_and_its_contexts(place: Place, tmp_path: Path) -> None:
    """Guards against a curve lost on the way to the file."""
    flags = f"--protocol position_curve --context 8,{WINDOW} --data {place.jsonl}".split()
    found = run(tmp_path / "r.json", place.llama, *flags)
    assert set(found["contexts"]) == {"8", str(WINDOW)}
    sums, counts = sums_by_loop(place.llama, TEXTS[:COUNT], lambda n: [(0, 7, 0)], bos=1)
    assert_agrees(found["contexts"]["8"], sums, counts)
    curve = found["curve"]
    assert sum(curve["tokens"]) == found["contexts"][str(WINDOW)]["tokens_scored"]
    total = np.dot(curve["tokens"], [nll or 0.0 for nll in curve["nll"]])
    assert total == pytest.approx(found["contexts"][str(WINDOW)]["nll_sum"], rel=1e-9)


def test_commands_probes_bring_their_intervals(place: Place, tmp_path: Path) -> None:
    """Guards against a reach of a few trials that looks exact."""
    flags = "--protocol passkey --context 512 --distances 3 --trials 4 --allow dropped --seed 5"
    found = run(tmp_path / "key.json", place.llama, *flags.split())
    distances, successes, trials = (found[key] for key in ("distances", "successes", "trials"))
    assert trials == [4] * len(distances)
    drawn = intervals.reach(distances, successes, trials, 0.2, seed=5)
    assert found["reach_interval"] == {
        **dataclasses.asdict(drawn),
        "of": "reach",
        "level": 0.95,
        "method": "binomial bootstrap",
        "draws": intervals.DRAWS,
        "seed": 5,
    }
    shares = [intervals.wilson(s, 4) for s in successes]
    assert found["wilson"] == [[share.low, share.high] for share in shares]
    copied = run(
        tmp_path / "copy.json",
        place.llama,
        *f"--protocol copy --distances 3 --trials 2 --context 64 --data {place.jsonl}".split(),
    )
    assert len(copied["drops"]) == 3
    assert copied["reach_interval"]["method"] == "trial bootstrap"
    answered = run(
        tmp_path / "tasks.json",
        place.llama,
        *"--protocol tasks --tasks passkey,fwe --lengths 512 --trials 2 --allow dropped".split(),
    )
    for cell in answered["cells"].values():
        share = intervals.wilson(int(sum(cell["scores"])), len(cell["scores"]))
        assert (cell["interval"]["low"], cell["interval"]["high"]) == (share.low, share.high)


def test_commands_a_model_of_the_hub_is_named_by_its_commit(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against weights that are not fetched, and a result of whatever `main` was that day."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / commit
    asked: list[str] = []

    def download(name: str, *, revision: str, allow_patterns: list[str], **_: Any) -> str:
        asked.extend([name, revision, *allow_patterns])
        shutil.copytree(
            place.llama,
            snapshot,
            ignore=lambda folder, names: [
                n for n in names if not any(fnmatch(n, pattern) for pattern in allow_patterns)
            ],
        )
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    flags = f"--model-revision v1 --protocol pi_sliding --stride 8 --data {place.jsonl}".split()
    found = run(tmp_path / "r.json", Path("hub:some/llama"), *flags)
    assert asked[:2] == ["some/llama", "v1"]
    assert found["model"]["path"] == "hub:some/llama"
    assert found["model"]["revision"] == commit
    here = run(tmp_path / "here.json", place.llama, *flags[2:])
    assert here["model"]["revision"] is None
    assert (here["key"], here["contexts"]) == (found["key"], found["contexts"])


def test_commands_summaries_of_documents_with_one(place: Place, tmp_path: Path) -> None:
    """Guards against a reference that is read with the prompt, or a mean without its spread."""
    rows = [{"body": text, "short": text[:20]} for text in TEXTS[:3]]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    protocol = json.dumps({"kind": "summaries", "new_tokens": 3, "temperature": 0.0})
    flags = ["--protocol", protocol, "--text-field", "body", "--target-field", "short"]
    flags += ["--prompt", "Read.\n{text}\nShort:", "--data", str(tmp_path / "t.jsonl")]
    found = run(tmp_path / "r.json", place.llama, *flags)
    assert found["documents"] == [f"t.jsonl:{n}" for n in range(3)]
    tokenizer = AutoTokenizer.from_pretrained(place.llama)
    model = AutoModelForCausalLM.from_pretrained(place.llama)
    for text, summary in zip(TEXTS, found["summaries"], strict=False):
        parts = ("Read.\n", text, "\nShort:")  # each is encoded on its own
        ids = [i for part in parts for i in tokenizer(part, add_special_tokens=False).input_ids]
        expected = model.generate(torch.tensor([ids]), max_new_tokens=3, do_sample=False)
        answer = tokenizer.decode(expected[0, len(ids) :], skip_special_tokens=True)
        assert summary == answer.strip()
    for cell in found["cells"].values():
        drawn = intervals.mean_nll(cell["scores"], [1] * 3, seed=0)
        ends = (cell["interval"]["low"], cell["interval"]["high"])
        if set(cell["scores"]) <= {0.0, 1.0}:
            share = intervals.wilson(int(sum(cell["scores"])), 3)
            assert ends == (share.low, share.high)
        else:
            assert ends == (drawn.low, drawn.high)


def test_commands_lost_cases_are_refused_or_counted(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against a number over fewer documents than were given, without a word."""
    rows = [*TEXTS[:3], "r"]  # the last has one token, and no BOS predicts it
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps({"text": row}) for row in rows))
    flags = ["--protocol", "pi_sliding", "--stride", "4", "--data", str(tmp_path / "t.jsonl")]
    out = tmp_path / "r.json"
    words = ["evaluate", "--model", str(place.llama), *flags, "--out", str(out)]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "'t.jsonl:3' has 1 tokens" in error
    assert "add 'dropped' to --allow" in error
    assert not out.exists()
    found = run(out, place.llama, *flags, "--allow", "dropped")
    assert (found["outcomes"]["dropped"], found["documents"]) == (1, 3)


def test_commands_losses_that_are_not_finite_are_refused_or_counted(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against a mean that skips what overflowed, and against scoring all of it twice."""
    folder, out = tmp_path / "model", tmp_path / "r.json"
    model = AutoModelForCausalLM.from_pretrained(place.llama)
    tokenizer = AutoTokenizer.from_pretrained(place.llama)
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer("~").input_ids[-1]] = torch.nan
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    texts = [*TEXTS[:3], f"{TEXTS[4]}~{TEXTS[5]}"]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    flags = ["--protocol", "pi_sliding", "--stride", "4", "--data", str(tmp_path / "t.jsonl")]
    assert main(["evaluate", "--model", str(folder), *flags, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert "losses are not finite, the first is that of document 't.jsonl:3'" in error
    assert "add 'non_finite' to --allow" in error
    found = run(out, folder, *flags, "--allow", "non_finite")
    assert "of the tokens read" not in capsys.readouterr().out  # what was scored is not again
    windows = losses_by_loop(folder, texts, after_press(WINDOW, 4), bos=0)
    losses = np.concatenate([window for own in windows for window in own])
    finite = losses[np.isfinite(losses)]
    assert 0 < found["outcomes"]["non_finite"] == len(losses) - len(finite)
    assert found["tokens_scored"] == len(finite)
    assert found["nll"] == pytest.approx(finite.mean(), rel=1e-5)


def test_commands_what_a_tokenizer_adds_is_no_part_of_a_text(place: Place, tmp_path: Path) -> None:
    """Guards against a double BOS, and an EOS that is scored or not by how a folder was saved."""
    shutil.copytree(place.llama, tmp_path / "model")
    tokenizer = Tokenizer.from_file(str(place.llama / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer.save(str(tmp_path / "model" / "tokenizer.json"))
    for name in ("pi_sliding", "pose_sliding"):
        flags = ["--protocol", name, "--stride", "8", "--data", str(place.jsonl)]
        plain = run(tmp_path / f"plain-{name}.json", place.llama, *flags)
        around = run(tmp_path / f"around-{name}.json", tmp_path / "model", *flags)
        assert around["contexts"] == plain["contexts"]
        assert around["data"]["tokens"] == plain["data"]["tokens"] + COUNT  # the BOS of each


def test_commands_the_same_line_again_measures_nothing(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against hours done twice, and against old numbers taken for new ones."""
    out = tmp_path / "r.json"
    flags = ["--protocol", "pi_sliding", "--stride", "4", "--data", str(place.jsonl)]
    first = run(out, place.llama, *flags)
    written = out.read_bytes()
    capsys.readouterr()
    assert run(out, place.llama, *flags, "--sequences-per-forward", "3") == first
    assert f"{out} stands as it is" in capsys.readouterr().out
    assert out.read_bytes() == written
    assert list(tmp_path.iterdir()) == [out]

    again = run(out, place.llama, *flags, "--again")
    assert settled(again) == settled(first)
    assert out.read_bytes() != written  # times differ

    words = ["evaluate", "--model", str(place.llama), "--protocol", "pi_sliding"]
    words += ["--data", str(place.jsonl), "--out", str(out)]
    written = out.read_bytes()
    assert main([*words, "--stride", "5"]) == 2
    error = capsys.readouterr().err
    assert "--stride 4 there, 5 here" in error
    assert "or --again to replace it" in error
    assert out.read_bytes() == written
    assert list(tmp_path.iterdir()) == [out]
    assert main([*words, "--stride", "5", "--again"]) == 0
    assert json.loads(out.read_text())["stride_tokens"] == 5

    shutil.copytree(place.gpt2, tmp_path / "weights")
    shutil.copytree(place.llama, tmp_path / "config")
    config = json.loads((tmp_path / "config" / "config.json").read_text())
    (tmp_path / "config" / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    text = tmp_path / "data.jsonl"
    text.write_text(place.jsonl.read_text().replace("walk", "path", 1))
    for name, change in {
        "weights": (2, tmp_path / "weights"),
        "config": (2, tmp_path / "config"),
        "data": (6, text),
    }.items():
        place_of, value = change
        changed = [*words[:place_of], str(value), *words[place_of + 1 :]]
        assert main([*changed, "--stride", "5"]) == 2
        assert f"{name} " in capsys.readouterr().err

    (tmp_path / "mine.json").write_text("{}")
    words[-1] = str(tmp_path / "mine.json")
    assert main([*words, "--stride", "5", "--again"]) == 2
    assert "is no result of this command" in capsys.readouterr().err
    assert (tmp_path / "mine.json").read_text() == "{}"


def test_commands_a_dry_run_leaves_nothing(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against an estimate that costs what it estimates, or of another plan."""
    out = tmp_path / "r.json"
    flags = f"--protocol pi_sliding --context 16,{WINDOW} --stride 4 --data {place.jsonl}".split()
    words = ["evaluate", "--model", str(place.llama), *flags, "--out", str(out)]
    assert main([*words, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    result = run(out, place.llama, *flags)
    assert f"reads {result['cost']['tokens_read']} tokens" in said
    assert f"scores {result['cost']['tokens_scored']}" in said
    assert f"about {result['cost']['flops'] / 1e12:.3g} TFLOP" in said
    assert f"contexts [16, {WINDOW}]" in said


def test_commands_scores_are_kept_where_asked(place: Place, tmp_path: Path) -> None:
    """Guards against the loss of every token thrown away that was to be looked at."""
    out = tmp_path / "r.json"
    flags = f"--protocol pi_sliding --context 16,{WINDOW} --stride 4 --data {place.jsonl}".split()
    result = run(out, place.llama, *flags, "--keep")
    with pa.memory_map(result["scores"]) as file:
        table = pa.ipc.open_file(file).read_all()
    labels = table["context"].to_numpy(zero_copy_only=False)
    for label, found in result["contexts"].items():
        nll = table["nll"].to_numpy().astype(np.float64)[labels == label]
        assert len(nll) == found["tokens_scored"]
        assert nll.sum() == pytest.approx(found["nll_sum"], rel=1e-12)
    assert run(out, place.llama, *flags) == result
    assert Path(result["scores"]).is_file()  # what was kept stays where the file names it


def test_commands_a_killed_evaluation_goes_on(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against blocks scored twice, lost, or taken from before the kill and other numbers."""
    contexts = ",".join(map(str, range(8, WINDOW + 1, 4)))  # a block each
    (tmp_path / "long.jsonl").write_text(json.dumps({"text": " ".join(TEXTS[:COUNT])}))
    flags = ["--protocol", "pi_sliding", "--context", contexts, "--stride", "4"]
    flags += ["--data", str(tmp_path / "long.jsonl"), "--sequences-per-forward", "1"]
    whole = run(tmp_path / "whole.json", place.llama, *flags)

    out = tmp_path / "r.json"
    blocks = tmp_path / "r.json.work" / "blocks"
    words = ["evaluate", "--model", str(place.llama), *flags, "--out", str(out)]
    victim = subprocess.Popen(
        [sys.executable, "-m", "ropewalk.cli", *words],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    while victim.poll() is None and len(list(blocks.glob("*.arrow"))) < 2:
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL
    assert not out.exists()
    before = list(blocks.glob("*.arrow"))
    assert 2 <= len(before) < len(whole["contexts"])

    capsys.readouterr()
    assert run(out, place.llama, *flags)["key"] == whole["key"]
    scored = capsys.readouterr().out.count("of the tokens read")
    assert scored == len(whole["contexts"]) - len(before)  # the others were read
    assert settled(json.loads(out.read_text())) == settled(whole)
    assert not blocks.parent.exists()


@pytest.mark.parametrize("page", ["README.md", "docs/evaluation.md"])
def test_commands_the_lines_of_the_documentation_are_evaluations(page: str) -> None:
    """Guards against a page whose lines name flags, presets or settings that are gone."""
    text = (Path(__file__).parents[2] / page).read_text().replace("\\\n", " ")
    lines = re.findall(r"^    (?:\$ )?ropewalk (evaluate .*)", text, re.MULTILINE)
    by_flags = [line for line in lines if "--spec" not in line]
    assert len(by_flags) >= 2
    for line in by_flags:
        options = parser().parse_args(shlex.split(line))
        assert evaluate_spec.protocol(options, 8192).name == options.protocol
        assert options.data or not evaluate_spec.reads_text(
            evaluate_spec.protocol(options, 8192).protocol
        )
    for whole in re.findall(r"--protocol '(\{[^']*\})'", text):
        options = parser().parse_args(["evaluate", "--out", "o", "--protocol", whole])
        assert evaluate_spec.protocol(options, None).protocol.kind == "sliding_window"


def test_commands_every_preset_and_kind_stands_in_the_documentation() -> None:
    """Guards against a table that lacks what can be asked for."""
    text = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    names = [*presets.PRESETS, *evaluate_flags.KINDS, *get_args(Outcome)]
    assert [name for name in names if not re.search(rf"\b{name}\b", text)] == []
    for name, preset in presets.PRESETS.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
        stride = preset.settings.get("stride_tokens")
        assert stride is None or f"| {stride:,} |" in row
        assert (preset.settings.get("text") == "stream") == ("one stream" in row)


Change = Callable[[Place, Path], list[str]]
PLAIN = "--protocol pi_sliding --stride 4"


def _flags(text: str, data: bool = True) -> Change:
    def words(place: Place, _: Path) -> list[str]:
        more = ["--data", str(place.jsonl)] if data else []
        return ["--model", str(place.llama), *text.split(), *more]

    return words


def _foreign(text: str) -> Change:
    return lambda place, _: [
        *("--model", str(place.gpt2), "--data", str(place.jsonl)),
        *text.split(),
    ]


def _model(change: Callable[[Path], object]) -> Change:
    def words(place: Place, folder: Path) -> list[str]:
        shutil.copytree(place.llama, folder / "model")
        change(folder / "model")
        more = ["--data", str(place.jsonl), *PLAIN.split()]
        return ["--model", str(folder / "model"), *more]

    return words


def _without(*names: str) -> Callable[[Path], object]:
    return lambda model: [(model / name).unlink() for name in names]


def _file(name: str, content: str) -> Change:
    def words(place: Place, folder: Path) -> list[str]:
        (folder / name).write_text(content)
        data = ["--data", str(folder / name)]
        return ["--model", str(place.llama), *PLAIN.split(), *data]

    return words


def _data(*paths: str) -> Change:
    def words(place: Place, folder: Path) -> list[str]:
        known = {"JSONL": place.jsonl, "TOKENS": place.tokens, "HERE": folder}
        data = [word for p in paths for word in ("--data", str(known.get(p, p)))]
        return ["--model", str(place.llama), *PLAIN.split(), *data]

    return words


def _other_tokens(place: Place, folder: Path) -> list[str]:
    tokenizer_of([text[::-1] for text in TEXTS]).save_pretrained(folder / "other")
    tokens = tokenise(folder, folder / "other", TEXTS[:3])
    return ["--model", str(place.llama), *PLAIN.split(), "--data", str(tokens)]


def _protocol(content: str) -> Change:
    return lambda place, _: [
        *("--model", str(place.llama), "--data", str(place.jsonl), "--protocol", content)
    ]


TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
REFUSALS: dict[str, tuple[Change, str]] = {
    "nothing": (lambda *_: [], "--model and --protocol missing"),
    "no protocol": (lambda place, _: ["--model", str(place.llama)], "--protocol missing"),
    "no model": (
        lambda place, _: ["--model", "nowhere", *PLAIN.split(), "--data", str(place.jsonl)],
        "--model nowhere: no such folder; give a Hugging Face folder, or hub:NAME",
    ),
    "no config": (_model(_without("config.json")), "config.json does not exist"),
    "no weights": (_model(_without("model.safetensors")), "only safetensors checkpoints are read"),
    "no tokenizer": (
        _model(_without(*TOKENIZER_FILES)),
        "has no tokenizer.json and no .model file",
    ),
    "no tokenizer there": (
        _flags(f"{PLAIN} --tokenizer nowhere"),
        "--tokenizer: its tokenizer cannot be read: nowhere does not exist",
    ),
    "revision": (_flags(f"{PLAIN} --model-revision x"), "--model-revision is for --model hub:"),
    "misspelled": (_flags("--protocol pi_slidin"), "did you mean 'pi_sliding'?"),
    "unknown": (_flags("--protocol zzz"), "kinds: same_tokens, sliding_window, position_curve"),
    "not JSON": (_protocol("{"), "--protocol: not valid JSON"),
    "unknown kind": (_protocol('{"kind": "passke"}'), "did you mean 'passkey'?"),
    "unknown key": (
        _protocol('{"kind": "position_curve", "contexts": {"a": 8}, "stride": 3}'),
        "--protocol.stride: unknown key",
    ),
    "whole and flag": (
        lambda place, _: [
            *("--model", str(place.llama), "--data", str(place.jsonl), "--stride", "4"),
            *("--protocol", '{"kind": "position_curve", "contexts": {"a": 8}}'),
        ],
        "--stride and a whole protocol as JSON",
    ),
    "flag of another": (
        _flags("--protocol position_curve --stride 4"),
        "--stride is not for --protocol position_curve",
    ),
    "no stride": (_flags("--protocol conventions"), "--protocol conventions needs --stride"),
    "no tasks": (_flags("--protocol tasks", data=False), "--protocol tasks needs --tasks"),
    "no such task": (
        _flags("--protocol tasks --tasks zzz --lengths 512", data=False),
        "--tasks: there is no 'zzz'; there are passkey",
    ),
    "two contexts": (
        _flags("--protocol passkey --context 64,128", data=False),
        "--protocol passkey takes one",
    ),
    "own stride": (
        _flags("--protocol pi_sliding"),
        "(the preset's own --stride is 256: give --stride, or a longer --context)",
    ),
    "wide stride": (
        _flags("--protocol pi_sliding --stride 40"),
        "--stride 40 must lie between 1 and 31, what the shortest --context 32 can score",
    ),
    "stride of conventions": (_flags("--protocol conventions --stride 40"), "--stride 40 must"),
    "stride of none": (
        _flags("--protocol lm_eval_rolling --stride 4"),
        "leave out --stride 4, it has its context",
    ),
    "many documents": (
        _flags(f"{PLAIN} --documents 99"),
        "--documents asks for 99 documents of at least 2 tokens, the corpus has 8",
    ),
    "long minimum": (_flags(f"{PLAIN} --minimum-tokens 9999"), "of at least 9999 tokens"),
    "short passkey": (
        _flags("--protocol passkey --context 64", data=False),
        "--context 64 is too short",
    ),
    "no data": (_flags(PLAIN, data=False), "--data is missing: --protocol pi_sliding reads text"),
    "data of none": (_flags("--protocol passkey"), "--data is not for --protocol passkey"),
    "absent data": (_data("nowhere.jsonl"), "--data nowhere.jsonl: no such file"),
    "data twice": (_data("JSONL", "JSONL"), "is given twice"),
    "folder": (_data("HERE"), "no manifest.json there; give files of documents, or a folder"),
    "tokens and text": (_data("TOKENS", "JSONL"), "a folder of tokens is read alone"),
    "other tokens": (_other_tokens, "differ: "),
    "empty data": (_file("t.jsonl", ""), "t.jsonl: the file is empty"),
    "blank lines": (_file("t.jsonl", "\n\n"), "--data: no document is left (the files hold none)"),
    "only empty": (_file("t.jsonl", '{"text": ""}'), "no document is left (1 empty)"),
    "unknown ending": (_file("t.csv", "a"), "t.csv: a file that ends so is not read"),
    "no text": (
        _file("t.jsonl", '{"body": "a"}'),
        "more than --damaged-limit = 0: missing_text in t.jsonl:0: no 'text' among 'body'",
    ),
    "no JSON": (_file("t.jsonl", "a rope"), "malformed_json in t.jsonl:0"),
    "text flag of tokens": (
        lambda place, _: [
            *("--model", str(place.llama), *PLAIN.split(), "--data", str(place.tokens)),
            *("--text-field", "body"),
        ],
        "--text-field is for files of documents",
    ),
    "no target": (_flags("--protocol summaries --prompt {text}"), "--target-field missing"),
    "no prompt": (_flags("--protocol summaries"), "has no prompt"),
    "rope of another": (
        _foreign(f"{PLAIN} --rope linear --factor 2"),
        "is read by transformers' own class, under its own rope only",
    ),
    "flash of another": (
        _foreign(f"{PLAIN} --attention flash"),
        "own class, with sdpa; leave it out",
    ),
    "learned positions": (_foreign("--protocol pi_sliding --context 64 --stride 4"), "after 32"),
    "factor alone": (_flags(f"{PLAIN} --factor 4"), "--factor needs --rope"),
    "no factor": (_flags(f"{PLAIN} --rope linear"), "--rope linear needs --factor"),
    "no shift": (_flags(f"{PLAIN} --rope string"), "--rope string needs --shift"),
    "shift of linear": (
        _flags(f"{PLAIN} --rope linear --factor 2 --shift 3"),
        "--shift is not for --rope linear",
    ),
    "base of dynamic": (
        _flags(f"{PLAIN} --rope dynamic_ntk --base 3"),
        "--base is not for --rope dynamic_ntk",
    ),
    "curve of dynamic": (
        _flags("--protocol position_curve --rope dynamic_ntk"),
        "depends on the length",
    ),
    "fp16": (_flags(f"{PLAIN} --precision fp16 --device cpu"), "--precision: 'fp16'"),
    "sequences": (_flags(f"{PLAIN} --sequences-per-forward 0"), "must be at least 1"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_commands_an_evaluation_that_cannot_be_is_refused_in_one_message(
    case: str, place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against a traceback, a number for another question, or leftovers of a refusal."""
    words, message = REFUSALS[case]
    made = words(place, tmp_path)
    before = set(tmp_path.rglob("*"))
    capsys.readouterr()
    assert main(["evaluate", *made, "--out", str(tmp_path / "r.json")]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("ropewalk: ") == 1
    assert "Traceback" not in errors
    assert set(tmp_path.rglob("*")) == before


def test_commands_a_folder_is_no_file(place: Place, tmp_path: Path) -> None:
    """Guards against a folder of results that is taken for a file."""
    words = ["evaluate", "--model", str(place.llama), *PLAIN.split(), "--data", str(place.jsonl)]
    assert main([*words, "--out", str(tmp_path)]) == 2
    assert list(tmp_path.iterdir()) == []
