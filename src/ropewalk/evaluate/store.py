"""The store of scored tokens: blocks while an evaluation runs, one Arrow file when it is done.

A block holds the scores of some spans, or the replies to some prompts, of one snapshot under one
label. It is written under a temporary name and renamed, so that a killed evaluation goes on after
its last whole block. What lies in a block does not depend on how many sequences fit into a forward
pass. Every number of an evaluation is a function of the store.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ropewalk.base.files import read_json, replacing, write_json
from ropewalk.evaluate.plan import Prompts, Replies
from ropewalk.evaluate.scorer import Scores
from ropewalk.evaluate.spans import Spans

BLOCK_TOKENS = 2**19  # tokens read by the spans of one block; seconds to minutes of work
_SCORED = [
    ("position", pa.int32()),
    ("preceding", pa.int32()),
    ("window", pa.int32()),
    ("nll", pa.float32()),
    ("hit", pa.bool_()),
]
BLOCK_SCHEMA = pa.schema([("document", pa.int32()), *_SCORED])
REPLY_SCHEMA = pa.schema([("ids", pa.list_(pa.int64()))])
SCHEMA = pa.schema(
    [
        ("snapshot", pa.int32()),
        ("context", pa.dictionary(pa.int8(), pa.string())),
        ("document", pa.dictionary(pa.int32(), pa.string())),
        *_SCORED,
    ]
)
_RECORD = "made-from.json"
_SECONDS = b"seconds"  # of work that a block took: a measurement, beside the columns


def begun(folder: Path, made_from: Mapping[str, Any]) -> bool:
    """Return whether a work folder was made from just this, so that its blocks are used."""
    record = folder / _RECORD
    return record.is_file() and read_json(record) == made_from


class Blocks:
    """The blocks of one evaluation in its work folder."""

    def __init__(self, folder: Path, made_from: Mapping[str, Any]) -> None:
        """Open `folder`, emptied first if its blocks were made from something else."""
        self._folder = folder
        record = folder / _RECORD
        if folder.exists() and not begun(folder, made_from):
            print(f"evaluate: {folder} was made by other code or inputs: starting anew", flush=True)
            shutil.rmtree(folder)
        if not record.is_file():
            write_json(record, made_from)

    def path(self, snapshot: int, label: str, block: int) -> Path:
        """Return where a block of a snapshot (step) and a label lies."""
        return self._folder / f"{snapshot}-{label}-{block:06d}.arrow"

    def note(self, name: str) -> Path:
        """Return where something that is no table lies, as JSON."""
        return self._folder / f"{name}.json"

    def write(self, path: Path, block: Scores | Replies, seconds: float) -> None:
        """Write one block; `seconds` is what it took."""
        if isinstance(block, Replies):
            schema, columns = REPLY_SCHEMA, [[ids.tolist() for ids in block.ids]]
        else:
            schema, columns = BLOCK_SCHEMA, [getattr(block, name) for name in BLOCK_SCHEMA.names]
        schema = schema.with_metadata({_SECONDS: repr(seconds).encode()})
        arrays = [
            pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)
        ]
        batch = pa.record_batch(arrays, schema=schema)
        with replacing(path) as partial, pa.ipc.new_file(str(partial), schema) as writer:
            writer.write_batch(batch)

    def scores(self, paths: Sequence[Path]) -> Scores:
        """Return the scores of several blocks, in their order."""
        tables = [_read(path).replace_schema_metadata(None) for path in paths]
        table = pa.concat_tables(tables) if tables else BLOCK_SCHEMA.empty_table()
        return Scores(**{name: table[name].to_numpy() for name in BLOCK_SCHEMA.names})

    def replies(self, paths: Sequence[Path]) -> Replies:
        """Return the replies of several blocks, in their order."""
        rows = [ids for path in paths for ids in _read(path)["ids"].to_pylist()]
        return Replies(ids=[np.array(ids, dtype=np.int64) for ids in rows])

    def seconds(self, paths: Sequence[Path]) -> float:
        """Return what several blocks took to score."""
        return sum(float(_read(path).schema.metadata[_SECONDS]) for path in paths)

    def remove(self) -> None:
        """Delete the work folder."""
        shutil.rmtree(self._folder)


def _read(path: Path) -> pa.Table:
    with pa.OSFile(str(path), "rb") as source:
        return pa.ipc.open_file(source).read_all()


def cut(lengths: Sequence[int], tokens_at_once: int = BLOCK_TOKENS) -> list[slice]:
    """Cut spans or prompts, in order, into blocks that read at most `tokens_at_once`, or one."""
    blocks = []
    begin, tokens = 0, 0
    for row, length in enumerate(lengths):
        if row > begin and tokens + length > tokens_at_once:
            blocks.append(slice(begin, row))
            begin, tokens = row, 0
        tokens += length
    return [*blocks, slice(begin, len(lengths))]


def lengths_of(asked: Spans | Prompts) -> list[int]:
    """Return the tokens read by each span or prompt, answers included."""
    if isinstance(asked, Spans):
        return [int(length) for length in asked.lengths]
    return [len(ids) + asked.new_tokens for ids in asked.ids]


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
            size = len(scores)
            columns = [
                np.full(size, snapshot, dtype=np.int32),
                pa.DictionaryArray.from_arrays(np.full(size, label, dtype=np.int8), labels),
                pa.DictionaryArray.from_arrays(scores.document, names),
                *(getattr(scores, name) for name, _ in _SCORED),
            ]
            writer.write_batch(pa.record_batch(columns, schema=SCHEMA))
            rows += size
    return rows


def read_scores(path: Path) -> pa.Table:
    """Return `scores.arrow` as a table with the columns of `SCHEMA`."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()
