"""A model as evaluation reads it: losses of given tokens, and tokens of its own.

Every protocol is written against `Reader`, so that it works on our own models under any rope and on
whatever else transformers can load.

Dimensions: B rows, T tokens of a row, n tokens that are scored or decoded, V vocabulary.
"""

import abc
from collections.abc import Callable, Sequence

import numpy as np
import torch

# (logits float32 [B, V], step from 0) -> the next token of every row, int64 [B]
Choose = Callable[[torch.Tensor, int], torch.Tensor]


def greedy(logits: torch.Tensor, _: int) -> torch.Tensor:
    """Choose the most probable token; the first of those that are equal."""
    return logits.argmax(-1)


class Reader(abc.ABC):
    """A loaded model.

    Attributes:
        name: of the folder and snapshot, for messages.
        device: where it computes.
        vocabulary_size: rows of its output matrix.
        depends_on_length: whether an angle, or what attention does beside turning, depends on how
            many tokens are read: a forward then says nothing about a shorter one.
        room: tokens it can read at all, None where nothing limits them.
    """

    name: str
    device: torch.device
    vocabulary_size: int
    depends_on_length: bool
    room: int | None

    @abc.abstractmethod
    def losses(
        self, ids: torch.Tensor, first: int, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss of every target and whether it is the model's first choice.

        `ids` int64 [B, T] are read as one text each, from position 0; place `first` + i predicts
        `targets`[:, i], int64 [B, n], with first + n <= T. Losses are float32 [B, n], nats, their
        softmax is float32 whatever the model computes in; hits are bool [B, n].
        """

    @abc.abstractmethod
    def logits(self, ids: torch.Tensor, first: int, count: int) -> torch.Tensor:
        """Return the logits of places first, ..., first + count - 1: float32 [B, count, V]."""

    @abc.abstractmethod
    def generate(
        self,
        prompts: torch.Tensor,
        new_tokens: int,
        choose: Choose = greedy,
        stop: Sequence[int] = (),
    ) -> list[np.ndarray]:
        """Return what follows each of `prompts`, int64 [B, T]: at most `new_tokens` tokens each.

        A row ends with the first token of `stop`, which is not part of it. Every reader decodes by
        `decode.replies`, which raises `NotFiniteError` where logits are no numbers.
        """

    @abc.abstractmethod
    def flops(self, tokens: int, predicting: int) -> int | None:
        """Return the FLOPs of one row: `tokens` read, logits at `predicting` of them.

        None where the architecture is not one that can be counted.
        """
