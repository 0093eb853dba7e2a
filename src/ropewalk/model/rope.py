"""Rotary position embedding: how a position becomes angles.

A token at position p turns pair i of every head by the angle p * theta_i. A method is one function
that returns the theta_i; nothing here caches and nothing depends on a length seen before.
"""

from typing import Any

import numpy as np

from ropewalk.model.spec import Architecture, LinearRope, PlainRope, Rope


def rotary_dimension(architecture: Architecture) -> int:
    """Return how many of a head's dimensions are turned (even)."""
    return int(architecture.head_dimension * architecture.rotary_share)


def plain_frequencies(base: float, dimension: int) -> np.ndarray:
    """Return theta_i = base^(-2i/d) as float64 [d/2] (RoFormer, arXiv 2104.09864, eq. 15)."""
    return base ** (-np.arange(0, dimension, 2, dtype=np.float64) / dimension)


def inverse_frequencies(architecture: Architecture, rope: Rope) -> np.ndarray:
    """Return the radians per position of every pair, float64 [rotary_dimension / 2]."""
    plain = plain_frequencies(architecture.rope_base, rotary_dimension(architecture))
    match rope:
        case PlainRope():
            return plain
        case LinearRope(factor=factor):
            # f'(x, m) = f(x, m / factor): dividing positions is dividing frequencies
            # (Position Interpolation, arXiv 2306.15595, eq. 4).
            return plain / factor


def rope_parameters(architecture: Architecture, rope: Rope) -> dict[str, Any]:
    """Return the complete `rope_parameters` dict of transformers 5.

    transformers reads the dict once, in the model's constructor; anything left out there falls back
    to a default without a word, so every key is always given.
    """
    shared = {
        "rope_theta": architecture.rope_base,
        "partial_rotary_factor": architecture.rotary_share,
    }
    match rope:
        case PlainRope():
            return {"rope_type": "default", **shared}
        case LinearRope(factor=factor):
            return {"rope_type": "linear", "factor": factor, **shared}
