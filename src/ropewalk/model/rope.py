"""Rotary position embedding: how a position becomes angles, method by method.

A token at position p turns pair i of every head by the angle p * theta_i. Every method is a pure
function in float64 that returns the theta_i; nothing here caches and nothing remembers a length.

Legend: d rotary dimension (even), i pair, b base, s factor, L pretraining window in tokens.
"""

import math
from typing import Any

import numpy as np
import torch

from ropewalk.base.canonical import plain
from ropewalk.model.spec import (
    Architecture,
    BaseRope,
    DynamicNtkRope,
    Frequencies,
    LinearRope,
    Llama3Rope,
    LogScaledRope,
    NtkRope,
    PlainRope,
    Rope,
    StringRope,
    YarnRevisedRope,
    YarnRope,
)

DOCUMENTED = ("default", "linear", "dynamic", "yarn", "llama3")  # types that transformers has


def rotary_dimension(architecture: Architecture) -> int:
    """Return how many of a head's dimensions are turned (even)."""
    return int(architecture.head_dimension * architecture.rotary_share)


def plain_frequencies(base: float, dimension: int) -> np.ndarray:
    """Return theta_i = b^(-2i/d) as float64 [d/2] (RoFormer, arXiv 2104.09864, eq. 15)."""
    return base ** (-np.arange(0, dimension, 2, dtype=np.float64) / dimension)


def linear_frequencies(plain: np.ndarray, factor: float) -> np.ndarray:
    """Return theta_i / s: f'(x, m) = f(x, m / s) (Position Interpolation, 2306.15595, eq. 4)."""
    return plain / factor


def ntk_base(base: float, dimension: int, factor: float) -> float:
    """Return b * s^(d / (d - 2)) (PoSE, arXiv 2309.10400, section 3.1, "NTK interpolation").

    The slowest pair becomes slower by exactly s, the fastest by nothing.

    Raises:
        ValueError: for a rotary dimension of 2, whose only pair is both.
    """
    if dimension <= 2:
        raise ValueError(f"rotary dimension {dimension}: NTK needs at least two pairs")
    return base * factor ** (dimension / (dimension - 2))


def dynamic_ntk_base(
    base: float, dimension: int, factor: float, window_tokens: int, length_tokens: int
) -> float:
    """Return the base for a sequence of `length_tokens` = n.

    b * (s n / L - (s - 1))^(d / (d - 2)) where n is above L, else b: the method known as "dynamic
    NTK" in transformers (YaRN, arXiv 2309.00071, section 3.3, with s = 1 its n / L).
    """
    length = max(length_tokens, window_tokens)
    return ntk_base(base, dimension, factor * length / window_tokens - (factor - 1))


def yarn_kept(
    base: float, dimension: int, window_tokens: int, beta_fast: float, beta_slow: float
) -> np.ndarray:
    """Return how far every pair keeps its frequency: 1 kept, 0 interpolated, float64 [d/2].

    The pair that makes r turns within L has index D(r) = d ln(L / (2 pi r)) / (2 ln b); the ramp is
    linear in the index between floor D(beta_fast) and ceil D(beta_slow) (YaRN, arXiv 2309.00071,
    section 3.2, as its code has it; the paper's text makes the ramp linear in r).
    """

    def pair(turns: float) -> float:
        return dimension * math.log(window_tokens / (2 * math.pi * turns)) / (2 * math.log(base))

    low = max(math.floor(pair(beta_fast)), 0)
    high = min(math.ceil(pair(beta_slow)), dimension - 1)
    width = high - low if high != low else 0.001  # a step, where all pairs lie on one side
    ramp = (np.arange(dimension // 2, dtype=np.float64) - low) / width
    return 1 - ramp.clip(0, 1)


def yarn_frequencies(plain: np.ndarray, kept: np.ndarray, factor: float) -> np.ndarray:
    """Return theta_i ((1 - g_i) / s + g_i) (YaRN, arXiv 2309.00071, eq. 13)."""
    return plain * ((1 - kept) / factor + kept)


def yarn_revised_frequencies(plain: np.ndarray, kept: np.ndarray, factor: float) -> np.ndarray:
    """Return theta_i / ((1 - g_i) s + g_i): wavelengths are interpolated, not frequencies.

    The form PoSE used for LLaMA and Baichuan (YaRN's final paper names it in footnote 4). Within
    the ramp it is slower than the original, by up to 2.5 times at s = 8.
    """
    return plain / ((1 - kept) * factor + kept)


def yarn_attention_factor(factor: float) -> float:
    """Return 0.1 ln(s) + 1, by which cos and sin are multiplied (YaRN, eq. 22).

    So the logits are multiplied by its square.
    """
    return 0.1 * math.log(factor) + 1


def llama3_frequencies(plain: np.ndarray, rope: Llama3Rope) -> np.ndarray:
    """Return the frequencies Llama 3.1 was trained with (its released configuration and code).

    Wavelengths above L / low are interpolated, those below L / high kept; between them the share
    that is kept grows linearly with the turns within L.
    """
    turns = rope.original_tokens * plain / (2 * math.pi)
    kept = (turns - rope.low_frequency_factor) / (
        rope.high_frequency_factor - rope.low_frequency_factor
    )
    return plain * (kept.clip(0, 1) + (1 - kept.clip(0, 1)) / rope.factor)


def log_scale(position: torch.Tensor, window_tokens: int) -> torch.Tensor:
    """Return max(1, ln(m + 1) / ln(T)) for positions m, float64, shaped like `position`.

    The query at position m attends to m + 1 tokens; logits grow as log_T of that beyond T, the
    log-n rule (Chiang and Cholak, arXiv 2202.12172; the variant "log-scaled" in the results of
    arXiv 2310.05209, which prints no formula: assumed).
    """
    return (position.double().log1p() / math.log(window_tokens)).clamp_min(1.0)


def frequencies_of(rope: Rope) -> Frequencies:
    """Return the part of a rope that says how fast pairs turn."""
    return rope.frequencies if isinstance(rope, LogScaledRope | StringRope) else rope


def inverse_frequencies(
    architecture: Architecture, rope: Rope, *, length_tokens: int | None = None
) -> np.ndarray:
    """Return the radians per position of every pair, float64 [rotary_dimension / 2].

    `length_tokens` is what is read; only `dynamic_ntk` looks at it (None: the pretraining window).
    """
    dimension, base = rotary_dimension(architecture), architecture.rope_base
    window = architecture.context_tokens
    given = plain_frequencies(base, dimension)
    match frequencies_of(rope):
        case PlainRope():
            return given
        case BaseRope(base=other):
            return plain_frequencies(other, dimension)
        case LinearRope(factor=factor):
            return linear_frequencies(given, factor)
        case NtkRope(factor=factor):
            return plain_frequencies(ntk_base(base, dimension, factor), dimension)
        case YarnRope() as yarn:
            kept = yarn_kept(base, dimension, window, yarn.beta_fast, yarn.beta_slow)
            return yarn_frequencies(given, kept, yarn.factor)
        case YarnRevisedRope() as yarn:
            kept = yarn_kept(base, dimension, window, yarn.beta_fast, yarn.beta_slow)
            return yarn_revised_frequencies(given, kept, yarn.factor)
        case Llama3Rope() as llama3:
            return llama3_frequencies(given, llama3)
        case DynamicNtkRope(factor=factor):
            length = length_tokens or window
            grown = dynamic_ntk_base(base, dimension, factor, window, length)
            return plain_frequencies(grown, dimension)


def attention_factor(rope: Rope) -> float:
    """Return by what cos and sin are multiplied; attention logits are by its square."""
    frequencies = frequencies_of(rope)
    factor = rope.attention_factor if isinstance(rope, StringRope) else 1.0
    if isinstance(frequencies, YarnRope | YarnRevisedRope):
        given = frequencies.attention_factor
        factor *= yarn_attention_factor(frequencies.factor) if given is None else given
    return factor


def rope_parameters(architecture: Architecture, rope: Rope) -> dict[str, Any]:
    """Return the complete `rope_parameters` dict of transformers 5.

    transformers reads the dict once, in the model's constructor; anything left out there falls back
    to a default without a word, so every key is always given. Methods that are another base in
    disguise say so; those that transformers does not have keep their own name, which it refuses.
    """
    dimension, base = rotary_dimension(architecture), architecture.rope_base
    shared = {"rope_theta": base, "partial_rotary_factor": architecture.rotary_share}
    match rope:
        case PlainRope():
            return {"rope_type": "default", **shared}
        case BaseRope(base=other):
            return {"rope_type": "default", **shared, "rope_theta": other}
        case NtkRope(factor=factor):
            grown = ntk_base(base, dimension, factor)
            return {"rope_type": "default", **shared, "rope_theta": grown}
        case LinearRope(factor=factor):
            return {"rope_type": "linear", "factor": factor, **shared}
        case DynamicNtkRope(factor=factor):
            return {"rope_type": "dynamic", "factor": factor, **shared}
        case YarnRope():
            return {
                "rope_type": "yarn",
                "factor": rope.factor,
                "beta_fast": rope.beta_fast,
                "beta_slow": rope.beta_slow,
                "attention_factor": attention_factor(rope),
                "original_max_position_embeddings": architecture.context_tokens,
                "truncate": True,
                **shared,
            }
        case Llama3Rope():
            return {
                "rope_type": "llama3",
                "factor": rope.factor,
                "low_freq_factor": rope.low_frequency_factor,
                "high_freq_factor": rope.high_frequency_factor,
                "original_max_position_embeddings": rope.original_tokens,
                **shared,
            }
        case YarnRevisedRope() | LogScaledRope() | StringRope():
            settings = plain(rope)
            return {
                "rope_type": settings.pop("kind"),
                **settings,
                "original_max_position_embeddings": architecture.context_tokens,
                **shared,
            }
