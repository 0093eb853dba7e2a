"""Stage `tokenizer`: train a byte-level BPE, or take over a tokenizer that exists.

Whatever it came from, the artifact is a folder `AutoTokenizer.from_pretrained` reads.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ropewalk.base.files import replacing, write_json
from ropewalk.base.stage import Job, StageError
from ropewalk.data.documents import Document, documents, entries_of
from ropewalk.data.encoding import TOKENIZER, as_reference, verdict
from ropewalk.data.engine import REFERENCE
from ropewalk.data.imports import CONFIG, SPECIAL_TOKENS, read
from ropewalk.data.policy import Found, Policy, applied, decide, own_way
from ropewalk.data.spec import ImportedTokenizer, TokenizerJob, TrainedTokenizer

BOS, EOS = "<s>", "</s>"  # ids 0 and 1 of every tokenizer trained here


def work(job: Job) -> tuple[list[Path], dict[str, Any]]:
    """Write the tokenizer's files.

    Raises:
        StageError: if the corpus is too small for the vocabulary, or an imported tokenizer is
            absent, has other ids than the spec says, or no clear way with BOS and EOS.
    """
    spec: TokenizerJob = job.spec
    trained_on: dict[str, int] = {}
    if isinstance(spec.tokenizer, TrainedTokenizer):
        found, trained_on = _trained(job, spec.tokenizer)
    else:
        found = read(spec.tokenizer)
    own = own_way(found.definition)
    policy = decide(found, own, bos=spec.tokenizer.bos, eos=spec.tokenizer.eos)
    tokenizer = Tokenizer.from_str(json.dumps(applied(found.definition, policy, own)))
    _check_spelled_out(tokenizer, policy)
    vocabulary_size = _vocabulary_size(tokenizer, spec.tokenizer)
    files = _write(job.folder, tokenizer, bos=policy.bos, eos=policy.eos)
    engine = verdict(files[0], reference_only=spec.tokenizer.engine == REFERENCE)
    result = {
        "vocabulary_size": vocabulary_size,
        "tokens": tokenizer.get_vocab_size(with_added_tokens=True),
        "bos": None if policy.bos is None else tokenizer.token_to_id(policy.bos),
        "eos": None if policy.eos is None else tokenizer.token_to_id(policy.eos),
        "opening": policy.opening,
        "closing": policy.closing,
        "engine": engine,
        **trained_on,
    }
    print(f"tokenizer: {result['tokens']} tokens, engine {engine['name']}", flush=True)
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


def _trained(job: Job, spec: TrainedTokenizer) -> tuple[Found, dict[str, int]]:
    texts = _TrainingTexts(job, spec.training_bytes)
    tokenizer = train(iter(texts), spec.vocabulary_size, spec.reserved_tokens)
    _check_trained(tokenizer, spec, texts)
    return Found(definition=json.loads(tokenizer.to_str()), bos=BOS, eos=EOS), {
        "training_documents": texts.documents,
        "training_bytes": texts.bytes,
        "reserved_tokens": spec.reserved_tokens,
    }


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
        entries = entries_of(spec.corpus, self._job.input("inventory"))
        for item in documents(spec.corpus, spec.source, entries, spec.folder):
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


def _check_spelled_out(tokenizer: Tokenizer, policy: Policy) -> None:
    """A text that spells out BOS or EOS must not hold it."""
    reading = as_reference(Tokenizer.from_str(tokenizer.to_str()))
    for token in filter(None, (policy.bos, policy.eos)):
        if tokenizer.token_to_id(token) in reading.encode(token, add_special_tokens=False).ids:
            raise StageError(
                f"tokenizer: a text with {token!r} would hold the special token of that name, as "
                "if a document began or ended there"
            )


def _vocabulary_size(tokenizer: Tokenizer, spec: TrainedTokenizer | ImportedTokenizer) -> int:
    """Return how many ids the model has; more than the tokens (padding), never fewer."""
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values())
    asked = spec.vocabulary_size
    if asked is not None and largest >= asked:
        raise StageError(
            f"tokenizer.vocabulary_size: {asked}, but the tokenizer's largest id is {largest}; set "
            f"it to the model's vocabulary, at least {largest + 1}"
        )
    return largest + 1 if asked is None else asked


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
