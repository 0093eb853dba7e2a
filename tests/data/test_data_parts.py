"""Parts of a corpus, and the tokens they are together."""

import dataclasses
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from data_samples import Chain, Run, tokens_of
from hypothesis import given

from ropewalk.base.manifest import ArtifactError, Manifest, read_manifest
from ropewalk.base.stage import StageError
from ropewalk.data.documents import _parts, entries_of
from ropewalk.data.entries import Entry
from ropewalk.data.spec import (
    DocumentCorpus,
    GatherJob,
    InventoryJob,
    JsonlSource,
    TokenizeJob,
    gather_job,
)
from ropewalk.data.tokenize import quota
from ropewalk.data.tokens import Tokens


def content(tokens: Tokens) -> list[tuple[str, list[int]]]:
    return [(name, tokens.document(i).tolist()) for i, name in enumerate(tokens.ids)]


@pytest.mark.parametrize("parts", [2, 3, 7, 40])
def test_parts_hold_the_documents_of_the_whole_in_order(chain: Chain, parts: int) -> None:
    """Guards against a document in two parts or in none, and an order that depends on the cut."""
    whole = chain.tokens("whole")
    cut = chain.tokens("cut", corpus=dataclasses.replace(chain.corpus, parts=parts))
    assert content(Tokens(cut)) == content(Tokens(whole))
    for key in ("documents", "documents_in", "tokens", "bytes", "skipped", "subsets"):
        assert cut.result[key] == whole.result[key]
    assert [s["file"] for s in cut.result["shards"]] == [f.path for f in cut.files]
    assert sum(s["tokens"] for s in cut.result["shards"]) == cut.result["tokens"]
    assert sum(s["documents"] for s in cut.result["shards"]) == cut.result["documents"]
    by_name = {f.path: f.sha256 for f in cut.files}
    assert all(by_name[s["file"]] == s["sha256"] for s in cut.result["shards"])


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 12))
def test_parts_are_runs_of_about_equal_bytes(sizes: list[int], parts: int) -> None:
    """Guards against one job that gets most of the corpus while the others wait for it."""
    entries = [
        Entry(path=f"{i:03}", split="train", bytes=size, sha256="0" * 64)
        for i, size in enumerate(sizes)
    ]
    found = _parts(entries, parts)
    assert len(found) == parts
    assert list(itertools.chain(*found)) == entries
    share = sum(sizes) / parts
    # a file lies in the part that holds its middle, so that half a file at each end may differ
    assert all(sum(e.bytes for e in part) <= share + max(sizes, default=0) for part in found)


@given(st.integers(0, 10**9), st.integers(1, 50))
def test_limits_are_shared_out_whole(limit: int, parts: int) -> None:
    """Guards against a limit that 64 jobs reach 64 times over."""
    shares = [quota(limit, part, parts) for part in range(parts)]
    assert sum(shares) == limit  # type: ignore[arg-type]
    assert max(shares) - min(shares) <= 1  # type: ignore[operator, type-var]


def test_a_limit_holds_over_all_parts(chain: Chain) -> None:
    """Guards against parts that each take the whole limit, silently."""
    corpus = dataclasses.replace(chain.corpus, parts=3, limit_documents=6)
    made = chain.tokens("limited", corpus=corpus)
    assert made.result["documents"] == 6
    assert made.result["limit_reached"]
    assert not chain.tokens("whole").result["limit_reached"]


class Damaged:
    """JSON lines, some of them damaged."""

    def __init__(self, run: Run, chain: Chain, folder: Path) -> None:
        raw = folder / "raw"
        raw.mkdir()
        for file in range(4):
            lines = [json.dumps({"text": f"{file} {n} " + "word " * 9}) for n in range(10)]
            lines[3] = '{"text": "cut'
            lines[7] = '{"other": "text"}'
            (raw / f"{file}.jsonl").write_text("\n".join(lines))
        self.run = run
        self.source = JsonlSource(location="x", train=("*.jsonl",))
        self.raw = raw
        self.inputs = {
            "tokenizer": chain.tokenizer,
            "inventory": run(
                "inventory", InventoryJob(source=self.source, folder=str(raw)), "raw-inventory"
            ),
        }

    def tokens(self, name: str, **corpus: Any) -> Manifest:
        chosen = DocumentCorpus(source="x", split="train", **corpus)
        job = {"corpus": chosen, "source": self.source, "folder": str(self.raw)}
        return tokens_of(self.run, name, self.inputs, **job)


@pytest.fixture
def damaged(run: Run, chain: Chain, tmp_path: Path) -> Damaged:
    """Return four files with two damaged lines each."""
    return Damaged(run, chain, tmp_path)


def test_damaged_records_are_skipped_counted_and_named(damaged: Damaged) -> None:
    """Guards against records that are gone without a trace."""
    made = damaged.tokens("all", parts=2)
    assert made.result["documents_in"] == 40
    assert made.result["documents"] == 32
    assert made.result["skipped"] == {"malformed_json": 4, "missing_text": 4}
    examples = made.result["skipped_examples"]
    named = sorted(example.partition(": ")[0] for example in examples["malformed_json"])
    assert named == [f"{n}.jsonl:3" for n in range(4)]
    assert all("'text'" in example and "'other'" in example for example in examples["missing_text"])


@pytest.mark.parametrize("parts", [1, 4])
def test_more_damage_than_allowed_stops_with_file_line_and_reason(
    damaged: Damaged, parts: int
) -> None:
    """Guards against a corpus of which half could not be read."""
    assert damaged.tokens("enough", parts=parts, damaged_limit=8).result["documents"] == 32
    with pytest.raises(StageError, match=r"8 damaged|more than corpus.damaged_limit = 7") as caught:
        damaged.tokens("short", parts=parts, damaged_limit=7)
    assert "malformed_json in " in str(caught.value)
    assert ".jsonl:3: " in str(caught.value)
    assert "damaged_limit = 7" in str(caught.value)


def test_parts_that_do_not_belong_together_are_refused(chain: Chain) -> None:
    """Guards against tokens of two corpora, or a part that is counted twice or not at all."""
    corpus = dataclasses.replace(chain.corpus, parts=2)
    made = chain.tokens("two", corpus=corpus)
    first, second = (read_manifest(made.folder / f"parts/0000{n}/manifest.json") for n in (0, 1))
    gather = gather_job(corpus)
    with pytest.raises(StageError, match=r"parts 0 to 1 are needed, each once"):
        chain.run("gather", gather, "two", part__00000=first)
    with pytest.raises(StageError, match=r"parts 0 to 1 are needed, each once"):
        chain.run("gather", gather, "two", part__00000=second, part__00001=first)
    other = dataclasses.replace(corpus, minimum_tokens=5)
    chain.tokens("other", corpus=other)
    shutil.copytree(made.folder.parent / "other/parts/00001", made.folder / "parts/strange")
    strange = read_manifest(made.folder / "parts/strange/manifest.json")
    with pytest.raises(StageError, match="was made from another corpus"):
        chain.run("gather", gather, "two", part__00000=first, part__00001=strange)


def test_parts_elsewhere_are_refused(chain: Chain) -> None:
    """Guards against a manifest that lists files outside its own folder."""
    made = chain.tokens("made")
    part = read_manifest(made.folder / "parts/00000/manifest.json")
    with pytest.raises(StageError, match="must lie below"):
        chain.run("gather", GatherJob(parts=1, damaged_limit=0), "elsewhere", part__00000=part)


def test_a_part_outside_its_corpus_is_refused(chain: Chain) -> None:
    """Guards against parts counted from one: the last would be read by nobody."""
    spec = TokenizeJob(corpus=chain.corpus, source=chain.source, part=1)
    inputs = {"inventory": chain.inventory, "tokenizer": chain.tokenizer}
    with pytest.raises(StageError, match="part: 1 of 1"):
        chain.run("tokenize", spec, "p", **inputs)


@pytest.mark.parametrize("place", [0, 9, -1])
def test_a_flipped_byte_of_any_shard_is_found(chain: Chain, place: int) -> None:
    """Guards against training on tokens that the disk changed."""
    corpus = dataclasses.replace(chain.corpus, parts=2)
    made = chain.tokens("flipped", corpus=corpus, shard_tokens=3000)
    assert len(made.files) > 3
    for file in made.files:
        path = made.folder / file.path
        sound = path.read_bytes()
        broken = bytearray(sound)
        broken[place] ^= 4
        path.write_bytes(broken)
        with pytest.raises(ArtifactError, match=file.path):
            read_manifest(made.folder / "manifest.json")
        path.write_bytes(sound)
    read_manifest(made.folder / "manifest.json")


def test_the_order_of_a_part_is_that_of_the_corpus(chain: Chain) -> None:
    """Guards against parts that sort their files anew."""
    whole = entries_of(chain.corpus, chain.inventory)
    corpus = dataclasses.replace(chain.corpus, parts=5)
    parts = [entries_of(corpus, chain.inventory, part) for part in range(5)]
    assert list(itertools.chain(*parts)) == whole
    assert all(parts)
