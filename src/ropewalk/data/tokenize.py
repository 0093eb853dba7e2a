"""Stage `tokenize`: one part of a corpus under one tokenizer, into Arrow shards.

A job that is killed, at any point, goes on after its last finished shard; the bytes are those of a
job that was not. They depend on the part alone, not on how many parts are made at a time.
"""

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from ropewalk.base.canonical import digest
from ropewalk.base.manifest import File
from ropewalk.base.stage import Job, StageError
from ropewalk.data import recall
from ropewalk.data.ahead import ahead
from ropewalk.data.checking import Checker
from ropewalk.data.cuts import Unbroken
from ropewalk.data.documents import START, Document, Place, Skipped, documents, entries_of
from ropewalk.data.encoding import LoadedTokenizer, load
from ropewalk.data.progress import Progress
from ropewalk.data.shards import Shard, ShardWriter, token_dtype
from ropewalk.data.spec import DocumentCorpus, RecallCorpus, TokenizeJob
from ropewalk.data.tally import Tally
from ropewalk.data.tokens import Tokens

_PROGRESS_SECONDS = 10.0
_AHEAD_CHARACTERS = 4_000_000  # how much is read before it is needed
_PIECE_CHARACTERS = 1_000_000
_RECORD_CHARACTERS = 500  # what a record weighs beside its text


@dataclasses.dataclass(frozen=True, slots=True)
class Encoded:
    """A document as it is stored."""

    id: str
    ids: np.ndarray  # of the shards' type, opening and closing tokens included
    subset: str | None
    text_bytes: int
    prompt: int  # leading tokens that are no targets
    place: Place
    checked: bool  # by the reference


def work(job: Job) -> tuple[list[File], dict[str, Any]]:
    """Write the part's documents as token ids.

    The result counts `documents_in` = `documents` + all of `skipped`; documents beyond a limit are
    not looked at and count nowhere (`limit_reached` says so).

    Raises:
        StageError: if a source file is not what the inventory says, more records are damaged than
            allowed, an id lies outside the vocabulary, the engine disagrees with the reference, or
            the tokenizer lacks a token the corpus needs.
    """
    spec: TokenizeJob = job.spec
    if not 0 <= spec.part < spec.corpus.parts:
        raise StageError(f"part: {spec.part} of {spec.corpus.parts}: parts count from 0")
    tokenizer = load(job.input("tokenizer"))
    progress = Progress(job.folder, _key(job, tokenizer))
    tally = progress.tally
    report = _Report(progress, tally)
    reached = False
    with (
        Checker(tokenizer) as checker,
        ShardWriter(
            job.folder,
            vocabulary_size=tokenizer.vocabulary_size,
            shard_tokens=spec.shard_tokens,
            first=len(progress.finished),
        ) as writer,
    ):
        after = progress.start
        for item in _items(job, tokenizer, checker, progress.start):
            if _reached(spec, tally):
                reached = True
                break
            if isinstance(item, Skipped):
                tally.skip(item)
                if isinstance(spec.corpus, DocumentCorpus):
                    tally.check_damage(spec.corpus.damaged_limit)
                continue
            after = Place(item.place.file, item.place.record + 1)
            tally.checked += item.checked
            tally.take(len(item.ids), subset=item.subset, text_bytes=item.text_bytes)
            shard = writer.add(
                item.id,
                item.ids,
                subset=item.subset,
                text_bytes=item.text_bytes,
                prompt=item.prompt,
            )
            del item  # it need not lie beside the next one, which may be as large
            if shard is not None:
                checker.settle()
                progress.record(shard, after, tally)
            report(tally)
        shard = writer.close()
        checker.settle()
        if shard is not None:
            progress.record(shard, after, tally)
    report(tally, final=True)
    return progress.files, {
        **tally.facts(),
        "shards": [_facts(entry.shard) for entry in progress.finished],
        "limit_reached": reached,
        "vocabulary_size": tokenizer.vocabulary_size,
        "dtype": token_dtype(tokenizer.vocabulary_size).name,
        "opening": list(tokenizer.opening),
        "closing": list(tokenizer.closing),
        "engine": {"name": tokenizer.engine, "version": tokenizer.engine_version},
    }


def _facts(shard: Shard) -> dict[str, Any]:
    """Return a shard as manifests list it."""
    return {
        "file": shard.file,
        "sha256": shard.sha256,
        "documents": shard.documents,
        "tokens": shard.tokens,
    }


def _key(job: Job, tokenizer: LoadedTokenizer) -> str:
    """Return what decides the bytes of this job; shards made under another key are no use."""
    return digest(
        {
            "recipe": job.recipe,
            "code": job.code,
            "inputs": {name: manifest.content for name, manifest in job.inputs.items()},
            "pyarrow": pa.__version__,
            "engine": [tokenizer.engine, tokenizer.engine_version],
        }
    )


def quota(limit: int | None, part: int, parts: int) -> int | None:
    """Return one part's share of a limit; the shares add up to it."""
    return None if limit is None else limit * (part + 1) // parts - limit * part // parts


def _reached(spec: TokenizeJob, tally: Tally) -> bool:
    corpus = spec.corpus
    if isinstance(corpus, RecallCorpus):
        return False
    most = quota(corpus.limit_documents, spec.part, corpus.parts)
    if most is not None and tally.documents >= most:
        return True
    most = quota(corpus.limit_tokens, spec.part, corpus.parts)
    return most is not None and tally.tokens >= most


def _items(
    job: Job, tokenizer: LoadedTokenizer, checker: Checker, start: Place
) -> Iterator[Encoded | Skipped]:
    corpus = job.spec.corpus
    if isinstance(corpus, RecallCorpus):
        return _recall(job, corpus, tokenizer, start)
    return _documents(job, corpus, _Encoder(corpus, tokenizer, checker), start)


def _documents(
    job: Job, corpus: DocumentCorpus, encode: "_Encoder", start: Place
) -> Iterator[Encoded | Skipped]:
    spec: TokenizeJob = job.spec
    if spec.source is None:
        raise StageError("tokenize: a corpus of documents needs its source")
    entries = entries_of(corpus, job.input("inventory"), spec.part)
    items = documents(corpus, spec.source, entries, spec.folder, start)
    # `map` does not hold a document while the next one is read, as a loop would
    yield from map(encode, ahead(items, _characters, _AHEAD_CHARACTERS))


def _characters(item: Document | Skipped) -> int:
    return _RECORD_CHARACTERS + (len(item.text) if isinstance(item, Document) else 0)


class _Encoder:
    """Turns documents into what is stored, and has some of them checked on the way."""

    def __init__(
        self, corpus: DocumentCorpus, tokenizer: LoadedTokenizer, checker: Checker
    ) -> None:
        self._corpus = corpus
        self._checker = checker
        self._tokenizer = tokenizer
        self._dtype = token_dtype(tokenizer.vocabulary_size)
        self._template: tuple[np.ndarray, np.ndarray] | None = None
        if corpus.prompt is not None:
            before, _, after = corpus.prompt.template.partition("{text}")
            self._template = tokenizer.encode(before), tokenizer.encode(after)
            if corpus.prompt.closed and tokenizer.eos is None:
                raise StageError("corpus.prompt.closed: true, but the tokenizer has no EOS token")
        # What closes a target, unless the tokenizer closes every document by itself.
        added = corpus.prompt is not None and corpus.prompt.closed and not tokenizer.closing
        self._end = np.array([tokenizer.eos] if added else [], dtype=np.int64)

    def __call__(self, item: Document | Skipped) -> Encoded | Skipped:
        if isinstance(item, Skipped):
            return item
        tokenizer = self._tokenizer
        try:
            parts = [tokenizer.encode(item.text)]
            checked = self._checker.look(item, parts[0])
            prompt = 0
            if self._corpus.prompt is not None and self._template is not None:
                before, after = self._template
                text = parts[0][: self._corpus.prompt.text_tokens]
                target = tokenizer.encode(item.target or "")[: self._corpus.prompt.target_tokens]
                parts = [before, text, after, target, self._end]
                prompt = len(tokenizer.opening) + len(before) + len(text) + len(after)
        except Unbroken as error:
            return Skipped(item.id, "unbroken", str(error), item.place)
        ids = self._stored(item, parts)
        if len(ids) < max(self._corpus.minimum_tokens, 1):
            return Skipped(item.id, "short", "", item.place)
        return Encoded(
            item.id,
            ids,
            item.subset,
            _utf8_bytes(item.text),
            prompt,
            item.place,
            checked,
        )

    def _stored(self, item: Document, parts: list[np.ndarray]) -> np.ndarray:
        opening, closing = self._tokenizer.opening, self._tokenizer.closing
        ids = np.empty(sum(map(len, (opening, *parts, closing))), dtype=self._dtype)
        done = 0
        for part in (opening, *parts, closing):
            if isinstance(part, np.ndarray) and len(part):
                largest = int(part.max())
                if largest >= self._tokenizer.vocabulary_size:
                    raise StageError(
                        f"{item.id}: token id {largest} lies outside the vocabulary of "
                        f"{self._tokenizer.vocabulary_size}; correct tokenizer.vocabulary_size"
                    )
            ids[done : done + len(part)] = part
            done += len(part)
        return ids


def _utf8_bytes(text: str) -> int:
    """Return the length in UTF-8, without a second copy of a long text."""
    if text.isascii():
        return len(text)
    pieces = range(0, len(text), _PIECE_CHARACTERS)
    return sum(len(text[begin : begin + _PIECE_CHARACTERS].encode()) for begin in pieces)


def _recall(
    job: Job, corpus: RecallCorpus, tokenizer: LoadedTokenizer, start: Place
) -> Iterator[Encoded]:
    if (tokenizer.bos, tokenizer.eos) != (recall.BOS, recall.MARKER):
        raise StageError(
            f"corpus: recall documents need a tokenizer whose BOS and EOS are {recall.BOS} and "
            f"{recall.MARKER} (one trained here); this one has {tokenizer.bos} and {tokenizer.eos}"
        )
    filler = recall.filler_of(Tokens(job.input("filler")))
    opening, closing = tokenizer.opening, tokenizer.closing
    for index in range(start.record, corpus.documents):
        ids = recall.document(corpus, index, filler, tokenizer.reserved)
        # in place of tokens at its end: the length stays what the spec says
        ids = np.concatenate([opening, ids[: len(ids) - len(opening) - len(closing)], closing])
        yield Encoded(
            f"recall-{index}",
            ids.astype(token_dtype(tokenizer.vocabulary_size)),
            None,
            0,
            0,
            Place(START.file, index),
            False,
        )


class _Report:
    """Says now and then how far the job is."""

    def __init__(self, progress: Progress, tally: Tally) -> None:
        self._started = self._reported = time.monotonic()
        self._before = tally.tokens
        if progress.finished:
            print(
                f"tokenize: goes on after {len(progress.finished)} finished shards "
                f"({tally.documents} documents, {tally.tokens} tokens)",
                flush=True,
            )

    def __call__(self, tally: Tally, *, final: bool = False) -> None:
        now = time.monotonic()
        if final or now - self._reported >= _PROGRESS_SECONDS:
            self._reported = now
            rate = (tally.tokens - self._before) / max(now - self._started, 1e-9)
            print(
                f"tokenize: {tally.documents} documents, {tally.tokens} tokens, "
                f"{tally.skipped.total()} skipped, {rate:.0f} tokens/s",
                flush=True,
            )
