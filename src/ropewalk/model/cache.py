"""Keys and values of the tokens read so far, and attention of one more token to them.

A cache travels to the attention functions as `ropewalk.model.attention.segments` does: as a keyword
argument of the model's forward, here `cache`. The functions registered here read a prompt by those
of that module and remember its keys and values; without a cache they are those functions.

Keys are kept as the rotation left them, so angles must not depend on the length that is read.

Dimensions: B rows, T tokens, H heads, G key-value heads, D head dimension.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from ropewalk.model import attention
from ropewalk.model.string import Shift, turned

# `numerics.attention` -> the name in transformers' register, for a model that is given a cache. As
# there, no name may contain "flash".
IMPLEMENTATIONS = {kind: f"{name}_cached" for kind, name in attention.IMPLEMENTATIONS.items()}


class Cache:
    """Keys and values of every layer, for rows of at most `capacity` tokens."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0  # tokens that every layer has read
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def extended(
        self, layer: int, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Remember keys and values [B, G, n, D] of the next n tokens; return those of all tokens.

        `length` stays: whoever runs the layers adds n when all of them have read the tokens.
        """
        end = self.length + key.shape[2]
        if layer not in self._layers:
            shape = (*key.shape[:2], self.capacity, key.shape[3])
            self._layers[layer] = (key.new_empty(shape), value.new_empty(shape))
        found = self._layers[layer]
        for kept, new in zip(found, (key, value), strict=True):
            kept[:, :, self.length : end] = new
        return found[0][:, :, :end], found[1][:, :, :end]


def one_query(
    query: torch.Tensor,  # [B, H, 1, D], rotated, in the precision of the rotation
    keys: torch.Tensor,  # [B, G, T, D], rotated, in the kernel's dtype; the last is the query's own
    values: torch.Tensor,  # [B, G, T, D], in the kernel's dtype
    scaling: float,
    string: Shift | None = None,
) -> torch.Tensor:
    """Attend with the last token of every row; returns [B, 1, H, D] in the kernel's dtype.

    The heads that share a key are the rows of one product, so that keys are never repeated.
    """
    tokens = keys.shape[2]
    shared = (keys.shape[1], -1)
    near = query.to(keys.dtype).squeeze(2).unflatten(1, shared)  # [B, G, H / G, D]
    with torch.autocast(query.device.type, enabled=False):
        if string is None or tokens <= string.shift_tokens:  # no distance reaches S
            found = scaled_dot_product_attention(near, keys, values, scale=scaling)
        else:
            far = turned(query.squeeze(2), string).to(keys.dtype).unflatten(1, shared)
            # Key j is tokens - 1 - j away. Variant 'released' reads the key at distance S twice.
            first_near = tokens - string.shift_tokens
            kept = slice(first_near - string.inclusive, None)
            products = [
                far.float() @ keys[:, :, :first_near].float().mT,
                near.float() @ keys[:, :, kept].float().mT,
            ]
            weights = (torch.cat(products, dim=-1) * scaling).softmax(-1)
            attended = torch.cat([values[:, :, :first_near], values[:, :, kept]], dim=2)
            found = (weights @ attended.float()).to(values.dtype)
    return found.flatten(1, 2)[:, None]


def _cached(
    attend: Callable[..., tuple[torch.Tensor, None]],
) -> Callable[..., tuple[torch.Tensor, None]]:
    def attention_function(
        module: Any,
        query: torch.Tensor,  # [B, H, T, D]
        key: torch.Tensor,  # [B, G, T, D]
        value: torch.Tensor,  # [B, G, T, D]
        attention_mask: torch.Tensor | None,
        *,
        cache: Cache | None = None,
        query_scale: torch.Tensor | None = None,
        **more: Any,
    ) -> tuple[torch.Tensor, None]:
        if cache is not None:
            # The dtype of the kernels: what later queries read is what the prompt's own did.
            device = query.device.type
            automatic = torch.is_autocast_enabled(device)
            low = torch.get_autocast_dtype(device) if automatic else value.dtype
            keys, values = cache.extended(module.layer_idx, key.to(low), value.to(low))
            if cache.length:
                if query.shape[2] != 1:
                    raise ValueError(f"{query.shape[2]} tokens follow a prompt: read one at a time")
                if query_scale is not None:
                    query = query * query_scale[:, None, :, None]
                return one_query(query, keys, values, more["scaling"], more.get("string")), None
        return attend(module, query, key, value, attention_mask, query_scale=query_scale, **more)

    return attention_function


AttentionInterface.register(IMPLEMENTATIONS["sdpa"], _cached(attention.sdpa))
AttentionInterface.register(IMPLEMENTATIONS["flash"], _cached(attention.varlen))
