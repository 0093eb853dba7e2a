"""Runs without phases: weights as somebody else left them, in the form of a finished run."""

import os
import shutil
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict

from ropewalk.base.files import replacing_directory
from ropewalk.base.manifest import Manifest
from ropewalk.base.stage import StageError
from ropewalk.model import pickles
from ropewalk.model.build import build, empty
from ropewalk.model.config import architecture_of, read_config, rope_of
from ropewalk.model.rope import frequencies_of
from ropewalk.model.spec import (
    Architecture,
    DynamicNtkRope,
    PlainRope,
    Rope,
    YarnRevisedRope,
    YarnRope,
)
from ropewalk.model.weights import files, stored_name
from ropewalk.train.export import export, write_config
from ropewalk.train.origin import refuse_other, source
from ropewalk.train.spec import Run
from ropewalk.train.world import World

_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
Shapes = dict[str, torch.Size]


def adopt(run: Run, folder: Path | None, tokenizer: Manifest, final: Path) -> int:
    """Put a run's initial weights into `final`, and return the number of parameters.

    `folder` is where they lie, None for weights drawn here. Weight files are linked, not copied,
    where the file system can, pickled ones written as safetensors of the same type; the config is
    written anew, complete, with the rope that the checkpoint says it has.

    Raises:
        StageError: if the weights are not those of the run's architecture.
    """
    shapes = {
        name: parameter.shape
        for name, parameter in empty(run.architecture, run.numerics).named_parameters()
    }
    if folder is None:
        _draw(run, tokenizer, final)
    else:
        refuse_other(run.architecture, folder)
        theirs = read_config(folder)
        rope = rope_of(theirs)
        _refuse_other_window(run.architecture, rope, architecture_of(theirs).context_tokens)
        with replacing_directory(final) as partial:
            dtype = _put(folder, shapes, run.architecture.family, partial)
            window = theirs.max_position_embeddings
            write_config(partial, run.architecture, rope, window, tokenizer, dtype=dtype)
    return sum(shape.numel() for shape in shapes.values())


def _draw(run: Run, tokenizer: Manifest, final: Path) -> None:
    device, plain = torch.device("cpu"), PlainRope()
    model = build(run.architecture, plain, run.numerics, device, source(run, None))
    alone = World(rank=0, size=1, device=device, mesh=None)
    window = run.architecture.context_tokens
    export(final, model, run.architecture, plain, window, tokenizer, alone)


def _refuse_other_window(architecture: Architecture, rope: Rope, window_tokens: int) -> None:
    """The angles of some ropes depend on the window they extend, which is the checkpoint's own."""
    depends = isinstance(frequencies_of(rope), YarnRope | YarnRevisedRope | DynamicNtkRope)
    if depends and architecture.context_tokens != window_tokens:
        raise StageError(
            f"architecture.context_tokens: the run says {architecture.context_tokens}, the "
            f"checkpoint extends a window of {window_tokens} tokens by rope {rope.kind!r}, whose "
            "angles depend on it; they must be equal"
        )


def _put(folder: Path, shapes: Shapes, family: str, partial: Path) -> str:
    """Put the weights of a folder into another, and return their type as transformers names it."""
    ours = pickles.weight_files(folder)
    if ours[0].suffix == ".bin":
        tensors = pickles.tensors(folder, shapes)
        state = {stored_name(family, name): tensor for name, tensor in tensors.items()}
        save_torch_state_dict(state, partial, metadata={"format": "pt"})
        kept = files(partial)
    else:
        kept = files(folder)
        kept.check(shapes)
        for file in ours:
            _link(file, partial / file.name)
    dtype = kept.dtype()
    if dtype not in _DTYPES:
        raise StageError(f"{folder}: weights of type {dtype} are not read, only {list(_DTYPES)}")
    return _DTYPES[dtype]


def _link(file: Path, target: Path) -> None:
    try:
        os.link(file.resolve(), target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(file, target)
