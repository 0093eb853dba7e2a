"""Attention and whole models in float64 with dense masks, and the backends held against them.

Nothing here rotates a query or a key: a pair of dimensions is a complex number, and the logit of a
query and a key is the real part of q conj(k) e^(i theta d) with d their relative position.

Dimensions: B rows, T tokens, H heads, G key-value heads, D head dimension, R turned dimensions.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from ropewalk.model.build import build
from ropewalk.model.numerics import DTYPES
from ropewalk.model.rope import inverse_frequencies
from ropewalk.model.spec import Architecture, Numerics, PlainRope, StringRope
from ropewalk.model.weights import Scratch

Sight = tuple[np.ndarray, np.ndarray]  # relative positions [T, T] and where they hold, bool [T, T]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backend:
    """An attention kernel: `numerics.attention`, where it runs and in which precision."""

    device: torch.device
    numerics: Numerics
    tolerance: float  # of outputs and gradients of about 1

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.numerics.precision]

    def model(self, architecture: Architecture) -> PreTrainedModel:
        """Return a model with random weights, in training mode."""
        source = Scratch(seed=3, std=architecture.init_std)
        return build(architecture, PlainRope(), self.numerics, self.device, source)


def _backend(device: str, attention: str, precision: str, tolerance: float) -> object:
    missing = device == "cuda" and not torch.cuda.is_available()
    return pytest.param(
        Backend(
            device=torch.device(device),
            numerics=Numerics(attention=attention, precision=precision),
            tolerance=tolerance,
        ),
        id=f"{device}-{attention}-{precision}",
        marks=pytest.mark.skipif(missing, reason="needs a CUDA device"),
    )


BACKENDS = pytest.mark.parametrize(
    "backend",
    [
        _backend("cpu", "sdpa", "fp32", 1e-5),
        _backend("cpu", "sdpa", "bf16", 5e-2),
        _backend("cuda", "sdpa", "fp32", 5e-5),
        _backend("cuda", "sdpa", "fp16", 1e-2),
        _backend("cuda", "sdpa", "bf16", 5e-2),
        _backend("cuda", "flash", "bf16", 5e-2),
        _backend("cuda", "flash", "fp16", 1e-2),
    ],
)


def placed(kind: str, tokens: int, seed: int = 0) -> np.ndarray:
    """Return positions of a row, int64 [T]: natural, with a jump (PoSE), or drawn (RandPos)."""
    natural = np.arange(tokens)
    match kind:
        case "natural":
            return natural
        case "pose":
            return natural + 57 * (natural >= tokens // 3)
        case "randpos":
            drawn = np.random.default_rng(seed).choice(8 * tokens, tokens, replace=False)
            return np.sort(drawn)
        case _:
            raise ValueError(kind)


def sights(
    ends: Sequence[int], positions: np.ndarray, string: StringRope | None = None
) -> list[Sight]:
    """Return what the queries of a row see; a key that is in two sights is seen twice."""
    tokens = len(positions)
    document = np.searchsorted(np.asarray(ends[1:]), np.arange(tokens), side="right")
    allowed = (document[:, None] == document) & np.tri(tokens, dtype=bool)
    distances = positions[:, None] - positions
    if string is None:
        return [(distances, allowed)]
    far = distances >= string.shift_tokens
    near = distances <= string.shift_tokens if string.variant == "released" else ~far
    shifted = distances - string.shift_tokens + string.window_tokens
    return [(distances, allowed & near), (shifted, allowed & far)]


def dense(
    query: torch.Tensor,  # [H, T, D], not rotated
    key: torch.Tensor,  # [G, T, D]
    value: torch.Tensor,  # [G, T, D]
    frequencies: np.ndarray,  # float64 [R / 2]
    seen: list[Sight],
    scaling: float,
    query_scale: torch.Tensor | None = None,  # [T]
) -> torch.Tensor:
    """Attend in one row, in float64; returns [T, H, D]."""
    groups = query.shape[0] // key.shape[0]
    query, key, value = query.double(), key.double(), value.double()
    heads = []
    for head in range(query.shape[0]):
        asking, answering = (
            _pairs(query[head], frequencies),
            _pairs(key[head // groups], frequencies),
        )
        still = 2 * len(frequencies)
        product = asking[:, None] * answering[None].conj()  # [T, T, R / 2]
        logits = []
        for distances, allowed in seen:
            turn = torch.from_numpy(np.exp(1j * distances[..., None] * frequencies))
            logit = (product * turn).sum(-1).real
            logit = logit + query[head, :, still:] @ key[head // groups, :, still:].T
            if query_scale is not None:
                logit = logit * query_scale.double()[:, None]
            mask = torch.from_numpy(~allowed)
            logits.append((logit * scaling).masked_fill(mask, -torch.inf))
        weights = torch.cat(logits, dim=1).softmax(-1)
        heads.append(weights @ torch.cat([value[head // groups]] * len(seen)))
    return torch.stack(heads, dim=1)


def _pairs(tensor: torch.Tensor, frequencies: np.ndarray) -> torch.Tensor:
    """Return pair i as dimension i + i * dimension (i + R / 2), complex [..., R / 2]."""
    half = len(frequencies)
    return torch.complex(tensor[..., :half].contiguous(), tensor[..., half : 2 * half].contiguous())


def rotated(tensor: torch.Tensor, positions: np.ndarray, frequencies: np.ndarray) -> torch.Tensor:
    """Rotate [..., T, D] to its positions in float64, as a model does before attention."""
    turn = torch.from_numpy(np.exp(1j * positions[:, None] * frequencies))
    pairs = _pairs(tensor.double(), frequencies) * turn
    return torch.cat([pairs.real, pairs.imag, tensor.double()[..., 2 * len(frequencies) :]], dim=-1)


def states(
    weights: Mapping[str, torch.Tensor],  # float64, named as in `model.base_model`
    architecture: Architecture,
    ids: torch.Tensor,  # [T]
    seen: list[Sight],
    query_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the hidden states of one row after the last norm, float64 [T, hidden]."""
    network = _neox if architecture.family == "gpt_neox" else _llama
    frequencies = inverse_frequencies(architecture, PlainRope())

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        heads = (
            tensor.unflatten(-1, (-1, architecture.head_dimension)).transpose(0, 1)
            for tensor in (query, key, value)
        )
        scaling = architecture.head_dimension**-0.5
        return dense(*heads, frequencies, seen, scaling, query_scale).flatten(1)

    return network(weights, architecture, ids, attend)


def _llama(w, architecture, ids, attend):
    def norm(name, x):
        mean_square = x.pow(2).mean(-1, keepdim=True)
        return w[f"{name}.weight"] * x * (mean_square + architecture.norm_epsilon).rsqrt()

    def linear(name, x):
        return x @ w[f"{name}.weight"].T

    x = w["embed_tokens.weight"][ids]
    for layer in (f"layers.{index}" for index in range(architecture.layers)):
        y = norm(f"{layer}.input_layernorm", x)
        heads = (linear(f"{layer}.self_attn.{kind}_proj", y) for kind in "qkv")
        x = x + linear(f"{layer}.self_attn.o_proj", attend(*heads))
        y = norm(f"{layer}.post_attention_layernorm", x)
        gate, up = (linear(f"{layer}.mlp.{kind}_proj", y) for kind in ("gate", "up"))
        x = x + linear(f"{layer}.mlp.down_proj", gate * gate.sigmoid() * up)
    return norm("norm", x)


def _neox(w, architecture, ids, attend):
    def norm(name, x):
        centred = x - x.mean(-1, keepdim=True)
        variance = centred.pow(2).mean(-1, keepdim=True)
        return (
            w[f"{name}.weight"] * centred * (variance + architecture.norm_epsilon).rsqrt()
            + w[f"{name}.bias"]
        )

    def linear(name, x):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    x = w["embed_in.weight"][ids]
    for layer in (f"layers.{index}" for index in range(architecture.layers)):
        # The fused matrix holds query, key and value of one head after the other.
        fused = linear(
            f"{layer}.attention.query_key_value", norm(f"{layer}.input_layernorm", x)
        ).unflatten(-1, (architecture.heads, 3, -1))
        heads = (fused[:, :, kind].flatten(1) for kind in range(3))
        y = linear(f"{layer}.mlp.dense_h_to_4h", norm(f"{layer}.post_attention_layernorm", x))
        y = y * (1 + torch.erf(y / 2**0.5)) / 2
        x = (
            x
            + linear(f"{layer}.attention.dense", attend(*heads))
            + linear(f"{layer}.mlp.dense_4h_to_h", y)
        )
    return norm("final_layer_norm", x)
