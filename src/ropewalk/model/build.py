"""Building models: always from a complete config, always through the meta device.

One path for one process and for many: an empty model on the meta device, sharded if asked, given
memory, filled tensor by tensor. transformers' `rope_parameters` is read once in the constructor and
meta initialisation leaves rotary buffers uninitialised: `rotary` makes that module afresh.
"""

from pathlib import Path

import torch
from torch.distributed.tensor import DTensor, Shard
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from ropewalk.model import numerics as numerics_
from ropewalk.model.attention import IMPLEMENTATIONS
from ropewalk.model.config import architecture_of, config, rope_of
from ropewalk.model.rotary import set_rope
from ropewalk.model.spec import Architecture, Numerics, PlainRope, Rope
from ropewalk.model.weights import Source, files


def empty(architecture: Architecture, numerics: Numerics) -> PreTrainedModel:
    """Return a model without memory, on the meta device: to be sharded, then materialised."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config(architecture, PlainRope()),  # `materialise` gives it its rope
            attn_implementation=IMPLEMENTATIONS[numerics.attention],
            dtype=torch.float32,
        )
    return model


def materialise(
    model: PreTrainedModel,
    architecture: Architecture,
    rope: Rope,
    device: torch.device,
    source: Source,
    *,
    root: torch.nn.Module | None = None,
) -> None:
    """Give an empty model memory on `device`, fp32 weights from `source`, and its rope.

    `root` is the module around the model that was sharded, if any. A sharded parameter gets only
    this process's rows.

    Raises:
        StageError: if the source has other names or shapes than the model.
    """
    (root or model).to_empty(device=device)
    model.tie_weights()  # memory is handed out per module: tied matrices are two until tied again
    fill(model, source)
    set_rope(model, architecture, rope)


def build(
    architecture: Architecture,
    rope: Rope,
    numerics: Numerics,
    device: torch.device,
    source: Source,
) -> PreTrainedModel:
    """Return an unsharded model on `device` with fp32 weights from `source`, in training mode.

    Raises:
        StageError: if the device cannot do the numerics or the source has other tensors.
    """
    numerics_.check(numerics, device)
    model = empty(architecture, numerics)
    materialise(model, architecture, rope, device, source)
    return model.train()


def load(
    folder: Path,
    rope: Rope | None = None,
    numerics: Numerics | None = None,
    device: torch.device | None = None,
) -> PreTrainedModel:
    """Return the model in a Hugging Face folder for evaluation, under its own rope or another.

    Weights are fp32; run it inside `numerics.applied`, through `forward.hidden`.
    """
    found = AutoConfig.from_pretrained(folder)
    model = build(
        architecture_of(found),
        rope_of(found) if rope is None else rope,
        numerics or Numerics(),
        device or torch.device("cpu"),
        files(folder),
    )
    return model.eval()


def fill(model: PreTrainedModel, source: Source) -> None:
    """Copy every parameter from `source`; a sharded one gets only this process's rows.

    Raises:
        StageError: if the source has other names or shapes than the model.
    """
    parameters = dict(model.named_parameters())  # a tied matrix is listed once
    source.check({name: p.shape for name, p in parameters.items()})
    with torch.no_grad():
        for name, parameter in parameters.items():
            local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
            start = _first_row(parameter) if isinstance(parameter, DTensor) else 0
            local.copy_(source.rows(name, parameter.shape, start, start + local.shape[0]))


def _first_row(parameter: DTensor) -> int:
    """Return which row of a parameter sharded by rows this process's shard begins with."""
    (placement,) = parameter.placements
    if placement != Shard(0):
        raise ValueError(f"placement {placement} is not Shard(0)")
    mesh = parameter.device_mesh
    rows_per_process = -(-parameter.shape[0] // mesh.size())  # as torch.chunk cuts
    return min(mesh.get_local_rank() * rows_per_process, parameter.shape[0])
