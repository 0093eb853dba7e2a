"""The loss over a large vocabulary: memory and time of chunks against whole logits.

    python benchmarks/loss.py --json
    python benchmarks/loss.py --json --tokens 512 --vocabulary 16384

Every arm is a process of its own, once per turn: forward and backward of next-token cross entropy
from hidden states, and the most memory the process held beyond what it held before (hidden states
and output matrix). The gradient of the output matrix is part of it: every arm has to make that.

* `chunked`: ropewalk's `linear_cross_entropy_sum`
* `whole`: torch's `linear` and `cross_entropy`, all logits at once, what transformers does
* `torch_chunked`: torch's own `linear_cross_entropy` with chunks of as many tokens as ropewalk's

Dimensions: N tokens, D hidden, V vocabulary.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from common import machine, peak_memory_mb, ratio, significant

from ropewalk.model.loss import chunk_tokens, linear_cross_entropy_sum
from ropewalk.model.numerics import applied
from ropewalk.model.spec import Numerics

OWN, WHOLE, TORCH = "chunked", "whole", "torch_chunked"
NUMERICS = {
    "fp32": Numerics(matmul="medium"),
    "bf16": Numerics(precision="bf16", matmul="medium"),
}
Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def main() -> None:
    """Measure and print, or be one arm."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=128_256)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--peers", nargs="*", default=[WHOLE, TORCH], choices=[WHOLE, TORCH])
    parser.add_argument("--precisions", nargs="+", default=list(NUMERICS), choices=list(NUMERICS))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--arm", nargs=2, metavar=("LOSS", "PRECISION"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        print(json.dumps(run(*options.arm, options)))
        return
    found = measure(options)
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        for key, value in found.items():
            print(f"{key}: {value}")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return everything that was found, as plain data."""
    found: dict[str, Any] = {
        "benchmark": "loss",
        "machine": machine("torch"),
        "threads": torch.get_num_threads(),
        "tokens": options.tokens,
        "hidden": options.hidden,
        "vocabulary": options.vocabulary,
        "chunk_tokens": chunk_tokens("cpu", options.vocabulary),
        "turns": options.turns,
        "logits_mb": significant(4 * options.tokens * options.vocabulary / 2**20),
        "output_matrix_mb": significant(4 * options.hidden * options.vocabulary / 2**20),
    }
    arms = [OWN, *(peer for peer in options.peers if peer != TORCH or _torch_loss(1))]
    for precision in options.precisions:
        turns: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
        for _ in range(options.turns):
            for arm, runs in turns.items():
                runs.append(_child(arm, precision, options))
        for arm, runs in turns.items():
            found[f"{precision}_{arm}"] = {
                key: significant(statistics.median(r[key] for r in runs)) for key in runs[0]
            }
        own = turns[OWN]
        for arm in arms[1:]:
            spread = ratio([r["seconds"] for r in own], [r["seconds"] for r in turns[arm]])
            key = f"{precision}_{{}}_vs_{arm}"
            found[key.format("speed")] = spread["median"]
            found[key.format("speed") + "_range"] = [spread["least"], spread["most"]]
            growth = [
                mine["peak_growth_mb"] / theirs["peak_growth_mb"]
                for mine, theirs in zip(own, turns[arm], strict=True)
            ]
            found[key.format("memory")] = significant(statistics.median(growth))
    return found


def _child(arm: str, precision: str, options: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, str(Path(__file__).resolve()), "--arm", arm, precision]
    for name in ("tokens", "hidden", "vocabulary"):
        command += [f"--{name}", str(getattr(options, name))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def run(arm: str, precision: str, options: argparse.Namespace) -> dict[str, float]:
    """Be one arm: memory of the first pass, time of the second, and what came out."""
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(options.tokens, options.hidden, generator=random).requires_grad_()
    weight = torch.randn(options.vocabulary, options.hidden, generator=random)
    weight = weight.mul_(options.hidden**-0.5).requires_grad_()
    labels = torch.randint(0, options.vocabulary, (options.tokens,), generator=random)
    losses: dict[str, Loss | None] = {
        OWN: linear_cross_entropy_sum,
        WHOLE: _whole,
        TORCH: _torch_loss(chunk_tokens("cpu", options.vocabulary)),
    }
    loss = losses[arm]
    assert loss is not None
    with applied(NUMERICS[precision], torch.device("cpu")):
        _warm_up(loss)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew: see man 5 proc
        before = peak_memory_mb()
        _pass(loss, hidden, weight, labels)
        growth = peak_memory_mb() - before
        hidden.grad = weight.grad = None
        clock = time.perf_counter()
        total = _pass(loss, hidden, weight, labels)
        seconds = time.perf_counter() - clock
    assert hidden.grad is not None
    assert weight.grad is not None
    return {
        "seconds": seconds,
        "peak_growth_mb": growth,
        "loss": total,
        "hidden_gradient_norm": float(hidden.grad.norm()),
        "weight_gradient_norm": float(weight.grad.norm()),
    }


def _pass(loss: Loss, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> float:
    mean = loss(hidden, weight, labels) / len(labels)
    mean.backward()
    return float(mean.detach())


def _warm_up(loss: Loss) -> None:
    """Let threads and kernels start on a problem that needs no memory to speak of."""
    hidden, weight = (torch.ones(2, 2, requires_grad=True) for _ in range(2))
    loss(hidden, weight, torch.zeros(2, dtype=torch.int64)).backward()


def _whole(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    logits = torch.nn.functional.linear(hidden, weight).float()
    return torch.nn.functional.cross_entropy(logits, labels, reduction="sum")


def _torch_loss(tokens: int) -> Loss | None:
    """Return torch's own chunked loss with chunks of so many tokens; None where it has none."""
    function = getattr(torch.nn.functional, "linear_cross_entropy", None)
    settings = getattr(torch.nn, "LinearCrossEntropyOptions", None)
    if function is None or settings is None:
        return None
    chosen = settings(batch_chunk_size=tokens)

    def loss(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if torch.is_autocast_enabled("cpu"):  # which does not know this function
            low = torch.get_autocast_dtype("cpu")
            hidden, weight = hidden.to(low), weight.to(low)
        return function(hidden, weight, labels, reduction="sum", options=chosen)

    return loss


if __name__ == "__main__":
    main()
