"""The JSON file of a GPU benchmark: the machine, the settings, and every arm as it ends."""

import datetime
import gc
import subprocess
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import machine

from ropewalk.base.canonical import plain
from ropewalk.base.files import write_json
from ropewalk.base.stage import StageError

GIB = 2**30


class Record:
    """What was measured so far, written after every arm: a killed run leaves its figures."""

    def __init__(
        self, benchmark: str, path: Path, *, device: torch.device, budget_seconds: float
    ) -> None:
        self.device = device
        self.path = path
        self._began = time.monotonic()
        self._budget = budget_seconds
        self._part = ""
        self._body: dict[str, Any] = {
            "benchmark": f"gpu-{benchmark}",
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "machine": describe(device),
            "settings": {},
            "arms": [],
            "skipped": [],
            "failed": [],
        }

    def begin(self, part: str, sizes: Any) -> None:
        """Name the part that the arms from here on belong to, and its settings."""
        self._part = part
        self._body["settings"][part] = plain(sizes)

    def arm(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """Run one arm and write down what it returns; return that, None if it was skipped or broke.

        The device's memory is empty before and after.
        """
        head = {"part": self._part, "arm": name}
        found = None
        if time.monotonic() - self._began > self._budget:
            self.skip(name, f"the {self._budget:g} s of this run were spent")
            return None
        release(self.device)
        began = time.monotonic()
        try:
            found = work()
            took = round(time.monotonic() - began, 2)
            self._body["arms"].append({**head, **plain(found), "arm_seconds": took})
        except torch.cuda.OutOfMemoryError as error:
            self.skip(name, f"out of memory: {str(error).partition('. ')[0]}")
        except StageError as error:
            self.skip(name, str(error))
        except Exception as error:  # the other arms still count, device time is dear
            traceback.print_exc()
            self._body["failed"].append({**head, "error": f"{type(error).__name__}: {error}"})
        release(self.device)
        self._write()
        print(f"{self._part} {name}: {'no figures' if found is None else brief(found)}", flush=True)
        return found

    def skip(self, name: str, reason: str) -> None:
        """Write down that an arm was left out, and why."""
        self._body["skipped"].append({"part": self._part, "arm": name, "reason": reason})
        self._write()

    def end(self) -> int:
        """Write the file for the last time; return 1 if an arm broke or disagreed, else 0."""
        self._write()
        wrong = [arm for arm in self._body["arms"] if arm.get("agrees") is False]
        print(f"written to {self.path}", flush=True)
        for arm in [*self._body["failed"], *wrong]:
            print(f"{arm['part']} {arm['arm']}: {arm.get('error', 'does not agree')}", flush=True)
        return 1 if self._body["failed"] or wrong else 0

    def _write(self) -> None:
        self._body["seconds"] = round(time.monotonic() - self._began, 1)
        write_json(self.path, self._body)


def describe(device: torch.device) -> dict[str, Any]:
    """Return what a number depends on beside the code: device, driver, libraries."""
    found = machine("torch", "transformers", "accelerate", "numpy", "safetensors")
    found["cuda"] = torch.version.cuda
    found["allocator"] = "expandable_segments" if device.type == "cuda" else None
    if device.type == "cpu":
        return {**found, "device": "cpu", "threads": torch.get_num_threads()}
    properties = torch.cuda.get_device_properties(device)
    return {
        **found,
        "device": properties.name,
        "device_memory_gib": round(properties.total_memory / GIB, 2),
        "multiprocessors": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
        "driver": _driver(),
        "cudnn": torch.backends.cudnn.version(),
        "flash_attn": _flash_attn(),
    }


def _driver() -> str | None:
    """Return the driver's version and the power limit, which decides the clocks under load."""
    query = ["nvidia-smi", "--query-gpu=driver_version,power.limit", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.splitlines()[0].strip() if found.stdout else None


def _flash_attn() -> str | None:
    try:
        import flash_attn
    except ImportError:
        return None
    return str(flash_attn.__version__)


def release(device: torch.device) -> None:
    """Free what earlier work left on the device and start its peak counters again."""
    if device.type == "cuda":
        torch.compiler.reset()  # compiled code keeps buffers alive
        gc.collect()
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def brief(found: dict[str, Any]) -> str:
    """Return the single numbers of an arm on one line."""
    shown = {k: v for k, v in found.items() if isinstance(v, int | float) or v is None}
    return ", ".join(
        f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items()
    )
