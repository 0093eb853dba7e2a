"""Stage `tokenize`: one corpus under one tokenizer, into Arrow shards."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ropewalk.base.stage import Job, StageError
from ropewalk.data import recall
from ropewalk.data.documents import Document, Skipped, read_documents
from ropewalk.data.encoding import LoadedTokenizer, load
from ropewalk.data.shards import ShardWriter, Tokens
from ropewalk.data.spec import DocumentCorpus, RecallCorpus, TokenizeJob

# How much text is handed to the tokenizer at a time; changes no result.
_BATCH_CHARACTERS = 4_000_000
_BATCH_DOCUMENTS = 2048
_PROGRESS_SECONDS = 10.0


def work(job: Job) -> tuple[list[Path], dict[str, Any]]:
    """Write the corpus's documents as token ids.

    The result counts `documents_in` = `documents` + all of `skipped`; documents beyond a limit are
    not looked at and count nowhere.

    Raises:
        StageError: if no document is left, an id lies outside the vocabulary, or the tokenizer
            lacks a token the corpus needs.
    """
    spec: TokenizeJob = job.spec
    tokenizer = load(job.input("tokenizer"))
    if spec.bos and tokenizer.bos is None:
        raise StageError("bos: true, but the tokenizer has no BOS token; set bos: false")
    for stale in job.folder.glob("shard-*.arrow"):
        stale.unlink()
    corpus = spec.corpus
    with ShardWriter(
        job.folder, vocabulary_size=tokenizer.vocabulary_size, shard_tokens=spec.shard_tokens
    ) as writer:
        tally = _Tally(writer, tokenizer.vocabulary_size)
        if isinstance(corpus, RecallCorpus):
            _write_recall(job, corpus, tokenizer, tally)
        else:
            _write_documents(job, corpus, tokenizer, tally)
    if not tally.documents:
        causes = ", ".join(f"{n} {cause}" for cause, n in sorted(tally.skipped.items()) if n)
        raise StageError(f"corpus: no document is left{_from(corpus)} ({causes or 'none found'})")
    tally.report(final=True)
    return writer.files, {
        "documents_in": tally.documents + tally.skipped.total(),
        "documents": tally.documents,
        "tokens": tally.tokens,
        "bytes": tally.bytes,
        "skipped": dict(sorted(tally.skipped.items())),
        "vocabulary_size": tokenizer.vocabulary_size,
    }


def _from(corpus: DocumentCorpus | RecallCorpus) -> str:
    if isinstance(corpus, RecallCorpus):
        return f": corpus.documents is {corpus.documents}"
    return (
        f" of split {corpus.split!r} of source {corpus.source!r}; check corpus.split and "
        f"corpus.minimum_tokens = {corpus.minimum_tokens}"
    )


class _Tally:
    """Counts what is written and says so now and then."""

    def __init__(self, writer: ShardWriter, vocabulary_size: int) -> None:
        self.documents = self.tokens = self.bytes = 0
        self.skipped: Counter[str] = Counter()
        self._writer = writer
        self._vocabulary_size = vocabulary_size
        self._started = self._reported = time.monotonic()

    def write(self, name: str, ids: np.ndarray, *, subset: str | None, text_bytes: int) -> None:
        largest = int(ids.max(initial=0))
        if largest >= self._vocabulary_size:
            raise StageError(
                f"{name}: token id {largest} lies outside the vocabulary of "
                f"{self._vocabulary_size}; correct tokenizer.vocabulary_size"
            )
        self._writer.add(name, ids, subset=subset, text_bytes=text_bytes)
        self.documents += 1
        self.tokens += len(ids)
        self.bytes += text_bytes

    def report(self, *, final: bool = False) -> None:
        now = time.monotonic()
        if final or now - self._reported >= _PROGRESS_SECONDS:
            self._reported = now
            rate = self.tokens / max(now - self._started, 1e-9)
            print(
                f"tokenize: {self.documents} documents, {self.tokens} tokens, "
                f"{self.skipped.total()} skipped, {rate:.0f} tokens/s",
                flush=True,
            )


def _write_documents(
    job: Job, corpus: DocumentCorpus, tokenizer: LoadedTokenizer, tally: _Tally
) -> None:
    spec: TokenizeJob = job.spec
    if spec.source is None:
        raise StageError("tokenize: a corpus of documents needs its source")
    opening = [tokenizer.bos] if spec.bos else []
    items = read_documents(corpus, spec.source, job.input("inventory"), spec.folder)
    for item, ids in _encoded(items, tokenizer):
        if corpus.limit_documents is not None and tally.documents >= corpus.limit_documents:
            return
        if corpus.limit_tokens is not None and tally.tokens >= corpus.limit_tokens:
            return
        if isinstance(item, Skipped):
            tally.skipped[item.cause] += 1
            continue
        ids = np.concatenate([np.array(opening, dtype=np.int64), ids])
        if len(ids) < max(corpus.minimum_tokens, 1):
            tally.skipped["short"] += 1
            continue
        tally.write(item.id, ids, subset=item.subset, text_bytes=len(item.text.encode()))
        tally.report()


def _encoded(
    items: Iterable[Document | Skipped], tokenizer: LoadedTokenizer
) -> Iterator[tuple[Document | Skipped, np.ndarray]]:
    """Yield every item with its ids (none for skipped ones), in order, encoded in batches."""
    for batch in _batches(items):
        texts = [item.text for item in batch if isinstance(item, Document)]
        encoded = iter(tokenizer.encode_batch(texts))
        for item in batch:
            yield item, next(encoded) if isinstance(item, Document) else np.empty(0, np.int64)


def _batches(items: Iterable[Document | Skipped]) -> Iterator[list[Document | Skipped]]:
    batch: list[Document | Skipped] = []
    characters = 0
    for item in items:
        batch.append(item)
        characters += len(item.text) if isinstance(item, Document) else 0
        if characters >= _BATCH_CHARACTERS or len(batch) >= _BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _write_recall(
    job: Job, corpus: RecallCorpus, tokenizer: LoadedTokenizer, tally: _Tally
) -> None:
    if (tokenizer.bos, tokenizer.eos) != (recall.BOS, recall.MARKER):
        raise StageError(
            f"corpus: recall documents need a tokenizer whose BOS and EOS are {recall.BOS} and "
            f"{recall.MARKER} (one trained here); this one has {tokenizer.bos} and {tokenizer.eos}"
        )
    spec: TokenizeJob = job.spec
    filler = recall.filler_of(Tokens(job.input("filler")))
    for index in range(corpus.documents):
        ids = recall.document(corpus, index, filler, tokenizer.reserved)
        if spec.bos:  # in place of the last token: the length stays what the spec says
            ids = np.concatenate([[recall.BOS], ids[:-1]])
        tally.write(f"recall-{index}", ids, subset=None, text_bytes=0)
        tally.report()
