"""Needles in a haystack: one or more sentences in a long text, and a question about them.

`niah_*` are tasks like RULER's of the same names (arXiv 2404.06654): the same kinds of keys and
values, haystacks and numbers of needles, in words of our own. So numbers compare between runs here,
and not with RULER's. Their essays are the text of the corpus. RULER draws a depth from forty, here
it is uniform.
"""

import dataclasses
import uuid
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np

from ropewalk.evaluate import passkey, words
from ropewalk.evaluate.cases import Draft
from ropewalk.evaluate.filler import ENDLESS_NOISE, Text, noise
from ropewalk.evaluate.fitting import Unfit

Kind = Literal["word", "number", "uuid"]
NUMBER_DIGITS = 7  # RULER
PASSKEY_DIGITS = 5
STRING_DIGITS = 6
STRING_NEEDLES = 4
STRING_DEEPEST = 0.99
_MISSES = 1000  # draws that were all had before

_INSTRUCTION = (
    "The text below holds some special {kind}s. Remember them: a question about them follows."
)
_ONE = "The special {kind} of {key} is {value}."
_SOME = "One special {kind} of {key} is {value}."
_ASK_ONE = "Which is the special {kind} of {key}? The special {kind} of {key} is"
_ASK_ALL = "Which are the special {kind}s of {keys}? The special {kind}s of {keys} are"


def hidden_passkey(random: np.random.Generator, _: Text) -> Draft:
    """Return PI's passkey prompt with the key at a random depth, as PoSE's figure 2 has it.

    Keys have five digits each (the authors' are drawn from 1 to 50,000), filler sentences have a
    space between them, and lengths are exact.
    """
    key = number(random, PASSKEY_DIGITS)
    depth = random.random()
    sentence = passkey.KEY.format(key=key)

    def haystack(size: int) -> str:
        before = int(depth * size)
        lines = (noise(before), sentence, noise(size - before))
        return "\n".join(line for line in lines if line)

    return Draft(
        instruction=passkey.INTRODUCTION,
        haystack=haystack,
        question=passkey.QUESTION,
        references=(key,),
        needles=(sentence,),
    )


def string_needles(random: np.random.Generator, essay: Text) -> Draft:
    """Return STRING's four needles (arXiv 2410.18745, table 1): a number in each quarter.

    The needle's wording, the numbers of six digits, the place of needle k uniform in the k-th
    quarter of the first 99 %, and a haystack that always starts with the same text are theirs.
    Numbers are drawn for every sample; the authors draw them once per run. The instruction and the
    question are ours, and the essays are the corpus.
    """
    values = distinct(lambda: number(random, STRING_DIGITS), STRING_NEEDLES)
    needles = [f"One of the magic number is: {value}." for value in values]
    quarters = (np.arange(STRING_NEEDLES) + random.random(STRING_NEEDLES)) / STRING_NEEDLES
    depths = (STRING_DEEPEST * quarters).tolist()
    hidden = list(zip(depths, needles, strict=True))
    return Draft(
        instruction=(
            "There are some magic numbers hidden inside the following text. Find them and memorize "
            "them."
        ),
        haystack=lambda size: essay.with_needles(0, size, hidden),
        question="What are the magic numbers in the text? The magic numbers are",
        references=tuple(values),
        needles=tuple(needles),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Niah:
    """One kind of the family; called, it returns a draft."""

    haystack: Literal["noise", "essay", "needles"] = "essay"
    key: Kind = "word"
    value: Kind = "number"
    keys: int = 1  # hidden, besides those of a haystack of needles
    values: int = 1  # of every key
    queries: int = 1  # keys that are asked for

    def __call__(self, random: np.random.Generator, essay: Text) -> Draft:
        """Return a draft with everything drawn but its length."""
        pairs = _Pairs(random, self.key, self.value)
        shown = [
            (pairs.key(), [pairs.value() for _ in range(self.values)]) for _ in range(self.keys)
        ]
        asked = shown[: self.queries]
        wording = (_ONE if self.values == 1 else _SOME).format
        needles = [
            (key, wording(kind=self.value, key=key, value=value))
            for key, values in shown
            for value in values
        ]
        depths = random.random(len(needles)).tolist()
        hidden = [(depth, sentence) for depth, (_, sentence) in zip(depths, needles, strict=True)]
        start = int(random.integers(len(essay)))
        names = [key for key, _ in asked]
        ask = _ASK_ONE if self.values * self.queries == 1 else _ASK_ALL
        listed = ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else names[0]
        return Draft(
            instruction=_INSTRUCTION.format(kind=self.value),
            haystack=self._haystack(hidden, essay, start, pairs),
            question=ask.format(kind=self.value, key=listed, keys=listed),
            references=tuple(value for _, values in asked for value in values),
            needles=tuple(sentence for key, sentence in needles if key in names),
            items=self.haystack == "needles",
            least=len(needles) if self.haystack == "needles" else 0,
        )

    def _haystack(
        self, hidden: list[tuple[float, str]], essay: Text, start: int, pairs: "_Pairs"
    ) -> Callable[[int], str]:
        if self.haystack == "noise":
            return lambda size: ENDLESS_NOISE.with_needles(0, size, hidden)
        if self.haystack == "essay":
            begin = essay.break_at(start)
            return lambda size: essay.with_needles(begin, size, hidden)
        others: list[str] = []

        def haystack(size: int) -> str:
            while len(others) < size:
                others.append(_ONE.format(kind=self.value, key=pairs.key(), value=pairs.value()))
            return "\n".join(among(others[: size - len(hidden)], hidden))

        return haystack


NIAH = {
    "niah_single_1": Niah(haystack="noise"),
    "niah_single_2": Niah(),
    "niah_single_3": Niah(value="uuid"),
    "niah_multikey_1": Niah(keys=4),
    "niah_multikey_2": Niah(haystack="needles"),
    "niah_multikey_3": Niah(haystack="needles", key="uuid", value="uuid"),
    "niah_multivalue": Niah(values=4),
    "niah_multiquery": Niah(keys=4, queries=4),
}


def number(random: np.random.Generator, digits: int) -> str:
    """Return a random number of so many digits, the first of them no zero."""
    return str(random.integers(10 ** (digits - 1), 10**digits))


def distinct(draw: Callable[[], str], count: int) -> list[str]:
    """Return so many draws, none of them twice."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[draw()] = None
    return list(found)


def among(others: list[str], hidden: list[tuple[float, str]]) -> list[str]:
    """Return all of them in one list, the hidden ones `(depth, item)` at their depths."""
    places = [int(depth * (len(others) + 1)) for depth, _ in hidden]
    order = sorted(range(len(hidden)), key=lambda i: places[i])
    placed, before = [], 0
    for index in order:
        placed += [*others[before : places[index]], hidden[index][1]]
        before = places[index]
    return [*placed, *others[before:]]


class _Pairs:
    """Keys and values of one sample, none of them twice, drawn as they are needed."""

    def __init__(self, random: np.random.Generator, key: Kind, value: Kind) -> None:
        self._keys = self._stream(random, key)
        self._values = self._stream(random, value)
        self._seen: set[str] = set()

    def key(self) -> str:
        return next(self._keys)

    def value(self) -> str:
        return next(self._values)

    def _stream(self, random: np.random.Generator, kind: Kind) -> Iterator[str]:
        misses = 0
        while misses < _MISSES:
            drawn = _DRAW[kind](random)
            misses += 1
            if drawn not in self._seen:
                self._seen.add(drawn)
                misses = 0
                yield drawn
        raise Unfit(f"after {len(self._seen)} keys and values there is no other {kind}")


def _word(random: np.random.Generator) -> str:
    adjective, noun = random.integers([len(words.ADJECTIVES), len(words.NOUNS)])
    return f"{words.ADJECTIVES[adjective]}-{words.NOUNS[noun]}"


_DRAW: dict[Kind, Callable[[np.random.Generator], str]] = {
    "word": _word,
    "number": lambda random: number(random, NUMBER_DIGITS),
    "uuid": lambda random: str(uuid.UUID(bytes=random.bytes(16), version=4)),
}
