"""What a file of an inventory holds, decompressed, and its lines; checked while it is read."""

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from ropewalk.base.stage import StageError
from ropewalk.data.entries import Entry

AGAIN = "fetch the file again, then make the inventory again"
_CHUNK_BYTES = 1 << 20  # the most that is decompressed at once, whatever it was compressed to
_CODECS = {".gz": "gzip", ".zst": "zstd"}


class DamagedFileError(StageError):
    """A file that cannot be decompressed to its end."""


def check_size(path: Path, entry: Entry) -> None:
    """Refuse a file that is missing or has not the size that the inventory lists.

    Raises:
        StageError: naming the file and the remedy.
    """
    if not path.is_file():
        raise StageError(
            f"{path} is in the inventory but not on disk; put it back or make the inventory again"
        )
    size = path.stat().st_size
    if size != entry.bytes:
        raise StageError(
            f"{path} has {size} bytes where the inventory says {entry.bytes}: it changed or is cut "
            f"short; {AGAIN}"
        )


def check_sha256(path: Path, entry: Entry, found: str) -> None:
    """Refuse a file whose sha256 `found` is not that of the inventory.

    Raises:
        StageError: naming the file and the remedy.
    """
    if found != entry.sha256:
        raise StageError(
            f"{path} has sha256 {found[:16]}… where the inventory says {entry.sha256[:16]}…: it "
            f"changed, or the checksum file shipped with it is wrong; {AGAIN}"
        )


def chunks(path: Path, entry: Entry) -> Iterator[bytes]:
    """Yield what a file holds in pieces of at most 1 MiB; `.gz` and `.zst` are decompressed.

    The sha256 of the file as it lies on disk is taken on the way and compared at its end, which
    costs little beside parsing. A reader that stops early leaves the rest unchecked.

    Raises:
        StageError: if the file is missing, damaged, cut short, or not the one in the inventory.
    """
    check_size(path, entry)
    codec = _CODECS.get(path.suffix)
    if codec is not None and entry.bytes == 0:
        raise DamagedFileError(f"{path} is empty, which no {codec} file is; {AGAIN}")
    try:
        with path.open("rb", buffering=0) as file:
            hashing = _Hashing(file)
            stream: Any = hashing
            if codec is not None:  # reads all frames of a file, refuses one that is incomplete
                stream = pa.CompressedInputStream(pa.PythonFile(hashing, mode="r"), codec)
            while chunk := stream.read(_CHUNK_BYTES):
                yield chunk
    except OSError as error:
        if error.errno is not None:  # of the disk, not of the decompressor
            raise StageError(f"{path} cannot be read: {error.strerror}") from error
        raise DamagedFileError(f"{path} is damaged or cut short: {error}; {AGAIN}") from error
    check_sha256(path, entry, hashing.hexdigest())


def read_lines(path: Path, entry: Entry, first: int = 0) -> Iterator[bytes | bytearray]:
    r"""Yield the lines of a file from number `first` on (from 0), without the `\n` that ends them.

    Nothing else ends a line. What follows the last `\n` is a line unless it is empty. A line may be
    hundreds of megabytes: it is given away, so that the receiver can free it.

    Raises:
        StageError: as `chunks`; of damage it says how many whole lines were read before.
    """
    passed = 0  # whole lines met
    start = bytearray()  # of the line that the next chunk goes on with
    try:
        for chunk in chunks(path, entry):
            rest = chunk
            if passed < first:
                found = chunk.count(b"\n")
                if passed + found < first:
                    passed += found
                    continue
                rest = chunk.split(b"\n", first - passed)[-1]
                passed = first
            head, *pieces = rest.split(b"\n")
            start += head  # grows in place: pieces joined at the end would take the memory twice
            if not pieces:
                continue
            given, start = [start], bytearray(pieces.pop())
            passed += 1 + len(pieces)
            yield given.pop()
            yield from pieces
    except DamagedFileError as error:
        raise StageError(f"{error} ({passed} whole lines were read before it)") from error
    if start:
        given, start = [start], bytearray()
        yield given.pop()


class _Hashing:
    """A file that hashes what is read from it."""

    closed = False

    def __init__(self, file: io.RawIOBase) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()

    def read(self, size: int) -> bytes:
        data = self._file.read(size) or b""
        self._sha256.update(data)
        return data

    def close(self) -> None:
        """Leave the file to who opened it."""

    def hexdigest(self) -> str:
        return self._sha256.hexdigest()
