"""A question about a text, made exactly as long as it should be, for any tokenizer.

A case is an instruction, a haystack, a question and the beginning of its answer, lines after one
another; no chat template, and no example of an answer. Its prompt (with BOS, where the tokenizer
has one) and the room for the answer together have the demanded number of tokens. That is reached by
the size of the haystack alone, and counted in the tokens of the whole prompt. In the end the prompt
is tokenised once more with the answer behind it: its tokens must stay what they were, and every
needle is looked for in them.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator

import numpy as np

from ropewalk.data.encoding import LoadedTokenizer
from ropewalk.evaluate import fitting
from ropewalk.evaluate.filler import noise
from ropewalk.evaluate.fitting import Unfit

_CUTS_TRIED = 4  # lengths that fit, if the tokens of the first are not stable
_FEWER_TRIED = 4  # times that a part of the haystack is left out, if no padding fits
_CHARACTERS_FEWER = 12  # that part, where it is not an item


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draft:
    """A case before its length is known."""

    instruction: str
    haystack: Callable[[int], str]  # of a size; a pure function
    question: str  # with the beginning of the answer
    references: tuple[str, ...]  # what the answer should hold
    needles: tuple[str, ...] = ()  # sentences of the haystack that hold them, each there once
    items: bool = False  # whether sizes count items, filled up with noise, or characters
    least: int = 0  # smallest size

    @property
    def answer(self) -> str:
        """Return what the best answer begins with."""
        return " " + ", ".join(self.references)

    def prompt(self, size: int, padding: int = 0) -> str:
        """Return the prompt with a haystack of one size; noise of so many characters before it."""
        first = self.instruction + f" {noise(padding)}"[:padding]
        return "\n".join(line for line in (first, self.haystack(size), self.question) if line)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """A prompt and what its answer should hold."""

    ids: np.ndarray  # int64 [length - room]
    references: tuple[str, ...]
    places: tuple[int, ...]  # of the first token of each needle in `ids`

    @property
    def depths(self) -> tuple[float, ...]:
        """Return the share of the prompt before each needle."""
        return tuple(place / len(self.ids) for place in self.places)


def fit(draft: Draft, tokens: int, tokenizer: LoadedTokenizer) -> Case:
    """Return the case whose prompt has exactly so many tokens.

    Raises:
        Unfit: if it needs more, or no haystack gives this number, or the tokens of the prompt are
            not those it has with the answer behind it.
    """
    opening = [] if tokenizer.bos is None else [tokenizer.bos]

    def count(size: int, padding: int = 0) -> int:
        return len(opening) + len(tokenizer.encode(draft.prompt(size, padding)))

    needed = count(draft.least)
    if needed > tokens:
        raise Unfit(f"the shortest prompt has {needed} tokens, there is room for {tokens}")
    unstable = False
    for size, padding in itertools.islice(_sizes(draft, count, tokens), _CUTS_TRIED):
        case = _read(draft, draft.prompt(size, padding), opening, tokenizer)
        if case is not None and len(case.ids) == tokens:
            return case
        unstable = True
    if unstable:
        raise Unfit("the tokens of the prompt change when the answer follows")
    raise Unfit(f"no haystack gives a prompt of exactly {tokens} tokens")


def _sizes(draft: Draft, count: Callable[..., int], tokens: int) -> Iterator[tuple[int, int]]:
    """Yield sizes and paddings with exactly so many tokens.

    Characters of a haystack mostly give every number of tokens, and need no padding.
    """
    if not draft.items:
        yield from ((size, 0) for size in fitting.exact(count, tokens, draft.least))
    largest = fitting.most(count, tokens, draft.least)
    step = 1 if draft.items else _CHARACTERS_FEWER
    for fewer in range(_FEWER_TRIED):
        size = (draft.least if largest is None else largest) - fewer * step
        if size < draft.least:
            return

        def padded(padding: int, size: int = size) -> int:
            return count(size, padding)

        yield from ((size, padding) for padding in fitting.exact(padded, tokens))


def _read(draft: Draft, prompt: str, opening: list[int], tokenizer: LoadedTokenizer) -> Case | None:
    """Tokenise prompt and answer jointly; None where the prompt's tokens are not those of alone.

    Raises:
        Unfit: if a needle is not where it should be.
    """
    joint = tokenizer.tokenizer.encode(prompt + draft.answer, add_special_tokens=False)
    ends = np.array([end for _, end in joint.offsets])
    length = int(np.searchsorted(ends, len(prompt), side="right"))
    alone = tokenizer.encode(prompt).astype(np.int64)
    if not np.array_equal(joint.ids[:length], alone):
        return None
    places = []
    for needle in draft.needles:
        if prompt.count(needle) != 1:
            raise Unfit(f"{prompt.count(needle)} times in the prompt and not once: {needle!r}")
        start = prompt.index(needle)
        first = int(np.searchsorted(ends, start, side="right"))
        last = int(np.searchsorted(ends, start + len(needle), side="left"))
        if needle not in tokenizer.tokenizer.decode(joint.ids[first : last + 1]):
            raise Unfit(f"the tokens from place {first} on do not hold {needle!r}")
        places.append(first + len(opening))
    return Case(
        ids=np.concatenate([np.array(opening, dtype=np.int64), alone]),
        references=draft.references,
        places=tuple(places),
    )
