"""Lines of plain, gzip or zstd files, checked against the inventory while they are read."""

import contextlib
import gzip
import hashlib
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

import zstandard

from ropewalk.base.stage import StageError

_CHUNK_BYTES = 1 << 20


def read_lines(path: Path, sha256: str) -> Iterator[bytes]:
    """Yield the lines of a file; `.gz` and `.zst` are decompressed by their suffix.

    The sha256 of the file as it lies on disk is taken on the way and compared at its end, which
    costs little beside parsing. A reader that stops early leaves the rest unchecked.

    Raises:
        StageError: if the file is missing, damaged, cut short, or not the one in the inventory.
    """
    if not path.is_file():
        raise StageError(f"{path} is in the inventory but not on disk; make the inventory again")
    with contextlib.ExitStack() as stack:
        raw = _Hashing(stack.enter_context(path.open("rb", buffering=0)))
        buffered = io.BufferedReader(raw, _CHUNK_BYTES)
        stream: IO[bytes] = buffered
        if path.suffix == ".gz":
            stream = cast(IO[bytes], stack.enter_context(gzip.GzipFile(fileobj=buffered)))
        elif path.suffix == ".zst":
            stream = io.BufferedReader(_ZstdFrames(buffered), _CHUNK_BYTES)
        try:
            yield from stream
        except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
            raise StageError(f"{path} is damaged or cut short: {error}") from None
        while buffered.read(_CHUNK_BYTES):
            pass  # what may follow the last frame belongs to the file's hash too
        if raw.hexdigest() != sha256:
            raise StageError(
                f"{path} has sha256 {raw.hexdigest()[:16]}… where the inventory says "
                f"{sha256[:16]}…: it changed, or the checksum file shipped with it is wrong"
            )


class _Hashing(io.RawIOBase):
    """A raw file that hashes what is read from it."""

    def __init__(self, file: io.RawIOBase) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        size = self._file.readinto(buffer) or 0
        self._sha256.update(memoryview(buffer)[:size])
        return size

    def hexdigest(self) -> str:
        return self._sha256.hexdigest()


class _ZstdFrames(io.RawIOBase):
    """Decompresses all frames of a zstd file.

    Frames are opened one by one because the library's own reader ends silently where a file is cut
    short; here that is an EOFError.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._compressed = b""
        self._plain = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        while not self._plain:
            self._compressed = self._compressed or self._file.read(_CHUNK_BYTES)
            if not self._compressed:
                if self._frame is not None:
                    raise EOFError("the last zstd frame is incomplete")
                return 0
            self._frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
            self._plain = memoryview(self._frame.decompress(self._compressed))
            self._compressed = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame = None
        size = min(len(buffer), len(self._plain))
        memoryview(buffer)[:size] = self._plain[:size]
        self._plain = self._plain[size:]
        return size
