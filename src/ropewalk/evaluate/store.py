"""The store of scored tokens: blocks while an evaluation runs, one Arrow file when it is done.

A block holds the scores of some spans of one snapshot at one context. It is written under a
temporary name and renamed, so that a killed evaluation goes on after its last whole block. What a
span belongs to does not depend on how many sequences fit into a forward pass.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ropewalk.base.files import read_json, replacing, write_json
from ropewalk.evaluate.scorer import Scores
from ropewalk.evaluate.windows import Spans

BLOCK_TOKENS = 2**19  # tokens read by the spans of one block; seconds to minutes of work
BLOCK_SCHEMA = pa.schema(
    [
        ("document", pa.int32()),
        ("position", pa.int32()),
        ("nll", pa.float32()),
        ("hit", pa.bool_()),
    ]
)
SCHEMA = pa.schema(
    [
        ("snapshot", pa.int32()),
        ("context", pa.dictionary(pa.int8(), pa.string())),
        ("document", pa.dictionary(pa.int32(), pa.string())),
        ("position", pa.int32()),
        ("nll", pa.float32()),
        ("hit", pa.bool_()),
    ]
)


class Blocks:
    """The blocks of one evaluation in its work folder."""

    def __init__(self, folder: Path, made_from: Mapping[str, Any]) -> None:
        """Open `folder`, emptied first if its blocks were made from something else."""
        self._folder = folder
        record = folder / "made-from.json"
        if folder.exists() and (not record.is_file() or read_json(record) != made_from):
            print(f"evaluate: {folder} was made by other code or inputs: starting anew", flush=True)
            shutil.rmtree(folder)
        if not record.is_file():
            write_json(record, made_from)

    def path(self, snapshot: int, label: int, block: int) -> Path:
        """Return where a block of a snapshot (step) and a context (number of its label) lies."""
        return self._folder / f"{snapshot}-{label}-{block:06d}.arrow"

    def write(self, path: Path, scores: Scores) -> None:
        """Write one block."""
        columns = [getattr(scores, name) for name in BLOCK_SCHEMA.names]
        batch = pa.record_batch(columns, schema=BLOCK_SCHEMA)
        with replacing(path) as partial, pa.ipc.new_file(str(partial), BLOCK_SCHEMA) as writer:
            writer.write_batch(batch)

    def read(self, paths: Sequence[Path]) -> Scores:
        """Return the scores of several blocks, in their order."""
        tables = []
        for path in paths:
            with pa.OSFile(str(path), "rb") as source:
                tables.append(pa.ipc.open_file(source).read_all())
        table = pa.concat_tables(tables)
        return Scores(**{name: table[name].to_numpy() for name in BLOCK_SCHEMA.names})

    def remove(self) -> None:
        """Delete the work folder."""
        shutil.rmtree(self._folder)


def cut(spans: Spans, tokens_at_once: int = BLOCK_TOKENS) -> list[Spans]:
    """Cut spans, in order, into blocks that read at most `tokens_at_once`, or one span."""
    blocks = []
    begin, tokens = 0, 0
    for row, length in enumerate(spans.lengths.tolist()):
        if row > begin and tokens + length > tokens_at_once:
            blocks.append(spans[begin:row])
            begin, tokens = row, 0
        tokens += length
    blocks.append(spans[begin:])
    return blocks


def write_scores(
    path: Path,
    pieces: Iterator[tuple[int, int, Scores]],
    contexts: Sequence[str],
    documents: Sequence[str],
) -> int:
    """Write `scores.arrow` from (snapshot, number of the label, scores) and return its rows.

    One record batch per snapshot and context; labels and documents are dictionary-encoded.
    """
    labels, names = pa.array(contexts, pa.string()), pa.array(documents, pa.string())
    rows = 0
    with replacing(path) as partial, pa.ipc.new_file(str(partial), SCHEMA) as writer:
        for snapshot, label, scores in pieces:
            size = len(scores.nll)
            columns = [
                np.full(size, snapshot, dtype=np.int32),
                pa.DictionaryArray.from_arrays(np.full(size, label, dtype=np.int8), labels),
                pa.DictionaryArray.from_arrays(scores.document, names),
                scores.position,
                scores.nll,
                scores.hit,
            ]
            writer.write_batch(pa.record_batch(columns, schema=SCHEMA))
            rows += size
    return rows


def read_scores(path: Path) -> pa.Table:
    """Return `scores.arrow` as a table with the columns of `SCHEMA`."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()
