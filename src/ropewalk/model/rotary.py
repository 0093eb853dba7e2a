"""The rotary module of every model here: cos and sin of the positions it is given, without memory.

transformers' own modules keep state where a method depends on the length (the next, shorter row is
then turned by the frequencies of the longest one seen), and have no place for methods it does not
know. This one takes their part in the model through the same attribute and the same call.

Legend: B rows, T tokens, d rotary dimension.
"""

from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from ropewalk.base.stage import StageError
from ropewalk.model.attention import Segments
from ropewalk.model.config import architecture_of, config, rope_of
from ropewalk.model.rope import (
    DOCUMENTED,
    attention_factor,
    frequencies_of,
    inverse_frequencies,
    log_scale,
)
from ropewalk.model.spec import Architecture, DynamicNtkRope, LogScaledRope, Rope, StringRope

_THEIRS: dict[str, Any] = {"llama": LlamaRotaryEmbedding, "gpt_neox": GPTNeoXRotaryEmbedding}


class Rotary(torch.nn.Module):
    """Angles of a rope in fp32; products of positions and frequencies, never matrix products."""

    def __init__(self, architecture: Architecture, rope: Rope, inverse: torch.Tensor) -> None:
        """Prepare the angles of `rope`; `inverse` is fp32 [d/2], radians per position."""
        super().__init__()
        self.architecture = architecture
        self.rope = rope
        self.attention_scaling = attention_factor(rope)
        self.inv_freq = torch.nn.Buffer(inverse, persistent=False)

    @torch.no_grad()
    def forward(
        self, x: torch.Tensor, position_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cos and sin, [1 or B, T, d], in the type of `x`.

        `position_ids` is int64 [1 or B, T].

        Raises:
            TypeError: if the frequencies were cast, as `model.to(torch.bfloat16)` does: angles
                would be noise beyond a few hundred positions.
        """
        if self.inv_freq.dtype != torch.float32:
            raise TypeError(f"rotary frequencies are {self.inv_freq.dtype}, not torch.float32")
        angles = position_ids[..., None].float() * self._frequencies(position_ids)
        angles = torch.cat((angles, angles), dim=-1)
        cos, sin = angles.cos(), angles.sin()
        if self.attention_scaling != 1.0:
            cos, sin = cos * self.attention_scaling, sin * self.attention_scaling
        return cos.to(x.dtype), sin.to(x.dtype)

    def attention(self, position_ids: torch.Tensor, segments: Segments) -> dict[str, Any]:
        """Return what attention has to do beside turning, as arguments of its function.

        `position_ids` is int64 [1 or B, T], `segments` those of the rows.
        """
        match self.rope:
            case LogScaledRope(window_tokens=window):
                # Angles only differ between positions; this looks at one, counted from where the
                # document begins, wherever it stands in its row.
                rows = len(segments.rows)
                places = position_ids.expand(rows, -1).flatten()
                index = torch.arange(len(places), dtype=torch.int32, device=places.device)
                own = torch.searchsorted(segments.cumulative[1:], index, right=True)
                first = places[segments.cumulative[:-1].long()[own]]
                return {"query_scale": log_scale(places - first, window).float().view(rows, -1)}
            case StringRope():
                from ropewalk.model.string import shift

                given = inverse_frequencies(
                    self.architecture, self.rope, length_tokens=int(position_ids.max()) + 1
                )
                return {"string": shift(self.rope, given, position_ids.device)}
        return {}

    def _frequencies(self, position_ids: torch.Tensor) -> torch.Tensor:
        """Return radians per position, fp32 [d/2], or [B, 1, d/2] where rows differ in length."""
        if not isinstance(frequencies_of(self.rope), DynamicNtkRope):
            return self.inv_freq
        lengths = (position_ids.amax(dim=-1) + 1).tolist()
        rows = np.stack(
            [inverse_frequencies(self.architecture, self.rope, length_tokens=n) for n in lengths]
        )
        return torch.from_numpy(rows).to(self.inv_freq)[:, None]


def set_rope(
    model: PreTrainedModel,
    architecture: Architecture,
    rope: Rope,
    *,
    length_tokens: int | None = None,
) -> None:
    """Give a built model a rope: a new rotary module, and the config that says so.

    Where transformers has the method, its own frequencies are taken, so that a reloaded export has
    the same angles to the bit, and checked against the formula, so that a key it ignores cannot go
    unnoticed.

    Raises:
        StageError: if transformers' frequencies are not those of the formula.
    """
    complete = config(architecture, rope, length_tokens=length_tokens)
    base: Any = model.base_model
    device = next(model.parameters()).device
    expected = inverse_frequencies(architecture, rope)
    inverse = torch.from_numpy(expected).float()
    if complete.rope_parameters["rope_type"] in DOCUMENTED:
        with torch.device("cpu"):
            theirs = _THEIRS[architecture.family](complete)
        inverse = theirs.inv_freq.detach()
        same = inverse.dtype == torch.float32 and np.allclose(
            inverse.numpy(), expected, rtol=1e-5, atol=0
        )
        if not same or abs(theirs.attention_scaling - attention_factor(rope)) > 1e-9:
            raise StageError(
                f"transformers computes {inverse.dtype} rotary frequencies {inverse.tolist()} and "
                f"the attention factor {theirs.attention_scaling} for {rope}; the formulas give "
                f"{expected.tolist()} and {attention_factor(rope)}"
            )
    base.rotary_emb = Rotary(architecture, rope, inverse).to(device)
    model.config.rope_parameters = complete.rope_parameters
    model.config.max_position_embeddings = complete.max_position_embeddings
    model.config.ropewalk = complete.ropewalk


def _yarn_revised(
    found: Any, device: torch.device | None = None, **_: Any
) -> tuple[torch.Tensor, float]:
    rope = rope_of(found)
    inverse = inverse_frequencies(architecture_of(found), rope)
    return torch.from_numpy(inverse).float().to(device), attention_factor(rope)


# The one method transformers lacks that is a matter of frequencies alone: with this module
# imported, its `from_pretrained` loads such checkpoints too, with any attention.
ROPE_INIT_FUNCTIONS["yarn_revised"] = _yarn_revised
