"""Tokenizers that exist, whatever form they come in, as the content of a `tokenizer.json`.

Files are read as they are. transformers would rebuild some of them from vocabulary and class name,
and gives other ids for a bare LLaMA `tokenizer.model`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ropewalk.base.stage import StageError
from ropewalk.data.encoding import TOKENIZER
from ropewalk.data.policy import Found
from ropewalk.data.ranks import from_ranks, looks_like_ranks
from ropewalk.data.spec import ImportedTokenizer
from ropewalk.data.spm import from_sentencepiece

CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
_MODELS = ("tokenizer.model", "*.model", "*.model.v*")  # SentencePiece, or tiktoken ranks
# Special tokens by which a bare tokenizer.json is known to open and close documents.
_KNOWN_BOS = ("<s>", "<|begin_of_text|>", "<|endoftext|>")
_KNOWN_EOS = ("</s>", "<|end_of_text|>", "<|endoftext|>")


def read(spec: ImportedTokenizer) -> Found:
    """Return the tokenizer a spec names.

    Raises:
        StageError: if there is none, or it cannot be read.
    """
    path = _downloaded(spec) if spec.path is None else Path(spec.path)
    if not path.exists():
        raise StageError(
            f"tokenizer.path: {path} does not exist; give a {TOKENIZER}, a SentencePiece .model, a "
            "file of tiktoken ranks, or a folder with one of them"
        )
    file = _file(path) if path.is_dir() else path
    with file.open("rb") as stream:
        start = stream.read(200)
    if looks_like_ranks(start):
        return from_ranks(file, spec.scheme)
    if spec.scheme is not None:
        raise StageError(f"tokenizer.scheme: {file} holds no tiktoken ranks; leave scheme out")
    if start.lstrip().startswith(b"{"):
        return _from_json(file, path if path.is_dir() else None)
    return from_sentencepiece(file)


def _file(folder: Path) -> Path:
    if (folder / TOKENIZER).is_file():
        return folder / TOKENIZER
    for pattern in _MODELS:
        files = sorted(folder.glob(pattern))
        if len(files) > 1:
            names = ", ".join(file.name for file in files)
            raise StageError(f"tokenizer.path: {folder} has {names}; give the path of one of them")
        if files:
            return files[0]
    raise StageError(
        f"tokenizer.path: {folder} has no {TOKENIZER} and no .model file; only the tokenizers of "
        "`tokenizers`, SentencePiece and tiktoken are read"
    )


def _from_json(file: Path, folder: Path | None) -> Found:
    definition = _json(file)
    if not isinstance(definition.get("model"), Mapping):
        raise StageError(f"{file}: no tokenizer.json: it has no model")
    try:
        tokenizer = Tokenizer.from_str(json.dumps(definition))
    except Exception as error:  # the library raises nothing more specific
        raise StageError(f"{file}: `tokenizers` cannot read it ({error})") from None
    if folder is None or not (folder / CONFIG).is_file():
        return Found(
            definition=definition,
            bos=_known(tokenizer, _KNOWN_BOS),
            eos=_known(tokenizer, _KNOWN_EOS),
        )
    config = _json(folder / CONFIG)
    named = _json(folder / SPECIAL_TOKENS) if (folder / SPECIAL_TOKENS).is_file() else {}
    return Found(
        definition=definition,
        bos=_spelling(config, "bos_token") or _spelling(named, "bos_token"),
        eos=_spelling(config, "eos_token") or _spelling(named, "eos_token"),
        opening=config.get("add_bos_token"),
        closing=config.get("add_eos_token"),
    )


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except ValueError as error:
        raise StageError(f"{file}: not JSON ({error})") from None
    if not isinstance(found, dict):
        raise StageError(f"{file}: a {type(found).__name__} where an object was expected")
    return found


def _spelling(config: Mapping[str, Any], key: str) -> str | None:
    found = config.get(key)
    return found.get("content") if isinstance(found, Mapping) else found


def _known(tokenizer: Tokenizer, spellings: tuple[str, ...]) -> str | None:
    return next((s for s in spellings if tokenizer.token_to_id(s) is not None), None)


def _downloaded(spec: ImportedTokenizer) -> Path:
    """Return the folder with the files of a hub repository."""
    import huggingface_hub  # only for tokenizers of the hub

    assert spec.hub is not None
    try:
        return Path(
            huggingface_hub.snapshot_download(
                spec.hub,
                revision=spec.revision,
                allow_patterns=[TOKENIZER, CONFIG, SPECIAL_TOKENS, "*.model", "*.model.v*"],
                ignore_patterns=["*/*"],
            )
        )
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise StageError(
            f"tokenizer.hub: {spec.hub!r} could not be loaded ({reason}); without network give "
            "tokenizer.path, a folder with its tokenizer.json"
        ) from None
