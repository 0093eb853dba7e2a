"""The fast engine, gigatoken, held to the ids of the reference, `tokenizers`.

An engine is used for a vocabulary of a known kind that it gives the reference's ids for, on texts
made to be hard and on every token of the vocabulary. What is known to differ goes to the reference
(`codepoints`), and the tokenize stage compares a sample of every corpus.
"""

import json
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from ropewalk.data import codepoints
from ropewalk.data.shape import Shape, ShapeError, shape_of

ENGINE = "gigatoken"
REFERENCE = "tokenizers"
# The engine keeps every word it has seen: it is made anew when the process has grown by this much,
# looked at whenever so much text has been encoded.
_GROWTH_BYTES = 128 * 2**20
_LOOK_BYTES = 8 * 2**20


class EngineError(RuntimeError):
    """The engine cannot be used; the message says why."""


class Engine:
    """gigatoken for one tokenizer."""

    def __init__(self, definition: Mapping[str, Any]) -> None:
        """Load the content of a `tokenizer.json`.

        Raises:
            EngineError: if the engine is not installed, of another version than the one its
                differences are known of, or made for other tokenizers.
        """
        self.version = _known_version()
        try:
            shape = shape_of(definition)
        except ShapeError as error:
            raise EngineError(str(error)) from None
        self._left_out = codepoints.Finder(_differing(shape))
        # Without the special tokens, one that is spelled out in a text is text.
        added = [t for t in definition.get("added_tokens") or () if not t["special"]]
        _refuse_overlaps(definition.get("added_tokens") or ())
        self._json = json.dumps({**definition, "added_tokens": added}, ensure_ascii=False).encode()
        self._renew()
        self._floor = _resident_bytes()
        self._seen = 0

    def encode(self, text: str) -> np.ndarray | None:
        """Return the token ids (uint32), or None for a text that is left to the reference."""
        if text.isascii():
            self._seen += len(text)
            ids = self._engine.encode(text)
        else:
            utf8 = text.encode()
            if self._left_out(utf8):
                return None
            self._seen += len(utf8)
            ids = self._engine.encode(utf8)
        if self._seen >= _LOOK_BYTES:
            self._seen = 0
            self._bound_memory()
        return ids

    def _bound_memory(self) -> None:
        resident = _resident_bytes()
        self._floor = min(self._floor, resident)
        if resident > self._floor + _GROWTH_BYTES:
            self._renew()
            self._floor = _resident_bytes()

    def _renew(self) -> None:
        import gigatoken

        self._engine: Any = None  # frees the old one before a new one is made
        try:
            self._engine = gigatoken.Tokenizer.from_json(self._json)
        except Exception as error:  # whatever the library raises, it cannot be used
            raise EngineError(f"it does not load: {_first_line(error)}") from None


def check(engine: Engine, definition: Mapping[str, Any], reference: Tokenizer) -> None:
    """Compare the engine with the reference on hard texts and on the whole vocabulary.

    Raises:
        EngineError: on the first difference.
    """
    for text in (*PROBES, *_vocabulary_texts(definition, reference)):
        ids = engine.encode(text)
        expected = reference.encode(text, add_special_tokens=False).ids
        if ids is not None and ids.tolist() != expected:
            raise EngineError(f"it gives other ids for {_shortened(text)}")


def _known_version() -> str:
    for name, known in codepoints.VERSIONS.items():
        version = _installed(name)
        if version is None:
            raise EngineError(f"{name} is not installed")
        if version != known:
            raise EngineError(f"it was compared with {name} {known}, and {version} is installed")
    return codepoints.VERSIONS[ENGINE]


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _differing(shape: Shape) -> Iterable[int]:
    """Return the characters that both libraries read differently for this kind of tokenizer."""
    if shape.kind == "sentencepiece":  # no classes of characters, no normalisation
        return ()
    listed = codepoints.CLASSES + (codepoints.NFC if shape.nfc else "")
    return codepoints.code_points(listed)


def _refuse_overlaps(added: Iterable[Mapping[str, Any]]) -> None:
    """Where a special and another added token could overlap, the reference looks for both first."""
    special = sorted({token["content"] for token in added if token["special"]})
    for token in (t["content"] for t in added if not t["special"]):
        for other in special:
            if token in other or other in token or _joined(token, other) or _joined(other, token):
                raise EngineError(f"added token {token!r} can overlap special token {other!r}")


def _joined(first: str, second: str) -> bool:
    return any(first.endswith(second[:n]) for n in range(1, min(len(first), len(second))))


def _vocabulary_texts(definition: Mapping[str, Any], reference: Tokenizer) -> Iterable[str]:
    """Yield texts in which every token of the vocabulary stands, so spelled that it can be used."""
    ids = sorted(definition["model"]["vocab"].values())
    for start in range(0, len(ids), 500):
        words = reference.decode_batch([[i] for i in ids[start : start + 500]])
        yield "".join(words)
        yield "x ".join(words)
    added = [token["content"] for token in definition.get("added_tokens") or ()]
    for start in range(0, len(added), 500):
        for between in ("", " ", "a", "1 \n"):
            yield between.join(added[start : start + 500])


def _resident_bytes() -> int:
    import psutil  # here, so that only what encodes needs it

    return psutil.Process().memory_info().rss


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _shortened(text: str) -> str:
    return repr(text) if len(text) <= 60 else f"{text[:60]!r}..."


# Texts on which implementations are known to part: special tokens spelled out, every byte, runs of
# spaces and line breaks, contractions, numbers, marks that combine or change their order, scripts
# without spaces, emoji of several characters, what is no character, words without end.
PROBES = (
    "",
    " ",
    "\n",
    "a <s> b </s> c<unk><pad> <|endoftext|><|begin_of_text|>x <0x41> <0x0A>",
    "[INST] hi [/INST] <|im_start|>user\n<|im_end|> <reserved-0><|reserved_special_token_1|>",
    "".join(map(chr, range(256))),
    " ".join(map(chr, range(256))),
    "".join(f"a{chr(c)}a1{chr(c)}1!{chr(c)}!" for c in range(256)),
    "".join(f"{' ' * n}x" for n in range(40)),
    "".join(f"{' ' * n}\n" for n in range(40)),
    "".join("\n" * n + "x" + "\t" * n + "1" for n in range(12)),
    "\r\n\r\n \r\n\t\n  \n a \r b\u2028c\u2029d\u0085e\u00a0\u00a0f\u3000g\u200bh\ufeffi",
    "don't DON'T we'll WE'LL I'VE he'd 'tis 'S's '''re'\u017f'\u212a",
    "1 12 123 1234 12345 3.14159 1e-10 0x1F ١٢٣ ²³¹ ½ ⅷ 一二三 1a2b3c",
    "e\u0301 e\u0323\u0301 e\u0301\u0323 \u0301 \u1e9b\u0323 \u212b \u2126 \ufb01 \u0958 \u0f73",
    "가각힣 \u1100\u1161\u11a8 \uac00\u11a8 漢字かなカナ、。ー「」 中文字符\uff0c没有空格。",
    "नमस्ते दुनिया ภาษาไทย العَرَبِيَّة עִבְרִית ქართული አማርኛ ខ្មែរ မြန်မာ Ελληνικά Кириллица İıŞß",
    "🙂👍🏽👩\u200d👩\u200d👧\u200d👦🇩🇪🏴\U000e0067\U000e0062\U000e007f❤\ufe0f🙂🙂",
    "\x00\x01\x7f\ufffd\ufffe\uffff\ud7ff\ue000\ufdd0\U0001fffe\U000f0000\U0010ffff\u0378\u05ff",
    "def f(x):\n\n    return {'a': [1, 2], \"b\": x**2}  # …\n\n\n\tprint(f(3))  ;; -- == .. **\n",
    "▁ ▁▁ a▁b ▁<s>▁ <0xE2><0x96><0x81>",
    "x" * 5000 + " " + "ab" * 3000 + "\n" + "=" * 4000 + " " * 3000 + "é" * 1500 + "漢" * 1500,
)
