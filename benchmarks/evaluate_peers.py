"""The peers of evaluate.py: losses of sliding windows by transformers, a turn at a time.

`PYTHON evaluate_peers.py FOLDER` stays alive and scores some windows for every line it reads:

    {"arm": "classic_fp32", "steps": 4}  ->  {"seconds": 0.4, "cpu_seconds": 0.8, "loss_sum": 42.1}

FOLDER holds `case.json` (stride, windows of a batch), `windows.npy` (token ids [window, token]) and
`weights` (a Hugging Face checkpoint). Of every window the last `stride` tokens are scored.

Dimensions: B windows, L tokens of a window, S of its last tokens.
"""

import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

Score = Callable[[torch.Tensor], float]  # ids [B, L] -> sum of losses of all S tokens, in nats


class Arm:
    """A way to score, and how many windows at a time it takes."""

    def __init__(self, score: Score, windows: torch.Tensor, at_once: int) -> None:
        self.score = score
        self.windows = windows
        self.at_once = at_once

    def turn(self, steps: int) -> dict[str, float]:
        """Score the first `steps` windows; return time, CPU time of all threads, sum of losses."""
        clock, cpu = time.perf_counter(), time.process_time()
        batches = self.windows[:steps].split(self.at_once)
        total = sum(self.score(batch) for batch in batches)
        return {
            "seconds": time.perf_counter() - clock,
            "cpu_seconds": time.process_time() - cpu,
            "loss_sum": total,
        }


def classic(model: Any, stride: int) -> Score:
    """Return the loop that everybody copies: a window at a time, targets masked by -100."""

    def score(ids: torch.Tensor) -> float:
        targets = ids.clone()
        targets[:, :-stride] = -100
        with torch.no_grad():
            outputs = model(ids, labels=targets)
        return float(outputs.loss) * stride

    return score


def batched(model: Any, stride: int) -> Score:
    """Return the same for a batch, with the logits of all tokens."""

    @torch.inference_mode()
    def score(ids: torch.Tensor) -> float:
        logits = model(ids, use_cache=False).logits[:, -stride - 1 : -1].float()
        return _sum(logits, ids[:, -stride:])

    return score


def kept(model: Any, stride: int) -> Score:
    """Return the same with logits where tokens are scored."""

    @torch.inference_mode()
    def score(ids: torch.Tensor) -> float:
        logits = model(ids, use_cache=False, logits_to_keep=stride + 1).logits[:, :-1].float()
        return _sum(logits, ids[:, -stride:])

    return score


def _sum(logits: torch.Tensor, targets: torch.Tensor) -> float:
    return float(F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum"))


WAYS = {"classic": classic, "batched": batched, "kept": kept}


def arm_of(folder: Path, name: str) -> Arm:
    """Return `WAY_NUMERICS`; numerics are fp32 (torch's default), fp32_medium or bf16 (weights)."""
    from transformers import AutoModelForCausalLM

    case = json.loads((folder / "case.json").read_text())
    way, _, numerics = name.partition("_")
    dtype = torch.bfloat16 if numerics == "bf16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(folder / "weights", dtype=dtype).eval()
    score = WAYS[way](model, case["stride"])

    def under(ids: torch.Tensor) -> float:
        # A switch of the process, which has other arms too.
        torch.set_float32_matmul_precision("medium" if numerics == "fp32_medium" else "highest")
        return score(ids)

    windows = torch.from_numpy(np.load(folder / "windows.npy"))
    return Arm(under, windows, 1 if way == "classic" else case["at_once"])


def main(folder: Path) -> None:
    """Serve turns until the input ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries print what they like

    def answer(found: dict) -> None:
        print(json.dumps(found), file=answers, flush=True)

    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    answer({"versions": versions})
    arms: dict[str, Arm] = {}
    for line in sys.stdin:
        request = json.loads(line)
        name = request["arm"]
        if name not in arms:
            arms[name] = arm_of(folder, name)
        answer(arms[name].turn(request["steps"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
