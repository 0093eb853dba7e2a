"""The most memory that tensors take during a piece of work."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

GIGABYTE = 1e9


def peak_bytes(device: torch.device, work: Callable[[], None], held: int) -> int:
    """Return the most bytes allocated at a time while `work` runs, what stands before included.

    On a GPU that is what its allocator counts. A CPU's counts nothing by itself, and the resident
    set keeps what was freed: there torch's profiler sees every allocation, and `held`, the bytes of
    the tensors that stand already, is added.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        seen.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    changes = [event for event in events if event.get("name") == "[memory]"]
    now = most = 0
    for event in sorted(changes, key=lambda event: event["ts"]):
        now += event["args"]["Bytes"]
        most = max(most, now)
    return held + most
