"""Reading with the models ropewalk builds: any rope, losses without the whole logits, a cache.

Dimensions: B rows, T tokens, n places that are scored, D hidden, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from ropewalk.model import inference
from ropewalk.model.attention import segments
from ropewalk.model.cache import IMPLEMENTATIONS, Cache
from ropewalk.model.decode import Read, reading, replies, whole
from ropewalk.model.flops import attended_pairs, forward_flops
from ropewalk.model.reader import Choose, Reader, greedy
from ropewalk.model.rope import frequencies_of
from ropewalk.model.rotary import Rotary
from ropewalk.model.spec import DynamicNtkRope, Numerics


class Own(Reader):
    """A model of `ropewalk.model.build.load`, run inside `numerics.applied`."""

    def __init__(self, model: PreTrainedModel, numerics: Numerics, name: str) -> None:
        model.set_attn_implementation(IMPLEMENTATIONS[numerics.attention])
        self._model = model
        self._base: Any = model.base_model
        self._head: torch.Tensor = model.get_output_embeddings().weight  # [V, D]
        self.name = name
        self.device = self._head.device
        self.vocabulary_size = self._head.shape[0]
        rotary: Any = self._base.rotary_emb
        self._rotary: Rotary = rotary
        self.depends_on_length = isinstance(frequencies_of(self._rotary.rope), DynamicNtkRope)
        self.room = None  # angles have no end

    @reading()
    def losses(
        self, ids: torch.Tensor, first: int, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Reader.losses`."""
        found = inference.states(self._model, ids, first, targets.shape[1])
        return inference.losses(self._model, found, targets)

    @reading()
    def logits(self, ids: torch.Tensor, first: int, count: int) -> torch.Tensor:
        """See `Reader.logits`."""
        return self._logits(inference.states(self._model, ids, first, count))

    @reading()
    def generate(
        self,
        prompts: torch.Tensor,
        new_tokens: int,
        choose: Choose = greedy,
        stop: Sequence[int] = (),
    ) -> list[np.ndarray]:
        """See `Reader.generate`."""
        if self.depends_on_length:
            read = whole(lambda ids: self.logits(ids, ids.shape[1] - 1, 1)[:, 0])
        else:
            read = self._with_cache(prompts.shape[1] + new_tokens)
        return replies(read, prompts, new_tokens, choose, stop)

    def flops(self, tokens: int, predicting: int) -> int:
        """See `Reader.flops`; `forward_flops` says what is not counted."""
        pairs = attended_pairs([(0, tokens)])
        return forward_flops(
            self._rotary.architecture, tokens=tokens, pairs=pairs, predicting=predicting
        )

    def _with_cache(self, capacity: int) -> Read:
        """Return a `Read` of at most `capacity` tokens; every token is computed once."""
        cache = Cache(capacity)
        places = torch.arange(capacity, device=self.device)[None]
        # Of the whole text, once: a single token does not show how far it is from the beginning.
        beside = self._rotary.attention(places, segments(None, 1, capacity, self.device))

        def read(tokens: torch.Tensor) -> torch.Tensor:
            start, end = cache.length, cache.length + tokens.shape[1]
            found = {
                name: value[:, start:end] if isinstance(value, torch.Tensor) else value
                for name, value in beside.items()
            }
            states: torch.Tensor = self._base(
                input_ids=tokens,
                position_ids=places[:, start:end],
                use_cache=False,
                segments=segments(None, len(tokens), tokens.shape[1], self.device),
                cache=cache,
                **found,
            ).last_hidden_state
            cache.length = end
            return self._logits(states[:, -1:])[:, 0]

        return read

    def _logits(self, states: torch.Tensor) -> torch.Tensor:
        """Return the logits of states [B, n, D]: float32 [B, n, V]."""
        with torch.autocast(self.device.type, enabled=False):
            return torch.nn.functional.linear(states.float(), self._head)
