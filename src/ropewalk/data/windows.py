"""Windows on disk: an index of pieces, and the rows of token ids they stand for.

One row per window: `corpus` (int32, index into the mixture) and list columns `document` (int32,
index in the corpus), `start` (int64), `length` (int32).
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from ropewalk.base.manifest import ArtifactError, Manifest
from ropewalk.data.shards import Tokens

WINDOWS = "windows.arrow"
SCHEMA = pa.schema(
    [
        ("corpus", pa.int32()),
        ("document", pa.list_(pa.int32())),
        ("start", pa.list_(pa.int64())),
        ("length", pa.list_(pa.int32())),
    ]
)
PADDING = 0  # token id that fills a short window; it lies beyond the last boundary


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pieces:
    """What one window is made of."""

    corpus: str
    document: np.ndarray  # int32 [pieces]: index in the corpus
    start: np.ndarray  # int64 [pieces]
    length: np.ndarray  # int32 [pieces]


class Windows:
    """The windows of a `pack` artifact over memory-mapped tokens.

    Attributes:
        rows: windows.
        length: tokens of a row.
        policy: how they were cut.
        seed: of the row order, from the windows' spec.
    """

    def __init__(self, manifest: Manifest, tokens: Mapping[str, Manifest]) -> None:
        spec = manifest.spec["windows"]
        self.length: int = manifest.spec["length_tokens"]
        self.policy: str = spec.get("policy", "concat")
        self.seed: int = spec.get("seed", 0)
        self._names = [share["corpus"] for share in spec["mixture"]]
        for name in self._names:
            _check_made_from(manifest, name, tokens)
        self._tokens = [Tokens(tokens[name]) for name in self._names]
        reader = pa.ipc.open_file(pa.memory_map(str(manifest.path(WINDOWS))))
        batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        self._first = np.cumsum([0, *(batch.num_rows for batch in batches)])
        self._corpus = [batch.column("corpus").to_numpy() for batch in batches]
        self._offsets = [batch.column("document").offsets.to_numpy() for batch in batches]
        self._columns = [
            tuple(batch.column(name).values.to_numpy() for name in ("document", "start", "length"))
            for batch in batches
        ]
        self.rows = int(self._first[-1])

    def pieces(self, row: int) -> Pieces:
        """Return the pieces of one window.

        Raises:
            IndexError: if `row` is not in [0, rows).
        """
        if not 0 <= row < self.rows:
            raise IndexError(f"window {row} of {self.rows}")
        batch = int(np.searchsorted(self._first, row, side="right")) - 1
        place = row - int(self._first[batch])
        begin, end = self._offsets[batch][place : place + 2]
        document, start, length = (column[begin:end] for column in self._columns[batch])
        corpus = self._names[self._corpus[batch][place]]
        return Pieces(corpus=corpus, document=document, start=start, length=length)

    def row(self, row: int) -> tuple[np.ndarray, tuple[int, ...]]:
        """Return `(ids, boundaries)` of one window.

        ids: int64 [length]; a window of policy `documents` that ends short is filled with
        `PADDING`, one of policy `per_document` is the first `length` tokens of its document.
        boundaries: cumulative ends of the segments that attend only to themselves, from 0 to the
        number of real tokens. Policy `documents` has a segment per piece, the others one in all:
        classic blocks attend across documents.
        """
        pieces = self.pieces(row)
        tokens = self._tokens[self._names.index(pieces.corpus)]
        ids = np.full(self.length, PADDING, dtype=np.int64)
        ends = [0]
        for document, start, length in zip(
            pieces.document.tolist(), pieces.start.tolist(), pieces.length.tolist(), strict=True
        ):
            size = min(length, self.length - ends[-1])
            ids[ends[-1] : ends[-1] + size] = tokens.document(document)[start : start + size]
            ends.append(ends[-1] + size)
        return ids, tuple(ends) if self.policy == "documents" else (0, ends[-1])


def _check_made_from(manifest: Manifest, name: str, tokens: Mapping[str, Manifest]) -> None:
    """An index over other tokens than it was cut from would read wrong text without a sign."""
    if name not in tokens:
        raise ArtifactError(f"{manifest.folder}: the tokens of corpus {name!r} are missing")
    cut_from = manifest.inputs[f"tokens:{name}"]["content"]
    if tokens[name].content != cut_from:
        raise ArtifactError(
            f"{manifest.folder} was cut from tokens {cut_from} of corpus {name!r}, but "
            f"{tokens[name].folder} holds {tokens[name].content}; run snakemake again"
        )
