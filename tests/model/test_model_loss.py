"""Chunked cross entropy against torch's own, and which tokens are targets at all."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_sample import CPU, LLAMA, TIED, ids, small

from ropewalk.model import loss as loss_module
from ropewalk.model.forward import Objective, hidden, inputs, loss_sum
from ropewalk.model.loss import IGNORED, linear_cross_entropy_sum, next_token_labels
from ropewalk.model.spec import Architecture


@settings(max_examples=30, deadline=None)
@given(
    tokens=st.integers(1, 40),
    vocabulary=st.integers(2, 50),
    ignored=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_model_loss_equals_cross_entropy(
    tokens: int, vocabulary: int, ignored: float, seed: int
) -> None:
    """Gradients are computed by hand in forward: a wrong sign or a lost chunk trains silently."""
    rng = np.random.default_rng(seed)
    hidden = torch.from_numpy(rng.normal(size=(tokens, 6))).requires_grad_()
    weight = torch.from_numpy(rng.normal(size=(vocabulary, 6))).requires_grad_()
    labels = rng.integers(0, vocabulary, tokens)
    labels[rng.random(tokens) < ignored] = IGNORED
    target = torch.from_numpy(labels)
    found = linear_cross_entropy_sum(hidden, weight, target)
    mine = torch.autograd.grad(found * 0.37, (hidden, weight))
    expected = torch.nn.functional.cross_entropy(
        hidden @ weight.T, target, ignore_index=IGNORED, reduction="sum"
    )
    theirs = torch.autograd.grad(expected * 0.37, (hidden, weight))
    torch.testing.assert_close(found, expected)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_model_loss_does_not_depend_on_the_chunk() -> None:
    """The last chunk is shorter than the others."""
    torch.manual_seed(0)
    tokens = 2 * (loss_module.CHUNK_LOGITS // 4096) + 7
    hidden = torch.randn(tokens, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4096, 8, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 4096, (tokens,))
    mine = torch.autograd.grad(linear_cross_entropy_sum(hidden, weight, target), (hidden, weight))
    whole = torch.nn.functional.cross_entropy(hidden @ weight.T, target, reduction="sum")
    for a, b in zip(mine, torch.autograd.grad(whole, (hidden, weight)), strict=True):
        torch.testing.assert_close(a, b)


def test_model_loss_is_fp32_under_autocast() -> None:
    """A softmax in bf16 over a large vocabulary is off by percents."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(64, 16), torch.randn(500, 16)
    target = torch.randint(0, 500, (64,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = linear_cross_entropy_sum(hidden, weight, target)
    assert found.dtype == torch.float32
    logits = (hidden.bfloat16() @ weight.bfloat16().T).float()
    expected = torch.nn.functional.cross_entropy(logits, target, reduction="sum")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


@settings(deadline=None)
@given(
    ends=st.lists(
        st.sets(st.integers(1, 12), min_size=1).map(lambda s: (0, *sorted(s))),
        min_size=1,
        max_size=4,
    )
)
def test_model_targets_stay_inside_segments(ends: list[tuple[int, ...]]) -> None:
    """The first token of a document must not be predicted from another document."""
    tokens = np.arange(len(ends) * 12).reshape(-1, 12)
    labels = next_token_labels(tokens, ends)
    for row, bounds in enumerate(ends):
        expected = {
            place: tokens[row, place + 1]
            for start, end in itertools.pairwise(bounds)
            for place in range(start, end - 1)
        }
        found = {p: int(v) for p, v in enumerate(labels[row]) if v != IGNORED}
        assert found == expected


@settings(deadline=None)
@given(
    ends=st.sets(st.integers(1, 12), min_size=1).map(lambda s: (0, *sorted(s))),
    learned=st.lists(st.booleans(), min_size=12, max_size=12),
)
def test_model_only_tokens_marked_as_targets_are_predicted(
    ends: tuple[int, ...], learned: list[bool]
) -> None:
    """A mask that is not shifted with the labels trains on the last token of every prompt."""
    tokens = np.arange(12)[None]
    labels = next_token_labels(tokens, [ends], np.array([learned]))
    expected = {
        place: place + 1
        for start, end in itertools.pairwise(ends)
        for place in range(start, end - 1)
        if learned[place + 1]
    }
    assert {p: int(v) for p, v in enumerate(labels[0]) if v != IGNORED} == expected
    unmasked = next_token_labels(tokens, [ends])
    assert (next_token_labels(tokens, [ends], np.ones((1, 12), dtype=bool)) == unmasked).all()


@pytest.mark.parametrize("architecture", [LLAMA, TIED], ids=["untied", "tied"])
def test_model_objective_equals_logits_and_cross_entropy(architecture: Architecture) -> None:
    """With tied embeddings the gradient has two parts; losing one trains a worse model quietly."""
    tokens, bounds = ids(2, 16), [(0, 6, 16), (0, 11)]
    rows = inputs(tokens.numpy(), bounds, np.arange(16)[None], CPU)
    mine, theirs = small(architecture), small(architecture)
    found, count = loss_sum(Objective(mine), rows)
    found.backward()
    logits = theirs.lm_head(hidden(theirs, tokens, bounds))
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), rows.labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    expected.backward()
    assert count == 5 + 9 + 10
    half = np.arange(16)[None].repeat(2, 0) >= 8
    assert inputs(tokens.numpy(), bounds, np.arange(16)[None], CPU, half).targets == 8 + 3
    torch.testing.assert_close(found, expected)
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4)
