"""Checkpoints, texts and tokens to measure, and a run of the command."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from train_home import TEXTS, WINDOW, Home, tokenise, tokenizer_of
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
)

from ropewalk.cli import main

COUNT = 8  # of the texts
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


def make_place(home: Home, folder: Path) -> Place:
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
