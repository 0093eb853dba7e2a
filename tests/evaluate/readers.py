"""A transformers model behind the interface the evaluation room is written against, as plainly."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from ropewalk.model.decode import replies, whole
from ropewalk.model.reader import Choose, Reader, greedy


class PlainReader(Reader):
    """Whole logits of whole rows in the model's own precision; no trick of ours."""

    def __init__(self, model: PreTrainedModel, name: str = "small") -> None:
        self.model = model.eval()
        self.name = name
        self.device = torch.device("cpu")
        self.vocabulary_size = model.config.vocab_size
        self.depends_on_length = False
        self.room = None
        self.calls: list[tuple[int, int]] = []  # shapes that were read

    def logits(self, ids: torch.Tensor, first: int, count: int) -> torch.Tensor:
        """Return logits of all places, then those asked for."""
        self.calls.append(tuple(ids.shape))
        with torch.no_grad():
            whole = self.model(input_ids=ids, use_cache=False).logits
        return whole[:, first : first + count].float()

    def losses(
        self, ids: torch.Tensor, first: int, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return minus the log-softmax at the targets, and whether they are its largest."""
        logits = self.logits(ids, first, targets.shape[1])
        chosen = torch.log_softmax(logits, -1).gather(-1, targets[..., None])[..., 0]
        return -chosen, logits.argmax(-1) == targets

    def generate(
        self,
        prompts: torch.Tensor,
        new_tokens: int,
        choose: Choose = greedy,
        stop: Sequence[int] = (),
    ) -> list[np.ndarray]:
        """Read everything again for every token."""
        read = whole(lambda ids: self.logits(ids, ids.shape[1] - 1, 1)[:, 0])
        return replies(read, prompts, new_tokens, choose, stop)

    def flops(self, tokens: int, predicting: int) -> int | None:
        """Count nothing."""
        return None
