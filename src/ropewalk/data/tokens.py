"""Tokens as they are read: documents as views of memory-mapped Arrow files (see `shards`).

A corpus may have hundreds of millions of documents in tens of thousands of files. So nothing is
held per document but what is asked for, files are opened when they are needed and only so many at a
time, and pages that were touched are given back to the system when they become many.

Where many short pieces are wanted from all over a corpus, `File.read` copies them. Touching the map
there makes the system map up to a MiB around each piece, which takes several times as long as the
copy and fills the process's memory with pages it never looks at.
"""

import collections
import dataclasses
import functools
import mmap
import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ropewalk.base.manifest import ArtifactError, Manifest

OPEN_FILES = 256  # each takes up to two descriptors, and many systems allow a process 1,024
RESIDENT_BYTES = 128 << 20  # of mapped files, before pages are given back
NEIGHBOURHOOD = 1 << 20  # the system may map this much around a page that is touched
_INT32 = np.dtype(np.int32)


class File:
    """One file, open for reading until nothing refers to it.

    What was mapped of it stays valid as long as it is in use, whatever happens to this object.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        self._map: mmap.mmap | None = None

    def read(self, into: memoryview, start: int) -> None:
        """Copy the bytes from `start` on until `into`, as bytes, is full.

        Raises:
            ArtifactError: if the file ends before.
        """
        if os.preadv(self._descriptor, [into], start) != len(into):
            raise ArtifactError(f"{self._path} ends before byte {start + len(into)}")

    @property
    def buffer(self) -> pa.Buffer:
        """Return the whole file, mapped."""
        if self._map is None:
            self._map = mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ)
        return pa.py_buffer(self._map)

    def view(self, dtype: np.dtype) -> np.ndarray:
        """Return the whole file as elements of one type: a read-only view of `buffer`."""
        buffer = self.buffer
        return np.frombuffer(buffer, dtype, buffer.size // dtype.itemsize)

    def give_back(self) -> None:
        """Take the touched pages out of this process; the next access maps them again."""
        if self._map is not None:
            self._map.madvise(mmap.MADV_DONTNEED)


class Files:
    """Open files: the least recently used ones are closed, and the memory they take is bounded."""

    def __init__(self, *, files: int = OPEN_FILES, resident_bytes: int = RESIDENT_BYTES) -> None:
        self._files = files
        self._limit = resident_bytes
        self._touched = 0  # bytes since the last look, at most
        self._resident = _resident_bytes()
        self._open: collections.OrderedDict[Path, File] = collections.OrderedDict()

    def open(self, path: Path) -> File:
        """Return the file, which stays open until enough others were asked for.

        Raises:
            ArtifactError: if there is no such file.
        """
        file = self._open.get(path)
        if file is None:
            try:
                file = File(path)
            except OSError as error:
                raise ArtifactError(f"{path} cannot be read: {error}") from None
            self._open[path] = file
            if len(self._open) > self._files:
                # Not closed: whoever still reads from it would read another file's bytes, once its
                # descriptor is taken again.
                self._open.popitem(last=False)
        else:
            self._open.move_to_end(path)
        return file

    def touched(self, count: int, places: int = 1) -> None:
        """Note that `count` bytes were read in some places of maps; give pages back if need be."""
        self._touched += count + places * NEIGHBOURHOOD
        if self._touched > self._limit:
            self._touched = 0
            if _resident_bytes() - self._resident > self._limit:
                self.give_back()

    def give_back(self) -> None:
        """Give back the touched pages of all open files."""
        for file in self._open.values():
            file.give_back()
        self._resident = _resident_bytes()


def _resident_bytes() -> int:
    """Return how much of the files mapped by this process, libraries included, is in its memory.

    It is 0 where the system does not say so (only Linux does): nothing is given back then.
    """
    try:
        shared = Path("/proc/self/statm").read_bytes().split()[2]
    except OSError:
        return 0
    return int(shared) * mmap.PAGESIZE


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Table:
    """Where the columns of a shard's record batches lie.

    Places are int64 [batches], in elements of the column from the start of the file.
    """

    dtype: np.dtype  # of token ids
    first: np.ndarray  # int64 [batches + 1]: the first document of each batch in the shard
    values: np.ndarray  # token ids
    offsets: np.ndarray  # int32: where each document begins among the ids of its batch
    prompt: np.ndarray
    bytes: np.ndarray


class Tokens:
    """The documents of a tokens artifact; token ids are views of memory-mapped files.

    Attributes:
        count: documents.
    """

    def __init__(self, manifest: Manifest, files: Files | None = None) -> None:
        self._files = Files() if files is None else files
        self._tables: dict[int, _Table] = {}
        listed = {file.path for file in manifest.files if file.path.endswith(".arrow")}
        # The manifest counts the documents of each shard, so that none has to be opened for it.
        counted = {s["file"]: s["documents"] for s in manifest.result.get("shards", ())}
        names = [n for n in counted if n in listed] if counted else sorted(listed)
        self._paths = [manifest.path(name) for name in names]
        counts = [
            counted[name] if name in counted else int(self._table(index).first[-1])
            for index, name in enumerate(names)
        ]
        self._first = np.cumsum([0, *counts])  # the first document of each shard
        self.count = int(self._first[-1])

    @property
    def lengths(self) -> np.ndarray:
        """Return the tokens of each document, int32 [count]."""
        return self._spans[1]

    @property
    def begins(self) -> np.ndarray:
        """Return where each document begins in its shard, int64 [count].

        Counted in token ids from the start of the shard's file.
        """
        return self._spans[0]

    @functools.cached_property
    def _spans(self) -> tuple[np.ndarray, np.ndarray]:
        begins = np.empty(self.count, dtype=np.int64)
        lengths = np.empty(self.count, dtype=np.int32)
        for shard, table, batch, documents in self._batches():
            first = table.offsets[batch]
            count = documents.stop - documents.start
            offsets = self._view(shard, _INT32)[first : first + count + 1]
            np.add(offsets[:-1], table.values[batch], out=begins[documents])
            np.subtract(offsets[1:], offsets[:-1], out=lengths[documents])
            self._files.touched(offsets.nbytes)
        self._files.give_back()
        return begins, lengths

    @functools.cached_property
    def prompts(self) -> np.ndarray:
        """Return how many leading tokens of each document are no targets, int32 [count]."""
        return self._column("prompt", _INT32)

    @property
    def text_bytes(self) -> np.ndarray:
        """Return the UTF-8 bytes of each document's text, int64 [count]."""
        return self._column("bytes", np.dtype(np.int64))

    @property
    def total(self) -> int:
        """Return the tokens of all documents."""
        return int(self.lengths.sum(dtype=np.int64))

    @property
    def ids(self) -> list[str]:
        """Return the id of every document."""
        return self._words("document")

    @property
    def subsets(self) -> list[str | None]:
        """Return the subset of every document."""
        return self._words("subset")

    def document(self, index: int) -> np.ndarray:
        """Return the token ids of one document: a read-only view, uint16 or uint32 [length].

        Raises:
            IndexError: if `index` is not in [0, count).
        """
        if not 0 <= index < self.count:
            raise IndexError(f"document {index} of {self.count}")
        shard = int(np.searchsorted(self._first, index, side="right")) - 1
        table, offsets = self._table(shard), self._view(shard, _INT32)
        local = index - int(self._first[shard])
        batch = int(np.searchsorted(table.first, local, side="right")) - 1
        place = table.offsets[batch] + local - table.first[batch]
        begin, end = (table.values[batch] + offsets[place : place + 2]).tolist()
        ids = self._view(shard, table.dtype)[begin:end]
        self._files.touched(ids.nbytes)
        return ids

    def shards_of(self, documents: np.ndarray) -> np.ndarray:
        """Return which shard each document lies in, int64 [n]; see `begins` and `file`."""
        return np.searchsorted(self._first, documents, side="right") - 1

    def file(self, shard: int) -> File:
        """Return the file of a shard."""
        return self._files.open(self._paths[shard])

    @functools.cached_property
    def dtype(self) -> np.dtype:
        """Return the type of token ids: uint16 or uint32."""
        return self._table(0).dtype if self._paths else np.dtype(np.uint16)

    def _view(self, shard: int, dtype: np.dtype) -> np.ndarray:
        return self.file(shard).view(dtype)

    def _batches(self) -> Iterator[tuple[int, _Table, int, slice]]:
        """Yield `(shard, its table, record batch, the documents in it)`."""
        done = 0
        for shard in range(len(self._paths)):
            table = self._table(shard)
            for batch, count in enumerate(np.diff(table.first).tolist()):
                yield shard, table, batch, slice(done, done + count)
                done += count

    def _column(self, name: str, dtype: np.dtype) -> np.ndarray:
        values = np.empty(self.count, dtype=dtype)
        for shard, table, batch, documents in self._batches():
            begin = getattr(table, name)[batch]
            count = documents.stop - documents.start
            part = self._view(shard, dtype)[begin : begin + count]
            values[documents] = part
            self._files.touched(part.nbytes)
        self._files.give_back()
        return values

    def _words(self, column: str) -> list[Any]:
        words: list[Any] = []
        for path in self._paths:
            reader = pa.ipc.open_file(self._files.open(path).buffer)
            for index in range(reader.num_record_batches):
                part = reader.get_batch(index).column(column)
                words += part.to_pylist()
                self._files.touched(part.nbytes)
        self._files.give_back()
        return words

    def _table(self, shard: int) -> _Table:
        if shard not in self._tables:
            path = self._paths[shard]
            self._tables[shard] = _read_table(path, self._files.open(path))
        return self._tables[shard]


def _read_table(path: Path, file: File) -> _Table:
    try:
        whole = file.buffer
        reader = pa.ipc.open_file(whole)
        batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
    except (ValueError, OSError) as error:  # an empty file cannot be mapped
        raise ArtifactError(f"{path} is no Arrow file: {error}") from None
    missing = {"document", "subset", "bytes", "prompt", "input_ids"} - set(reader.schema.names)
    if missing:
        raise ArtifactError(
            f"{path} has no column {', '.join(sorted(missing))}: another version of ropewalk "
            "wrote it. Delete its folder and run snakemake again"
        )
    dtype = np.dtype(f"u{reader.schema.field('input_ids').type.value_type.bit_width // 8}")

    def start(buffer: pa.Buffer, itemsize: int) -> int:
        if not buffer.size:
            return 0
        place = buffer.address - whole.address
        if not 0 <= place < whole.size:
            raise ArtifactError(f"{path} is compressed; shards are read where they lie")
        return place // itemsize

    def starts(buffers: list[pa.Buffer], itemsize: int) -> np.ndarray:
        return np.array([start(buffer, itemsize) for buffer in buffers], dtype=np.int64)

    ids = [batch.column("input_ids") for batch in batches]
    return _Table(
        dtype=dtype,
        first=np.cumsum([0, *(batch.num_rows for batch in batches)]),
        values=starts([column.values.buffers()[1] for column in ids], dtype.itemsize),
        offsets=starts([column.buffers()[1] for column in ids], 4),
        prompt=starts([batch.column("prompt").buffers()[1] for batch in batches], 4),
        bytes=starts([batch.column("bytes").buffers()[1] for batch in batches], 8),
    )
