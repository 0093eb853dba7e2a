"""AdamW, gradient clipping and loss scaling, on plain and on sharded parameters."""

import dataclasses
from collections.abc import Iterable

import torch
from torch.distributed.tensor import DTensor

from ropewalk.train.spec import Optimizer


def adamw(model: torch.nn.Module, spec: Optimizer) -> torch.optim.AdamW:
    """Return AdamW (arXiv 1711.05101) over a model's parameters.

    Weight decay acts on tensors of two and more dimensions; norms and biases are not decayed.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": spec.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=spec.lr, betas=spec.betas, eps=spec.epsilon, weight_decay=0.0, fused=True
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def gradient_norm(parameters: Iterable[torch.nn.Parameter]) -> torch.Tensor:
    """Return the L2 norm over all gradients of all processes, a scalar tensor."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def scale_gradients(parameters: Iterable[torch.nn.Parameter], factor: float) -> None:
    """Multiply every gradient by `factor`, in place."""
    if factor != 1.0:
        torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], factor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossScale:
    """Dynamic loss scaling for fp16 (arXiv 1710.03740, section 3.2).

    It follows the global gradient norm, which every process knows, so all of them agree; being two
    numbers it lies in the checkpoint. torch's GradScaler looks at the local shard only.
    """

    factor: float = 65536.0
    good_steps: int = 0  # since the factor last changed

    def after(self, *, finite: bool, grow_every: int = 2000) -> "LossScale":
        """Return the scale for the next step: halved after overflow, doubled now and then."""
        if not finite:
            return LossScale(factor=self.factor / 2)
        if self.good_steps + 1 == grow_every:
            return LossScale(factor=self.factor * 2)
        return LossScale(factor=self.factor, good_steps=self.good_steps + 1)
