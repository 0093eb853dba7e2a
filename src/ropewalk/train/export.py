"""Checkpoints anybody can load: ordinary Hugging Face folders, the same bytes when made again."""

import shutil
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from torch.distributed.tensor import DTensor
from transformers import GenerationConfig, PreTrainedModel

from ropewalk.base.files import replacing_directory
from ropewalk.base.manifest import Manifest
from ropewalk.model.config import config
from ropewalk.model.spec import Architecture, Rope
from ropewalk.model.weights import stored_name
from ropewalk.train.world import World


def export(
    folder: Path,
    model: PreTrainedModel,
    architecture: Architecture,
    rope: Rope,
    length_tokens: int,
    tokenizer: Manifest,
    world: World,
) -> None:
    """Write model, config and tokenizer to `folder`, whole or not at all; weights are fp32.

    Every process takes part; the first one writes. `length_tokens` becomes
    `max_position_embeddings`.
    """
    state: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():  # a tied matrix is listed, and written, once
        value = parameter.detach()
        full = value.full_tensor() if isinstance(value, DTensor) else value
        if world.first:
            state[stored_name(architecture.family, name)] = full.cpu().contiguous()
    if world.first:
        with replacing_directory(folder) as partial:
            save_torch_state_dict(state, partial, metadata={"format": "pt"})
            write_config(partial, architecture, rope, length_tokens, tokenizer)
    world.barrier()


def write_config(
    folder: Path,
    architecture: Architecture,
    rope: Rope,
    length_tokens: int,
    tokenizer: Manifest,
    *,
    dtype: str = "float32",
) -> None:
    """Write everything of a Hugging Face folder but the weights."""
    bos, eos = tokenizer.result.get("bos"), tokenizer.result.get("eos")
    found = config(architecture, rope, length_tokens=length_tokens, bos=bos, eos=eos)
    found.dtype = dtype
    found.save_pretrained(folder)
    GenerationConfig(bos_token_id=bos, eos_token_id=eos).save_pretrained(folder)
    for file in tokenizer.files:
        if file.path.endswith((".json", ".model", ".txt")):
            shutil.copyfile(tokenizer.folder / file.path, folder / Path(file.path).name)
