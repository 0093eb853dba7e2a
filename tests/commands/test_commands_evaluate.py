"""`ropewalk evaluate` by flags: a checkpoint and a text of one's own, and one file of numbers."""

import dataclasses
import json
import math
import re
import shlex
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import zstandard
from evaluate_home import COUNT, Place, run
from evaluate_loop import (
    after_press,
    assert_agrees,
    losses_by_loop,
    sums_by_loop,
    with_bos_everywhere,
)
from tokenizers import Tokenizer, processors
from train_home import TEXTS, WINDOW, process
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
)

from ropewalk.base.canonical import plain
from ropewalk.cli import main, parser
from ropewalk.commands import evaluate_flags, evaluate_spec
from ropewalk.evaluate import intervals, presets
from ropewalk.evaluate.spec import Outcome
from ropewalk.model.spec import BaseRope, DynamicNtkRope, LogScaledRope, Rope, StringRope

STRIDE = 8


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
        ("dynamic_ntk --factor 2", DynamicNtkRope(factor=2.0)),
        ("string --shift 12 --string-window 4", StringRope(shift_tokens=12, window_tokens=4)),
        (
            "log_scaled --base 5000",
            LogScaledRope(window_tokens=WINDOW, frequencies=BaseRope(base=5000.0)),
        ),
    ],
)
def test_commands_ropes_of_inference(flags: str, rope: Rope, place: Place, tmp_path: Path) -> None:
    """Guards against methods that no training takes being out of reach of evaluation too."""
    line = f"--protocol pi_sliding --context 48 --stride 16 --data {place.jsonl} --documents 3"
    found = run(tmp_path / "r.json", place.llama, *line.split(), "--rope", *flags.split())
    assert found["key"]["rope"] == found["model"]["rope"] == plain(rope)
    sums, counts = sums_by_loop(place.llama, TEXTS[:3], after_press(48, 16), bos=0, rope=rope)
    assert_agrees(found["contexts"]["48"], sums, counts)


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
