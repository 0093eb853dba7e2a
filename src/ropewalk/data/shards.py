"""Tokens on disk: Arrow IPC files, written once and read through a memory map.

Columns: `document` (string), `subset` (string), `bytes` (int64, UTF-8 length of the text), `prompt`
(int32, how many leading tokens are no training targets), `input_ids` (list of uint16, or uint32 for
vocabularies above 65,536).
"""

import contextlib
import dataclasses
import hashlib
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from ropewalk.base.files import replacing
from ropewalk.data import arrow

# A record batch is written when it holds this much: bounded memory, few batches to open.
BATCH_TOKENS = 1 << 20
BATCH_DOCUMENTS = 8192


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """A finished file of tokens."""

    file: str  # its name in the folder
    bytes: int
    sha256: str
    documents: int
    tokens: int


def token_dtype(vocabulary_size: int) -> np.dtype:
    """Return the narrowest unsigned type that holds every id below `vocabulary_size`."""
    return np.dtype(np.uint16 if vocabulary_size <= 1 << 16 else np.uint32)


def shard_name(index: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{index:05d}.arrow"


class ShardWriter:
    """Writes documents into `shard-00000.arrow`, ... in the order they are added.

    A shard is closed by the document that takes it to `shard_tokens`. The bytes written depend
    only on the documents and the sizes given here. A context manager: leaving it completes the last
    shard, leaving it through an exception drops the unfinished one.
    """

    def __init__(
        self,
        folder: Path,
        *,
        vocabulary_size: int,
        shard_tokens: int,
        first: int = 0,
        batch_tokens: int = BATCH_TOKENS,
        batch_documents: int = BATCH_DOCUMENTS,
    ) -> None:
        """Prepare to write; `first` is the number of shards that are there already."""
        self.dtype = token_dtype(vocabulary_size)
        self.files: list[Path] = []  # complete shards
        self._folder = folder
        self._shard_tokens = shard_tokens
        self._batch_tokens = batch_tokens
        self._batch_documents = batch_documents
        self._schema = pa.schema(
            [
                ("document", pa.string()),
                ("subset", pa.string()),
                ("bytes", pa.int64()),
                ("prompt", pa.int32()),
                ("input_ids", pa.list_(pa.from_numpy_dtype(self.dtype))),
            ]
        )
        self._next = first
        self._open = contextlib.ExitStack()  # the shard being written
        self._sink: pa.RecordBatchFileWriter | None = None
        self._hashing: _Hashing | None = None
        self._documents_in_shard = self._tokens_in_shard = 0
        self._rows: list[tuple[str, str | None, int, int, np.ndarray]] = []
        self._tokens_in_rows = 0

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._sink = self._hashing = None
            self._open.__exit__(kind, error, traceback)

    def add(
        self,
        document: str,
        ids: np.ndarray,
        *,
        subset: str | None,
        text_bytes: int,
        prompt: int = 0,
    ) -> Shard | None:
        """Append one document; return the shard if this document filled it.

        `ids` are kept until their batch is written: the caller must not change them.

        Raises:
            OverflowError: for an id that does not fit the column.
        """
        if ids.dtype != self.dtype:
            if len(ids) and (int(ids.min()) < 0 or int(ids.max()) > np.iinfo(self.dtype).max):
                raise OverflowError(f"{document}: an id does not fit {self.dtype.name}")
            ids = ids.astype(self.dtype)
        self._rows.append((document, subset, text_bytes, prompt, ids))
        self._tokens_in_rows += len(ids)
        self._tokens_in_shard += len(ids)
        self._documents_in_shard += 1
        if self._tokens_in_rows >= self._batch_tokens or len(self._rows) >= self._batch_documents:
            self._write_batch()
        return self.close() if self._tokens_in_shard >= self._shard_tokens else None

    def close(self) -> Shard | None:
        """Complete the shard that was begun and return it; None if there is none."""
        self._write_batch()
        if self._sink is None or self._hashing is None:
            return None
        hashing, self._sink, self._hashing = self._hashing, None, None
        self._open.close()  # completes the file, then renames it
        shard = Shard(
            file=shard_name(self._next),
            bytes=hashing.bytes,
            sha256=hashing.hexdigest(),
            documents=self._documents_in_shard,
            tokens=self._tokens_in_shard,
        )
        self.files.append(self._folder / shard.file)
        self._next += 1
        self._documents_in_shard = self._tokens_in_shard = 0
        return shard

    def _write_batch(self) -> None:
        if not self._rows:
            return
        if self._sink is None:
            path = self._folder / shard_name(self._next)
            partial = self._open.enter_context(replacing(path))
            stream = self._open.enter_context(partial.open("wb", buffering=0))
            self._hashing = _Hashing(stream)
            self._sink = self._open.enter_context(pa.ipc.new_file(self._hashing, self._schema))
        documents, subsets, sizes, prompts, ids = zip(*self._rows, strict=True)
        offsets = np.zeros(len(ids) + 1, dtype=np.int32)
        np.cumsum([len(i) for i in ids], out=offsets[1:])
        values = ids[0] if len(ids) == 1 else np.concatenate(ids)
        self._sink.write_batch(
            pa.record_batch(
                [
                    arrow.strings(documents),
                    arrow.strings(subsets),
                    arrow.numbers(np.array(sizes, dtype=np.int64)),
                    arrow.numbers(np.array(prompts, dtype=np.int32)),
                    pa.ListArray.from_arrays(arrow.numbers(offsets), arrow.numbers(values)),
                ],
                schema=self._schema,
            )
        )
        self._rows, self._tokens_in_rows = [], 0


class _Hashing:
    """The file that Arrow writes to: hashes and counts what goes through.

    An IPC file is written from front to back, so that its hash needs no second reading.
    """

    closed = False

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._sha256 = hashlib.sha256()
        self.bytes = 0

    def write(self, data: bytes | memoryview) -> int:
        view = memoryview(data).cast("B")
        self._sha256.update(view)
        done = 0
        while done < len(view):  # a raw file may take less than it is given
            done += self._stream.write(view[done:])
        self.bytes += len(view)
        return len(view)

    def flush(self) -> None:
        """Do nothing: nothing is buffered."""

    def hexdigest(self) -> str:
        return self._sha256.hexdigest()
