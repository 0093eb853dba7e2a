"""The loader: batches of token ids into torch tensors, on one core, and what memory they take.

    python benchmarks/loader.py --json
    python benchmarks/loader.py --json --tokens TOKENS

Every combination of policy and length is a process of its own: a warm-up, turns of equal length for
the speed, then one whole epoch during which memory is noted. `file` memory are touched pages of the
shards, which lie in the page cache once for all processes; the loader gives them back when they
exceed a bound. `first_batch_seconds` is a new loader's first batch at the first step and at a step
far away.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import machine, pin, resident_mb, significant, synthetic_tokens

POLICIES = ("documents", "concat", "per_document")
FAR = 10**9


def main() -> None:
    """Measure and print, or do one measurement for the process that asked for it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=Path, help="folder of a tokens artifact")
    parser.add_argument("--documents", type=int, default=400_000, help="without --tokens")
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 256], help="of windows")
    parser.add_argument("--batch-tokens", type=int, default=1 << 17, help="of one step")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--turn-tokens", type=int, default=20_000_000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        policy, length, folder = options.measure
        print(json.dumps(measure(policy, int(length), Path(folder), options)))
        return
    core = pin()
    with tempfile.TemporaryDirectory(prefix="loader-") as name:
        folder = Path(name)
        synthetic = options.tokens is None
        if synthetic:
            options.tokens = folder / "tokens"
            synthetic_tokens(options.tokens, options.documents)
        found = {
            f"{policy}_{length}": run(options, policy, length, folder)
            for length in options.lengths
            for policy in POLICIES
        }
        corpus = "synthetic" if synthetic else str(options.tokens)
        size = sum(file.stat().st_size for file in options.tokens.rglob("*.arrow"))
    main_length = options.lengths[0]
    result = {
        "benchmark": "loader",
        "machine": machine("numpy", "pyarrow", "torch"),
        "core": core,
        "corpus": corpus,
        "shards_mb": size // 2**20,
        "turns": options.turns,
        "length_tokens": main_length,
        "tokens_per_second": min(
            found[f"{p}_{main_length}"]["tokens_per_second"] for p in POLICIES
        ),
        "epoch_growth_mb": {
            kind: max(one["epoch_growth_mb"][kind] for one in found.values())
            for kind in ("anonymous", "file")
        },
        "arms": found,
    }
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        for key, value in result.items():
            print(f"{key}: {value}")


def run(options: argparse.Namespace, policy: str, length: int, folder: Path) -> dict[str, Any]:
    """Measure one combination in a process of its own."""
    command = [sys.executable, __file__, "--tokens", str(options.tokens)]
    command += ["--batch-tokens", str(options.batch_tokens), "--turns", str(options.turns)]
    command += ["--turn-tokens", str(options.turn_tokens)]
    command += ["--measure", policy, str(length), str(folder / "windows")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(policy: str, length: int, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return speed and memory of one combination."""
    import torch

    from ropewalk.base.manifest import read_manifest, write_manifest
    from ropewalk.base.stage import Job
    from ropewalk.data import pack
    from ropewalk.data.loader import Loader, Windows
    from ropewalk.data.spec import PackJob, Share
    from ropewalk.data.spec import Windows as Spec

    torch.set_num_threads(1)
    tokens = read_manifest(options.tokens / "manifest.json", verify=False)
    inputs = {"tokens:c": tokens}
    mixture = (Share(corpus="c", weight=1),)
    spec = PackJob(
        windows=Spec(mixture=mixture, tokenizer="t", policy=policy),  # type: ignore[arg-type]
        length_tokens=length,
    )
    folder.mkdir(parents=True, exist_ok=True)
    job = Job(stage="pack", spec=spec, inputs=inputs, folder=folder, recipe="", code="")
    files, result = pack.work(job)
    manifest = write_manifest(
        folder, stage="pack", spec=spec, inputs=inputs, files=files, result=result
    )
    sequences = max(1, options.batch_tokens // length)

    def loader() -> Loader:
        return Loader(Windows(manifest, {"c": tokens}), seed=0, phase=0, sequences=sequences)

    first = {}
    for step in (0, FAR):
        clock = time.perf_counter()
        loader().batch(step)
        first[str(step)] = significant(time.perf_counter() - clock)

    reading = loader()
    steps = max(1, options.turn_tokens // (sequences * length))
    speeds, step = [], 0
    for _ in range(options.turns + 1):
        clock, total = time.perf_counter(), 0
        for _ in range(steps):
            total += torch.from_numpy(reading.batch(step).input_ids).numel()
            step += 1
        speeds.append(total / (time.perf_counter() - clock))

    epoch = -(-reading.windows.count // sequences)
    reading, memory = loader(), []
    for step in range(epoch):
        torch.from_numpy(reading.batch(step).input_ids)
        if step % max(1, epoch // 20) == 0:
            memory.append(resident_mb())
    # What is needed once (the index, the first pages) is there after a tenth of the epoch.
    begun = memory[len(memory) // 10]
    return {
        "sequences": sequences,
        "windows": reading.windows.count,
        "tokens_per_second": significant(statistics.median(speeds[1:])),
        "tokens_per_second_range": [significant(min(speeds[1:])), significant(max(speeds[1:]))],
        "first_batch_seconds": first,
        "epoch_steps": epoch,
        "epoch_memory_mb": memory,
        "epoch_growth_mb": {
            kind: round(max(m[kind] for m in memory[len(memory) // 2 :]) - begun[kind], 1)
            for kind in begun
        },
    }


if __name__ == "__main__":
    main()
