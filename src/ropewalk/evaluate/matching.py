"""Whether a decoded answer is right: named rules, pure functions of raw text or tokens.

No rule is the right one, and the same answers give different numbers under different rules: a reply
that goes on past the key passes `substring` and fails `first_integer`, where more digits follow.
So what a rule is applied to is kept, and the numbers of all rules stand side by side.
"""

import re
from collections.abc import Sequence

KEPT_CHARACTERS = 240  # of a reply, in a result

_INTEGER = re.compile("[0-9]+")


def tokens(reply: Sequence[int], answer: Sequence[int]) -> bool:
    """Return whether the reply begins with the tokens of the answer, as they are in context.

    What follows does not matter; that the answer ends there is not asked.
    """
    return list(reply[: len(answer)]) == list(answer)


def first_integer(reply: str, key: str) -> bool:
    """Return whether the first integer (of digits 0 to 9) is the key, by value (PoSE, YaRN)."""
    found = _INTEGER.search(reply)
    return found is not None and found[0].lstrip("0") == key.lstrip("0")


def substring(reply: str, reference: str) -> bool:
    """Return whether the reference stands anywhere in the reply, capitals and small letters alike.

    Not as a word of its own: `12345` is found in `9123456`.
    """
    return reference.lower() in reply.lower()


def found(reply: str, references: Sequence[str]) -> list[bool]:
    """Return for each reference whether it stands in the reply, see `substring`."""
    return [substring(reply, reference) for reference in references]


def share(reply: str, references: Sequence[str]) -> float:
    """Return the share of the references that stand in the reply (RULER, its match of all)."""
    return sum(found(reply, references)) / len(references)


def best(reply: str, references: Sequence[str]) -> float:
    """Return 1 if any of the references stands in the reply (RULER, its match of a part)."""
    return float(any(found(reply, references)))


def two(reply: str, references: Sequence[str]) -> float:
    """Return 1 if at least two of the references stand in the reply (STRING, its four needles)."""
    return float(sum(found(reply, references)) >= 2)


def integer(reply: str, references: Sequence[str]) -> float:
    """Return 1 if the first integer in the reply is the one reference (PoSE, its passkey)."""
    (key,) = references
    return float(first_integer(reply, key))


def kept(reply: str) -> str:
    """Return what a result keeps of a reply: its first characters."""
    return reply[:KEPT_CHARACTERS]
