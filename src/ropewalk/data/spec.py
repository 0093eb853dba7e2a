"""What the data room can be asked for. Lengths are in tokens unless the name says otherwise."""

import dataclasses
from typing import Literal

from ropewalk.base.canonical import EXECUTION

SPLITS = ("train", "validation", "test")
Split = Literal["train", "validation", "test"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PythonSource:
    """The Python files of installed, pinned distributions: real text on every machine."""

    kind: Literal["python_source"] = "python_source"
    distributions: tuple[str, ...]  # names on the package index, read by their installed RECORD
    minimum_bytes: int = 1000  # shorter files are left out
    near_duplicate_jaccard: float = 0.7  # similarity of 8-token shingles at which a file is dropped
    validation_share: float = 0.03  # of the files, by hash of their content
    test_share: float = 0.06


@dataclasses.dataclass(frozen=True, kw_only=True)
class JsonlSource:
    """Documents in JSON lines, plain or compressed (.gz, .zst), one file list per split."""

    kind: Literal["jsonl"] = "jsonl"
    location: str  # the name under `locations` in config.yaml that holds the folder
    train: tuple[str, ...] = ()  # glob patterns below the folder
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    text_field: str = "text"


Source = PythonSource | JsonlSource


@dataclasses.dataclass(frozen=True, kw_only=True)
class DocumentCorpus:
    """Documents of a source, chosen by split and filters."""

    kind: Literal["documents"] = "documents"
    source: str  # name of a source
    split: Split
    minimum_tokens: int = 0  # shorter documents are left out
    sample: float | None = None
    # Share of the documents that is kept, by hash(seed, id of the document): a draw from all files,
    # independent of their order. A limit alone reads the first files of the order whole and the
    # rest not at all, which is no sample where files differ in kind.
    limit_documents: int | None = None  # the first ones, in the order that the seed gives
    limit_tokens: int | None = None  # documents are taken until this many tokens are reached
    seed: int = 0
    # Files come in the order of hash(seed, path). A Python file is a document; the documents of a
    # JSON lines file keep the order of the file, so that any file is read once, as a stream.

    def __post_init__(self) -> None:
        if self.sample is not None and not 0 < self.sample <= 1:
            raise ValueError(f"sample {self.sample} must lie above 0 and not above 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecallCorpus:
    """Synthetic recall documents: marked key-value pairs in a stream, keys asked for again later.

    Built on token ids of a tokenizer, with filler cut from another corpus, so that small models can
    learn to retrieve at all.
    """

    kind: Literal["recall"] = "recall"
    filler: str  # corpus whose tokens separate the pairs
    documents: int
    length_tokens: int  # of every document
    keys: int = 64  # distinct key tokens, and as many value tokens
    pairs: tuple[int, int] = (2, 12)  # distinct keys in one document, inclusive range
    filler_share: tuple[float, float] = (0.0, 0.6)
    # chance that the next element is filler and not a pair: drawn per document from this range, so
    # that some documents ask often (retrieval starts to form) and some ask from afar
    filler_longest_tokens: int = 192  # lengths of filler pieces are log-uniform from 1 to this
    seed: int = 0


Corpus = DocumentCorpus | RecallCorpus


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainedTokenizer:
    """Byte-level BPE trained here on a corpus."""

    kind: Literal["bpe"] = "bpe"
    corpus: str  # what it is trained on
    vocabulary_size: int
    training_bytes: int  # how much text is read
    reserved_tokens: int = 0  # of the vocabulary: never in text, for recall documents


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportedTokenizer:
    """A tokenizer that exists: a folder or `tokenizer.json` on disk, or a name on the hub."""

    kind: Literal["imported"] = "imported"
    path: str | None = None
    hub: str | None = None
    revision: str | None = None  # of the hub repository
    vocabulary_size: int  # what the model's embedding expects; checked


Tokenizer = TrainedTokenizer | ImportedTokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Share:
    """One corpus of a mixture."""

    corpus: str
    weight: float  # share of the windows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Windows:
    """Training sequences of one length, cut from one or more corpora."""

    mixture: tuple[Share, ...]  # weights are normalised
    tokenizer: str
    policy: Literal["concat", "documents", "per_document"] = "concat"
    seed: int = 0  # row order


# What the stages are given: the plan puts the named parts together.


@dataclasses.dataclass(frozen=True, kw_only=True)
class InventoryJob:
    """Stage `inventory`: list the files of a source."""

    source: Source
    folder: str | None = dataclasses.field(
        default=None, metadata=EXECUTION
    )  # where a `location` lies


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerJob:
    """Stage `tokenizer`: train or import a tokenizer."""

    tokenizer: Tokenizer
    source: Source | None = None  # for training
    corpus: DocumentCorpus | None = None
    folder: str | None = dataclasses.field(
        default=None, metadata=EXECUTION
    )  # where the source's `location` lies


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizeJob:
    """Stage `tokenize`: one corpus under one tokenizer, into Arrow shards."""

    corpus: Corpus
    source: Source | None = None  # for documents
    folder: str | None = dataclasses.field(
        default=None, metadata=EXECUTION
    )  # where the source's `location` lies
    bos: bool = True  # a BOS token opens every document
    shard_tokens: int = 8_388_608  # a shard is closed after this many tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackJob:
    """Stage `pack`: cut windows of one length from the tokens of a mixture."""

    windows: Windows
    length_tokens: int
