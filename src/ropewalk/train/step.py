"""What every optimizer step computes: gradients pass by pass, then the update.

The training loop does it with the data of a run, a calibration with random tokens and a clock.

Dimensions: B rows, T tokens of a row.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import torch

from ropewalk.model.flops import attended_pairs
from ropewalk.model.forward import Objective, inputs, loss_sum
from ropewalk.train.optimizer import gradient_norm, scale_gradients, set_learning_rate
from ropewalk.train.world import World


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows to train on."""

    input_ids: np.ndarray  # int64 [B, T]
    boundaries: Sequence[tuple[int, ...]]  # of attention, as loaded: a jump of positions is none
    position_ids: np.ndarray  # int64 [B, T]; [1, T] where all rows have the same
    targets: np.ndarray | None  # bool [B, T]: tokens that are trained on; None: all


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gradients:
    """What one step computed; the gradients themselves lie at the parameters, unclipped."""

    loss: float  # mean over all targets of the step, nats
    norm: float  # L2, over all processes
    targets: int  # over all processes; 0: nothing was computed
    pairs: int  # (query, key) pairs attended to
    wished: list[float]  # what the processes want to happen after the step, summed


def gradients(
    objective: Objective,
    read: Rows,
    parts: Sequence[slice],
    world: World,
    factor: float = 1.0,
    wanted: tuple[float, ...] = (),
) -> Gradients:
    """Compute the gradients of a step over all processes, pass by pass.

    `read` are this process's rows, `parts` those of each of its forward passes; `factor` scales the
    loss on the way (fp16). `wanted` is summed over the processes, in the same exchange.
    """
    passes = [
        inputs(
            read.input_ids[rows],
            read.boundaries[rows],
            read.position_ids if len(read.position_ids) == 1 else read.position_ids[rows],
            world.device,
            None if read.targets is None else read.targets[rows],
        )
        for rows in parts
    ]
    # One exchange: the targets of the step, and what any process wants to happen after it.
    targets, *wished = world.sum(sum(p.targets for p in passes), *wanted)
    if targets == 0:
        return Gradients(loss=0.0, norm=0.0, targets=0, pairs=0, wished=wished)
    total = torch.zeros((), device=world.device)
    for rows in passes:
        loss, _ = loss_sum(objective, rows)
        (loss * (factor / targets)).backward()  # sharded gradients are added up over processes
        total += loss.detach()
    parameters = list(objective.parameters())
    scale_gradients(parameters, 1 / factor)
    norm = float(gradient_norm(parameters))
    pairs = attended_pairs(itertools.chain.from_iterable(p.segments.rows for p in passes))
    loss_total, pairs_total = world.sum(float(total), pairs)
    return Gradients(
        loss=loss_total / targets,
        norm=norm,
        targets=int(targets),
        pairs=int(pairs_total),
        wished=wished,
    )


def update(
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    clip_norm: float | None,
    norm: float,
    lr: float,
) -> None:
    """Change the weights by their gradients, scaled down where `norm` is above `clip_norm`."""
    if clip_norm is not None and norm > clip_norm:
        scale_gradients(objective.parameters(), clip_norm / norm)
    set_learning_rate(optimizer, lr)
    optimizer.step()
