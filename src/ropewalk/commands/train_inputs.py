"""What `ropewalk train` starts from: a model and tokens, checked to belong together."""

import argparse
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from tokenizers import Tokenizer
from transformers import AutoConfig

from ropewalk.base.canonical import digest
from ropewalk.base.manifest import MANIFEST, Manifest, read_manifest
from ropewalk.base.spec import SpecError
from ropewalk.base.stage import StageError
from ropewalk.commands.flags import refuse
from ropewalk.data.encoding import TOKENIZER
from ropewalk.data.imports import read
from ropewalk.data.spec import ImportedTokenizer, part_name
from ropewalk.model.config import architecture_of, rope_of
from ropewalk.model.spec import Architecture, Rope
from ropewalk.model.weights import listed
from ropewalk.train.spec import PublishedWeights, ScratchWeights, Weights

HUB, _SCRATCH, _CONFIG = "hub:", "scratch:", "config.json"
SMALL = ("*.json", "*.model")  # files of a hub repository: config and tokenizer
_SAMPLES, _SAMPLE_BYTES = 64, 1 << 16  # of a weight file


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """Where a run starts."""

    name: str  # as it was given
    weights: Weights
    folder: Path  # of config and tokenizer; of the weights too, unless they come from the hub
    architecture: Architecture
    rope: Rope

    @property
    def weights_folder(self) -> str | None:
        """Return where its weights lie on this machine, None where they do not."""
        here = isinstance(self.weights, PublishedWeights) and self.weights.hub is None
        return str(self.folder) if here else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
    """The tokens of one corpus."""

    name: str
    tokens: Manifest
    weight: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """What a run reads."""

    corpora: tuple[Corpus, ...]
    tokenizer: Manifest


def model(
    options: argparse.Namespace, weight_files: Callable[[Path], Iterable[Path]] = listed
) -> Model:
    """Return the model of the flags; architecture and rope are what its config says.

    `weight_files` says which files of a folder are its weights.

    Raises:
        SpecError, StageError: if it is absent, holds no safetensors, or is of another family.
    """
    name: str = options.model
    if name.startswith(_SCRATCH):
        refuse(options, ("model_revision",), f"is for --model {HUB}NAME")
        place = Path(name.removeprefix(_SCRATCH))
    else:
        place = checkpoint(options, also=f"or {_SCRATCH}{_CONFIG} for random weights")
    found = config(name, place)
    weights: Weights
    if name.startswith(HUB):
        # The commit, so that the run stays what it is when the name moves on.
        weights = PublishedWeights(hub=name.removeprefix(HUB), revision=place.name)
    elif name.startswith(_SCRATCH):
        weights = ScratchWeights(seed=options.seed)
    else:
        weights = PublishedWeights(location=f"by-hand@{fingerprint(weight_files(place))}")
    return Model(
        name=name,
        weights=weights,
        folder=place,
        architecture=architecture_of(found),
        rope=rope_of(found),
    )


def checkpoint(
    options: argparse.Namespace, *, files: Sequence[str] = SMALL, also: str = ""
) -> Path:
    """Return the folder of a Hugging Face checkpoint; one of the hub is named like its commit.

    Of a hub repository `files` are downloaded; `also` says what else --model may be.

    Raises:
        SpecError: if it is absent.
    """
    name: str = options.model
    if name.startswith(HUB):
        return _downloaded(name.removeprefix(HUB), options.model_revision, files)
    refuse(options, ("model_revision",), f"is for --model {HUB}NAME")
    if not Path(name).is_dir():
        hub = f"{HUB}NAME for a model of the hub"
        raise SpecError(
            f"--model {name}: no such folder; give a Hugging Face folder, "
            + (f"{hub}, {also}" if also else f"or {hub}")
        )
    return Path(name)


def config(name: str, place: Path) -> Any:
    """Return the transformers config in a folder, or in a file of its own.

    Raises:
        SpecError: if there is none, or it cannot be read.
    """
    file = place / _CONFIG if place.is_dir() else place
    if not file.is_file():
        raise SpecError(f"--model {name}: {file} does not exist")
    try:
        return AutoConfig.from_pretrained(file, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise SpecError(f"--model {name}: {file} cannot be read: {error}") from None


def fingerprint(weight_files: Iterable[Path]) -> str:
    """Return a digest of the weights of a model, wherever they lie.

    It is part of what a run is. Of every file it takes name, size and 64 evenly spaced samples of
    64 KiB: seconds for what would take minutes, and training moves every weight.
    """
    found = []
    for file in weight_files:
        size = file.stat().st_size
        sampled = hashlib.sha256()
        with file.open("rb") as stream:
            for number in range(_SAMPLES):
                stream.seek(max(0, size - _SAMPLE_BYTES) * number // (_SAMPLES - 1))
                sampled.update(stream.read(_SAMPLE_BYTES))
        found.append([file.name, size, sampled.hexdigest()])
    return digest(found)


def _downloaded(hub: str, revision: str | None, files: Sequence[str]) -> Path:
    """Return the folder with some files of a hub repository, named like its commit."""
    try:
        return Path(
            huggingface_hub.snapshot_download(
                hub,
                revision=revision,
                allow_patterns=list(files),
                ignore_patterns=["*/*"],
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SpecError(
            f"--model {HUB}{hub}: cannot be downloaded and is not in the local cache ({reason}); "
            "without network give a folder"
        ) from None


def data(options: argparse.Namespace) -> Data:
    """Return the tokens of the flags and their tokenizer.

    Raises:
        SpecError: if a folder holds no tokens, or tokens of another tokenizer than the others.
    """
    folders = [Path(name) for name in options.data]
    weights = options.weight or [1.0] * len(folders)
    if len(weights) != len(folders):
        raise SpecError(
            f"--weight is given {len(weights)} times for {len(folders)} --data: one each"
        )
    made = [tokens_in(folder) for folder in folders]
    places = [options.tokenizer or folder / "tokenizer" for folder in folders]
    tokenizers = [
        tokenizer_of(place, folder, tokens)
        for place, folder, tokens in zip(places, folders, made, strict=True)
    ]
    for folder, found in zip(folders, tokenizers, strict=True):
        if _sha256(found) != _sha256(tokenizers[0]):
            raise SpecError(
                f"--data {folder} and {folders[0]} were made with different tokenizers; tokenise "
                "both with the same"
            )
    names = _names(folders)
    return Data(
        corpora=tuple(
            Corpus(name=name, tokens=tokens, weight=weight)
            for name, tokens, weight in zip(names, made, weights, strict=True)
        ),
        tokenizer=tokenizers[0],
    )


def tokens_in(folder: Path) -> Manifest:
    """Return the manifest of the tokens in a folder; what it lists is not verified.

    Raises:
        SpecError: if there are none.
    """
    if folder.is_file():
        raise SpecError(
            f"--data {folder}: a file; training reads tokens. Make them first: ropewalk tokenize "
            f"--source jsonl --path {folder.parent} --files {folder.name} --tokenizer MODEL_FOLDER "
            "--out TOKENS (--source text for plain text)"
        )
    if not (folder / MANIFEST).is_file():
        raise SpecError(
            f"--data {folder}: no {MANIFEST} there; give a folder that `ropewalk tokenize` left "
            "(its --out)"
        )
    found = read_manifest(folder / MANIFEST, verify=False)  # the stages verify it
    if found.stage not in ("gather", "tokenize"):
        raise SpecError(
            f"--data {folder}: made by stage {found.stage!r}; give tokens, as `ropewalk tokenize` "
            "leaves them. Windows are cut from them here"
        )
    return found


def tokenizer_of(place: Path, folder: Path, tokens: Manifest) -> Manifest:
    """Return the manifest of the tokenizer at `place`, that the tokens in `folder` were made with.

    Raises:
        SpecError: if there is none, or another.
    """
    if not (place / MANIFEST).is_file():
        raise SpecError(
            f"--data {folder}: its tokenizer is not at {place}; give its folder as --tokenizer"
        )
    found = read_manifest(place / MANIFEST, verify=False)
    part = folder / "parts" / part_name(0) / MANIFEST
    made = read_manifest(part, verify=False) if part.is_file() else tokens
    used = made.inputs.get("tokenizer", {}).get("content", found.content)
    if found.stage != "tokenizer" or used != found.content:
        raise SpecError(f"--data {folder}: not made with the tokenizer at {place}")
    return found


def _sha256(tokenizer: Manifest) -> str:
    return next((file.sha256 for file in tokenizer.files if file.path == TOKENIZER), "")


def _names(folders: Sequence[Path]) -> list[str]:
    """Return a name for each folder: its own, with a number where another has it too."""
    names: list[str] = []
    for folder in folders:
        own = name = folder.resolve().name
        number = 2
        while name in names:
            name, number = f"{own}-{number}", number + 1
        names.append(name)
    return names


def check_tokenizer(start: Model, read: Data) -> str | None:
    """Refuse tokens whose ids mean something else to the model, or nothing.

    Returns a remark where the model has no tokenizer to compare with.

    Raises:
        SpecError: naming both tokenizers and the first token they differ in.
    """
    scratch = isinstance(start.weights, ScratchWeights)
    folder = None if scratch else start.folder
    return same_tokenizer(start.name, folder, start.architecture.vocabulary_size, read)


def same_tokenizer(name: str, folder: Path | None, has: int, read: Data) -> str | None:
    """Do what `check_tokenizer` does for a model by its name and the `has` ids it knows.

    `folder` is where its tokenizer lies, None where it has none of its own.
    """
    file = read.tokenizer.path(TOKENIZER)
    remedy = "tokenise the corpus with the model's own: ropewalk tokenize --tokenizer MODEL_FOLDER"
    for corpus in read.corpora:
        ids = corpus.tokens.result["vocabulary_size"]
        if ids > has:
            raise SpecError(
                f"--data {corpus.tokens.folder}: token ids up to {ids - 1}, of {file}, but "
                f"--model {name} has a vocabulary of {has}; {remedy}"
            )
    if folder is None:
        return None
    theirs = _vocabulary(folder)
    if theirs is None:
        return f"{name} has no tokenizer that could be compared with that of the tokens"
    ours = Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=True)
    differing = sorted((n, token) for token, n in ours.items() if theirs.get(token) != n)
    if differing:
        number, token = differing[0]
        raise SpecError(
            f"{file} (of --data) and the tokenizer in {folder} (of --model) differ: "
            f"{token!r} is {number} in the one and {theirs.get(token, 'no token')} in the other "
            f"({len(differing)} of {len(ours)} tokens differ); {remedy}"
        )
    return None


def _vocabulary(folder: Path) -> dict[str, int] | None:
    """Return the ids of a model's tokenizer, None where it has none that can be read alone."""
    try:
        found = read(ImportedTokenizer(path=str(folder)))
    except StageError:
        return None
    definition = json.dumps(found.definition)
    return dict(Tokenizer.from_str(definition).get_vocab(with_added_tokens=True))
