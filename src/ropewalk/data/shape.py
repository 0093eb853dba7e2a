"""Of which kind a `tokenizer.json` is, as far as exactness depends on it.

Two kinds are understood, and everything else is none of them: byte-level BPE behind one of a few
split patterns (GPT-2, GPT-NeoX, Llama 3, Qwen 2), and the BPE of SentencePiece with byte fallback
(LLaMA, Mistral, Gemma). Where long texts may be cut (`cuts`) and which engine may be used
(`engine`) is proved for these kinds only.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Literal

GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CASED = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = _CASED % "{1,3}"
QWEN2 = _CASED % ""
_PATTERNS = (
    GPT2,
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # the same
    LLAMA3,
    QWEN2,
)
SPACE = "\u2581"  # what SentencePiece writes for a space
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))  # what it falls back to


class ShapeError(ValueError):
    """A tokenizer of neither kind; the message says what is not understood."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """What is known of a tokenizer."""

    kind: Literal["byte_level", "sentencepiece"]
    nfc: bool = False  # texts are normalised to NFC first


def alphabet() -> list[str]:
    """Return the character that stands for each byte in a byte-level vocabulary.

    Radford et al. 2019: printable bytes of Latin-1 stand for themselves, the others for the
    characters from U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def shape_of(definition: Mapping[str, Any]) -> Shape:
    """Return the kind of a tokenizer, given the content of its `tokenizer.json`.

    Raises:
        ShapeError: if it is of neither kind.
    """
    model = definition["model"]
    if model.get("type", "BPE") != "BPE":
        raise ShapeError(f"its model is {model['type']}")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise ShapeError(f"its model has {key} {model[key]!r}")
    for token in definition.get("added_tokens") or ():
        for flag in ("lstrip", "rstrip", "single_word"):
            if token.get(flag) and not token["special"]:
                raise ShapeError(f"added token {token['content']!r} has {flag}")
    return _sentencepiece(definition) if model.get("byte_fallback") else _byte_level(definition)


def _byte_level(definition: Mapping[str, Any]) -> Shape:
    letters = alphabet()
    _check_vocabulary(definition, [letters[byte] for byte in range(256) if byte not in _NEVER])
    normalizers = list(_steps(definition.get("normalizer"), "normalizers"))
    others = [step["type"] for step in normalizers if step["type"] != "NFC"]
    if others:
        raise ShapeError(f"its normalizer is {others[0]}")
    match list(_steps(definition.get("pre_tokenizer"), "pretokenizers")):
        case [{"type": "ByteLevel", "add_prefix_space": False, **rest}] if rest.get(
            "use_regex", True
        ):
            pass
        case [
            {
                "type": "Split",
                "pattern": {"Regex": pattern},
                "behavior": "Isolated",
                "invert": False,
            },
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ] if pattern in _PATTERNS:
            pass
        case _:
            raise ShapeError("its pre-tokenizer is none of GPT-2, Llama 3, Qwen 2")
    return Shape(kind="byte_level", nfc=bool(normalizers))


def _sentencepiece(definition: Mapping[str, Any]) -> Shape:
    _check_vocabulary(definition, BYTES)
    if any(part in _BYTE_SET for merge in definition["model"]["merges"] for part in _parts(merge)):
        raise ShapeError("its merges join byte tokens")
    space = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    dummy = {"type": "Prepend", "prepend": SPACE}
    normalizers = list(_steps(definition.get("normalizer"), "normalizers"))
    match list(_steps(definition.get("pre_tokenizer"), "pretokenizers")):
        case []:
            known = normalizers in ([space], [dummy, space])
        case [{"type": "Metaspace", "replacement": replacement}]:
            known = replacement == SPACE and not normalizers
        case _:
            known = False
    if not known:
        raise ShapeError("its handling of spaces is none that LLaMA, Mistral or Gemma have")
    return Shape(kind="sentencepiece")


_BYTE_SET = frozenset(BYTES)
_NEVER = {0xC0, 0xC1, *range(0xF5, 0x100)}  # bytes that no UTF-8 text holds


def _parts(merge: Any) -> list[str]:
    return merge.split(" ", 1) if isinstance(merge, str) else merge


def _check_vocabulary(definition: Mapping[str, Any], needed: list[str] | tuple[str, ...]) -> None:
    missing = [token for token in needed if token not in definition["model"]["vocab"]]
    if missing:
        raise ShapeError(f"its vocabulary lacks {len(missing)} bytes, {missing[0]!r} for one")


def _steps(step: Mapping[str, Any] | None, key: str) -> Iterator[Mapping[str, Any]]:
    """Yield what a normalizer or pre-tokenizer does, nested sequences laid out flat."""
    if step is None:
        return
    if step["type"] != "Sequence":
        yield step
        return
    for inner in step[key]:
        yield from _steps(inner, key)
