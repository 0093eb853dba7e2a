"""When the file of an evaluation stands, and what a dry run refuses."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from train_home import TEXTS, WINDOW, Home
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
)

from ropewalk.cli import main
from ropewalk.commands import evaluate_result, evaluate_spec
from ropewalk.model.readers import built

Json = dict[str, Any]


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    file = tmp_path / "texts.jsonl"
    file.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS[:3]))
    return file


@pytest.fixture
def model(home: Home, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(home.llama, tmp_path / "model")


def words(model: Path, *flags: str) -> list[str]:
    return ["evaluate", "--model", str(model), *flags]


def changed(file: Path, **settings: Any) -> None:
    data = json.loads(file.read_text())
    file.write_text(json.dumps({**data, **settings}))


def test_commands_special_tokens_are_part_of_an_evaluation(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against "unchanged" where another EOS ends answers, or another BOS opens prompts."""
    out = tmp_path / "r.json"
    line = words(model, *"--protocol tasks --tasks passkey --lengths 512 --trials 1".split())
    line += ["--allow", "dropped", "--out", str(out)]
    assert main(line) == 0
    assert main(line) == 0
    assert "unchanged" in capsys.readouterr().out
    changed(model / "tokenizer_config.json", eos_token="<s>")
    assert main(line) == 2
    assert "tokenizer.eos 1 there" in capsys.readouterr().err


def task(folder: Path, *answers: int) -> None:
    folder.mkdir(exist_ok=True)
    rows = [{"question": f"rope {n}", "label": answer} for n, answer in enumerate(answers)]
    data = folder.parent / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "task": "mine",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": ["walk", "rope rope"],
        "doc_to_target": "{{label}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1},
    }
    (folder / "mine.yaml").write_text(yaml.safe_dump(settings))


def test_commands_the_harness_is_asked_again(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Guards against the number of other documents, which no key can tell apart."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    out, tasks = tmp_path / "h.json", tmp_path / "tasks"
    line = words(model, "--protocol", "harness", "--tasks", "mine", "--task-folder", str(tasks))
    line += ["--out", str(out)]
    task(tasks, 0, 0, 0)
    assert main(line) == 0
    first = json.loads(out.read_text())
    assert {"datasets", "lm-eval"} <= set(first["key"]["libraries"])
    task(tasks, 1, 1, 1)
    assert main(line) == 2
    assert "give --again to measure anew, or another file" in capsys.readouterr().err
    # A block that an evaluation left when it was killed is of documents no one knows either.
    blocks = tmp_path / "h.json.work" / "blocks"
    blocks.mkdir(parents=True)
    made_from = first["key"]
    made_from["protocol"].pop("allow")
    (blocks / "made-from.json").write_text(json.dumps(made_from))
    (blocks / "0-harness.json").write_text('{"found": {"cells": {}, "old": 1}, "seconds": 1.0}')
    assert main([*line, "--again"]) == 0
    assert "starting anew" not in capsys.readouterr().out  # so that the block was looked at
    again = json.loads(out.read_text())
    assert "old" not in again
    mean, other = (result["cells"]["mine"]["mean"] for result in (first, again))
    assert mean == 1 - other


DRY = ("--protocol", "pi_sliding", "--stride", "4")


def test_commands_a_dry_run_refuses_what_the_run_refuses(
    model: Path, jsonl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against an estimate of hours for what is then refused."""
    out = tmp_path / "r.json"

    def refused(*flags: str) -> str:
        messages = []
        capsys.readouterr()
        for more in ((), ("--dry-run",)):
            assert main([*words(model, *flags), "--out", str(out), *more]) == 2
            messages.append(capsys.readouterr().err.splitlines()[-1])
        assert messages[0] == messages[1]
        return messages[0]

    short = tmp_path / "short.jsonl"
    short.write_text(jsonl.read_text() + '\n{"text": "r"}')
    assert "add 'dropped' to --allow" in refused(*DRY, "--data", str(short))

    whole = (model / "model.safetensors").read_bytes()
    small = AutoModelForCausalLM.from_pretrained(model)
    small.resize_token_embeddings(300)
    small.save_pretrained(model)
    assert "has a vocabulary of 300" in refused(*DRY, "--data", str(jsonl))
    changed(model / "config.json", vocab_size=320)
    (model / "model.safetensors").write_bytes(whole)

    line = [*words(model, *DRY, "--data", str(jsonl)), "--out", str(out)]
    assert main(line) == 0
    written = out.read_bytes()
    message = refused(*DRY[:2], "--stride", "5", "--context", "16", "--data", str(jsonl))
    assert f"--context [{WINDOW}] there, [16] here" in message
    assert "--stride 4 there, 5 here" in message
    capsys.readouterr()
    assert main([*line, "--dry-run"]) == 0
    assert "unchanged" in capsys.readouterr().out
    assert out.read_bytes() == written


def test_commands_keep_says_when_there_is_nothing_to_keep(
    model: Path, jsonl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against scores that were asked for, are not there, and no word of it."""
    line = [*words(model, *DRY, "--data", str(jsonl)), "--out", str(tmp_path / "r.json")]
    assert main(line) == 0
    capsys.readouterr()
    said = "--keep has nothing of what stands to keep (give --again to have it)"
    assert main([*line, "--keep"]) == 0
    assert said in capsys.readouterr().out
    assert main([*line, "--keep", "--again"]) == 0
    assert main([*line, "--keep"]) == 0
    assert said not in capsys.readouterr().out


@pytest.mark.parametrize(
    "rope", [["dynamic_ntk", "--factor", "2"], ["string", "--shift", "8", "--string-window", "4"]]
)
def test_commands_a_curve_names_what_to_type(
    rope: list[str], home: Home, jsonl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against advice that no flag can follow, such as --stride null."""
    flags = ["--protocol", "position_curve", "--rope", *rope, "--data", str(jsonl)]
    assert main([*words(home.llama, *flags), "--out", str(tmp_path / "r.json")]) == 2
    error = capsys.readouterr().err
    assert "use --protocol sliding_window without --stride" in error
    assert "dynamic_ntk and string" in error


def test_commands_a_tokenizer_without_bos_names_what_to_type(
    model: Path, jsonl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against the advice to name a token in --bos, which takes none."""
    definition = json.loads((model / "tokenizer.json").read_text())
    for token, name in zip(definition["added_tokens"], ("<x>", "<y>"), strict=True):
        definition["model"]["vocab"][name] = definition["model"]["vocab"].pop(token["content"])
        token["content"] = name
    (model / "tokenizer.json").write_text(json.dumps(definition))
    changed(model / "tokenizer_config.json", bos_token=None, eos_token=None)
    flags = ["--protocol", "pose_sliding", "--stride", "4", "--data", str(jsonl)]
    assert main([*words(model, *flags), "--out", str(tmp_path / "r.json")]) == 2
    error = capsys.readouterr().err
    assert "neither BOS nor EOS" in error
    assert "--protocol pi_sliding" in error
    assert "a folder whose tokenizer_config.json has a bos_token" in error


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("lower protocol.documents.", "lower --documents."),
        ("/data/stride_tokens.jsonl: no", "/data/stride_tokens.jsonl: no"),
        ("'cut_tokens:3' has 1 tokens", "'cut_tokens:3' has 1 tokens"),
        ("stride_tokens 4 must", "--stride 4 must"),
    ],
)
def test_commands_messages_leave_names_of_files_alone(message: str, expected: str) -> None:
    """Guards against a message that names a file there is not."""
    assert evaluate_spec.by_flags(message, named=True) == expected


def test_commands_a_llama_that_turns_part_of_a_head_is_another_s(
    jsonl: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against a rope that flags accept for a model that transformers' class reads."""
    found = LlamaConfig.from_pretrained(model)
    assert built(found) is not None
    found.rope_parameters = {**found.rope_parameters, "partial_rotary_factor": 0.5}
    assert built(found) is None
    found.save_pretrained(model)
    flags = [*DRY, "--data", str(jsonl), "--rope", "linear", "--factor", "2"]
    assert main([*words(model, *flags), "--out", str(tmp_path / "r.json")]) == 2
    assert "is read by transformers' own class" in capsys.readouterr().err


def test_commands_attention_is_what_the_reader_uses(
    model: Path, jsonl: Path, tmp_path: Path
) -> None:
    """Guards against a result that says sdpa where soft caps made the reader choose eager."""
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 16}
    torch.manual_seed(0)
    capped = Gemma2ForCausalLM(
        Gemma2Config(**shape, vocab_size=320, num_attention_heads=2, num_key_value_heads=1)
    )
    capped.save_pretrained(model)
    out = tmp_path / "r.json"
    line = words(model, *DRY, "--context", "16", "--data", str(jsonl), "--out", str(out))
    assert main(line) == 0
    assert json.loads(out.read_text())["numerics"]["attention"] == "eager"


def test_commands_an_interval_beyond_a_float64_has_no_end(tmp_path: Path) -> None:
    """Guards against hours of scoring lost to an OverflowError when the file is written."""
    found = {
        "documents": ["a", "b"],
        "tokens": [1, 1],
        "words": [1, 1],
        "bytes": [1, 1],
        "nll_sums": [600.0, 800.0],
        "hits": [0, 0],
        "perplexity": 1e304,
    }
    interval = evaluate_result.losses(found, seed=0)["interval"]
    assert interval["high"] is None
    assert interval["low"] == pytest.approx(3.77e260, rel=1e-2)
