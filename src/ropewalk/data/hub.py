"""Data sets of the Hugging Face hub: their files at one commit, and the records in them.

The inventory resolves the revision to a commit and asks `datasets` which files the configuration
has and how they are read; the records of a file are then streamed from that commit, without
looking at the rest of the data set again. A file that lies in the local cache of the hub is read
from there. Under `HF_HUB_OFFLINE=1` nothing else is tried.
"""

import contextlib
import dataclasses
import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ropewalk.base.files import sha256_file
from ropewalk.base.stage import StageError
from ropewalk.data.entries import Entry, Hub
from ropewalk.data.spec import HubSource, Split

_BATCH_ROWS = 64  # of a Parquet file, decoded at once
_NOT_OPTIONS = {"name", "version", "data_dir", "data_files", "description", "features"}
_SHA256, _GIT_BLOB = re.compile("[0-9a-f]{64}"), re.compile("[0-9a-f]{40}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HubListing:
    """What the inventory finds out about a data set."""

    hub: Hub
    entries: list[Entry]
    unmatched: Mapping[Split, list[str]]  # splits the data set does not have


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Blob:
    bytes: int
    sha256: str = ""
    git_blob: str | None = None


def hub_listing(source: HubSource) -> HubListing:
    """List the data files of a hub data set, at the commit that its revision is now.

    Offline, the files are those of the local cache: a download of the whole that broke off is
    refused, but nothing tells of files that were never asked for.

    Raises:
        StageError: if the data set, revision, configuration or all splits do not exist, cannot be
            accessed, or (offline) are not in the cache.
    """
    _check_name(source.name)
    import datasets
    import huggingface_hub

    with _explained(source, source.revision), tempfile.TemporaryDirectory() as cache:
        if huggingface_hub.is_offline_mode():
            root = _snapshot(source, source.revision)
            commit, location, prefix = root.name, str(root), f"{root}/"
            blobs = {p: _cached_blob(root / p) for p in _files_below(root)}
        else:
            api = huggingface_hub.HfApi()
            commit = str(api.dataset_info(source.name, revision=source.revision).sha)
            location = f"hf://datasets/{source.name}"
            prefix = f"{location}@{commit}/"
            blobs = _remote_blobs(api, source.name, commit)
        builder = datasets.load_dataset_builder(
            location, source.configuration, revision=commit, cache_dir=cache
        )
    found = {str(split): list(files) for split, files in (builder.config.data_files or {}).items()}
    entries, unmatched = _entries(source, found, prefix, blobs)
    features = builder.info.features
    hub = Hub(
        commit=commit,
        builder=builder.name,
        options=_options(builder.config),
        features=json.dumps(features.to_dict()) if features else None,
    )
    return HubListing(hub=hub, entries=entries, unmatched=unmatched)


def hub_rows(
    source: HubSource, entry: Entry, first: int, choose: Callable[[Sequence[str]], list[str]]
) -> Iterator[Any]:
    """Yield the rows of one file of a hub data set, from number `first` on, as pyarrow tables.

    `choose` picks the columns to read from those there are. A file in the local cache is checked
    before it is read. A streamed one is not: the commit says which bytes the hub sends.

    Raises:
        StageError: naming the file, if it cannot be had or read.
    """
    if entry.hub is None:
        raise StageError(
            f"{entry.path}: the inventory does not say how it is read; make the inventory again"
        )
    import datasets
    from datasets.data_files import DataFilesList

    hub = entry.hub
    place = _place(source, entry, hub.commit)
    files = {"train": DataFilesList([place], [(hub.commit,)])}  # as it is: never a pattern
    features = hub.features and datasets.Features.from_dict(json.loads(hub.features))
    options = dict(hub.options)
    with _explained(source, hub.commit, entry.path), tempfile.TemporaryDirectory() as cache:

        def load() -> Any:
            return datasets.load_dataset(
                hub.builder,
                data_files=files,
                features=features,
                split="train",
                streaming=True,
                cache_dir=cache,  # it leaves a lock for every file
                **options,
            )

        data = load()
        columns = None if data.column_names is None else choose(data.column_names)
        if hub.builder == "parquet":  # else whole row groups with all columns are fetched
            options["columns"] = columns
            options.setdefault("batch_size", _BATCH_ROWS)
            data = load()
        for table in data.skip(first).with_format("arrow").iter(batch_size=1):
            columns = columns or choose(table.column_names)
            yield table.select(columns)


def _check_name(name: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        valid = False
    else:
        valid = name.count("/") == 1
    if not valid:
        raise StageError(
            f"source.name: {name!r} is not a data set of the hub; give `organisation/name`. Files "
            "on disk have kinds of their own: jsonl, parquet, arrow, text"
        )


@contextlib.contextmanager
def _explained(source: HubSource, revision: str, path: str = "") -> Iterator[None]:
    """Turn whatever the libraries raise into one error that names the data set and the remedy."""
    where = f"hub data set {source.name} at {revision}" + (f", file {path}" if path else "")
    try:
        yield
    except StageError:
        raise
    except StopIteration:
        raise StageError(f"{where}: it holds no record") from None
    except Exception as error:  # they raise of every kind: http, OSError, ValueError, pyarrow's
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = f"{type(error).__name__}: {' '.join(lines)[:400]}"
        raise StageError(
            f"{where}: {reason}. Check source.name, source.revision and source.configuration; a "
            "gated data set needs `hf auth login`; without network, download it first and set "
            f"HF_HUB_OFFLINE=1: {_download(source, revision)}"
        ) from error


def _download(source: HubSource, revision: str) -> str:
    return f"`hf download {source.name} --repo-type dataset --revision {revision}`"


def _snapshot(source: HubSource, revision: str) -> Path:
    """Return the folder of the local cache that holds the data set."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = huggingface_hub.snapshot_download(
            source.name, repo_type="dataset", revision=revision, local_files_only=True
        )
    except LocalEntryNotFoundError as error:
        raise StageError(
            f"hub data set {source.name} at {revision} is not, or not whole, in the local cache "
            "and HF_HUB_OFFLINE is set: download it where there is network with "
            f"{_download(source, revision)}"
        ) from error
    return Path(folder).resolve()


def _place(source: HubSource, entry: Entry, commit: str) -> str:
    """Return where to read a file: in the local cache if it is there, else on the hub."""
    import huggingface_hub

    cached = huggingface_hub.try_to_load_from_cache(
        source.name, entry.path, revision=commit, repo_type="dataset"
    )
    if isinstance(cached, str):
        _check_cached(Path(cached), entry)
        return cached
    if huggingface_hub.is_offline_mode():
        raise StageError(
            f"hub data set {source.name} at {commit}: {entry.path} is not in the local cache and "
            f"HF_HUB_OFFLINE is set: download it where there is network with "
            f"{_download(source, commit)}"
        )
    return f"hf://datasets/{source.name}@{commit}/{entry.path}"


def _check_cached(file: Path, entry: Entry) -> None:
    if entry.git_blob is None:
        same = sha256_file(file) == entry.sha256
    else:
        content = file.read_bytes()
        header = f"blob {len(content)}\0".encode()
        same = hashlib.sha1(header + content, usedforsecurity=False).hexdigest() == entry.git_blob
    if not same:
        raise StageError(
            f"{file} is not the file of the inventory: the local cache is damaged. Delete "
            f"{file.resolve()} and download it again"
        )


def _remote_blobs(api: Any, name: str, commit: str) -> dict[str, _Blob]:
    from huggingface_hub.hf_api import RepoFile

    tree = api.list_repo_tree(name, recursive=True, revision=commit, repo_type="dataset")
    return {
        item.path: _Blob(bytes=item.size, git_blob=item.blob_id)
        if item.lfs is None
        else _Blob(bytes=item.lfs.size, sha256=item.lfs.sha256)
        for item in tree
        if isinstance(item, RepoFile)
    }


def _files_below(root: Path) -> list[str]:
    return [file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file()]


def _cached_blob(file: Path) -> _Blob:
    """Return what the cache calls a file's content: the name it has there is the hash."""
    size, name = file.stat().st_size, file.resolve().name
    if _SHA256.fullmatch(name):
        return _Blob(bytes=size, sha256=name)
    if _GIT_BLOB.fullmatch(name):
        return _Blob(bytes=size, git_blob=name)
    return _Blob(bytes=size, sha256=sha256_file(file))


def _entries(
    source: HubSource, found: Mapping[str, list[str]], prefix: str, blobs: Mapping[str, _Blob]
) -> tuple[list[Entry], dict[Split, list[str]]]:
    where = f"hub data set {source.name} at {source.revision}"
    split_of: dict[str, Split] = {}
    unmatched: dict[Split, list[str]] = {}
    names: dict[Split, str | None] = {
        "train": source.train,
        "validation": source.validation,
        "test": source.test,
    }
    for split, name in names.items():
        if name is None:
            continue
        if not found.get(name):
            unmatched[split] = [name]
        for file in found.get(name, []):
            path = file.removeprefix(prefix)
            if path not in blobs:
                raise StageError(f"{where}: {file} is no plain file of it, so it cannot be read")
            if split_of.setdefault(path, split) != split:
                raise StageError(
                    f"{where}: {path} is in split {split_of[path]} and in split {split}; a file "
                    "belongs to one: set source.train, source.validation or source.test to null"
                )
    if not split_of:
        asked = ", ".join(name for names in unmatched.values() for name in names) or "(none named)"
        raise StageError(
            f"{where} has no files of the splits {asked}; its splits are "
            f"{', '.join(found) or 'none'}: name them in source.train, source.validation and "
            "source.test"
        )
    entries = [
        Entry(path=path, split=split, **dataclasses.asdict(blobs[path]))
        for path, split in sorted(split_of.items())
    ]
    return entries, unmatched


def _options(config: Any) -> dict[str, Any]:
    """Return the settings of a builder that differ from its defaults."""
    default = type(config)()
    settings = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    return {
        name: value
        for name, value in settings.items()
        if name not in _NOT_OPTIONS and value != getattr(default, name)
    }
