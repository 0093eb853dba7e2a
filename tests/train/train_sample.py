"""A small corpus with windows and a tokenizer, runs over it, and a way to start them."""

import dataclasses
import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from ropewalk.base.canonical import plain
from ropewalk.base.files import read_json, write_json
from ropewalk.base.manifest import Manifest, write_manifest
from ropewalk.base.spec import decode
from ropewalk.base.stage import run_stage
from ropewalk.data import pack
from ropewalk.data.shards import ShardWriter
from ropewalk.data.spec import PackJob, Share, Windows
from ropewalk.model.spec import Architecture
from ropewalk.train import metrics, stage
from ropewalk.train.spec import (
    Batch,
    Hardware,
    Optimizer,
    Phase,
    Run,
    Schedule,
    ScratchWeights,
    TrainJob,
)

VOCABULARY = 96
ARCHITECTURE = Architecture(
    layers=2,
    hidden=32,
    heads=4,
    kv_heads=2,
    ffn=48,
    vocabulary_size=VOCABULARY,
    context_tokens=32,
    tied_embeddings=True,
)
RUN = Run(
    architecture=ARCHITECTURE,
    tokenizer="words",
    weights=ScratchWeights(seed=1),
    phases=(Phase(windows="packed", length_tokens=32, steps=6),),
    batch=Batch(sequences=8),
    optimizer=Optimizer(lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1, clip_norm=1.0),
    schedule=Schedule(shape="cosine", warmup_steps=2, warmup_from=0.1, final=0.1),
    hardware=Hardware(checkpoint_every_seconds=0),
)


def changed(value: Any, **changes: Any) -> Any:
    """Return a frozen spec with some fields replaced; a map replaces fields of a nested spec."""
    return dataclasses.replace(
        value,
        **{
            key: changed(getattr(value, key), **new) if isinstance(new, dict) else new
            for key, new in changes.items()
        },
    )


def inputs(folder: Path, *, prompt: int = 0) -> dict[str, Path]:
    """Make the inputs of `RUN` below `folder`: windows `packed` and `single` of 32 and 64 tokens.

    The first `prompt` tokens of a document, or all it has, are no targets.
    """
    rng = np.random.default_rng(0)
    tokens = folder / "tokens"
    shards = []
    with ShardWriter(tokens, vocabulary_size=VOCABULARY, shard_tokens=4000) as writer:
        for index in range(120):
            # Something to learn: most tokens follow from the one before.
            size = int(rng.integers(12, 90))
            ids = np.cumsum(rng.choice([3, 3, 3, 7], size)) % (VOCABULARY - 2) + 2
            shards.append(
                writer.add(
                    f"doc-{index}", ids, subset=None, text_bytes=size, prompt=min(prompt, size)
                )
            )
        shards.append(writer.close())
    files = [tokens / shard.file for shard in shards if shard is not None]
    write_manifest(tokens, stage="tokenize", spec={}, inputs={}, files=files, result={})
    made = {"tokens:corpus": tokens / "manifest.json", "tokenizer": _tokenizer(folder)}
    policies = {"packed": "documents", "single": "per_document"}
    for name, length in itertools.product(policies, (32, 64)):
        spec = PackJob(
            windows=Windows(
                mixture=(Share(corpus="corpus", weight=1.0),),
                tokenizer="words",
                policy=policies[name],
            ),
            length_tokens=length,
        )
        run_stage(
            "pack",
            "ropewalk.data.pack",
            pack.work,
            spec=spec,
            inputs={"tokens:corpus": made["tokens:corpus"]},
            folder=folder / f"{name}-{length}",
        )
        made[f"windows:{name}:{length}"] = folder / f"{name}-{length}" / "manifest.json"
    return made


def _tokenizer(folder: Path) -> Path:
    target = folder / "tokenizer"
    words = {"<s>": 0, "</s>": 1} | {f"w{i}": i for i in range(2, VOCABULARY)}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w2")),
        bos_token="<s>",
        eos_token="</s>",
    )
    fast.save_pretrained(target)
    files = [target / "tokenizer.json", target / "tokenizer_config.json"]
    result = {"bos": 0, "eos": 1}
    write_manifest(target, stage="tokenizer", spec={}, inputs={}, files=files, result=result)
    return target / "manifest.json"


def start(
    run: Run, made: dict[str, Path], folder: Path, *, published: Path | None = None
) -> Manifest:
    """Run the stage here and return its manifest; `published` is where `location` lies."""
    return run_stage(
        "train",
        "ropewalk.train.stage",
        stage.work,
        spec=TrainJob(run=run, folder=None if published is None else str(published)),
        inputs=made,
        folder=folder,
    )


def losses(folder: Path) -> list[float]:
    """Return the loss of every step of the only run in `folder`."""
    (work,) = folder.glob("work-*")
    return [entry["loss"] for entry in metrics.read(work / "metrics.jsonl")]


def exported(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every exported file, by path."""
    names = ["final", *(path.name for path in folder.glob("step-*"))]
    files = (file for name in names for file in (folder / name).iterdir())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def process(
    run: Run, made: dict[str, Path], folder: Path, **environment: str
) -> subprocess.Popen[str]:
    """Start the stage in a process of its own, which can be killed."""
    folder.mkdir(parents=True, exist_ok=True)
    job = folder / "job.json"
    write_json(job, {"run": plain(run), "inputs": {n: str(p) for n, p in made.items()}})
    return subprocess.Popen(
        [sys.executable, __file__, str(job)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


if __name__ == "__main__":
    job_file = Path(sys.argv[1])
    data = read_json(job_file)
    start(
        decode(Run, data["run"]),
        {name: Path(path) for name, path in data["inputs"].items()},
        job_file.parent,
    )
