"""Causal attention in blocks of queries: squares for training on a CPU, and the last of a row.

For training, probabilities are kept. torch's CPU kernel multiplies small tiles and computes the
probabilities once more in backward. Up to about a thousand tokens there is memory to keep them, and
products of larger blocks are twice as fast. Logits, softmax and what is subtracted in its gradient
are fp32; probabilities enter products in the dtype of the inputs, as in torch's kernel, and the
errors are those of that kernel.

`lower_right` attends with the last tokens of rows and keeps nothing: in the same blocks, or by
torch's kernel where many queries see so many keys that the logits of a block leave the caches.

Dimensions: S squares, H heads, T tokens, D head dimension; N = S * H, of which a group is computed
at a time; a block has the queries start..end and sees the keys 0..end. G key-value heads, each
shared by r = H / G heads; n queries that are the last of T tokens.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

SHORTEST_TOKENS, LONGEST_TOKENS = 64, 768  # where it is faster than torch's kernel
BLOCK_TOKENS = 128
GROUP = 16  # heads times squares: logits of a group and block stay in caches
# Of `lower_right`:
LEAST_BLOCK_TOKENS = 16  # where many heads share a key
LARGEST_LOGIT = 60.0  # e^60 times any number of tokens and values is far from what fp32 can hold
LOGITS_OF_A_THREAD = 2**20  # of a group and block, 4 MiB of fp32: smaller products cost more
FEW_KEYS, MANY_QUERIES = 1024, 768  # torch's kernel is faster with more keys for as many queries


def suits(query: torch.Tensor) -> bool:
    """Return whether `causal` is the fast way for queries [S, H, T, D]."""
    return query.device.type == "cpu" and SHORTEST_TOKENS <= query.shape[2] <= LONGEST_TOKENS


def causal(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Return causal attention [S, H, T, D] of tensors [S, H, T, D] of one dtype."""
    with torch.autocast(query.device.type, enabled=False):
        output: torch.Tensor = _Causal.apply(query, key, value, scaling)
    return output


def lower_right(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Return the attention of the last n tokens of rows, [S, H, n, D] in the dtype of `value`.

    `query` is [S, H, n, D], `key` and `value` are [S, G, T, D] with T >= n; query i sees the keys
    0, ..., T - n + i. Gradients do not pass.
    """
    tokens, keys = query.shape[2], key.shape[2]
    if query.device.type != "cpu":
        q, k = query.to(value.dtype), key.to(value.dtype)
        bias = causal_lower_right(tokens, keys)
        k, v = _repeated(q, k), _repeated(q, value)
        return scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scaling)
    if keys > FEW_KEYS and tokens >= MANY_QUERIES:
        return _by_kernel(query.to(value.dtype), key.to(value.dtype), value, scaling)
    return _by_block(query, key, value, scaling)


def _by_kernel(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Attend by torch's kernel, to keys that every query sees and to a square of the others.

    With l the log-sum-exp of each, the two merge as sigmoid(l1 - l2) o1 + sigmoid(l2 - l1) o2.
    """
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    before = key.shape[2] - query.shape[2]
    k, v = (_repeated(query, tensor[:, :, before:]) for tensor in (key, value))
    output, lse = kernel(query, k, v, is_causal=True, scale=scaling)
    if before == 0:
        return output
    # Every query sees all of these keys: heads that share a key ask one after the other.
    shared, tokens = (key.shape[1], -1), (-1, query.shape[2])
    q, k, v = query.unflatten(1, shared).flatten(2, 3), key[:, :, :before], value[:, :, :before]
    earlier, earlier_lse = (
        found.unflatten(2, tokens).flatten(1, 2) for found in kernel(q, k, v, scale=scaling)
    )
    weight = (lse - earlier_lse).sigmoid()[..., None]
    return torch.lerp(earlier.to(weight.dtype), output.to(weight.dtype), weight).to(value.dtype)


def _by_block(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Attend block by block, as `causal` does; logits are products of `query` and `key`."""
    tokens, shared = query.shape[2], query.shape[1] // key.shape[1]
    # |q k| <= |q| |k|. A softmax of small logits needs no maximum, and powers of two take half the
    # time: 2^l / sum(2^l), with l in units of log 2, is in the range of fp32 whatever the keys are.
    lengths = (torch.linalg.vector_norm(tensor, dim=-1).amax() for tensor in (query, key))
    small = math.prod(map(float, lengths)) * scaling <= LARGEST_LOGIT
    # Heads that share a key are the rows of one product: [S * G, r, n, D].
    q = (query * (scaling / math.log(2) if small else scaling)).unflatten(1, (-1, shared))
    q, k, v = (tensor.flatten(0, 1) for tensor in (q, key, value))
    output = v.new_empty(q.shape)
    block = max(LEAST_BLOCK_TOKENS, BLOCK_TOKENS // shared)
    later = q.new_full((block, block), -torch.inf).triu_(1)
    largest = shared * min(tokens, block) * k.shape[1]
    group = max(1, min(len(q), torch.get_num_threads() * LOGITS_OF_A_THREAD // largest))
    memory = q.new_empty(group * largest)
    # Blocks begin at multiples of their size, wherever the queries do: oneDNN makes and keeps code
    # for every shape of a product.
    before = k.shape[1] - tokens
    for place in range(before // block * block, k.shape[1], block):
        first, end = max(place, before), min(place + block, k.shape[1])
        size, asking = end - first, slice(first - before, end - before)
        for start in range(0, len(q), group):
            some = slice(start, start + group)
            asked = q[some, :, asking].flatten(1, 2)  # [N, r * n, D]
            shape = (len(asked), shared * size, end)
            logits = torch.bmm(asked, k[some, :end].mT, out=memory[: math.prod(shape)].view(shape))
            logits.unflatten(1, (shared, size))[..., first:] += later[:size, :size]
            weights = logits.exp2_() if small else torch.softmax(logits, -1, out=logits)
            found = torch.bmm(weights.to(v.dtype), v[some, :end])
            if small:
                found /= weights.sum(-1, keepdim=True)
            output[some, :, asking] = found.unflatten(1, (shared, size))
    return output.view(query.shape)


def _repeated(query: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
    """Repeat the heads of keys or values [S, G, T, D] until there are as many as of the query."""
    groups = query.shape[1] // shared.shape[1]
    return shared.repeat_interleave(groups, dim=1) if groups > 1 else shared


def _blocks(heads: int, tokens: int) -> Iterator[tuple[slice, int, int]]:
    """Yield every group of heads with the start and end of every block of its queries."""
    groups = (slice(first, first + GROUP) for first in range(0, heads, GROUP))
    starts = range(0, tokens, BLOCK_TOKENS)
    for group, start in itertools.product(groups, starts):
        yield group, start, min(tokens, start + BLOCK_TOKENS)


class _Causal(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        q, k, v = (tensor.flatten(0, 1) for tensor in (query, key, value))  # [N, T, D]
        low, wide = q.dtype, torch.promote_types(q.dtype, torch.float32)
        scaled, wide_k = q.to(wide) * scaling, k.to(wide)
        later = q.new_full((BLOCK_TOKENS, BLOCK_TOKENS), -torch.inf, dtype=wide).triu_(1)
        output = torch.empty_like(q)
        kept = []
        for group, start, end in _blocks(*q.shape[:2]):
            size = end - start
            logits = torch.bmm(scaled[group, start:end], wide_k[group, :end].mT)
            logits[:, :, start:] += later[:size, :size]
            probabilities = torch.softmax(logits, -1, out=logits).to(low)
            output[group, start:end] = torch.bmm(probabilities, v[group, :end])
            if any(ctx.needs_input_grad):
                kept.append(probabilities)
        ctx.save_for_backward(q, k, v, output, *kept)
        ctx.scaling = scaling
        return output.unflatten(0, query.shape[:2])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, output, *kept = ctx.saved_tensors
        (given,) = gradients
        shape = given.shape
        gradient = given.flatten(0, 1)
        low, wide = q.dtype, torch.promote_types(q.dtype, torch.float32)
        wide_gradient, wide_v = gradient.to(wide), v.to(wide)
        # With P = softmax(logits): d logits = P * (dP - rowsum(P * dP)), and rowsum(P * dP) =
        # rowsum(output * d output) (FlashAttention, arXiv 2205.14135, appendix B.2).
        subtracted = (wide_gradient * output).sum(-1, keepdim=True)  # [N, T, 1]
        dq = torch.empty_like(q)
        dk, dv = (torch.zeros_like(tensor, dtype=wide) for tensor in (k, v))
        for (group, start, end), p in zip(_blocks(*q.shape[:2]), kept, strict=True):
            block = slice(start, end)
            dv[group, :end] += torch.bmm(p.mT, gradient[group, block])
            dp = torch.bmm(wide_gradient[group, block], wide_v[group, :end].mT)
            dlogits = dp.sub_(subtracted[group, block]).mul_(p).to(low)
            dq[group, block] = torch.bmm(dlogits, k[group, :end])
            dk[group, :end] += torch.bmm(dlogits.mT, q[group, block])
        found = (dq.mul_(ctx.scaling), dk.mul_(ctx.scaling).to(low), dv.to(low))
        return (*(tensor.unflatten(0, shape[:2]) for tensor in found), None)
