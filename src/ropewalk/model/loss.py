"""Next-token cross entropy without the whole logits.

Logits of 32,768 tokens over a 128k vocabulary are 16 GiB in fp32. Here they exist one chunk of
tokens at a time, in forward only: the gradients of hidden states and output matrix are computed on
the spot and kept, so nothing is recomputed in backward. A chunk overwrites the memory of the one
before, logits become their softmax and then their gradient in place: on a CPU passes over fresh
memory cost more than the exponentials.

Dimensions: N tokens, D hidden, V vocabulary, C tokens of a chunk.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

IGNORED = -100
CHUNK_LOGITS = 2 * 1024 * 1024  # elements of one chunk of logits: 8 MiB in fp32, fits in caches
# Tokens of a chunk over a large vocabulary. The output matrix and its gradient cross the memory bus
# once per chunk: with fewer tokens that takes longer than the products.
LEAST_TOKENS = {"cpu": 256}
LEAST_TOKENS_ELSEWHERE = 2048
WORTH_LEAVING_OUT = 0.05  # share of tokens without a target


def next_token_labels(
    input_ids: np.ndarray,
    boundaries: Sequence[Sequence[int]],
    targets: np.ndarray | None = None,
) -> np.ndarray:
    """Return for every token the one to predict, int64 [B, T]; `IGNORED` at ends and in padding.

    The first token of a segment is nobody's target: the token before belongs to another document.
    `targets`, bool [B, T], says which tokens may be one at all; None means every one.
    """
    labels = np.full(input_ids.shape, IGNORED, dtype=np.int64)
    labels[:, :-1] = input_ids[:, 1:]
    if targets is not None:
        labels[:, :-1][~targets[:, 1:]] = IGNORED
    for row, ends in enumerate(boundaries):
        labels[row, np.asarray(ends[1:]) - 1] = IGNORED
        labels[row, ends[-1] :] = IGNORED
    return labels


def linear_cross_entropy_sum(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Return the sum over tokens of -log softmax(hidden @ weight.T)[label], fp32 scalar, in nats.

    `hidden` is [N, D], `weight` [V, D], `labels` int64 [N], with `IGNORED` for tokens without a
    target. Products are computed in autocast's precision, the softmax in fp32. Its backward runs
    once, like every backward without `retain_graph`: gradients are scaled where they lie.
    """
    device = hidden.device.type
    low = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    if device == "cpu":  # elsewhere counting waits for the device
        targets = (labels != IGNORED).nonzero().squeeze(-1)
        if len(targets) < (1 - WORTH_LEAVING_OUT) * len(labels):
            hidden, labels = hidden.index_select(0, targets), labels.index_select(0, targets)
    with torch.autocast(device, enabled=False):
        loss: torch.Tensor = _LinearCrossEntropySum.apply(hidden, weight, labels, low)
    return loss


def chunk_tokens(device: str, vocabulary_size: int) -> int:
    """Return C for a kind of device."""
    least = LEAST_TOKENS.get(device, LEAST_TOKENS_ELSEWHERE)
    return max(least, CHUNK_LOGITS // vocabulary_size)


class _LinearCrossEntropySum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        low: torch.dtype,
    ) -> torch.Tensor:
        tokens, vocabulary_size = hidden.shape[0], weight.shape[0]
        size = max(1, min(tokens, chunk_tokens(hidden.device.type, vocabulary_size)))
        matrix = weight.to(low)  # [V, D]
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        hidden_gradient = torch.empty_like(hidden) if needs_hidden else None
        # fp32, whatever the products are computed in: it adds up every token of the step.
        wide = torch.promote_types(low, torch.float32)
        weight_gradient = torch.zeros_like(weight, dtype=wide) if needs_weight else None
        # Every chunk uses the same memory: logits in the precision of the products and in fp32.
        products = hidden.new_empty((size, vocabulary_size), dtype=low)
        wide_products = products if low == wide else products.new_empty(products.shape, dtype=wide)
        adds = needs_weight and low not in (wide, torch.float16)
        addend = matrix.new_empty(matrix.shape) if adds else None
        # Most softmax values are below what fp16 can hold; the loss scale comes too late for them.
        raised = 1024.0 if low == torch.float16 else 1.0
        total = hidden.new_zeros((), dtype=wide)
        for start in range(0, tokens, size):
            part = hidden[start : start + size].to(low)  # [C, D]
            target = labels[start : start + size, None]  # [C, 1]
            kept = target != IGNORED
            index = target.where(kept, 0)
            product, logits = products[: len(part)], wide_products[: len(part)]  # [C, V]
            torch.mm(part, matrix.T, out=product)
            if product is not logits:
                logits.copy_(product)
            total += _to_gradient(logits, index).where(kept, 0).sum()
            if product is not logits:
                product.copy_(logits.mul_(raised) if raised != 1 else logits)
            if hidden_gradient is not None:
                found = (product @ matrix).where(kept, 0)
                hidden_gradient[start : start + size] = found.to(wide).div_(raised)
            if weight_gradient is not None:
                part = part.where(kept, 0)
                if low == torch.float16:
                    weight_gradient += _wide_product(product.T, part).div_(raised)
                elif addend is None:
                    weight_gradient.addmm_(product.T, part)
                else:
                    weight_gradient += torch.mm(product.T, part, out=addend)
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (scale,) = gradients
        hidden_gradient, weight_gradient = ctx.saved_tensors
        return (
            None if hidden_gradient is None else hidden_gradient.mul_(scale),
            None if weight_gradient is None else weight_gradient.mul_(scale).to(ctx.weight_dtype),
            None,
            None,
        )


def _wide_product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return the product of two fp16 matrices in fp32: sums over many tokens leave fp16's range."""
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


def _to_gradient(logits: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Turn logits [C, V] into d loss / d logits in place; return the losses, [C, 1], in nats.

    The gradient is softmax - one-hot of the target `index`, int64 [C, 1]. The largest softmax of a
    row is exp(0) / sum, so that log sum exp = largest logit - log(largest softmax): one pass of
    exponentials gives both.
    """
    largest = logits.amax(-1, keepdim=True)
    chosen = logits.gather(-1, index)
    softmax = torch.softmax(logits, -1, out=logits)  # a row is read before it is written
    losses = largest - chosen - softmax.amax(-1, keepdim=True).log()
    softmax.scatter_add_(-1, index, softmax.new_full(index.shape, -1.0))
    return losses
