"""Where a run's initial weights lie, which they are, and whether they are of its architecture."""

import dataclasses
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from ropewalk.base.canonical import plain
from ropewalk.base.files import read_json, sha256_file
from ropewalk.base.stage import Job, StageError
from ropewalk.model.config import architecture_of, read_config
from ropewalk.model.pickles import weight_files
from ropewalk.model.spec import Architecture
from ropewalk.model.weights import Scratch, Source, files
from ropewalk.train.spec import PublishedWeights, Run, RunWeights, ScratchWeights, TrainJob

RECORD = "origin.json"
# Free to differ from the checkpoint: the window it was trained in, and how it was initialised.
NOT_COMPARED = ("context_tokens", "init_std")
_COMMIT, _SHA256 = re.compile("[0-9a-f]{40}"), re.compile("[0-9a-f]{64}")
_SAFE, _PICKLED = ("*.safetensors", "*.json"), ("pytorch_model*.bin", "*.json")
_NOT = ("*/*", "consolidated*")  # other forms of the same weights that some repositories have


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origin:
    """Which weights somebody published a run begins with."""

    location: str | None = None  # the name under `locations`, or the three below
    hub: str | None = None
    revision: str | None = None  # as it was asked for; None: the main one
    commit: str | None = None  # which commit of the repository that was
    files: Mapping[str, str]  # name -> sha256

    @property
    def where(self) -> str:
        """Return the place in words."""
        if self.hub is None:
            return f"location {self.location!r}"
        return f"{self.hub} of the hub, revision {self.revision or 'main'}, commit {self.commit}"


def folder_of(job: Job, record: Path) -> Path | None:
    """Return the folder the initial weights lie in, None if they are drawn here.

    Weights of the hub are downloaded into its own cache unless they are there. Which commit a
    revision is, is asked once: where `record` knows it, it stays that one.

    Raises:
        StageError: naming the folder or repository that cannot be had.
    """
    spec: TrainJob = job.spec
    match spec.run.weights:
        case ScratchWeights():
            return None
        case RunWeights():
            return job.input("run").folder / "final"
        case PublishedWeights(hub=None, location=location):
            if spec.folder is None or not Path(spec.folder).is_dir():
                raise StageError(
                    f"weights.location: {location!r} stands for {spec.folder!r}, which is not a "
                    "folder; set it under `locations` in config.yaml"
                )
            return Path(spec.folder)
        case PublishedWeights(hub=str() as hub, revision=revision):
            known = recorded(record)
            same = known is not None and (known["hub"], known["revision"]) == (hub, revision)
            return _downloaded(hub, known["commit"] if known and same else revision)
    raise TypeError(f"weights {spec.run.weights!r} are of no known kind")


def recorded(record: Path) -> dict[str, Any] | None:
    """Return the `Origin` that was written down, as plain data; None where there is none."""
    return read_json(record) if record.is_file() else None


def origin_of(published: PublishedWeights, folder: Path) -> Origin:
    """Return which weights lie in a folder, every file hashed.

    Raises:
        StageError: if there are none, or the local cache of the hub holds other bytes than the hub
            said they are.
    """
    found = weight_files(folder)
    with ThreadPoolExecutor(4) as pool:
        hashes = dict(zip(found, pool.map(sha256_file, found), strict=True))
    for file, sha256 in hashes.items() if published.hub is not None else ():
        blob = file.resolve()  # the cache calls large files by their hash
        if _SHA256.fullmatch(blob.name) and blob.name != sha256:
            raise StageError(
                f"{file} is not the file of {published.hub}: the local cache is damaged. Delete "
                f"{blob} and start again"
            )
    commit = folder.name if published.hub and _COMMIT.fullmatch(folder.name) else None
    return Origin(
        location=published.location,
        hub=published.hub,
        revision=published.revision,
        commit=commit,
        files={file.name: sha256 for file, sha256 in hashes.items()},
    )


def fact(record: Path) -> dict[str, Any]:
    """Return the fact `origin` of a run for its manifest; nothing for weights of our own."""
    known = recorded(record)
    if known is None:
        return {}
    return {"origin": {key: value for key, value in plain(known).items() if value is not None}}


def source(run: Run, folder: Path | None) -> Source:
    """Return the source of a run's initial weights; `folder` is that of `folder_of`.

    Raises:
        StageError: if the folder has no safetensors or another architecture than the run.
    """
    if folder is None:
        if not isinstance(run.weights, ScratchWeights):
            raise TypeError(f"weights {run.weights!r} need a folder")
        return Scratch(seed=run.weights.seed, std=run.architecture.init_std)
    refuse_other(run.architecture, folder)
    return files(folder)


def refuse_other(wanted: Architecture, folder: Path) -> None:
    """Raise StageError, naming the setting, if a checkpoint has another architecture."""
    found = architecture_of(read_config(folder))
    for field in dataclasses.fields(Architecture):
        mine, theirs = getattr(wanted, field.name), getattr(found, field.name)
        if field.name == "kv_heads":
            mine, theirs = mine or wanted.heads, theirs or found.heads
        if field.name not in NOT_COMPARED and mine != theirs:
            raise StageError(
                f"architecture.{field.name}: the run says {mine!r}, the checkpoint in {folder} "
                f"says {theirs!r}; they must be equal"
            )


def _downloaded(hub: str, revision: str | None) -> Path:
    try:
        folder = _snapshot(hub, revision, _SAFE)
        if not list(folder.glob("*.safetensors")):
            folder = _snapshot(hub, revision, _PICKLED)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise StageError(
            f"weights.hub: {hub!r} (revision {revision or 'main'}) cannot be downloaded and is not "
            f"in the local cache: {error}. Give the machine network access, or put the files into "
            "a folder and use weights.location"
        ) from error
    return folder


def _snapshot(hub: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    return Path(
        huggingface_hub.snapshot_download(
            hub, revision=revision, allow_patterns=list(patterns), ignore_patterns=list(_NOT)
        )
    )
