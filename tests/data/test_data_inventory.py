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
from ropewalk.data.spec import SPLITS, InventoryJob, JsonlSource, PythonSource


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
    return JsonlSource(location="pile", **globs)  # type: ignore[arg-type]


def lay_out(folder: Path) -> dict[str, bytes]:
    files = {f"{d}/{n}.jsonl": f'{{"text": "{d} {n}"}}\n'.encode() for d in "ab" for n in "21"}
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return files


def test_jsonl_files_of_each_split(run: Run, tmp_path: Path) -> None:
    """Guards against files listed in an order that depends on the file system."""
    files = lay_out(tmp_path / "raw")
    spec = InventoryJob(
        source=jsonl(train=("a/*.jsonl",), test=("b/1.jsonl",)), folder=str(tmp_path / "raw")
    )
    manifest = run("inventory", spec, "inventory")
    found = entries(manifest)
    assert [(e.path, e.split) for e in found] == [
        ("a/1.jsonl", "train"),
        ("a/2.jsonl", "train"),
        ("b/1.jsonl", "test"),
    ]
    assert all(hashlib.sha256(files[e.path]).hexdigest() == e.sha256 for e in found)
    assert str(tmp_path) not in (manifest.folder / "inventory.json").read_text()


def test_shipped_checksums_are_accepted(run: Run, tmp_path: Path) -> None:
    """Guards against terabytes hashed again, and against a checksum file that is ignored."""
    lay_out(tmp_path / "raw")
    (tmp_path / "raw/SHA256SUMS.txt").write_text(f"{'ab' * 32}  a/1.jsonl\n")
    spec = InventoryJob(source=jsonl(train=("a/1.jsonl",)), folder=str(tmp_path / "raw"))
    assert entries(run("inventory", spec, "inventory"))[0].sha256 == "ab" * 32


@pytest.mark.parametrize(
    ("globs", "folder", "message"),
    [
        ({"train": ("*",)}, None, r"locations\.pile is not set"),
        ({"train": ("*",)}, "absent", r"locations\.pile in config\.yaml: .*absent is not a folder"),
        ({"train": ("c/*",)}, "raw", r"no file matches 'c/\*' .*locations\.pile"),
        ({"train": ("../raw/a/*",)}, "raw", r"leaves locations\.pile"),
        ({"train": ("a/*",), "test": ("a/1*",)}, "raw", r"source\.test: .*in split train already"),
        ({}, "raw", "list no files"),
    ],
)
def test_jsonl_errors_name_the_key(
    run: Run, tmp_path: Path, globs: dict, folder: str | None, message: str
) -> None:
    """Guards against an empty or overlapping split passing as a corpus."""
    lay_out(tmp_path / "raw")
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
