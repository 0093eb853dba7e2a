import dataclasses
import gzip
import json
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
from data_files import frames, put
from hypothesis import given, settings
from hypothesis import strategies as st

from ropewalk.base.stage import StageError
from ropewalk.data.entries import Entry
from ropewalk.data.lines import chunks, read_lines

MIB = 1 << 20
LINES = [
    json.dumps({"text": f"document {i} " + "x" * (i * 37 % 500)}).encode() for i in range(12_000)
]
PLAIN = b"\n".join(LINES) + b"\n"
ENCODED = {
    "a.jsonl": PLAIN,
    "a.jsonl.gz": gzip.compress(PLAIN[:1_070_001]) + gzip.compress(PLAIN[1_070_001:]),
    # frame ends inside a line, and an empty frame
    "a.jsonl.zst": frames(PLAIN[:99_999], b"", PLAIN[99_999:100_003], PLAIN[100_003:]),
}


@pytest.mark.parametrize("name", ENCODED)
def test_every_line_of_every_frame_is_read(tmp_path: Path, name: str) -> None:
    """Guards against a reader that stops after the first frame: most of the Pile would be lost."""
    entry = put(tmp_path, name, ENCODED[name])
    assert list(read_lines(tmp_path / name, entry)) == LINES


# Pieces that other readers take for ends of lines, in lengths that meet the ends of chunks.
PIECES = st.tuples(
    st.sampled_from([b"a", b"\r", b"\r\n", "\u2028".encode(), b"\x0c ", b"\n"]),
    st.sampled_from([0, 1, 2, 1000, MIB - 1, MIB, MIB + 1, 2 * MIB + 5]),
)


@settings(max_examples=40)
@given(
    pieces=st.lists(PIECES, max_size=5),
    end=st.sampled_from([b"", b"\n"]),
    cuts=st.lists(st.floats(0, 1), max_size=3),
    ending=st.sampled_from(["", ".gz", ".zst"]),
    share=st.floats(0, 1.2),
)
def test_lines_are_what_lies_between_newlines(
    pieces: list[tuple[bytes, int]], end: bytes, cuts: list[float], ending: str, share: float
) -> None:
    r"""Guards against lines split at `\r` or U+2028, or torn where a chunk or a frame ends."""
    content = b"\n".join(unit * times for unit, times in pieces)[: 6 * MIB] + end
    places = sorted({0, len(content), *(int(cut * len(content)) for cut in cuts)})
    parts = [content[a:b] for a, b in pairwise(places)] or [b""]
    encode = {"": b"".join, ".gz": lambda p: b"".join(map(gzip.compress, p))}
    encoded = encode.get(ending, lambda p: frames(*p))(parts)
    expected = content.split(b"\n")
    if expected[-1] == b"":
        expected.pop()
    first = min(int(share * len(expected)), 2 * MIB)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"x.jsonl{ending}"
        entry = put(Path(folder), path.name, encoded)
        assert list(read_lines(path, entry, first)) == expected[first:]


@settings(max_examples=60)
@given(where=st.floats(0, 1, exclude_max=True), ending=st.sampled_from(["gz", "zst"]))
def test_any_cut_is_found(where: float, ending: str) -> None:
    """Guards against a broken download that reads as a smaller corpus, checksum and all."""
    encoded = gzip.compress(PLAIN) if ending == "gz" else frames(PLAIN)
    content = encoded[: int(where * len(encoded))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"x.jsonl.{ending}"
        entry = put(Path(folder), path.name, content)
        with pytest.raises(StageError, match=rf"x\.jsonl\.{ending} is (damaged or cut|empty)"):
            list(read_lines(path, entry))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
@pytest.mark.parametrize("cut", [1, 10, 5000])
def test_damage_is_placed_by_the_lines_before_it(tmp_path: Path, name: str, cut: int) -> None:
    """Guards against an error that does not say how much of the file was good."""
    entry = put(tmp_path, name, ENCODED[name][:-cut])
    read: list[bytes] = []
    with pytest.raises(StageError, match=r"fetch the file again") as caught:
        read.extend(map(bytes, read_lines(tmp_path / name, entry)))
    assert len(read) > 1000
    assert read == LINES[: len(read)]
    assert f"({len(read)} whole lines were read before it)" in str(caught.value)


def test_a_damaged_frame_is_an_error(tmp_path: Path) -> None:
    """Guards against garbage after the first frame taken for the end of the file."""
    for content in (frames(PLAIN) + b"garbage", frames(PLAIN)[:-900] + b"\0" * 900):
        entry = put(tmp_path, "x.jsonl.zst", content)
        with pytest.raises(StageError, match="damaged or cut short"):
            list(read_lines(tmp_path / "x.jsonl.zst", entry))


@pytest.mark.parametrize("name", ENCODED)
def test_a_file_that_changed_since_the_inventory_is_an_error(tmp_path: Path, name: str) -> None:
    """Guards against reading other data than the identity says."""
    entry = dataclasses.replace(put(tmp_path, name, ENCODED[name]), sha256="ab" * 32)
    with pytest.raises(StageError, match=rf"{name} has sha256 .* inventory says abababab"):
        list(read_lines(tmp_path / name, entry))


def test_another_size_is_found_before_anything_is_read(tmp_path: Path) -> None:
    """Guards against hours of work on a file that was cut short after it was listed."""
    entry = put(tmp_path, "x.jsonl", PLAIN)
    (tmp_path / "x.jsonl").write_bytes(PLAIN[:-1])
    with pytest.raises(StageError, match=r"bytes where the inventory says .*make the inventory"):
        next(read_lines(tmp_path / "x.jsonl", entry))
    (tmp_path / "x.jsonl").unlink()
    with pytest.raises(StageError, match="in the inventory but not on disk"):
        next(read_lines(tmp_path / "x.jsonl", entry))


MEASURE = """
import re, sys
from pathlib import Path
from ropewalk.data.entries import Entry
from ropewalk.data.readers import records
from ropewalk.data.spec import JsonlSource

folder, path, size, sha256, *warm = sys.argv[1:]
def read(name, size, sha256):
    entry = Entry(path=name, split="train", bytes=int(size), sha256=sha256)
    return [len(r.fields["text"]) for r in records(JsonlSource(location="x"), entry, folder)]
def peak():  # unlike ru_maxrss, not that of the process which started this one
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) // 1024
read(*warm)  # what the libraries take at first is not what is measured
before = peak()
lengths = read(path, size, sha256)
print(len(lengths), max(lengths), peak() - before)
"""


@pytest.mark.parametrize(
    ("lines", "length", "most"), [(1, 100_000_000, 350), (3, 60_000_000, 250), (400, 1_000_000, 60)]
)
def test_memory_is_bounded_by_the_longest_line(
    tmp_path: Path, lines: int, length: int, most: int
) -> None:
    """Guards against copies of a long line, and against kilobytes that inflate to gigabytes."""
    line = json.dumps({"text": "x" * length}).encode() + b"\n"
    entry = put(tmp_path, "x.jsonl.zst", frames(line * lines))
    assert entry.bytes < 100_000
    small = put(tmp_path, "s.jsonl.zst", frames(b'{"text": "x"}\n'))

    def what(entry: Entry) -> tuple[str, int, str]:
        return entry.path, entry.bytes, entry.sha256

    done = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path, *map(str, what(entry)), *map(str, what(small))],
        capture_output=True,
        text=True,
        check=True,
    )
    count, longest, grown = map(int, done.stdout.split())
    assert (count, longest) == (lines, length)
    assert grown < most  # MB


def test_chunks_are_small_however_well_they_are_compressed(tmp_path: Path) -> None:
    """Guards against a frame that is inflated whole."""
    entry = put(tmp_path, "x.txt.zst", frames(b"x" * (50 * MIB)))
    sizes = [len(chunk) for chunk in chunks(tmp_path / "x.txt.zst", entry)]
    assert sum(sizes) == 50 * MIB
    assert max(sizes) <= MIB
