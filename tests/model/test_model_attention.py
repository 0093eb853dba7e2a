"""Attention inside explicit segments, against dense masks in float64 and by perturbation."""

import numpy as np
import pytest
import torch
from attention_reference import BACKENDS, Backend, dense, placed, rotated, sights, states
from hypothesis import given, settings
from hypothesis import strategies as st
from model_sample import CPU, LLAMA, NEOX, ids, small
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ropewalk.base.stage import StageError
from ropewalk.model.attention import IMPLEMENTATIONS, sdpa, segments, varlen
from ropewalk.model.forward import hidden
from ropewalk.model.numerics import applied, check
from ropewalk.model.spec import Architecture, Numerics

FAMILIES = pytest.mark.parametrize("architecture", [LLAMA, NEOX], ids=["llama", "gpt_neox"])
KINDS = pytest.mark.parametrize("kind", ["natural", "pose", "randpos"])
FREQUENCIES = 100.0 ** (-np.arange(4) / 4)


def attended(
    backend: Backend,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: list,
    **more: object,
) -> torch.Tensor:
    """Call the function a model of `backend` would call, on its device; returns [B, T, H, D]."""
    rows, _, tokens, _ = query.shape
    found, _ = ALL_ATTENTION_FUNCTIONS[IMPLEMENTATIONS[backend.numerics.attention]](
        torch.nn.Identity(),
        *(tensor.to(backend.device, backend.dtype) for tensor in (query, key, value)),
        None,
        scaling=0.3,
        segments=segments(bounds, rows, tokens, backend.device),
        **more,
    )
    return found


@st.composite
def boundaries(draw: st.DrawFn, rows: int, tokens: int) -> list[tuple[int, ...]]:
    """Draw segment ends for every row; some rows end in padding."""
    found = []
    for _ in range(rows):
        last = draw(st.integers(1, tokens))
        inner = draw(st.sets(st.integers(1, tokens), max_size=5))
        found.append((0, *sorted({e for e in inner if e < last} | {last})))
    return found


@BACKENDS
@KINDS
@settings(max_examples=20, deadline=None)
@given(bounds=boundaries(rows=3, tokens=17), groups=st.sampled_from([1, 2, 4]))
def test_model_attention_equals_dense_reference(
    backend: Backend, kind: str, bounds: list, groups: int
) -> None:
    """A wrong cut at any boundary would leak between documents without an error."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(3, 4, 17, 8, generator=generator)
    key, value = torch.randn(2, 3, 4 // groups, 17, 8, generator=generator)
    positions = placed(kind, 17)
    found = attended(
        backend,
        rotated(query, positions, FREQUENCIES),
        rotated(key, positions, FREQUENCIES),
        value,
        bounds,
    )
    assert found.dtype == backend.dtype
    for row, ends in enumerate(bounds):
        seen = sights(ends, positions)
        exact = dense(query[row], key[row], value[row], FREQUENCIES, seen, 0.3)
        torch.testing.assert_close(
            found[row].double().cpu(), exact, atol=backend.tolerance, rtol=backend.tolerance
        )


@BACKENDS
@settings(max_examples=20, deadline=None)
@given(bounds=boundaries(rows=2, tokens=17), groups=st.sampled_from([1, 4]))
def test_model_attention_gradients_equal_dense_reference(
    backend: Backend, bounds: list, groups: int
) -> None:
    """Pieces put together in another order would train on the gradients of other tokens."""
    generator = torch.Generator().manual_seed(0)
    shapes = (4, 4 // groups, 4 // groups)
    ours = [torch.randn(2, heads, 17, 8, generator=generator).requires_grad_() for heads in shapes]
    theirs = [tensor.detach().double().requires_grad_() for tensor in ours]
    direction = torch.randn(2, 17, 4, 8, generator=generator).double()
    found = attended(backend, *ours, bounds)
    (found.double().cpu() * direction).sum().backward()
    none = np.empty(0)
    for row, ends in enumerate(bounds):
        seen = sights(ends, np.arange(17))
        exact = dense(*(tensor[row] for tensor in theirs), none, seen, 0.3)
        (exact * direction[row]).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(
            mine.grad.double(), other.grad, atol=2 * backend.tolerance, rtol=2 * backend.tolerance
        )


def test_model_attention_float64_gradients() -> None:
    """An approximation smaller than fp32's rounding would hide in tests in fp32."""
    generator = torch.Generator().manual_seed(1)
    shape = (2, 4, 33, 8)
    ours = [torch.randn(shape, generator=generator).double().requires_grad_() for _ in range(3)]
    theirs = [tensor.detach().clone().requires_grad_() for tensor in ours]
    bounds = [(0, 5, 6, 20, 33), (0, 30)]
    found, _ = sdpa(
        torch.nn.Identity(), *ours, None, scaling=0.3, segments=segments(bounds, 2, 33, CPU)
    )
    found.pow(3).sum().backward()
    for row, ends in enumerate(bounds):
        seen = sights(ends, np.arange(33))
        exact = dense(*(tensor[row] for tensor in theirs), np.empty(0), seen, 0.3)
        torch.testing.assert_close(found[row], exact, atol=1e-12, rtol=0)
        exact.pow(3).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-6, rtol=0)


@settings(max_examples=20, deadline=None)
@given(bounds=boundaries(rows=2, tokens=40), precision=st.sampled_from(["fp32", "bf16"]))
def test_model_attention_of_a_segment_is_that_of_the_segment_alone(
    bounds: list, precision: str
) -> None:
    """Equally long segments share a kernel call: none may differ by what it is packed with."""
    generator = torch.Generator().manual_seed(0)
    backend = Backend(device=CPU, numerics=Numerics(precision=precision), tolerance=0)
    query, key, value = torch.randn(3, 2, 2, 40, 8, generator=generator)
    packed = attended(backend, query, key, value, bounds)
    low = [tensor.to(backend.dtype) for tensor in (query, key, value)]
    for row, ends in enumerate(bounds):
        for start, end in zip(ends, (*ends[1:], 40), strict=True):
            if start < end:
                alone = (tensor[row : row + 1, :, start:end] for tensor in low)
                expected = scaled_dot_product_attention(*alone, is_causal=True, scale=0.3)
                assert torch.equal(packed[row, start:end], expected[0].transpose(0, 1))


@BACKENDS
@FAMILIES
@KINDS
def test_model_attention_in_a_whole_model(
    backend: Backend, architecture: Architecture, kind: str
) -> None:
    """Positions and boundaries must meet in the model as they do in the formula.

    Packed rows, a jump of positions inside a document (PoSE) and positions drawn from a longer
    window (RandPos), against a model written out in float64: states, and gradients of all weights.
    """
    model = backend.model(architecture)
    tokens = ids(2, 24)
    bounds = [(0, 10, 24), (0, 21)]
    positions = np.stack([placed(kind, 24, seed=0), placed(kind, 24, seed=1)])
    with applied(backend.numerics, backend.device):
        found = model.base_model(
            input_ids=tokens.to(backend.device),
            position_ids=torch.from_numpy(positions).to(backend.device),
            use_cache=False,
            segments=segments(bounds, 2, 24, backend.device),
        ).last_hidden_state
    # Not a sum of squares: after a norm that is a constant.
    direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(0)).double()
    (found.double().cpu() * direction).sum().backward()

    mine = dict(model.base_model.named_parameters())
    weights = {name: w.detach().double().cpu().requires_grad_() for name, w in mine.items()}
    for row, ends in enumerate(bounds):
        exact = states(weights, architecture, tokens[row], sights(ends, positions[row]))
        (exact * direction[row]).sum().backward()
        difference = (found[row].double().cpu() - exact).norm() / exact.norm()
        assert difference < backend.tolerance
    for name, weight in weights.items():
        if weight.grad is not None:
            difference = (mine[name].grad.double().cpu() - weight.grad).norm() / weight.grad.norm()
            assert difference < 2 * backend.tolerance, name


@FAMILIES
@pytest.mark.parametrize("recompute", [False, True], ids=["keep", "recompute"])
@pytest.mark.parametrize("positions", ["natural", "skipping", "repeating", "randpos"])
def test_model_attention_perturbation(
    architecture: Architecture, recompute: bool, positions: str
) -> None:
    """A jump in positions is no boundary; a boundary is one under activation checkpointing too.

    transformers guesses documents from positions, and the guess flips with checkpointing.
    """
    model = small(architecture)
    if recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    tokens = ids(2, 24)
    rows = [(0, 10, 24), (0, 24)]
    natural = torch.arange(24)
    position_ids = {
        "natural": natural,
        "skipping": natural + 100 * (natural >= 16),  # a jump inside a document, as PoSE has
        "repeating": natural % 8,  # falls back inside a document
        "randpos": torch.from_numpy(placed("randpos", 24)),  # a jump at nearly every token
    }[positions][None]

    def states(changed: tuple[int, int] | None) -> torch.Tensor:
        seen = tokens.clone()
        if changed:
            seen[changed] = (seen[changed] + 1) % 64
        return hidden(model, seen, rows, position_ids)

    base = states(None)
    other_document = states((0, 4))
    assert torch.equal(other_document[0, 10:], base[0, 10:])
    assert torch.equal(other_document[1], base[1])
    assert not torch.allclose(other_document[0, 9], base[0, 9])
    same_document = states((0, 12))  # across the jump at 16
    assert torch.equal(same_document[0, :12], base[0, :12])
    assert not torch.allclose(same_document[0, 20], base[0, 20])
    whole_row = states((1, 2))
    assert not torch.allclose(whole_row[1, 23], base[1, 23])


@BACKENDS
@FAMILIES
@pytest.mark.parametrize("recompute", [False, True], ids=["keep", "recompute"])
@KINDS
def test_model_attention_reach_of_gradients(
    backend: Backend, architecture: Architecture, recompute: bool, kind: str
) -> None:
    """In the backward too, a token is reached by all later ones of its document and by no other.

    With recomputed activations attention runs a second time, with the segments it got at first.
    """
    model = backend.model(architecture)
    if recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    bounds = [(0, 10, 24)]
    tokens = ids(1, 24).to(backend.device)
    embedded = model.get_input_embeddings()(tokens).detach().requires_grad_()
    with applied(backend.numerics, backend.device):
        found = model.base_model(
            inputs_embeds=embedded,
            position_ids=torch.from_numpy(placed(kind, 24))[None].to(backend.device),
            use_cache=False,
            segments=segments(bounds, 1, 24, backend.device),
        ).last_hidden_state
    for asked, document in ((7, range(8)), (22, range(10, 23))):
        (grad,) = torch.autograd.grad(found[0, asked].square().sum(), embedded, retain_graph=True)
        reached = grad[0].abs().sum(-1).nonzero().flatten().tolist()
        assert reached == list(document)


@FAMILIES
def test_model_attention_packed_rows_equal_documents_alone(architecture: Architecture) -> None:
    """A packed document must read exactly as it would by itself at the same positions."""
    model = small(architecture)
    tokens = ids(1, 20)
    packed = hidden(model, tokens, [(0, 7, 20)])
    second = hidden(model, tokens[:, 7:], None, torch.arange(7, 20)[None])
    torch.testing.assert_close(packed[:, 7:], second, atol=1e-5, rtol=1e-5)


@FAMILIES
def test_model_attention_gradients_equal_those_of_transformers(architecture: Architecture) -> None:
    """With one segment per row our function must be plain causal attention, backward included."""
    ours, theirs = small(architecture), small(architecture)
    theirs.set_attn_implementation("eager")
    tokens = ids(2, 16)
    hidden(ours, tokens, None).pow(2).sum().backward()
    theirs.base_model(input_ids=tokens, use_cache=False).last_hidden_state.pow(2).sum().backward()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if mine.grad is not None:
            torch.testing.assert_close(mine.grad, other.grad, atol=2e-4, rtol=1e-4, msg=name)


@BACKENDS
@pytest.mark.parametrize("rows", [1, 2], ids=["shared", "per row"])
def test_model_attention_query_scale(backend: Backend, rows: int) -> None:
    """A scale that lands on keys, on other places or on outputs is not log-scaled attention."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 17, 8, generator=generator)
    scale = 1 + 2 * torch.rand(rows, 17, generator=generator)
    bounds = [(0, 6, 17), (0, 17)]
    found = attended(backend, query, key, value, bounds, query_scale=scale.to(backend.device))
    assert found.dtype == backend.dtype
    for row, ends in enumerate(bounds):
        seen = sights(ends, np.arange(17))
        exact = dense(query[row], key[row], value[row], np.empty(0), seen, 0.3, scale[row % rows])
        torch.testing.assert_close(
            found[row].double().cpu(), exact, atol=2 * backend.tolerance, rtol=backend.tolerance
        )


@FAMILIES
def test_model_attention_query_scale_reaches_every_layer(architecture: Architecture) -> None:
    """A keyword that a decoder layer swallows would leave a log-scaled model plain."""
    model = small(architecture)
    tokens, scale = ids(1, 20), 1 + torch.rand(1, 20)
    found = model.base_model(
        input_ids=tokens,
        use_cache=False,
        segments=segments([(0, 8, 20)], 1, 20, CPU),
        query_scale=scale,
    ).last_hidden_state
    weights = {name: w.detach().double() for name, w in model.base_model.named_parameters()}
    seen = sights((0, 8, 20), np.arange(20))
    exact = states(weights, architecture, tokens[0], seen, query_scale=scale[0])
    plain = states(weights, architecture, tokens[0], seen)
    torch.testing.assert_close(found[0].double(), exact, atol=2e-5, rtol=2e-5)
    assert not torch.allclose(exact, plain, atol=1e-2)


def test_model_attention_kernels_get_one_low_dtype() -> None:
    """Under autocast queries and keys come in fp32, as the rotation left them, and values in bf16.

    A kernel may not choose by one of them: the result is that of all three in bf16.
    """
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 17, 8, generator=generator)
    given = {"scaling": 0.3, "segments": segments([(0, 6, 17), (0, 17)], 2, 17, CPU)}
    with applied(Numerics(precision="bf16"), CPU):
        mixed, _ = sdpa(torch.nn.Identity(), query, key, value.bfloat16(), None, **given)
    low, _ = sdpa(
        torch.nn.Identity(), query.bfloat16(), key.bfloat16(), value.bfloat16(), None, **given
    )
    assert mixed.dtype == torch.bfloat16
    assert torch.equal(mixed, low)


def test_model_attention_compiled_blocks_break_only_there() -> None:
    """New segments in every batch may not compile a block anew in every batch."""
    model = small(LLAMA)
    graphs = []

    def backend(graph: torch.fx.GraphModule, _inputs: list) -> object:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    for layer in model.base_model.layers:
        layer.compile(backend=backend)
    tokens = ids(2, 24)
    first = hidden(model, tokens, [(0, 10, 24), (0, 24)])
    compiled = len(graphs)
    assert compiled > 0
    plain = small(LLAMA)
    for bounds in ([(0, 5, 9, 24), (0, 20)], [(0, 1, 24), (0, 3, 24)], [(0, 10, 24), (0, 24)]):
        torch.testing.assert_close(
            hidden(model, tokens, bounds), hidden(plain, tokens, bounds), atol=1e-6, rtol=1e-6
        )
    assert len(graphs) == compiled
    assert not any("scaled_dot_product" in str(graph.graph) for graph in graphs)
    torch.compiler.reset()
    assert torch.equal(first, hidden(plain, tokens, [(0, 10, 24), (0, 24)]))


@pytest.mark.parametrize(
    "bounds", [[(0, 5, 5)], [(1, 8)], [(0, 9)], [(0,)], [(0, 4, 3)], [(0, 8), (0, 8)]]
)
def test_model_attention_refuses_wrong_boundaries(bounds: list) -> None:
    """Boundaries of another length or order would be attended to as if they were right."""
    with pytest.raises(ValueError, match="boundaries"):
        segments(bounds, 1, 8, CPU)


def test_model_attention_refuses_a_call_without_segments() -> None:
    """A caller that forgets the boundaries must not get plain causal attention instead."""
    with pytest.raises(ValueError, match="without segments"):
        small(LLAMA)(input_ids=ids(1, 8), use_cache=False)


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (8,), (3, 8), (2, 4)])
def test_model_attention_refuses_a_query_scale_of_another_shape(shape: tuple[int, ...]) -> None:
    """A scale that only happens to broadcast would multiply the logits of other places."""
    query = torch.zeros(2, 1, 8, 4)
    with pytest.raises(ValueError, match="query_scale"):
        sdpa(
            torch.nn.Identity(),
            query,
            query,
            query,
            None,
            scaling=1.0,
            segments=segments(None, 2, 8, CPU),
            query_scale=torch.ones(shape),
        )


def test_model_attention_flash_is_refused_on_cpu() -> None:
    """The study asks for a kernel: hardware without it may not choose another."""
    with pytest.raises(StageError, match=r"numerics\.attention"):
        check(Numerics(attention="flash", precision="bf16"), CPU)
    query = torch.zeros(1, 1, 4, 8)
    with pytest.raises(StageError, match=r"numerics\.attention"):
        varlen(
            torch.nn.Identity(),
            query,
            query,
            query,
            None,
            scaling=1.0,
            segments=segments(None, 1, 4, CPU),
        )


def test_model_numerics_are_put_back() -> None:
    """Process-wide switches of one stage must not change the next one."""
    before = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
    with applied(Numerics(matmul="medium", precision="bf16"), CPU):
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.is_autocast_enabled("cpu")
    after = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
    assert after == before
    assert not torch.is_autocast_enabled("cpu")
