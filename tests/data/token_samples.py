"""Tokens written straight to disk, without a source and a tokenizer."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ropewalk.base.manifest import Manifest, write_manifest
from ropewalk.data.shards import ShardWriter

VOCABULARY = 70_000  # above 65,536: ids take four bytes


def write_tokens(
    folder: Path,
    documents: Sequence[Sequence[int] | np.ndarray],
    *,
    prompts: Sequence[int] | None = None,
    shard_tokens: int = 400,
    vocabulary_size: int = VOCABULARY,
    counted: bool = True,
    **batches: int,
) -> Manifest:
    """Write documents as the tokenize stage does; `counted`: the manifest counts the shards."""
    shards = []
    with ShardWriter(
        folder, vocabulary_size=vocabulary_size, shard_tokens=shard_tokens, **batches
    ) as writer:
        for index, ids in enumerate(documents):
            prompt = 0 if prompts is None else prompts[index]
            array = np.asarray(ids, dtype=np.int64)
            shards.append(
                writer.add(f"d{index}", array, subset=None, text_bytes=3 * index, prompt=prompt)
            )
        shards.append(writer.close())
    made = [shard for shard in shards if shard is not None]
    return write_manifest(
        folder,
        stage="gather",
        spec={},
        inputs={},
        files=[folder / shard.file for shard in made],
        result={"shards": [dataclasses.asdict(shard) for shard in made]} if counted else {},
    )


def counting(sizes: Sequence[int], first: int = 1) -> list[np.ndarray]:
    """Return documents of these sizes whose tokens count on: no token occurs twice."""
    ends = first + np.cumsum([0, *sizes])
    return [np.arange(a, b) for a, b in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)]
