import dataclasses
import gzip
import hashlib
import io
import json
from pathlib import Path

import pytest
import zstandard
from data_samples import Chain, Run

from ropewalk.base.manifest import Manifest
from ropewalk.base.stage import StageError
from ropewalk.data.documents import Document, Skipped, read_documents
from ropewalk.data.lines import read_lines
from ropewalk.data.spec import DocumentCorpus, InventoryJob, JsonlSource


def frames(*parts: bytes) -> bytes:
    """Compress each part as a zstd frame of its own, without content size, as stream writers do."""
    out = b""
    for part in parts:
        sink = io.BytesIO()
        with zstandard.ZstdCompressor().stream_writer(sink, closefd=False) as writer:
            writer.write(part)
        out += sink.getvalue()
    return out


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


LINES = [
    json.dumps({"text": f"document {i} " + "x" * (i * 37 % 500)}).encode() + b"\n"
    for i in range(3000)
]
PLAIN = b"".join(LINES)
ENCODED = {
    "a.jsonl": PLAIN,
    "a.jsonl.gz": gzip.compress(PLAIN[:70_001]) + gzip.compress(PLAIN[70_001:]),
    # frame ends inside a line, and an empty frame
    "a.jsonl.zst": frames(PLAIN[:99_999], b"", PLAIN[99_999:100_003], PLAIN[100_003:]),
}


@pytest.mark.parametrize("name", ENCODED)
def test_every_line_of_every_frame_is_read(tmp_path: Path, name: str) -> None:
    """Guards against a reader that stops after the first frame: most of the Pile would be lost."""
    (tmp_path / name).write_bytes(ENCODED[name])
    assert list(read_lines(tmp_path / name, sha(ENCODED[name]))) == LINES


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
@pytest.mark.parametrize("cut", [1, 10, 5000])
def test_a_file_cut_short_is_an_error(tmp_path: Path, name: str, cut: int) -> None:
    """Guards against a broken download that reads as a smaller corpus, checksum and all."""
    content = ENCODED[name][:-cut]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StageError, match=rf"{name} is damaged or cut short"):
        list(read_lines(tmp_path / name, sha(content)))


@pytest.mark.parametrize("name", ENCODED)
def test_a_file_that_changed_since_the_inventory_is_an_error(tmp_path: Path, name: str) -> None:
    """Guards against reading other data than the identity says."""
    (tmp_path / name).write_bytes(ENCODED[name])
    with pytest.raises(StageError, match="where the inventory says"):
        list(read_lines(tmp_path / name, sha(b"other")))


def test_unusable_records_are_skipped_by_cause(run: Run, tmp_path: Path) -> None:
    """Guards against one bad record that ends a run or moves the ids of all that follow."""
    raw = tmp_path / "raw"
    raw.mkdir()
    records = [
        b'{"text": "one", "meta": {"pile_set_name": "Books"}}',
        b'{"text": "broken',
        b"[1, 2]",
        b'{"content": "other field"}',
        b'{"text": 7}',
        b'{"text": ""}',
        b'{"text": "half \\ud800"}',
        b'{"text": "\xff"}',
        b"",
        '{"text": "zwölf\\u2028\u2028"}'.encode(),
    ]
    (raw / "a.jsonl").write_bytes(b"\n".join(records))
    source = JsonlSource(location="x", train=("*.jsonl",))
    inventory = run("inventory", InventoryJob(source=source, folder=str(raw)), "inventory")
    corpus = DocumentCorpus(source="x", split="train")
    items = list(read_documents(corpus, source, inventory, str(raw)))
    assert [i.index for i in items] == list(range(9))
    assert [i.cause for i in items if isinstance(i, Skipped)] == [
        "malformed_json",
        "malformed_json",
        "missing_text",
        "missing_text",
        "empty",
        "invalid_unicode",
        "malformed_json",
    ]
    documents = [i for i in items if isinstance(i, Document)]
    assert [(d.id, d.text, d.subset) for d in documents] == [
        ("a.jsonl:0", "one", "Books"),
        ("a.jsonl:9", "zwölf\u2028\u2028", None),
    ]


def write_jsonl(run: Run, folder: Path, files: int, lines: int) -> tuple[JsonlSource, Manifest]:
    """Write files of numbered documents and list them."""
    folder.mkdir()
    for file in range(files):
        texts = [json.dumps({"text": f"{file}:{line}"}) for line in range(lines)]
        (folder / f"{file:02}.jsonl").write_text("\n".join(texts) + "\n")
    source = JsonlSource(location="x", train=("*.jsonl",))
    return source, run("inventory", InventoryJob(source=source, folder=str(folder)), "inventory")


def test_json_lines_come_file_by_file_in_a_seeded_order(run: Run, tmp_path: Path) -> None:
    """Guards against a seed without effect: a limit would always read the first files by name."""
    folder = tmp_path / "raw"
    source, inventory = write_jsonl(run, folder, files=8, lines=5)

    def read(seed: int) -> list[str]:
        corpus = DocumentCorpus(source="x", split="train", seed=seed)
        items = list(read_documents(corpus, source, inventory, str(folder)))
        assert [item.index for item in items] == list(range(40))
        return [item.id for item in items]

    def expected(seed: int) -> list[str]:
        def place(name: str) -> bytes:
            hashed = hashlib.sha256(f"{seed}/order/{name}".encode()).digest()
            return hashed[7::-1]  # eight bytes, the last one first: a little-endian number

        names = sorted((f"{file:02}.jsonl" for file in range(8)), key=place)
        return [f"{name}:{line}" for name in names for line in range(5)]

    orders = {tuple(read(seed)) for seed in range(4)}
    assert len(orders) == 4
    assert orders == {tuple(expected(seed)) for seed in range(4)}


def test_a_sample_is_a_seeded_share_of_every_file(run: Run, tmp_path: Path) -> None:
    """Guards against a draw that depends on the order, or that takes some files and not others."""
    folder = tmp_path / "raw"
    source, inventory = write_jsonl(run, folder, files=6, lines=500)

    def read(share: float | None, seed: int = 0) -> list[str]:
        corpus = DocumentCorpus(source="x", split="train", sample=share, seed=seed)
        items = list(read_documents(corpus, source, inventory, str(folder)))
        assert [item.index for item in items] == list(range(len(items)))
        return [item.id for item in items]

    whole, tenth, third = read(None), read(0.1), read(0.3)
    assert read(1.0) == whole
    assert read(0.1) == tenth
    assert read(0.1, seed=1) != tenth
    assert [name for name in whole if name in set(tenth)] == tenth
    assert set(tenth) < set(third)  # a larger share adds documents and drops none
    for file in range(6):  # mean 50, standard deviation 6.7
        assert 20 < sum(name.startswith(f"{file:02}.") for name in tenth) < 80


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    """Guards against a percentage in the place of a share, and against an empty corpus."""
    with pytest.raises(ValueError, match=r"sample .* must lie above 0 and not above 1"):
        DocumentCorpus(source="x", split="train", sample=share)


def test_a_sample_of_python_files_is_drawn_by_path(chain: Chain) -> None:
    """Guards against a share that only JSON lines know."""

    def read(share: float | None) -> list[str]:
        corpus = dataclasses.replace(chain.corpus, sample=share)
        return [d.id for d in read_documents(corpus, chain.source, chain.inventory)]

    whole, half = read(None), read(0.5)
    assert 0 < len(half) < len(whole)
    assert [name for name in whole if name in half] == half


def test_python_documents_are_the_files_in_a_seeded_order(chain: Chain) -> None:
    """Guards against the order of the file system, and against a seed without effect."""

    def read(seed: int) -> list[Document]:
        corpus = DocumentCorpus(source="fake", split="train", seed=seed)
        items = list(read_documents(corpus, chain.source, chain.inventory))
        assert all(isinstance(item, Document) for item in items)
        return items  # type: ignore[return-value]

    first = read(0)
    assert all(d.text == chain.texts[d.id] and d.subset == "fake" for d in first)
    assert [d.id for d in first] == [d.id for d in read(0)]
    assert [d.id for d in first] != [d.id for d in read(1)]
    assert sorted(d.id for d in first) == sorted(d.id for d in read(1))


def test_a_python_file_changed_since_the_inventory_is_an_error(chain: Chain, site: Path) -> None:
    """Guards against tokens of an installation other than the one inventoried."""
    path = next(iter(read_documents(chain.corpus, chain.source, chain.inventory))).id
    (site / path).write_text("x = 1\n")
    with pytest.raises(StageError, match="changed after the inventory"):
        list(read_documents(chain.corpus, chain.source, chain.inventory))
