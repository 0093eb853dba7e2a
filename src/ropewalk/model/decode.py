"""Decoding: one token after the other, for a batch of prompts of equal length.

The loop knows nothing of models: a `Read` takes in the next tokens and says what may follow. Where
nothing that was read can be kept, because it depends on the length, `whole` reads all of it again.

Dimensions: B rows, n tokens that are new to the model, V vocabulary.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from ropewalk.model.reader import Choose

# int64 [B, n], what follows the tokens of earlier calls -> logits of the last, float32 [B, V]
Read = Callable[[torch.Tensor], torch.Tensor]


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
    """
    ends = torch.tensor(list(stop), dtype=torch.int64, device=prompts.device)
    running = torch.ones(len(prompts), dtype=torch.bool, device=prompts.device)
    chosen = [prompts[:, :0]]
    tokens = prompts
    for step in range(new_tokens):
        tokens = choose(read(tokens), step).to(prompts.device)[:, None]
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
