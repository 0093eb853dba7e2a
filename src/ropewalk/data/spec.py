"""What the data room can be asked for. Lengths are in tokens unless the name says otherwise."""

import dataclasses
from typing import Literal

from ropewalk.base.canonical import EXECUTION

SPLITS = ("train", "validation", "test")
Split = Literal["train", "validation", "test"]
MOST_PARTS = 1000  # jobs of one corpus; the job that gathers them names each on its command line


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
class FileSource:
    """Documents in files below one folder. The ending of a file's name says how it is read.

    `.jsonl` and `.json` are JSON lines, `.txt` is one document per file, both also as `.gz` and
    `.zst`; `.parquet` and `.arrow` hold one document per row. The kinds below are layouts of known
    data sets: they differ in their defaults only.
    """

    location: str  # the name under `locations` in config.yaml that holds the folder
    train: tuple[str, ...] = ()  # glob patterns below the folder
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    text_field: str = "text"
    subset_field: str | None = None  # where a record names its subset: `meta.pile_set_name`
    subset_folder: bool = False  # the first folder of a file's path names the subset


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pile(FileSource):
    """The Pile as it was distributed."""

    kind: Literal["pile"] = "pile"
    train: tuple[str, ...] = ("train/*.jsonl.zst",)
    validation: tuple[str, ...] = ("val.jsonl.zst",)
    test: tuple[str, ...] = ("test.jsonl.zst",)
    subset_field: str | None = "meta.pile_set_name"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlimPajama(FileSource):
    """SlimPajama-627B as it lies on the hub."""

    kind: Literal["slimpajama"] = "slimpajama"
    train: tuple[str, ...] = ("train/chunk*/*.jsonl.zst",)
    validation: tuple[str, ...] = ("validation/chunk*/*.jsonl.zst",)
    test: tuple[str, ...] = ("test/chunk*/*.jsonl.zst",)
    subset_field: str | None = "meta.redpajama_set_name"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RedPajama(FileSource):
    """RedPajama-Data-1T: one folder per subset, training data only."""

    kind: Literal["redpajama"] = "redpajama"
    train: tuple[str, ...] = ("**/*.jsonl", "**/*.jsonl.zst", "**/*.jsonl.gz")
    subset_folder: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProofPile(FileSource):
    """hoskinson-center/proof-pile."""

    kind: Literal["proof_pile"] = "proof_pile"
    train: tuple[str, ...] = ("train/*.jsonl.gz",)
    validation: tuple[str, ...] = ("dev/*.jsonl.gz",)
    test: tuple[str, ...] = ("test/*.jsonl.gz",)
    subset_field: str | None = "meta.subset_name"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PG19(FileSource):
    """PG-19 as it was distributed: a text file per book."""

    kind: Literal["pg19"] = "pg19"
    train: tuple[str, ...] = ("train/*.txt",)
    validation: tuple[str, ...] = ("validation/*.txt",)
    test: tuple[str, ...] = ("test/*.txt",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GovReport(FileSource):
    """GovReport in the form of SCROLLS: `input` is the report, `output` its summary."""

    kind: Literal["govreport"] = "govreport"
    train: tuple[str, ...] = ("train.jsonl",)
    validation: tuple[str, ...] = ("validation.jsonl",)
    test: tuple[str, ...] = ("test.jsonl",)
    text_field: str = "input"


@dataclasses.dataclass(frozen=True, kw_only=True)
class JsonlSource(FileSource):
    """JSON lines in a folder per split."""

    kind: Literal["jsonl"] = "jsonl"
    train: tuple[str, ...] = ("train/**/*.jsonl*", "train*.jsonl*")
    validation: tuple[str, ...] = ("validation/**/*.jsonl*", "validation*.jsonl*")
    test: tuple[str, ...] = ("test/**/*.jsonl*", "test*.jsonl*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParquetSource(FileSource):
    """Parquet files in a folder per split."""

    kind: Literal["parquet"] = "parquet"
    train: tuple[str, ...] = ("train/**/*.parquet",)
    validation: tuple[str, ...] = ("validation/**/*.parquet",)
    test: tuple[str, ...] = ("test/**/*.parquet",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArrowSource(FileSource):
    """Arrow IPC files or streams in a folder per split, as `datasets` saves them to disk."""

    kind: Literal["arrow"] = "arrow"
    train: tuple[str, ...] = ("train/**/*.arrow",)
    validation: tuple[str, ...] = ("validation/**/*.arrow",)
    test: tuple[str, ...] = ("test/**/*.arrow",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSource(FileSource):
    """Text files in a folder per split, one document each."""

    kind: Literal["text"] = "text"
    train: tuple[str, ...] = ("train/**/*.txt*",)
    validation: tuple[str, ...] = ("validation/**/*.txt*",)
    test: tuple[str, ...] = ("test/**/*.txt*",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HubSource:
    """A data set of the Hugging Face hub, streamed through `datasets`."""

    kind: Literal["hf_hub"] = "hf_hub"
    name: str  # `organisation/name`
    revision: str  # a commit; a branch or tag is resolved once, by the inventory
    configuration: str | None = None  # which of its configurations, where it has several
    train: str | None = "train"  # its own names of the splits
    validation: str | None = "validation"
    test: str | None = "test"
    text_field: str = "text"
    subset_field: str | None = None


Source = (
    PythonSource
    | Pile
    | SlimPajama
    | RedPajama
    | ProofPile
    | PG19
    | GovReport
    | JsonlSource
    | ParquetSource
    | ArrowSource
    | TextSource
    | HubSource
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """Fine-tuning documents: a prompt that is read, a target that is learned.

    The four parts (template before the text, text, template after it, target) are encoded each on
    its own, so that cuts are exact numbers of tokens. Only tokens of the target (and the EOS that
    closes it) are trained on.
    """

    template: str  # holds `{text}` once
    target_field: str  # of the record
    text_tokens: int | None = None  # the text is cut to its first tokens
    target_tokens: int | None = None
    closed: bool = False
    # Whether EOS closes every target, also where the tokenizer closes no other document: a model
    # that is to answer must learn where to stop. It comes on top of `target_tokens`.

    def __post_init__(self) -> None:
        if self.template.count("{text}") != 1:
            raise ValueError(f"template {self.template!r} must hold {{text}} once")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DocumentCorpus:
    """Documents of a source, chosen by split and filters."""

    kind: Literal["documents"] = "documents"
    source: str  # name of a source
    split: Split
    subsets: tuple[str, ...] | None = None  # only documents of these
    excluded_subsets: tuple[str, ...] = ()
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
    prompt: Prompt | None = None
    parts: int = 1
    # Jobs that tokenise it: each reads a run of the files in their order, of about equal bytes, and
    # takes its share of the limits. The documents and their order do not depend on it, but for the
    # limits.
    damaged_limit: int = 100
    # Records that cannot be read (not JSON, not UTF-8, without text) are skipped and counted; one
    # more than this is an error.

    def __post_init__(self) -> None:
        if self.sample is not None and not 0 < self.sample <= 1:
            raise ValueError(f"sample {self.sample} must lie above 0 and not above 1")
        if not 1 <= self.parts <= MOST_PARTS:
            raise ValueError(f"parts {self.parts} must be 1 to {MOST_PARTS}")


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
    copy_share: float = 0.0
    # of the documents that show a segment of random tokens again and again in place of pairs, so
    # that copying (induction) forms too
    copy_tokens: tuple[int, int] = (8, 96)  # of a segment: log-uniform, inclusive range
    seed: int = 0

    @property
    def parts(self) -> int:
        """Return 1: synthetic documents are made in one job."""
        return 1


Corpus = DocumentCorpus | RecallCorpus


Engine = Literal["fast", "tokenizers"]
# What encodes: an engine that is checked against the library `tokenizers`, where it can do the
# vocabulary exactly, or that library alone. The token ids are the same.


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainedTokenizer:
    """Byte-level BPE trained here on a corpus."""

    kind: Literal["bpe"] = "bpe"
    corpus: str  # what it is trained on
    vocabulary_size: int
    training_bytes: int  # how much text is read
    reserved_tokens: int = 0  # of the vocabulary: never in text, for recall documents
    bos: bool = True  # a BOS token opens every document
    eos: bool = False  # an EOS token closes every document
    engine: Engine = "fast"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportedTokenizer:
    """A tokenizer that exists, on disk or on the hub.

    `path` is a `tokenizer.json`, a SentencePiece `.model`, a file of tiktoken ranks, or a folder
    with one of them.
    """

    kind: Literal["imported"] = "imported"
    path: str | None = dataclasses.field(default=None, metadata=EXECUTION)
    # Exactly one of path and hub. Where a file lies is no part of what it is: tokens made with it
    # carry the hash of its content.
    hub: str | None = None
    revision: str | None = None  # of the hub repository
    scheme: Literal["llama3"] | None = None
    # split pattern and special tokens of a tiktoken file, which holds ranks only
    vocabulary_size: int | None = None  # what the model's embedding expects; None: its own size
    bos: bool | None = None  # a BOS token opens every document; None: as the tokenizer does itself
    eos: bool | None = None  # an EOS token closes every document; None: likewise
    engine: Engine = "fast"

    def __post_init__(self) -> None:
        if (self.path is None) == (self.hub is None):
            raise ValueError("exactly one of path and hub must be given")


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
    """Stage `tokenize`: one part of a corpus under one tokenizer, into Arrow shards."""

    corpus: Corpus
    part: int = 0  # of corpus.parts
    source: Source | None = None  # for documents
    folder: str | None = dataclasses.field(
        default=None, metadata=EXECUTION
    )  # where the source's `location` lies
    shard_tokens: int = 8_388_608  # a shard is closed after this many tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class GatherJob:
    """Stage `gather`: the parts of a corpus, together."""

    parts: int
    damaged_limit: int  # as the corpus has it, over all parts


def gather_job(corpus: Corpus) -> GatherJob:
    """Return what stage `gather` is given for a corpus."""
    limit = corpus.damaged_limit if isinstance(corpus, DocumentCorpus) else 0
    return GatherJob(parts=corpus.parts, damaged_limit=limit)


def part_name(part: int) -> str:
    """Return the folder of a part below `parts`; names sort as numbers do."""
    return f"{part:05d}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackJob:
    """Stage `pack`: cut windows of one length from the tokens of a mixture."""

    windows: Windows
    length_tokens: int
