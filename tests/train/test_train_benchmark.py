"""The CPU benchmark of training at toy size: it runs from end to end and leaves no gap."""

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RATIOS = {
    *(f"ratio_vs_{peer}_{p}" for peer in ("trainer", "plain") for p in ("fp32", "bf16")),
    *(f"ratio_packed_vs_{m}_{p}" for m in ("dense_mask", "causal") for p in ("fp32", "bf16")),
    "ratio_vs_plain_fp32_medium",
    "ratio_vs_trainer_fp32_highest",
    "ratio_attention_vs_dense_mask_128",
    "ratio_attention_vs_dense_mask_128_bf16",
}


def numbers(value: Any) -> Iterator[float]:
    """Yield every number in plain data."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from numbers(item)
    elif isinstance(value, int | float):
        yield value


def test_train_benchmark_measures_the_same_training_in_every_arm() -> None:
    """An arm that trains something else, or is left out, makes a ratio that means nothing."""
    command = [sys.executable, str(ROOT / "benchmarks/train.py"), "--small", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert all(math.isfinite(number) for number in numbers(found))
    missing = {key for key in RATIOS if not isinstance(found.get(key), float)}
    assert not missing
    assert found["ratio_vs_litgpt_fp32"] is None
    assert found["litgpt_missing"] == "no --peers-python was given"
    arms = {
        "fp32": {"ropewalk", "ropewalk_highest", "trainer", "plain", "plain_medium"},
        "bf16": {"ropewalk", "trainer", "plain"},
        "packed_fp32": {"ropewalk", "dense"},
        "packed_bf16": {"ropewalk", "dense"},
    }
    for group, names in arms.items():
        losses = found[group]["first_loss"]
        assert names <= set(losses) == set(found[group]["tokens_per_second"])
        tolerance = 1e-6 if group.endswith("fp32") else 1e-4
        for name in names:
            assert losses[name] == pytest.approx(losses["ropewalk"], rel=tolerance)
        assert all(speed > 0 for speed in found[group]["tokens_per_second"].values())
    # Attention across documents is another training; if it were not, packing would show nothing.
    packed = found["packed_fp32"]["first_loss"]
    assert packed["causal"] != pytest.approx(packed["ropewalk"], rel=1e-5)
