"""Passkey prompts of exact length, with the key at an exact distance.

The wording is that of PI (arXiv 2306.15595, figure 3), lines joined by newlines: an introduction,
filler, the key, filler, the question. The prompt (with BOS, where the tokenizer has one) and the
answer together have exactly the demanded number of tokens, and the key's first token stands exactly
`distance` tokens before the end of the prompt. Both are reached by cutting the filler after a
character, and counted in the token ids of the whole text: no piece is tokenised on its own.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from tokenizers import Encoding, Tokenizer

from ropewalk.base.rng import generator
from ropewalk.evaluate.retrieval import Trial

INTRODUCTION = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there."
)
FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
KEY = "The pass key is {key}. Remember it. {key} is the pass key."
QUESTION = "What is the pass key? The pass key is"
CUTS_TRIED = 48  # characters to either side of the expected cut


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
    """A prompt in the making: how many characters of filler stand before and after the key."""

    key: str
    before: int
    after: int

    @property
    def prompt(self) -> str:
        """Return the prompt, without the answer."""
        return "\n".join(
            line
            for line in (
                INTRODUCTION,
                filler(self.before),
                KEY.format(key=self.key),
                filler(self.after),
                QUESTION,
            )
            if line
        )

    @property
    def key_start(self) -> int:
        """Return the index of the key's first character."""
        return self.prompt.index(KEY.format(key=self.key)) + KEY.index("{key}")


def filler(characters: int) -> str:
    """Return the first characters of the filler sentences, repeated with a space between."""
    unit = FILLER + " "
    return (unit * (characters // len(unit) + 1))[:characters]


class Prompts:
    """Builds passkey trials for one tokenizer."""

    def __init__(self, tokenizer: Tokenizer, bos: int | None, *, digits: int, seed: int) -> None:
        """`bos`, unless None, opens every prompt; keys are numbers of `digits` digits."""
        self._tokenizer = tokenizer
        self._opening = [] if bos is None else [bos]
        self._digits = digits
        self._seed = seed
        self._filler_ends = np.zeros(1, dtype=np.int64)  # characters of the first n tokens
        # (context, distance) -> cuts of the first trial
        self._cuts: dict[tuple[int | None, int], tuple[int, int] | None] = {}

    def key(self, distance: int, trial: int) -> str:
        """Return the key of one trial."""
        random = generator(self._seed, "passkey", distance, trial)
        return str(random.integers(10 ** (self._digits - 1), 10**self._digits))

    def trial(
        self, context_tokens: int | None, distance: int, number: int, at_most: int | None = None
    ) -> Trial | None:
        """Return the trial of `context_tokens` tokens with the key at `distance`.

        Without `context_tokens` there is no filler before the key: the shortest prompt, which must
        not exceed `at_most` tokens.

        None if no such prompt exists: the question alone is longer than the distance, or what is
        left of the context is shorter than the introduction, or no cut gives the exact counts, or
        the tokens of the prompt change when the answer follows.
        """
        key = self.key(distance, number)
        if (context_tokens, distance) not in self._cuts:
            first = self._search(self.key(distance, 0), context_tokens, distance)
            self._cuts[context_tokens, distance] = first
        # Keys seldom differ in their number of tokens: the cuts of the first trial mostly fit all.
        cuts = self._cuts[context_tokens, distance]
        trial = self._exact(key, cuts, context_tokens, distance) if cuts else None
        if trial is None and number > 0:
            cuts = self._search(key, context_tokens, distance)
            trial = self._exact(key, cuts, context_tokens, distance) if cuts else None
        if trial is not None and at_most is not None and len(trial.ids) > at_most:
            return None
        return trial

    def _search(
        self, key: str, context_tokens: int | None, distance: int
    ) -> tuple[int, int] | None:
        """Return the filler characters before and after the key, None if none give the counts."""
        after = self._cut(
            lambda cut: self._read(Text(key=key, before=0, after=cut)).distance, target=distance
        )
        if after is None:
            return None
        if context_tokens is None:
            return 0, after
        before = self._cut(
            lambda cut: len(self._read(Text(key=key, before=cut, after=after)).ids),
            target=context_tokens,
        )
        return None if before is None else (before, after)

    def _exact(
        self, key: str, cuts: tuple[int, int], context_tokens: int | None, distance: int
    ) -> Trial | None:
        """Return the trial with these cuts if its final token ids are what was demanded."""
        text = Text(key=key, before=cuts[0], after=cuts[1])
        trial = self._read(text)
        alone = self._opening + self._encode(text.prompt).ids
        prompt = trial.ids[: trial.answer_start].tolist()
        length = context_tokens is None or len(trial.ids) == context_tokens
        return trial if length and trial.distance == distance and prompt == alone else None

    def _read(self, text: Text) -> Trial:
        """Tokenise prompt and answer jointly and find key and answer by their characters."""
        encoding = self._encode(f"{text.prompt} {text.key}")
        ends = np.array([end for _, end in encoding.offsets])
        key, answer = np.searchsorted(ends, [text.key_start, len(text.prompt)], side="right")
        return Trial(
            distance=int(answer - key),
            ids=np.array(self._opening + encoding.ids, dtype=np.int64),
            answer_start=int(answer) + len(self._opening),
        )

    def _encode(self, text: str) -> Encoding:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _cut(self, count: Callable[[int], int], *, target: int) -> int | None:
        """Return a number of filler characters for which `count` gives `target`, or None."""
        missing = target - count(0)
        if missing <= 0:
            return 0 if missing == 0 else None
        expected = self._characters(missing)
        for offset in sorted(range(-CUTS_TRIED, CUTS_TRIED + 1), key=abs):
            if expected + offset > 0 and count(expected + offset) == target:
                return expected + offset
        return None

    def _characters(self, tokens: int) -> int:
        """Return how many characters the first tokens of the filler span."""
        while len(self._filler_ends) <= tokens:
            characters = max(2 * int(self._filler_ends[-1]), 8 * tokens)
            offsets = self._encode(filler(characters)).offsets
            self._filler_ends = np.array([0, *(end for _, end in offsets)])
        return int(self._filler_ends[tokens])
