"""The training objective on one process, or sharded over many with torch's `fully_shard` (FSDP2).

FSDP2 is the ZeRO-3 of the papers: parameters, gradients and optimizer state are cut by rows; a
layer's parameters are gathered around its forward and backward.
"""

import warnings
from typing import Any

import torch
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

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
    which takes seconds where the whole model takes minutes; FSDP's hooks stay between blocks.

    Raises:
        StageError: if the device cannot do the numerics or the source has other tensors.
    """
    numerics_.check(numerics, world.device)
    model = empty(architecture, numerics)
    root = Objective(model)
    base: Any = model.base_model
    if compile:
        for layer in base.layers:
            layer.compile()
    if world.mesh is not None:
        # Parameters are gathered as fp32 and cast by autocast, as on one process: sending bf16
        # would halve the traffic, but round norms and embeddings and make the numbers depend on
        # how many processes there are.
        policy = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
        for layer in base.layers:
            fully_shard(layer, mesh=world.mesh, mp_policy=policy)
        fully_shard(root, mesh=world.mesh, mp_policy=policy)
    materialise(model, architecture, rope, world.device, source, root=root)
    if recompute_activations:
        with warnings.catch_warnings():
            # The name that follows it is younger than the oldest transformers supported here.
            warnings.simplefilter("ignore", FutureWarning)
            model.gradient_checkpointing_enable({"use_reentrant": False})
    root.train()
    return root
