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


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlainRope:
    """Rotary embedding as pretrained: no rescaling."""

    kind: Literal["plain"] = "plain"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearRope:
    """Position Interpolation: positions divided by `factor` (arXiv 2306.15595, eq. 4)."""

    kind: Literal["linear"] = "linear"
    factor: float

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise ValueError(f"factor {self.factor} is below 1; interpolation needs a factor >= 1")


Rope = PlainRope | LinearRope


@dataclasses.dataclass(frozen=True, kw_only=True)
class NaturalPositions:
    """Positions 0, 1, 2, ... of the window."""

    kind: Literal["natural"] = "natural"


Positions = NaturalPositions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Numerics:
    """How numbers are computed: part of the study, never chosen by the hardware."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    matmul: Literal["highest", "high", "medium"] = "highest"  # torch.set_float32_matmul_precision
    attention: Literal["sdpa", "flash"] = "sdpa"
