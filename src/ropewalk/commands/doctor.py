"""`ropewalk doctor`: what this machine can run."""

import argparse
import importlib.metadata
import os
import platform
import shutil
from pathlib import Path
from typing import Any

from ropewalk.commands.project import add_config


def register(commands: Any) -> None:
    """Add the command."""
    command = commands.add_parser(
        "doctor",
        help="say what this machine can run",
        description=(
            "Check Python, the pinned packages, cores, memory, disk, GPUs and the configured "
            "locations, and say which scales can run here. Nothing is changed."
        ),
    )
    add_config(command)
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the findings; exit code 1 if the default scale cannot run."""
    from ropewalk.study.config import read_config
    from ropewalk.study.project import read_config_file
    from ropewalk.study.triggers import LOCK, read_pins

    root = options.config.resolve().parent
    config = read_config(read_config_file(options.config))
    faults = 0
    print(f"python {platform.python_version()} on {platform.system()} {platform.machine()}")
    if platform.python_version_tuple()[:2] != ("3", "11"):
        faults += 1
        print("  fault: ropewalk is pinned and tested on Python 3.11")
    pins = read_pins(root / LOCK)
    for name, version in sorted(pins.items()):
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            faults += 1
            print(f"  fault: {name} {version} is pinned but not installed: run `make env`")
            continue
        if installed.partition("+")[0] != version.partition("+")[0]:
            faults += 1
            print(f"  fault: {name} {installed} is installed, {version} is pinned: run `make env`")
    print(f"packages: {len(pins)} pinned")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    free = shutil.disk_usage(root).free / 2**30
    print(
        f"cores {len(os.sched_getaffinity(0))}, memory {memory:.0f} GiB, free disk {free:.0f} GiB"
    )
    for need, have, unit in ((4, memory, "memory"), (5, free, "free disk")):
        if have < need:
            faults += 1
            print(f"  fault: {unit} below {need} GiB")
    _accelerators()
    for name, place in sorted(config.locations.items()):
        state = "not set" if place is None else "found" if Path(place).exists() else "NOT FOUND"
        print(f"location {name}: {state}{f' ({place})' if place else ''}")
    print("scales tiny, mini and small can run here" if not faults else f"{faults} faults")
    return 1 if faults else 0


def _accelerators() -> None:
    import torch

    count = torch.cuda.device_count()
    if not count:
        print("GPUs: none; scales gpu and paper need some")
    for index in range(count):
        properties = torch.cuda.get_device_properties(index)
        major, minor = properties.major, properties.minor
        precision = "bf16 and FlashAttention" if major >= 8 else "fp16 with SDPA only"
        memory = properties.total_memory / 2**30
        print(f"GPU {index}: {properties.name}, {memory:.0f} GiB, sm_{major}{minor}: {precision}")
