"""Next-token cross entropy without the whole logits.

Logits of 32,768 tokens over a 128k vocabulary are 16 GiB in fp32. Here they exist one chunk of
tokens at a time, in forward only: the gradients of hidden states and output matrix are computed on
the spot and kept, so nothing is recomputed in backward.

Dimensions: N tokens, D hidden, V vocabulary, C tokens of a chunk.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

IGNORED = -100
CHUNK_LOGITS = 4 * 1024 * 1024  # elements of one chunk of logits: 16 MiB in fp32, fits in caches


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
    target. Products are computed in autocast's precision, the softmax in fp32.
    """
    device = hidden.device.type
    low = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    with torch.autocast(device, enabled=False):
        loss: torch.Tensor = _LinearCrossEntropySum.apply(hidden, weight, labels, low)
    return loss


class _LinearCrossEntropySum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        low: torch.dtype,
    ) -> torch.Tensor:
        chunk = max(1, CHUNK_LOGITS // weight.shape[0])
        matrix = weight.to(low)  # [V, D]
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        hidden_gradient = torch.empty_like(hidden) if needs_hidden else None
        # fp32, whatever the products are computed in: it adds up every token of the step.
        weight_gradient = (
            torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
            if needs_weight
            else None
        )
        total = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
        for start in range(0, hidden.shape[0], chunk):
            part = hidden[start : start + chunk].to(low)  # [C, D]
            target = labels[start : start + chunk]  # [C]
            kept = target != IGNORED
            index = target.where(kept, 0)[:, None]
            logits = (part @ matrix.T).to(total.dtype)  # [C, V]
            log_normaliser = logits.logsumexp(-1, keepdim=True)
            losses = (log_normaliser - logits.gather(-1, index)).squeeze(-1)
            total += losses.where(kept, 0).sum()
            if hidden_gradient is None and weight_gradient is None:
                continue
            # d loss / d logits = softmax - one-hot of the target
            gradient = logits.sub_(log_normaliser).exp_()
            gradient.scatter_add_(-1, index, gradient.new_full(index.shape, -1.0))
            gradient.masked_fill_(~kept[:, None], 0.0)
            gradient = gradient.to(low)
            if hidden_gradient is not None:
                hidden_gradient[start : start + chunk] = gradient @ matrix
            if weight_gradient is not None:
                weight_gradient += gradient.T @ part
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (scale,) = gradients
        hidden_gradient, weight_gradient = ctx.saved_tensors
        return (
            None if hidden_gradient is None else hidden_gradient * scale.to(hidden_gradient.dtype),
            None if weight_gradient is None else (weight_gradient * scale).to(ctx.weight_dtype),
            None,
            None,
        )
