"""Small tokenizers of every kind, made from scratch, and texts that are hard to encode."""

import base64
import contextlib
import functools
import io
import itertools
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import sentencepiece
from data_samples import Chain, Run
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from ropewalk.base.manifest import Manifest
from ropewalk.data.ranks import from_ranks
from ropewalk.data.shape import LLAMA3, alphabet
from ropewalk.data.spec import ImportedTokenizer, TokenizerJob
from ropewalk.data.spm import from_sentencepiece
from ropewalk.data.tokenizer import train

# Spellings on which tokenizers part: words, spaces, numbers, marks, scripts, special tokens.
PARTS = (
    *[
        "a",
        "b",
        "the ",
        " the",
        "Hello",
        " world",
        "don't",
        "'s",
        "'S",
        "'ll",
        "x=1;",
        "WORLD",
        "_",
    ],
    *[
        " ",
        "  ",
        "   ",
        " " * 24,
        " " * 26,
        "\n",
        "\n\n",
        " \n",
        "\t",
        "\r\n",
        "\r",
        "\x0b",
        "\u0085",
    ],
    *[
        "\u00a0",
        "\u2028",
        "\u3000",
        "\u200b",
        "\ufeff",
        "\x00",
        "\x7f",
        "\ufffd",
        "\ufffe",
        "\U0010ffff",
    ],
    *[
        "1",
        "12",
        "123",
        "1234",
        "3.14",
        "0x1F",
        "\u0663",
        "\u00b2",
        "\u00bd",
        "\u2167",
        "\u4e00\u4e8c",
    ],
    *[
        "'",
        '"',
        "!",
        "?!",
        "...",
        "--",
        "==",
        "(",
        ")",
        ",",
        ", ",
        ". ",
        "{}",
        "```",
        "</s>",
        "<s>",
    ],
    *[
        "<unk>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<0x41>",
        "<reserved-0>",
        "\u2581",
        "\u2581\u2581",
    ],
    *[
        "\u00e9",
        "e\u0301",
        "\u0301",
        "\u0323\u0301",
        "\u00fc",
        "\u00df",
        "\u017f",
        "\u212a",
        "\u0958",
    ],
    *[
        "\u0915\u093c",
        "\u1100\u1161\u11a8",
        "\uac00\u11a8",
        "\u6f22\u5b57",
        "\u3002",
        "\uff0c",
        "\u3042",
    ],
    *["\u0928\u092e\u0938\u094d", "\u0627\u0644\u0639", "\U0001f642", "\U0001f469\u200d\U0001f467"],
    *[
        "\U0001f1e9\U0001f1ea",
        "\ud7ff",
        "\ue000",
        "aaaaaaa",
        "abababab",
        "def f(x):\n    return x\n",
    ],
)

UNREACHABLE = "zqzqz"  # a token of the ranks that no two other tokens make: only as a whole word

texts = st.lists(
    st.one_of(
        st.sampled_from(PARTS),
        st.sampled_from(PARTS),
        st.characters(exclude_categories=["Cs"]),
        st.tuples(st.sampled_from(PARTS), st.integers(2, 30)).map(lambda p: p[0] * p[1]),
    ),
    max_size=60,
).map("".join)


def lines(count: int = 400) -> list[str]:
    """Return lines to train on, always the same."""
    rng = random.Random(0)
    found = ["".join(rng.choice(PARTS) for _ in range(12)) for _ in range(count)]
    return [*found, "\u0915\u093c! " * 400]  # so that a mark and what follows are one token


def byte_level() -> dict[str, Any]:
    """Return a tokenizer as ropewalk trains it: GPT-2's pattern."""
    return json.loads(train(iter(lines()), 700, reserved_tokens=3).to_str())


def neox() -> dict[str, Any]:
    """Return one like GPT-NeoX's: texts become NFC, and runs of spaces are added tokens."""
    definition = byte_level()
    first = max(definition["model"]["vocab"].values()) + 1
    for i in range(23):
        definition["added_tokens"].append(
            {
                "id": first + i,
                "content": " " * (24 - i),
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": True,
                "special": False,
            }
        )
    return {**definition, "normalizer": {"type": "NFC"}}


def write_ranks(file: Path) -> dict[bytes, int]:
    """Train a BPE behind Llama 3's pattern and write it as tiktoken does; return the ranks."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_regex(LLAMA3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(lines(), trainer)
    values = {letter: byte for byte, letter in enumerate(alphabet())}
    spelled = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    ranks = {bytes(values[c] for c in token): rank for rank, (token, _) in enumerate(spelled)}
    ranks[UNREACHABLE.encode()] = len(ranks)
    file.write_bytes(
        b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items())
    )
    return ranks


def _regex(pattern: str) -> Any:
    from tokenizers import Regex

    return Regex(pattern)


@functools.cache
def sentencepiece_model(**settings: Any) -> bytes:
    """Train a SentencePiece model like LLaMA's; `settings` go to the trainer."""
    model = io.BytesIO()
    with _silent():
        sentencepiece.SentencePieceTrainer.train(
            **{
                "sentence_iterator": iter(lines()),
                "model_writer": model,
                "vocab_size": 600,
                "model_type": "bpe",
                "byte_fallback": True,
                "character_coverage": 0.98,
                "normalization_rule_name": "identity",
                "remove_extra_whitespaces": False,
                "split_digits": True,
                "allow_whitespace_only_pieces": True,
                "minloglevel": 2,
                **settings,
            }
        )
    return model.getvalue()


def llama(folder: Path) -> dict[str, Any]:
    """Return LLaMA's kind, as it is made from a SentencePiece model."""
    file = folder / "tokenizer.model"
    file.write_bytes(sentencepiece_model())
    return from_sentencepiece(file).definition


def llama3(folder: Path) -> dict[str, Any]:
    """Return Llama 3's kind, as it is made from ranks."""
    file = folder / "ranks.model"
    write_ranks(file)
    return from_ranks(file, "llama3").definition


def reference(definition: dict[str, Any]) -> Tokenizer:
    """Return what `tokenizers` makes of it; special tokens in a text are text."""
    tokenizer = Tokenizer.from_str(json.dumps(definition))
    tokenizer.encode_special_tokens = True
    return tokenizer


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep what C++ writes to standard error out of the test's output."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def bare(folder: Path, definition: dict[str, Any], **config: Any) -> Path:
    """Write a tokenizer.json, with a tokenizer_config.json if there is anything to say."""
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def template(before: list[str], after: list[str]) -> dict[str, Any]:
    """Return a post-processor that puts tokens of `byte_level` around a text."""
    ids = {"<s>": 0, "</s>": 1, "<reserved-0>": 2}

    def tokens(names: list[str]) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": name, "type_id": 0}} for name in names]

    single = [*tokens(before), {"Sequence": {"id": "A", "type_id": 0}}, *tokens(after)]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {n: {"id": n, "ids": [i], "tokens": [n]} for n, i in ids.items()},
    }


Import = Callable[..., Manifest]


def importer(run: Run) -> Import:
    """Return a function that imports a tokenizer: `imported(path, bos=True)`."""
    numbers = itertools.count()

    def imported(path: Path, **settings: Any) -> Manifest:
        tokenizer = ImportedTokenizer(path=str(path), **settings)
        name = f"imported-{next(numbers)}"
        return run("tokenizer", TokenizerJob(tokenizer=tokenizer), name)

    return imported


def form_of(form: str, chain: Chain, folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the path of a tokenizer in one of the forms, and what the spec says besides."""
    if form == "folder":
        return chain.tokenizer.folder, {}
    if form == "file":
        return bare(folder, neox()) / "tokenizer.json", {}
    if form == "sentencepiece":
        (folder / "tokenizer.model").write_bytes(sentencepiece_model())
        return folder, {}
    write_ranks(folder / "tokenizer.model")
    return folder, {"scheme": "llama3"}


FORMS = ("folder", "file", "sentencepiece", "ranks")
