"""The check of an engine on the corpus itself: a seeded sample is encoded again by the reference.

It runs beside the work, in a thread of its own; a shard counts as finished only after everything
looked at in it has been compared.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import numpy as np

from ropewalk.base.rng import fraction
from ropewalk.base.stage import StageError
from ropewalk.data.documents import Document
from ropewalk.data.encoding import LoadedTokenizer

# How much of the text is encoded again, and the longest piece of it at a time.
CHECKED_SHARE = 0.005
CHECKED_CHARACTERS = 65_536


class Checker:
    """Compares the ids of some documents with the reference's; a context manager."""

    def __init__(self, tokenizer: LoadedTokenizer) -> None:
        self._tokenizer = tokenizer
        self._pool = ThreadPoolExecutor(1)
        self._waiting: list[Future[None]] = []
        self._first = True  # of a shard

    def __enter__(self) -> "Checker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def look(self, item: Document, ids: np.ndarray) -> bool:
        """Return whether a document is in the sample; if so, it will be compared.

        The first document of a shard always is. Of a long document one piece is encoded by both,
        drawn by its id, and the longer it is the more likely it is looked at: `CHECKED_SHARE` is of
        the text. `ids` are those of the text.
        """
        tokenizer, text = self._tokenizer, item.text
        if tokenizer.engine == tokenizer.reference_name:
            return False
        pieces = -(-len(text) // CHECKED_CHARACTERS)
        first, self._first = self._first, False
        if not first and fraction(0, "check", item.id) >= CHECKED_SHARE * pieces:
            return False
        if pieces > 1:
            begin = int(fraction(0, "piece", item.id) * (len(text) - CHECKED_CHARACTERS))
            text = text[begin : begin + CHECKED_CHARACTERS]
            ids = tokenizer.encode(text)
        self._waiting.append(self._pool.submit(self._compare, item.id, text, ids))
        return True

    def settle(self) -> None:
        """Wait until everything looked at has been compared, before a shard counts as finished.

        Raises:
            StageError: on the first difference.
        """
        waiting, self._waiting, self._first = self._waiting, [], True
        for future in waiting:
            future.result()

    def _compare(self, name: str, text: str, ids: np.ndarray) -> None:
        tokenizer = self._tokenizer
        expected = tokenizer.reference(text)
        if np.array_equal(ids, expected):
            return
        same = min(len(ids), len(expected))
        differs = np.flatnonzero(ids[:same] != expected[:same])
        place = int(differs[0]) if len(differs) else same
        raise StageError(
            f"{name}: {tokenizer.engine} {tokenizer.engine_version} gives other token ids than "
            f"{tokenizer.reference_name}, first at token {place} "
            f"({ids[place : place + 3].tolist()} for {expected[place : place + 3].tolist()}). "
            f"Set engine: {tokenizer.reference_name} for this tokenizer, which is slower and exact "
            "by definition"
        )
