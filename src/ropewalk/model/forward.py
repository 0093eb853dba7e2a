"""Running a model: ids and boundaries in, hidden states or the sum of token losses out."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from ropewalk.model.attention import Segments, segments
from ropewalk.model.loss import IGNORED, linear_cross_entropy_sum, next_token_labels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """Rows as a model reads them, on its device."""

    input_ids: torch.Tensor  # int64 [B, T]
    labels: torch.Tensor  # int64 [B, T], `IGNORED` where nothing is predicted
    position_ids: torch.Tensor  # int64 [1 or B, T]
    segments: Segments
    targets: int  # labels that are not ignored


def inputs(
    input_ids: np.ndarray,
    boundaries: Sequence[Sequence[int]],
    position_ids: np.ndarray,
    device: torch.device,
    targets: np.ndarray | None = None,
) -> Inputs:
    """Put rows on a device with their next-token labels; see `Inputs` for the shapes.

    `targets`, bool [B, T], says which tokens are trained on; None means every one.
    """
    rows, tokens = input_ids.shape
    labels = next_token_labels(input_ids, boundaries, targets)
    return Inputs(
        input_ids=torch.from_numpy(input_ids).to(device, non_blocking=True),
        labels=torch.from_numpy(labels).to(device, non_blocking=True),
        position_ids=torch.from_numpy(position_ids).to(device, non_blocking=True),
        segments=segments(boundaries, rows, tokens, device),
        targets=int((labels != IGNORED).sum()),
    )


def hidden(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    boundaries: Segments | Sequence[Sequence[int]] | None,
    position_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the hidden states after the last norm, [B, T, D].

    `input_ids` is int64 [B, T]; `boundaries` has per row the cumulative segment ends (0, ...),
    None means one segment per row; `position_ids` is int64 [1 or B, T], None means 0, 1, 2, ...
    """
    rows, tokens = input_ids.shape
    if not isinstance(boundaries, Segments):
        boundaries = segments(boundaries, rows, tokens, input_ids.device)
    if position_ids is None:
        position_ids = torch.arange(tokens, device=input_ids.device)[None]
    base: Any = model.base_model
    states: torch.Tensor = base(
        input_ids=input_ids,
        position_ids=position_ids,
        use_cache=False,
        segments=boundaries,
        **base.rotary_emb.attention(position_ids, boundaries),
    ).last_hidden_state
    return states


class Objective(torch.nn.Module):
    """A model with its training loss: one forward that ends in the sum of token losses.

    Sharding (FSDP) gathers the parameters of a module around its `forward`; the loss reads the
    output matrix directly, so it has to lie inside such a forward.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, rows: Inputs) -> torch.Tensor:
        """Return the sum of next-token losses over all targets, fp32 scalar, in nats."""
        states = hidden(self.model, rows.input_ids, rows.segments, rows.position_ids)
        head = self.model.get_output_embeddings()
        return linear_cross_entropy_sum(states.flatten(0, 1), head.weight, rows.labels.flatten())


def loss_sum(model: PreTrainedModel | Objective, rows: Inputs) -> tuple[torch.Tensor, int]:
    """Return the sum of next-token losses in nats (fp32 scalar) and the number of targets."""
    objective = model if isinstance(model, Objective) else Objective(model)
    return objective(rows), rows.targets
