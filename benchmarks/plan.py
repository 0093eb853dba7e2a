"""Planning: `snakemake -n all` over all studies, whole processes, at every scale.

    python benchmarks/plan.py --json
    python benchmarks/plan.py --json --scales paper --turns 5

It plans in a copy of the project without results, so that every job is to be done; what is planned
is the committed configuration. `seconds` are wall time, `cpu_seconds` user and system time, which
other processes disturb less. `own_cpu_seconds` is a process that only does ropewalk's part: its
imports, reading the studies, building the plan, digests of code, params. `start_cpu_seconds` is
`snakemake --version`: what its imports alone take.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, get_args

from common import machine, significant

from ropewalk.study.config import Scale

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("Snakefile", "config.yaml", "requirements.lock", "accepted.yaml")
FOLDERS = ("rules", "papers", "profiles", "envs")
SNAKEMAKE = (sys.executable, "-m", "snakemake")
OWN = """
import sys
from pathlib import Path
from ropewalk.study.config import read_config_file
from ropewalk.study.lookups import Lookups
from ropewalk.study.registry import STAGES

config = read_config_file(Path("config.yaml")) | {"scale": sys.argv[1]}
lookups = Lookups.load(config, Path())
lookups.prepare_jobs()
for stage in STAGES:
    lookups.triggers.params(stage)
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scales", nargs="+", choices=get_args(Scale), default=get_args(Scale))
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="plan-") as name:
        folder = Path(name)
        copy(folder)
        result = measure(options, folder)
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        for key, value in result.items():
            print(f"{key}: {value}")


def copy(folder: Path) -> None:
    """Copy what planning reads to a folder."""
    for name in PARTS:
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, folder / name)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name)


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return everything that is measured; scales take turns."""
    arms: dict[str, tuple[str, ...]] = {"start": (*SNAKEMAKE, "--version")}
    for scale in options.scales:
        arms[scale] = (*SNAKEMAKE, "-n", "all", "--config", f"scale={scale}")
        arms[f"own {scale}"] = (sys.executable, "-c", OWN, scale)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
    for turn in range(1 + options.turns):
        for name, command in arms.items():
            one = run(command, folder)
            if turn:  # the first compiles modules and fills the page cache
                found[name].append(one)

    def median(name: str, key: str) -> float:
        return significant(statistics.median(one[key] for one in found[name]))

    return {
        "benchmark": "plan",
        "machine": machine("pyyaml", "snakemake"),
        "turns": options.turns,
        "start_cpu_seconds": median("start", "cpu_seconds"),
        "scales": {
            scale: {
                "jobs": int(found[scale][0]["jobs"]),
                "seconds": median(scale, "seconds"),
                "cpu_seconds": median(scale, "cpu_seconds"),
                "own_cpu_seconds": median(f"own {scale}", "cpu_seconds"),
            }
            for scale in options.scales
        },
    }


def run(command: tuple[str, ...], folder: Path) -> dict[str, float]:
    """Return wall time, CPU time and, of a dry run, the number of jobs of one process."""
    path = f"{ROOT / 'src'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    before, clock = os.times(), time.perf_counter()
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    seconds, after = time.perf_counter() - clock, os.times()
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    lines = (done.stdout + done.stderr).splitlines()
    totals = [line.split()[1] for line in lines if line.startswith("total ")]
    return {
        "seconds": seconds,
        "cpu_seconds": after.children_user
        - before.children_user
        + after.children_system
        - before.children_system,
        "jobs": float(totals[0]) if totals else 0.0,
    }


if __name__ == "__main__":
    main()
