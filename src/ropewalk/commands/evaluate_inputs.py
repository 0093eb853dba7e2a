"""What `ropewalk evaluate` reads: a checkpoint, and text or tokens that belong to it."""

import argparse
import dataclasses
import glob
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ropewalk.base.files import sha256_file
from ropewalk.base.manifest import MANIFEST, Manifest, read_manifest, recipe_id
from ropewalk.base.spec import SpecError
from ropewalk.base.stage import StageError
from ropewalk.commands import by_hand, train_inputs
from ropewalk.commands.flags import Run, given, refuse
from ropewalk.commands.train_inputs import Corpus, Data
from ropewalk.data import imports
from ropewalk.data.encoding import TOKENIZER
from ropewalk.data.entries import format_of, read_entries
from ropewalk.data.spec import (
    DocumentCorpus,
    ImportedTokenizer,
    InventoryJob,
    JsonlSource,
    Split,
    TokenizeJob,
    TokenizerJob,
)
from ropewalk.model.readers import built, foreign_attention
from ropewalk.model.spec import Architecture, Rope
from ropewalk.model.weights import listed

_NAME = "by-hand"  # of the only source of an evaluation by flags
_SPLIT: Split = "test"
_WEIGHTS = (*train_inputs.SMALL, "*.safetensors")
_TEXT_FLAGS = ("text_field", "prompt", "target_field", "text_tokens", "target_tokens")
_ENCODING = ("vocabulary_size", "bos", "eos", "opening", "closing", "reserved_tokens")
_TOKENIZER_FLAGS = ("scheme", "bos")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A checkpoint."""

    name: str  # as it was given
    folder: Path
    revision: str | None  # of a model of the hub: its commit
    family: str  # model_type of its config
    architecture: Architecture | None  # None: ropewalk does not build it, transformers does
    rope: Rope | None  # its own, likewise
    numerics: Mapping[str, str]  # that transformers' class decides in place of the flags
    window_tokens: int | None  # that its config states
    vocabulary_size: int | None
    weights: str  # fingerprint
    config: str  # sha256 of config.json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
    """Files of documents, or a folder of tokens, or nothing."""

    files: tuple[Path, ...] = ()
    tokens: Data | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """What stands before any token is made: what the tokens will be is decided by it."""

    tokenizer: Manifest
    inventory: Manifest | None = None  # of files
    job: TokenizeJob | None = None  # of files
    tokens: Manifest | None = None  # of a folder

    @property
    def identity(self) -> str:
        """Return what the tokens are: of files their recipe, of a folder their content."""
        if self.job is None or self.inventory is None:
            return "" if self.tokens is None else self.tokens.content
        made_from = {"inventory": self.inventory, "tokenizer": self.tokenizer}
        return recipe_id("tokenize", self.job, made_from)

    @property
    def encoding(self) -> dict[str, Any]:
        """Return all that the tokenizer decides: the sha256 of tokenizer.json, special tokens."""
        sha256 = next(file.sha256 for file in self.tokenizer.files if file.path == TOKENIZER)
        return {"sha256": sha256, **{name: self.tokenizer.result.get(name) for name in _ENCODING}}

    @property
    def files(self) -> list[Mapping[str, Any]]:
        """Return name, bytes and sha256 of every file of documents, or of every shard."""
        if self.inventory is not None:
            listed = read_entries(self.inventory, _SPLIT)
            return [{"name": e.path, "bytes": e.bytes, "sha256": e.sha256} for e in listed]
        shards = self.tokens.files if self.tokens is not None else ()
        return [{"name": f.path, "bytes": f.bytes, "sha256": f.sha256} for f in shards]


def model(options: argparse.Namespace) -> Model:
    """Return the model of the flags.

    Raises:
        SpecError: if it is absent, holds no safetensors, transformers does not know it, or its
            config is one of ropewalk's that was changed.
    """
    name: str = options.model
    place = train_inputs.checkpoint(options, files=_WEIGHTS)
    found = train_inputs.config(name, place)
    try:
        own = built(found)
        weights = train_inputs.fingerprint(listed(place))
    except (StageError, SpecError) as error:
        raise SpecError(f"--model {name}: {error}") from None
    text = found.get_text_config(decoder=True)
    return Model(
        name=name,
        folder=place,
        revision=place.name if name.startswith(train_inputs.HUB) else None,
        family=found.model_type,
        architecture=None if own is None else own[0],
        rope=None if own is None else own[1],
        numerics={} if own is not None else {"attention": foreign_attention(found)},
        window_tokens=getattr(text, "max_position_embeddings", None),
        vocabulary_size=getattr(text, "vocab_size", None),
        weights=weights,
        config=sha256_file(place / "config.json"),
    )


def text(options: argparse.Namespace, start: Model, *, needed: bool) -> tuple[Text, str | None]:
    """Return what --data names, and a remark on its tokenizer where there is one to make.

    Raises:
        SpecError: for a file that is absent, empty or of an unknown kind, tokens that are not the
            model's, or text where none is read (`needed` is whether the protocol reads any).
    """
    paths: Sequence[Path] = options.data or ()
    if not needed:
        refuse(options, ("data", *_TEXT_FLAGS), f"is not for --protocol {options.protocol}")
        return Text(), None
    if not paths:
        raise SpecError(
            f"--data is missing: --protocol {options.protocol} reads text; give files of documents "
            "(.jsonl, .txt, .parquet, .arrow), or a folder that `ropewalk tokenize` left"
        )
    folders = [path for path in paths if path.is_dir()]
    if folders:
        if len(paths) > 1:
            raise SpecError(f"--data {folders[0]}: a folder of tokens is read alone")
        refuse(
            options,
            (*_TEXT_FLAGS, *_TOKENIZER_FLAGS, "damaged_limit"),
            "is for files of documents; these are tokens already",
        )
        return _tokens(options, folders[0], start)
    for number, path in enumerate(paths):
        if not path.is_file():
            raise SpecError(f"--data {path}: no such file")
        if not path.stat().st_size:
            raise SpecError(f"--data {path}: the file is empty")
        if any(path.samefile(other) for other in paths[:number]):
            raise SpecError(f"--data {path} is given twice")
        try:
            format_of(path.name)
        except StageError:
            raise SpecError(
                f"--data {path}: a file that ends so is not read; .jsonl, .json and .txt (also "
                "with .gz or .zst), .parquet and .arrow are, and folders that `ropewalk tokenize` "
                "left"
            ) from None
    return Text(files=tuple(path.absolute() for path in paths)), None


def _tokens(options: argparse.Namespace, folder: Path, start: Model) -> tuple[Text, str | None]:
    if not (folder / MANIFEST).is_file():
        raise SpecError(
            f"--data {folder}: no {MANIFEST} there; give files of documents, or a folder that "
            "`ropewalk tokenize` left (its --out)"
        )
    tokens = train_inputs.tokens_in(folder)
    place = options.tokenizer or folder / "tokenizer"
    tokenizer = train_inputs.tokenizer_of(place, folder, tokens)
    corpus = Corpus(name=folder.resolve().name, tokens=tokens, weight=1.0)
    read = Data(corpora=(corpus,), tokenizer=tokenizer)
    if start.vocabulary_size is None:
        return Text(tokens=read), None
    remark = train_inputs.same_tokenizer(start.name, start.folder, start.vocabulary_size, read)
    return Text(tokens=read), remark


def check_tokenizer(options: argparse.Namespace, start: Model) -> None:
    """Refuse a checkpoint without a tokenizer that can be read, before anything is written.

    Raises:
        SpecError: naming the folder and what to give.
    """
    try:
        imports.read(_tokenizer(options, start))
    except StageError as error:
        where = "--tokenizer" if options.tokenizer else f"--model {start.name}"
        remedy = "" if options.tokenizer else "; if it lies elsewhere, give it as --tokenizer"
        reason = str(error).removeprefix("tokenizer.path: ")
        raise SpecError(f"{where}: its tokenizer cannot be read: {reason}{remedy}") from None


def _tokenizer(options: argparse.Namespace, start: Model) -> ImportedTokenizer:
    return given(
        ImportedTokenizer,
        {
            "path": str(options.tokenizer or start.folder),
            "scheme": options.scheme,
            "bos": options.bos,
            "eos": False,  # a text ends where it ends
        },
    )


def prepare(
    options: argparse.Namespace, start: Model, found: Text, work: Path, run: Run
) -> Prepared:
    """Make inventory and tokenizer below `work`, or check the folder of tokens.

    Raises:
        SpecError: for flags that name no source, tokenizer or prompt that can be.
        StageError: if a tokenizer or a file of documents cannot be read.
        ArtifactError: for a damaged folder of tokens.
    """
    if found.tokens is not None:
        (corpus,) = found.tokens.corpora
        return Prepared(
            tokenizer=read_manifest(found.tokens.tokenizer.folder / MANIFEST),
            tokens=read_manifest(corpus.tokens.folder / MANIFEST),
        )
    job = TokenizerJob(tokenizer=_tokenizer(options, start))
    tokenizer = run("tokenizer", job, work / "tokenizer", {})
    if not found.files:
        return Prepared(tokenizer=tokenizer)
    source, folder = _source(options, found.files)
    inventory = run("inventory", InventoryJob(source=source, folder=folder), work / "inventory", {})
    corpus = given(
        DocumentCorpus,
        {
            "source": _NAME,
            "split": _SPLIT,
            "damaged_limit": options.damaged_limit or 0,
            "prompt": by_hand.prompt(options),
        },
    )
    return Prepared(
        tokenizer=tokenizer,
        inventory=inventory,
        job=TokenizeJob(corpus=corpus, source=source, folder=folder),
    )


def _source(options: argparse.Namespace, files: Sequence[Path]) -> tuple[JsonlSource, str]:
    """Return the files as a source, and the folder they lie below."""
    folder = Path(os.path.commonpath([file.parent for file in files]))
    source = given(
        JsonlSource,
        {
            "kind": JsonlSource.kind,
            "location": _NAME,
            "text_field": options.text_field,
            _SPLIT: [glob.escape(file.relative_to(folder).as_posix()) for file in files],
        },
    )
    return dataclasses.replace(source, train=(), validation=()), str(folder)


def tokenized(prepared: Prepared, work: Path, run: Run) -> Manifest:
    """Return the tokens, made below `work` where they are of files.

    Raises:
        StageError: if no document is left.
    """
    if prepared.tokens is not None:
        return prepared.tokens
    if prepared.job is None:
        return Manifest(
            stage="tokenize",
            recipe="",
            content="",
            spec={},
            inputs={},
            files=(),
            result={"documents": 0, "tokens": 0},
            folder=work,
        )
    made_from = {name: work / name / MANIFEST for name in ("inventory", "tokenizer")}
    made = run("tokenize", prepared.job, work / "tokens", made_from)
    if not made.result["documents"]:
        causes = ", ".join(f"{n} {cause}" for cause, n in made.result["skipped"].items())
        raise StageError(f"--data: no document is left ({causes or 'the files hold none'})")
    return made
