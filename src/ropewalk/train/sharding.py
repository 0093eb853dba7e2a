"""The training objective on one process, or sharded over many with torch's `fully_shard` (FSDP2).

FSDP2 is the ZeRO-3 of the papers: parameters, gradients and optimizer state are cut by rows; a
layer's parameters are gathered around its forward and backward.
"""

import dataclasses
import warnings
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from ropewalk.base.stage import StageError
from ropewalk.model import numerics as numerics_
from ropewalk.model.build import empty, materialise
from ropewalk.model.forward import Objective
from ropewalk.model.spec import Architecture, Numerics, Rope
from ropewalk.model.weights import Source
from ropewalk.train.world import World


def objective(
    architecture: Architecture,
    rope: Rope,
    numerics: Numerics,
    source: Source,
    world: World,
    *,
    recompute_activations: bool = False,
    compile: bool = False,  # noqa: A002
) -> Objective:
    """Return the model with its loss, on this process's device, with weights from `source`.

    With `compile`, each decoder block is compiled by itself: all blocks share one compilation,
    which takes seconds where the whole model takes minutes. FSDP's hooks break a graph, so where
    a block's attention and feed-forward have hooks of their own, these two are compiled.

    Raises:
        StageError: if the device cannot do the numerics, the source has other tensors, or blocks
            cannot be compiled as asked.
    """
    numerics_.check(numerics, world.device)
    if compile and recompute_activations and numerics.attention == "sdpa":
        # Attention segment by segment is no part of a graph, and torch compiles nothing of a
        # checkpointed block whose graph breaks; it says so to nobody.
        raise StageError(
            "hardware.compile: true has no effect beside hardware.recompute_activations with "
            "numerics.attention 'sdpa'; set one of the two to false"
        )
    model = empty(architecture, numerics)
    root = Objective(model)
    base: Any = model.base_model
    grouped = world.mesh is not None and numerics.precision != "fp32"
    if compile:
        for layer in base.layers:
            _compile(layer, whole=not grouped)
    if world.mesh is not None:
        _shard(root, world.mesh, numerics)
    materialise(model, architecture, rope, world.device, source, root=root)
    if recompute_activations:
        with warnings.catch_warnings():
            # The name that follows it is younger than the oldest transformers supported here.
            warnings.simplefilter("ignore", FutureWarning)
            model.gradient_checkpointing_enable({"use_reentrant": False})
    root.train()
    return root


def _shard(root: Objective, mesh: DeviceMesh, numerics: Numerics) -> None:
    """Cut all parameters by rows over the processes of `mesh`.

    Weights of attention and feed-forward are gathered in the low precision that autocast would cast
    them to, which halves the traffic and changes no number. Norms, embeddings and the output matrix
    are gathered in fp32, as one process reads them. Gradients are added up in fp32.
    """
    # A view as output is only unsafe where it is written to; transformers adds it out of place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    exact = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    low = dataclasses.replace(exact, param_dtype=numerics_.DTYPES[numerics.precision])
    base: Any = root.model.base_model
    for layer in base.layers:
        if numerics.precision != "fp32":
            fully_shard(_parts(layer), mesh=mesh, mp_policy=low)
        fully_shard(layer, mesh=mesh, mp_policy=exact)
    fully_shard(root, mesh=mesh, mp_policy=exact)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            # Gradients are added up, as over the passes of one process: a mean would be made a sum
            # again by a larger loss, which overflows fp16 earlier the more processes there are.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def _parts(layer: Any) -> list[torch.nn.Module]:
    """Return attention and feed-forward of a decoder block of either family."""
    return [layer.self_attn if hasattr(layer, "self_attn") else layer.attention, layer.mlp]


def _compile(layer: Any, *, whole: bool) -> None:
    if whole:
        layer.compile()
        return
    for part in _parts(layer):
        # Not `part.compile()`: that would compile the hooks around it too.
        part.forward = torch.compile(part.forward)
