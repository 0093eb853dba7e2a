"""Scoring sliding windows with a small Llama on a CPU: ropewalk's forward against transformers'.

    python benchmarks/evaluate.py --json
    python benchmarks/evaluate.py --json --small

All arms score the same tokens: windows of L tokens over one stream, a stride of S apart, of each
the last S tokens. Peers are the loop that everybody copies (a window at a time, labels of -100),
the same in batches, and batches with logits only where tokens are scored; they have a process of
their own that does a turn when asked. Waiting threads sleep in all (OMP_WAIT_POLICY=passive).

Then the memory of one long row, all of it scored, in a process each.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine, peak_memory_mb, ratio, significant, take_turns
from evaluate_peers import Arm
from train_peers import Peer
from transformers.utils.logging import disable_progress_bar

from ropewalk.model.build import build, load
from ropewalk.model.flops import forward_flops
from ropewalk.model.inference import losses, states
from ropewalk.model.numerics import applied
from ropewalk.model.spec import Architecture, Numerics, PlainRope
from ropewalk.model.weights import Scratch
from train import BF16, CPU, HIGHEST, MEDIUM, gemm_flops
from train import SIZES as TRAIN_SIZES
from train import SMALL as TRAIN_SMALL

OWN = {"ropewalk_highest": HIGHEST, "ropewalk": MEDIUM, "ropewalk_bf16": BF16}
PEERS = (
    "classic_fp32",
    "classic_bf16",
    "batched_fp32",
    "kept_fp32_medium",
    "kept_bf16",
)
RATIOS = {
    "ratio_vs_classic_fp32": ("ropewalk", "classic_fp32"),
    "ratio_vs_classic_fp32_highest": ("ropewalk_highest", "classic_fp32"),
    "ratio_vs_classic_bf16": ("ropewalk_bf16", "classic_bf16"),
    "ratio_vs_batched_fp32": ("ropewalk", "batched_fp32"),
    "ratio_vs_batched_kept_fp32_medium": ("ropewalk", "kept_fp32_medium"),
    "ratio_vs_batched_kept_bf16": ("ropewalk_bf16", "kept_bf16"),
}
SAME_LOSS = 1e-5  # relative: how far sums of losses in fp32 may lie apart
STD = 0.1  # of weights: large enough for attention and losses to be far from uniform


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is scored with what."""

    architecture: Architecture
    window_tokens: int  # L
    stride_tokens: int  # S
    at_once: int  # windows of a batch
    windows: int  # of a turn
    long_tokens: int  # of the row whose memory is measured
    long_models: dict[str, Architecture]
    gemm: int  # side of the square matrices whose product is the peak


SIZES = Sizes(
    architecture=TRAIN_SIZES.architecture,
    window_tokens=1024,
    stride_tokens=128,
    at_once=8,
    windows=16,
    long_tokens=32768,
    long_models={
        "mini": Architecture(
            layers=4,
            hidden=128,
            heads=4,
            ffn=352,
            vocabulary_size=2048,
            context_tokens=256,
            tied_embeddings=True,
        ),
        "larger": Architecture(
            layers=2, hidden=512, heads=8, ffn=1376, vocabulary_size=16384, context_tokens=2048
        ),
    },
    gemm=1024,
)
SMALL = dataclasses.replace(
    SIZES,
    architecture=TRAIN_SMALL.architecture,
    window_tokens=64,
    stride_tokens=16,
    at_once=2,
    windows=4,
    long_tokens=512,
    long_models={"mini": TRAIN_SMALL.architecture},
    gemm=128,
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="toy sizes: does it run at all")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--long", nargs=2, metavar=("WAY", "MODEL"), help="of this script's own")
    options = parser.parse_args()
    sizes = SMALL if options.small else SIZES
    if options.small:
        options.turns = 1
    if options.long:
        found = long_row(sizes, *options.long)
    else:
        with tempfile.TemporaryDirectory(prefix="evaluate-") as name:
            found = measure(sizes, Path(name), options)
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        for key, value in found.items():
            print(f"{key}: {value}")


def measure(sizes: Sizes, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return everything that was found, as plain data."""
    _prepare(sizes, work)
    peer = _peer(work)
    peer.wait()
    arms: dict[str, Callable[[int], dict]] = {
        name: own(sizes, work, numerics) for name, numerics in OWN.items()
    }
    arms |= {name: peer.arm(name) for name in PEERS}
    cpu: dict[str, list[float]] = {name: [] for name in arms}
    sums: dict[str, float] = {}

    def timed(name: str) -> float:
        answer = arms[name](sizes.windows)
        cpu[name].append(answer["cpu_seconds"] / sizes.windows)
        sums[name] = answer["loss_sum"]
        return answer["seconds"] / sizes.windows

    gemms = {"gemm_highest": HIGHEST, "gemm_medium": MEDIUM, "gemm_bf16": BF16}
    turns: dict[str, Callable[[], float]] = {name: lambda name=name: timed(name) for name in arms}
    turns |= {name: lambda n=n: gemm_flops(sizes.gemm, n) for name, n in gemms.items()}
    seconds = take_turns(turns, options.turns)
    peer.end()
    peak = {name: statistics.median(seconds.pop(name)) for name in gemms}
    _same_losses(sums)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    executed, whole = scoring_flops(sizes)
    share = {
        name: executed / median[name] / peak[gemm] for name, gemm in zip(OWN, gemms, strict=True)
    }
    return {
        "benchmark": "evaluate",
        "machine": machine("torch", "transformers"),
        "peers": peer.versions,
        "threads": torch.get_num_threads(),
        "sizes": dataclasses.asdict(sizes),
        "numerics": "fp32: classic, batched and ropewalk_highest torch's default, ropewalk and "
        "kept_fp32_medium float32_matmul_precision 'medium'; bf16: weights in bf16, ropewalk fp32 "
        "weights under autocast and fp32 logits",
        "turns": options.turns,
        "windows_per_turn": sizes.windows,
        **_ratios(seconds),
        "tokens_per_second": {n: significant(sizes.stride_tokens / s) for n, s in median.items()},
        "loss_sums": sums,
        "loss_sums_relative_to_classic_fp32": {
            name: significant(value / sums["classic_fp32"] - 1) for name, value in sums.items()
        },
        "flops_per_scored_token": {
            "ropewalk": executed // sizes.stride_tokens,
            "whole_windows_logits_where_scored": whole // sizes.stride_tokens,
        },
        "gemm_gflops": {name: significant(value / 1e9) for name, value in peak.items()},
        "share_of_gemm": {name: significant(value) for name, value in share.items()},
        "long_rows": _long_rows(sizes, options),
        "cpu_seconds_per_window": {
            n: significant(statistics.median(s[1:])) for n, s in cpu.items()
        },
        "seconds_per_window": {n: [significant(s) for s in seconds[n]] for n in seconds},
    }


def own(sizes: Sizes, work: Path, numerics: Numerics) -> Callable[[int], dict]:
    """Return ropewalk's arm: a function that scores some windows as an evaluation does."""
    model = load(work / "weights", numerics=numerics)
    stride, first = sizes.stride_tokens, sizes.window_tokens - sizes.stride_tokens - 1

    def score(ids: torch.Tensor) -> float:
        found = states(model, ids, first, stride)
        nll, _ = losses(model, found, ids[:, first + 1 :])
        return float(nll.sum(dtype=torch.float64))

    arm = Arm(score, torch.from_numpy(np.load(work / "windows.npy")), sizes.at_once)

    def turn(steps: int) -> dict:
        with torch.inference_mode(), applied(numerics, CPU, weights_change=False):
            return arm.turn(steps)

    return turn


def scoring_flops(sizes: Sizes) -> tuple[int, int]:
    """Return the FLOPs of a window: those ropewalk has to execute, and those of the whole window.

    The last token of a window is a target only, and is not read. In the last layer the tokens in
    front of the first place need keys and values only, and attend to nothing.
    """
    a, read, places = sizes.architecture, sizes.window_tokens - 1, sizes.stride_tokens
    unseeing = read - places
    pairs, unneeded = (n * (n + 1) // 2 for n in (read, unseeing))
    whole = forward_flops(a, tokens=read, pairs=pairs, predicting=places)
    last = dataclasses.replace(a, layers=1)
    key_value = 2 * a.hidden * (a.kv_heads or a.heads) * a.head_dimension
    saved = forward_flops(last, tokens=unseeing, pairs=unneeded, predicting=0)
    return whole - saved + 2 * key_value * unseeing, whole


def _ratios(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Return by what factor ropewalk is faster: median, least and most of turns."""
    found: dict[str, Any] = {}
    for key, (mine, theirs) in RATIOS.items():
        spread = ratio(seconds[mine], seconds[theirs])
        found[key] = spread["median"]
        found[f"{key}_range"] = [spread["least"], spread["most"]]
    return found


def _same_losses(sums: dict[str, float]) -> None:
    """Refuse to report a speed for which other losses were computed."""
    expected = sums["classic_fp32"]
    for name in (*OWN, *PEERS):
        if "bf16" not in name and abs(sums[name] - expected) > SAME_LOSS * expected:
            raise SystemExit(
                f"{name}: the sum of losses is {sums[name]}, classic_fp32 has {expected}: more "
                f"than {SAME_LOSS} apart"
            )


# The memory of a long row


def _long_rows(sizes: Sizes, options: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for model in sizes.long_models:
        runs = {}
        for way in ("ropewalk", "classic"):
            command = [
                sys.executable,
                str(Path(__file__).resolve()),
                "--json",
                "--long",
                way,
                model,
            ]
            command += ["--small"] if options.small else []
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            runs[way] = json.loads(done.stdout)
        mine, theirs = runs["ropewalk"], runs["classic"]
        if abs(mine["loss"] - theirs["loss"]) > SAME_LOSS * theirs["loss"]:
            raise SystemExit(f"{model}: losses of a long row differ: {mine} and {theirs}")
        share = mine["peak_growth_mb"] / theirs["peak_growth_mb"]
        found[model] = {"tokens": sizes.long_tokens, **runs, "memory_share": significant(share)}
    return found


def long_row(sizes: Sizes, way: str, name: str) -> dict[str, Any]:
    """Be a process that scores all of a long row; return how much its memory grew for it."""
    architecture, tokens = sizes.long_models[name], sizes.long_tokens
    random = np.random.default_rng(0)
    ids = torch.from_numpy(random.integers(0, architecture.vocabulary_size, (1, tokens)))
    model = build(architecture, PlainRope(), MEDIUM, CPU, Scratch(seed=0, std=0.02)).eval()

    def scored(ids: torch.Tensor) -> float:
        nll, _ = losses(model, states(model, ids, 0, ids.shape[1] - 1), ids[:, 1:])
        return float(nll.double().mean())

    def theirs(ids: torch.Tensor) -> float:
        return float(model(ids, labels=ids, use_cache=False).loss)

    if way == "classic":
        model.set_attn_implementation("sdpa")
    score = scored if way == "ropewalk" else theirs
    with torch.inference_mode(), applied(MEDIUM, CPU, weights_change=False):
        score(ids[:, :64])  # threads and kernels start
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew: see man 5 proc
        before, clock = peak_memory_mb(), time.perf_counter()
        loss = score(ids)
        seconds = time.perf_counter() - clock
    return {
        "peak_growth_mb": significant(peak_memory_mb() - before),
        "seconds": significant(seconds),
        "loss": loss,
    }


def _peer(work: Path) -> Peer:
    errors = work / "peer.txt"
    command = [sys.executable, "-P", str(Path(__file__).with_name("evaluate_peers.py")), str(work)]
    with errors.open("w") as sink:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sink, text=True
        )
    return Peer(process=process, errors=errors, missing=None)


def _prepare(sizes: Sizes, work: Path) -> None:
    """Write what all arms read: windows over one stream of tokens, and weights."""
    shape, random = sizes.architecture, np.random.default_rng(0)
    case = {"stride": sizes.stride_tokens, "at_once": sizes.at_once}
    (work / "case.json").write_text(json.dumps(case))
    length = sizes.window_tokens + (sizes.windows - 1) * sizes.stride_tokens
    # Frequencies as in text: of rank r in proportion to 1 / r.
    share = 1 / np.arange(1, shape.vocabulary_size + 1)
    stream = random.choice(shape.vocabulary_size, length, p=share / share.sum())
    windows = np.lib.stride_tricks.sliding_window_view(stream, sizes.window_tokens)
    np.save(work / "windows.npy", windows[:: sizes.stride_tokens].astype(np.int64))
    disable_progress_bar()
    source = Scratch(seed=0, std=STD)
    build(shape, PlainRope(), HIGHEST, CPU, source).save_pretrained(work / "weights")


if __name__ == "__main__":
    main()
