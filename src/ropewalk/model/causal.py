"""Causal attention for training on a CPU: squares in blocks of queries, probabilities kept.

torch's CPU kernel multiplies small tiles and computes the probabilities once more in backward. Up
to about a thousand tokens there is memory to keep them, and products of larger blocks are twice as
fast. Logits, softmax and what is subtracted in its gradient are fp32; probabilities enter products
in the dtype of the inputs, as in torch's kernel, and the errors are those of that kernel.

Dimensions: S squares, H heads, T tokens, D head dimension; N = S * H, of which a group is computed
at a time; a block has the queries start..end and sees the keys 0..end.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import torch

SHORTEST_TOKENS, LONGEST_TOKENS = 64, 768  # where it is faster than torch's kernel
BLOCK_TOKENS = 128
GROUP = 16  # heads times squares: logits of a group and block stay in caches


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
