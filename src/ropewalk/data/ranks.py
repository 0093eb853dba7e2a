"""Files of tiktoken ranks (Llama 3) as a `tokenizer.json`.

Such a file holds the tokens in the order of their merges, and nothing else: the pattern that
splits texts and the special tokens are a scheme, which stands here.
"""

import base64
import binascii
import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ropewalk.base.stage import StageError
from ropewalk.data.policy import Found, template
from ropewalk.data.shape import LLAMA3, alphabet

_LINE = re.compile(rb"([A-Za-z0-9+/]+={0,2}) ([0-9]+)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scheme:
    """What a file of ranks does not say."""

    pattern: str  # splits a text before merging
    special: tuple[str, ...]  # their ids follow those of the ranks
    bos: str  # opens every document
    eos: str


SCHEMES: Mapping[str, Scheme] = {
    "llama3": Scheme(
        pattern=LLAMA3,
        special=(
            "<|begin_of_text|>",
            "<|end_of_text|>",
            *(f"<|reserved_special_token_{i}|>" for i in range(4)),
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|reserved_special_token_4|>",
            "<|eot_id|>",
            *(f"<|reserved_special_token_{i}|>" for i in range(5, 251)),
        ),
        bos="<|begin_of_text|>",
        eos="<|end_of_text|>",
    )
}


def looks_like_ranks(content: bytes) -> bool:
    """Return whether a file starts like a file of ranks."""
    return _LINE.fullmatch(content[:200].partition(b"\n")[0].rstrip()) is not None


def from_ranks(file: Path, scheme: str | None) -> Found:
    """Return the tokenizer in a file of ranks; BOS opens its texts, as Llama 3 was trained.

    Raises:
        StageError: if a line is not one of a token and its rank, or the scheme is not known.
    """
    if scheme is None or scheme not in SCHEMES:
        raise StageError(
            f"tokenizer.scheme: {file} holds ranks without split pattern and special tokens; say "
            f"which they are: scheme: {' or '.join(SCHEMES)}"
        )
    found = SCHEMES[scheme]
    ranks = read_ranks(file)
    letters = alphabet()
    spelled = {token: "".join(letters[byte] for byte in token) for token in ranks}
    tokens = {spelled[token]: rank for token, rank in ranks.items()}
    special = {content: len(ranks) + i for i, content in enumerate(found.special)}
    definition: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": token_id,
                "content": content,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for content, token_id in special.items()
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": found.pattern},
                    "behavior": "Isolated",
                    "invert": False,
                },
                {
                    "type": "ByteLevel",
                    "add_prefix_space": False,
                    "trim_offsets": True,
                    "use_regex": False,
                },
            ],
        },
        "post_processor": template(found.bos, None, special),
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": False,
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,  # a word that is a token is that token
            "vocab": tokens,
            "merges": [[spelled[a], spelled[b]] for a, b in _merges(ranks)],
        },
    }
    return Found(definition=definition, bos=found.bos, eos=found.eos)


def read_ranks(file: Path) -> dict[bytes, int]:
    """Return the tokens with their ranks.

    Raises:
        StageError: naming file and line.
    """
    ranks: dict[bytes, int] = {}
    lines = file.read_bytes().splitlines()
    for number, line in enumerate(lines, start=1):
        match = _LINE.fullmatch(line)
        try:
            token = base64.b64decode(match[1], validate=True) if match else b""
        except binascii.Error:
            token = b""
        if not match or not token:
            raise StageError(f"{file}:{number}: {line[:40]!r} is not a token in base64 and a rank")
        if int(match[2]) != number - 1:
            raise StageError(f"{file}:{number}: rank {int(match[2])} where {number - 1} follows")
        if token in ranks:
            raise StageError(f"{file}:{number}: {token!r} has rank {ranks[token]} already")
        ranks[token] = number - 1
    missing = sum(bytes([byte]) not in ranks for byte in range(256))
    if missing:
        raise StageError(f"{file}: {missing} of the 256 bytes have no rank")
    return ranks


def _merges(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Return every pair of tokens that make a token, in the order of its rank.

    tiktoken merges whatever two neighbours make the token of lowest rank, not only the two that
    made it in training.
    """
    merges = []
    for token in ranks:  # in the order of their ranks
        splits = ((token[:i], token[i:]) for i in range(1, len(token)))
        pairs = [(a, b) for a, b in splits if a in ranks and b in ranks]
        merges += sorted(pairs, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    return merges
