"""A stranger's checkpoints and tokens, and a way to train from them by flags."""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from ropewalk.cli import main, parser

VOCABULARY, WINDOW = 320, 32
TEXTS = [
    f"document {n}: "
    + " ".join(f"rope {(n * 7 + i * i) % 97} in walk {i * n % 13}" for i in range(8 + n % 30))
    for n in range(60)
]


@dataclasses.dataclass(frozen=True)
class Home:
    """Folders of a stranger: a checkpoint, another of the other family, and tokens."""

    llama: Path
    neox: Path
    tokens: Path

    def start(self, *more: str, model: Path | str | None = None) -> list[str]:
        """Return a command without --out; flags in `more` follow."""
        where = ["train", "--model", str(model or self.llama), "--data", str(self.tokens)]
        return [*where, "--batch", "4", *more]


def tokenizer_of(texts: list[str]) -> PreTrainedTokenizerFast:
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    trained.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=trained, bos_token="<s>", eos_token="</s>")


def tokenise(folder: Path, tokenizer: Path, texts: list[str], *more: str) -> Path:
    source = folder / "source"
    (source / "train").mkdir(parents=True)
    rows = "\n".join(json.dumps({"text": text}) for text in texts)
    (source / "train" / "rows.jsonl").write_text(rows)
    words = ["tokenize", "--source", "jsonl", "--path", str(source), "--tokenizer", str(tokenizer)]
    assert main([*words, "--out", str(folder / "tokens"), *more]) == 0
    return folder / "tokens"


def make(folder: Path) -> Home:
    """Make a home below a folder."""
    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": WINDOW,
    }
    made: dict[str, PreTrainedModel] = {
        "llama": LlamaForCausalLM(LlamaConfig(**shape)),
        "neox": GPTNeoXForCausalLM(GPTNeoXConfig(**shape)),
    }
    for name, model in made.items():
        model.save_pretrained(folder / name)
        tokenizer_of(TEXTS).save_pretrained(folder / name)
    tokens = tokenise(folder, folder / "llama", TEXTS)
    return Home(llama=folder / "llama", neox=folder / "neox", tokens=tokens)


def parsed(*flags: str) -> argparse.Namespace:
    """Return the options of `ropewalk train` with some flags."""
    return parser().parse_args(["train", "--out", "out", *flags])


def metrics(out: Path) -> list[dict[str, Any]]:
    (work,) = out.glob("work-*")
    return [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]


def exported(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((out / "final").iterdir())}


def process(words: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ropewalk.cli", *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
