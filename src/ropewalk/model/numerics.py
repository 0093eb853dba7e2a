"""Numerics of a study: what they mean on a device, and which devices can compute them.

Weights are fp32 at rest. bf16 and fp16 are autocast, with any number of processes and on any
device, so that the same study means the same everywhere: matrix products in the low precision; the
residual stream, norms, softmax, loss and above all the rotation by RoPE in fp32 (angles in bf16
lose positions beyond a few hundred).
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from ropewalk.base.stage import StageError
from ropewalk.model.spec import Numerics

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def check(numerics: Numerics, device: torch.device) -> None:
    """Refuse a device that cannot compute what the study asks for.

    Raises:
        StageError: naming the key, its value and what would be right.
    """
    if device.type == "cpu":
        if numerics.attention == "flash":
            raise StageError(
                "numerics.attention: 'flash' needs a CUDA device, this is a CPU; "
                "set it to 'sdpa' (exact, document by document)"
            )
        if numerics.precision == "fp16":
            raise StageError(
                "numerics.precision: 'fp16' is over 100 times slower than fp32 on a CPU; "
                "set it to 'fp32' or 'bf16'"
            )
        return
    capability = torch.cuda.get_device_capability(device)
    name = torch.cuda.get_device_name(device)
    if capability < (8, 0):
        if numerics.precision == "bf16":
            raise StageError(
                f"numerics.precision: {name} has no bf16 arithmetic; set it to 'fp16' or 'fp32'"
            )
        if numerics.attention == "flash":
            raise StageError(
                f"numerics.attention: {name} cannot run FlashAttention-2; set it to 'sdpa'"
            )
    if numerics.attention == "flash" and numerics.precision == "fp32":
        raise StageError(
            "numerics.attention: 'flash' computes in bf16 or fp16 only, numerics.precision is "
            "'fp32'; set precision to 'bf16' or attention to 'sdpa'"
        )


@contextlib.contextmanager
def applied(
    numerics: Numerics, device: torch.device, *, weights_change: bool = True
) -> Iterator[None]:
    """Run a block under the study's numerics; process-wide switches are put back afterwards.

    Autocast may keep the low-precision copies of weights that it makes, until the block ends. Where
    an optimizer changes weights meanwhile, every later forward would read the first ones: only with
    `weights_change=False` are copies kept.
    """
    check(numerics, device)
    matmul = torch.get_float32_matmul_precision()
    deterministic = torch.are_deterministic_algorithms_enabled()
    memory: Any = torch.utils.deterministic  # a module that answers to attributes
    fill = memory.fill_uninitialized_memory
    try:
        torch.set_float32_matmul_precision(numerics.matmul)
        # On a GPU some kernels have no deterministic form; on a CPU reruns are equal to the bit.
        torch.use_deterministic_algorithms(device.type == "cpu")
        # With that torch also fills all new memory with NaN, for code that reads what it never
        # wrote; it changes no result here and costs a pass over every tensor.
        memory.fill_uninitialized_memory = False
        with torch.autocast(
            device.type,
            dtype=DTYPES[numerics.precision],
            enabled=numerics.precision != "fp32",
            cache_enabled=not weights_change,
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.use_deterministic_algorithms(deterministic)
        memory.fill_uninitialized_memory = fill
