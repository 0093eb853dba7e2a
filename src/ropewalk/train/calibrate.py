"""Stage `calibrate`: what a training step of a model costs on a device, in seconds and bytes.

All it leaves is a measurement. It is made once and then an input like any artifact: budgets of time
become steps by it (`ropewalk.train.budget`), and claims about cost read it. So it imports of the
training only what a step runs: a change of checkpoints or metrics measures nothing anew.

Shapes are measured in turn, round after round, so that whatever slows the machine down for a while
slows all of them down alike; a round is one repetition, and ratios are taken within rounds.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from ropewalk.base.files import write_json
from ropewalk.base.rng import generator
from ropewalk.base.stage import Job
from ropewalk.model import numerics
from ropewalk.model.positions import position_ids
from ropewalk.model.spec import PlainRope
from ropewalk.model.weights import Scratch
from ropewalk.train.machine import machine
from ropewalk.train.memory import GIGABYTE, peak_bytes
from ropewalk.train.optimizer import adamw
from ropewalk.train.sharding import objective
from ropewalk.train.spec import CalibrateJob, Hardware, Optimizer, Shape
from ropewalk.train.step import Rows, gradients, update
from ropewalk.train.world import World, alone

Json = dict[str, Any]
Step = Callable[[], None]


def work(job: Job) -> tuple[Iterable[Path], Mapping[str, Any]]:
    """Measure every shape and write `result.json`.

    Raises:
        StageError: if the device is not there or cannot do the numerics.
    """
    spec: CalibrateJob = job.spec
    with alone(Hardware(device=spec.device)) as world:
        result = measured(spec, world)
    path = job.folder / "result.json"
    write_json(path, result)
    return [path], {"shapes": len(spec.shapes), "device": result["device"]}


def measured(spec: CalibrateJob, world: World) -> Json:
    """Return the seconds and bytes of a step of every shape, with the device they are of.

    `seconds` has one number per round, `seconds_per_step` is their median. `peak_bytes` is the most
    that tensors take during a step, `standing_bytes` what weights, gradients and optimizer state
    take of it in every step. `tokens_that_fit` is in proportion, not tried: the tokens whose share
    of the peak fills what `standing_bytes` leave of `memory_gigabytes`.
    """
    model = objective(
        spec.architecture,
        PlainRope(),
        spec.numerics,
        Scratch(seed=0, std=spec.architecture.init_std),
        world,
        recompute_activations=spec.recompute_activations,
        compile=spec.compile,
    )
    # Rate 0: the kernels are those of any rate, and weights stay finite on random tokens.
    optimizer = adamw(model, Optimizer(lr=0.0, betas=(0.9, 0.95)))

    def step_of(index: int, shape: Shape) -> Step:
        rows = random_rows(shape, spec.architecture.vocabulary_size, index)
        parts = passes(shape.rows, spec.sequences_per_forward)

        def step() -> None:
            found = gradients(model, rows, parts, world)
            update(model, optimizer, found.norm / 2, found.norm, 0.0)  # clipped, as most steps are
            optimizer.zero_grad(set_to_none=True)

        return step

    steps = {
        label: step_of(index, shape) for index, (label, shape) in enumerate(spec.shapes.items())
    }
    load = os.getloadavg()[0]
    with numerics.applied(spec.numerics, world.device):
        seconds = timed(steps, spec.rounds, spec.steps, world.device)
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        held = weights + _state_bytes(optimizer)
        peaks = {label: peak_bytes(world.device, step, held) for label, step in steps.items()}
    standing = held + weights  # gradients are as large as the weights
    return {
        "device": machine(world.device, 1, spec.numerics).device,
        "threads": torch.get_num_threads(),
        "load_average": {"before": load, "after": os.getloadavg()[0]},
        "rounds": spec.rounds,
        "steps_per_round": spec.steps,
        "memory_gigabytes": spec.memory_gigabytes,
        "standing_bytes": standing,
        "shapes": {
            label: _described(shape, seconds[label], peaks[label], standing, spec.memory_gigabytes)
            for label, shape in spec.shapes.items()
        },
    }


def passes(rows: int, at_once: int | None) -> list[slice]:
    """Return the rows of each forward pass of a step, as `timetable.forward_rows` cuts them."""
    size = min(at_once or rows, rows)
    return [slice(i, min(i + size, rows)) for i in range(0, rows, size)]


def random_rows(shape: Shape, vocabulary_size: int, index: int) -> Rows:
    """Return the rows of a shape: random tokens, one segment per row, positions as in training."""
    size, length = shape.rows, shape.length_tokens
    rng = generator(0, "calibrate", index)
    rngs = (generator(0, "calibrate", index, row) for row in range(size))
    return Rows(
        input_ids=rng.integers(0, vocabulary_size, (size, length)),
        boundaries=[(0, length)] * size,
        position_ids=position_ids(shape.positions, length, rngs),
        targets=None,
    )


def timed(
    steps: Mapping[str, Step], rounds: int, count: int, device: torch.device
) -> dict[str, list[float]]:
    """Return for each shape the median seconds of `count` steps, once per round.

    Before all rounds every shape is done once, which warms up and does not count.
    """
    found: dict[str, list[float]] = {label: [] for label in steps}
    for step in steps.values():
        step()
    for _ in range(rounds):
        for label, step in steps.items():
            found[label].append(statistics.median(_seconds(step, device) for _ in range(count)))
    return found


def _seconds(step: Step, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    clock = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - clock


def _state_bytes(optimizer: torch.optim.Optimizer) -> int:
    tensors = (value for state in optimizer.state.values() for value in state.values())
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))


def _described(
    shape: Shape, seconds: list[float], peak: int, standing: int, gigabytes: float | None
) -> Json:
    tokens = shape.rows * shape.length_tokens
    per_step = statistics.median(seconds)
    return {
        "length_tokens": shape.length_tokens,
        "context_tokens": shape.context_tokens,
        "sequences": shape.rows,
        "tokens": tokens,
        "seconds": seconds,
        "seconds_per_step": per_step,
        "tokens_per_second": tokens / per_step,
        "peak_bytes": peak,
        "tokens_that_fit": None
        if gigabytes is None
        else fitting_tokens(tokens, peak, standing, gigabytes * GIGABYTE),
    }


def fitting_tokens(tokens: int, peak: int, standing: int, memory: float) -> float:
    """Return how many tokens fit into `memory` bytes where `tokens` of them take `peak` at most.

    What is above `standing` grows with the tokens; 0 where not even that fits.
    """
    return max(0.0, tokens * (memory - standing) / max(peak - standing, 1))
