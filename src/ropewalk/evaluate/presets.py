"""Perplexity as it was measured elsewhere, by name: each is a set of fields of `SlidingWindow`.

Each is proven against the loop it stands for, token by token. Two things they have in common are
no part of a preset. Losses and sums are those of this room (float32 softmax, float64 sums), where
most of the loops compute in half precision. And an EOS that the corpus closes its documents with is
text here: it is scored.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from ropewalk.base.spec import suggestion
from ropewalk.base.stage import StageError
from ropewalk.evaluate.spec import SlidingWindow


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """A convention and where it comes from."""

    source: str  # in words, with what is left open or was assumed
    settings: Mapping[str, Any]  # fields of SlidingWindow; what is missing has its default there
    stride: Literal["given", "window", "none"] = "given"
    # given: in the settings, and may be set anew; window: always the context; none: one window


PRESETS: Mapping[str, Preset] = {
    "pi_sliding": Preset(
        source=(
            "Position Interpolation (arXiv 2306.15595), section 3.2 and tables 1 and 2: windows "
            "after Press et al. with a stride of 256. Not stated: BOS (none here), the last window "
            "(full), the mean (over tokens)."
        ),
        settings={
            "contexts": {f"{n // 2048}x": n for n in (2048, 4096, 8192, 16384, 32768)},
            "stride_tokens": 256,
            "bos": "none",
        },
    ),
    "pose_sliding": Preset(
        source=(
            "PoSE (arXiv 2309.10400), table 1, with the script it was released with: BOS is read "
            "before every window and takes one of its tokens; means of windows weighted by their "
            "tokens. The paper draws 50 documents of more than 32768 tokens, the script takes the "
            "first 50 of at least as many, BOS included, and cuts them to it."
        ),
        settings={
            "contexts": {f"{n // 2048}x": n for n in (2048, 4096, 8192, 16384, 32768)},
            "stride_tokens": 1024,
            "documents": 50,
            "minimum_tokens": 32768,
            "cut_tokens": 32768,
            "bos": "window",
            "tail": "short",
        },
    ),
    "pose_truncated": Preset(
        source=(
            "PoSE (arXiv 2309.10400), figure 4, with the script's --truncate: the first tokens of "
            "each document, BOS included, in one window; the mean is over tokens. Documents as in "
            "table 1."
        ),
        settings={
            "contexts": {f"{n / 2:g}x": 1024 * n for n in range(1, 17)},
            "stride_tokens": None,
            "documents": 50,
            "minimum_tokens": 32768,
            "cut_tokens": 32768,
            "bos": "window",
            "tail": "short",
        },
        stride="none",
    ),
    "pose_long": Preset(
        source=(
            "PoSE (arXiv 2309.10400), table 2: as table 1, with a stride of 16384, on 20 books of "
            "at least 131072 tokens, cut to it."
        ),
        settings={
            "contexts": {f"{n // 2048}x": n for n in (32768, 65536, 98304, 131072)},
            "stride_tokens": 16384,
            "documents": 20,
            "minimum_tokens": 131072,
            "cut_tokens": 131072,
            "bos": "window",
            "tail": "short",
        },
    ),
    "yarn_window_mean": Preset(
        source=(
            "YaRN (arXiv 2309.00071), the sliding-window script of its repository, which says that "
            "it was validated against Position Interpolation: windows as PoSE's, a stride of 256, "
            "and the plain mean of the means of windows, so that a last window of one token counts "
            "as much as the first."
        ),
        settings={"stride_tokens": 256, "bos": "window", "tail": "short", "mean": "windows"},
    ),
    "longlora_all_windows": Preset(
        source=(
            "LongLoRA (arXiv 2309.12307), eval.py: one stream of tokens over all documents; windows"
            " begin at 0, 256, 512, ... as long as one more token follows them, the last of these "
            "is left out; all tokens of every window count. The loss is the mean over windows. "
            "Theirs is over batches of windows (32 by default): the same, unless the last batch is "
            "smaller and so its windows count for more. Their perplexity is 2.71828 to the loss."
        ),
        settings={
            "stride_tokens": 256,
            "text": "stream",
            "bos": "none",
            "tail": "drop_last",
            "scored": "all",
            "mean": "windows",
        },
    ),
    "hf_guide": Preset(
        source=(
            "The perplexity guide of transformers' documentation: one stream, a stride of 512, a "
            "shorter last window; means of windows weighted by their labels less one. The label "
            "shift loses a label in the first window only, so every later window weighs one too "
            "little. Documents are laid end to end here with nothing between them; the guide joins "
            "them by empty lines."
        ),
        settings={
            "stride_tokens": 512,
            "text": "stream",
            "bos": "none",
            "tail": "short",
            "mean": "labels",
        },
    ),
    "lm_eval_rolling": Preset(
        source=(
            "lm-evaluation-harness 0.4.13, loglikelihood_rolling: windows do not overlap, each "
            "reads its context of tokens and predicts as many, BOS (EOS where there is none) is "
            "read before a document, the last window is moved left until it is full. Its numbers "
            "are per word and byte of the document."
        ),
        settings={"bos": "document", "window": "inputs", "tail": "full"},
        stride="window",
    ),
}


def resolve(
    name: str,
    *,
    contexts: Mapping[str, int] | None = None,
    stride_tokens: int | None = None,
    documents: int | None = None,
    minimum_tokens: int | None = None,
    cut_tokens: int | None = None,
) -> SlidingWindow:
    """Return the protocol of a preset; what is None is as the preset has it.

    Raises:
        StageError: for an unknown name, a stride where the preset leaves no choice, or contexts
            that are missing or too many.
    """
    if name not in PRESETS:
        raise StageError(f"preset {name!r} is unknown: {suggestion(name, PRESETS)}")
    preset = PRESETS[name]
    given = {
        "contexts": contexts,
        "stride_tokens": stride_tokens,
        "documents": documents,
        "minimum_tokens": minimum_tokens,
        "cut_tokens": cut_tokens,
    }
    settings = {**preset.settings, **{key: v for key, v in given.items() if v is not None}}
    if stride_tokens is not None and preset.stride != "given":
        fixed = "its context" if preset.stride == "window" else "no stride: it reads one window"
        raise StageError(
            f"preset {name!r}: leave out stride_tokens {stride_tokens}, it has {fixed}"
        )
    if "contexts" not in settings:
        raise StageError(f"preset {name!r} names no contexts: give them (label: tokens)")
    if preset.stride == "window":
        if len(settings["contexts"]) != 1:
            raise StageError(
                f"preset {name!r} has the context as its stride: give one context at a time, not "
                f"{dict(settings['contexts'])}"
            )
        settings["stride_tokens"] = next(iter(settings["contexts"].values()))
    try:
        return SlidingWindow(**settings)
    except ValueError as error:
        raise StageError(f"preset {name!r}: {error}") from None


def at(name: str, context_tokens: int, stride_tokens: int) -> SlidingWindow:
    """Return the protocol of a preset at one context, and at one stride where it has a choice.

    Raises:
        StageError: for an unknown name, or a stride that the context has no room for.
    """
    free = name in PRESETS and PRESETS[name].stride == "given"
    return resolve(
        name, contexts={name: context_tokens}, stride_tokens=stride_tokens if free else None
    )
