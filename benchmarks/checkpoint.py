"""How long a checkpoint blocks training: written while it waits, or in the background.

A Llama of 50 million parameters with AdamW, 600 MB of state, is saved again and again by the code
that a run uses. In the background training is blocked while the state is copied and while the
checkpoint is committed; in between optimizer steps go on, and are timed with and without a
writer beside them.
"""

import argparse
import itertools
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import machine, significant

from ropewalk.model.spec import Architecture, Numerics, PlainRope
from ropewalk.model.weights import Scratch
from ropewalk.train.checkpoint import Checkpoints, Progress
from ropewalk.train.optimizer import adamw
from ropewalk.train.sharding import objective
from ropewalk.train.spec import Hardware, Optimizer
from ropewalk.train.world import World

ARCHITECTURE = Architecture(
    layers=10,
    hidden=512,
    heads=8,
    ffn=1536,
    vocabulary_size=32_000,
    context_tokens=256,
    tied_embeddings=True,
)
WORLD = World(rank=0, size=1, device=torch.device("cpu"), mesh=None)


def measure(saves: int, folder: Path) -> dict[str, Any]:
    """Save in turns both ways; return medians over all saves but the first of each."""
    model = objective(
        ARCHITECTURE, PlainRope(), Numerics(), Scratch(seed=0, std=ARCHITECTURE.init_std), WORLD
    )
    optimizer = adamw(model, Optimizer(lr=1e-4, betas=(0.9, 0.95)))
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer.step()
    found: dict[str, dict[str, list[float]]] = {}
    for background in (False, True):
        name = "background" if background else "waiting"
        one = found[name] = {"blocked_seconds": [], "write_seconds": [], "step_seconds": []}
        hardware = Hardware(checkpoint_in_background=background)
        with Checkpoints(folder / name, model, optimizer, "code", WORLD, hardware) as own:
            for number in range(saves + 1):
                clock = time.monotonic()
                own.begin(Progress(step=number + 1))
                blocked = time.monotonic() - clock
                steps = []
                for count in itertools.count():
                    if own.written or (not background and count == 5):
                        break
                    clock = time.monotonic()
                    optimizer.step()
                    steps.append(time.monotonic() - clock)
                clock = time.monotonic()
                own.commit()
                blocked += time.monotonic() - clock
                if number:  # the first one takes memory that later ones use again
                    one["blocked_seconds"].append(blocked)
                    one["write_seconds"].append(own.write_seconds)
                    one["step_seconds"].append(statistics.median(steps))
        shutil.rmtree(folder / name)
    parameters = sum(p.numel() for p in model.parameters())
    medians = {
        name: {key: significant(statistics.median(values), 3) for key, values in one.items()}
        for name, one in found.items()
    }
    blocked_ = [medians[name]["blocked_seconds"] for name in ("waiting", "background")]
    return {
        "parameters": parameters,
        "state_mb": round(parameters * 12 / 1e6),
        **medians,
        "blocked_ratio": significant(blocked_[0] / blocked_[1], 3),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--saves", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write (default: the system's)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        result = {
            "benchmark": "checkpoint",
            "machine": machine("torch"),
            "threads": torch.get_num_threads(),
            "saves": options.saves,
            "steps": "of the optimizer alone, 50 M parameters",
            **measure(options.saves, Path(folder)),
        }
    print(json.dumps(result, indent=1) if options.json else result)


if __name__ == "__main__":
    main()
