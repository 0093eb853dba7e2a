"""Windows on disk: an index of pieces, and the rows of token ids they stand for.

The index has a record batch per corpus of the mixture and a row per window: `corpus` (int32, index
into the mixture) and `pieces`, a list of (`document`, `start`, `length`, `begin`): tokens [start,
start + length) of a document, and where in the document's shard they lie, so that reading a window
looks nothing up (see `Tokens.begins`).

Dimensions: B rows, T tokens of a window.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from ropewalk.base.files import replacing
from ropewalk.base.manifest import ArtifactError, Manifest
from ropewalk.data import arrow
from ropewalk.data.packing import Cut, ranges
from ropewalk.data.tokens import Files, Tokens

WINDOWS = "windows.arrow"
PIECE = pa.struct(
    [
        ("document", pa.int32()),
        ("start", pa.int32()),
        ("length", pa.int32()),
        ("begin", pa.int64()),
    ]
)
SCHEMA = pa.schema([("corpus", pa.int32()), ("pieces", pa.large_list(PIECE))])
PIECE_BYTES = 20
PADDING = 0  # token id that fills a short window; it lies beyond the last boundary


def write_index(file: Path, cuts: Sequence[tuple[Cut, np.ndarray]]) -> None:
    """Write the windows of each corpus of a mixture, given with its `Tokens.begins`."""
    with replacing(file) as partial, pa.ipc.new_file(str(partial), SCHEMA) as sink:
        for corpus, (cut, begins) in enumerate(cuts):
            begin = begins[cut.document]
            begin += cut.start
            columns = [
                arrow.numbers(column) for column in (cut.document, cut.start, cut.length, begin)
            ]
            pieces = pa.StructArray.from_arrays(columns, fields=list(PIECE))
            rows = pa.LargeListArray.from_arrays(arrow.numbers(cut.offsets), pieces)
            corpora = arrow.numbers(np.full(cut.count, corpus, dtype=np.int32))
            sink.write_batch(pa.record_batch([corpora, rows], schema=SCHEMA))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pieces:
    """What one window is made of."""

    corpus: str
    document: np.ndarray  # int32 [pieces]: index in the corpus
    start: np.ndarray  # int32 [pieces]
    length: np.ndarray  # int32 [pieces]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
    """The tokens of some windows."""

    input_ids: np.ndarray  # int64 [B, T]; a window that ends short is filled with `PADDING`
    boundaries: list[tuple[int, ...]]
    # per row: cumulative ends of the segments that attend only to themselves, (0, ..., n <= T).
    # `documents` has a segment per piece, the other policies one: classic blocks attend across
    # documents.
    targets: np.ndarray | None
    # bool [B, T]: tokens that are training targets, which those of a prompt are not. None where no
    # token of the windows belongs to a prompt: all are.


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Corpus:
    name: str
    tokens: Tokens
    prompted: bool  # whether a window has a token that is no target
    offsets: np.ndarray  # int64 [windows + 1]
    document: np.ndarray  # int32 [pieces]
    start: np.ndarray  # int32 [pieces]
    length: np.ndarray  # int32 [pieces]
    begin: np.ndarray  # int64 [pieces]


class Windows:
    """The windows of a `pack` artifact: a mapped index over the shards; for one thread at a time.

    Attributes:
        count: windows; they are numbered from 0, corpus by corpus.
        length: tokens of a window.
        policy: how they were cut.
        seed: from the windows' spec.
    """

    def __init__(self, manifest: Manifest, tokens: Mapping[str, Manifest]) -> None:
        spec = manifest.spec["windows"]
        self.length: int = manifest.spec["length_tokens"]
        self.policy: str = spec.get("policy", "concat")
        self.seed: int = spec.get("seed", 0)
        names = [share["corpus"] for share in spec["mixture"]]
        self._files = Files()
        self._index = Files(files=1)
        reader = pa.ipc.open_file(self._index.open(manifest.path(WINDOWS)).buffer)
        self._corpora = []
        for index, name in enumerate(names):
            _check_made_from(manifest, name, tokens)
            pieces = reader.get_batch(index).column("pieces")
            columns = {field.name: arrow.view(pieces.values.field(field.name)) for field in PIECE}
            corpus = _Corpus(
                name=name,
                tokens=Tokens(tokens[name], self._files),
                prompted=manifest.result["by_corpus"][name]["prompt_tokens"] > 0,
                offsets=arrow.view(pieces.offsets),
                **columns,
            )
            self._corpora.append(corpus)
        self._first = np.cumsum([0, *(len(corpus.offsets) - 1 for corpus in self._corpora)])
        self.count = int(self._first[-1])
        self._prompted = any(corpus.prompted for corpus in self._corpora)
        self._scratch = np.empty(self.length, dtype=np.uint32)

    def pieces(self, window: int) -> Pieces:
        """Return the pieces of one window.

        Raises:
            IndexError: if `window` is not in [0, count).
        """
        corpus, local = self._find(window)
        begin, end = corpus.offsets[local : local + 2]
        document, start, length = (
            column[begin:end] for column in (corpus.document, corpus.start, corpus.length)
        )
        return Pieces(corpus=corpus.name, document=document, start=start, length=length)

    def document(self, window: int) -> np.ndarray:
        """Return the whole document of a window of policy `per_document`: a view, [length].

        Raises:
            ValueError: for windows that are made of several documents.
        """
        self._one_document()
        corpus, local = self._find(window)
        return corpus.tokens.document(int(corpus.document[local]))

    def document_lengths(self, windows: np.ndarray) -> np.ndarray:
        """Return the tokens of the documents of windows of policy `per_document`, int64 [B].

        Raises:
            ValueError: for windows that are made of several documents.
        """
        self._one_document()
        lengths = np.empty(len(windows), dtype=np.int64)
        for corpus, where, local in self._by_corpus(windows):
            lengths[where] = corpus.length[local]
        return lengths

    def prompt_tokens(self, windows: np.ndarray) -> np.ndarray:
        """Return how many leading tokens of the documents of windows are no targets, int64 [B].

        Raises:
            ValueError: for windows that are made of several documents.
        """
        self._one_document()
        prompts = np.zeros(len(windows), dtype=np.int64)
        for corpus, where, local in self._by_corpus(windows):
            if corpus.prompted:
                prompts[where] = corpus.tokens.prompts[corpus.document[local]]
        return prompts

    def read(self, windows: np.ndarray, offsets: np.ndarray | None = None) -> Rows:
        """Return the tokens of some windows.

        Args:
            windows: int64 [B], each in [0, count).
            offsets: int64 [B], for policy `per_document`: where in its document each row begins, so
                that it ends inside. None: at the beginning.
        """
        rows, length = len(windows), self.length
        ids = np.empty((rows, length), dtype=np.int64)
        targets = np.ones((rows, length), dtype=bool) if self._prompted else None
        boundaries: list[tuple[int, ...]] = [(0, length)] * rows
        for corpus, which, local in self._by_corpus(windows):
            row = np.arange(rows)[which]
            begin = corpus.offsets[local]
            counts = corpus.offsets[local + 1] - begin
            pieces = ranges(begin, counts)
            size = np.minimum(corpus.length[pieces], length).astype(np.int64)
            skipped = 0 if offsets is None else offsets[which]
            ends = np.cumsum(size)
            last = np.cumsum(counts)  # piece after the last one of each row
            filled = np.diff(ends[last - 1], prepend=0)
            ends -= np.repeat(ends[last - 1] - filled, counts)  # counted from the row's beginning
            to = np.repeat(row * length, counts) + ends - size
            document = corpus.document[pieces]
            self._copy(corpus, document, corpus.begin[pieces] + skipped, size, ids, to)
            if corpus.prompted and targets is not None:
                start = corpus.start[pieces] + skipped
                prompt = np.clip(corpus.tokens.prompts[document] - start, 0, size)
                for place in np.flatnonzero(prompt).tolist():
                    targets.reshape(-1)[to[place] : to[place] + prompt[place]] = False
            self._index.touched(len(pieces) * PIECE_BYTES, len(row))
            for place in np.flatnonzero(filled < length).tolist():
                ids[row[place], filled[place] :] = PADDING
            if self.policy == "documents":
                marks, stops = ends.tolist(), last.tolist()
                for index, first, stop in zip(row.tolist(), [0, *stops[:-1]], stops, strict=True):
                    boundaries[index] = (0, *marks[first:stop])
        return Rows(input_ids=ids, boundaries=boundaries, targets=targets)

    def row(self, window: int) -> tuple[np.ndarray, tuple[int, ...]]:
        """Return `(ids, boundaries)` of one window: a row of `read`."""
        rows = self.read(np.array([window]))
        return rows.input_ids[0], rows.boundaries[0]

    def _copy(
        self,
        corpus: _Corpus,
        document: np.ndarray,
        begin: np.ndarray,
        size: np.ndarray,
        ids: np.ndarray,
        to: np.ndarray,
    ) -> None:
        """Copy pieces to places `to` of the rows laid end to end; all but `ids` are [pieces]."""
        tokens, flat = corpus.tokens, ids.reshape(-1)
        scratch = self._scratch.view(tokens.dtype)
        scratch_bytes, width = scratch.data.cast("B"), tokens.dtype.itemsize
        shards = tokens.shards_of(document)
        order = np.argsort(shards, kind="stable")
        # Plain numbers: indexing by numpy's own takes longer than the copy.
        columns = [column[order].tolist() for column in (shards, begin, size, to)]
        shard, file = -1, None
        for wanted, first, count, place in zip(*columns, strict=True):
            if file is None or wanted != shard:
                shard, file = wanted, tokens.file(wanted)
            file.read(scratch_bytes[: count * width], first * width)
            flat[place : place + count] = scratch[:count]

    def _one_document(self) -> None:
        if self.policy != "per_document":
            raise ValueError(f"windows of policy {self.policy!r} are made of several documents")

    def _find(self, window: int) -> tuple[_Corpus, int]:
        if not 0 <= window < self.count:
            raise IndexError(f"window {window} of {self.count}")
        index = int(np.searchsorted(self._first, window, side="right")) - 1
        return self._corpora[index], window - int(self._first[index])

    def _by_corpus(
        self, windows: np.ndarray
    ) -> list[tuple[_Corpus, np.ndarray | slice, np.ndarray]]:
        """Return `(corpus, which of the windows are its, their numbers in the corpus)`."""
        if len(self._corpora) == 1:
            return [(self._corpora[0], slice(None), windows)]
        index = np.searchsorted(self._first, windows, side="right") - 1
        found: list[tuple[_Corpus, np.ndarray | slice, np.ndarray]] = []
        for number in np.unique(index).tolist():
            where = np.flatnonzero(index == number)
            found.append((self._corpora[number], where, windows[where] - self._first[number]))
        return found


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
