import hashlib
import itertools
import json
from pathlib import Path

import pytest
from data_samples import Run, install, words
from test_data_duplicates import brute_jaccard, brute_shingles

from ropewalk.base.manifest import Manifest
from ropewalk.base.stage import StageError
from ropewalk.data.entries import Entry, read_entries
from ropewalk.data.inventory import assign_split
from ropewalk.data.spec import (
    PG19,
    SPLITS,
    ArrowSource,
    FileSource,
    GovReport,
    InventoryJob,
    JsonlSource,
    ParquetSource,
    Pile,
    ProofPile,
    PythonSource,
    RedPajama,
    SlimPajama,
    Split,
    TextSource,
)


def source(*names: str, **changes: object) -> PythonSource:
    settings = {"minimum_bytes": 100, "validation_share": 0.2, "test_share": 0.3, **changes}
    return PythonSource(distributions=names, **settings)  # type: ignore[arg-type]


def entries(manifest: Manifest) -> list[Entry]:
    return [entry for split in SPLITS for entry in read_entries(manifest, split)]  # type: ignore[arg-type]


def test_near_duplicates_are_in_no_two_files_that_remain(run: Run, site: Path) -> None:
    """Guards against a test file that is a training file with a few lines changed."""
    files = {}
    for family in range(20):
        base = words(family, 60)
        for variant in range(4):
            lines = [*base]
            lines[variant] = f"changed = {variant}"
            lines[30 + 5 * variant :] = words(100 * family + variant, 30 - 5 * variant)[:variant]
            files[f"pkg/f{family}_{variant}.py"] = "\n".join(lines).encode()
    install(site, "pkg", files)
    manifest = run("inventory", InventoryJob(source=source("pkg")), "inventory")
    kept = entries(manifest)
    sets = {e.path: brute_shingles(files[e.path].decode()) for e in kept}
    assert all(brute_jaccard(sets[a], sets[b]) < 0.7 for a, b in itertools.combinations(sets, 2))
    dropped = set(files) - set(sets)
    assert dropped
    assert manifest.result["dropped"]["near_duplicate"] == len(dropped)
    rank = {"test": 0, "validation": 1, "train": 2}
    split = {e.path: rank[e.split] for e in kept}
    for path in dropped:  # nothing was dropped without a reason, and the evaluation's files stay
        text = brute_shingles(files[path].decode())
        alike = [split[p] for p, other in sets.items() if brute_jaccard(text, other) >= 0.7]
        own = rank[assign_split(source("pkg"), hashlib.sha256(files[path]).hexdigest())]
        assert alike
        assert min(alike) <= own


def test_split_follows_the_content_alone(run: Run, site: Path) -> None:
    """Guards against a split that moves when a distribution, a path or the seed changes."""
    content = {f"a/m{i}.py": "\n".join(words(i, 20)).encode() for i in range(40)}
    install(site, "a", content)
    install(site, "b", {f"b/{i}.py": "\n".join(words(900 + i, 20)).encode() for i in range(20)})
    first = run("inventory", InventoryJob(source=source("a")), "1")
    second = run("inventory", InventoryJob(source=source("b", "a")), "2")
    alone = {e.sha256: e.split for e in entries(first)}
    both = {e.sha256: e.split for e in entries(second)}
    assert len(alone) == 40
    assert set(alone.values()) == set(SPLITS)
    assert alone.items() <= both.items()


def test_split_shares_are_those_of_the_spec() -> None:
    """Guards against swapped thresholds: validation and test would trade sizes."""
    hashes = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(20_000)]
    found = [assign_split(source("x"), h) for h in hashes]
    assert found.count("test") / len(found) == pytest.approx(0.3, abs=0.015)
    assert found.count("validation") / len(found) == pytest.approx(0.2, abs=0.015)


def test_filters_are_counted_by_cause(run: Run, site: Path) -> None:
    """Guards against files that vanish from the count."""
    text = "\n".join(words(1, 20)).encode()
    install(
        site,
        "pkg",
        {
            "pkg/a.py": text,
            "pkg/copy.py": text,
            "pkg/short.py": b"x = 1\n",
            "pkg/latin.py": text + "\n# é".encode("latin-1"),
            "pkg/data.txt": text,
            "../bin/script.py": text + b"# machine-specific",
        },
    )
    manifest = run("inventory", InventoryJob(source=source("pkg")), "inventory")
    assert [e.path for e in entries(manifest)] == ["pkg/a.py"]
    assert manifest.result["dropped"] == {
        "short": 1,
        "not_utf8": 1,
        "exact_duplicate": 1,
        "near_duplicate": 0,
    }
    assert manifest.result["versions"] == {"pkg": "1.0"}


@pytest.mark.parametrize("damage", ["edit", "delete"])
def test_a_file_that_is_not_the_recorded_one_is_named(run: Run, site: Path, damage: str) -> None:
    """Guards against an edited installation giving another corpus under the same version."""
    install(site, "pkg", {"pkg/a.py": "\n".join(words(1, 20)).encode()})
    file = site / "pkg/a.py"
    if damage == "edit":
        file.write_bytes(file.read_bytes() + b"#")
    else:
        file.unlink()
    with pytest.raises(StageError, match=r"pkg: pkg/a\.py .*--force-reinstall pkg==1\.0"):
        run("inventory", InventoryJob(source=source("pkg")), "inventory")


def test_missing_distribution_is_named_with_the_remedy(run: Run) -> None:
    """Guards against a corpus that silently lacks a package."""
    with pytest.raises(StageError, match=r"'no-such-dist'.*pip install no-such-dist"):
        run("inventory", InventoryJob(source=source("no-such-dist")), "inventory")


def jsonl(**globs: tuple[str, ...]) -> JsonlSource:
    return JsonlSource(location="pile", **{split: globs.get(split, ()) for split in SPLITS})  # type: ignore[arg-type]


def lay_out(folder: Path) -> dict[str, bytes]:
    files = {f"{d}/{n}.jsonl": f'{{"text": "{d} {n}"}}\n'.encode() for d in "ab" for n in "21"}
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return files


def test_files_of_each_split(run: Run, tmp_path: Path) -> None:
    """Guards against files listed in an order that depends on the file system."""
    files = lay_out(tmp_path / "raw")
    spec = InventoryJob(
        source=jsonl(train=("a/2.jsonl", "a/*.jsonl"), test=("b/1.jsonl",)),
        folder=str(tmp_path / "raw"),
    )
    manifest = run("inventory", spec, "inventory")
    found = entries(manifest)
    assert [(e.path, e.split) for e in found] == [
        ("a/1.jsonl", "train"),
        ("a/2.jsonl", "train"),
        ("b/1.jsonl", "test"),
    ]
    assert all(hashlib.sha256(files[e.path]).hexdigest() == e.sha256 for e in found)
    assert manifest.result["splits"] == {
        "train": {"files": 2, "bytes": len(files["a/1.jsonl"]) + len(files["a/2.jsonl"])},
        "validation": {"files": 0, "bytes": 0},
        "test": {"files": 1, "bytes": len(files["b/1.jsonl"])},
    }
    assert str(tmp_path) not in (manifest.folder / "inventory.json").read_text()


LAYOUTS: list[tuple[type[FileSource], dict[Split, list[str]], list[str]]] = [
    # the kind of source, its files, and what lies beside them
    (
        Pile,
        {
            "train": ["train/00.jsonl.zst", "train/29.jsonl.zst"],
            "validation": ["val.jsonl.zst"],
            "test": ["test.jsonl.zst"],
        },
        ["SHA256.txt", "train/00.jsonl.zst.md5"],
    ),
    (
        SlimPajama,
        {
            "train": [f"train/chunk{i}/example_train_{i}.jsonl.zst" for i in (1, 10)],
            "validation": ["validation/chunk1/example_holdout_0.jsonl.zst"],
            "test": ["test/chunk5/example_holdout_7.jsonl.zst"],
        },
        ["README.md"],
    ),
    (
        RedPajama,
        {
            "train": [
                "arxiv/arxiv_0a.jsonl",
                "c4/c4-train.00000-of-01024.jsonl",
                "common_crawl/2019-30/en_head_0000.json.gz.dedup.classifier.jsonl.zst",
            ]
        },
        ["urls.txt", "arxiv/sha256.txt"],
    ),
    (
        ProofPile,
        {
            "train": ["train/proofpile_train_0.jsonl.gz"],
            "validation": ["dev/proofpile_dev.jsonl.gz"],
            "test": ["test/proofpile_test.jsonl.gz"],
        },
        ["proof-pile.py"],
    ),
    (
        PG19,
        {"train": ["train/1.txt"], "validation": ["validation/2.txt"], "test": ["test/3.txt"]},
        ["metadata.csv"],
    ),
    (
        GovReport,
        {"train": ["train.jsonl"], "validation": ["validation.jsonl"], "test": ["test.jsonl"]},
        ["dataset_infos.json"],
    ),
    (
        JsonlSource,
        {
            "train": ["train/a/b.jsonl.zst", "train-0.jsonl"],
            "validation": ["validation/x.jsonl.gz"],
            "test": ["test.jsonl"],
        },
        ["other.jsonl", "training.txt"],
    ),
    (
        ParquetSource,
        {"train": ["train/0.parquet", "train/a/1.parquet"], "test": ["test/0.parquet"]},
        ["train/_SUCCESS"],
    ),
    (
        ArrowSource,
        {"train": ["train/data-00000-of-00001.arrow"], "test": ["test/data-00000-of-00001.arrow"]},
        ["train/state.json", "dataset_dict.json"],
    ),
    (TextSource, {"train": ["train/a.txt", "train/b/c.txt.gz"], "test": ["test/d.txt.zst"]}, []),
]


@pytest.mark.parametrize(("kind", "files", "others"), LAYOUTS, ids=lambda v: getattr(v, "kind", ""))
def test_known_layouts_need_no_patterns(
    run: Run,
    tmp_path: Path,
    kind: type[FileSource],
    files: dict[Split, list[str]],
    others: list[str],
) -> None:
    """Guards against a known data set of which a folder, a split or a form is overlooked."""
    expected = {path: split for split, paths in files.items() for path in paths}
    hidden = [f".cache/{path}" for path in expected]
    hidden += [f"{path.rpartition('/')[0]}/._{path.rpartition('/')[2]}" for path in expected]
    for path in [*expected, *others, *hidden]:
        file = tmp_path / "raw" / path.strip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(path)
    spec = InventoryJob(source=kind(location="x"), folder=str(tmp_path / "raw"))  # type: ignore[arg-type]
    found = entries(run("inventory", spec, "inventory"))
    assert {e.path: e.split for e in found} == expected
    assert all(e.sha256 == hashlib.sha256(e.path.encode()).hexdigest() for e in found)


def test_a_part_of_a_data_set_is_listed_and_the_rest_recorded(run: Run, tmp_path: Path) -> None:
    """Guards against a partial download that is refused, and against one that passes for whole."""
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "val.jsonl.zst").write_bytes(b"")
    spec = InventoryJob(source=Pile(location="pile"), folder=str(tmp_path / "raw"))
    manifest = run("inventory", spec, "inventory")
    unmatched = {"train": ["train/*.jsonl.zst"], "test": ["test.jsonl.zst"]}
    assert manifest.result["unmatched"] == unmatched
    assert json.loads((manifest.folder / "inventory.json").read_text())["unmatched"] == unmatched
    assert [e.path for e in entries(manifest)] == ["val.jsonl.zst"]


def test_shipped_checksums_are_accepted(run: Run, tmp_path: Path) -> None:
    """Guards against terabytes hashed again, and against a checksum file that is ignored."""
    files = lay_out(tmp_path / "raw")
    (tmp_path / "raw/SHA256SUMS.txt").write_text(
        f"{'ab' * 32}  a/1.jsonl\n{'cd' * 32} *b/1.jsonl\n"
    )
    spec = InventoryJob(source=jsonl(train=("*/*.jsonl",)), folder=str(tmp_path / "raw"))
    assert {e.path: e.sha256 for e in entries(run("inventory", spec, "inventory"))} == {
        "a/1.jsonl": "ab" * 32,
        "b/1.jsonl": "cd" * 32,
        **{p: hashlib.sha256(files[p]).hexdigest() for p in ("a/2.jsonl", "b/2.jsonl")},
    }


@pytest.mark.parametrize(
    ("globs", "folder", "message"),
    [
        ({"train": ("*",)}, None, r"locations\.pile is not set"),
        ({"train": ("*",)}, "absent", r"locations\.pile in config\.yaml: .*absent is not a folder"),
        (
            {"train": ("c/*", "d/*"), "test": ("e",)},
            "raw",
            r"no file below .*raw matches \(train: c/\*, d/\*; test: e\); correct locations\.pile",
        ),
        ({"train": ("../raw/a/*",)}, "raw", r"leaves locations\.pile"),
        ({"train": ("/raw/a/*",)}, "raw", r"leaves locations\.pile"),
        ({"train": ("a/*",), "test": ("a/1*",)}, "raw", r"source\.test: .*in split train already"),
        ({"train": ("a/*", "notes.md")}, "raw", r"notes\.md: a file that ends so cannot be read"),
        ({}, "raw", "no pattern is given"),
    ],
)
def test_errors_name_the_key(
    run: Run, tmp_path: Path, globs: dict, folder: str | None, message: str
) -> None:
    """Guards against an empty or overlapping split passing as a corpus."""
    lay_out(tmp_path / "raw")
    (tmp_path / "raw/notes.md").write_text("notes")
    where = None if folder is None else str(tmp_path / folder)
    with pytest.raises(StageError, match=message):
        run("inventory", InventoryJob(source=jsonl(**globs), folder=where), "inventory")


def test_inventory_bytes_are_the_same_every_time(run: Run, site: Path) -> None:
    """Guards against an identity that changes between two runs of the same installation."""
    install(site, "a", {f"a/m{i}.py": "\n".join(words(i, 20)).encode() for i in range(9)})
    first = run("inventory", InventoryJob(source=source("a")), "1")
    second = run("inventory", InventoryJob(source=source("a")), "2")
    assert first.content == second.content
    assert json.loads((first.folder / "inventory.json").read_text())["kind"] == "python_source"
