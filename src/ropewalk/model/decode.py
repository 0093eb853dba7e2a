"""Decoding: one token after the other, for a batch of prompts of equal length.

The loop knows nothing of models: a `Read` takes in the next tokens and says what may follow. Where
nothing that was read can be kept, because it depends on the length, `whole` reads all of it again.

Dimensions: B rows, n tokens that are new to the model, V vocabulary.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from ropewalk.base.stage import StageError
from ropewalk.model.reader import Choose

# int64 [B, n], what follows the tokens of earlier calls -> logits of the last, float32 [B, V]
Read = Callable[[torch.Tensor], torch.Tensor]


class NotFiniteError(StageError):
    """Logits of a row that is decoded are no numbers; `row` is its place among the prompts."""

    def __init__(self, row: int, step: int) -> None:
        """`step` counts the tokens of the reply that were chosen before."""
        super().__init__(
            f"the logits after {step} decoded tokens are not finite: the weights "
            "or numerics.precision overflow there; evaluate in fp32 or bf16, or look at the loss "
            "curve of the run"
        )
        self.row = row


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Compute without gradients, outside of inference mode even if the caller is inside.

    In inference mode autocast copies every weight to low precision each time it is used: for one
    token that is several times the work of the products themselves.
    """
    with torch.inference_mode(False), torch.no_grad():
        yield


def replies(
    read: Read, prompts: torch.Tensor, new_tokens: int, choose: Choose, stop: Sequence[int]
) -> list[np.ndarray]:
    """Return what follows each of `prompts`, int64 [B, T]: at most `new_tokens` tokens, int64.

    A row ends with the first token of `stop`, which is not part of it. A row that ended is read on
    with the others, which do not see it, so that `choose` always gets all rows.

    Raises:
        NotFiniteError: if the largest logit of a row that has not ended is no finite number: any
            way of choosing would still give a token.
    """
    ends = torch.tensor(list(stop), dtype=torch.int64, device=prompts.device)
    running = torch.ones(len(prompts), dtype=torch.bool, device=prompts.device)
    chosen = [prompts[:, :0]]
    tokens = prompts
    for step in range(new_tokens):
        logits = read(tokens)
        broken = running & ~logits.amax(-1).isfinite().to(prompts.device)
        if broken.any():
            raise NotFiniteError(int(broken.nonzero()[0]), step)
        tokens = choose(logits, step).to(prompts.device)[:, None]
        chosen.append(tokens)
        running &= ~torch.isin(tokens[:, 0], ends)
        if not running.any():
            break
    return [_before(row, stop) for row in torch.cat(chosen, dim=1).cpu().numpy()]


def _before(tokens: np.ndarray, stop: Sequence[int]) -> np.ndarray:
    ends = np.flatnonzero(np.isin(tokens, list(stop)))
    return tokens[: ends[0]] if len(ends) else tokens


def whole(last_logits: Read) -> Read:
    """Return a `Read` that gives `last_logits` every token read so far, each time."""
    parts: list[torch.Tensor] = []

    def read(tokens: torch.Tensor) -> torch.Tensor:
        parts.append(tokens)
        return last_logits(torch.cat(parts, dim=1))

    return read
