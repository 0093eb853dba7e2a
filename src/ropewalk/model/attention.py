"""Causal attention inside explicit segments, for every model class of transformers.

transformers guesses document boundaries from position ids when it gets no mask, and the guess
changes with `use_cache` and activation checkpointing. So the models here use an attention function
of our own: an implementation name without a mask function makes transformers build no mask, and
the keyword argument `segments` reaches the function unchanged. Position ids play no part.

Dimensions: B rows, T tokens, H heads, G key-value heads, D head dimension.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from ropewalk.base.stage import StageError

# `numerics.attention` -> the name in transformers' register. Neither name may contain "flash":
# transformers treats such names as its own and adds its guesses.
IMPLEMENTATIONS = {"sdpa": "ropewalk", "flash": "ropewalk_varlen"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segments:
    """Where attention may look: each row is cut into segments, each token sees its own segment."""

    rows: tuple[tuple[int, ...], ...]  # per row (0, end of the first segment, ..., T)
    cumulative: torch.Tensor  # int32, segment ends over all rows laid end to end, on the device
    longest: int  # tokens of the longest segment

    @property
    def whole_rows(self) -> bool:
        """Return whether every row is one segment."""
        return all(len(row) == 2 for row in self.rows)


def segments(
    boundaries: Sequence[Sequence[int]] | None, rows: int, tokens: int, device: torch.device
) -> Segments:
    """Check boundaries and put them into the form the attention functions read.

    `boundaries` has one sequence (0, ..., n <= T) of increasing segment ends per row; what lies
    behind n is padding, a segment by itself. None means that every row is one segment.

    Raises:
        ValueError: naming the row whose boundaries do not increase from 0 to at most T.
    """
    given = [(0, tokens)] * rows if boundaries is None else [tuple(row) for row in boundaries]
    if len(given) != rows:
        raise ValueError(f"boundaries has {len(given)} rows, input_ids has {rows}")
    checked: list[tuple[int, ...]] = []
    ends, longest = [0], 0
    for index, row in enumerate(given):
        increasing = all(start < end for start, end in itertools.pairwise(row))
        if len(row) < 2 or row[0] != 0 or row[-1] > tokens or not increasing:
            raise ValueError(f"boundaries[{index}] {row} must increase from 0 to at most {tokens}")
        checked.append((*row, tokens) if row[-1] < tokens else row)
        ends += [index * tokens + end for end in checked[-1][1:]]
        longest = max(longest, *(end - start for start, end in itertools.pairwise(checked[-1])))
    cumulative = torch.tensor(ends, dtype=torch.int32, device=device)
    return Segments(rows=tuple(checked), cumulative=cumulative, longest=longest)


def sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,  # [B, H, T, D]
    key: torch.Tensor,  # [B, G, T, D]
    value: torch.Tensor,  # [B, G, T, D]
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    segments: Segments | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend with torch's own kernel, one call per segment: exact, and the fastest way on a CPU.

    Returns attention output [B, T, H, D].
    """
    found = _required(module, segments, attention_mask)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        # The kernels behind `enable_gqa` differ between devices; repeated heads are always exact.
        key = key.repeat_interleave(groups, dim=1)
        value = value.repeat_interleave(groups, dim=1)
    attend = functools.partial(
        scaled_dot_product_attention, is_causal=True, scale=scaling, dropout_p=dropout
    )
    if found.whole_rows:
        return attend(query, key, value).transpose(1, 2), None
    rows = []
    for index, ends in enumerate(found.rows):
        row = (tensor[index : index + 1] for tensor in (query, key, value))
        # One split per tensor, not one slice per segment: the backward of a slice is a tensor of
        # zeros as large as the row.
        lengths = [end - start for start, end in itertools.pairwise(ends)]
        pieces = zip(*(tensor.split(lengths, dim=2) for tensor in row), strict=True)
        rows.append(torch.cat([attend(*piece) for piece in pieces], dim=2))
    return torch.cat(rows).transpose(1, 2), None


def varlen(
    module: torch.nn.Module,
    query: torch.Tensor,  # [B, H, T, D]
    key: torch.Tensor,  # [B, G, T, D]
    value: torch.Tensor,  # [B, G, T, D]
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    segments: Segments | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend with a variable-length FlashAttention kernel, all rows laid end to end.

    Returns attention output [B, T, H, D].

    Raises:
        StageError: on a CPU, which has no such kernel.
    """
    found = _required(module, segments, attention_mask)
    if query.device.type != "cuda":
        raise StageError(
            "numerics.attention: 'flash' has no kernel for device "
            f"{query.device.type!r}; set it to 'sdpa'"
        )
    if dropout:
        raise ValueError(f"attention dropout {dropout} is not supported by the varlen kernels")
    low = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else query.dtype
    rows, _heads, tokens, _dimension = query.shape
    flat = [t.transpose(1, 2).flatten(0, 1).to(low) for t in (query, key, value)]  # [B*T, ., D]
    attended = _varlen_kernel()(*flat, found.cumulative, found.longest, scaling)
    return attended.unflatten(0, (rows, tokens)), None


@functools.cache
def _varlen_kernel() -> Callable[..., torch.Tensor]:
    """Return flash-attn's kernel where it is installed, else the one that comes with torch."""
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        from torch.nn.attention.varlen import varlen_attn

        def kernel(
            query: torch.Tensor,
            key: torch.Tensor,
            value: torch.Tensor,
            ends: torch.Tensor,
            longest: int,
            scale: float,
        ) -> torch.Tensor:
            groups = query.shape[1] // key.shape[1]
            attended = varlen_attn(
                query,
                key.repeat_interleave(groups, dim=1) if groups > 1 else key,
                value.repeat_interleave(groups, dim=1) if groups > 1 else value,
                ends,
                ends,
                longest,
                longest,
                scale=scale,
                window_size=(-1, 0),  # causal
            )
            if not isinstance(attended, torch.Tensor):
                raise TypeError("varlen_attn returned auxiliary results nobody asked for")
            return attended

        return kernel

    def flash(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        ends: torch.Tensor,
        longest: int,
        scale: float,
    ) -> torch.Tensor:
        return flash_attn_varlen_func(
            query, key, value, ends, ends, longest, longest, softmax_scale=scale, causal=True
        )

    return flash


def _required(
    module: torch.nn.Module, segments: Segments | None, attention_mask: torch.Tensor | None
) -> Segments:
    if segments is None:
        raise ValueError(
            f"{type(module).__name__} was called without segments: use ropewalk.model.forward, or "
            "load the checkpoint with transformers' own attention to generate text"
        )
    if attention_mask is not None:
        raise ValueError("attention_mask is given: boundaries are passed as segments instead")
    return segments


AttentionInterface.register(IMPLEMENTATIONS["sdpa"], sdpa)
AttentionInterface.register(IMPLEMENTATIONS["flash"], varlen)
