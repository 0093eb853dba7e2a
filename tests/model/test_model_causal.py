"""Blocked causal attention on a CPU against torch's kernel and against fp64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_sample import LLAMA, ids, small
from torch.nn.functional import scaled_dot_product_attention

from ropewalk.model import causal as causal_module
from ropewalk.model.causal import causal
from ropewalk.model.forward import hidden

SCALING = 0.3


def made(dtype: torch.dtype, shape: tuple[int, ...], seed: int, size: float = 1.0) -> list:
    """Return query, key, value and the gradient of the output."""
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=random).mul_(size).to(dtype) for _ in range(4)]


def with_gradients(attend: object, tensors: list, dtype: torch.dtype) -> list[torch.Tensor]:
    *given_, gradient = (tensor.to(dtype) for tensor in tensors)
    leaves = [tensor.requires_grad_() for tensor in given_]
    output = attend(*leaves)
    return [output.detach(), *torch.autograd.grad(output, leaves, gradient)]


def reference(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return scaled_dot_product_attention(query, key, value, is_causal=True, scale=SCALING)


def blocked(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return causal(query, key, value, SCALING)


@settings(max_examples=25, deadline=None)
@given(
    squares=st.integers(1, 5),
    heads=st.integers(1, 7),
    tokens=st.sampled_from([1, 2, 127, 128, 129, 256, 300]),
    dimension=st.sampled_from([2, 8, 32]),
    seed=st.integers(0, 99),
)
def test_model_causal_equals_torch(
    squares: int, heads: int, tokens: int, dimension: int, seed: int
) -> None:
    """The last block and the last group are smaller; a gradient lost there trains silently."""
    tensors = made(torch.float64, (squares, heads, tokens, dimension), seed)
    mine, theirs = (with_gradients(a, tensors, torch.float64) for a in (blocked, reference))
    for found, expected in zip(mine, theirs, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("size", [1.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_model_causal_is_as_exact_as_the_kernel(dtype: torch.dtype, size: float) -> None:
    """Logits rounded to bf16 are off by percents as soon as they are large."""
    tensors = made(dtype, (2, 4, 300, 32), 0, size)
    exact = with_gradients(reference, tensors, torch.float64)
    mine, theirs = (with_gradients(a, tensors, dtype) for a in (blocked, reference))
    for found, kernel, expected in zip(mine, theirs, exact, strict=True):
        assert found.dtype == dtype
        error, allowed = (float((t.double() - expected).norm()) for t in (found, kernel))
        assert error < 2 * allowed


def test_model_causal_without_gradients_keeps_nothing() -> None:
    """Evaluation of long rows would hold every probability of every layer."""
    query, key, value, _ = made(torch.float32, (1, 2, 200, 8), 0)
    kept: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with torch.no_grad():
            torch.testing.assert_close(blocked(query, key, value), reference(query, key, value))
        assert not kept
        blocked(query.requires_grad_(), key, value)
        assert any(tensor.shape[-2:] == (128, 128) for tensor in kept)


@pytest.mark.parametrize("tokens", [64, 300, 769])
def test_model_causal_is_where_training_meets_it(tokens: int) -> None:
    """Rows of a model that never reach the faster way, or too long ones that do."""
    calls: list[int] = []

    def counted(query: torch.Tensor, *given: object) -> torch.Tensor:
        calls.append(query.shape[2])
        return causal(query, *given)

    model, theirs = small(LLAMA), small(LLAMA)
    theirs.set_attn_implementation("eager")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(causal_module, "causal", counted)
        found = hidden(model, ids(1, tokens), None)
    assert calls == ([tokens] * LLAMA.layers if tokens < 769 else [])
    expected = theirs.base_model(input_ids=ids(1, tokens), use_cache=False).last_hidden_state
    torch.testing.assert_close(found, expected, atol=3e-5, rtol=1e-4)
