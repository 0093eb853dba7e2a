"""Stage `inventory`: which files a source has, their sizes and hashes, and the split of each.

The content of an inventory is part of the identity of whatever is made from it; planning never
touches the data.
"""

import base64
import binascii
import csv
import dataclasses
import hashlib
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
from ropewalk.data.entries import INVENTORY, Entry
from ropewalk.data.spec import SPLITS, JsonlSource, PythonSource, Split

CHECKSUMS = "SHA256SUMS.txt"
_SPLIT_SEED = 0  # one split for every study: a test file of one is a test file of all


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Listing:
    entries: list[Entry]
    dropped: Mapping[str, int]  # files left out, by cause
    versions: Mapping[str, str]  # of distributions


def work(job: Job) -> tuple[list[Path], dict[str, Any]]:
    """List the files of the job's source into `inventory.json`.

    Raises:
        StageError: for a distribution, folder or file that is missing or not what its record says.
    """
    started = time.monotonic()
    source = job.spec.source
    if isinstance(source, PythonSource):
        listing = _python_listing(source)
    else:
        listing = _jsonl_listing(source, job.spec.folder)
    file = job.folder / INVENTORY
    write_json(
        file,
        {
            "kind": source.kind,
            "files": [plain(entry) for entry in listing.entries],
            "dropped": listing.dropped,
            "versions": listing.versions,
        },
    )
    files = {s: sum(e.split == s for e in listing.entries) for s in SPLITS}
    result = {
        "files": files,
        "bytes": {s: sum(e.bytes for e in listing.entries if e.split == s) for s in SPLITS},
        "dropped": dict(listing.dropped),
        "versions": dict(listing.versions),
    }
    counts = ", ".join(f"{n} {split}" for split, n in files.items())
    print(f"inventory: {counts} files in {time.monotonic() - started:.1f} s", flush=True)
    return [file], result


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


# JSON lines


def _jsonl_listing(source: JsonlSource, folder: str | None) -> _Listing:
    key = f"locations.{source.location}"
    if folder is None:
        raise StageError(f"{key} is not set in config.yaml: set it to the folder with the data")
    root = Path(folder)
    if not root.is_dir():
        raise StageError(f"{key} in config.yaml: {folder} is not a folder")
    patterns: dict[Split, Sequence[str]] = {
        "train": source.train,
        "validation": source.validation,
        "test": source.test,
    }
    shipped = _shipped_checksums(root)
    split_of: dict[Path, Split] = {}
    for split, globs in patterns.items():
        for glob in globs:
            for file in _matches(root, glob, key=key, split=split):
                if split_of.setdefault(file, split) != split:
                    raise StageError(
                        f"source.{split}: {glob!r} matches {file.relative_to(root)}, which is in "
                        f"split {split_of[file]} already; a file belongs to one split"
                    )
    if not split_of:
        raise StageError("source: train, validation and test list no files; give a glob pattern")
    entries = []
    for file, split in sorted(split_of.items()):
        path = file.relative_to(root).as_posix()
        sha256 = shipped.get(path) or sha256_file(file)
        entries.append(Entry(path=path, split=split, bytes=file.stat().st_size, sha256=sha256))
    return _Listing(entries=entries, dropped={}, versions={})


def _matches(root: Path, glob: str, *, key: str, split: Split) -> list[Path]:
    parts = PurePosixPath(glob)
    if parts.is_absolute() or ".." in parts.parts:
        raise StageError(f"source.{split}: {glob!r} leaves {key}; give a pattern below the folder")
    files = sorted(file for file in root.glob(glob) if file.is_file())
    if not files:
        raise StageError(
            f"source.{split}: no file matches {glob!r} below {root}; correct {key} in config.yaml "
            "or the pattern"
        )
    return files


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
