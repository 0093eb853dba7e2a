"""Runs without phases: weights as somebody else left them, in the form of a finished run."""

import os
import shutil
from pathlib import Path

import torch
from transformers import AutoConfig

from ropewalk.base.files import replacing_directory
from ropewalk.base.manifest import Manifest
from ropewalk.model.build import build, empty
from ropewalk.model.config import rope_of
from ropewalk.model.spec import PlainRope
from ropewalk.model.weights import Files, listed
from ropewalk.train.export import export, write_config
from ropewalk.train.origin import source
from ropewalk.train.spec import Run
from ropewalk.train.world import World

_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def adopt(run: Run, folder: Path | None, tokenizer: Manifest, final: Path) -> int:
    """Put a run's initial weights into `final`, and return the number of parameters.

    `folder` is where they lie, None for weights drawn here. Weight files are linked, not copied,
    where the file system can; the config is written anew, complete.

    Raises:
        StageError: if the weights are not those of the run's architecture.
    """
    found = source(run, folder)
    shapes = {
        name: parameter.shape
        for name, parameter in empty(run.architecture, run.numerics).named_parameters()
    }
    found.check(shapes)
    if folder is None or not isinstance(found, Files):
        device = torch.device("cpu")
        model = build(run.architecture, PlainRope(), run.numerics, device, found)
        alone = World(rank=0, size=1, device=device, mesh=None)
        window = run.architecture.context_tokens
        export(final, model, run.architecture, PlainRope(), window, tokenizer, alone)
    else:
        theirs = AutoConfig.from_pretrained(folder, local_files_only=True)
        with replacing_directory(final) as partial:
            for file in listed(folder):
                _link(file, partial / file.name)
            write_config(
                partial,
                run.architecture,
                rope_of(theirs),
                theirs.max_position_embeddings,
                tokenizer,
                dtype=_DTYPES[found.dtype()],
            )
    return sum(shape.numel() for shape in shapes.values())


def _link(file: Path, target: Path) -> None:
    try:
        os.link(file.resolve(), target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(file, target)
