import gzip
import hashlib
import io
import json
from pathlib import Path

import pytest
import zstandard
from data_samples import Chain, Run

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
