"""What stands around the things that are asked for: repeated noise, or the text of a corpus."""

import re
from collections.abc import Sequence

import numpy as np

from ropewalk.base.stage import StageError
from ropewalk.data.encoding import LoadedTokenizer
from ropewalk.data.tokens import Tokens

# PI, arXiv 2306.15595, figure 3; RULER's noise too.
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
CORPUS_TOKENS = 1 << 20  # how much of a corpus filler is cut from
_BREAK = re.compile(r"\n|[.!?] ")  # after it a needle may stand
_SOON = 400  # characters in which a break must be found; else a space will do


def noise(characters: int) -> str:
    """Return the first characters of the noise sentences, repeated with a space between."""
    return ENDLESS_NOISE.piece(0, characters)


class Text:
    """A text without end: it begins again where it ends."""

    def __init__(self, text: str) -> None:
        """Take the text; it should end with the space or line break before its next beginning.

        Raises:
            ValueError: if it is empty.
        """
        if not text:
            raise ValueError("a text without a character never gets anywhere")
        self._text = text
        self._breaks = np.array([0, *(match.end() for match in _BREAK.finditer(text))])

    def __len__(self) -> int:
        return len(self._text)

    def piece(self, start: int, characters: int) -> str:
        """Return so many characters from `start` on."""
        start %= len(self._text)
        times = -(-(start + characters) // len(self._text))
        return (self._text * times)[start : start + characters]

    def break_at(self, place: int) -> int:
        """Return where the line or sentence begins that `place` lies in.

        In a text with few breaks it is the last space before `place`, or `place` itself.
        """
        turns, inside = divmod(place, len(self._text))
        at = int(self._breaks[np.searchsorted(self._breaks, inside, side="right") - 1])
        if inside - at > _SOON:
            at = self._text.rfind(" ", inside - _SOON, inside) + 1 or inside
        return turns * len(self._text) + at

    def with_needles(
        self, start: int, characters: int, needles: Sequence[tuple[float, str]]
    ) -> str:
        """Return so many characters from `start` on, and the needles `(depth, sentence)` in them.

        A depth is the share of the characters before the needle, which moves back to where a line
        or sentence begins. Needles of one place stand in their order.
        """
        places = [
            max(self.break_at(start + int(depth * characters)) - start, 0) for depth, _ in needles
        ]
        ordered = sorted(
            zip(places, (sentence for _, sentence in needles), strict=True),
            key=lambda needle: needle[0],
        )
        text, before = self.piece(start, characters), 0
        parts = []
        for place, sentence in ordered:
            end = text[place - 1] if place else self.piece(start - 1, 1)
            if end.isspace():
                parts += [text[before:place], sentence, end]
            else:
                parts += [text[before:place], " ", sentence, " "]
            before = place
        return "".join([*parts, text[before:]])


ENDLESS_NOISE = Text(NOISE + " ")


def special_tokens(tokenizer: LoadedTokenizer) -> np.ndarray:
    """Return the ids that stand for no text: BOS, EOS, reserved and special tokens; int64."""
    ids = set(range(2, 2 + tokenizer.reserved))
    ids |= {token for token in (tokenizer.bos, tokenizer.eos) if token is not None}
    added = tokenizer.tokenizer.get_added_tokens_decoder()
    ids |= {number for number, token in added.items() if token.special}
    return np.array(sorted(ids), dtype=np.int64)


def corpus_tokens(
    tokens: Tokens, tokenizer: LoadedTokenizer, limit: int = CORPUS_TOKENS
) -> list[np.ndarray]:
    """Return the first documents of a corpus up to `limit` tokens: int64, no special tokens.

    Raises:
        StageError: if nothing is left.
    """
    special = special_tokens(tokenizer)
    pieces, total = [], 0
    for index in range(tokens.count):
        if total >= limit:
            break
        ids = tokens.document(index).astype(np.int64)
        ids = ids[~np.isin(ids, special)][: limit - total]
        if len(ids):
            pieces.append(ids)
            total += len(ids)
    if not total:
        raise StageError("corpus: it has no tokens to cut filler from; name one that has documents")
    return pieces


def corpus_text(tokens: Tokens, tokenizer: LoadedTokenizer, limit: int = CORPUS_TOKENS) -> Text:
    """Return the text of those documents, an empty line between two of them.

    Raises:
        StageError: if nothing is left.
    """
    pieces = corpus_tokens(tokens, tokenizer, limit)
    documents = [tokenizer.tokenizer.decode(ids.tolist()) for ids in pieces]
    return Text("".join(f"{document}\n\n" for document in documents))
