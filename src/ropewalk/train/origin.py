"""Where a run's initial weights lie, and whether they are those of its architecture."""

import dataclasses
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from transformers import AutoConfig

from ropewalk.base.stage import Job, StageError
from ropewalk.model.config import architecture_of
from ropewalk.model.spec import Architecture
from ropewalk.model.weights import Scratch, Source, files
from ropewalk.train.spec import PublishedWeights, Run, RunWeights, ScratchWeights, TrainJob

# Free to differ from the checkpoint: the window it was trained in, and how it was initialised.
NOT_COMPARED = ("context_tokens", "init_std")


def folder_of(job: Job) -> Path | None:
    """Return the folder the initial weights lie in, None if they are drawn here.

    Weights of the hub are downloaded into its own cache unless they are there.

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
            return _downloaded(hub, revision)
    raise TypeError(f"weights {spec.run.weights!r} are of no known kind")


def source(run: Run, folder: Path | None) -> Source:
    """Return the source of a run's initial weights; `folder` is that of `folder_of`.

    Raises:
        StageError: if the folder has no safetensors or another architecture than the run.
    """
    if folder is None:
        if not isinstance(run.weights, ScratchWeights):
            raise TypeError(f"weights {run.weights!r} need a folder")
        return Scratch(seed=run.weights.seed, std=run.architecture.init_std)
    found = architecture_of(AutoConfig.from_pretrained(folder, local_files_only=True))
    _refuse_other(run.architecture, found, folder)
    return files(folder)


def _refuse_other(wanted: Architecture, found: Architecture, folder: Path) -> None:
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
        path = huggingface_hub.snapshot_download(
            hub, revision=revision, allow_patterns=["*.safetensors", "*.json"]
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise StageError(
            f"weights.hub: {hub!r} (revision {revision or 'main'}) cannot be downloaded and is not "
            f"in the local cache: {error}. Give the machine network access, or put the files into "
            "a folder and use weights.location"
        ) from error
    return Path(path)
