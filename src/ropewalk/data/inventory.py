"""Stage `inventory`: which files a source has, their sizes and hashes, and the split of each.

The content of an inventory is part of the identity of whatever is made from it; planning never
touches the data.
"""

import base64
import binascii
import concurrent.futures
import csv
import dataclasses
import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

from ropewalk.base.canonical import plain
from ropewalk.base.files import sha256_file, write_json
from ropewalk.base.rng import fraction
from ropewalk.base.stage import Job, StageError
from ropewalk.data.duplicates import near_duplicates, shingles
from ropewalk.data.entries import INVENTORY, Entry, Hub, format_of
from ropewalk.data.hub import hub_listing
from ropewalk.data.spec import SPLITS, FileSource, HubSource, PythonSource, Source, Split

CHECKSUMS = "SHA256SUMS.txt"
_SPLIT_SEED = 0  # one split for every study: a test file of one is a test file of all


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Listing:
    entries: list[Entry]
    dropped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    # files left out, by cause
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)  # of distributions
    unmatched: Mapping[Split, list[str]] = dataclasses.field(default_factory=dict)
    # patterns without a file, names of splits that a hub data set lacks
    hub: Hub | None = None


def work(job: Job) -> tuple[list[Path], dict[str, Any]]:
    """List the files of the job's source into `inventory.json`.

    Raises:
        StageError: for a distribution, folder or file that is missing or not what its record says.
    """
    started = time.monotonic()
    listing = _listing(job.spec.source, job.spec.folder)
    facts = {
        "dropped": dict(listing.dropped),
        "versions": dict(listing.versions),
        "unmatched": dict(listing.unmatched),
    }
    hub = {} if listing.hub is None else {"hub": plain(listing.hub)}
    file = job.folder / INVENTORY
    files = [plain(entry) for entry in listing.entries]
    write_json(file, {"kind": job.spec.source.kind, "files": files, **facts, **hub})
    splits = {split: _size(listing.entries, split) for split in SPLITS}
    counts = ", ".join(f"{size['files']} {split}" for split, size in splits.items())
    print(f"inventory: {counts} files in {time.monotonic() - started:.1f} s", flush=True)
    for split, names in listing.unmatched.items():
        print(f"inventory: nothing for {split}: {', '.join(names)}", flush=True)
    result = {"splits": splits, **facts}
    return [file], result if listing.hub is None else {**result, "commit": listing.hub.commit}


def _listing(source: Source, folder: str | None) -> _Listing:
    if isinstance(source, PythonSource):
        return _python_listing(source)
    if isinstance(source, HubSource):
        found = hub_listing(source)
        return _Listing(entries=found.entries, unmatched=found.unmatched, hub=found.hub)
    return _file_listing(source, folder)


def _size(entries: Sequence[Entry], split: str) -> dict[str, int]:
    sizes = [entry.bytes for entry in entries if entry.split == split]
    return {"files": len(sizes), "bytes": sum(sizes)}


# Python sources


def assign_split(source: PythonSource, sha256: str) -> Split:
    """Return the split of a file; it depends on the file's content and on nothing else."""
    place = _place(sha256)
    if place < source.test_share:
        return "test"
    if place < source.test_share + source.validation_share:
        return "validation"
    return "train"


def _place(sha256: str) -> float:
    return fraction(_SPLIT_SEED, "split", sha256)


def _python_listing(source: PythonSource) -> _Listing:
    """List the `.py` files that remain after the filters.

    Of duplicates, the file with the smallest split hash stays: the one in test before the one in
    validation before the one in train, because evaluation documents are the scarce ones.
    """
    versions: dict[str, str] = {}
    dropped: Counter[str] = Counter(short=0, not_utf8=0, exact_duplicate=0, near_duplicate=0)
    entries: dict[str, Entry] = {}  # by content
    texts: dict[str, Any] = {}  # shingles, by content
    for name in source.distributions:
        distribution = _distribution(name)
        versions[name] = distribution.version
        for path, content in _recorded_python_files(name, versions[name], distribution):
            sha256 = hashlib.sha256(content).hexdigest()
            if len(content) < source.minimum_bytes:
                dropped["short"] += 1
                continue
            if sha256 in entries:
                dropped["exact_duplicate"] += 1
                continue
            try:
                text = content.decode("utf-8")
            except UnicodeDecodeError:
                dropped["not_utf8"] += 1
                continue
            entries[sha256] = Entry(
                path=path,
                split=assign_split(source, sha256),
                bytes=len(content),
                sha256=sha256,
                distribution=name,
            )
            texts[sha256] = shingles(text)
    preferred = sorted(entries, key=lambda sha256: (_place(sha256), sha256))
    duplicate_of = near_duplicates([texts[s] for s in preferred], source.near_duplicate_jaccard)
    kept = [entries[s] for s, d in zip(preferred, duplicate_of, strict=True) if d is None]
    dropped["near_duplicate"] = len(preferred) - len(kept)
    return _Listing(
        entries=sorted(kept, key=lambda entry: entry.path),
        dropped=dict(dropped),
        versions=versions,
    )


def _distribution(name: str) -> metadata.Distribution:
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        raise StageError(
            f"source.distributions: {name!r} is not installed; install it with "
            f"`pip install {name}` in the environment that runs ropewalk, or take it off the list"
        ) from None


def _recorded_python_files(
    name: str, version: str, distribution: metadata.Distribution
) -> Iterator[tuple[str, bytes]]:
    """Yield `(path, content)` of every `.py` file, in path order, each checked against RECORD.

    Files outside site-packages are left out: scripts there are rewritten when they are installed
    and differ between machines.
    """
    record = distribution.read_text("RECORD")
    if record is None:
        raise StageError(
            f"source.distributions: {name!r} {version} was installed without a RECORD "
            f"of its files; install it from a wheel: `pip install --force-reinstall {name}`"
        )
    repair = f"run `pip install --force-reinstall {name}=={version}`"
    for path, recorded, _size in sorted(csv.reader(record.splitlines())):
        parts = PurePosixPath(path)
        if parts.suffix != ".py" or parts.is_absolute() or ".." in parts.parts:
            continue
        file = Path(str(distribution.locate_file(path)))
        if not file.is_file():
            raise StageError(f"{name}: {path} is in RECORD but not on disk; {repair}")
        content = file.read_bytes()
        algorithm, _, digest = recorded.partition("=")
        if algorithm != "sha256":
            raise StageError(f"{name}: {path} has no sha256 in RECORD ({recorded!r}); {repair}")
        if hashlib.sha256(content).digest() != _decode_digest(digest):
            raise StageError(f"{name}: {path} has not the sha256 of RECORD; {repair}")
        yield path, content


def _decode_digest(digest: str) -> bytes | None:
    """Return the bytes of an unpadded URL-safe base64 digest, None if it is not one."""
    try:
        return base64.urlsafe_b64decode(digest + "=" * (-len(digest) % 4))
    except binascii.Error:
        return None


# Files in a folder


def _file_listing(source: FileSource, folder: str | None) -> _Listing:
    key = f"locations.{source.location}"
    if folder is None:
        raise StageError(f"{key} is not set in config.yaml: set it to the folder with the data")
    root = Path(folder)
    if not root.is_dir():
        raise StageError(f"{key} in config.yaml: {folder} is not a folder")
    split_of: dict[Path, Split] = {}
    unmatched: dict[Split, list[str]] = {}
    for split, globs in _patterns(source).items():
        for glob in globs:
            matches = _matches(root, glob, key=key, split=split)
            if not matches:
                unmatched.setdefault(split, []).append(glob)
            for file in matches:
                if split_of.setdefault(file, split) != split:
                    raise StageError(
                        f"source.{split}: {glob!r} matches {file.relative_to(root)}, which is in "
                        f"split {split_of[file]} already; a file belongs to one split"
                    )
    if not split_of:
        tried = "; ".join(f"{s}: {', '.join(globs)}" for s, globs in unmatched.items())
        raise StageError(
            f"source: no file below {root} matches ({tried or 'no pattern is given'}); correct "
            f"{key} in config.yaml or the patterns in source.train, source.validation, source.test"
        )
    return _Listing(entries=_hashed(root, split_of), unmatched=unmatched)


def _patterns(source: FileSource) -> dict[Split, Sequence[str]]:
    return {"train": source.train, "validation": source.validation, "test": source.test}


def _matches(root: Path, glob: str, *, key: str, split: Split) -> list[Path]:
    """Return the files that a pattern matches; hidden ones never (`.cache/`, `._00.jsonl`)."""
    parts = PurePosixPath(glob)
    if parts.is_absolute() or ".." in parts.parts:
        raise StageError(f"source.{split}: {glob!r} leaves {key}; give a pattern below the folder")
    return [file for file in root.glob(glob) if not _hidden(file, root) and file.is_file()]


def _hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(root).parts)


def _hashed(root: Path, split_of: Mapping[Path, Split]) -> list[Entry]:
    """Return the entries in path order; hashing is most of the work, so all cores share it."""
    paths = {file.relative_to(root).as_posix(): file for file in split_of}
    for path in paths:
        format_of(path)  # now, not after hours of hashing
    shipped = _shipped_checksums(root)
    rest = [path for path in paths if path not in shipped]
    size = sum(paths[path].stat().st_size for path in rest)
    if rest:
        print(f"inventory: hashing {len(rest)} files, {size / 1e9:.2f} GB", flush=True)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        hashes = dict(zip(rest, pool.map(sha256_file, map(paths.__getitem__, rest)), strict=True))
    return [
        Entry(
            path=path,
            split=split_of[file],
            bytes=file.stat().st_size,
            sha256=shipped.get(path) or hashes[path],
        )
        for path, file in sorted(paths.items())
    ]


def _shipped_checksums(root: Path) -> dict[str, str]:
    """Return `{path: sha256}` of the checksum file that came with the data, if one did.

    Hashing terabytes again only to plan is waste; the readers check the hash as they read.
    """
    file = root / CHECKSUMS
    if not file.is_file():
        return {}
    sums = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        sha256, _, path = line.partition(" ")
        path = path.lstrip(" *").removeprefix("./")
        if len(sha256) != 64 or not set(sha256.lower()) <= set("0123456789abcdef") or not path:
            raise StageError(f"{file}:{number}: {line!r} is not `<sha256>  <path>`")
        sums[path] = sha256.lower()
    return sums
