"""Floating-point operations of training and reading, counted from the shape of a model.

A multiplication with its addition is two FLOPs. Only matrix products count: element-wise work is
below one percent of them and bound by memory. Three counts, for three uses:

* `step_flops`: what one step of training executes. Attention costs what it attends to, so that
  documents kept apart do not look like fast hardware.
* `forward_flops`: what reading without training executes, logits only where they are asked for.
* `model_flops_per_token`: the convention of published utilisations (PaLM, arXiv 2204.02311,
  appendix B), which counts attention over the full square of a window.

Neither counts what activation checkpointing computes again.
"""

import itertools
from collections.abc import Iterable, Sequence

from ropewalk.model.spec import Architecture

STEP_FORMULA = (
    "6 * weights in matrix products * tokens + 12 * layers * heads * head dimension * pairs; "
    "weights: all matrices, of the two embeddings the output only; pairs: sum over segments of "
    "n(n+1)/2; recomputed activations not counted"
)
MODEL_FORMULA = (
    "6 * parameters without the input embedding + 12 * layers * hidden * length, per token "
    "(PaLM, arXiv 2204.02311, appendix B)"
)


def matmul_parameters(architecture: Architecture) -> int:
    """Return the weights every token is multiplied with.

    Those are all matrices but the input embedding, which is looked up; a tied matrix counts once,
    as the output matrix. Biases and norms are no products.
    """
    a = architecture
    if a.family == "gpt_neox":
        attention = 4 * a.hidden * a.hidden
        ffn = 2 * a.hidden * a.ffn
    else:
        key_value = (a.kv_heads or a.heads) * a.head_dimension
        attention = 2 * a.hidden * a.hidden + 2 * a.hidden * key_value
        ffn = 3 * a.hidden * a.ffn  # gate, up, down
    return a.layers * (attention + ffn) + _embedding(a)


def parameters(architecture: Architecture) -> int:
    """Return all parameters of a model; a tied matrix counts once."""
    a = architecture
    if a.family == "gpt_neox":
        norms = (2 * a.layers + 1) * 2 * a.hidden  # weight and bias
        biases = a.layers * (3 * a.hidden + a.hidden + a.ffn + a.hidden)
    else:
        norms = (2 * a.layers + 1) * a.hidden
        biases = 0
    looked_up = 0 if a.tied_embeddings else _embedding(a)
    return matmul_parameters(a) + norms + biases + looked_up


def attended_pairs(boundaries: Iterable[Sequence[int]]) -> int:
    """Return how many (query, key) pairs causal attention computes: n(n+1)/2 per segment of n.

    `boundaries` has per row the ends (0, ..., T) of its segments, as `attention.Segments.rows`;
    padding is computed too and counts where its end is among them.
    """
    pairs = 0
    for row in boundaries:
        for start, end in itertools.pairwise(row):
            pairs += (end - start) * (end - start + 1) // 2
    return pairs


def step_flops(architecture: Architecture, *, tokens: int, pairs: int) -> int:
    """Return the FLOPs of one step's matrix products: forward, and twice that backward.

    `tokens` are all that are read, targets or not; `pairs` is `attended_pairs` of all rows. A
    pair costs 2 * heads * head dimension in Q K^T and as much in P V.
    """
    a = architecture
    attention = 3 * 4 * a.layers * a.heads * a.head_dimension * pairs
    return 3 * 2 * matmul_parameters(a) * tokens + attention


def forward_flops(architecture: Architecture, *, tokens: int, pairs: int, predicting: int) -> int:
    """Return the FLOPs of one forward pass's matrix products.

    2 * (weights of the blocks) * tokens + 4 * layers * heads * head dimension * pairs
    + 2 * vocabulary * hidden * predicting: `tokens` are read, `pairs` is `attended_pairs` of their
    rows, and `predicting` of them have logits.

    Not counted: norms, rotations, softmax and losses; pairs that a kernel computes and throws away
    (above the diagonal, in the squares of STRING), and those it computes twice.
    """
    a = architecture
    blocks = matmul_parameters(a) - _embedding(a)
    attention = 4 * a.layers * a.heads * a.head_dimension * pairs
    return 2 * blocks * tokens + attention + 2 * _embedding(a) * predicting


def model_flops_per_token(architecture: Architecture, length_tokens: int) -> int:
    """Return the FLOPs per token that published utilisations are computed from.

    6 N' + 12 * layers * hidden * length (PaLM, arXiv 2204.02311, appendix B), where N' are the
    parameters without the input embedding; a tied matrix counts as the output matrix.
    """
    a = architecture
    counted = parameters(a) - (0 if a.tied_embeddings else _embedding(a))
    return 6 * counted + 12 * a.layers * a.hidden * length_tokens


def _embedding(architecture: Architecture) -> int:
    return architecture.vocabulary_size * architecture.hidden
