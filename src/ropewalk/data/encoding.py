"""Text to token ids with a tokenizer artifact. Light: needs `tokenizers`, not transformers."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

from ropewalk.base.manifest import Manifest

TOKENIZER = "tokenizer.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedTokenizer:
    """A tokenizer ready to use."""

    tokenizer: Tokenizer  # reads `<s>` in a text as text, never as the special token
    vocabulary_size: int  # ids are below this
    bos: int | None
    eos: int | None
    reserved: int = 0  # tokens that no text contains, ids 2, 3, ...

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the token ids (int64) of each text, without special tokens."""
        encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]


def load(manifest: Manifest) -> LoadedTokenizer:
    """Return the tokenizer a `tokenizer` stage left.

    Special tokens spelled out in a text (`<s>`, `<unk>` and the like occur in source code and in
    Wikipedia dumps) are encoded as ordinary text. Otherwise a document could contain a BOS or EOS
    in its middle.
    """
    tokenizer = Tokenizer.from_file(str(manifest.path(TOKENIZER)))
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    result = manifest.result
    return LoadedTokenizer(
        tokenizer=tokenizer,
        vocabulary_size=result["vocabulary_size"],
        bos=result.get("bos"),
        eos=result.get("eos"),
        reserved=result.get("reserved_tokens", 0),
    )
