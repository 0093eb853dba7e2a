"""The reader of tokens: where documents lie, and how much memory reading them takes."""

import gc
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from token_samples import counting, write_tokens

from ropewalk.base.manifest import ArtifactError, Manifest, read_manifest, write_manifest
from ropewalk.data.tokens import Files, Tokens

STATUS = Path("/proc/self/status")


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3)), min_size=1, max_size=25),
    st.integers(1, 40),
    st.integers(1, 25),
    st.integers(1, 6),
    st.booleans(),
    st.sampled_from([60_000, 70_000]),
    st.data(),
)
def test_documents_are_found_wherever_they_lie(
    tmp_path_factory: pytest.TempPathFactory,
    documents: list[tuple[int, int]],
    shard_tokens: int,
    batch_tokens: int,
    batch_documents: int,
    counted: bool,
    vocabulary: int,
    data: st.DataObject,
) -> None:
    """Guards against documents shifted or cut at the borders of batches and shards."""
    ids = counting([size for size, _ in documents])
    manifest = write_tokens(
        tmp_path_factory.mktemp("tokens"),
        ids,
        prompts=[prompt for _, prompt in documents],
        shard_tokens=shard_tokens,
        vocabulary_size=vocabulary,
        counted=counted,
        batch_tokens=batch_tokens,
        batch_documents=batch_documents,
    )
    tokens = Tokens(manifest, Files(files=data.draw(st.integers(1, 3)), resident_bytes=1))
    assert tokens.count == len(documents)
    assert tokens.lengths.tolist() == [size for size, _ in documents]
    assert tokens.prompts.tolist() == [prompt for _, prompt in documents]
    assert tokens.text_bytes.tolist() == [3 * i for i in range(len(documents))]
    assert tokens.ids == [f"d{i}" for i in range(len(documents))]
    assert tokens.total == sum(size for size, _ in documents)
    wanted = data.draw(st.lists(st.integers(0, len(documents) - 1), max_size=30))
    shards = tokens.shards_of(np.array(wanted, dtype=np.int64))
    for document, shard in zip(wanted, shards.tolist(), strict=True):
        read = np.empty(documents[document][0], dtype=tokens.dtype)
        width = tokens.dtype.itemsize
        tokens.file(shard).read(read.data.cast("B"), int(tokens.begins[document]) * width)
        assert read.tolist() == ids[document].tolist()
    assert [tokens.document(i).tolist() for i in range(tokens.count)] == [d.tolist() for d in ids]


def test_no_shard_is_opened_before_it_is_needed(tmp_path: Path) -> None:
    """Guards against a start that reads tens of thousands of files to count their documents."""
    manifest = write_tokens(tmp_path, counting([5] * 10), shard_tokens=10)
    assert len(manifest.files) == 5
    for name in ("shard-00000.arrow", "shard-00004.arrow"):
        (tmp_path / name).unlink()
    tokens = Tokens(manifest)
    assert tokens.count == 10
    assert tokens.document(3).tolist() == [16, 17, 18, 19, 20]
    with pytest.raises(ArtifactError, match="shard-00000"):
        tokens.document(0)


def test_views_outlive_the_map(tmp_path: Path) -> None:
    """Guards against a view into memory that was unmapped, or given back without its file."""
    manifest = write_tokens(tmp_path, counting([50] * 6), shard_tokens=100)
    files = Files(files=1, resident_bytes=1)
    tokens = Tokens(manifest, files)
    views = [tokens.document(i) for i in range(6)]  # every shard closes the one before
    files.give_back()
    del tokens, files
    gc.collect()
    assert [view.tolist() for view in views] == [d.tolist() for d in counting([50] * 6)]


@pytest.mark.skipif(not STATUS.exists(), reason="needs /proc")
def test_touched_pages_are_given_back(tmp_path: Path) -> None:
    """Guards against a process that grows by every page of the corpus it has read."""
    manifest = write_tokens(tmp_path, [np.zeros(100_000)] * 100, shard_tokens=5_000_000)

    def growth(limit: int) -> int:
        tokens = Tokens(manifest, Files(resident_bytes=limit))
        before = resident_kib()
        for index in range(tokens.count):
            assert not tokens.document(index).any()
        return resident_kib() - before

    corpus = 4 * 100 * 100_000 // 1024
    assert growth(1 << 40) > corpus * 0.9  # the measure sees pages that stay
    assert growth(4 << 20) < corpus * 0.2


def test_only_so_many_files_are_open(tmp_path: Path) -> None:
    """Guards against a corpus of thousands of shards that ends in `Too many open files`."""
    manifest = write_tokens(tmp_path, counting([50] * 60), shard_tokens=50)
    assert len(manifest.files) == 60
    tokens = Tokens(manifest, Files(files=3))
    before = set(Path("/proc/self/fd").iterdir())
    scratch = np.empty(50, dtype=tokens.dtype)
    for index in range(60):  # the first one asks for its file before all others are opened
        tokens.file(index).read(scratch.data.cast("B"), 4 * int(tokens.begins[index]))
        assert scratch.tolist() == tokens.document(index).tolist()
    assert len(set(Path("/proc/self/fd").iterdir()) - before) <= 6


def test_a_shard_that_lost_its_end_is_named(tmp_path: Path) -> None:
    """Guards against rows that end in whatever the buffer held before."""
    manifest = write_tokens(tmp_path, counting([50, 50]))
    file = tmp_path / manifest.files[0].path
    tokens = Tokens(manifest)
    begin = int(tokens.begins[1]) * tokens.dtype.itemsize
    file.write_bytes(file.read_bytes()[: begin + 20])
    with pytest.raises(ArtifactError, match=f"shard-00000.arrow ends before byte {begin + 200}"):
        tokens.file(0).read(memoryview(bytearray(200)), begin)


def resident_kib() -> int:
    (line,) = [x for x in STATUS.read_text().splitlines() if x.startswith("RssFile")]
    return int(line.split()[1])


def test_a_small_corpus_stays_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against giving back, again and again, what the limit would hold for good."""
    tokens = Tokens(write_tokens(tmp_path, counting([50] * 6)), Files(resident_bytes=1 << 20))
    monkeypatch.setattr(Files, "give_back", lambda self: pytest.fail("pages were given back"))
    for _ in range(100):
        tokens.document(0)


def rewritten(manifest: Manifest, table: pa.Table, **options: Any) -> Manifest:
    """Replace the first shard by this table."""
    with pa.ipc.new_file(
        str(manifest.folder / manifest.files[0].path), table.schema, **options
    ) as sink:
        sink.write_table(table)
    return read_manifest(manifest.folder / "manifest.json", verify=False)


def test_tokens_of_an_older_version_are_refused(tmp_path: Path) -> None:
    """Guards against documents with prompts that are read as if they had none."""
    manifest = write_tokens(tmp_path, counting([5, 6]))
    table = pa.ipc.open_file(str(tmp_path / "shard-00000.arrow")).read_all()
    tokens = Tokens(rewritten(manifest, table.drop_columns(["prompt"])))
    with pytest.raises(ArtifactError, match=r"shard-00000\.arrow has no column prompt"):
        tokens.document(0)


def test_compressed_shards_are_refused(tmp_path: Path) -> None:
    """Guards against reading whatever lies beside a buffer that is not in the file."""
    manifest = write_tokens(tmp_path, [np.zeros(5000), np.ones(5000)], shard_tokens=10**6)
    table = pa.ipc.open_file(str(tmp_path / "shard-00000.arrow")).read_all()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pytest.raises(ArtifactError, match=r"shard-00000\.arrow is compressed"):
        Tokens(rewritten(manifest, table, options=options)).document(0)


@pytest.mark.parametrize("content", [b"", b"no arrow file"])
def test_a_file_that_is_no_shard_is_named(tmp_path: Path, content: bytes) -> None:
    """Guards against a traceback from deep inside a library."""
    (tmp_path / "shard-00000.arrow").write_bytes(content)
    manifest = write_manifest(
        tmp_path,
        stage="gather",
        spec={},
        inputs={},
        files=[tmp_path / "shard-00000.arrow"],
        result={},
    )
    with pytest.raises(ArtifactError, match=r"shard-00000\.arrow"):
        Tokens(manifest)
