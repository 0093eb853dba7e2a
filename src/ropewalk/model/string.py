"""STRING at inference: far distances read as nearer, well trained ones (arXiv 2410.18745).

Distances below S stay what they are, a distance d >= S becomes d - S + W. Queries and keys come
rotated at their natural positions; rotations compose, so the query for the far distances is the
rotated query turned once more by the constant W - S positions, and no position ids are needed.

Every set of distances is cut into causal squares, which any causal kernel that returns the
log-sum-exp of its logits can do; the results are merged by that log-sum-exp. In a segment:

    near, own block      blocks of S tokens: a causal square each
    near, block before   query r of a block sees key j of the block before if r + S - j < S; with
                         both orders reversed that is a causal square of S - 1 tokens
    far                  queries S.. against keys ..n-S: a causal square of n - S tokens

Dimensions: N tokens of all rows laid end to end, H heads, D head dimension, R turned dimensions.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable

import numpy as np
import torch

from ropewalk.model.spec import StringRope

# query, key, value [N, H, D] of one dtype, and lengths that add up to N: causal attention inside
# each length. Returns the output [N, H, D] and the natural log-sum-exp of the logits [N, H].
Kernel = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, tuple[int, ...]],
    tuple[torch.Tensor, torch.Tensor],
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shift:
    """STRING as attention reads it: where distances are cut, and the turn of far queries."""

    shift_tokens: int  # S
    window_tokens: int  # W
    inclusive: bool  # distance S also counts as near (variant 'released')
    cos: torch.Tensor  # fp32 [R], of W - S positions, halves alike (as transformers pairs them)
    sin: torch.Tensor  # fp32 [R]


def shift(rope: StringRope, frequencies: np.ndarray, device: torch.device) -> Shift:
    """Return `rope` as attention reads it.

    `frequencies`, float64 [R / 2], are the radians per position of every pair.
    """
    # float64: at 100,000 positions fp32 angles are off by a hundredth of a radian.
    angles = (rope.window_tokens - rope.shift_tokens) * np.concatenate([frequencies, frequencies])
    return Shift(
        shift_tokens=rope.shift_tokens,
        window_tokens=rope.window_tokens,
        # The released prefill calls FlashAttention with window (S, 0), which includes distance S.
        inclusive=rope.variant == "released",
        cos=torch.from_numpy(np.cos(angles)).to(device, torch.float32),
        sin=torch.from_numpy(np.sin(angles)).to(device, torch.float32),
    )


def shifted_positions(tokens: int, rope: StringRope) -> np.ndarray:
    """Return the relative position of every query m and key n <= m, int64 [T, T].

    P'[m][n] = m - n if m - n < S, otherwise m - n - S + W (arXiv 2410.18745). Above the
    diagonal, where nothing is attended to, it is -1.

    Raises:
        ValueError: for variant 'released', where distance S has two positions at once.
    """
    if rope.variant != "exact":
        raise ValueError(
            f"variant {rope.variant!r} has no matrix of positions: distance {rope.shift_tokens} "
            "counts twice; use variant 'exact'"
        )
    distances = np.arange(tokens)[:, None] - np.arange(tokens)
    far = distances - rope.shift_tokens + rope.window_tokens
    return np.where(distances < 0, -1, np.where(distances < rope.shift_tokens, distances, far))


def turned(query: torch.Tensor, shift: Shift) -> torch.Tensor:
    """Turn rotated queries [N, H, D] by another W - S positions, in fp32; returns fp32."""
    turning, still = query.float().tensor_split([shift.cos.numel()], dim=-1)
    first, second = turning.chunk(2, dim=-1)
    turning = turning * shift.cos + torch.cat([-second, first], dim=-1) * shift.sin
    return torch.cat([turning, still], dim=-1)


def string_attention(
    query: torch.Tensor,  # [N, H, D], rotated, in the precision of the rotation
    key: torch.Tensor,  # [N, G, D], rotated, in the kernel's dtype
    value: torch.Tensor,  # [N, G, D], in the kernel's dtype
    lengths: tuple[int, ...],
    shift: Shift,
    kernel: Kernel,
) -> torch.Tensor:
    """Attend inside segments of `lengths` tokens; returns [N, H, D] in the kernel's dtype.

    Two results of one query merge as sigmoid(l1 - l2) o1 + sigmoid(l2 - l1) o2, with l the
    log-sum-exp of their logits, in fp32.
    """
    blocks, before, far = _squares(lengths, shift.shift_tokens, shift.inclusive)
    output, lse = kernel(query.to(value.dtype), key, value, blocks)
    output, lse = output.float(), lse.float()
    for part, turn in ((before, False), (far, True)):
        if not part.lengths:
            continue
        queries, keys, kept = (
            torch.from_numpy(indices).to(query.device)
            for indices in (part.queries, part.keys, part.kept)
        )
        # index_select: half the time of tensor[indices] on a CPU.
        asking = query.index_select(0, queries)
        asking = (turned(asking, shift) if turn else asking).to(value.dtype)
        found = kernel(asking, key.index_select(0, keys), value.index_select(0, keys), part.lengths)
        rows = queries[kept]  # each query once
        other, other_lse = (tensor.float().index_select(0, kept) for tensor in found)
        here, here_lse = output.index_select(0, rows), lse.index_select(0, rows)
        weight, other_weight = (here_lse - other_lse).sigmoid(), (other_lse - here_lse).sigmoid()
        merged = weight[..., None] * here + other_weight[..., None] * other
        output.index_copy_(0, rows, merged)
        lse.index_copy_(0, rows, torch.logaddexp(here_lse, other_lse))
    return output.to(value.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Part:
    """Causal squares over tokens in another order; P tokens in all squares."""

    queries: np.ndarray  # int64 [P], which token asks
    keys: np.ndarray  # int64 [P], which token answers
    lengths: tuple[int, ...]  # of the squares
    kept: np.ndarray  # int64, which of the P are read: others only fill up a square


# Every layer asks for the same. Arrays, not tensors: a tensor belongs to a device and a mode.
@functools.lru_cache(maxsize=4)
def _squares(
    lengths: tuple[int, ...], shift_tokens: int, inclusive: bool
) -> tuple[tuple[int, ...], _Part, _Part]:
    """Return the lengths of the own blocks, the squares of the blocks before and the far ones."""
    blocks: list[int] = []
    before: list[_Square] = []
    far: list[_Square] = []
    side = np.arange(shift_tokens if inclusive else shift_tokens - 1)
    for end, tokens in zip(itertools.accumulate(lengths), lengths, strict=True):
        begin = end - tokens
        starts = range(begin, end, shift_tokens)
        blocks += [min(shift_tokens, end - start) for start in starts]
        if len(side):  # with S = 1 a block sees nothing of the one before
            for start in starts[1:]:
                queries = start + side[::-1]
                # The last block may be short: its last token fills in for those that are missing.
                before.append((np.minimum(queries, end - 1), start - 1 - side, queries < end))
        if tokens > shift_tokens:
            queries = np.arange(begin + shift_tokens, end)
            far.append((queries, queries - shift_tokens, np.full(len(queries), True)))
    return tuple(blocks), _part(before), _part(far)


_Square = tuple[np.ndarray, np.ndarray, np.ndarray]  # queries, keys, whether the query is read


def _part(squares: list[_Square]) -> _Part:
    none = np.empty(0, dtype=np.int64)
    queries, keys, read = (
        np.concatenate(column) for column in zip((none, none, none > 0), *squares, strict=True)
    )
    return _Part(
        queries=queries,
        keys=keys,
        lengths=tuple(len(square[0]) for square in squares),
        kept=np.flatnonzero(read),
    )
