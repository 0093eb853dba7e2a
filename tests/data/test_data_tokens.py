import dataclasses
import json
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from data_samples import Chain, Run, tokens_of
from hypothesis import given
from tokenizers import Tokenizer

from ropewalk.base.manifest import Manifest, read_manifest, write_manifest
from ropewalk.base.stage import StageError
from ropewalk.data.documents import Document, documents, entries_of
from ropewalk.data.shards import ShardWriter, token_dtype
from ropewalk.data.spec import (
    DocumentCorpus,
    ImportedTokenizer,
    InventoryJob,
    JsonlSource,
    RecallCorpus,
    TokenizeJob,
    TokenizerJob,
)
from ropewalk.data.tokens import Tokens


def read(chain: Chain) -> list[Any]:
    """Return the documents of the corpus."""
    entries = entries_of(chain.corpus, chain.inventory)
    return list(documents(chain.corpus, chain.source, entries))


def respelled(chain: Chain, file: Path, spellings: dict[str, str]) -> None:
    """Write the tokenizer with other names of tokens, and nothing that says what they are for."""
    text = (chain.tokenizer.folder / "tokenizer.json").read_text()
    for before, after in spellings.items():
        text = text.replace(f'"{before}"', f'"{after}"')
    file.write_text(json.dumps({**json.loads(text), "post_processor": None}))


def library_ids(chain: Chain) -> dict[str, list[int]]:
    """Return the ids of every document by nothing but the library tokenizer."""
    tokenizer = Tokenizer.from_file(str(chain.tokenizer.folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    return {path: tokenizer.encode(text).ids for path, text in chain.texts.items()}


def test_ids_are_those_of_the_library_tokenizer(chain: Chain) -> None:
    """Guards against ids changed on the way to disk: order, BOS, width, shard borders."""
    manifest = chain.tokens(shard_tokens=3000)
    tokens, expected = Tokens(manifest), library_ids(chain)
    order = [d.id for d in read(chain)]
    assert tokens.ids == order
    assert len(manifest.files) > 2
    for index, name in enumerate(tokens.ids):
        assert tokens.document(index).tolist() == expected[name]
        assert tokens.text_bytes[index] == len(chain.texts[name].encode())
    assert tokens.lengths.tolist() == [len(expected[name]) for name in order]
    assert tokens.total == tokens.lengths.sum() == manifest.result["tokens"]
    assert set(tokens.subsets) == {"fake"}


@pytest.mark.parametrize(
    ("bos", "eos"), [(True, False), (False, True), (True, True), (False, False)]
)
def test_the_policy_decides_what_opens_and_closes(chain: Chain, bos: bool, eos: bool) -> None:
    """Guards against a double BOS, and documents joined without the EOS a model learned to read."""
    chain.train_tokenizer(bos=bos, eos=eos)
    made, expected = chain.tokens(), library_ids(chain)
    tokens = Tokens(made)
    for index, name in enumerate(tokens.ids):
        ids = tokens.document(index).tolist()
        assert ids == expected[name]  # whoever loads the tokenizer gets what was trained on
        assert (0 in ids, 1 in ids) == (bos, eos)
        assert not bos or ids[0] == 0
        assert not eos or ids[-1] == 1
    assert (made.result["opening"], made.result["closing"]) == ([0] * bos, [1] * eos)


def test_limits_and_minimum_count_what_they_say(chain: Chain) -> None:
    """Guards against limits applied before the filter, or documents lost from the count."""
    everything = Tokens(chain.tokens())
    minimum = int(np.median(everything.lengths))
    names = [n for i, n in enumerate(everything.ids) if everything.lengths[i] >= minimum]
    skipped_before = everything.ids.index(names[3]) + 1 - 4

    def corpus(**changes: Any) -> DocumentCorpus:
        return dataclasses.replace(chain.corpus, minimum_tokens=minimum, **changes)

    by_count = chain.tokens("count", corpus=corpus(limit_documents=4))
    assert Tokens(by_count).ids == names[:4]
    result = by_count.result
    assert result["documents"] == 4
    assert result["documents_in"] == result["documents"] + sum(result["skipped"].values())
    assert result["skipped"].get("short", 0) >= skipped_before

    wanted = int(Tokens(by_count).lengths[:2].sum()) + 1
    by_tokens = Tokens(chain.tokens("tokens2", corpus=corpus(limit_tokens=wanted)))
    assert by_tokens.ids == names[:3]  # taken until the limit is reached, the last one whole


def test_every_document_is_in_or_skipped(run: Run, chain: Chain, tmp_path: Path) -> None:
    """Guards against records that are neither."""
    (tmp_path / "raw").mkdir()
    lines = [b'{"text": "one two three four"}', b"{", b'{"text": ""}', b'{"text": "x"}', b"{}"]
    (tmp_path / "raw/a.jsonl").write_bytes(b"\n".join(lines))
    source = JsonlSource(location="x", train=("a.jsonl",))
    inventory = run("inventory", InventoryJob(source=source, folder=str(tmp_path / "raw")), "raw-i")
    manifest = tokens_of(
        run,
        "raw-t",
        {"inventory": inventory, "tokenizer": chain.tokenizer},
        corpus=DocumentCorpus(source="x", split="train", minimum_tokens=3),
        source=source,
        folder=str(tmp_path / "raw"),
    )
    result = manifest.result
    assert result["documents_in"] == len(lines)
    assert result["documents"] == 1
    assert result["skipped"] == {"malformed_json": 1, "missing_text": 1, "empty": 1, "short": 1}


def test_a_corpus_without_documents_is_an_error(chain: Chain) -> None:
    """Guards against training on nothing."""
    corpus = dataclasses.replace(chain.corpus, minimum_tokens=10**9)
    with pytest.raises(StageError, match=r"16 short.*corpus\.minimum_tokens = 1000000000"):
        chain.tokens("none", corpus=corpus)


def test_a_tokenizer_without_bos_is_refused_where_one_is_asked_for(
    run: Run, chain: Chain, tmp_path: Path
) -> None:
    """Guards against documents that silently begin without the token the model expects."""
    respelled(chain, tmp_path / "bare.json", {"<s>": "<a>", "</s>": "<b>"})
    imported = ImportedTokenizer(path=str(tmp_path / "bare.json"), vocabulary_size=400, bos=True)
    with pytest.raises(StageError, match="bos: true"):
        run("tokenizer", TokenizerJob(tokenizer=imported), "imported")


def test_shards_are_the_same_bytes_every_time(chain: Chain) -> None:
    """Guards against an artifact whose hash depends on batches, folders or the clock."""
    first, second = chain.tokens("one", shard_tokens=3000), chain.tokens("two", shard_tokens=3000)
    assert [(f.path, f.sha256) for f in first.files] == [(f.path, f.sha256) for f in second.files]
    assert first.content == second.content


def test_shards_of_an_earlier_attempt_are_removed(chain: Chain) -> None:
    """Guards against files in the folder that the manifest knows nothing of."""
    folder = chain.tokens("again", shard_tokens=3000).folder
    chain.tokens("again")
    assert [f.name for f in folder.rglob("*.arrow")] == ["shard-00000.arrow"]


def recall(run: Run, chain: Chain, **changes: Any) -> tuple[RecallCorpus, Manifest]:
    settings = {"documents": 5, "length_tokens": 64, "keys": 16, "pairs": (2, 4), **changes}
    corpus = RecallCorpus(filler="train", **settings)
    inputs = {"filler": chain.tokens(), "tokenizer": chain.tokenizer}
    return corpus, tokens_of(run, "recall", inputs, corpus=corpus)


def test_recall_documents_have_their_length_with_bos(run: Run, chain: Chain) -> None:
    """Guards against windows that drift through the documents by one token each."""
    _, manifest = recall(run, chain)
    tokens = Tokens(manifest)
    assert tokens.lengths.tolist() == [64] * 5
    assert tokens.ids == [f"recall-{i}" for i in range(5)]
    for index in range(5):
        ids = tokens.document(index)
        assert ids[0] == 0
        assert (ids[1:] != 0).all()
        assert (ids == 1).any()
        assert ids.max() < 400
    assert len({tokens.document(i).tobytes() for i in range(5)}) == 5


def test_recall_refuses_a_tokenizer_with_another_marker(run: Run, chain: Chain) -> None:
    """Guards against a marker that is an ordinary word of the tokenizer."""
    swapped = chain.tokenizer.folder.parent / "swapped.json"
    respelled(chain, swapped, {"<s>": "<a>"})
    imported = ImportedTokenizer(path=str(swapped), vocabulary_size=400)
    tokenizer = run("tokenizer", TokenizerJob(tokenizer=imported), "swapped")
    corpus = RecallCorpus(filler="train", documents=1, length_tokens=64, keys=16, pairs=(2, 4))
    inputs = {"filler": chain.tokens(), "tokenizer": tokenizer}
    with pytest.raises(StageError, match="BOS and EOS are 0 and 1"):
        run("tokenize", TokenizeJob(corpus=corpus), "recall", **inputs)


# The writer and the reader on their own


def write(folder: Path, documents: list[np.ndarray], shard_tokens: int, **batches: int) -> Manifest:
    with ShardWriter(
        folder, vocabulary_size=70_000, shard_tokens=shard_tokens, **batches
    ) as writer:
        for index, ids in enumerate(documents):
            writer.add(f"d{index}", ids, subset=None if index % 2 else "s", text_bytes=index)
    return write_manifest(
        folder, stage="tokenize", spec={}, inputs={}, files=writer.files, result={}
    )


@given(
    st.lists(st.lists(st.integers(0, 69_999), max_size=12), min_size=1, max_size=20),
    st.integers(1, 40),
    st.integers(1, 25),
    st.integers(1, 6),
)
def test_the_reader_gives_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory,
    documents: list[list[int]],
    shard_tokens: int,
    batch_tokens: int,
    batch_documents: int,
) -> None:
    """Guards against documents shifted or cut at the borders of batches and shards."""
    folder = tmp_path_factory.mktemp("shards")
    manifest = write(
        folder,
        [np.array(d, dtype=np.int64) for d in documents],
        shard_tokens,
        batch_tokens=batch_tokens,
        batch_documents=batch_documents,
    )
    tokens = Tokens(read_manifest(folder / "manifest.json"))
    assert [tokens.document(i).tolist() for i in range(tokens.count)] == documents
    assert tokens.ids == [f"d{i}" for i in range(len(documents))]
    assert tokens.subsets == [None if i % 2 else "s" for i in range(len(documents))]
    assert tokens.text_bytes.tolist() == list(range(len(documents)))
    sizes = [Tokens(dataclasses.replace(manifest, files=(f,))).total for f in manifest.files]
    assert all(size >= shard_tokens for size in sizes[:-1])  # closed once full, not before


def test_documents_are_views_of_the_file(tmp_path: Path) -> None:
    """Guards against a reader that copies a corpus into memory."""
    tokens = Tokens(write(tmp_path, [np.arange(10)], 100))
    assert not tokens.document(0).flags.owndata
    assert not tokens.document(0).flags.writeable
    with pytest.raises(IndexError, match="1 of 1"):
        tokens.document(1)
    with pytest.raises(IndexError):
        tokens.document(-1)


def test_a_shard_is_closed_by_the_document_that_fills_it(tmp_path: Path) -> None:
    """Guards against shards a document larger than asked for."""
    documents = [np.arange(n) for n in (5, 4, 1, 7)]
    manifest = write(tmp_path, documents, 5)
    sizes = [Tokens(dataclasses.replace(manifest, files=(f,))).lengths for f in manifest.files]
    assert [s.tolist() for s in sizes] == [[5], [4, 1], [7]]


@pytest.mark.parametrize(("size", "dtype"), [(65_536, "uint16"), (65_537, "uint32")])
def test_ids_are_as_wide_as_the_vocabulary_needs(size: int, dtype: str) -> None:
    """Guards against ids that wrap around at 65,536."""
    assert token_dtype(size) == np.dtype(dtype)
    assert int(np.array([size - 1]).astype(token_dtype(size))[0]) == size - 1


def test_an_id_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    """Guards against an id stored as another id."""
    writer = ShardWriter(tmp_path, vocabulary_size=100, shard_tokens=10)
    with pytest.raises(OverflowError, match="d0"):
        writer.add("d0", np.array([65_536]), subset=None, text_bytes=0)


def test_a_failure_leaves_no_half_shard(tmp_path: Path) -> None:
    """Guards against a truncated file that looks like a shard."""

    def fail() -> None:
        with ShardWriter(
            tmp_path, vocabulary_size=100, shard_tokens=10, batch_documents=1
        ) as writer:
            for index, size in enumerate((20, 5)):  # one whole shard, one begun
                writer.add(f"d{index}", np.arange(size), subset=None, text_bytes=0)
            raise KeyError("stop")

    with pytest.raises(KeyError):
        fail()
    assert [file.name for file in tmp_path.iterdir()] == ["shard-00000.arrow"]
    assert pa.ipc.open_file(str(tmp_path / "shard-00000.arrow")).read_all().num_rows == 1


def test_documents_yield_their_text(chain: Chain) -> None:
    """Guards against the tokens tests passing vacuously on an empty corpus."""
    items = read(chain)
    assert len(items) >= 10
    assert all(isinstance(item, Document) and "<s>" in item.text for item in items)
