"""Long texts in pieces: cut where the pieces are sure to give the token ids of the whole.

Tokenizers need up to several hundred bytes of memory per character of one text, so a document of
100 MB cannot be encoded at once. A text may be cut between two characters that no token and no
step of the tokenizer ever holds together:

- Byte-level BPE splits the text by a pattern first, and no match of the patterns that `shape`
  knows holds a letter or number followed by a space, line break or punctuation, a letter followed
  by an ASCII digit, or anything followed by a space. Nor does one look back before its start. So
  the matches of the whole text are those of the left part and those of the right part.
- The BPE of SentencePiece merges what stands side by side, and only into tokens of its vocabulary.
  Where no token holds the two characters side by side, no merge crosses the cut, and the merges on
  either side do not depend on the other.
- Added tokens are found in the text before that: none of them holds the two characters either.

A piece is encoded with the last character before it, and the ids of that character are dropped:
so whatever happens at the start of a text (SentencePiece puts a space there) happens before the
piece. Each cut is tried on its surroundings before it is used.
"""

import functools
import itertools
import re
import string
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from ropewalk.data.shape import BYTES, SPACE, Shape, ShapeError, shape_of

PIECE = 2**18  # characters that are encoded at once, where the text can be cut
UNBROKEN = 2**20  # most characters that are encoded at once without any place to cut
WHOLE = 2**22  # longest text for a tokenizer of which no safe cuts are known
_TRIED = 32  # characters on either side of a cut that it is tried on

_PUNCTUATION = string.punctuation + "。、।،؟\uff0c\uff01\uff1f\uff1a\uff1b"
# What may stand before a cut, and which characters after it.
_RULES = (
    (r"[^\W_]", " \n\t" + _PUNCTUATION),
    (r"[A-Za-z]", string.digits),
    (f"[{re.escape(string.punctuation)}]", " "),
)

Encode = Callable[[str], np.ndarray]


class Unbroken(ValueError):  # noqa: N818 - a property of the text, no fault
    """A text so long without a place to cut that encoding it would take unbounded memory."""


class Cuts:
    """Where texts can be cut, for one tokenizer."""

    def __init__(self, definition: Callable[[], Mapping[str, Any]]) -> None:
        """Take what reads the content of the `tokenizer.json`; read for the first long text."""
        self._definition = definition

    @functools.cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        definition = self._definition()
        try:
            return _safe(_tokens(definition, shape_of(definition)))
        except ShapeError:
            return None

    def encode(self, text: str, encode: Encode) -> np.ndarray:
        """Return `encode(text)` (uint32), calling `encode` with bounded texts only.

        Raises:
            Unbroken: if the text is long and has no place to cut for long.
        """
        if len(text) <= PIECE:
            return encode(text)
        if self._pattern is None:
            if len(text) > WHOLE:
                raise Unbroken(
                    f"{len(text)} characters, and where texts for this tokenizer can be cut is "
                    "not known"
                )
            return encode(text)
        ids = bytearray()  # grows in place: concatenating arrays would need twice the memory
        start = 0
        while start < len(text):
            stop = self._next(text, start, encode)
            ids += _after(text[max(start - 1, 0) : start], text[start:stop], encode).tobytes()
            start = stop
        return np.frombuffer(ids, dtype=np.uint32)

    def _next(self, text: str, start: int, encode: Encode) -> int:
        """Return where the piece from `start` ends: as late as possible within `PIECE`."""
        end = start + PIECE
        if end >= len(text):
            return len(text)
        late = [max(start, end - back) for back in (0, 256, 16_384, PIECE)]
        for stop, begin in itertools.pairwise(late):
            for cut in reversed(self._candidates(text, begin, stop)):
                if _seen(text, cut, encode):
                    return cut
        for cut in self._candidates(text, end - 1, start + UNBROKEN):
            if _seen(text, cut, encode):
                return cut
        if start + UNBROKEN < len(text):
            raise Unbroken(f"no place to cut in the {UNBROKEN} characters from {start} on")
        return len(text)

    def _candidates(self, text: str, begin: int, stop: int) -> list[int]:
        """Return the places to cut in `text[begin:stop]`."""
        found = self._pattern.finditer(text, begin, stop) if self._pattern else ()
        return [match.end() for match in found if _sure(match[0])]


def _after(before: str, piece: str, encode: Encode) -> np.ndarray:
    """Return the ids of `piece` where it follows the character `before` (or nothing)."""
    ids = encode(before + piece)
    return ids[len(encode(before)) :] if before else ids


def _sure(before: str) -> bool:
    """Return whether a character is what the pattern takes it for, and stays so under NFC."""
    return before.isascii() or (
        unicodedata.category(before)[0] in "LN" and unicodedata.is_normalized("NFC", before)
    )


def _seen(text: str, cut: int, encode: Encode) -> bool:
    """Return whether the surroundings of a cut have the same ids with and without it."""
    left, right = text[max(cut - _TRIED, 0) : cut], text[cut : cut + _TRIED]
    together = np.concatenate([encode(left), _after(text[cut - 1], right, encode)])
    return np.array_equal(together, encode(left + right))


def _tokens(definition: Mapping[str, Any], shape: Shape) -> list[str]:
    """Return the tokens that could reach over a cut."""
    tokens = [token["content"] for token in definition.get("added_tokens") or ()]
    if shape.kind == "sentencepiece":
        vocabulary = set(definition["model"]["vocab"]) - set(BYTES)
        tokens += [token.replace(SPACE, " ") for token in vocabulary]
    return tokens


def _safe(tokens: Iterable[str]) -> re.Pattern[str] | None:
    """Return what finds the characters before a cut, or None where nothing is safe."""
    joined = "\0".join(tokens)
    found = []
    for before, candidates in _RULES:
        held = set(re.findall(f"{before}(?=([{re.escape(candidates)}]))", joined))
        if safe := [c for c in candidates if c not in held]:
            found.append(f"{before}(?=[{re.escape(''.join(safe))}])")
    return re.compile("|".join(found)) if found else None
