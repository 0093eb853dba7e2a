"""Mistakes in the flags of `ropewalk train`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from train_home import TEXTS, Home, tokenise, tokenizer_of

from ropewalk.cli import main

Change = Callable[[Home, Path], list[str]]


def _flags(text: str) -> Change:
    return lambda home, _: home.start(*text.split())


def _model(change: Callable[[Path], object]) -> Change:
    def start(home: Home, folder: Path) -> list[str]:
        shutil.copytree(home.llama, folder / "model")
        change(folder / "model")
        return home.start("--steps", "1", model=folder / "model")

    return start


def _setting(key: str, value: object) -> Callable[[Path], object]:
    def change(model: Path) -> None:
        file = model / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))

    return change


def _without_safetensors(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def _data(kind: str) -> Change:
    def start(home: Home, folder: Path) -> list[str]:
        place = {
            "absent": folder / "absent",
            "file": home.tokens.parent / "source" / "train" / "rows.jsonl",
            "tokenizer": home.tokens / "tokenizer",
        }
        words = ["train", "--model", str(home.llama), "--steps", "1"]
        return [*words, "--data", str(place[kind])]

    return start


def _other_tokenizer(home: Home, folder: Path) -> list[str]:
    tokenizer_of([text[::-1] for text in TEXTS]).save_pretrained(folder / "other")
    tokens = tokenise(folder, folder / "other", TEXTS)
    return ["train", "--model", str(home.llama), "--data", str(tokens), "--steps", "1"]


def _foreign_tokenizer(home: Home, folder: Path) -> list[str]:
    _other_tokenizer(home, folder)
    return home.start("--steps", "1", "--tokenizer", str(folder / "tokens" / "tokenizer"))


def _two_tokenizers(home: Home, folder: Path) -> list[str]:
    _other_tokenizer(home, folder)
    return home.start("--steps", "1", "--data", str(folder / "tokens"))


def _larger_vocabulary(home: Home, folder: Path) -> list[str]:
    tokens = tokenise(folder, home.llama, TEXTS, "--vocabulary-size", "400")
    return ["train", "--model", str(home.llama), "--data", str(tokens), "--steps", "1"]


def _out_is_tokens(home: Home, folder: Path) -> list[str]:
    shutil.copytree(home.tokens, folder / "out")
    return home.start("--steps", "1")


DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
POSE = "--positions pose --target 128 --steps 1"
REFUSALS: dict[str, tuple[Change, str]] = {
    "nothing": (lambda *_: ["train"], "--model and --data missing"),
    "no model": (
        lambda home, _: home.start("--steps", "1", model="nowhere"),
        "--model nowhere: no such folder; give a Hugging Face folder, hub:NAME",
    ),
    "no config": (_model(lambda m: (m / "config.json").unlink()), "config.json does not exist"),
    "damaged config": (
        _model(lambda m: (m / "config.json").write_text("{")),
        "config.json cannot be read",
    ),
    "no safetensors": (_model(_without_safetensors), "only safetensors checkpoints are read"),
    "another family": (
        _model(_setting("model_type", "mistral")),
        "model_type 'mistral' is not one of 'llama', 'gpt_neox'",
    ),
    "inference rope": (
        _model(_setting("rope_parameters", DYNAMIC)),
        "rope.kind 'dynamic_ntk' is a method of inference",
    ),
    "no tokens": (_data("absent"), "give a folder that `ropewalk tokenize` left"),
    "text": (_data("file"), "ropewalk tokenize --source jsonl"),
    "no tokens either": (_data("tokenizer"), "made by stage 'tokenizer'; give tokens"),
    "other tokenizer": (_other_tokenizer, "differ: "),
    "foreign tokenizer": (_foreign_tokenizer, "not made with the tokenizer at"),
    "two tokenizers": (_two_tokenizers, "were made with different tokenizers"),
    "larger vocabulary": (_larger_vocabulary, "has a vocabulary of 320; tokenise the corpus with"),
    "weights": (
        _flags("--weight 1 --weight 2 --steps 1"),
        "--weight is given 2 times",
    ),
    "revision": (_flags("--model-revision abc --steps 1"), "--model-revision is for --model hub:"),
    "no factor": (_flags("--rope linear --steps 1"), "--rope linear needs --factor"),
    "no base": (_flags("--rope base --steps 1"), "--rope base needs --base"),
    "factor alone": (_flags("--factor 4 --steps 1"), "--factor needs --rope"),
    "betas of linear": (
        _flags("--rope linear --factor 2 --beta-fast 3 --steps 1"),
        "--beta-fast is not for --rope linear",
    ),
    "small factor": (
        _flags("--rope linear --factor 0.5 --steps 1"),
        "--rope linear: factor 0.5 is below 1",
    ),
    "no target": (_flags("--positions pose --steps 1"), "--positions pose needs --target"),
    "small target": (
        _flags("--positions randpos --target 16 --steps 1"),
        "positions.target_tokens 16 is below length_tokens 32",
    ),
    "chunks of natural": (_flags("--chunks 2 --steps 1"), "--chunks is for --positions pose"),
    "three short chunks": (
        _flags(f"{POSE} --chunks 3 --chunk-lengths short_first"),
        "lengths 'short_first' is a rule for 2 chunks, not 3",
    ),
    "two lengths": (
        _flags("--length 32 --target 64 --steps 1"),
        "--length 32 and --target 64: with --positions natural",
    ),
    "length and lengths": (_flags("--length 8 --lengths 8,16 --steps 2"), "--length and --lengths"),
    "few steps": (
        _flags("--lengths 8,16 --steps 1"),
        "2 phases, for 1 steps: one each at least",
    ),
    "odd batch": (
        _flags("--lengths 16,24 --steps 2 --batch 1"),
        "batch.tokens 24 is not divisible by the phase's length_tokens 16",
    ),
    "policy of pose": (_flags(f"{POSE} --policy concat"), "add --content contiguous"),
    "short documents": (
        _flags(f"{POSE} --target 8000 --length 4000"),
        "a row is 4000 tokens of one document, but the longest of its 60 documents has",
    ),
    "aligned": (
        _flags("--positions pose --target 300 --content aligned --steps 1"),
        "ropewalk tokenize --minimum-tokens 300",
    ),
    "no steps": (_flags(""), "--steps or --train-tokens: give one of them"),
    "two sizes": (_flags("--steps 1 --train-tokens 9"), "--steps or --train-tokens: give one"),
    "few tokens": (_flags("--train-tokens 100"), "less than one step, which has 128 tokens"),
    "two batches": (_flags("--batch-tokens 64 --steps 1"), "--batch and --batch-tokens: give one"),
    "no batch": (_flags("--batch 0 --steps 1"), "--batch 0 must be at least 1"),
    "final of constant": (_flags("--final-share 0.1 --steps 1"), "is for --schedule linear or"),
    "late snapshot": (_flags("--steps 1 --snapshot-steps 5"), "snapshot_steps: 5 lies behind"),
    "fp16": (_flags("--device cpu --precision fp16 --steps 1"), "numerics.precision: 'fp16'"),
    "flash": (_flags("--device cpu --attention flash --steps 1"), "numerics.attention: 'flash'"),
    "processes": (_flags("--processes 3 --steps 1"), "3 processes cannot share the 4 sequences"),
    "betas": (_flags("--betas 0.9 --steps 1"), "betas: (0.9,) must have 2 items"),
    "out is tokens": (_out_is_tokens, "holds what stage 'gather' left"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_commands_training_that_cannot_be_is_refused_in_one_message(
    case: str, home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against a traceback, or hours of work before the mistake shows."""
    words, message = REFUSALS[case]
    made = words(home, tmp_path)
    before = set((tmp_path / "out").rglob("*"))
    capsys.readouterr()
    assert main([*made, "--out", str(tmp_path / "out")]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1
    assert set((tmp_path / "out").rglob("*")) == before
