"""Tokens on disk: Arrow IPC files, written once and read through a memory map.

Columns: `document` (string), `subset` (string), `bytes` (int64, UTF-8 length of the text),
`input_ids` (list of uint16, or uint32 for vocabularies above 65,536).
"""

import contextlib
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa

from ropewalk.base.files import replacing
from ropewalk.base.manifest import ArtifactError, Manifest

# A record batch is written when it holds this much: bounded memory, few batches to open.
BATCH_TOKENS = 1 << 20
BATCH_DOCUMENTS = 8192


def token_dtype(vocabulary_size: int) -> np.dtype:
    """Return the narrowest unsigned type that holds every id below `vocabulary_size`."""
    return np.dtype(np.uint16 if vocabulary_size <= 1 << 16 else np.uint32)


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
        batch_tokens: int = BATCH_TOKENS,
        batch_documents: int = BATCH_DOCUMENTS,
    ) -> None:
        self.files: list[Path] = []  # complete shards
        self._folder = folder
        self._shard_tokens = shard_tokens
        self._batch_tokens = batch_tokens
        self._batch_documents = batch_documents
        self._dtype = token_dtype(vocabulary_size)
        ids = pa.list_(pa.from_numpy_dtype(self._dtype))
        self._schema = pa.schema(
            [
                ("document", pa.string()),
                ("subset", pa.string()),
                ("bytes", pa.int64()),
                ("input_ids", ids),
            ]
        )
        self._open = contextlib.ExitStack()  # the shard being written
        self._sink: pa.RecordBatchFileWriter | None = None
        self._path = folder
        self._tokens_in_shard = 0
        self._rows: list[tuple[str, str | None, int, np.ndarray]] = []
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
            self._close_shard()
        else:
            self._sink = None
            self._open.__exit__(kind, error, traceback)

    def add(self, document: str, ids: np.ndarray, *, subset: str | None, text_bytes: int) -> None:
        """Append one document; ids must be below the vocabulary size.

        Raises:
            OverflowError: for an id that does not fit the column.
        """
        if len(ids) and (int(ids.min()) < 0 or int(ids.max()) > np.iinfo(self._dtype).max):
            raise OverflowError(f"{document}: an id does not fit {self._dtype.name}")
        self._rows.append((document, subset, text_bytes, ids.astype(self._dtype)))
        self._tokens_in_rows += len(ids)
        self._tokens_in_shard += len(ids)
        if self._tokens_in_rows >= self._batch_tokens or len(self._rows) >= self._batch_documents:
            self._write_batch()
        if self._tokens_in_shard >= self._shard_tokens:
            self._close_shard()

    def _write_batch(self) -> None:
        if not self._rows:
            return
        if self._sink is None:
            self._path = self._folder / f"shard-{len(self.files):05d}.arrow"
            partial = self._open.enter_context(replacing(self._path))
            self._sink = self._open.enter_context(pa.ipc.new_file(str(partial), self._schema))
        documents, subsets, sizes, ids = zip(*self._rows, strict=True)
        offsets = np.zeros(len(ids) + 1, dtype=np.int32)
        np.cumsum([len(i) for i in ids], out=offsets[1:])
        self._sink.write_batch(
            pa.record_batch(
                [
                    pa.array(documents, pa.string()),
                    pa.array(subsets, pa.string()),
                    pa.array(sizes, pa.int64()),
                    pa.ListArray.from_arrays(offsets, pa.array(np.concatenate(ids))),
                ],
                schema=self._schema,
            )
        )
        self._rows, self._tokens_in_rows = [], 0

    def _close_shard(self) -> None:
        self._write_batch()
        if self._sink is not None:
            self._sink = None
            self._open.close()  # completes the file, then renames it
            self.files.append(self._path)
        self._tokens_in_shard = 0


class Tokens:
    """The documents of a tokens artifact; token ids are views of memory-mapped files.

    Attributes:
        count: documents.
        total: tokens.
        lengths: tokens of each document, int64 [count].
        text_bytes: UTF-8 bytes of each document's text, int64 [count].
    """

    def __init__(self, manifest: Manifest) -> None:
        names = sorted(f.path for f in manifest.files if f.path.endswith(".arrow"))
        self._batches: list[pa.RecordBatch] = []
        for name in names:
            path = manifest.path(name)
            try:
                reader = pa.ipc.open_file(pa.memory_map(str(path)))
            except (pa.ArrowInvalid, OSError) as error:
                raise ArtifactError(f"{path} is no Arrow file: {error}") from None
            self._batches += [reader.get_batch(i) for i in range(reader.num_record_batches)]
        columns = [batch.column("input_ids") for batch in self._batches]
        self._values = [column.values.to_numpy(zero_copy_only=True) for column in columns]
        self._offsets = [column.offsets.to_numpy(zero_copy_only=True) for column in columns]
        self._first = np.cumsum([0, *(len(column) for column in columns)])
        self.count = int(self._first[-1])
        empty = np.empty(0, dtype=np.int64)
        self.lengths = np.concatenate([empty, *map(np.diff, self._offsets)]).astype(np.int64)
        self.text_bytes = np.concatenate([empty, *map(_column_of_bytes, self._batches)])
        self.total = int(self.lengths.sum())

    @property
    def ids(self) -> list[str]:
        """Return the id of every document."""
        return [i for batch in self._batches for i in batch.column("document").to_pylist()]

    @property
    def subsets(self) -> list[str | None]:
        """Return the subset of every document."""
        return [s for batch in self._batches for s in batch.column("subset").to_pylist()]

    def document(self, index: int) -> np.ndarray:
        """Return the token ids of one document: a read-only view, uint16 or uint32 [length].

        Raises:
            IndexError: if `index` is not in [0, count).
        """
        if not 0 <= index < self.count:
            raise IndexError(f"document {index} of {self.count}")
        batch = int(np.searchsorted(self._first, index, side="right")) - 1
        offsets, place = self._offsets[batch], index - int(self._first[batch])
        return self._values[batch][offsets[place] : offsets[place + 1]]


def _column_of_bytes(batch: pa.RecordBatch) -> np.ndarray:
    return batch.column("bytes").to_numpy(zero_copy_only=True)
