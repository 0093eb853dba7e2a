"""Files for the tests of readers: written by other means than the readers use."""

import hashlib
import io
from pathlib import Path

import zstandard

from ropewalk.data.entries import Entry


def frames(*parts: bytes) -> bytes:
    """Compress each part as a zstd frame of its own, without content size, as stream writers do."""
    out = b""
    for part in parts:
        sink = io.BytesIO()
        with zstandard.ZstdCompressor().stream_writer(sink, closefd=False) as writer:
            writer.write(part)
        out += sink.getvalue()
    return out


def put(folder: Path, path: str, content: bytes) -> Entry:
    """Write a file and return what an inventory says of it."""
    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return listed(folder, path)


def listed(folder: Path, path: str) -> Entry:
    """Return what an inventory says of a file."""
    content = (folder / path).read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    return Entry(path=path, split="train", bytes=len(content), sha256=sha256)
