"""Causal attention inside explicit segments, for every model class of transformers.

transformers guesses document boundaries from position ids when it gets no mask, and the guess
changes with `use_cache` and activation checkpointing. So the models here use an attention function
of our own: an implementation name without a mask function makes transformers build no mask, and
the keyword argument `segments` reaches the function unchanged. Position ids play no part.

Two more keyword arguments reach it in the same way: `query_scale`, fp32 [1 or B, T], multiplies the
logits of the query at each place (log-scaled attention); `string` is `ropewalk.model.string.Shift`.

Dimensions: B rows, T tokens, N = B * T, H heads, G key-value heads, D head dimension.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from ropewalk.base.stage import StageError
from ropewalk.model import causal as causal_
from ropewalk.model.string import Kernel, Shift, string_attention

try:
    from flash_attn import flash_attn_varlen_func
except ImportError:  # torch's own kernel then
    flash_attn_varlen_func = None

# `numerics.attention` -> the name in transformers' register. Neither name may contain "flash":
# transformers treats such names as its own and adds its guesses.
IMPLEMENTATIONS = {"sdpa": "ropewalk", "flash": "ropewalk_varlen"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segments:
    """Where attention may look: each row is cut into segments, each token sees its own segment."""

    rows: tuple[tuple[int, ...], ...]  # per row (0, end of the first segment, ..., T)
    cumulative: torch.Tensor  # int32, segment ends over all rows laid end to end, on the device
    longest: int  # tokens of the longest segment

    @functools.cached_property
    def lengths(self) -> tuple[int, ...]:
        """Return the tokens of every segment, all rows laid end to end."""
        return tuple(end - start for row in self.rows for start, end in itertools.pairwise(row))


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


# This function stays out of torch.compile: segments change with every batch, and a graph that reads
# their lengths would be compiled anew for each. A compiled decoder block breaks here and nowhere
# else. `varlen` reads no lengths but a tensor of ends, and is part of the graph.
@torch.compiler.disable
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
    query_scale: torch.Tensor | None = None,
    string: Shift | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend with torch's own kernels, segment by segment: exact, and the fastest way on a CPU.

    Returns attention output [B, T, H, D].

    Raises:
        ValueError: for a call without segments, or with `string` where gradients are needed.
    """
    found = _required(module, segments, attention_mask)
    if string is not None and dropout:
        raise ValueError(f"attention dropout {dropout} is not supported with string")

    def causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor]:
        if not dropout and causal_.suits(query):
            return (causal_.causal(query, key, value, scaling),)
        output = scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, dropout_p=dropout
        )
        return (output,)

    def plain(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        (output,) = _run_by_run(causal, query, key, value, found.lengths)
        return output

    def with_lse(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: tuple[int, ...]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        kernel = functools.partial(_causal_with_lse, scaling=scaling)
        output, lse = _run_by_run(kernel, query, key, value, lengths)
        return output, lse

    return _attend(query, key, value, found, query_scale, string, plain, with_lse), None


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
    query_scale: torch.Tensor | None = None,
    string: Shift | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend with a variable-length FlashAttention kernel, all rows laid end to end.

    Returns attention output [B, T, H, D].

    Raises:
        StageError: on a CPU, which has no such kernel.
        ValueError: for a call without segments, or with `string` where gradients are needed.
    """
    found = _required(module, segments, attention_mask)
    if dropout:
        raise ValueError(f"attention dropout {dropout} is not supported by the varlen kernels")

    def plain(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return _varlen_kernel(query, key, value, found.cumulative, found.longest, scaling, False)[0]

    def with_lse(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: tuple[int, ...]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ends = torch.tensor(
            [0, *itertools.accumulate(lengths)], dtype=torch.int32, device=query.device
        )
        output, lse = _varlen_kernel(query, key, value, ends, max(lengths), scaling, True)
        expected = (query.shape[1], query.shape[0])
        if lse is None or lse.shape != expected:
            raise StageError(
                f"the varlen kernel's log-sum-exp is {None if lse is None else tuple(lse.shape)}, "
                f"not {expected}: install flash-attn >= 2.6, which does not pad it, or set "
                "numerics.attention to 'sdpa'"
            )
        return output, lse.T

    return _attend(query, key, value, found, query_scale, string, plain, with_lse), None


def _attend(
    query: torch.Tensor,  # [B, H, T, D]
    key: torch.Tensor,  # [B, G, T, D]
    value: torch.Tensor,  # [B, G, T, D]
    found: Segments,
    query_scale: torch.Tensor | None,  # fp32 [1 or B, T]
    string: Shift | None,
    plain: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
    with_lse: Kernel,
) -> torch.Tensor:
    """Lay the rows end to end in the kernel's dtype and attend; returns [B, T, H, D]."""
    rows, _heads, tokens, _dimension = query.shape
    if query_scale is not None:
        if query_scale.shape not in ((1, tokens), (rows, tokens)):
            raise ValueError(
                f"query_scale has shape {tuple(query_scale.shape)}; it must be (1, {tokens}) or "
                f"({rows}, {tokens})"
            )
        query = query * query_scale[:, None, :, None]
    needed = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    if string is not None and needed:
        raise ValueError("string is for inference only: call the model under torch.no_grad()")
    # Under autocast queries and keys are fp32, as the rotation left them, and values are not.
    # Kernels get one dtype, cast here once rather than by autocast segment by segment.
    device = query.device.type
    low = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else value.dtype
    query, key, value = (tensor.transpose(1, 2).flatten(0, 1) for tensor in (query, key, value))
    key, value = key.to(low), value.to(low)
    if string is None or found.longest <= string.shift_tokens:  # no distance reaches S
        output = plain(query.to(low), key, value)
    else:
        output = string_attention(query, key, value, found.lengths, string, with_lse)
    return output.unflatten(0, (rows, tokens))


def _run_by_run(
    attend: Callable[..., tuple[torch.Tensor, ...]],
    query: torch.Tensor,  # [N, H, D]
    key: torch.Tensor,  # [N, G, D]
    value: torch.Tensor,  # [N, G, D]
    lengths: tuple[int, ...],
) -> tuple[torch.Tensor, ...]:
    """Call `attend` once per run of equally long segments, so that whole rows are one call.

    `attend` gets queries, keys and values [segments, H, length, D] and returns tensors
    [segments, H, length, ...]; they come back as [N, H, ...].
    """
    runs = [(length, len(list(run))) for length, run in itertools.groupby(lengths)]
    # One split per tensor, not one slice per segment: the backward of a slice is a tensor of zeros
    # as large as what it was cut from.
    sizes = [length * count for length, count in runs]
    every = (query, _repeated(query, key), _repeated(query, value))
    found = []
    for run, *pieces in zip(runs, *(tensor.split(sizes) for tensor in every), strict=True):
        length, count = run
        squares = (piece.unflatten(0, (count, length)).transpose(1, 2) for piece in pieces)
        found.append([result.transpose(1, 2).flatten(0, 1) for result in attend(*squares)])
    return tuple(
        torch.cat(results) if len(results) > 1 else results[0]
        for results in zip(*found, strict=True)
    )


def _causal_with_lse(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return output [B, H, T, D] and the log-sum-exp of the logits [B, H, T]."""
    if query.device.type == "cpu":
        output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, is_causal=True, scale=scaling
        )
        return output, lse
    output, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, None, compute_log_sumexp=True, is_causal=True, scale=scaling
    )
    return output, lse[..., : query.shape[2]]  # the kernel rounds T up to a multiple of 32


def _torch_kernel(
    query: torch.Tensor,  # [N, H, D]
    key: torch.Tensor,  # [N, G, D]
    value: torch.Tensor,  # [N, G, D]
    ends: torch.Tensor,  # int32 [segments + 1]
    longest: int,
    scale: float,
    lse: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return output [N, H, D] and, if asked for, the log-sum-exp of the logits [H, N]."""
    _refuse_cpu(query)
    key, value = _repeated(query, key), _repeated(query, value)
    settings: dict[str, Any] = {"scale": scale, "window_size": (-1, 0)}  # causal
    if lse:
        from torch.nn.attention.varlen import AuxRequest

        settings["return_aux"] = AuxRequest(lse=True)
    found = varlen_attn(query, key, value, ends, ends, longest, longest, **settings)
    return (found, None) if isinstance(found, torch.Tensor) else found


def _flash_kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ends: torch.Tensor,
    longest: int,
    scale: float,
    lse: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Do as `_torch_kernel`, by flash-attn."""
    _refuse_cpu(query)
    found = flash_attn_varlen_func(
        query,
        key,
        value,
        ends,
        ends,
        longest,
        longest,
        softmax_scale=scale,
        causal=True,
        return_attn_probs=lse,
    )
    return (found[0], found[1]) if lse else (found, None)


def _refuse_cpu(query: torch.Tensor) -> None:
    if query.device.type != "cuda":
        raise StageError(
            "numerics.attention: 'flash' has no kernel for device "
            f"{query.device.type!r}; set it to 'sdpa'"
        )


# Chosen here, not where it is called: torch.compile cannot follow an import.
_varlen_kernel = _torch_kernel if flash_attn_varlen_func is None else _flash_kernel


def _repeated(query: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
    """Repeat key or value heads [N, G, D] until there are as many as of the query.

    The kernels that share heads by themselves differ between devices; this is always exact.
    """
    groups = query.shape[1] // shared.shape[1]
    return shared.repeat_interleave(groups, dim=1) if groups > 1 else shared


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
