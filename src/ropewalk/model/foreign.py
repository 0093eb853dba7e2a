"""Reading with any other causal language model of transformers, in transformers' own class.

Nothing that depends on how a model turns states into logits (soft caps, scales, biases) is repeated
here: its own forward does it. States are caught where they enter the output matrix and given back
to it a chunk at a time, so that the whole logits never exist.

Rows have equal lengths, so no mask is passed, and no position ids: from those transformers would
guess documents.

Dimensions: B rows, T tokens, n places that are scored, D hidden, V vocabulary.
"""

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from ropewalk.base.stage import StageError
from ropewalk.model.decode import Read, reading, replies
from ropewalk.model.reader import Choose, Reader, greedy

LOGITS_AT_ONCE = 2**26  # elements of a chunk: 256 MiB in float32
PROBE_TOKENS = 8
# Tables of positions have as many rows as there are positions, or two more (OPT, BART).
SPARE_ROWS = (0, 1, 2)


class Foreign(Reader):
    """A model of `AutoModelForCausalLM`, run inside `numerics.applied`."""

    def __init__(self, model: PreTrainedModel, name: str, *, depends_on_length: bool) -> None:
        """Take a loaded model that has not read anything yet, in evaluation mode.

        Raises:
            StageError: if it is not causal, or if angles depend on the length and cannot be reset.
        """
        self._model = model
        self._head: Any = model.get_output_embeddings()  # no class that decodes lacks one
        self.name = name
        self.device = next(model.parameters()).device
        self.vocabulary_size = len(self._head.weight)
        self.depends_on_length = depends_on_length
        self.room = _room(model)
        self._fresh = _rotaries(model) if depends_on_length else {}
        if depends_on_length and not self._fresh:
            raise StageError(
                f"{name}: its config.json has angles that depend on the length, but "
                f"{type(model).__name__} has no rotary module that could be set back between "
                "lengths; its losses would depend on what was read before"
            )
        self._refuse_sight_of_the_future()

    @reading()
    def losses(
        self, ids: torch.Tensor, first: int, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Reader.losses`.

        Raises:
            StageError: if the model cannot read as many tokens.
        """
        losses, hits = [], []
        wanted = targets.flatten().split(self._places_at_once)
        for logits, target in zip(self._chunks(ids, first, targets.shape[1]), wanted, strict=True):
            losses.append(F.cross_entropy(logits, target, reduction="none"))
            hits.append(logits.argmax(-1) == target)
        return torch.cat(losses).view(targets.shape), torch.cat(hits).view(targets.shape)

    @reading()
    def logits(self, ids: torch.Tensor, first: int, count: int) -> torch.Tensor:
        """See `Reader.logits`.

        Raises:
            StageError: if the model cannot read as many tokens.
        """
        return torch.cat(list(self._chunks(ids, first, count))).unflatten(0, (len(ids), count))

    @reading()
    def generate(
        self,
        prompts: torch.Tensor,
        new_tokens: int,
        choose: Choose = greedy,
        stop: Sequence[int] = (),
    ) -> list[np.ndarray]:
        """See `Reader.generate`.

        Raises:
            StageError: if the model cannot read as many tokens.
        """
        self._refuse_beyond_room(prompts.shape[1] + new_tokens - 1)  # the last one is not read
        return replies(self._continued(), prompts, new_tokens, choose, stop)

    def flops(self, tokens: int, predicting: int) -> None:
        """Return None: this architecture is not one that is counted."""

    @property
    def _places_at_once(self) -> int:
        return max(1, LOGITS_AT_ONCE // self.vocabulary_size)

    def _chunks(self, ids: torch.Tensor, first: int, count: int) -> Iterator[torch.Tensor]:
        """Yield logits of the places of all rows end to end, float32 [`_places_at_once`, V]."""
        self._refuse_beyond_room(ids.shape[1])
        parts: list[torch.Tensor] = []

        def caught(states: torch.Tensor) -> torch.Tensor:
            parts.extend(states[:, first : first + count].flatten(0, 1).split(self._places_at_once))
            return parts[0][None]

        found = self._forward(ids, caught)
        if not parts:
            raise StageError(
                f"{self.name}: {type(self._model).__name__} computes logits by other means than "
                "its output matrix, which ropewalk cannot read"
            )
        yield found.logits[0]
        for part in parts[1:]:
            # A single token is read up to the output matrix, which then gets the part instead.
            yield self._forward(ids[:1, :1], functools.partial(_instead, part)).logits[0]

    def _continued(self) -> Read:
        """Return a `Read` with transformers' cache; all over again where there is none."""
        past = None
        parts = []

        def read(tokens: torch.Tensor) -> torch.Tensor:
            nonlocal past
            parts.append(tokens)
            kept = {} if self.depends_on_length else {"use_cache": True}
            if past is not None:
                kept["past_key_values"] = past
            else:
                tokens = torch.cat(parts, dim=1)
            found = self._forward(tokens, lambda states: states[:, -1:], **kept)
            past = found.get("past_key_values")  # models with another kind of memory have none
            return found.logits[:, -1]

        return read

    def _forward(
        self, ids: torch.Tensor, select: Callable[[torch.Tensor], torch.Tensor], **more: Any
    ) -> Any:
        """Run the model; its output matrix reads `select` of the states, [B, T, D] -> [., n, D].

        That product is fp32: of logits rounded to bf16, many would share the first place.
        """
        for name, module in self._fresh.items():
            self._model.set_submodule(name, copy.deepcopy(module))

        wanted: list[torch.Tensor] = []

        def little(_module: Any, given: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
            wanted.append(select(given[0]).float())
            return (wanted[0][:, :1],)

        def wide(module: Any, _given: Any, _logits: torch.Tensor) -> torch.Tensor:
            with torch.autocast(self.device.type, enabled=False):
                logits: torch.Tensor = module.forward(wanted.pop())
            return logits

        with (
            self._head.register_forward_pre_hook(little),
            self._head.register_forward_hook(wide),
        ):
            return self._model(input_ids=ids, **{"use_cache": False, **more})

    def _refuse_beyond_room(self, tokens: int) -> None:
        if self.room is not None and tokens > self.room:
            raise StageError(
                f"{self.name}: {tokens} tokens are to be read, but its learned positions end after "
                f"{self.room} (max_position_embeddings); choose shorter contexts for it"
            )

    def _refuse_sight_of_the_future(self) -> None:
        """Read two texts that differ in the last token: nothing before it may differ.

        transformers also loads encoders as causal language models, with a warning at most.
        """
        tokens = min(PROBE_TOKENS, self.vocabulary_size, self.room or PROBE_TOKENS)
        one = torch.arange(tokens, device=self.device)[None]
        other = one.clone()
        other[0, -1] = 0
        with torch.autocast(self.device.type, enabled=False):
            first, second = (self.logits(ids, 0, tokens - 1) for ids in (one, other))
        # Broken weights, whose logits are no numbers, are for whoever asks for their losses.
        if float((first - second).abs().amax()) > 1e-3 * float(first.std()):
            raise StageError(
                f"{self.name}: {type(self._model).__name__} looks at later tokens, it is no causal "
                "language model (an encoder may need is_decoder in its config.json)"
            )


def _instead(part: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    return part[None]


def _room(model: PreTrainedModel) -> int | None:
    """Return for how many tokens a model has positions, None where no table of them ends."""
    text: Any = model.config.get_text_config(decoder=True)
    positions = getattr(text, "max_position_embeddings", None)
    if not positions or getattr(text, "rope_parameters", None):
        return None
    words = model.get_input_embeddings()
    tables = [
        module.weight
        for module in model.modules()
        if isinstance(module, torch.nn.Embedding) and module is not words
    ]
    rows = {positions + spare for spare in SPARE_ROWS}
    every = (*tables, *model.buffers())
    return positions if any(table.ndim and table.shape[0] in rows for table in every) else None


def _rotaries(model: PreTrainedModel) -> dict[str, torch.nn.Module]:
    """Return copies of the modules that know the angles, by name, as they were loaded."""
    return {
        name: copy.deepcopy(module)
        for name, module in model.named_modules()
        if any(key.endswith("inv_freq") for key, _ in module.named_buffers(recurse=False))
    }
