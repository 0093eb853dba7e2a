"""Packing: `ropewalk pack` against the packing of TRL, on one core.

    python benchmarks/pack.py --json
    python benchmarks/pack.py --json --tokens TOKENS --peers-python OTHER_ENVIRONMENT/bin/python

Ours is all that stage `pack` does: lengths read from the shards, pieces, statistics with the
position-frequency histogram, index and statistics on disk. (Not in it: the hash of its inputs that
every stage checks, as the peers check nothing.) The peers pack an Arrow data set that lies in
memory. Since they hand out tokens and we an index, `with_rows` adds an epoch of assembled rows to
ours. Every measurement is a process of its own.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import machine, peak_memory_mb, pin, ratio, significant, synthetic_tokens, take_turns

POLICIES = ("documents", "concat", "per_document")
PEERS = {"trl_bfd_split": "documents", "trl_wrapped": "concat"}  # peer -> our policy beside it


def main() -> None:
    """Measure and print, or do one measurement for the process that asked for it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=Path, help="folder of a tokens artifact")
    parser.add_argument("--documents", type=int, default=100_000, help="without --tokens")
    parser.add_argument("--long-share", type=float, default=0.0, help="of these, 50 times as long")
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 8192], help="of windows")
    parser.add_argument(
        "--growth", type=int, nargs="*", default=[1, 4, 16], help="times the corpus"
    )
    parser.add_argument("--peers-python", help="an environment that has trl and datasets")
    parser.add_argument(
        "--peer-batch", type=int, default=1000, help="documents TRL packs at a time"
    )
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        arm, length, output = options.measure
        found = peer if arm in PEERS else own
        print(json.dumps(found(arm, int(length), options, Path(output))))
        return
    pin()
    with tempfile.TemporaryDirectory(prefix="pack-") as name:
        result = measure(options, Path(name))
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        for key, value in result.items():
            print(f"{key}: {value}")


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return everything that is measured."""
    if options.tokens is None:
        options.tokens = folder / "tokens"
        synthetic_tokens(options.tokens, options.documents, long_share=options.long_share)
    peers = PEERS if options.peers_python else {}
    tables = {length: compare(options, folder, length, peers) for length in options.lengths}
    first = tables[options.lengths[0]]
    growth = []
    for times in options.growth:
        several(options.tokens, times, folder / f"{times}x")
        found = [
            run(options, folder, "documents", options.lengths[0], folder / f"{times}x")
            for _ in range(options.turns)
        ]
        seconds = statistics.median(one["seconds"] for one in found)
        growth.append(
            {
                "times": times,
                "documents": found[0]["documents"],
                "tokens": found[0]["tokens"],
                "seconds": significant(seconds),
                "nanoseconds_per_document": significant(1e9 * seconds / found[0]["documents"]),
                "tokens_per_second": significant(found[0]["tokens"] / seconds),
                "peak_memory_mb": max(one["peak_memory_mb"] for one in found),
            }
        )
    main_arm = first["arms"]["documents"]
    return {
        "benchmark": "pack",
        "machine": machine("numpy", "pyarrow"),
        "peers": peer_versions(options) if peers else "not measured: no --peers-python",
        "cores_used": 1,
        "turns": options.turns,
        "corpus": str(options.tokens) if folder not in options.tokens.parents else "synthetic",
        "policy": "documents",
        "length_tokens": options.lengths[0],
        **{key: main_arm[key] for key in ("seconds", "tokens_per_second", "peak_memory_mb")},
        **{key: value for key, value in first.items() if key.startswith("ratio_vs_")},
        "lengths": {str(length): table for length, table in tables.items()},
        "growth": growth,
    }


def compare(
    options: argparse.Namespace, folder: Path, length: int, peers: dict[str, str]
) -> dict[str, Any]:
    """Return what each arm needs at one length, and the ratios of the peers' times to ours."""
    found: dict[str, list[dict[str, Any]]] = {
        arm: [] for arm in (*POLICIES, "documents+rows", "concat+rows", *peers)
    }

    def turn(arm: str) -> Callable[[], float]:
        def once() -> float:
            found[arm].append(run(options, folder, arm, length, options.tokens))
            return found[arm][-1]["seconds"]

        return once

    seconds = take_turns({arm: turn(arm) for arm in found}, options.turns, warm_up=0)
    arms = {}
    for arm, times in seconds.items():
        one = found[arm][-1]
        middle = statistics.median(times)
        facts = {key: value for key, value in one.items() if key not in ("seconds", "documents")}
        arms[arm] = {
            **facts,
            "seconds": significant(middle),
            "tokens_per_second": significant(one["tokens"] / middle),
            "peak_memory_mb": max(each["peak_memory_mb"] for each in found[arm]),
        }
        if arm in ("documents", "trl_bfd_split"):
            least = -(-one["tokens"] // length)
            arms[arm]["least_windows"] = least
            arms[arm]["windows_over_least_percent"] = significant(
                100 * (one["windows"] / least - 1)
            )
    ratios: dict[str, Any] = {}
    for name, policy in peers.items():
        for suffix, arm in (("", policy), ("_with_rows", f"{policy}+rows")):
            turns = ratio(seconds[arm], seconds[name])
            ratios[f"ratio_vs_{name}{suffix}"] = turns["median"]
            ratios[f"ratio_vs_{name}{suffix}_range"] = [turns["least"], turns["most"]]
    return {"arms": arms, **ratios}


def run(
    options: argparse.Namespace, folder: Path, arm: str, length: int, tokens: Path
) -> dict[str, Any]:
    """Measure one arm in a process of its own."""
    python = options.peers_python if arm in PEERS else sys.executable
    command = [python, __file__, "--tokens", str(tokens), "--measure", arm, str(length)]
    command += [str(folder / "windows"), "--peer-batch", str(options.peer_batch)]
    environment = {
        **os.environ,
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def own(arm: str, length: int, options: argparse.Namespace, output: Path) -> dict[str, Any]:
    """Measure stage `pack`, and with `+rows` also reading every row once."""
    import numpy as np

    from ropewalk.base.manifest import read_manifest, write_manifest
    from ropewalk.base.stage import Job
    from ropewalk.data import pack
    from ropewalk.data.loader import Loader, Windows
    from ropewalk.data.spec import PackJob, Share
    from ropewalk.data.spec import Windows as Spec

    policy, _, rows = arm.partition("+")
    tokens = read_manifest(options.tokens / "manifest.json", verify=False)
    spec = PackJob(
        windows=Spec(mixture=(Share(corpus="c", weight=1),), tokenizer="t", policy=policy),  # type: ignore[arg-type]
        length_tokens=length,
    )
    inputs = {"tokens:c": tokens}
    output.mkdir(parents=True, exist_ok=True)
    job = Job(stage="pack", spec=spec, inputs=inputs, folder=output, recipe="", code="")
    clock = time.perf_counter()
    files, result = pack.work(job)
    seconds = time.perf_counter() - clock
    if rows:
        manifest = write_manifest(
            output, stage="pack", spec=spec, inputs=inputs, files=files, result=result
        )
        clock = time.perf_counter()
        loader = Loader(Windows(manifest, {"c": tokens}), seed=0, phase=0, sequences=64)
        ends = np.zeros(64, dtype=np.int64)
        for step in range(-(-result["windows"] // 64)):
            ends += loader.batch(step).input_ids[:, -1]
        seconds += time.perf_counter() - clock
    return {
        "seconds": seconds,
        "peak_memory_mb": peak_memory_mb(),
        "documents": result["documents"],
        "tokens": result["tokens"] + result["unused_tokens"] + result["dropped_tokens"],
        "windows": result["windows"],
        "padding_tokens": result["padding_tokens"],
        "dropped_tokens": result["dropped_tokens"],
        "documents_cut": result["documents_cut"],
    }


def peer(arm: str, length: int, options: argparse.Namespace, output: Path) -> dict[str, Any]:
    """Measure TRL on the same documents, held in memory, with ids as narrow as ours."""
    del output
    import pyarrow as pa
    from datasets import Dataset
    from trl.data_utils import pack_dataset

    manifest = json.loads((options.tokens / "manifest.json").read_text())
    tables = []
    for shard in manifest["shards"]:
        with pa.OSFile(str(options.tokens / shard["file"])) as file:
            tables.append(pa.ipc.open_file(file).read_all().select(["input_ids"]))
    dataset = Dataset(pa.concat_tables(tables))
    clock = time.perf_counter()
    packed = pack_dataset(
        dataset,
        length,
        strategy=arm.removeprefix("trl_"),
        map_kwargs={"batch_size": options.peer_batch, "keep_in_memory": True},
    )
    seconds = time.perf_counter() - clock
    tokens = sum(shard["tokens"] for shard in manifest["shards"])
    return {
        "seconds": seconds,
        "peak_memory_mb": peak_memory_mb(),
        "documents": len(dataset),
        "tokens": tokens,
        "windows": len(packed),
        "padding_tokens": len(packed) * length - tokens,
        "batch_documents": options.peer_batch,
    }


def peer_versions(options: argparse.Namespace) -> dict[str, str]:
    """Return the versions in the peers' environment."""
    program = (
        "import json, platform; from importlib.metadata import version; "
        "names = ('trl', 'datasets', 'pyarrow', 'numpy'); "
        "print(json.dumps({'python': platform.python_version(), **{n: version(n) for n in names}}))"
    )
    done = subprocess.run(
        [options.peers_python, "-c", program], capture_output=True, text=True, check=True
    )
    versions: dict[str, str] = json.loads(done.stdout)
    return versions


def several(tokens: Path, times: int, folder: Path) -> None:
    """Make a corpus that lists every shard of another one so many times, without a copy."""
    manifest = json.loads((tokens / "manifest.json").read_text())
    files, shards = [], []
    for copy in range(times):
        for entry, listed in ((files, manifest["files"]), (shards, manifest["shards"])):
            key = "path" if entry is files else "file"
            entry += [{**item, key: f"{copy}/{item[key]}"} for item in listed]
        for item in manifest["files"]:
            link = folder / f"{copy}/{item['path']}"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to((tokens / item["path"]).resolve())
    text = json.dumps({**manifest, "files": files, "shards": shards})
    (folder / "manifest.json").write_text(text)


if __name__ == "__main__":
    main()
