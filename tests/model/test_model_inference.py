"""Scoring with a pruned forward pass: against the forward of training, and what it leaves out."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from attention_reference import BACKENDS, Backend
from hypothesis import given, settings
from hypothesis import strategies as st
from model_sample import CPU, LLAMA, NEOX, TIED, ids, small
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from ropewalk.model import causal, inference, loss
from ropewalk.model.forward import hidden
from ropewalk.model.inference import losses, states
from ropewalk.model.numerics import applied
from ropewalk.model.rotary import set_rope
from ropewalk.model.spec import (
    BaseRope,
    DynamicNtkRope,
    LinearRope,
    Llama3Rope,
    LogScaledRope,
    NtkRope,
    Numerics,
    PlainRope,
    Rope,
    StringRope,
    YarnRevisedRope,
    YarnRope,
)

ROOT = Path(__file__).parents[2]
ROPES: list[Rope] = [
    PlainRope(),
    BaseRope(base=500.0),
    LinearRope(factor=4.0),
    NtkRope(factor=4.0),
    YarnRope(factor=4.0),
    YarnRevisedRope(factor=4.0),
    Llama3Rope(factor=8.0, original_tokens=32),
    DynamicNtkRope(factor=2.0),
    LogScaledRope(window_tokens=16),
    LogScaledRope(window_tokens=16, frequencies=DynamicNtkRope()),
    StringRope(shift_tokens=12, window_tokens=4),
    StringRope(shift_tokens=12, window_tokens=4, variant="released"),
]
MODELS = {"llama": LLAMA, "gpt_neox": NEOX, "tied": TIED}


def model_under(name: str, rope: Rope) -> PreTrainedModel:
    model = small(MODELS[name])
    set_rope(model, MODELS[name], rope)
    return model


@contextmanager
def sizes(
    piece: int, block: int = 128, logits: int = 2**20, kernel: bool = False
) -> Iterator[None]:
    """Cut rows into pieces and blocks of other sizes, or attend as in longer rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "PIECE_TOKENS", {"cpu": piece})
        patch.setattr(causal, "BLOCK_TOKENS", block)
        patch.setattr(causal, "LEAST_BLOCK_TOKENS", min(block, causal.LEAST_BLOCK_TOKENS))
        patch.setattr(causal, "LOGITS_OF_A_THREAD", logits)
        if kernel:
            patch.setattr(causal, "FEW_KEYS", 0)
            patch.setattr(causal, "MANY_QUERIES", 1)
        yield


@settings(max_examples=80, deadline=None)
@given(
    name=st.sampled_from(sorted(MODELS)),
    rope=st.sampled_from(ROPES),
    rows=st.integers(1, 5),
    before=st.integers(0, 70),
    count=st.integers(1, 70),
    behind=st.integers(0, 40),
    piece=st.sampled_from([13, 100, 1024]),
    block=st.sampled_from([20, 128]),
    kernel=st.booleans(),
)
def test_model_inference_states_are_those_of_the_forward(
    name: str,
    rope: Rope,
    rows: int,
    before: int,
    count: int,
    behind: int,
    piece: int,
    block: int,
    kernel: bool,
) -> None:
    """A perplexity of another model: a rope, place or row that only the fast way gets wrong."""
    model = model_under(name, rope)
    given_ids = ids(rows, before + count + behind, seed=before)
    with sizes(piece, block, kernel=kernel), torch.inference_mode():
        found = states(model, given_ids, before, count)
        expected = hidden(model, given_ids, None)[:, before : before + count]
    torch.testing.assert_close(found, expected, atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: rope.kind)
@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_model_inference_every_rope_in_every_family(name: str, rope: Rope) -> None:
    """A pair that the drawn examples happen to miss, at the sizes that runs use."""
    model = model_under(name, rope)
    given_ids = ids(2, 1300)
    with torch.inference_mode():
        found = states(model, given_ids, 1100, 150)
        expected = hidden(model, given_ids, None)[:, 1100:1250]
    torch.testing.assert_close(found, expected, atol=3e-5, rtol=1e-4)


@BACKENDS
@pytest.mark.parametrize("rope", [PlainRope(), StringRope(shift_tokens=12, window_tokens=4)])
@pytest.mark.parametrize("architecture", [LLAMA, NEOX], ids=["llama", "gpt_neox"])
def test_model_inference_on_every_backend(architecture: Any, rope: Rope, backend: Backend) -> None:
    """Another device or precision takes another way through attention."""
    model = backend.model(architecture)
    set_rope(model, architecture, rope)
    given_ids = ids(3, 90).to(backend.device)
    with (
        torch.inference_mode(),
        applied(backend.numerics, backend.device, weights_change=False),
    ):
        found = states(model, given_ids, 60, 20)
        expected = hidden(model, given_ids, None)[:, 60:80]
    assert found.dtype == torch.float32
    tolerance = 2 * backend.tolerance
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("architecture", [LLAMA, NEOX], ids=["llama", "gpt_neox"])
def test_model_inference_in_bf16_is_as_exact_as_the_forward(architecture: Any) -> None:
    """Rounding once more than training does, which no tolerance for bf16 would show."""
    model, numerics = small(architecture), Numerics(precision="bf16")
    given_ids = ids(8, 300)
    exact = hidden(model, given_ids, None)[:, 200:].detach()
    with torch.inference_mode(), applied(numerics, CPU, weights_change=False):
        found = states(model, given_ids, 200, 100)
        kernel = hidden(model, given_ids, None)[:, 200:]
    error, allowed = (float((t - exact).norm()) for t in (found, kernel))
    assert 0 < error < 1.1 * allowed


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_model_inference_rows_side_by_side(mode: Any) -> None:
    """A thread's row in another's place, or threads that compute alone from then on."""
    model, given_ids, threads = small(LLAMA), ids(5, 60), torch.get_num_threads()
    try:
        with sizes(70), mode():
            torch.set_num_threads(1)
            expected = states(model, given_ids, 20, 30)
            torch.set_num_threads(3)
            assert states(model, given_ids, 20, 30).equal(expected)
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 3
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


class Watched(TorchDispatchMode):
    """Every operation with what it was given and what it returned."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, list[torch.Tensor], torch.Tensor]] = []

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = operation(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            tensors = [value for value in args if isinstance(value, torch.Tensor)]
            self.calls.append((operation.overloadpacket.__name__, tensors, result))
        return result


def product_flops(watched: Watched) -> int:
    """Return the FLOPs of products with weights."""
    products = [call for call in watched.calls if call[0] in ("mm", "addmm")]
    return sum(2 * call[1][-2].numel() * call[1][-1].shape[1] for call in products)


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_model_inference_prunes_what_nobody_reads(name: str) -> None:
    """The whole last layer and the tokens behind would be computed and thrown away, unnoticed."""
    a, first, count, behind = MODELS[name], 40, 9, 30
    model = small(a)
    with torch.no_grad(), Watched() as watched:
        states(model, ids(2, first + count + behind), first, count)
    key_value = 2 * a.hidden * (a.kv_heads or a.heads) * a.head_dimension
    ffn = (3 if name == "llama" else 2) * a.hidden * a.ffn
    seeing = 2 * a.hidden * a.hidden + ffn
    read = first + count
    expected = (a.layers - 1) * (key_value + seeing) * read + key_value * read + seeing * count
    assert product_flops(watched) == 2 * 2 * expected


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_model_inference_memory_of_a_long_row(name: str) -> None:
    """A long row whose feed-forward network or logits exist whole runs out of memory."""
    architecture = dataclasses.replace(MODELS[name], ffn=40 * 32)
    model, tokens = small(architecture), 500
    with torch.no_grad(), sizes(50, logits=2**12), Watched() as watched:
        found = states(model, ids(1, tokens), 0, tokens)
    stream = tokens * architecture.hidden
    assert max(call[2].numel() for call in watched.calls) <= max(stream, 50 * architecture.ffn)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "CHUNK_LOGITS", 1)
        patch.setattr(loss, "LEAST_TOKENS", {"cpu": 10})
        with torch.no_grad(), Watched() as watched:
            losses(model, found, ids(1, tokens))
    assert max(call[2].numel() for call in watched.calls) <= stream < tokens * 64


def test_model_inference_casts_weights_once() -> None:
    """Under inference_mode autocast casts a matrix for every product, which nothing tells."""
    model, numerics = small(LLAMA), Numerics(precision="bf16")
    shapes = [(LLAMA.ffn, LLAMA.hidden), (LLAMA.hidden, LLAMA.ffn)]
    numerics_dtypes = (torch.float32, torch.bfloat16)
    with (
        torch.inference_mode(),
        applied(numerics, CPU, weights_change=False),
        sizes(8),
        Watched() as watched,
    ):
        states(model, ids(3, 40), 0, 40)
    copies = [
        call
        for call in watched.calls
        if call[2].shape in shapes and (call[1][0].dtype, call[2].dtype) == numerics_dtypes
    ]
    assert len(copies) == 3 * LLAMA.layers


def test_model_inference_leaves_the_model_alone() -> None:
    """A copy that is kept would go on answering after the weights have changed."""
    model = small(LLAMA)
    before = states(model, ids(1, 20), 5, 15)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    found = states(model, ids(1, 20), 5, 15)
    assert not found.requires_grad
    assert not torch.allclose(found, before, atol=1e-3)
    torch.testing.assert_close(
        found, hidden(model, ids(1, 20), None)[:, 5:].detach(), atol=3e-5, rtol=1e-4
    )


@pytest.mark.parametrize(("first", "count"), [(-1, 3), (0, 0), (15, 6)])
def test_model_inference_refuses_places_outside(first: int, count: int) -> None:
    """A negative place reads from the end, and a place behind it is one state less."""
    with pytest.raises(ValueError, match=rf"places {first} to .* rows of 20 tokens"):
        states(small(TIED), ids(1, 20), first, count)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 3),
    count=st.integers(1, 30),
    scale=st.sampled_from([0.1, 1.0, 50.0]),
    chunk=st.sampled_from([1, 7, 1000]),
    automatic=st.booleans(),
    seed=st.integers(0, 99),
)
def test_model_inference_losses_are_cross_entropies(
    rows: int, count: int, scale: float, chunk: int, automatic: bool, seed: int
) -> None:
    """A chunk, a row or a scale at which the sum of exponentials is another one."""
    model = small(TIED)
    random = torch.Generator().manual_seed(seed)
    given_states = torch.randn(rows, count, TIED.hidden, generator=random) * scale
    targets = ids(rows, count, seed)
    numerics = Numerics(precision="bf16" if automatic else "fp32")
    with pytest.MonkeyPatch.context() as patch, applied(numerics, CPU):
        patch.setattr(inference, "chunk_tokens", lambda *_: chunk)
        nll, hit = losses(model, given_states, targets)
    logits = given_states.double() @ model.get_output_embeddings().weight.double().T
    expected = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    assert nll.dtype == torch.float32
    torch.testing.assert_close(nll.double(), expected.view(rows, count), atol=1e-5, rtol=1e-5)
    assert hit.equal(logits.argmax(-1) == targets)


def test_model_inference_of_equal_words_the_first_is_the_choice() -> None:
    """A model that cannot tell words apart would be right about all of them."""
    model = small(TIED)
    with torch.no_grad():
        model.get_output_embeddings().weight[3:7] = model.get_output_embeddings().weight[2]
    towards = model.get_output_embeddings().weight[2].detach().expand(1, 5, -1) * 100
    _, hit = losses(model, towards, torch.tensor([[2, 3, 4, 6, 9]]))
    assert hit.tolist() == [[True, False, False, False, False]]


@settings(max_examples=80, deadline=None)
@given(
    squares=st.integers(1, 3),
    groups=st.integers(1, 3),
    shared=st.integers(1, 3),
    tokens=st.integers(1, 60),
    before=st.integers(0, 100),
    block=st.sampled_from([1, 16, 50]),
    kernel=st.booleans(),
    logits=st.sampled_from([1, 2**12, 2**20]),
    size=st.sampled_from([1.0, 30.0, 1000.0]),
)
def test_model_inference_attention_of_the_last_tokens(
    squares: int,
    groups: int,
    shared: int,
    tokens: int,
    before: int,
    block: int,
    kernel: bool,
    logits: int,
    size: float,
) -> None:
    """A block or group at whose edge a key is missed, or one from the future is seen."""
    random = torch.Generator().manual_seed(before)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    query = drawn(squares, groups * shared, tokens, 4) * size
    key, value = (drawn(squares, groups, before + tokens, 4) for _ in range(2))
    with sizes(1024, block, logits, kernel=kernel):
        found = causal.lower_right(query, key, value, 0.3)
    whole_key, whole_value = (t.repeat_interleave(shared, dim=1) for t in (key, value))
    seen = torch.ones(tokens, before + tokens, dtype=torch.bool).tril(before)
    expected = scaled_dot_product_attention(
        query, whole_key, whole_value, attn_mask=seen, scale=0.3
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("before", [0, 900])
@pytest.mark.parametrize("size", [1.0, 6.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_model_inference_attention_is_as_exact_as_the_kernel(
    dtype: torch.dtype, size: float, before: int
) -> None:
    """Logits or merged results that are rounded to bf16."""
    random, tokens = torch.Generator().manual_seed(1), 800
    query, key, value = (
        torch.randn(2, 4, before + tokens, 32, generator=random).mul_(size).to(dtype)
        for _ in range(3)
    )
    exact, kernel = (
        scaled_dot_product_attention(
            query.to(t), key.to(t), value.to(t), is_causal=True, scale=0.3
        ).double()[:, :, before:]
        for t in (torch.float64, dtype)
    )
    found = causal.lower_right(query[:, :, before:].float(), key.float(), value, 0.3)
    assert found.dtype == dtype
    error, allowed = (float((t.double() - exact).norm()) for t in (found, kernel))
    # In bf16 what is attended is rounded before it is divided by the sum of weights, and after.
    assert error < (1.1 if dtype == torch.float32 else 1.6) * allowed


def test_model_inference_benchmark_scores_the_same_tokens_in_every_arm() -> None:
    """An arm that scores something else, or is left out, makes a ratio that means nothing."""
    command = [sys.executable, str(ROOT / "benchmarks/evaluate.py"), "--small", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    sums = found["loss_sums"]
    assert set(sums) == set(found["tokens_per_second"]) > {"ropewalk", "classic_fp32", "kept_bf16"}
    for name, value in sums.items():
        tolerance = 1e-3 if "bf16" in name else 1e-6
        assert value == pytest.approx(sums["classic_fp32"], rel=tolerance)
    ratios = {key for key in found if key.startswith("ratio_vs") and not key.endswith("_range")}
    assert len(ratios) == 6
    assert all(found[key] > 0 for key in ratios)
    assert found["long_rows"]["mini"]["classic"]["peak_growth_mb"] > 0
