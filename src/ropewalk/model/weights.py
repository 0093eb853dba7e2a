"""Where initial weights come from: drawn from addresses, or read from safetensors files.

A source hands out rows of one named tensor at a time, so that a process that holds a shard of a
model reads or keeps only its rows.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open

from ropewalk.base.files import read_json
from ropewalk.base.rng import generator
from ropewalk.base.stage import StageError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# Buffers that old exports of these families wrote among the weights; they are recomputed here.
RECOMPUTED = (
    ".rotary_emb.inv_freq",
    ".attention.bias",
    ".attention.masked_bias",
)
# transformers renamed GPT-NeoX's output matrix in its models, not in checkpoint files.
_HEAD, _NEOX_HEAD = "lm_head.weight", "embed_out.weight"


def stored_name(family: str, name: str) -> str:
    """Return what a parameter is called in the files of its family."""
    return _NEOX_HEAD if family == "gpt_neox" and name == _HEAD else name


class Source(Protocol):
    """Something that knows the weights of a model by name."""

    def check(self, shapes: Mapping[str, torch.Size]) -> None:
        """Raise StageError unless exactly these tensors, in these shapes, can be read."""

    def rows(self, name: str, shape: torch.Size, start: int, stop: int) -> torch.Tensor:
        """Return rows start to stop of the tensor `name` (full shape `shape`), on the CPU."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scratch:
    """Random weights as transformers initialises them: matrices N(0, std), norms 1, biases 0.

    Every tensor is drawn from its own address (seed, name): its values depend neither on the other
    tensors nor on the number of processes.
    """

    seed: int
    std: float

    def check(self, shapes: Mapping[str, torch.Size]) -> None:
        """Accept every model: each of its tensors can be drawn."""

    def rows(self, name: str, shape: torch.Size, start: int, stop: int) -> torch.Tensor:
        """Return rows of a tensor, fp32; matrices are drawn whole and then cut."""
        if name.endswith(".bias"):
            return torch.zeros((stop - start, *shape[1:]))
        if len(shape) == 1:
            return torch.ones(stop - start)
        drawn = generator(self.seed, f"weights/{name}").standard_normal(shape, dtype="float32")
        return torch.from_numpy(drawn[start:stop]) * self.std


@dataclasses.dataclass(frozen=True, kw_only=True)
class Files:
    """The safetensors files of a folder; the file of a tensor is opened when it is read."""

    files: Mapping[str, Path]  # tensor, as the model calls it -> file
    folder: Path

    def check(self, shapes: Mapping[str, torch.Size]) -> None:
        """Compare names and shapes with those of a model.

        Raises:
            StageError: naming the folder and the first tensor that is missing, unexpected or of
                another shape.
        """
        check_names(self.folder, self.files, shapes)
        with contextlib.ExitStack() as stack:
            opened = {
                path: stack.enter_context(safe_open(path, framework="pt"))
                for path in {self.files[name] for name in shapes}
            }
            for name, shape in shapes.items():
                found = _slice(opened[self.files[name]], name).get_shape()
                check_shape(self.folder, name, found, shape)

    def rows(self, name: str, shape: torch.Size, start: int, stop: int) -> torch.Tensor:
        """Return rows of a tensor in the type of the file, reading only these rows."""
        with safe_open(self.files[name], framework="pt") as opened:
            rows: torch.Tensor = _slice(opened, name)[start:stop]
        if len(rows) != stop - start or rows.shape[1:] != shape[1:]:
            raise StageError(f"{self.folder}: {name} has rows {tuple(rows.shape)}, not {shape}")
        return rows

    def dtype(self) -> str:
        """Return the type of the first tensor, as safetensors spells it: `F32`, `BF16`, `F16`."""
        name, path = min(self.files.items())
        with safe_open(path, framework="pt") as opened:
            return str(_slice(opened, name).get_dtype())


def check_names(folder: Path, found: Iterable[str], wanted: Iterable[str]) -> None:
    """Raise StageError, naming the folder and the first tensor, unless the names are a model's."""
    has, needs = set(found), set(wanted)
    missing = sorted(needs - has)
    # A tied output matrix is written by some exporters although it is the embedding.
    unexpected = sorted(n for n in has - needs if not n.endswith(RECOMPUTED) and n != _HEAD)
    if missing or unexpected:
        what = f"lacks {missing[0]}" if missing else f"has the unexpected {unexpected[0]}"
        raise StageError(
            f"{folder}: {what} ({len(missing)} missing, {len(unexpected)} unexpected tensors); "
            "the run's architecture must be that of the checkpoint"
        )


def check_shape(folder: Path, name: str, found: Iterable[int], wanted: Iterable[int]) -> None:
    """Raise StageError for a tensor of another shape than the model's."""
    has, needs = list(found), list(wanted)
    if has != needs:
        raise StageError(f"{folder}: {name} has shape {has}, the run's architecture says {needs}")


def model_name(stored: str) -> str:
    """Return what a model calls a tensor of its files; the inverse of `stored_name`."""
    return _HEAD if stored == _NEOX_HEAD else stored


def files(folder: Path) -> Files:
    """Return the weights in a Hugging Face folder, in one file or in several with an index.

    Raises:
        StageError: if the folder has no safetensors weights.
    """
    index, single = folder / INDEX, folder / SINGLE
    if index.is_file():
        mapping = {
            name: folder / Path(file).name for name, file in read_json(index)["weight_map"].items()
        }
        absent = sorted({path for path in mapping.values() if not path.is_file()})
        if absent:
            raise StageError(f"{index} names {absent[0].name}, which does not exist in {folder}")
        return Files(files=_renamed(mapping), folder=folder)
    if single.is_file():
        with safe_open(single, framework="pt") as opened:
            return Files(files=_renamed(dict.fromkeys(opened.keys(), single)), folder=folder)
    raise StageError(
        f"{folder} has neither {SINGLE} nor {INDEX}: only safetensors checkpoints are read; "
        "convert others with transformers' save_pretrained, or adopt them (ropewalk train --adopt)"
    )


def _renamed(mapping: Mapping[str, Path]) -> dict[str, Path]:
    return {model_name(name): path for name, path in mapping.items()}


def _slice(opened: Any, name: str) -> Any:
    stored = _NEOX_HEAD if name == _HEAD and _NEOX_HEAD in opened.keys() else name  # noqa: SIM118
    return opened.get_slice(stored)


def listed(folder: Path) -> Iterable[Path]:
    """Return the weight files of a Hugging Face folder, the index included, sorted."""
    source = files(folder)
    index = [folder / INDEX] if (folder / INDEX).is_file() else []
    return sorted({*source.files.values(), *index})
