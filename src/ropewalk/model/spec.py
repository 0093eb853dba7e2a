"""What the model room can be asked for."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """Shape of a decoder. Dimensions in units; `context_tokens` is the pretraining window."""

    family: Literal["llama", "gpt_neox"] = "llama"
    layers: int
    hidden: int
    heads: int
    kv_heads: int | None = None  # None: as many as heads
    ffn: int
    vocabulary_size: int
    context_tokens: int
    rope_base: float = 10000.0
    rotary_share: float = 1.0  # of the head dimension (GPT-NeoX: 0.25)
    norm_epsilon: float = 1e-5
    tied_embeddings: bool = False
    init_std: float = 0.02

    def __post_init__(self) -> None:
        for name in ("layers", "hidden", "heads", "ffn", "vocabulary_size", "context_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be at least 1")
        if self.kv_heads is not None and self.kv_heads < 1:
            raise ValueError(f"kv_heads {self.kv_heads} must be at least 1")
        if self.hidden % self.heads:
            raise ValueError(f"hidden {self.hidden} is not divisible by heads {self.heads}")
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"heads {self.heads} is not divisible by kv_heads {self.kv_heads}")
        if (self.hidden // self.heads) % 2:
            raise ValueError(f"head dimension {self.hidden // self.heads} is odd; RoPE needs pairs")

    @property
    def head_dimension(self) -> int:
        """Return hidden / heads."""
        return self.hidden // self.heads


# Rope: the angles per position of every pair, and what attention does beside turning.


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlainRope:
    """Rotary embedding as pretrained: no rescaling."""

    kind: Literal["plain"] = "plain"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseRope:
    """Another base than in pretraining (Scaling Laws of RoPE-based Extrapolation, 2310.05209)."""

    kind: Literal["base"] = "base"
    base: float

    def __post_init__(self) -> None:
        if self.base <= 1:
            raise ValueError(f"base {self.base} must be above 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearRope:
    """Position Interpolation: positions divided by `factor` (arXiv 2306.15595, eq. 4)."""

    kind: Literal["linear"] = "linear"
    factor: float

    def __post_init__(self) -> None:
        _check_factor(self.factor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NtkRope:
    """Static NTK: a base that makes the slowest pair `factor` times slower (PoSE, section 3.1)."""

    kind: Literal["ntk"] = "ntk"
    factor: float

    def __post_init__(self) -> None:
        _check_factor(self.factor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class YarnRope:
    """YaRN (arXiv 2309.00071): slow pairs interpolated, fast ones kept, a ramp between them."""

    kind: Literal["yarn"] = "yarn"
    factor: float
    beta_fast: float = 32.0  # turns within the pretraining window: pairs with more are kept
    beta_slow: float = 1.0  # pairs with fewer are interpolated
    attention_factor: float | None = None  # of cos and sin; None: 0.1 ln(factor) + 1 (eq. 22)

    def __post_init__(self) -> None:
        _check_factor(self.factor)
        _check_betas(self.beta_fast, self.beta_slow)


@dataclasses.dataclass(frozen=True, kw_only=True)
class YarnRevisedRope:
    """YaRN with wavelengths interpolated in the ramp in place of frequencies, as PoSE used it."""

    kind: Literal["yarn_revised"] = "yarn_revised"
    factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        _check_factor(self.factor)
        _check_betas(self.beta_fast, self.beta_slow)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama3Rope:
    """As Llama 3.1 was trained: slow pairs interpolated, fast ones kept, a ramp in turns."""

    kind: Literal["llama3"] = "llama3"
    factor: float
    low_frequency_factor: float = 1.0  # turns within `original_tokens`
    high_frequency_factor: float = 4.0
    original_tokens: int

    def __post_init__(self) -> None:
        _check_factor(self.factor)
        if not 0 < self.low_frequency_factor < self.high_frequency_factor:
            raise ValueError(
                f"low_frequency_factor {self.low_frequency_factor} must lie between 0 and "
                f"high_frequency_factor {self.high_frequency_factor}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DynamicNtkRope:
    """NTK whose base grows with the length that is read; for inference only."""

    kind: Literal["dynamic_ntk"] = "dynamic_ntk"
    factor: float = 1.0

    def __post_init__(self) -> None:
        _check_factor(self.factor)


Frequencies = (
    PlainRope
    | BaseRope
    | LinearRope
    | NtkRope
    | YarnRope
    | YarnRevisedRope
    | Llama3Rope
    | DynamicNtkRope
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogScaledRope:
    """Attention logits of the query at position m multiplied by max(1, log_window(m + 1))."""

    kind: Literal["log_scaled"] = "log_scaled"
    window_tokens: int  # up to here nothing changes
    frequencies: Frequencies = PlainRope()

    def __post_init__(self) -> None:
        if self.window_tokens < 2:
            raise ValueError(f"window_tokens {self.window_tokens} is below 2")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StringRope:
    """STRING (arXiv 2410.18745): far distances read as nearer, well trained ones; inference only.

    Distances d >= `shift_tokens` become d - shift_tokens + window_tokens.
    """

    kind: Literal["string"] = "string"
    shift_tokens: int  # S; the paper: a third of the training length
    window_tokens: int  # W; the paper: 128, at least 32
    attention_factor: float = 1.0  # of cos and sin; the released Hugging Face code: 0.1 ln 2 + 1
    variant: Literal["exact", "released"] = "exact"
    # released: distance S counts twice, at S and at W, as in the authors' prefill
    frequencies: Frequencies = PlainRope()

    def __post_init__(self) -> None:
        if self.shift_tokens < 1:
            raise ValueError(f"shift_tokens {self.shift_tokens} is below 1")
        if not 0 <= self.window_tokens <= self.shift_tokens:
            raise ValueError(
                f"window_tokens {self.window_tokens} must lie in [0, shift_tokens "
                f"{self.shift_tokens}]: a larger one moves tokens away, not nearer"
            )
        if isinstance(self.frequencies, DynamicNtkRope):
            raise ValueError(
                "frequencies.kind 'dynamic_ntk' turns each row by its own length; string turns all "
                "rows of a batch alike"
            )


Rope = Frequencies | LogScaledRope | StringRope


def _check_factor(factor: float) -> None:
    if factor < 1:
        raise ValueError(f"factor {factor} is below 1; interpolation needs a factor >= 1")


def _check_betas(fast: float, slow: float) -> None:
    if not 0 < slow < fast:
        raise ValueError(f"beta_slow {slow} must lie between 0 and beta_fast {fast}")


# Positions: which number each token of a training row has.


@dataclasses.dataclass(frozen=True, kw_only=True)
class NaturalPositions:
    """Positions 0, 1, 2, ... of the window."""

    kind: Literal["natural"] = "natural"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PosePositions:
    """PoSE (arXiv 2309.10400, section 3.2): chunks of a row placed apart in a longer window."""

    kind: Literal["pose"] = "pose"
    target_tokens: int  # Lt: positions lie in [0, target_tokens)
    chunks: int = 2  # N
    lengths: Literal["uniform", "short_first"] = "uniform"
    # of the chunks: drawn one after the other (fig. 6), or the first of two never longer than half
    # (the released training code)
    content: Literal["random", "contiguous", "aligned"] = "random"
    # what the chunks are of a document: apart by drawn gaps (v_i), without gaps (v_i = 0), or
    # where their positions say (v_i = u_i)
    first: Literal["zero", "random"] = "zero"  # position of the first token (random: version 1)
    document_tokens: int | None = None
    # content random: read only so many tokens of a document (released code: 5 windows)

    def __post_init__(self) -> None:
        if self.chunks < 1:
            raise ValueError(f"chunks {self.chunks} is below 1")
        if self.lengths == "short_first" and self.chunks != 2:
            raise ValueError(f"lengths 'short_first' is a rule for 2 chunks, not {self.chunks}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandPosPositions:
    """RandPos (PoSE, section 4.1): sorted distinct positions drawn from a longer window."""

    kind: Literal["randpos"] = "randpos"
    target_tokens: int  # positions lie in [0, target_tokens)


Positions = NaturalPositions | PosePositions | RandPosPositions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Numerics:
    """How numbers are computed: part of the study, never chosen by the hardware."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    matmul: Literal["highest", "high", "medium"] = "highest"  # torch.set_float32_matmul_precision
    attention: Literal["sdpa", "flash"] = "sdpa"
