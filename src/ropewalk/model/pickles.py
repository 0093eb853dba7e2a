"""Weights as torch pickled them, `pytorch_model*.bin`: read once, to be written as safetensors.

Most checkpoints of 2023 have no other form. Only tensors are unpickled, no code of the file is run.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch

from ropewalk.base.files import read_json
from ropewalk.base.stage import StageError
from ropewalk.model import weights
from ropewalk.model.weights import check_names, check_shape, model_name

INDEX = "pytorch_model.bin.index.json"
SINGLE = "pytorch_model.bin"


def pickled(folder: Path) -> list[Path]:
    """Return the pickled weight files of a Hugging Face folder, sorted; none where it has none.

    Raises:
        StageError: if the index names a file that is not there.
    """
    if not (folder / INDEX).is_file():
        return [folder / SINGLE] if (folder / SINGLE).is_file() else []
    names = {Path(name).name for name in read_json(folder / INDEX)["weight_map"].values()}
    for name in sorted(names):
        if not (folder / name).is_file():
            raise StageError(f"{folder / INDEX} names {name}, which does not exist in {folder}")
    return [folder / name for name in sorted(names)]


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold a folder's weights, sorted: safetensors, or pickled ones.

    Raises:
        StageError: if it has neither.
    """
    safe = (folder / weights.SINGLE).is_file() or (folder / weights.INDEX).is_file()
    found = [] if safe else pickled(folder)
    return found or list(weights.listed(folder))


def tensors(folder: Path, shapes: Mapping[str, torch.Size]) -> dict[str, torch.Tensor]:
    """Return the tensors of a model by its names for them, in the type of the files.

    They are mapped into memory, and read where they are used.

    Raises:
        StageError: if a file cannot be read, or other tensors than those of `shapes` are there.
    """
    found: dict[str, torch.Tensor] = {}
    for file in pickled(folder):
        try:
            loaded = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise StageError(
                f"{file}: torch cannot read it as tensors alone: {reason}; convert it with "
                "transformers' save_pretrained"
            ) from error
        found |= {model_name(name): tensor for name, tensor in loaded.items()}
    check_names(folder, found, shapes)
    for name, shape in shapes.items():
        check_shape(folder, name, found[name].shape, shape)
    return {name: found[name] for name in shapes}
