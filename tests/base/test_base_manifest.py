"""An artifact is what its manifest says, or it is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from ropewalk.base.canonical import EXECUTION
from ropewalk.base.manifest import (
    MANIFEST,
    PROVENANCE,
    ArtifactError,
    Manifest,
    read_manifest,
    read_provenance,
    recipe_id,
    write_manifest,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    length: int
    device: str = dataclasses.field(default="cpu", metadata=EXECUTION)


def make(folder: Path, *, text: str = "tokens", **changes: Any) -> Manifest:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sub").mkdir(exist_ok=True)
    (folder / "sub" / "shard.bin").write_text(text)
    settings: dict[str, Any] = {
        "stage": "pack",
        "spec": Spec(length=4),
        "inputs": {},
        "files": [folder / "sub" / "shard.bin"],
        "result": {"documents": 3},
    }
    return write_manifest(folder, **{**settings, **changes})


def test_a_manifest_reads_back_as_it_was_written(tmp_path: Path) -> None:
    """Guards against a field that is lost between two stages."""
    written = make(tmp_path, inputs={"tokens": make(tmp_path / "up")})
    read = read_manifest(tmp_path / MANIFEST)
    assert read == written
    assert read.path("sub/shard.bin").read_text() == "tokens"
    with pytest.raises(KeyError, match="no file 'other'"):
        read.path("other")


def test_equal_work_gives_equal_bytes(tmp_path: Path) -> None:
    """Guards against times, hosts or orders in what is compared between two reproductions."""
    make(tmp_path / "a")
    make(tmp_path / "b")
    assert (tmp_path / "a" / MANIFEST).read_bytes() == (tmp_path / "b" / MANIFEST).read_bytes()


def test_the_recipe_is_stage_spec_and_recipes_of_the_inputs(tmp_path: Path) -> None:
    """Guards against one identity for two different things, and against two for one."""
    up = make(tmp_path / "up", stage="tokenize")
    base = recipe_id("pack", Spec(length=4), {"tokens": up})
    assert base == recipe_id("pack", Spec(length=4, device="gpu"), {"tokens": up})
    others = [
        recipe_id("tokenize", Spec(length=4), {"tokens": up}),
        recipe_id("pack", Spec(length=8), {"tokens": up}),
        recipe_id("pack", Spec(length=4), {}),
        recipe_id("pack", Spec(length=4), {"filler": up}),
        recipe_id(
            "pack",
            Spec(length=4),
            {"tokens": make(tmp_path / "up8", stage="tokenize", spec=Spec(length=8))},
        ),
    ]
    assert len({base, *others}) == 6


def test_only_the_content_of_inventories_is_in_the_recipe(tmp_path: Path) -> None:
    """Guards against source files that change unnoticed, and against bytes in other identities."""
    for stage, equal in (("tokenize", True), ("inventory", False), ("tokenizer", False)):
        a = make(tmp_path / f"{stage}-a", stage=stage, text="one")
        b = make(tmp_path / f"{stage}-b", stage=stage, text="two")
        assert a.recipe == b.recipe
        assert a.content != b.content
        same = recipe_id("x", {}, {"in": a}) == recipe_id("x", {}, {"in": b})
        assert same == equal


def test_facts_beside_the_files_of_a_tokenizer_are_no_part_of_what_is_made_with_it(
    tmp_path: Path,
) -> None:
    """Guards against trainings that an upgrade of an engine with equal tokens would orphan."""
    for stage, equal in (("tokenizer", True), ("inventory", False)):
        a = make(tmp_path / f"{stage}-a", stage=stage, result={"engine": "1"})
        b = make(tmp_path / f"{stage}-b", stage=stage, result={"engine": "2"})
        assert a.content != b.content
        assert (recipe_id("x", {}, {"in": a}) == recipe_id("x", {}, {"in": b})) == equal


def edit(folder: Path, key: str, value: Any) -> None:
    data = json.loads((folder / MANIFEST).read_text())
    data[key] = value
    if value is None:
        del data[key]
    (folder / MANIFEST).write_text(json.dumps(data))


def flip_a_byte(folder: Path) -> None:
    shard = folder / "sub" / "shard.bin"
    content = bytearray(shard.read_bytes())
    content[2] ^= 1
    shard.write_bytes(content)


DAMAGE: dict[str, tuple[Any, str, str]] = {
    "missing": (lambda f: (f / "sub" / "shard.bin").unlink(), "sub/shard.bin is missing", "again"),
    "size": (
        lambda f: (f / "sub" / "shard.bin").write_text("token"),
        "sub/shard.bin has 5 bytes where its manifest says 6",
        "again",
    ),
    "one byte": (flip_a_byte, "sub/shard.bin has sha256", "again"),
    "fact": (lambda f: edit(f, "documents", 4), "manifest.json does not agree", "Delete"),
    "content": (lambda f: edit(f, "content", "0" * 16), "manifest.json", "Delete"),
    "version": (lambda f: edit(f, "format_version", 1), "format_version 1", "delete"),
    "no version": (lambda f: (f / MANIFEST).write_text("{}"), "format_version None", "delete"),
    "half": (lambda f: (f / MANIFEST).write_text('{"format_'), "not valid JSON", "delete"),
    "list": (lambda f: (f / MANIFEST).write_text("[]"), "not a manifest", "delete"),
    "added fact": (lambda f: edit(f, "colour", "red"), "manifest.json does not agree", "Delete"),
    "lost key": (lambda f: edit(f, "recipe", None), "lacks a key ('recipe')", "delete"),
    "gone": (lambda f: (f / MANIFEST).unlink(), "manifest.json does not exist", "run `snakemake"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_every_kind_of_damage_is_refused_with_file_and_remedy(tmp_path: Path, kind: str) -> None:
    """Guards against numbers computed from files that are not what they were made as."""
    damage, message, remedy = DAMAGE[kind]
    make(tmp_path)
    read_manifest(tmp_path / MANIFEST)
    damage(tmp_path)
    with pytest.raises(ArtifactError) as caught:
        read_manifest(tmp_path / MANIFEST)
    assert message in str(caught.value)
    assert remedy in str(caught.value)
    assert str(tmp_path) in str(caught.value)


WHOLE: dict[str, Any] = {
    "recipe": "r",
    "manifest": "{}",
    "inputs": {},
    "code_files": {},
    "libraries": {},
    "files": {},
    "rebuilds": 0,
}


@pytest.mark.parametrize("key", [None, *WHOLE])
@pytest.mark.parametrize("value", [..., [], "text"], ids=["absent", "list", "text"])
def test_provenance_is_whole_or_none(tmp_path: Path, key: str | None, value: object) -> None:
    """Guards against a record with a hole that later raises in the middle of a plan."""
    assert read_provenance(tmp_path) is None
    (tmp_path / PROVENANCE).write_text(json.dumps(WHOLE))
    assert read_provenance(tmp_path) == WHOLE
    if key is None:
        (tmp_path / PROVENANCE).write_text("[" if value is ... else json.dumps(value))
        assert read_provenance(tmp_path) is None
        return
    data = {k: v for k, v in {**WHOLE, key: value}.items() if v is not ...}
    (tmp_path / PROVENANCE).write_text(json.dumps(data))
    fits = isinstance(value, type(WHOLE[key]))
    assert read_provenance(tmp_path) == (data if fits else None)
