"""The documents of a corpus, one after another, in an order that depends on the spec alone."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

from ropewalk.base.manifest import Manifest
from ropewalk.base.rng import fraction
from ropewalk.data.entries import Entry, read_entries
from ropewalk.data.readers import Damage, Record, records, single
from ropewalk.data.spec import DocumentCorpus, PythonSource, Source

Cause = Literal[
    Damage,
    "missing_text",  # no text under the field's name, or something else than text
    "empty",
    "other_subset",  # not of the subsets the corpus names
    "not_sampled",
    "short",  # fewer than the corpus's minimum of tokens
    "unbroken",  # so long without a place to cut that encoding it would take unbounded memory
]
DAMAGED: frozenset[str] = frozenset({*get_args(Damage), "missing_text"})
# Where known data sets write the name of the part a document comes from.
_SUBSET_FIELDS = ("meta.pile_set_name", "meta.redpajama_set_name", "meta.subset_name")


class Place(NamedTuple):
    """Where a record stands in what a job reads."""

    file: int  # of the job's files, in the order it reads them
    record: int  # of the file


START = Place(0, 0)


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """One text."""

    id: str  # path of a file that is one document, else `path:record` (from 0)
    text: str  # never empty, always encodable as UTF-8
    subset: str | None  # the part of the data set it comes from
    target: str | None  # what is learned after a prompt; None in a corpus without prompt
    place: Place


@dataclasses.dataclass(frozen=True, slots=True)
class Skipped:
    """A record that gives no document; it is counted, never silently gone."""

    id: str
    cause: Cause
    reason: str  # what the parser said; empty where the cause says it all
    place: Place


def entries_of(corpus: DocumentCorpus, inventory: Manifest, part: int = 0) -> list[Entry]:
    """Return the files that one part of a corpus reads, in their order.

    Files come in the order of hash(corpus.seed, path). A part is a run of them: part p of P has the
    files whose middle lies in the p-th P-th of all bytes, so that parts are about equal and their
    order is that of the whole.
    """
    entries = read_entries(inventory, corpus.split)
    entries.sort(key=lambda entry: (fraction(corpus.seed, "order", entry.path), entry.path))
    return entries if corpus.parts == 1 else _parts(entries, corpus.parts)[part]


def _parts(entries: Sequence[Entry], parts: int) -> list[list[Entry]]:
    total = sum(entry.bytes for entry in entries)
    found: list[list[Entry]] = [[] for _ in range(parts)]
    before = 0
    for entry in entries:
        middle = 2 * before + entry.bytes  # twice the middle, to stay in whole numbers
        found[min(middle * parts // (2 * total), parts - 1) if total else 0].append(entry)
        before += entry.bytes
    return found


def documents(
    corpus: DocumentCorpus,
    source: Source,
    entries: Sequence[Entry],
    folder: str | None = None,
    start: Place = START,
) -> Iterator[Document | Skipped]:
    """Yield the documents of some files, with a `Skipped` in the place of every other record.

    `folder` is where a source of files lies; `start` is the first record to look at. Limits and
    minimum_tokens are not applied here: they count tokens.

    Raises:
        StageError: if a file is not the one the inventory lists, or cannot be read to its end.
    """
    choose = _Choice(corpus, source)
    for number, entry in enumerate(entries[start.file :], start=start.file):
        first = start.record if number == start.file else 0
        one = single(source, entry)
        wanted = None if corpus.sample is None else choose.sampler(entry, one)
        also = () if corpus.prompt is None else (corpus.prompt.target_field,)
        # `map` lets go of a record when it hands it on, where a loop would hold it while the next
        # one is read; both may have hundreds of megabytes.
        found = records(source, entry, folder, first=first, wanted=wanted, also=also)
        yield from map(functools.partial(choose, number, entry, one), found)


class _Choice:
    """Decides of every record what it is."""

    def __init__(self, corpus: DocumentCorpus, source: Source) -> None:
        self._corpus = corpus
        self._python = isinstance(source, PythonSource)
        self._text = "text" if isinstance(source, PythonSource) else source.text_field
        self._subset_fields: tuple[str, ...] = ()
        self._by_folder = False
        if not isinstance(source, PythonSource):
            named = source.subset_field
            self._subset_fields = _SUBSET_FIELDS if named is None else (named,)
            self._by_folder = getattr(source, "subset_folder", False)
        self._filters = corpus.subsets is not None or bool(corpus.excluded_subsets)

    def sampler(self, entry: Entry, one: bool) -> Any:
        seed, share = self._corpus.seed, self._corpus.sample

        def wanted(number: int) -> bool:
            identifier = entry.path if one else f"{entry.path}:{number}"
            return share is None or fraction(seed, "sample", identifier) < share

        return wanted

    def __call__(self, file: int, entry: Entry, one: bool, record: Record) -> Document | Skipped:
        identifier = entry.path if one else f"{entry.path}:{record.number}"
        place, fields = Place(file, record.number), record.fields
        if fields is None:
            if record.damage is None:
                return Skipped(identifier, "not_sampled", "", place)
            return Skipped(identifier, record.damage, record.reason, place)
        subset = self._subset(fields, entry)
        if self._filters and not self._chosen(subset):
            return Skipped(identifier, "other_subset", subset or "no subset", place)
        text = field(fields, self._text)
        if not isinstance(text, str):
            return Skipped(identifier, "missing_text", _lacks(fields, self._text, text), place)
        if not text:
            return Skipped(identifier, "empty", "", place)
        target = None
        if self._corpus.prompt is not None:
            name = self._corpus.prompt.target_field
            target = field(fields, name)
            if not isinstance(target, str):
                return Skipped(identifier, "missing_text", _lacks(fields, name, target), place)
            if not target:
                return Skipped(identifier, "empty", f"{name} is empty", place)
        if not _encodable(text) or not _encodable(target):
            return Skipped(identifier, "invalid_unicode", "half a surrogate pair", place)
        return Document(identifier, text, subset, target, place)

    def _subset(self, fields: Mapping[str, Any], entry: Entry) -> str | None:
        if self._python:
            return entry.distribution
        for name in self._subset_fields:
            found = field(fields, name)
            if isinstance(found, str):
                return found
        if self._by_folder and "/" in entry.path:
            return entry.path.partition("/")[0]
        return None

    def _chosen(self, subset: str | None) -> bool:
        corpus = self._corpus
        return subset not in corpus.excluded_subsets and (
            corpus.subsets is None or subset in corpus.subsets
        )


def field(fields: Mapping[str, Any], path: str) -> Any:
    """Return the value under a dotted key path such as `meta.pile_set_name`, None if absent."""
    if path in fields:
        return fields[path]
    value: Any = fields
    for key in path.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value


def _lacks(fields: Mapping[str, Any], name: str, found: Any) -> str:
    if found is None:
        return f"no {name!r} among {', '.join(map(repr, list(fields)[:8])) or 'no keys'}"
    return f"{name!r} is {type(found).__name__}, not text"


def _encodable(text: str | None) -> bool:
    """Return whether UTF-8 can spell a text; JSON can spell half a surrogate pair."""
    if text is None or text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
