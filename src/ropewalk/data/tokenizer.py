"""Stage `tokenizer`: train a byte-level BPE, or take over a tokenizer that exists.

Whatever it came from, the artifact is a folder `AutoTokenizer.from_pretrained` reads.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ropewalk.base.files import replacing, write_json
from ropewalk.base.stage import Job, StageError
from ropewalk.data.documents import Document, read_documents
from ropewalk.data.encoding import TOKENIZER
from ropewalk.data.spec import ImportedTokenizer, TokenizerJob, TrainedTokenizer

BOS, EOS = "<s>", "</s>"  # ids 0 and 1 of every tokenizer trained here
CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
# Special tokens by which a bare tokenizer.json is known to open and close documents.
_KNOWN_BOS = (BOS, "<|begin_of_text|>", "<|endoftext|>")
_KNOWN_EOS = (EOS, "<|end_of_text|>", "<|endoftext|>")


def work(job: Job) -> tuple[list[Path], dict[str, Any]]:
    """Write the tokenizer's files.

    Raises:
        StageError: if the corpus is too small for the vocabulary, or an imported tokenizer is
            absent or has other ids than the spec says.
    """
    spec: TokenizerJob = job.spec
    trained_on: dict[str, int] = {}
    bos: str | None
    eos: str | None
    if isinstance(spec.tokenizer, TrainedTokenizer):
        texts = _TrainingTexts(job, spec.tokenizer.training_bytes)
        reserved = spec.tokenizer.reserved_tokens
        tokenizer = train(iter(texts), spec.tokenizer.vocabulary_size, reserved)
        _check_trained(tokenizer, spec.tokenizer, texts)
        bos, eos = BOS, EOS
        trained_on = {"training_documents": texts.documents, "training_bytes": texts.bytes}
        trained_on["reserved_tokens"] = reserved
    else:
        tokenizer, bos, eos = _imported(spec.tokenizer)
        _check_imported(tokenizer, spec.tokenizer)
    files = _write(job.folder, tokenizer, bos=bos, eos=eos)
    result = {
        "vocabulary_size": spec.tokenizer.vocabulary_size,
        "tokens": tokenizer.get_vocab_size(with_added_tokens=True),
        "bos": None if bos is None else tokenizer.token_to_id(bos),
        "eos": None if eos is None else tokenizer.token_to_id(eos),
        **trained_on,
    }
    print(f"tokenizer: {result['tokens']} tokens", flush=True)
    return files, result


def train(texts: Iterator[str], vocabulary_size: int, reserved_tokens: int = 0) -> Tokenizer:
    """Return a byte-level BPE (Radford et al. 2019, section 2.2) trained on `texts`.

    All 256 bytes are in the vocabulary, so nothing is ever unknown. Equal texts in equal order
    give an equal tokenizer, whatever the number of threads. Reserved tokens have the ids from 2 on.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[BOS, EOS, *(f"<reserved-{i}>" for i in range(reserved_tokens))],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


class _TrainingTexts:
    """The first documents of the corpus, until `training_bytes` are reached; counted."""

    def __init__(self, job: Job, limit_bytes: int) -> None:
        self._job = job
        self._limit_bytes = limit_bytes
        self.documents = 0
        self.bytes = 0

    def __iter__(self) -> Iterator[str]:
        spec: TokenizerJob = self._job.spec
        if spec.source is None or spec.corpus is None:
            raise StageError("tokenizer: a trained tokenizer needs a source and a corpus")
        inventory = self._job.input("inventory")
        for item in read_documents(spec.corpus, spec.source, inventory, spec.folder):
            if self.bytes >= self._limit_bytes:
                return
            if isinstance(item, Document):
                self.documents += 1
                self.bytes += len(item.text.encode())
                yield item.text


def _check_trained(tokenizer: Tokenizer, spec: TrainedTokenizer, texts: _TrainingTexts) -> None:
    found = tokenizer.get_vocab_size(with_added_tokens=True)
    if found != spec.vocabulary_size:
        raise StageError(
            f"tokenizer.vocabulary_size: {spec.vocabulary_size} asked for, but the {texts.bytes} "
            f"bytes of {texts.documents} documents of corpus {spec.corpus!r} give {found} tokens "
            "(258 at least); change vocabulary_size or raise training_bytes"
        )


def _imported(spec: ImportedTokenizer) -> tuple[Tokenizer, str | None, str | None]:
    """Return a tokenizer with the spelling of its BOS and EOS tokens."""
    if (spec.path is None) == (spec.hub is None):
        raise StageError("tokenizer: exactly one of path and hub must be given")
    if spec.path is not None:
        path = Path(spec.path)
        file = path / TOKENIZER if path.is_dir() else path
        if not file.is_file():
            raise StageError(
                f"tokenizer.path: {file} does not exist; give a tokenizer.json or a folder with one"
            )
        if not (path / CONFIG).is_file():
            tokenizer = Tokenizer.from_file(str(file))
            return tokenizer, _known(tokenizer, _KNOWN_BOS), _known(tokenizer, _KNOWN_EOS)
    from transformers import AutoTokenizer  # costs seconds: not for trained tokenizers

    name = spec.path or spec.hub
    try:
        loaded = AutoTokenizer.from_pretrained(
            name, revision=spec.revision, trust_remote_code=False, use_fast=True
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise StageError(
            f"tokenizer.{'path' if spec.path else 'hub'}: {name!r} could not be loaded ({reason}); "
            "without network give tokenizer.path, a folder with tokenizer.json"
        ) from None
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        raise StageError(f"tokenizer: {name!r} has no tokenizer.json; only fast tokenizers work")
    return backend, loaded.bos_token, loaded.eos_token


def _known(tokenizer: Tokenizer, spellings: tuple[str, ...]) -> str | None:
    return next((s for s in spellings if tokenizer.token_to_id(s) is not None), None)


def _check_imported(tokenizer: Tokenizer, spec: ImportedTokenizer) -> None:
    """An embedding may have more rows than the tokenizer has tokens (padding), never fewer."""
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values())
    if largest >= spec.vocabulary_size:
        raise StageError(
            f"tokenizer.vocabulary_size: {spec.vocabulary_size}, but the tokenizer's largest id is "
            f"{largest}; set it to the model's vocabulary, at least {largest + 1}"
        )


def _write(folder: Path, tokenizer: Tokenizer, *, bos: str | None, eos: str | None) -> list[Path]:
    special = {k: v for k, v in {"bos_token": bos, "eos_token": eos}.items() if v is not None}
    files = [folder / TOKENIZER, folder / CONFIG, folder / SPECIAL_TOKENS]
    with replacing(files[0]) as partial:
        tokenizer.save(str(partial), pretty=False)
    write_json(
        files[1],
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            **special,
        },
    )
    write_json(files[2], special)
    return files
