"""A run of thirty steps that is interrupted, and what its folder tells."""

import json
import subprocess
import time
from pathlib import Path
from typing import Any

from train_sample import RUN, changed, exported, losses

from ropewalk.train.spec import Phase

LONG = changed(
    RUN, phases=(Phase(windows="packed", length_tokens=32, steps=30),), snapshot_steps=(3,)
)


def work_of(folder: Path) -> Path:
    (work,) = folder.glob("work-*")
    return work


def ledger(folder: Path) -> list[dict[str, Any]]:
    lines = (work_of(folder) / "segments.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def wait_for_step(child: subprocess.Popen[str], folder: Path, step: int) -> None:
    """Wait until a checkpoint of `step` or later stands in the only work folder."""
    while not any(
        int(path.name.removeprefix("step-")) >= step
        for path in folder.glob("work-*/checkpoints/step-??????")
    ):
        assert child.poll() is None, child.communicate()[0]
        time.sleep(0.005)


def assert_same(folder: Path, undisturbed: Path) -> None:
    assert exported(folder) == exported(undisturbed)
    assert losses(folder) == losses(undisturbed)
    manifests = [(p / "manifest.json").read_bytes() for p in (folder, undisturbed)]
    assert manifests[0] == manifests[1]
