"""Manifests: what a stage made, from what, checked before it is used.

`manifest.json` is deterministic: equal inputs, spec and code give equal bytes. The facts a stage
found (counts and the like) stand in it beside what every manifest has. Everything that may differ
between two runs (times, host, attempts) goes to `provenance.json` beside it.
"""

import dataclasses
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ropewalk.base.canonical import digest, plain
from ropewalk.base.files import read_json, sha256_file, write_json

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
PROVENANCE = "provenance.json"


_PROVENANCE_KEYS: Mapping[str, type] = {  # what is compared before an artifact counts as made
    "recipe": str,
    "manifest": str,
    "inputs": dict,
    "code_files": dict,
    "libraries": dict,
    "files": dict,
    "rebuilds": int,
}


class ArtifactError(RuntimeError):
    """An artifact that is missing, damaged or of another format; the message names the remedy."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class File:
    """One file of an artifact."""

    path: str  # relative to the manifest's folder
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a stage left behind."""

    stage: str
    recipe: str  # see `recipe_id`: what this is
    content: str  # H(files, result): which bytes came out
    spec: Mapping[str, Any]
    inputs: Mapping[str, Mapping[str, str]]  # name -> {recipe, content}
    files: tuple[File, ...]
    result: Mapping[str, Any]  # counts and other facts, deterministic
    folder: Path = dataclasses.field(compare=False)

    def path(self, name: str) -> Path:
        """Return the path of one of the files; unknown names are a KeyError."""
        if name not in {file.path for file in self.files}:
            raise KeyError(f"{self.folder / MANIFEST} lists no file {name!r}")
        return self.folder / name


def recipe_id(stage: str, spec: Any, inputs: Mapping[str, Manifest]) -> str:
    """Return H(stage, spec slice, recipe ids of the inputs, what some of the inputs hold).

    Some bring in what no recipe describes: an inventory is its content, a calibration is what was
    measured, a tokenizer is its files (what else its manifest says, such as the version of an
    engine, changes no token).
    """
    parents = {name: [m.recipe, _held(m)] for name, m in inputs.items()}
    return digest({"stage": stage, "spec": plain(spec, identity=True), "inputs": parents})


def _held(manifest: Manifest) -> str:
    if manifest.stage in ("inventory", "calibrate"):
        return manifest.content
    if manifest.stage == "tokenizer":
        return digest([[file.path, file.sha256] for file in manifest.files])
    return ""


def write_manifest(
    folder: Path,
    *,
    stage: str,
    spec: Any,
    inputs: Mapping[str, Manifest],
    files: Iterable[Path | File],
    result: Mapping[str, Any],
) -> Manifest:
    """Hash `files` (inside `folder`) and write `folder/manifest.json` last, atomically.

    A `File` was hashed by whoever wrote it and is listed as it is.

    Raises:
        ValueError: for a fact in `result` whose name every manifest has already.
    """
    taken = {field.name for field in dataclasses.fields(Manifest)} | {"format_version"}
    if taken & set(result):
        raise ValueError(f"{stage}: {', '.join(sorted(taken & set(result)))}: name is taken")
    described = [file if isinstance(file, File) else _described(folder, file) for file in files]
    listed = tuple(sorted(described, key=lambda file: file.path))
    manifest = Manifest(
        stage=stage,
        recipe=recipe_id(stage, spec, inputs),
        content=digest({"files": [[f.path, f.sha256] for f in listed], "result": plain(result)}),
        spec=plain(spec, identity=True),
        inputs={
            name: {"recipe": m.recipe, "content": m.content} for name, m in sorted(inputs.items())
        },
        files=listed,
        result=plain(result),
        folder=folder,
    )
    fields = {f.name: getattr(manifest, f.name) for f in dataclasses.fields(manifest)}
    del fields["folder"], fields["result"]
    facts = {"format_version": FORMAT_VERSION, **plain(fields), **manifest.result}
    write_json(folder / MANIFEST, facts)
    return manifest


def _described(folder: Path, file: Path) -> File:
    return File(
        path=str(file.relative_to(folder)), bytes=file.stat().st_size, sha256=sha256_file(file)
    )


def read_manifest(path: Path, *, verify: bool = True) -> Manifest:
    """Read a manifest and, unless told otherwise, hash every file it lists.

    Raises:
        ArtifactError: naming the file and what to do, if anything differs from the manifest.
    """
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist: run `snakemake {path}` to make it")
    remedy = f"delete {path.parent} and run snakemake again"
    try:
        data = read_json(path)
    except ValueError as error:
        raise ArtifactError(f"{error}: {remedy}") from None
    if not isinstance(data, dict):
        raise ArtifactError(f"{path} is not a manifest: {remedy}")
    if data.get("format_version") != FORMAT_VERSION:
        raise ArtifactError(
            f"{path} has format_version {data.get('format_version')!r}; this version of ropewalk "
            f"reads {FORMAT_VERSION}: {remedy}"
        )
    del data["format_version"]
    own = {field.name for field in dataclasses.fields(Manifest)} - {"folder", "result"}
    try:
        data["files"] = tuple(File(**file) for file in data["files"])
        manifest = Manifest(
            **{key: data[key] for key in own},
            result={key: value for key, value in data.items() if key not in own},
            folder=path.parent,
        )
    except (KeyError, TypeError) as error:
        raise ArtifactError(f"{path} lacks a key ({error}): {remedy}") from None
    if verify:
        for file, problem in zip(
            manifest.files, damages(manifest.folder, manifest.files), strict=True
        ):
            if problem:
                raise ArtifactError(
                    f"{manifest.folder / file.path} {problem}: it was changed after it was made. "
                    "Run snakemake again: it rebuilds damaged files"
                )
        expected = digest(
            {"files": [[f.path, f.sha256] for f in manifest.files], "result": manifest.result}
        )
        if expected != manifest.content:
            raise ArtifactError(
                f"{path} does not agree with its own content hash: it was edited. "
                f"Delete {path} and run snakemake again"
            )
    return manifest


def read_provenance(folder: Path) -> dict[str, Any] | None:
    """Return the artifact's `provenance.json`, or None where it is absent, damaged or incomplete.

    Without it nothing says which code and libraries made the files, so they count as damaged.
    """
    try:
        data = read_json(folder / PROVENANCE)
    except (OSError, ValueError):
        return None
    whole = isinstance(data, dict) and all(
        isinstance(data.get(key), kind) for key, kind in _PROVENANCE_KEYS.items()
    )
    return data if whole else None


def damages(folder: Path, files: Iterable[File]) -> list[str | None]:
    """Return for each file how it differs from its manifest entry; files are read side by side."""
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        return list(pool.map(lambda file: damage(folder, file), files))


def damage(folder: Path, file: File) -> str | None:
    """Return how a file differs from its manifest entry, or None if it does not."""
    path = folder / file.path
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    if size != file.bytes:
        return f"has {size} bytes where its manifest says {file.bytes}"
    found = sha256_file(path)
    if found != file.sha256:
        return f"has sha256 {found[:16]}… where its manifest says {file.sha256[:16]}…"
    return None
