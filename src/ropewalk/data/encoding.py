"""Text to token ids with a tokenizer artifact. Light: needs `tokenizers`, not transformers."""

import functools
import json
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from ropewalk.base.manifest import Manifest
from ropewalk.data.cuts import Cuts
from ropewalk.data.engine import ENGINE, REFERENCE, Engine, EngineError, check

TOKENIZER = "tokenizer.json"


class LoadedTokenizer:
    """A tokenizer ready to use.

    Special tokens spelled out in a text (`<s>`, `<unk>` and the like occur in source code and in
    Wikipedia dumps) are encoded as ordinary text. Otherwise a document could contain a BOS or EOS
    in its middle.

    Engine and reference are loaded when they are first used.
    """

    reference_name = REFERENCE

    def __init__(self, file: Path, result: dict[str, Any]) -> None:
        """Take the tokenizer in `file`, with the result of the stage that wrote it."""
        self._file = file
        self._verdict: dict[str, Any] = result.get("engine", {})
        self.vocabulary_size: int = result["vocabulary_size"]  # ids are below this
        self.bos: int | None = result.get("bos")
        self.eos: int | None = result.get("eos")
        self.reserved: int = result.get("reserved_tokens", 0)  # tokens no text contains: 2, 3, ...
        # What stands before and after the tokens of every document.
        self.opening = (self.bos,) if result.get("opening") and self.bos is not None else ()
        self.closing = (self.eos,) if result.get("closing") and self.eos is not None else ()

    @property
    def engine(self) -> str:
        """Return what `encode` uses: `gigatoken` or `tokenizers`."""
        return REFERENCE if self._engine is None else ENGINE

    @property
    def engine_version(self) -> str:
        """Return its version."""
        return metadata.version(REFERENCE) if self._engine is None else self._engine.version

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """Return the reference itself; it reads `<s>` in a text as text."""
        return as_reference(Tokenizer.from_file(str(self._file)))

    def encode(self, text: str) -> np.ndarray:
        """Return the token ids (uint32), without special tokens.

        Raises:
            Unbroken: if the text is long and has no place to cut for long.
        """
        return self._cuts.encode(text, self._encode_piece)

    def reference(self, text: str) -> np.ndarray:
        """Return what `encode` returns, by `tokenizers` alone."""
        return self._cuts.encode(text, self._reference_piece)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the token ids (int64) of short texts, without special tokens, by the reference."""
        encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]

    def _encode_piece(self, text: str) -> np.ndarray:
        if self._engine is not None:
            ids = self._engine.encode(text)
            if ids is not None:
                return ids
        return self._reference_piece(text)

    def _reference_piece(self, text: str) -> np.ndarray:
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        return np.array(ids, dtype=np.uint32)

    @functools.cached_property
    def _cuts(self) -> Cuts:
        return Cuts(self._definition)

    @functools.cached_property
    def _engine(self) -> Engine | None:
        if self._verdict.get("name") == REFERENCE and "reason" not in self._verdict:
            return None  # asked for
        try:
            definition = self._definition()
            engine = Engine(definition)
            if self._verdict != _found(engine):
                check(engine, definition, self.tokenizer)
        except EngineError as error:
            print(
                f"tokenize: {ENGINE} cannot do this vocabulary exactly ({error}): "
                f"using {REFERENCE}",
                flush=True,
            )
            return None
        return engine

    def _definition(self) -> dict[str, Any]:
        return json.loads(self._file.read_bytes())  # read again when needed: it is large


def load(manifest: Manifest) -> LoadedTokenizer:
    """Return the tokenizer a `tokenizer` stage left."""
    return LoadedTokenizer(manifest.path(TOKENIZER), dict(manifest.result))


def as_reference(tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer, set to read special tokens in a text as text and to cut nothing."""
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def verdict(file: Path, *, reference_only: bool) -> dict[str, str]:
    """Return which engine a tokenizer is to be used with, as its manifest records it."""
    version = metadata.version(REFERENCE)
    if reference_only:
        return {"name": REFERENCE, "version": version}
    definition = json.loads(file.read_bytes())
    try:
        engine = Engine(definition)
        check(engine, definition, as_reference(Tokenizer.from_file(str(file))))
    except EngineError as error:
        return {"name": REFERENCE, "version": version, "reason": str(error)}
    return _found(engine)


def _found(engine: Engine) -> dict[str, str]:
    return {
        "name": ENGINE,
        "version": engine.version,
        "compared_with": f"{REFERENCE} {metadata.version(REFERENCE)}",
    }
