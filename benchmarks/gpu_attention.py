"""Every attention of ropewalk on this device: agreement with a dense reference, reach, and time.

* agreement: outputs and gradients of the functions that models call, against causal attention
  inside segments in float64 with a dense mask, from the same rounded inputs. Queries and keys are
  turned by the positions of their rows: documents packed, PoSE, RandPos. `largest` is the largest
  difference over the largest value; `norm` is |found - exact| / |exact|.
* reach: in a whole model, does the last token of a segment depend on every token of it, across a
  jump of positions too, and on nothing outside? Once forward, by changing a token, and once by the
  gradients of the embedding; with and without recomputed activations, for transformers' own guess
  of boundaries flips with it. What leaks must be 0 exactly.
* time: forward and backward of one layer's attention on packed documents, against a dense mask.

Dimensions: B rows, T tokens, H heads, G key-value heads, D head dimension.
"""

import dataclasses
import functools
import statistics
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from gpu_record import Record
from gpu_step import SEED, SLIMPAJAMA_TOKENS, OnDevice, Rows, memory, packed, release_cache, timed
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ropewalk.base.rng import generator
from ropewalk.model.attention import IMPLEMENTATIONS, segments
from ropewalk.model.forward import hidden
from ropewalk.model.numerics import DTYPES, applied
from ropewalk.model.positions import position_ids
from ropewalk.model.rope import plain_frequencies
from ropewalk.model.spec import (
    Architecture,
    NaturalPositions,
    Numerics,
    PlainRope,
    PosePositions,
    RandPosPositions,
)
from ropewalk.train.sharding import objective
from ropewalk.train.world import World

BACKENDS = (
    Numerics(precision="fp32", attention="sdpa"),
    Numerics(precision="bf16", attention="sdpa"),
    Numerics(precision="fp16", attention="sdpa"),
    Numerics(precision="bf16", attention="flash"),
    Numerics(precision="fp16", attention="flash"),
)
# Largest `norm` of a kernel that multiplies in this precision and adds in fp32: some rounding
# errors of 2^-24, 2^-9 and 2^-11.
ALLOWED = {"fp32": 1e-5, "bf16": 1.5e-2, "fp16": 3e-3}
KINDS = ("packed", "pose", "randpos")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heads:
    """Shape of one attention layer."""

    heads: int
    kv_heads: int
    dimension: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of the part."""

    heads: tuple[Heads, ...]
    rows: int = 2  # of agreement and reach
    agreement_tokens: int
    target_tokens: int  # of PoSE and RandPos
    reach_tokens: int
    time_lengths_tokens: tuple[int, ...]
    time_tokens: int  # of all rows
    document_tokens: int = SLIMPAJAMA_TOKENS  # mean, where time is measured
    repeats: int


FULL = Sizes(
    heads=(
        Heads(heads=32, kv_heads=4, dimension=64),  # STRING's 1.3B
        Heads(heads=32, kv_heads=32, dimension=128),  # LLaMA 7B
    ),
    agreement_tokens=2048,
    target_tokens=65_536,
    reach_tokens=256,
    time_lengths_tokens=(2048, 4096, 16_384),
    time_tokens=16_384,
    repeats=20,
)
SMALL = Sizes(
    heads=(Heads(heads=4, kv_heads=2, dimension=16),),
    agreement_tokens=96,
    target_tokens=512,
    reach_tokens=32,
    time_lengths_tokens=(64,),
    time_tokens=128,
    document_tokens=24,
    repeats=3,
)


def attention(record: Record, sizes: Sizes) -> None:
    """Measure agreement, reach and time of every backend."""
    device = record.device
    for heads in sizes.heads:
        shape = f"{heads.heads} heads, {heads.kv_heads} kv, dimension {heads.dimension}"
        for numerics in BACKENDS:
            name = f"{numerics.attention} {numerics.precision}"
            for kind in KINDS:
                record.arm(
                    f"agreement, {name}, {kind}, {shape}",
                    functools.partial(agreement, heads, sizes, kind, numerics, device),
                )
    for numerics in BACKENDS:
        name = f"{numerics.attention} {numerics.precision}"
        for family in ("llama", "gpt_neox"):
            for recompute in (False, True):
                record.arm(
                    f"reach, {name}, {family}" + (", recomputed" if recompute else ""),
                    functools.partial(reach, family, sizes, numerics, recompute, device),
                )
    for heads in sizes.heads:
        shape = f"{heads.heads} heads, {heads.kv_heads} kv, dimension {heads.dimension}"
        for length in sizes.time_lengths_tokens:
            for way in ("flash", "sdpa", "dense mask"):
                record.arm(
                    f"time, {way}, {length} tokens, {shape}",
                    functools.partial(cost, heads, sizes, length, way, device),
                )


def laid_out(kind: str, rows: int, tokens: int, target: int) -> Rows:
    """Return rows with their boundaries and positions; the ids are 0, 1, 2, ..."""
    boundaries: list[tuple[int, ...]] = [(0, tokens)] * rows
    positions: Any = {
        "packed": NaturalPositions(),
        "pose": PosePositions(target_tokens=target),
        "randpos": RandPosPositions(target_tokens=target),
    }[kind]
    if kind == "packed":  # short and long documents, and one row that is whole
        boundaries[0] = (0, 1, tokens // 3, tokens // 3 + 2, tokens - 5)
    return Rows(
        input_ids=np.arange(rows * tokens).reshape(rows, tokens),
        boundaries=boundaries,
        position_ids=position_ids(
            positions, tokens, (generator(SEED, "positions", row) for row in range(rows))
        ),
    )


def agreement(
    heads: Heads, sizes: Sizes, kind: str, numerics: Numerics, device: torch.device
) -> dict[str, Any]:
    """Compare output and gradients of one backend with the dense reference."""
    rows = laid_out(kind, sizes.rows, sizes.agreement_tokens, sizes.target_tokens)
    query, key, value, pull = _drawn(heads, rows, device)
    low = [tensor.to(DTYPES[numerics.precision]) for tensor in (query, key, value, pull)]
    with applied(numerics, device):
        found = _gradients(functools.partial(_backend, numerics, rows), *low)
    exact = _gradients(functools.partial(_dense, rows), *(tensor.double() for tensor in low))
    errors = {
        name: {
            "largest": float((got.double() - want).abs().max() / want.abs().max()),
            "norm": float((got.double() - want).norm() / want.norm()),
        }
        for name, got, want in zip(("output", "query", "key", "value"), found, exact, strict=True)
    }
    worst = max(error["norm"] for error in errors.values())
    allowed = ALLOWED[numerics.precision]
    return {
        "numerics": numerics,
        "errors": errors,
        "worst_norm": worst,
        "allowed_norm": allowed,
        "agrees": worst <= allowed,
    }


def _drawn(heads: Heads, rows: Rows, device: torch.device) -> list[torch.Tensor]:
    """Return query, key (both turned), value and gradient of the output: float64."""
    count, tokens = rows.input_ids.shape
    random = torch.Generator(device).manual_seed(SEED)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random, device=device, dtype=torch.float64)

    query = normal(count, heads.heads, tokens, heads.dimension)
    key, value = normal(2, count, heads.kv_heads, tokens, heads.dimension)
    pull = normal(count, tokens, heads.heads, heads.dimension)
    frequencies = torch.from_numpy(plain_frequencies(10_000.0, heads.dimension))
    angles = (torch.from_numpy(rows.position_ids)[..., None] * frequencies).to(
        device
    )  # [., T, D/2]
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]
    return [_turned(query, turn), _turned(key, turn), value, pull]


def _turned(tensor: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    first, second = tensor.chunk(2, dim=-1)
    turned = torch.complex(first, second) * turn
    return torch.cat([turned.real, turned.imag], dim=-1)


def _gradients(
    attend: Callable[..., torch.Tensor],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    pull: torch.Tensor,  # [B, T, H, D], gradient of the output
) -> list[torch.Tensor]:
    """Return the output, and the gradients of query, key and value."""
    given = [tensor.detach().requires_grad_() for tensor in (query, key, value)]
    output = attend(*given)
    return [output.detach(), *torch.autograd.grad(output, given, pull.to(output.dtype))]


def _backend(
    numerics: Numerics, rows: Rows, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    """Return [B, T, H, D] as a model with these numerics computes it."""
    attend = ALL_ATTENTION_FUNCTIONS[IMPLEMENTATIONS[numerics.attention]]
    found = segments(rows.boundaries, *rows.input_ids.shape, query.device)
    scaling = query.shape[-1] ** -0.5
    output, _ = attend(
        torch.nn.Identity(), query, key, value, None, scaling=scaling, segments=found
    )
    return output


def _mask(rows: Rows, device: torch.device) -> torch.Tensor:
    """Return which key every query may see, bool [B, 1, T, T]."""
    tokens = rows.input_ids.shape[1]
    place = torch.arange(tokens, device=device)
    documents = torch.stack(
        [
            torch.bucketize(place, torch.tensor(row[1:], device=device), right=True)
            for row in rows.boundaries
        ]
    )
    same = documents[:, None, :, None] == documents[:, None, None, :]
    return same & (place[:, None] >= place)


def _dense(rows: Rows, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    scores = scores.masked_fill(~_mask(rows, query.device), -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2)


def reach(
    family: str, sizes: Sizes, numerics: Numerics, recompute: bool, device: torch.device
) -> dict[str, Any]:
    """Measure on what the last token of a segment depends, in a model of two layers."""
    count, tokens = sizes.rows, sizes.reach_tokens
    architecture = Architecture(
        family=family,
        layers=2,
        hidden=64,
        heads=4,
        ffn=96,
        vocabulary_size=count * tokens,  # every token of the batch has an embedding of its own
        context_tokens=tokens,
        rotary_share=1.0 if family == "llama" else 0.25,
        init_std=0.1,
    )
    model = objective(
        architecture,
        PlainRope(),
        numerics,
        OnDevice(device=device, std=architecture.init_std),
        World(rank=0, size=1, device=device, mesh=None),
        recompute_activations=recompute,
    ).model
    found: dict[str, Any] = {"numerics": numerics}
    for kind in KINDS:
        rows = laid_out(kind, count, tokens, 16 * tokens)
        start, end = rows.boundaries[0][-2:]
        inside = np.zeros((count, tokens), dtype=bool)
        inside[0, start:end] = True
        before, embedding = _last_state(model, rows, end, numerics, device)
        found[kind] = {
            "leak_gradient": float(embedding[~inside].max()),
            "least_reach_gradient": float(embedding[inside].min()),
            "leak": _moved(model, rows, before, ((0, start - 1), (1, 0)), end, numerics, device),
            "reach": _moved(model, rows, before, ((0, start),), end, numerics, device),
        }
    leaks = [found[kind][name] for kind in KINDS for name in ("leak", "leak_gradient")]
    reached = [found[kind][name] for kind in KINDS for name in ("reach", "least_reach_gradient")]
    return {**found, "agrees": max(leaks) == 0.0 and min(reached) > 0.0}


def _last_state(
    model: Any, rows: Rows, end: int, numerics: Numerics, device: torch.device
) -> tuple[torch.Tensor, np.ndarray]:
    """Return the state of row 0 before `end`, and by how much each token's embedding moves it."""
    with applied(numerics, device):
        states = hidden(
            model,
            torch.from_numpy(rows.input_ids).to(device),
            rows.boundaries,
            torch.from_numpy(rows.position_ids).to(device),
        )
        model.zero_grad(set_to_none=True)
        states[0, end - 1, ::2].float().sum().backward()  # every other: a norm fixes the whole sum
    gradient = model.get_input_embeddings().weight.grad.abs().amax(dim=1)
    return states[0, end - 1].detach(), gradient.cpu().numpy().reshape(rows.input_ids.shape)


def _moved(
    model: Any,
    rows: Rows,
    before: torch.Tensor,
    places: Iterable[tuple[int, int]],
    end: int,
    numerics: Numerics,
    device: torch.device,
) -> float:
    """Return by how much the state moves when the tokens at these places change to others."""
    ids = rows.input_ids.copy()
    for row, place in places:
        if place >= 0:  # no token stands before the first segment
            ids[row, place] = (ids[row, place] + 1) % ids.size
    after, _ = _last_state(model, dataclasses.replace(rows, input_ids=ids), end, numerics, device)
    return float((after - before).abs().max())


def cost(heads: Heads, sizes: Sizes, length: int, way: str, device: torch.device) -> dict[str, Any]:
    """Measure forward and backward of one layer's attention on packed documents, in bf16."""
    random = np.random.default_rng(SEED)
    rows = packed(random, 2, sizes.time_tokens // length, length, sizes.document_tokens)
    given = [tensor.bfloat16() for tensor in _drawn(heads, rows, device)]
    release_cache(device)
    numerics = Numerics(precision="bf16", attention="flash" if way == "flash" else "sdpa")
    if way == "dense mask":
        mask = _mask(rows, device)

        def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            groups = query.shape[1] // key.shape[1]
            key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
            return scaled_dot_product_attention(query, key, value, mask).transpose(1, 2)

    else:
        attend = functools.partial(_backend, numerics, rows)
    seconds = []
    with applied(numerics, device):
        for _ in range(3 + sizes.repeats):
            seconds.append(timed(lambda: _gradients(attend, *given), device))
    found = seconds[3:]
    median = statistics.median(found)
    return {
        "numerics": numerics,
        "length_tokens": length,
        "tokens": rows.tokens,
        "documents": sum(len(row) - 1 for row in rows.boundaries),
        "median_seconds": median,
        "least_seconds": min(found),
        "flops_per_second": 12 * heads.heads * heads.dimension * rows.pairs / median,
        **memory(device),
    }
