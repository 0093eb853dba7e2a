"""Training steps of a small Llama on a CPU: ropewalk's own step against what others offer.

    python benchmarks/train.py --json
    python benchmarks/train.py --json --peers-python OTHER_ENVIRONMENT/bin/python
    python benchmarks/train.py --json --small

ropewalk's arms put together the parts of a training run: objective, inputs, loss, AdamW, gradient
norm, numerics. Peers are a real `transformers.Trainer`, a plain loop over transformers and, where
the other environment has it, litgpt; each has a process of its own that does a turn when asked. All
arms start from the same weights and read the same rows, so that their first losses can be compared.
Waiting threads sleep in all of them (OMP_WAIT_POLICY=passive).

Dimensions: B rows, T tokens of a row.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine, ratio, significant, take_turns
from torch.nn.functional import scaled_dot_product_attention
from train_peers import Arm, Peer
from transformers.utils.logging import disable_progress_bar

from ropewalk.model import attention
from ropewalk.model.build import build
from ropewalk.model.flops import STEP_FORMULA, attended_pairs, step_flops
from ropewalk.model.forward import inputs, loss_sum
from ropewalk.model.numerics import applied
from ropewalk.model.spec import Architecture, Numerics, PlainRope
from ropewalk.model.weights import Scratch, files
from ropewalk.train.optimizer import adamw, gradient_norm, scale_gradients
from ropewalk.train.sharding import objective
from ropewalk.train.spec import Optimizer
from ropewalk.train.world import World

CPU = torch.device("cpu")
OPTIMIZER = Optimizer(lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, clip_norm=1.0)
HIGHEST = Numerics()
MEDIUM = Numerics(matmul="medium")
BF16 = Numerics(precision="bf16", matmul="medium")
SAME_LOSS = 3e-6  # relative: how far the ways to multiply in fp32 may lie apart


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is trained on what."""

    architecture: Architecture  # context_tokens: T of the plain rows
    rows: int
    packed_length_tokens: int
    packed_rows: int
    document_tokens: int  # packed rows hold documents of this length, the last one cut
    attention_length_tokens: int
    attention_documents: int
    attention_dimension: int  # of a head
    gemm: int  # side of the square matrices whose product is the peak


SIZES = Sizes(
    architecture=Architecture(
        layers=4, hidden=256, heads=8, ffn=688, vocabulary_size=8192, context_tokens=512
    ),
    rows=8,
    packed_length_tokens=2048,
    packed_rows=2,
    document_tokens=300,
    attention_length_tokens=4096,
    attention_documents=8,
    attention_dimension=64,
    gemm=1024,
)
SMALL = Sizes(
    architecture=Architecture(
        layers=2, hidden=32, heads=2, ffn=48, vocabulary_size=128, context_tokens=32
    ),
    rows=4,
    packed_length_tokens=64,
    packed_rows=2,
    document_tokens=20,
    attention_length_tokens=128,
    attention_documents=8,
    attention_dimension=16,
    gemm=128,
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="of a turn")
    parser.add_argument("--peers-python", help="of an environment with litgpt and this torch")
    parser.add_argument("--small", action="store_true", help="toy sizes: does it run at all")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.small:
        options.turns, options.steps = 1, 1
    sizes = SMALL if options.small else SIZES
    with tempfile.TemporaryDirectory(prefix="train-", ignore_cleanup_errors=True) as name:
        found = measure(sizes, Path(name), options)
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        for key, value in found.items():
            print(f"{key}: {value}")


def measure(sizes: Sizes, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return everything that was found, as plain data."""
    _prepare(sizes, work)
    bench = Bench(sizes=sizes, work=work, turns=options.turns, steps=options.steps)
    litgpt = Peer.started("litgpt", work, python=options.peers_python)
    plain = Peer.started("transformers", work)
    trainers = {
        numerics: Peer.started("trainer", work, f"trainer_{numerics}")
        for numerics in ("fp32", "bf16")
    }
    for peer in (plain, *trainers.values()):
        peer.wait()
    litgpt.try_out("litgpt_fp32")
    alone = _attention(sizes, options.turns)
    groups: dict[str, dict[str, Any]] = {}
    for numerics, own in (
        ("fp32", {"ropewalk_highest": HIGHEST, "ropewalk": MEDIUM}),
        ("bf16", {"ropewalk": BF16}),
    ):
        arms = {name: bench.own(chosen) for name, chosen in own.items()}
        arms |= {
            "trainer": trainers[numerics].arm("trainer"),
            "plain": plain.arm(f"plain_{numerics}"),
        }
        if numerics == "fp32":
            arms["plain_medium"] = plain.arm("plain_fp32_medium")
        if litgpt.missing is None:
            arms["litgpt"] = litgpt.arm(f"litgpt_{numerics}")
        groups[numerics] = bench.group(arms, packed=False)
        trainers[numerics].end()
    for numerics, chosen in (("fp32", MEDIUM), ("bf16", BF16)):
        theirs = "fp32_medium" if numerics == "fp32" else numerics
        arms = {"ropewalk": bench.own(chosen, packed=True)}
        arms |= {kind: plain.arm(f"{kind}_{theirs}") for kind in ("dense", "causal")}
        groups[f"packed_{numerics}"] = bench.group(arms, packed=True)
    for peer in (plain, litgpt):
        peer.end()
    _same_losses(groups["fp32"]["first_loss"])
    return {
        "benchmark": "train",
        "machine": machine("torch", "transformers", "accelerate"),
        "peers": plain.versions | litgpt.versions,
        "litgpt_missing": litgpt.missing,
        "threads": torch.get_num_threads(),
        "sizes": dataclasses.asdict(sizes),
        "optimizer": dataclasses.asdict(OPTIMIZER),
        "numerics": "fp32: ropewalk_highest and all peers torch's default, ropewalk and "
        "plain_medium float32_matmul_precision 'medium'; packed fp32: all arms 'medium'; "
        "bf16: autocast",
        "turns": options.turns,
        "steps_per_turn": options.steps,
        **_ratios(groups),
        **alone,
        "flops_formula": STEP_FORMULA,
        **groups,
    }


def _ratios(groups: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return by what factor ropewalk is faster than each peer: median, least and most of turns."""
    wanted = {"ratio_vs_trainer_fp32_highest": ("fp32", "ropewalk_highest", "trainer")}
    for numerics in ("fp32", "bf16"):
        for peer in ("trainer", "plain", "litgpt"):
            wanted[f"ratio_vs_{peer}_{numerics}"] = (numerics, "ropewalk", peer)
        for kind, name in (("dense", "dense_mask"), ("causal", "causal")):
            key = f"ratio_packed_vs_{name}_{numerics}"
            wanted[key] = (f"packed_{numerics}", "ropewalk", kind)
    wanted["ratio_vs_plain_fp32_medium"] = ("fp32", "ropewalk", "plain_medium")
    found: dict[str, Any] = {}
    for key, (group, own, peer) in wanted.items():
        seconds = groups[group]["seconds_per_step"]
        spread = ratio(seconds[own], seconds[peer]) if peer in seconds else None
        found[key] = spread["median"] if spread else None
        found[f"{key}_range"] = [spread["least"], spread["most"]] if spread else None
    return found


def _same_losses(first: Mapping[str, float]) -> None:
    """Refuse to report a speed for which another loss was computed."""
    highest, medium = first["ropewalk_highest"], first["ropewalk"]
    if abs(medium - highest) > SAME_LOSS * highest:
        raise SystemExit(
            f"first loss is {medium} with matmul 'medium' and {highest} with 'highest': "
            f"more than {SAME_LOSS} apart; on this processor 'medium' is no longer fp32"
        )


class Bench:
    """The arms of ropewalk, and turns of a group of arms with what follows from their times."""

    def __init__(self, *, sizes: Sizes, work: Path, turns: int, steps: int) -> None:
        self.sizes = sizes
        self.work = work
        self.turns = turns
        self.steps = steps

    def own(self, numerics: Numerics, *, packed: bool = False) -> Callable[[int], dict]:
        """Return ropewalk's arm: a function that does some steps and returns their times."""
        rows = np.load(self.work / ("packed.npy" if packed else "rows.npy"))
        step = own_step(self.sizes, numerics, files(self.work / "weights"), self._ends(packed))
        arm = Arm(step, rows)

        def turn(steps: int) -> dict:
            with applied(numerics, CPU):
                return arm.turn(steps)

        return turn

    def _ends(self, packed: bool) -> list[tuple[int, ...]]:
        if not packed:
            return [(0, self.sizes.architecture.context_tokens)] * self.sizes.rows
        length = self.sizes.packed_length_tokens
        starts = range(0, length, self.sizes.document_tokens)
        return [(*starts, length)] * self.sizes.packed_rows

    def group(self, arms: Mapping[str, Callable[[int], dict]], *, packed: bool) -> dict[str, Any]:
        """Let arms and bare matrix products take turns; return times and what follows from them."""
        cpu: dict[str, list[float]] = {name: [] for name in arms}
        first: dict[str, float] = {}

        def timed(name: str) -> float:
            answer = arms[name](self.steps)
            cpu[name].append(answer["cpu_seconds"] / self.steps)
            if answer["first_loss"] is not None:
                first[name] = answer["first_loss"]
            return answer["seconds"] / self.steps

        gemms = {"gemm_highest": HIGHEST, "gemm_medium": MEDIUM, "gemm_bf16": BF16}
        turns: dict[str, Callable[[], float]] = {
            name: lambda name=name: timed(name) for name in arms
        }
        turns |= {name: lambda n=n: gemm_flops(self.sizes.gemm, n) for name, n in gemms.items()}
        found = take_turns(turns, self.turns)
        peak = {name: statistics.median(found.pop(name)) for name in gemms}
        ends = self._ends(packed)
        tokens = len(ends) * ends[0][-1]
        flops = step_flops(self.sizes.architecture, tokens=tokens, pairs=attended_pairs(ends))
        median = {name: statistics.median(seconds) for name, seconds in found.items()}
        return {
            "tokens_per_step": tokens,
            "flops_per_step": flops,
            "gemm_gflops": {name: significant(value / 1e9) for name, value in peak.items()},
            "tokens_per_second": {n: significant(tokens / s) for n, s in median.items()},
            "cpu_seconds_per_step": {
                n: significant(statistics.median(s[1:])) for n, s in cpu.items()
            },
            "gflops": {
                n: significant(flops / s / 1e9) for n, s in median.items() if "ropewalk" in n
            },
            "first_loss": first,
            "seconds_per_step": {n: [significant(s) for s in found[n]] for n in found},
        }


def own_step(
    sizes: Sizes, numerics: Numerics, source: Any, ends: list[tuple[int, ...]]
) -> Callable[[np.ndarray], float]:
    """Return a step as the training loop does it: ids [B, T] -> mean loss in nats."""
    world = World(rank=0, size=1, device=CPU, mesh=None)
    model = objective(sizes.architecture, PlainRope(), numerics, source, world)
    optimizer = adamw(model, OPTIMIZER)
    positions = np.arange(ends[0][-1])[None]

    def step(ids: np.ndarray) -> float:
        batch = inputs(ids, ends, positions, CPU)
        loss, targets = loss_sum(model, batch)
        (loss * (1 / targets)).backward()
        parameters = list(model.parameters())
        norm = float(gradient_norm(parameters))
        if OPTIMIZER.clip_norm is not None and norm > OPTIMIZER.clip_norm:
            scale_gradients(parameters, OPTIMIZER.clip_norm / norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach()) / targets

    return step


def gemm_flops(side: int, numerics: Numerics) -> float:
    """Return the FLOP/s of a product of square matrices: the best of a few."""
    dtype = torch.bfloat16 if numerics.precision == "bf16" else torch.float32
    a, b = torch.randn(2, side, side, generator=torch.Generator().manual_seed(0)).to(dtype)
    out = torch.empty_like(a)
    best = float("inf")
    with applied(numerics, CPU), torch.autocast("cpu", enabled=False):
        for _ in range(8):
            clock = time.perf_counter()
            torch.mm(a, b, out=out)
            best = min(best, time.perf_counter() - clock)
    return 2 * side**3 / best


def _attention(sizes: Sizes, turns: int) -> dict[str, Any]:
    """Measure attention alone, forward and backward, against a dense mask in torch's kernel."""
    length, heads = sizes.attention_length_tokens, sizes.architecture.heads
    part = length // sizes.attention_documents
    ends = [tuple(range(0, length + 1, part))]
    where = attention.segments(ends, 1, length, CPU)
    document = torch.arange(length) // part
    mask = (document[:, None] == document[None, :]).tril()[None, None]
    scaling = sizes.attention_dimension**-0.5
    module = torch.nn.Identity()

    def dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return scaled_dot_product_attention(query, key, value, mask, scale=scaling)

    def own(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return attention.sdpa(module, query, key, value, None, scaling=scaling, segments=where)[
            0
        ].transpose(1, 2)

    found: dict[str, Any] = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        random = torch.Generator().manual_seed(0)
        shape = (4, 1, length, heads, sizes.attention_dimension)
        given = torch.randn(shape, generator=random).to(dtype).transpose(2, 3)
        gradient, (query, key, value) = given[3], (t.requires_grad_() for t in given[:3].unbind())

        def timed(attend: Callable, q: Any = query, k: Any = key, v: Any = value) -> float:
            clock = time.perf_counter()
            torch.autograd.grad(attend(q, k, v), (q, k, v), gradient)  # noqa: B023
            return time.perf_counter() - clock

        error = 1e-5 if name == "fp32" else 2e-2  # of values of the size of 1
        torch.testing.assert_close(
            own(query, key, value), dense(query, key, value), atol=error, rtol=0
        )
        with applied(MEDIUM, CPU):
            times = take_turns(
                {"own": lambda: timed(own), "dense": lambda: timed(dense)},
                turns,
            )
        spread = ratio(times["own"], times["dense"])
        suffix = "" if name == "fp32" else f"_{name}"
        key_ = f"ratio_attention_vs_dense_mask_{length}{suffix}"
        found[key_] = spread["median"]
        found[f"{key_}_range"] = [spread["least"], spread["most"]]
        found[f"attention_seconds_{name}"] = significant(statistics.median(times["own"]))
    return found


def _prepare(sizes: Sizes, work: Path) -> None:
    """Write what all arms read: shapes, rows and initial weights."""
    shape, random = sizes.architecture, np.random.default_rng(0)
    case = {
        "architecture": dataclasses.asdict(shape),
        "optimizer": dataclasses.asdict(OPTIMIZER),
        "document_tokens": sizes.document_tokens,
    }
    (work / "case.json").write_text(json.dumps(case))
    plain = (32, sizes.rows, shape.context_tokens)
    packed = (8, sizes.packed_rows, sizes.packed_length_tokens)
    np.save(work / "rows.npy", random.integers(0, shape.vocabulary_size, plain))
    np.save(work / "packed.npy", random.integers(0, shape.vocabulary_size, packed))
    disable_progress_bar()
    source = Scratch(seed=0, std=shape.init_std)
    build(shape, PlainRope(), HIGHEST, CPU, source).save_pretrained(work / "weights")


if __name__ == "__main__":
    main()
