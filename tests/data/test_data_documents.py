import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from data_files import frames
from data_samples import Chain, Run

from ropewalk.base.manifest import Manifest
from ropewalk.base.stage import StageError
from ropewalk.data.documents import Document, Place, Skipped, documents, entries_of, field
from ropewalk.data.spec import DocumentCorpus, InventoryJob, JsonlSource, Pile, Prompt, RedPajama


def read_all(
    corpus: DocumentCorpus, source: Any, inventory: Manifest, folder: Path | None = None
) -> list[Any]:
    """Return everything a corpus of one part holds."""
    where = None if folder is None else str(folder)
    return list(documents(corpus, source, entries_of(corpus, inventory), where))


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
    items = read_all(corpus, source, inventory, raw)
    assert [i.place for i in items] == [(0, n) for n in (0, 1, 2, 3, 4, 5, 6, 7, 9)]
    assert [i.cause for i in items if isinstance(i, Skipped)] == [
        "malformed_json",
        "malformed_json",
        "missing_text",
        "missing_text",
        "empty",
        "invalid_unicode",
        "invalid_utf8",
    ]
    assert all(i.reason for i in items if isinstance(i, Skipped) and i.cause != "empty")
    found = [i for i in items if isinstance(i, Document)]
    assert [(d.id, d.text, d.subset) for d in found] == [
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
        items = read_all(corpus, source, inventory, folder)
        assert [item.place for item in items] == [(f, n) for f in range(8) for n in range(5)]
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
        items = read_all(corpus, source, inventory, folder)
        assert len(items) == 3000  # every record is either kept or counted
        return [item.id for item in items if isinstance(item, Document)]

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
        items = read_all(corpus, chain.source, chain.inventory)
        return [item.id for item in items if isinstance(item, Document)]

    whole, half = read(None), read(0.5)
    assert 0 < len(half) < len(whole)
    assert [name for name in whole if name in half] == half


def test_python_documents_are_the_files_in_a_seeded_order(chain: Chain) -> None:
    """Guards against the order of the file system, and against a seed without effect."""

    def read(seed: int) -> list[Document]:
        corpus = DocumentCorpus(source="fake", split="train", seed=seed)
        items = read_all(corpus, chain.source, chain.inventory)
        assert all(isinstance(item, Document) for item in items)
        return items  # type: ignore[return-value]

    first = read(0)
    assert all(d.text == chain.texts[d.id] and d.subset == "fake" for d in first)
    assert [d.id for d in first] == [d.id for d in read(0)]
    assert [d.id for d in first] != [d.id for d in read(1)]
    assert sorted(d.id for d in first) == sorted(d.id for d in read(1))


def test_a_python_file_changed_since_the_inventory_is_an_error(chain: Chain, site: Path) -> None:
    """Guards against tokens of an installation other than the one inventoried."""
    path = read_all(chain.corpus, chain.source, chain.inventory)[0].id
    (site / path).write_text("x = 1\n")
    with pytest.raises(StageError, match="changed after the inventory"):
        read_all(chain.corpus, chain.source, chain.inventory)


def lay_out(run: Run, folder: Path, files: dict[str, list[Any]], source: Any) -> Manifest:
    """Write JSON lines, in zstd where the name says so, and list them."""
    for name, rows in files.items():
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(frames(content) if name.endswith(".zst") else content)
    return run("inventory", InventoryJob(source=source, folder=str(folder)), "inventory")


def pile(name: str | None, text: str) -> dict[str, Any]:
    return {"text": text, "meta": {} if name is None else {"pile_set_name": name}}


@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        ({}, ["a", "b", "c", "d"]),
        ({"subsets": ("Books3", "ArXiv")}, ["a", "c"]),
        ({"excluded_subsets": ("Github",)}, ["a", "c", "d"]),
        ({"subsets": ("Books3", "Github"), "excluded_subsets": ("Github",)}, ["a"]),
        ({"subsets": ("absent",)}, []),
    ],
)
def test_subsets_are_chosen_by_the_name_in_the_record(
    run: Run, tmp_path: Path, filters: dict[str, Any], kept: list[str]
) -> None:
    """Guards against a filter that lets everything through, or drops without counting."""
    source = Pile(location="x")
    rows = [pile("Books3", "a"), pile("Github", "b"), pile("ArXiv", "c"), pile(None, "d")]
    inventory = lay_out(run, tmp_path / "raw", {"train/00.jsonl.zst": rows}, source)
    corpus = DocumentCorpus(source="x", split="train", **filters)
    items = read_all(corpus, source, inventory, tmp_path / "raw")
    assert [i.text for i in items if isinstance(i, Document)] == kept
    assert [i.cause for i in items if isinstance(i, Skipped)] == ["other_subset"] * (4 - len(kept))
    assert len(items) == 4


def test_folders_name_the_subsets_of_redpajama(run: Run, tmp_path: Path) -> None:
    """Guards against a data set whose parts cannot be told apart, because no record names them."""
    source = RedPajama(location="x")
    files = {
        "arxiv/a.jsonl": [{"text": "a", "meta": {"arxiv_id": "1"}}],
        "common_crawl/2023/b.jsonl.zst": [{"text": "b", "source": "cc"}],
    }
    inventory = lay_out(run, tmp_path / "raw", files, source)
    items = read_all(DocumentCorpus(source="x", split="train"), source, inventory, tmp_path / "raw")
    assert {i.text: i.subset for i in items} == {"a": "arxiv", "b": "common_crawl"}


def test_a_prompt_brings_its_target(run: Run, tmp_path: Path) -> None:
    """Guards against fine-tuning data without what is to be learned."""
    source = JsonlSource(location="x", train=("*.jsonl",), text_field="input")
    rows = [{"input": "i", "output": "o"}, {"input": "i"}, {"input": "i", "output": ""}]
    inventory = lay_out(run, tmp_path / "raw", {"a.jsonl": rows}, source)
    prompt = Prompt(template="Read {text} now", target_field="output")
    corpus = DocumentCorpus(source="x", split="train", prompt=prompt)
    first, second, third = read_all(corpus, source, inventory, tmp_path / "raw")
    assert (first.text, first.target) == ("i", "o")
    assert (second.cause, third.cause) == ("missing_text", "empty")
    assert "'output'" in second.reason


@pytest.mark.parametrize("template", ["no place for it", "{text} and {text}"])
def test_a_prompt_without_a_place_for_the_text_is_refused(template: str) -> None:
    """Guards against a prompt that never shows the document."""
    with pytest.raises(ValueError, match=r"must hold \{text\} once"):
        Prompt(template=template, target_field="output")


def test_reading_goes_on_at_any_place(run: Run, tmp_path: Path) -> None:
    """Guards against records that are read twice or not at all after a job was killed."""
    folder = tmp_path / "raw"
    source, inventory = write_jsonl(run, folder, files=4, lines=6)
    corpus = DocumentCorpus(source="x", split="train", sample=0.7)
    entries = entries_of(corpus, inventory)
    whole = list(documents(corpus, source, entries, str(folder)))
    for cut, item in enumerate(whole):
        assert list(documents(corpus, source, entries, str(folder), item.place)) == whole[cut:]
    end = Place(3, 6)
    assert list(documents(corpus, source, entries, str(folder), end)) == []


def test_fields_are_found_by_dotted_paths() -> None:
    """Guards against a subset that is None because its key is one level down."""
    record = {"meta": {"set": "a", "deep": {"er": 1}}, "meta.flat": "b", "text": "t"}
    assert field(record, "text") == "t"
    assert field(record, "meta.set") == "a"
    assert field(record, "meta.flat") == "b"
    assert field(record, "meta.deep.er") == 1
    assert field(record, "meta.set.more") is None
    assert field(record, "absent.at.all") is None
