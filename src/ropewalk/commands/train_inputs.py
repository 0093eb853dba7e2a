"""What `ropewalk train` starts from: a model and tokens, checked to belong together."""

import argparse
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

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

_HUB, _SCRATCH, _CONFIG = "hub:", "scratch:", "config.json"
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


def model(options: argparse.Namespace) -> Model:
    """Return the model of the flags; architecture and rope are what its config says.

    Raises:
        SpecError, StageError: if it is absent, holds no safetensors, or is of another family.
    """
    name: str = options.model
    if not name.startswith(_HUB):
        refuse(options, ("model_revision",), f"is for --model {_HUB}NAME")
    if name.startswith(_HUB):
        place = _downloaded(name.removeprefix(_HUB), options.model_revision)
    elif name.startswith(_SCRATCH):
        place = Path(name.removeprefix(_SCRATCH))
    else:
        place = Path(name)
        if not place.is_dir():
            raise SpecError(
                f"--model {name}: no such folder; give a Hugging Face folder, {_HUB}NAME for a "
                f"model of the hub, or {_SCRATCH}{_CONFIG} for random weights"
            )
    file = place / _CONFIG if place.is_dir() else place
    if not file.is_file():
        raise SpecError(f"--model {name}: {file} does not exist")
    try:
        found = AutoConfig.from_pretrained(file, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise SpecError(f"--model {name}: {file} cannot be read: {error}") from None
    weights: Weights
    if name.startswith(_HUB):
        # The commit, so that the run stays what it is when the name moves on.
        weights = PublishedWeights(hub=name.removeprefix(_HUB), revision=place.name)
    elif name.startswith(_SCRATCH):
        weights = ScratchWeights(seed=options.seed)
    else:
        weights = PublishedWeights(location=f"by-hand@{fingerprint(place)}")
    return Model(
        name=name,
        weights=weights,
        folder=place,
        architecture=architecture_of(found),
        rope=rope_of(found),
    )


def fingerprint(folder: Path) -> str:
    """Return a digest of the weights in a Hugging Face folder, wherever it lies.

    It is part of what a run is. Of every file it takes name, size and 64 evenly spaced samples of
    64 KiB: seconds for what would take minutes, and training moves every weight.

    Raises:
        StageError: if the folder has no safetensors weights.
    """
    found = []
    for file in listed(folder):
        size = file.stat().st_size
        sampled = hashlib.sha256()
        with file.open("rb") as stream:
            for number in range(_SAMPLES):
                stream.seek(max(0, size - _SAMPLE_BYTES) * number // (_SAMPLES - 1))
                sampled.update(stream.read(_SAMPLE_BYTES))
        found.append([file.name, size, sampled.hexdigest()])
    return digest(found)


def _downloaded(hub: str, revision: str | None) -> Path:
    """Return the folder with the small files of a hub repository, named like its commit."""
    try:
        return Path(
            huggingface_hub.snapshot_download(
                hub,
                revision=revision,
                allow_patterns=["*.json", "*.model"],
                ignore_patterns=["*/*"],
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SpecError(
            f"--model {_HUB}{hub}: cannot be downloaded and is not in the local cache ({reason}); "
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
    made = [_tokens(folder) for folder in folders]
    places = [options.tokenizer or folder / "tokenizer" for folder in folders]
    tokenizers = [
        _tokenizer(place, folder, tokens)
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


def _tokens(folder: Path) -> Manifest:
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


def _tokenizer(place: Path, folder: Path, tokens: Manifest) -> Manifest:
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
    file = read.tokenizer.path(TOKENIZER)
    remedy = "tokenise the corpus with the model's own: ropewalk tokenize --tokenizer MODEL_FOLDER"
    has = start.architecture.vocabulary_size
    for corpus in read.corpora:
        ids = corpus.tokens.result["vocabulary_size"]
        if ids > has:
            raise SpecError(
                f"--data {corpus.tokens.folder}: token ids up to {ids - 1}, of {file}, but "
                f"--model {start.name} has a vocabulary of {has}; {remedy}"
            )
    if isinstance(start.weights, ScratchWeights):
        return None
    theirs = _vocabulary(start.folder)
    if theirs is None:
        return f"{start.name} has no tokenizer that could be compared with that of the tokens"
    ours = Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=True)
    differing = sorted((n, token) for token, n in ours.items() if theirs.get(token) != n)
    if differing:
        number, token = differing[0]
        raise SpecError(
            f"{file} (of --data) and the tokenizer in {start.folder} (of --model) differ: "
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
