"""Small models of both families."""

import numpy as np
import torch
from transformers import PreTrainedModel

from ropewalk.model.build import build
from ropewalk.model.spec import Architecture, Numerics, PlainRope, Rope
from ropewalk.model.weights import Scratch

CPU = torch.device("cpu")
LLAMA = Architecture(
    layers=2,
    hidden=32,
    heads=4,
    kv_heads=2,
    ffn=48,
    vocabulary_size=64,
    context_tokens=32,
    init_std=0.2,  # large enough for attention to be far from uniform
)
NEOX = Architecture(
    family="gpt_neox",
    layers=2,
    hidden=32,
    heads=4,
    ffn=48,
    vocabulary_size=64,
    context_tokens=32,
    rotary_share=0.5,
    init_std=0.2,
)
TIED = Architecture(
    layers=1,
    hidden=32,
    heads=2,
    ffn=48,
    vocabulary_size=64,
    context_tokens=32,
    tied_embeddings=True,
)


def small(
    architecture: Architecture, rope: Rope | None = None, numerics: Numerics | None = None
) -> PreTrainedModel:
    """Return a model with random weights on the CPU."""
    source = Scratch(seed=3, std=architecture.init_std)
    return build(architecture, rope or PlainRope(), numerics or Numerics(), CPU, source)


def ids(rows: int, tokens: int, seed: int = 0) -> torch.Tensor:
    """Return random token ids [rows, tokens]."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 64, (rows, tokens)))
