"""ropewalk on one GPU: training speed, memory that suffices, and attention held to a reference.

    python benchmarks/gpu.py string
    python benchmarks/gpu.py pi --out pi.json
    python benchmarks/gpu.py small

Needs torch, transformers, accelerate, pyarrow, numpy and safetensors; ropewalk is read from `src`
beside this folder. Every part ends within nine minutes on an H200 and leaves one JSON file, which
is rewritten after every arm: by default `$OUT/gpu-PART.json` where the environment has OUT, else
`benchmarks/results/gpu-PART.json`. An arm that the device cannot do, that does not fit its memory
or for which no time was left stands under `skipped` with the reason; an arm that broke stands under
`failed`, and the exit code is 1. `small` does every part at toy size, also on a CPU.
"""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
# Read when CUDA starts. Without it memory that is free, but in pieces, looks like memory too small.
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

import gpu_attention as attention
import gpu_training as training
import torch
from gpu_record import Record


class Part(NamedTuple):
    """One subcommand: what runs, and its sizes."""

    run: Callable[[Record, Any], None]
    full: Any
    small: Any


PARTS = {
    "string": Part(training.string, training.STRING, training.STRING_SMALL),
    "pi": Part(training.pi, training.PI, training.PI_SMALL),
    "growlength": Part(training.growlength, training.GROWLENGTH, training.GROWLENGTH_SMALL),
    "attention": Part(attention.attention, attention.FULL, attention.SMALL),
}


def main() -> int:
    """Measure one part, or all of them at toy size, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("part", choices=[*PARTS, "small"])
    parser.add_argument("--out", type=Path, help="the JSON file to write")
    parser.add_argument("--seconds", type=float, default=450, help="no arm begins after these")
    parser.add_argument(
        "--without-flash-attn",
        action="store_true",
        help="use the varlen kernel that comes with torch even where flash-attn is installed",
    )
    options = parser.parse_args()
    if options.without_flash_attn:
        sys.modules["flash_attn"] = None  # type: ignore[assignment]  # imports of it fail from here
    small = options.part == "small"
    if not small and not torch.cuda.is_available():
        parser.error(f"{options.part} needs a CUDA device and there is none; `small` runs anywhere")
    folder = Path(os.environ.get("OUT") or Path(__file__).resolve().parent / "results")
    record = Record(
        options.part,
        options.out or folder / f"gpu-{options.part}.json",
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        budget_seconds=options.seconds,
    )
    for name in PARTS if small else [options.part]:
        part = PARTS[name]
        sizes = part.small if small else part.full
        record.begin(name, sizes)
        part.run(record, sizes)
    return record.end()


if __name__ == "__main__":
    sys.exit(main())
