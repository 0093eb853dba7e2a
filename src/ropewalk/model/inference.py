"""Hidden states and losses at the places that are scored: a forward pass that trains nothing.

Nothing behind the last wanted place can be seen from it, so it is not read. In the last layer every
token is seen, but only wanted places see: the others need a key and a value and no more. And where
nothing is kept for a backward pass, a layer goes through a row piece by piece: of a whole row there
are its residual stream and the keys and values of one layer.

Products are computed in autocast's precision, on copies of the matrices that are made once a call,
one layer at a time: under `inference_mode` autocast itself would make them for every product. The
residual stream, norms, rotations, softmax, logits and losses are fp32.

Dimensions: B rows, T tokens that are read, n tokens of a piece, N places, D hidden, H heads, G
key-value heads, d head dimension, R pairs of a head that are turned, V vocabulary.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ropewalk.model.attention import IMPLEMENTATIONS, segments
from ropewalk.model.causal import lower_right
from ropewalk.model.loss import chunk_tokens
from ropewalk.model.string import Shift

# Tokens of a piece. On a CPU what is computed of a piece stays in caches; elsewhere products are
# large, and what bounds them is memory.
PIECE_TOKENS = {"cpu": 1024}
PIECE_TOKENS_ELSEWHERE = 16384

Map = Callable[[torch.Tensor], torch.Tensor]
Work = Callable[[torch.Tensor], None]  # on a group of rows [B, T, D]


@torch.no_grad()
def states(model: PreTrainedModel, ids: torch.Tensor, first: int, count: int) -> torch.Tensor:
    """Return the hidden states after the last norm at places first, ..., first + count - 1.

    They are those of `forward.hidden`: [B, count, D], of rows `ids`, int64 [B, T], each read as one
    segment from position 0.

    Raises:
        ValueError: if the places do not lie in the rows.
    """
    tokens = ids.shape[1]
    last = first + count
    if first < 0 or count < 1 or last > tokens:
        raise ValueError(f"places {first} to {last - 1} do not lie in rows of {tokens} tokens")
    base: Any = model.base_model
    family = _FAMILIES[model.config.model_type]
    device = ids.device.type
    automatic = torch.is_autocast_enabled(device)
    with torch.autocast(device, enabled=False):
        x: torch.Tensor = base.get_input_embeddings()(ids[:, :last])  # [B, T, D]
        low = torch.get_autocast_dtype(device) if automatic else x.dtype
        sight = _sight(model, ids, last)
        with _side_by_side(x.split(max(1, _piece_tokens(x) // last))) as each:  # group of rows
            for number, module in enumerate(base.layers, start=1):
                start = first if number == len(base.layers) else 0
                each(functools.partial(_advance, start, family(module, low), sight))
        norm = base.norm if model.config.model_type == "llama" else base.final_layer_norm
        for places in _pieces(x, first):
            x[:, places] = norm(x[:, places])
        return x[:, first:].contiguous()


@torch.no_grad()
def losses(
    model: PreTrainedModel, states: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss of every target and whether it is the model's first choice.

    `states` is [B, count, D], `targets` int64 [B, count]. Losses are float32, in nats, hits bool,
    both [B, count]. Logits are fp32 products, a chunk of tokens at a time: rounded to bf16, many
    words would share the first place.
    """
    weight = model.get_output_embeddings().weight  # [V, D]
    wide = torch.promote_types(weight.dtype, torch.float32)
    flat, index = states.flatten(0, 1), targets.flatten()[:, None]  # [N, D], [N, 1]
    size = min(len(flat), chunk_tokens(flat.device.type, weight.shape[0]))
    memory = weight.new_empty((size, weight.shape[0]), dtype=wide)
    nll, hit = [], []
    with torch.autocast(flat.device.type, enabled=False):
        for part, target in zip(flat.split(size), index.split(size), strict=True):
            logits = torch.mm(part.to(wide), weight.to(wide).T, out=memory[: len(part)])  # [n, V]
            largest, best = logits.max(-1, keepdim=True)  # the first of those that are equal
            hit.append(best == target)
            chosen = logits.gather(-1, target)
            # The largest softmax of a row is exp(0) / sum: one pass of exponentials, in place.
            softmax = torch.softmax(logits, -1, out=logits)
            nll.append(largest - chosen - softmax.amax(-1, keepdim=True).log())
    return torch.cat(nll).float().view(targets.shape), torch.cat(hit).view(targets.shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Layer:
    """A decoder layer; its matrices multiply in `low`, what they return is `low` too."""

    low: torch.dtype
    heads: int  # H
    kv_heads: int  # G
    dimension: int  # d
    norm: Map
    query: Map  # [..., D] -> [..., H * d]
    key: Map  # [..., D] -> [..., G * d]
    value: Map  # [..., D] -> [..., G * d]
    output: Map  # [..., H * d] -> [..., D]
    ffn_norm: Map
    ffn: Map  # [..., D] -> [..., D]
    parallel: bool  # the feed-forward network reads what attention read
    attention: Any  # transformers' module


def _llama(layer: Any, low: torch.dtype) -> _Layer:
    module, mlp = layer.self_attn, layer.mlp
    gate, up, down = (_linear(part, low) for part in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
    return _Layer(
        low=low,
        heads=module.config.num_attention_heads,
        kv_heads=module.config.num_key_value_heads,
        dimension=module.head_dim,
        norm=layer.input_layernorm,
        query=_linear(module.q_proj, low),
        key=_linear(module.k_proj, low),
        value=_linear(module.v_proj, low),
        output=_linear(module.o_proj, low),
        ffn_norm=layer.post_attention_layernorm,
        ffn=lambda x: down(F.silu(gate(x), inplace=True).mul_(up(x))),
        parallel=False,
        attention=module,
    )


def _gpt_neox(layer: Any, low: torch.dtype) -> _Layer:
    module, mlp = layer.attention, layer.mlp
    heads, together = module.config.num_attention_heads, module.query_key_value
    # Its rows are query, key and value of the first head, of the second, ...
    weights, biases = (
        tensor.to(low).unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(1, 2)
        for tensor in (together.weight, together.bias)
    )
    query, key, value = (
        functools.partial(F.linear, weight=weight, bias=bias)
        for weight, bias in zip(weights, biases, strict=True)
    )
    widen, narrow = (_linear(part, low) for part in (mlp.dense_h_to_4h, mlp.dense_4h_to_h))
    return _Layer(
        low=low,
        heads=heads,
        kv_heads=heads,
        dimension=module.head_size,
        norm=layer.input_layernorm,
        query=query,
        key=key,
        value=value,
        output=_linear(module.dense, low),
        ffn_norm=layer.post_attention_layernorm,
        ffn=lambda x: narrow(F.gelu(widen(x))),
        parallel=True,
        attention=module,
    )


_FAMILIES = {"llama": _llama, "gpt_neox": _gpt_neox}


def _linear(module: Any, low: torch.dtype) -> Map:
    bias = None if module.bias is None else module.bias.to(low)
    return functools.partial(F.linear, weight=module.weight.to(low), bias=bias)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Sight:
    """What the rope says, for rows of T tokens, and how attention has to be computed for it."""

    cos: torch.Tensor  # fp32 [T, 1, R]
    sin: torch.Tensor
    query_scale: torch.Tensor | None  # fp32 [T, 1], of the logits of every query
    string: Shift | None
    # What the model itself would call, where attention can only be computed for whole rows.
    whole: Callable[..., tuple[torch.Tensor, None]] | None

    def turned(self, x: torch.Tensor, places: slice, out: torch.Tensor) -> None:
        """Turn heads `x`, [B, n, heads * d], of places into `out`, fp32 [B, heads, n, d]."""
        cos, sin = self.cos[places], self.sin[places]
        half, out = cos.shape[-1], out.transpose(1, 2)
        x = x.to(out.dtype).unflatten(-1, (-1, out.shape[-1]))
        first, second = x[..., :half], x[..., half : 2 * half]
        torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=-1)
        torch.mul(second, cos, out=out[..., half : 2 * half]).addcmul_(first, sin)
        out[..., 2 * half :] = x[..., 2 * half :]


def _sight(model: PreTrainedModel, ids: torch.Tensor, last: int) -> _Sight:
    rotary: Any = model.base_model.rotary_emb
    # Of all tokens, read or not: there are angles that depend on their number.
    places = torch.arange(ids.shape[1], device=ids.device)[None]
    cos, sin = rotary(rotary.inv_freq, places)  # fp32 [1, T, 2 R], both halves alike
    beside = rotary.attention(places, segments(None, 1, ids.shape[1], ids.device))
    scale, string = beside.get("query_scale"), beside.get("string")
    half = cos.shape[-1] // 2
    name = model.config._attn_implementation
    by_row = string is not None or name.startswith(IMPLEMENTATIONS["flash"])
    return _Sight(
        cos=cos[0, :last, None, :half].contiguous(),
        sin=sin[0, :last, None, :half].contiguous(),
        query_scale=None if scale is None else scale[0, :last, None],
        string=string,
        whole=ALL_ATTENTION_FUNCTIONS[name] if by_row else None,
    )


@contextlib.contextmanager
def _side_by_side(groups: Sequence[torch.Tensor]) -> Iterator[Callable[[Work], object]]:
    """Give a function that does a work for every group of rows.

    On a CPU groups are worked on at the same time, each with its share of the threads: what threads
    do together is many small operations, and after each they wait for one another.
    """
    threads = torch.get_num_threads()
    workers = min(threads, len(groups))
    if groups[0].device.type != "cpu" or workers < 2:
        yield lambda work: [*map(work, groups)]
        return
    within = torch.is_inference_mode_enabled()  # modes belong to a thread

    def one(work: Work, group: torch.Tensor) -> None:
        with torch.inference_mode(within), torch.no_grad():
            work(group)

    share = functools.partial(torch.set_num_threads, threads // workers)
    with ThreadPoolExecutor(workers, initializer=share) as pool:
        try:
            yield lambda work: list(pool.map(functools.partial(one, work), groups))
        finally:
            torch.set_num_threads(threads)  # what threads that start later get


def _advance(start: int, layer: _Layer, sight: _Sight, x: torch.Tensor) -> None:
    """Put rows `x`, [B, T, D], through a layer, in place; places before `start` are only seen."""
    rows, tokens, _ = x.shape
    dimension, scaling = layer.dimension, layer.attention.scaling
    normed = torch.empty_like(x, dtype=layer.low)
    key = x.new_empty((rows, layer.kv_heads, tokens, dimension))
    value = torch.empty_like(key, dtype=layer.low)
    for places in _pieces(x, 0):
        piece = normed[:, places].copy_(layer.norm(x[:, places]))
        sight.turned(layer.key(piece), places, key[:, :, places])
        value[:, :, places] = layer.value(piece).unflatten(-1, (-1, dimension)).transpose(1, 2)

    def query(places: slice) -> torch.Tensor:
        piece = normed[:, places].contiguous()  # else a product per row
        found = x.new_empty((rows, layer.heads, piece.shape[1], dimension))
        sight.turned(layer.query(piece), places, found)
        return found if sight.query_scale is None else found.mul_(sight.query_scale[places])

    whole = None
    if sight.whole is not None:
        where = segments(None, rows, tokens, x.device)
        more = {"scaling": scaling, "segments": where, "string": sight.string}
        all_queries = query(slice(0, tokens))
        whole, _ = sight.whole(layer.attention, all_queries, key, value, None, **more)
    for places in _pieces(x, start):
        if whole is not None:
            attended = whole[:, places]  # [B, n, H, d]
        else:
            seen = slice(0, places.stop)
            attended = lower_right(query(places), key[:, :, seen], value[:, :, seen], scaling)
            attended = attended.transpose(1, 2)
        piece = x[:, places]
        found = layer.output(attended.flatten(2))
        if layer.parallel:
            piece += found.add_(layer.ffn(layer.ffn_norm(piece).to(layer.low)))
        else:
            piece += found
            piece += layer.ffn(layer.ffn_norm(piece).to(layer.low))


def _piece_tokens(x: torch.Tensor) -> int:
    return PIECE_TOKENS.get(x.device.type, PIECE_TOKENS_ELSEWHERE)


def _pieces(x: torch.Tensor, start: int) -> Iterator[slice]:
    """Yield pieces of the places from `start` on of rows [B, T, ...]."""
    rows, tokens = x.shape[:2]
    size = max(1, _piece_tokens(x) // rows)
    for place in range(start, tokens, size):
        yield slice(place, min(tokens, place + size))
