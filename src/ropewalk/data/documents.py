"""The documents of a corpus, one after another, in an order that depends on the spec alone."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from ropewalk.base.manifest import Manifest
from ropewalk.base.rng import fraction
from ropewalk.base.stage import StageError
from ropewalk.data.entries import Entry, read_entries
from ropewalk.data.lines import read_lines
from ropewalk.data.spec import DocumentCorpus, JsonlSource, PythonSource, Source

Cause = Literal["malformed_json", "missing_text", "invalid_unicode", "empty"]
# Where known data sets write the name of the part a document comes from, inside `meta`.
_SUBSET_KEYS = ("pile_set_name", "redpajama_set_name", "subset_name")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Document:
    """One text."""

    id: str  # path of a Python file, or `path:line` (from 0) of a JSON line
    text: str  # never empty, always encodable as UTF-8
    subset: str | None  # distribution of a Python file, or the part of a data set
    index: int  # place in the corpus, from 0; skipped records have a place too, others none


@dataclasses.dataclass(frozen=True, kw_only=True)
class Skipped:
    """A record that is no usable document; it is counted, never silently gone."""

    id: str
    cause: Cause
    index: int


def read_documents(
    corpus: DocumentCorpus, source: Source, inventory: Manifest, folder: str | None = None
) -> Iterator[Document | Skipped]:
    """Yield the documents of a corpus, with a `Skipped` in the place of each unusable record.

    Files come in the order of hash(corpus.seed, path), the records of a JSON lines file in file
    order; `corpus.sample` keeps a record by hash(corpus.seed, id). `folder` is where a JSON lines
    source lies. Limits and minimum_tokens are not applied here: they count tokens.

    Raises:
        StageError: if a file is not the one the inventory lists.
    """
    entries = read_entries(inventory, corpus.split)
    entries.sort(key=lambda entry: (fraction(corpus.seed, "order", entry.path), entry.path))

    def kept(identifier: str) -> bool:
        share = corpus.sample
        return share is None or fraction(corpus.seed, "sample", identifier) < share

    if isinstance(source, PythonSource):
        yield from _python_documents([entry for entry in entries if kept(entry.path)])
        return
    if folder is None:
        raise StageError(
            f"locations.{source.location} is not set in config.yaml: set it to the folder with "
            "the data"
        )
    yield from _jsonl_documents(source, entries, Path(folder), kept)


def _python_documents(entries: list[Entry]) -> Iterator[Document | Skipped]:
    installed: dict[str, metadata.Distribution] = {}
    for index, entry in enumerate(entries):
        name = entry.distribution or ""
        try:
            if name not in installed:
                installed[name] = metadata.distribution(name)
            content = Path(str(installed[name].locate_file(entry.path))).read_bytes()
        except (metadata.PackageNotFoundError, FileNotFoundError, ValueError):
            raise StageError(
                f"{name}: {entry.path} is in the inventory but no longer installed; install the "
                "version of the inventory, or make the inventory again"
            ) from None
        if hashlib.sha256(content).hexdigest() != entry.sha256:
            raise StageError(
                f"{name}: {entry.path} changed after the inventory was made; make the inventory "
                "again"
            )
        yield _checked(entry.path, content.decode("utf-8"), name, index)


def _jsonl_documents(
    source: JsonlSource, entries: list[Entry], folder: Path, kept: Callable[[str], bool]
) -> Iterator[Document | Skipped]:
    index = 0
    for entry in entries:
        for number, line in enumerate(read_lines(folder / entry.path, entry.sha256)):
            identifier = f"{entry.path}:{number}"
            if line.isspace() or not kept(identifier):  # a blank line holds no record
                continue
            yield _parsed(line, identifier, source.text_field, index)
            index += 1


def _parsed(line: bytes, identifier: str, text_field: str, index: int) -> Document | Skipped:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # not JSON, not UTF-8, or nested without end
        return Skipped(id=identifier, cause="malformed_json", index=index)
    if not isinstance(record, Mapping):
        return Skipped(id=identifier, cause="malformed_json", index=index)
    text = record.get(text_field)
    if not isinstance(text, str):
        return Skipped(id=identifier, cause="missing_text", index=index)
    return _checked(identifier, text, _subset(record), index)


def _checked(identifier: str, text: str, subset: str | None, index: int) -> Document | Skipped:
    if not text:
        return Skipped(id=identifier, cause="empty", index=index)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # JSON can spell half a surrogate pair; no tokenizer can read it
        return Skipped(id=identifier, cause="invalid_unicode", index=index)
    return Document(id=identifier, text=text, subset=subset, index=index)


def _subset(record: Mapping[str, Any]) -> str | None:
    meta = record.get("meta")
    if not isinstance(meta, Mapping):
        return None
    for key in _SUBSET_KEYS:
        if isinstance(meta.get(key), str):
            return meta[key]
    return None
