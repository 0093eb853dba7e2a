"""Tracing and counting: tasks like RULER's of the same names (arXiv 2404.06654), in our own words.

`vt`: variables that got a value by a chain of assignments, in noise. `cwe` and `fwe`: the words
that occur most often in a list, and in a text of made-up words. RULER shows an example of `vt` and
of `cwe` before the question; here there is none.
"""

import itertools
import string

import numpy as np

from ropewalk.base.rng import generator
from ropewalk.evaluate import words
from ropewalk.evaluate.cases import Draft
from ropewalk.evaluate.filler import ENDLESS_NOISE, Text
from ropewalk.evaluate.fitting import Unfit
from ropewalk.evaluate.needles import number

VT_NAMES = 5  # four assignments from one to the next
VT_NAME_LETTERS = 5
VT_DIGITS = 5
CWE_COMMON = 10  # words that are asked for
CWE_COMMON_TIMES, CWE_OTHER_TIMES = 30, 3  # how often words occur, where the list is long enough
CWE_LEAST = 30  # entries of a list
FWE_ASKED = 3
FWE_EXPONENT = 2.0
FWE_LETTERS = 6
FWE_WORDS = 1000
FWE_LEAST = 20
FWE_NOISE = "...."  # the most frequent word, which does not count


def vt(random: np.random.Generator, _: Text) -> Draft:
    """Return a chain of assignments: one variable gets a number, four get it from the one before.

    They stand in their order, each at a random depth.
    """
    names = _made_up(random, string.ascii_uppercase, VT_NAME_LETTERS, 2 * VT_NAMES)[:VT_NAMES]
    value = number(random, VT_DIGITS)
    sentences = [f"VAR {names[0]} = {value}."]
    sentences += [f"VAR {name} = VAR {before}." for before, name in itertools.pairwise(names)]
    depths = np.sort(random.random(len(sentences))).tolist()
    hidden = list(zip(depths, sentences, strict=True))
    return Draft(
        instruction=(
            "Variables are given values inside the text below. Keep track of which variable has "
            "which value."
        ),
        haystack=lambda size: ENDLESS_NOISE.with_needles(0, size, hidden),
        question=(
            f"Which {len(names)} variables have the value {value}, directly or by way of others? "
            f"The {len(names)} variables with the value {value} are"
        ),
        references=tuple(names),
        needles=tuple(sentences),
    )


def cwe(random: np.random.Generator, _: Text) -> Draft:
    """Return a numbered list of words, ten of which occur more often than the others.

    In long lists they occur 30 times and the others 3 times, as in RULER; in a list of n < 600
    entries n // 20 times (at least twice) and a tenth of that (at least once). Where the words are
    used up, others are two words joined.
    """
    order = random.permutation(len(words.ALL))
    common = [words.ALL[i] for i in order[:CWE_COMMON]]
    others = [words.ALL[i] for i in order[CWE_COMMON:]]
    seed = int(random.integers(2**62))

    def haystack(size: int) -> str:
        times = min(CWE_COMMON_TIMES, max(2, size // 20))
        times_other = max(1, times * CWE_OTHER_TIMES // CWE_COMMON_TIMES)
        left = size - CWE_COMMON * times
        kinds = -(-left // times_other)
        if kinds > len(others) ** 2:
            raise Unfit(f"a list of {size} entries needs {kinds} words that are not common")
        entries = common * times + (_more(others, kinds) * times_other)[:left]
        placed = generator(seed, "entries", size).permutation(size)
        return " ".join(f"{i}. {entries[at]}" for i, at in enumerate(placed, start=1))

    return Draft(
        instruction=(
            "Below is a numbered list of words. A few of them stand in it more often than the "
            "others: note which."
        ),
        haystack=haystack,
        question=(
            f"Which {CWE_COMMON} words stand in the list most often? These {CWE_COMMON} words are"
        ),
        references=tuple(common),
        items=True,
        least=CWE_LEAST,
    )


def fwe(random: np.random.Generator, _: Text) -> Draft:
    """Return a text of made-up words, the word of rank k with a share of k^-2 / zeta(2).

    The first rank is noise; the three after it are asked for. Counts are rounded down, and the word
    of each of these ranks occurs more often than that of the next.
    """
    made_up = _made_up(random, string.ascii_lowercase, FWE_LETTERS, FWE_WORDS)
    seed = int(random.integers(2**62))

    def haystack(size: int) -> str:
        counts = fwe_counts(size)
        if len(counts) > len(made_up):
            raise Unfit(f"a text of {size} words needs {len(counts)} that are made up")
        entries = [word for word, times in zip(made_up, counts, strict=False) for _ in range(times)]
        entries += [FWE_NOISE] * (size - len(entries))
        placed = generator(seed, "entries", size).permutation(size)
        return " ".join(entries[at] for at in placed)

    return Draft(
        instruction=(
            "The text below is written in a code. Count how often each of its words occurs; the "
            f"dots '{FWE_NOISE}' mean nothing."
        ),
        haystack=haystack,
        question=(
            f"Which {FWE_ASKED} words of the code occur most often? The {FWE_ASKED} most frequent "
            "words are"
        ),
        references=tuple(made_up[:FWE_ASKED]),
        items=True,
        least=FWE_LEAST,
    )


def fwe_counts(size: int) -> list[int]:
    """Return how often the made-up words of a text of `size` words occur, by rank; all above 0."""
    zeta = np.pi**2 / 6
    ranks = np.arange(2, int(np.sqrt(size / zeta)) + 2)
    counts = np.floor(size / (zeta * ranks**FWE_EXPONENT)).astype(int).tolist()
    counts = [count for count in counts if count]
    counts += [0] * (FWE_ASKED + 1 - len(counts))
    for rank in range(FWE_ASKED - 1, -1, -1):
        counts[rank] = max(counts[rank], counts[rank + 1] + 1)
    return [count for count in counts if count]


def _more(others: list[str], count: int) -> list[str]:
    """Return so many words: those given, then pairs of them, each once."""
    if count <= len(others):
        return others[:count]
    pairs = itertools.islice(itertools.product(others, others), count - len(others))
    return others + [f"{first}-{second}" for first, second in pairs]


def _made_up(random: np.random.Generator, alphabet: str, letters: int, count: int) -> list[str]:
    """Return so many words of random letters, each once; where two are equal, one fewer."""
    drawn = random.integers(len(alphabet), size=(count, letters)).tolist()
    return list(dict.fromkeys("".join(alphabet[i] for i in word) for word in drawn))
