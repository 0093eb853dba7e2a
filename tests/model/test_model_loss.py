"""Chunked cross entropy against torch's own, and which tokens are targets at all."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_sample import CPU, LLAMA, TIED, ids, small

from ropewalk.model import loss as loss_module
from ropewalk.model.forward import Objective, hidden, inputs, loss_sum
from ropewalk.model.loss import IGNORED, linear_cross_entropy_sum, next_token_labels
from ropewalk.model.numerics import applied
from ropewalk.model.spec import Architecture, Numerics

ROOT = Path(__file__).parents[2]


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
    tokens = 2 * loss_module.chunk_tokens("cpu", 4096) + 7
    hidden = torch.randn(tokens, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4096, 8, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 4096, (tokens,))
    mine = torch.autograd.grad(linear_cross_entropy_sum(hidden, weight, target), (hidden, weight))
    whole = torch.nn.functional.cross_entropy(hidden @ weight.T, target, reduction="sum")
    for a, b in zip(mine, torch.autograd.grad(whole, (hidden, weight)), strict=True):
        torch.testing.assert_close(a, b)


@settings(max_examples=20, deadline=None)
@given(
    scale=st.sampled_from([1e-3, 1.0, 30.0, 1e4]),
    offset=st.floats(-1e4, 1e4),
    seed=st.integers(0, 99),
)
def test_model_loss_holds_for_logits_of_any_size(scale: float, offset: float, seed: int) -> None:
    """log(softmax) of a target that underflows is minus infinity, and one bad row kills a run."""
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(size=(20, 30)) * scale + offset).float()
    hidden = logits.clone().requires_grad_()  # with the identity as output matrix
    target = torch.from_numpy(rng.integers(0, 30, 20))
    found = linear_cross_entropy_sum(hidden, torch.eye(30), target)
    found.backward()
    exact = logits.double().requires_grad_()
    expected = torch.nn.functional.cross_entropy(exact, target, reduction="sum")
    expected.backward()
    ulp = float(logits.abs().max()) * 1.2e-7
    torch.testing.assert_close(found.double(), expected, rtol=3e-6, atol=20 * ulp)
    torch.testing.assert_close(hidden.grad.double(), exact.grad, rtol=1e-5, atol=1e-6 + 4 * ulp)


@pytest.mark.parametrize("ignored", [3, 30], ids=["masked", "left-out"])
def test_model_tokens_without_target_change_nothing(ignored: int) -> None:
    """Few of them are masked, many are left out of the products: two ways to count one by mistake.

    What stands there is padding, and may be anything.
    """
    torch.manual_seed(0)
    tokens = 100
    hidden, weight = torch.randn(tokens, 8), torch.randn(40, 8)
    target = torch.randint(0, 40, (tokens,))
    target[torch.randperm(tokens)[:ignored]] = IGNORED
    kept = target != IGNORED
    found = []
    for padding in (0.0, 1e4):
        rows = hidden.where(kept[:, None], padding).requires_grad_()
        matrix = weight.clone().requires_grad_()
        loss = linear_cross_entropy_sum(rows, matrix, target)
        found.append((loss, *torch.autograd.grad(loss, (rows, matrix))))
    alone = hidden[kept].requires_grad_()
    matrix = weight.clone().requires_grad_()
    expected = torch.nn.functional.cross_entropy(alone @ matrix.T, target[kept], reduction="sum")
    expected_rows, expected_matrix = torch.autograd.grad(expected, (alone, matrix))
    for loss, rows_gradient, matrix_gradient in found:
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(rows_gradient[kept], expected_rows)
        torch.testing.assert_close(matrix_gradient, expected_matrix)
        assert not rows_gradient[~kept].any()


def test_model_loss_adds_gradients_of_chunks_in_fp32() -> None:
    """A sum in bf16 stops growing after some hundred tokens: frequent words would learn no more."""
    torch.manual_seed(0)
    tokens = 6 * loss_module.chunk_tokens("cpu", 4096)
    hidden = torch.randn(tokens, 8).bfloat16().float().requires_grad_()
    weight = torch.randn(4096, 8).bfloat16().float().requires_grad_()
    target = torch.randint(0, 4, (tokens,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = linear_cross_entropy_sum(hidden, weight, target)
    mine = torch.autograd.grad(found, (hidden, weight))
    exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    expected = torch.nn.functional.cross_entropy(exact[0] @ exact[1].T, target, reduction="sum")
    for a, b in zip(mine, torch.autograd.grad(expected, exact), strict=True):
        assert a.dtype == torch.float32
        # bf16 has 8 bits: a part in 256 for each product, and less for their sum.
        assert (a - b).norm() < b.norm() / 256
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=0)


def test_model_loss_refuses_a_second_backward() -> None:
    """Gradients are scaled in place: scaled twice they would be wrong without a word."""
    hidden = torch.randn(5, 4, requires_grad=True)
    loss = linear_cross_entropy_sum(hidden, torch.randn(9, 4), torch.arange(5)) * 0.5
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_model_loss_without_gradients() -> None:
    """Evaluation asks for no gradient, fine-tuning of some weights for one of two."""
    torch.manual_seed(0)
    hidden, weight, target = torch.randn(5, 4), torch.randn(9, 4), torch.arange(5)
    expected = torch.nn.functional.cross_entropy(hidden @ weight.T, target, reduction="sum")
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy_sum(hidden, weight, target), expected)
    for one in (hidden, weight):
        one.requires_grad_()
        (mine,) = torch.autograd.grad(linear_cross_entropy_sum(hidden, weight, target), one)
        whole = torch.nn.functional.cross_entropy(hidden @ weight.T, target, reduction="sum")
        torch.testing.assert_close(mine, torch.autograd.grad(whole, one)[0])
        one.requires_grad_(False)


def test_model_loss_never_holds_whole_logits() -> None:
    """A stray copy of the logits fits here and not beside a 7B model over 128k words."""
    script = [sys.executable, str(ROOT / "benchmarks/loss.py")]
    script += ["--tokens", "2048", "--vocabulary", "16384", "--hidden", "32"]
    arms = [
        subprocess.Popen([*script, "--arm", arm, "fp32"], stdout=subprocess.PIPE, text=True)
        for arm in ("chunked", "whole")
    ]
    chunked, whole = (json.loads(arm.communicate()[0]) for arm in arms)
    logits_mb = 4 * 2048 * 16384 / 2**20
    assert whole["peak_growth_mb"] > 2 * logits_mb  # else nothing is shown
    assert chunked["peak_growth_mb"] < 0.15 * whole["peak_growth_mb"]
    for key in ("loss", "hidden_gradient_norm", "weight_gradient_norm"):
        assert chunked[key] == pytest.approx(whole[key], rel=1e-5)


def test_model_numerics_leave_new_memory_alone() -> None:
    """Deterministic mode fills every new tensor with NaN, a pass over memory that nobody needs."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    with applied(Numerics(), CPU):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory
    assert torch.utils.deterministic.fill_uninitialized_memory == before
    assert not torch.are_deterministic_algorithms_enabled()


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


def test_model_loss_in_fp16_keeps_small_and_large_gradients() -> None:
    """fp16 loses softmax values below 6e-8, and sums over a token that stands in every row.

    The loss scale cannot help: gradients of logits are computed before it is applied.
    """
    torch.manual_seed(0)
    hidden = torch.randn(512, 16)
    hidden[:, 0] = 200.0
    weight = torch.randn(4096, 16) * 0.3
    weight[:, 0] = 0.0
    target = torch.randint(0, 64, (512,))  # the other words are nobody's target
    gradients = []
    for low in (True, False):
        inputs_ = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
        with torch.autocast("cpu", dtype=torch.float16, enabled=low):
            linear_cross_entropy_sum(*inputs_, target).backward()
        gradients.append([tensor.grad for tensor in inputs_])
    (hidden_low, weight_low), (hidden_wide, weight_wide) = gradients
    assert torch.isfinite(weight_low).all()
    assert weight_wide.abs().max() > 1000
    for found, expected in ((hidden_low, hidden_wide), (weight_low[64:], weight_wide[64:])):
        assert (found - expected).norm() < 1e-3 * expected.norm()
