"""Samples the tests of the data room are built from."""

import base64
import hashlib
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ropewalk.base.manifest import Manifest
from ropewalk.data.spec import (
    DocumentCorpus,
    InventoryJob,
    PythonSource,
    TokenizeJob,
    TokenizerJob,
    TrainedTokenizer,
    gather_job,
    part_name,
)

Run = Callable[..., Manifest]


def words(seed: int, count: int) -> list[str]:
    """Return lines of pseudo-code, different for every seed."""
    rng = random.Random(seed)
    names = [f"{a}_{b}" for a in ("load", "read", "cut", "join") for b in ("row", "key", "file")]
    return [
        f"    {rng.choice(names)} = {rng.choice(names)}({rng.randrange(10**6)}, {rng.random():.6f})"
        for _ in range(count)
    ]


def install(site: Path, name: str, files: Mapping[str, bytes], version: str = "1.0") -> None:
    """Lay out a distribution as pip does: its files and a dist-info with RECORD."""
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode()
    record = []
    for path, content in {**files, f"{info}/METADATA": metadata}.items():
        file = site / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        record.append(f"{path},sha256={digest},{len(content)}")
    record.append(f"{info}/RECORD,,")
    (site / info / "RECORD").write_text("\n".join(record) + "\n")


class Chain:
    """inventory -> tokenizer -> tokens of a small fake distribution, made once per test."""

    def __init__(self, run: Run, site: Path) -> None:
        files = {
            f"fake/m{i}.py": (
                "def f():\n" + "\n".join(words(i, 20 + 7 * i)) + "\n# <s> </s>\n"
            ).encode()
            for i in range(24)
        }
        install(site, "fake", files)
        self.run = run
        self.texts = {path: content.decode() for path, content in files.items()}
        self.source = PythonSource(
            distributions=("fake",), minimum_bytes=10, validation_share=0.1, test_share=0.2
        )
        self.corpus = DocumentCorpus(source="fake", split="train", seed=3)
        self.inventory = run("inventory", InventoryJob(source=self.source), "inventory")
        self.train_tokenizer()

    def train_tokenizer(self, **changes: Any) -> None:
        """Train the tokenizer; `changes` go to its spec."""
        spec = TrainedTokenizer(
            corpus="train",
            vocabulary_size=400,
            reserved_tokens=32,
            training_bytes=10_000,
            **changes,
        )
        self.tokenizer = self.run(
            "tokenizer",
            TokenizerJob(tokenizer=spec, source=self.source, corpus=self.corpus),
            "tokenizer",
            inventory=self.inventory,
        )

    def tokens(self, name: str = "tokens", **changes: Any) -> Manifest:
        """Tokenize the corpus in all its parts; `changes` go to the jobs."""
        return tokens_of(
            self.run,
            name,
            {"inventory": self.inventory, "tokenizer": self.tokenizer},
            **{"corpus": self.corpus, "source": self.source, **changes},
        )


def tokens_of(run: Run, name: str, inputs: Mapping[str, Manifest], **job: Any) -> Manifest:
    """Run every part of a corpus and gather them; `job` are the settings of TokenizeJob."""
    corpus = job["corpus"]
    parts = {
        f"part__{part_name(part)}": run(
            "tokenize", TokenizeJob(part=part, **job), f"{name}/parts/{part_name(part)}", **inputs
        )
        for part in range(corpus.parts)
    }
    return run("gather", gather_job(corpus), name, **parts)
