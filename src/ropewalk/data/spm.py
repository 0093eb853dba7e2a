"""SentencePiece models (LLaMA, Mistral, Gemma) as a `tokenizer.json`.

Only BPE models with byte fallback and without normalisation: the others lose text, or have no
equal in `tokenizers`. What comes out is compared with the `sentencepiece` library, so that a model
either gives its own ids or is refused.
"""

import json
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ropewalk.base.rng import generator
from ropewalk.base.stage import StageError
from ropewalk.data.engine import PROBES
from ropewalk.data.policy import Found, template
from ropewalk.data.shape import BYTES, SPACE

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # kinds of pieces
_MODELS = {1: "Unigram", 2: "BPE", 3: "word", 4: "char"}


def from_sentencepiece(file: Path) -> Found:
    """Return the tokenizer in a model file; BOS opens its texts, as LLaMA and Mistral were trained.

    Raises:
        StageError: if the file is no SentencePiece model, or one that cannot be taken over exactly.
    """
    content = file.read_bytes()
    try:
        model = _Model(content)
    except (AttributeError, LookupError, TypeError, ValueError, struct.error):
        raise StageError(
            f"{file}: neither a tokenizer.json nor a SentencePiece model nor tiktoken ranks"
        ) from None
    if model.obstacle is not None:
        raise StageError(
            f"{file}: {model.obstacle}; only SentencePiece BPE models with byte fallback and "
            "without normalisation (LLaMA, Mistral) give their own ids here. Give a tokenizer.json"
        )
    definition = model.definition()
    import sentencepiece  # only for files of this kind

    theirs = sentencepiece.SentencePieceProcessor(model_proto=content)
    _compare(definition, theirs, model.pieces, file)
    spellings = [
        theirs.id_to_piece(piece) if piece >= 0 else None
        for piece in (theirs.bos_id(), theirs.eos_id())
    ]
    definition["post_processor"] = template(spellings[0], None, definition["model"]["vocab"])
    return Found(definition=definition, bos=spellings[0], eos=spellings[1])


class _Model:
    """What a model file says, by the field numbers of sentencepiece_model.proto."""

    def __init__(self, content: bytes) -> None:
        trainer: dict[int, Any] = {}
        normalizer: dict[int, Any] = {}
        self.pieces: list[tuple[str, float, int]] = []  # spelling, score, kind
        for number, value in _fields(content):
            if number == 1:
                piece = dict(_fields(value))
                (score,) = struct.unpack("<f", piece.get(2, bytes(4)))
                self.pieces.append((piece[1].decode(), score, piece.get(3, NORMAL)))
            elif number == 2:
                trainer = dict(_fields(value))
            elif number == 3:
                normalizer = dict(_fields(value))
        if not self.pieces:
            raise ValueError("no pieces")
        self._dummy_prefix = bool(normalizer.get(3, 1))
        self.obstacle = self._obstacle(trainer, normalizer)

    def _obstacle(self, trainer: dict[int, Any], normalizer: dict[int, Any]) -> str | None:
        spellings = [spelling for spelling, _, _ in self.pieces]
        lacking = set(BYTES) - {s for s, _, kind in self.pieces if kind == BYTE}
        found = {
            f"a {_MODELS.get(trainer.get(3, 1), 'other')} model": trainer.get(3, 1) != 2,
            "no byte fallback": not trainer.get(35, 0) or bool(lacking),
            "spaces belong to the word before them": bool(trainer.get(24, 0)),
            "texts are normalised": bool(normalizer.get(2, b"")),
            "runs of spaces are shortened": bool(normalizer.get(4, 1)),
            "spaces are not escaped": not normalizer.get(5, 1),
            "it has unused pieces": any(kind == UNUSED for _, _, kind in self.pieces),
            "it has a piece twice": len(set(spellings)) < len(spellings),
        }
        return next((reason for reason, true in found.items() if true), None)

    def definition(self) -> dict[str, Any]:
        """Return the content of the tokenizer.json."""
        unknown = [spelling for spelling, _, kind in self.pieces if kind == UNKNOWN]
        space = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
        dummy, strip = [], []
        if self._dummy_prefix:
            dummy = [{"type": "Prepend", "prepend": SPACE}]
            strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {
                    "id": i,
                    "content": spelling,
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "special": kind != USER_DEFINED,
                }
                for i, (spelling, _, kind) in enumerate(self.pieces)
                if kind in (UNKNOWN, CONTROL, USER_DEFINED)
            ],
            "normalizer": {"type": "Sequence", "normalizers": [*dummy, space]},
            "pre_tokenizer": None,
            "post_processor": None,
            "decoder": {
                "type": "Sequence",
                "decoders": [
                    {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                    {"type": "ByteFallback"},
                    {"type": "Fuse"},
                    *strip,
                ],
            },
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": unknown[0] if unknown else None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": True,
                "byte_fallback": True,
                "ignore_merges": False,
                "vocab": {spelling: i for i, (spelling, _, _) in enumerate(self.pieces)},
                "merges": self._merges(),
            },
        }

    def _merges(self) -> list[list[str]]:
        """Return every pair of pieces that make a piece, by its score, the highest first.

        SentencePiece merges whatever two neighbours make the piece of highest score.
        """
        scores = {spelling: score for spelling, score, kind in self.pieces if kind == NORMAL}
        merges = []
        for piece in sorted(scores, key=lambda piece: -scores[piece]):
            splits = ([piece[:i], piece[i:]] for i in range(1, len(piece)))
            merges += [split for split in splits if split[0] in scores and split[1] in scores]
        return merges


def _compare(
    definition: dict[str, Any], theirs: Any, pieces: Sequence[tuple[str, float, int]], file: Path
) -> None:
    ours = Tokenizer.from_str(json.dumps(definition))
    ours.encode_special_tokens = True
    for text in (*PROBES, *_texts([spelling for spelling, _, kind in pieces if kind == NORMAL])):
        if ours.encode(text, add_special_tokens=False).ids != theirs.encode(text):
            raise StageError(
                f"{file}: the library sentencepiece gives other token ids for {text[:80]!r} than "
                "the tokenizer.json made of it; give a tokenizer.json"
            )


def _texts(pieces: Sequence[str]) -> Iterator[str]:
    """Yield texts in which every piece stands, after a space and after another piece, and runs.

    Runs are where an order of merges and an order of scores could part: two pairs that overlap
    make the same piece.
    """
    words = [piece.replace(SPACE, " ") for piece in pieces]
    words = [words[i] for i in generator(0, "pieces").permutation(len(words))]
    for start in range(0, len(words), 200):
        yield "".join(words[start : start + 200])
        yield " ".join(words[start : start + 200])
    for word in sorted({word for word in words if len(word) <= 4}):
        yield " ".join(word * n for n in range(2, 12))
    for first, middle, last in _overlapping(set(words)):
        yield f"{first}{middle}{last} {first}{middle}{last}{first}{middle}"


def _overlapping(words: set[str]) -> Iterator[tuple[str, str, str]]:
    """Yield pieces x, y, z with xy = yz a piece as well."""
    for word in sorted(words):
        for i in range(1, len(word)):
            first, middle, last = word[:i], word[i:], word[len(word) - i :]
            if word == middle + last and {first, middle, last} <= words:
                yield first, middle, last


def _fields(content: bytes) -> Iterator[tuple[int, Any]]:
    """Yield number and value of the fields of a protobuf message."""
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(content, at)
            yield key >> 3, value
            continue
        if kind == 2:
            size, at = _varint(content, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"field of kind {kind}")
        if at + size > len(content):
            raise ValueError("cut short")
        yield key >> 3, content[at : at + size]
        at += size


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while content[at] & 0x80:
        value |= (content[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
    return value | content[at] << shift, at + 1
