"""Training steps of three papers on one GPU: STRING's 1.3B, PI's 7B, GrowLength's tables.

`string`: TinyLlama's shape with Llama 3's vocabulary, documents packed and kept apart. For every
length, with and without recomputation, the forward pass is as large as is fastest among those that
fit; that size is found without compilation and kept with it.

`pi`: fine-tuning LLaMA 7B at 8,192 and 16,384 tokens, one sequence per forward pass, activations
recomputed. Memory is what decides. N = 6.74e9 parameters take 16 bytes each at rest: fp32 weight,
fp32 gradient, two fp32 AdamW moments: 107.8e9 bytes. Recomputation keeps the fp32 input of every
layer: 4 * 4096 * 32 bytes per token, 8.6e9 at 16,384 tokens. An H200 has 150.1e9 bytes, so that the
whole model fits with some 33e9 left for one layer's activations and bf16 weights, the loss, and
what the allocator loses. What has less memory gets as many of the 32 layers as fit by this sum and
a reserve of 16e9, and the arm's `layers_left_out` says how many are missing: its tokens per second
are not those of a 7B model; its share of the peak is nearly so.

`growlength`: tables 1 to 3 of the paper (time and memory of a step of 16,384 tokens; tokens that
fit into the whole memory) for lengths 128 to 16,384, Pythia 160M's shape, one segment per row.
"""

import dataclasses
import functools
from itertools import chain, count
from typing import Any

import numpy as np
import torch
from gpu_record import Record
from gpu_step import (
    SEED,
    SLIMPAJAMA_TOKENS,
    Case,
    Rows,
    Trainer,
    fits,
    halved,
    measured,
    most,
    packed,
    release_cache,
    whole,
)

from ropewalk.model.flops import parameters
from ropewalk.model.spec import Architecture, LinearRope, Numerics

RESERVE_BYTES = 16e9  # of part `pi`: one layer at work, the loss, the CUDA context
BYTES_PER_PARAMETER = 4 + 4 + 8  # fp32 weight, gradient, two moments


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of a part."""

    architecture: Architecture
    lengths_tokens: tuple[int, ...]
    step_tokens: int  # of one optimizer step
    pass_tokens: tuple[int, ...] = ()  # of one forward pass: what is tried, ascending
    warm_up: int = 1  # steps
    turns: int = 3  # steps that are measured
    document_tokens: int = SLIMPAJAMA_TOKENS  # mean, of packed documents
    lr: float = 4e-4


_TINY = {"hidden": 64, "ffn": 96, "vocabulary_size": 256, "init_std": 0.08}

STRING = Sizes(
    architecture=Architecture(
        layers=22,
        hidden=2048,
        heads=32,
        kv_heads=4,
        ffn=5632,
        vocabulary_size=128_256,
        context_tokens=2048,
    ),
    lengths_tokens=(2048, 4096),
    step_tokens=131_072,
    pass_tokens=(8192, 16_384, 32_768, 65_536),
)
STRING_SMALL = Sizes(
    architecture=Architecture(layers=2, heads=4, kv_heads=2, context_tokens=64, **_TINY),
    lengths_tokens=(64,),
    step_tokens=512,
    pass_tokens=(256,),  # one: which is fastest must not decide what a test compares
    document_tokens=24,
    lr=1e-2,
)
PI = Sizes(
    architecture=Architecture(
        layers=32, hidden=4096, heads=32, ffn=11_008, vocabulary_size=32_000, context_tokens=2048
    ),
    lengths_tokens=(8192, 16_384),
    step_tokens=32_768,
    lr=2e-5,
)
PI_SMALL = Sizes(
    architecture=Architecture(layers=2, heads=4, context_tokens=32, **_TINY),
    lengths_tokens=(64, 128),
    step_tokens=256,
    lr=1e-2,
)
GROWLENGTH = Sizes(
    architecture=Architecture(
        family="gpt_neox",
        layers=12,
        hidden=768,
        heads=12,
        ffn=3072,
        vocabulary_size=50_304,
        context_tokens=2048,
        rotary_share=0.25,
    ),
    lengths_tokens=(128, 256, 512, 1024, 2048, 4096, 8192, 16_384),
    step_tokens=16_384,
    warm_up=3,
    turns=10,
    lr=6e-4,
)
GROWLENGTH_SMALL = Sizes(
    architecture=Architecture(
        family="gpt_neox", layers=2, heads=4, context_tokens=64, rotary_share=0.25, **_TINY
    ),
    lengths_tokens=(32, 128),
    step_tokens=256,
    lr=1e-2,
)


def numerics_of(device: torch.device) -> Numerics:
    """Return bf16 with the attention that the device is for."""
    return Numerics(precision="bf16", attention="flash" if device.type == "cuda" else "sdpa")


def compilations(record: Record, arm: str) -> tuple[bool, ...]:
    """Return which values of `compile` are measured: on a CPU it says nothing about a GPU."""
    if record.device.type == "cuda":
        return (False, True)
    record.skip(f"{arm}, compiled", "torch.compile is measured on CUDA only")
    return (False,)


def string(record: Record, sizes: Sizes) -> None:
    """Measure pretraining on packed documents."""
    for recompute in (False, True):
        for length in sizes.lengths_tokens:
            arm = f"{length} tokens" + (", recomputed" if recompute else "")
            pass_tokens = None
            for compiled in compilations(record, arm):
                case = Case(
                    architecture=sizes.architecture,
                    numerics=numerics_of(record.device),
                    recompute_activations=recompute,
                    compile=compiled,
                    lr=sizes.lr,
                )
                found = record.arm(
                    arm + (", compiled" if compiled else ""),
                    functools.partial(_string, case, sizes, length, pass_tokens, record.device),
                )
                pass_tokens = pass_tokens or (found and found["tokens_per_pass"])


def _string(
    case: Case, sizes: Sizes, length: int, pass_tokens: int | None, device: torch.device
) -> dict[str, Any]:
    random = np.random.default_rng(SEED)

    def rows(tokens: int) -> Rows:
        vocabulary = case.architecture.vocabulary_size
        return packed(random, vocabulary, tokens // length, length, sizes.document_tokens)

    trainer = Trainer(case, device)
    tried: dict[str, float] = {}
    if pass_tokens is None:
        trainer.step([rows(sizes.pass_tokens[0])])  # optimizer state, as a later pass finds it
        tried = _speeds(trainer, [rows(tokens) for tokens in sizes.pass_tokens])
        pass_tokens = int(max(tried, key=tried.__getitem__, default=str(sizes.pass_tokens[0])))
    random = np.random.default_rng(SEED)  # rows do not depend on what was tried
    at_once = pass_tokens
    steps = ([rows(at_once) for _ in range(sizes.step_tokens // at_once)] for _ in count())
    first = next(steps)
    # Compiled code is made again when the longest segment differs for the first time: now.
    first[0] = halved(first[0])
    found = measured(trainer, chain([first], steps), warm_up=sizes.warm_up, turns=sizes.turns)
    return {**found, "tokens_per_second_by_pass": tried}


def _speeds(trainer: Trainer, candidates: list[Rows]) -> dict[str, float]:
    """Return tokens per second of the passes that fit, by tokens; larger ones are not tried."""
    found: dict[str, float] = {}
    for rows in candidates:
        seconds: list[float] = []
        # B023: the call is over before the next turn.
        if not fits(lambda: seconds.append(trainer.probe(rows)), trainer.device):  # noqa: B023
            break
        found[str(rows.tokens)] = rows.tokens / seconds[0]
    return found


def pi(record: Record, sizes: Sizes) -> None:
    """Measure fine-tuning at four and eight times the pretraining window."""
    for length in sizes.lengths_tokens:
        architecture = fitted(sizes.architecture, length, record.device)
        for compiled in compilations(record, f"{length} tokens"):
            case = Case(
                architecture=architecture,
                rope=LinearRope(factor=length / sizes.architecture.context_tokens),
                numerics=numerics_of(record.device),
                recompute_activations=True,
                compile=compiled,
                lr=sizes.lr,
            )
            record.arm(
                f"{length} tokens" + (", compiled" if compiled else ""),
                functools.partial(_pi, case, sizes, length, record.device),
            )


def _pi(case: Case, sizes: Sizes, length: int, device: torch.device) -> dict[str, Any]:
    random = np.random.default_rng(SEED)
    vocabulary = case.architecture.vocabulary_size
    passes = sizes.step_tokens // length
    found = measured(
        Trainer(case, device),
        ([whole(random, vocabulary, 1, length) for _ in range(passes)] for _ in count()),
        warm_up=sizes.warm_up,
        turns=sizes.turns,
    )
    return {
        **found,
        "layers": case.architecture.layers,
        "layers_left_out": sizes.architecture.layers - case.architecture.layers,
        "parameters": parameters(case.architecture),
    }


def fitted(architecture: Architecture, length: int, device: torch.device) -> Architecture:
    """Return the model with as many layers as a step of one sequence has memory for (see above)."""
    if device.type == "cpu":
        return architecture
    room = torch.cuda.get_device_properties(device).total_memory - RESERVE_BYTES

    def bytes_of(layers: int) -> float:
        model = dataclasses.replace(architecture, layers=layers)
        return BYTES_PER_PARAMETER * parameters(model) + 4.0 * length * model.hidden * layers

    fitting = [n for n in range(1, architecture.layers + 1) if bytes_of(n) <= room]
    return dataclasses.replace(architecture, layers=max(fitting, default=1))


def growlength(record: Record, sizes: Sizes) -> None:
    """Measure time and memory of equal steps at every length, and the most tokens of one step."""
    for attention in ("flash", "sdpa"):
        for length in sizes.lengths_tokens:
            case = Case(
                architecture=sizes.architecture,
                numerics=Numerics(precision="bf16", attention=attention),
                lr=sizes.lr,
            )
            record.arm(
                f"{length} tokens, {attention}",
                functools.partial(_growlength, case, sizes, length, record.device),
            )
    if record.device.type == "cpu":
        record.skip("tokens that fit", "there is no device memory to fill on a CPU")


def _growlength(case: Case, sizes: Sizes, length: int, device: torch.device) -> dict[str, Any]:
    random = np.random.default_rng(SEED)
    vocabulary = case.architecture.vocabulary_size
    trainer = Trainer(case, device)
    found = measured(
        trainer,
        ([whole(random, vocabulary, sizes.step_tokens // length, length)] for _ in count()),
        warm_up=sizes.warm_up,
        turns=sizes.turns,
    )
    if device.type == "cpu":
        return found
    release_cache(device)

    def possible(tokens: int) -> bool:
        rows = whole(random, vocabulary, tokens // length, length)
        return fits(lambda: trainer.step([rows]), device)

    return {**found, "tokens_that_fit": most(possible, length, 1 << 21)}
