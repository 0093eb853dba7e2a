"""Training steps of a small Llama: ropewalk's objective against a plain transformers loop."""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
import transformers

from ropewalk.model import numerics
from ropewalk.model.build import build
from ropewalk.model.forward import Objective, inputs, loss_sum
from ropewalk.model.rope import rope_parameters
from ropewalk.model.spec import Architecture, Numerics, PlainRope
from ropewalk.model.weights import Scratch
from ropewalk.train.optimizer import gradient_norm, scale_gradients

ARCHITECTURE = Architecture(
    layers=4,
    hidden=128,
    heads=4,
    ffn=352,
    vocabulary_size=2048,
    context_tokens=256,
    tied_embeddings=True,
    init_std=0.08,
)
LEARNING_RATE = 1e-3


def own(rows: int, settings: Numerics) -> Callable[[np.ndarray], float]:
    """Return a function that does one step with ropewalk's parts and returns the loss."""
    source = Scratch(seed=0, std=ARCHITECTURE.init_std)
    model = build(ARCHITECTURE, PlainRope(), settings, torch.device("cpu"), source)
    objective = Objective(model)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    positions = np.arange(ARCHITECTURE.context_tokens)[None]
    ends = [(0, ARCHITECTURE.context_tokens)] * rows

    def step(ids: np.ndarray) -> float:
        with numerics.applied(settings, torch.device("cpu")):
            batch = inputs(ids, ends, positions, torch.device("cpu"))
            loss, targets = loss_sum(objective, batch)
            (loss / targets).backward()
        parameters = list(objective.parameters())
        norm = float(gradient_norm(parameters))
        if norm > 1:
            scale_gradients(parameters, 1 / norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss) / targets

    return step


def plain(rows: int, settings: Numerics) -> Callable[[np.ndarray], float]:
    """Return a function that does one step as a plain script would, in the same numerics."""
    del rows
    config = transformers.LlamaConfig(
        vocab_size=ARCHITECTURE.vocabulary_size,
        hidden_size=ARCHITECTURE.hidden,
        intermediate_size=ARCHITECTURE.ffn,
        num_hidden_layers=ARCHITECTURE.layers,
        num_attention_heads=ARCHITECTURE.heads,
        num_key_value_heads=ARCHITECTURE.heads,
        max_position_embeddings=ARCHITECTURE.context_tokens,
        rms_norm_eps=ARCHITECTURE.norm_epsilon,
        tie_word_embeddings=True,
        rope_parameters=rope_parameters(ARCHITECTURE, PlainRope()),
    )
    model = transformers.LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    precision = {"fp32": torch.float32, "bf16": torch.bfloat16}[settings.precision]

    def step(ids: np.ndarray) -> float:
        rows_ = torch.from_numpy(ids)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
            loss = model(input_ids=rows_, labels=rows_, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss)

    return step


def measure(rows: int, steps: int, turns: int, settings: Numerics) -> dict[str, float]:
    """Return tokens/s of both and their ratio, medians over turns."""
    torch.set_float32_matmul_precision(settings.matmul)
    random = np.random.default_rng(0)
    shape = (rows, ARCHITECTURE.context_tokens)
    arms = {"ropewalk": own(rows, settings), "plain": plain(rows, settings)}
    speeds: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(turns + 1):
        for name, step in arms.items():
            clock = time.perf_counter()
            for _ in range(steps):
                step(random.integers(0, ARCHITECTURE.vocabulary_size, shape))
            seconds = time.perf_counter() - clock
            if turn:  # the first turn warms up
                speeds[name].append(steps * rows * ARCHITECTURE.context_tokens / seconds)
    ratios = [a / b for a, b in zip(speeds["ropewalk"], speeds["plain"], strict=True)]
    return {
        "tokens_per_second": round(statistics.median(speeds["ropewalk"])),
        "plain_tokens_per_second": round(statistics.median(speeds["plain"])),
        "ratio_vs_plain": round(statistics.median(ratios), 3),
        "ratio_lowest": round(min(ratios), 3),
        "ratio_highest": round(max(ratios), 3),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8, help="per turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = {
        "benchmark": "train",
        "model": "Llama, 4 x 128, head dimension 32, FFN 352, vocabulary 2048 tied, T=256",
        "rows": options.rows,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "fp32_highest": measure(options.rows, options.steps, options.turns, Numerics()),
        "fp32_medium": measure(
            options.rows, options.steps, options.turns, Numerics(matmul="medium")
        ),
    }
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        for name in ("fp32_highest", "fp32_medium"):
            print(name, result[name])


if __name__ == "__main__":
    main()
