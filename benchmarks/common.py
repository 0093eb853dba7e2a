"""What the benchmarks share: the machine in words, turns A B A B, and how much memory was used."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any


def machine(*libraries: str) -> dict[str, Any]:
    """Return what a number depends on beside the code: processor, cores, Python, libraries."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        "system": platform.platform(),
        "python": platform.python_version(),
        "libraries": {name: metadata.version(name) for name in libraries},
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def pin(core: int | None = None) -> int:
    """Keep this process and its children on one core (default: the last allowed); return it."""
    chosen = max(os.sched_getaffinity(0)) if core is None else core
    os.sched_setaffinity(0, {chosen})
    return chosen


def take_turns(
    arms: Mapping[str, Callable[[], float]], turns: int, *, warm_up: int = 1
) -> dict[str, list[float]]:
    """Call the arms one after the other, turn after turn, and return what each returned.

    So a machine that gets slower or faster meanwhile does so for all. The turns that warm up are
    left out.
    """
    found: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(warm_up + turns):
        for name, arm in arms.items():
            value = arm()
            if turn >= warm_up:
                found[name].append(value)
    return found


def seconds(work: Callable[[], object]) -> float:
    """Return the wall time of one call."""
    clock = time.perf_counter()
    work()
    return time.perf_counter() - clock


def ratio(own: Sequence[float], peer: Sequence[float]) -> dict[str, float]:
    """Return how much longer the peer took, as median, least and most over turns."""
    ratios = [theirs / mine for mine, theirs in zip(own, peer, strict=True)]
    return {
        "median": significant(statistics.median(ratios)),
        "least": significant(min(ratios)),
        "most": significant(max(ratios)),
    }


def significant(value: float, digits: int = 4) -> float:
    """Return the value with this many significant digits."""
    return float(f"{value:.{digits}g}")


def peak_memory_mb() -> float:
    """Return the most memory this process has held at one time, touched pages of maps included."""
    return _status("VmHWM")


def resident_mb() -> dict[str, float]:
    """Return the memory of this process that is in RAM now, in MiB.

    `anonymous` is what it allocated; `file` are touched pages of files it maps, which the system
    takes back when it needs them.
    """
    return {"anonymous": _status("RssAnon"), "file": _status("RssFile")}


def _status(key: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return round(int(value.split()[0]) / 1024, 1)
    raise KeyError(f"/proc/self/status has no {key}")


PILE_MEAN_TOKENS, PILE_MEDIAN_TOKENS = 1080, 493


def synthetic_tokens(
    folder: Path, documents: int, *, long_share: float = 0.0, seed: int = 0
) -> None:
    """Write a tokens artifact with document lengths like the Pile's: lognormal, seeded.

    `long_share` of the documents are fifty times as long. The ids are noise.
    """
    import dataclasses
    import math

    import numpy as np

    from ropewalk.base.manifest import File, write_manifest
    from ropewalk.data.shards import ShardWriter

    random = np.random.default_rng(seed)
    spread = math.sqrt(2 * math.log(PILE_MEAN_TOKENS / PILE_MEDIAN_TOKENS))
    lengths = random.lognormal(math.log(PILE_MEDIAN_TOKENS), spread, documents)
    lengths[random.random(documents) < long_share] *= 50
    sizes = np.maximum(lengths, 1).astype(np.int64)
    pool = random.integers(0, 50_000, int(sizes.max()) + (1 << 22), dtype=np.uint16)
    begins = random.integers(0, 1 << 22, documents)
    shards = []
    with ShardWriter(folder, vocabulary_size=50_000, shard_tokens=1 << 23) as writer:
        for index, (begin, size) in enumerate(zip(begins.tolist(), sizes.tolist(), strict=True)):
            ids = pool[begin : begin + size]
            shards.append(writer.add(f"d{index}", ids, subset=None, text_bytes=4 * size))
        shards.append(writer.close())
    made = [shard for shard in shards if shard is not None]
    write_manifest(
        folder,
        stage="gather",
        spec={},
        inputs={},
        files=[File(path=s.file, bytes=s.bytes, sha256=s.sha256) for s in made],
        result={"shards": [dataclasses.asdict(shard) for shard in made]},
    )
