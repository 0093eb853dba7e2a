"""Nucleus sampling whose randomness has addresses: a reply does not depend on its batch.

Dimensions: B rows, V vocabulary.
"""

from collections.abc import Sequence

import torch

from ropewalk.base.rng import generator
from ropewalk.evaluate.plan import Prompts
from ropewalk.model.reader import Choose, greedy


def nucleus(
    logits: torch.Tensor, temperature: float, top_p: float, numbers: torch.Tensor
) -> torch.Tensor:
    """Choose a token of every row, int64 [B], from its nucleus (Holtzman et al. 2020, section 3.1).

    The nucleus is the fewest most probable tokens, under softmax(logits / temperature), that
    together have a probability of at least `top_p`; of equal tokens the first comes first.
    `logits` are float32 [B, V], `temperature` is above 0, `top_p` in (0, 1]. `numbers`, float64 [B]
    in [0, 1), choose: each token of a nucleus has a share of that interval in proportion to its
    probability, the most probable token the lowest.
    """
    probabilities = (logits.double() / temperature).softmax(-1)
    ordered, tokens = probabilities.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1).roll(1, dims=-1)  # probability of all more probable tokens
    before[:, 0] = 0.0
    kept = ordered.where(before < top_p, 0.0).cumsum(-1)
    # The product stays below the sum: a number is at most 1 - 2 ** -53.
    place = torch.searchsorted(kept, numbers[:, None] * kept[:, -1:], right=True)
    return tokens.gather(-1, place)[:, 0]


class Nucleus:
    """A `Choose` that draws the token of a prompt and step from a generator of these and a seed."""

    def __init__(
        self,
        *,
        temperature: float,
        top_p: float,
        seed: int,
        prompts: Sequence[int | str],
        purpose: str = "nucleus",
    ) -> None:
        """`prompts` name or number the rows: the same name draws the same in every batch."""
        self._temperature = temperature
        self._top_p = top_p
        self._seed = seed
        self._prompts = prompts
        self._purpose = purpose

    def __call__(self, logits: torch.Tensor, step: int) -> torch.Tensor:
        """Return the next token of every row."""
        drawn = [
            generator(self._seed, f"{self._purpose}/{prompt}", step).random()
            for prompt in self._prompts
        ]
        numbers = torch.tensor(drawn, dtype=torch.float64, device=logits.device)
        return nucleus(logits, self._temperature, self._top_p, numbers)


def chooser(prompts: Prompts, rows: Sequence[int], seed: int) -> Choose:
    """Return how the tokens that follow some of `prompts`, those in `rows`, are chosen.

    Draws are addressed by the name of a prompt, so that none depends on which others there are.
    """
    if prompts.temperature == 0:
        return greedy
    return Nucleus(
        temperature=prompts.temperature,
        top_p=prompts.top_p,
        seed=seed,
        prompts=[prompts.names[row] for row in rows],
    )
