"""The texts of a perplexity protocol: which documents, how much of them, and what opens them.

Documents are taken without the BOS they may be stored with: whether and where BOS is read is the
protocol's choice, and spans say it (`Spans.opening`). All of them laid end to end are one more
text, the stream.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from ropewalk.base.stage import StageError
from ropewalk.data.encoding import LoadedTokenizer
from ropewalk.data.tokens import Tokens
from ropewalk.evaluate.scorer import Scores
from ropewalk.evaluate.spans import take

STREAM = "(all documents end to end)"
_MOST = 2**31 - 1  # positions are int32


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Texts:
    """Chosen documents without BOS, text 0, 1, ...; and after the last of them the stream."""

    sources: tuple[str, ...]  # names of the documents
    lengths: np.ndarray  # int64 [documents], tokens that are used
    read: Callable[[int], np.ndarray]  # document -> its tokens that are used
    dropped: tuple[str, ...] = ()  # documents that were asked for and can score nothing, in words

    def names(self, streamed: bool) -> list[str]:
        """Return the names of the texts, that of the stream only where it is read."""
        return [*self.sources, STREAM] if streamed else list(self.sources)

    @property
    def stream(self) -> int:
        """Return the index of the stream."""
        return len(self.sources)

    def asked(self, streamed: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return the indices of the texts to be read, and their tokens: int64 [texts] each."""
        if not streamed:
            return np.arange(self.stream), self.lengths
        total = int(self.lengths.sum())
        if total > _MOST:
            raise StageError(
                f"protocol.text: a stream of {total} tokens is longer than positions can count "
                f"({_MOST}): lower protocol.documents or set protocol.cut_tokens"
            )
        return np.array([self.stream]), np.array([total])

    def text(self, index: int) -> np.ndarray:
        """Return the tokens of one text."""
        return self._stream if index == self.stream else self.read(index)

    @functools.cached_property
    def _stream(self) -> np.ndarray:
        return np.concatenate([self.read(i) for i in range(self.stream)])

    def by_source(self, scores: Scores) -> Scores:
        """Return scores with the tokens of the stream given to the documents they are of."""
        ends = np.cumsum(self.lengths)
        streamed = scores.document == self.stream
        source = np.searchsorted(ends, scores.position, side="right")
        place = scores.position - (ends - self.lengths)[np.minimum(source, self.stream - 1)]
        return dataclasses.replace(
            scores,
            document=np.where(streamed, source, scores.document).astype(np.int32),
            position=np.where(streamed, place, scores.position).astype(np.int32),
        )


def choose(
    tokens: Tokens,
    tokenizer: LoadedTokenizer,
    *,
    documents: int | None,
    skip_tokens: int = 0,
    minimum_tokens: int = 0,
    cut_tokens: int | None = None,
    opened: bool,
    streamed: bool = False,
) -> Texts:
    """Return the first documents, in corpus order, of at least `minimum_tokens`, cut.

    Of each document the first `skip_tokens` are left out, as if it began after them. Where BOS is
    read before a document (`opened`), lengths, minimum and cut count it. A document
    with fewer than 2 tokens can score nothing: it is never one of the first `documents`, and where
    all are asked for (None) it is dropped; in a stream it is text like all others.

    Raises:
        StageError: if there are too few documents, or if one does not begin as the tokenizer says.
    """
    stored = len(tokenizer.opening)
    first = stored + skip_tokens
    lengths = np.maximum(tokens.lengths.astype(np.int64) - first, 0)
    counted = lengths + opened
    names = tokens.ids
    chosen = take(counted, documents, minimum=max(minimum_tokens, 1 if streamed else 2))
    unscorable = np.flatnonzero((counted >= minimum_tokens) & (counted < 2)).tolist()
    _refuse_other_opening(tokens, tokenizer, chosen, names)
    used = lengths[chosen]
    if cut_tokens is not None:
        used = np.minimum(used, cut_tokens - opened)
    return Texts(
        sources=tuple(names[i] for i in chosen.tolist()),
        lengths=used,
        read=lambda i: tokens.document(int(chosen[i]))[first : first + int(used[i])],
        dropped=tuple(
            f"document {names[i]!r} has {int(counted[i])} tokens: nothing in it can be scored"
            for i in (() if streamed or documents is not None else unscorable)
        ),
    )


def opening_token(tokenizer: LoadedTokenizer, asked_by: str) -> int:
    """Return what is read as BOS: EOS where a tokenizer has no BOS, as lm-eval does.

    Raises:
        StageError: if it has neither; `asked_by` names the setting that needs one.
    """
    token = tokenizer.eos if tokenizer.bos is None else tokenizer.bos
    if token is None:
        raise StageError(
            f"{asked_by} reads BOS before the text, but the tokenizer has neither BOS nor EOS: "
            "set protocol.bos to 'none', or name its BOS in tokenizer.bos"
        )
    return token


def _refuse_other_opening(
    tokens: Tokens, tokenizer: LoadedTokenizer, chosen: np.ndarray, names: list[str]
) -> None:
    """A BOS taken for text would be scored; text taken for BOS would be lost."""
    if tokenizer.bos is None:
        return
    for index in chosen.tolist():
        opened = tokens.document(index)[:1].tolist() == [tokenizer.bos]
        if opened != bool(tokenizer.opening):
            raise StageError(
                f"document {names[index]!r} begins {'with' if opened else 'without'} BOS "
                f"({tokenizer.bos}), but the tokenizer's manifest says that documents "
                f"{'are' if tokenizer.opening else 'are not'} opened by it: tokenise the corpus "
                "with this tokenizer"
            )
