"""Attention inside explicit segments, against a dense mask in float64 and by perturbation."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_sample import CPU, LLAMA, NEOX, ids, small

from ropewalk.base.stage import StageError
from ropewalk.model.attention import sdpa, segments, varlen
from ropewalk.model.forward import hidden
from ropewalk.model.numerics import applied, check
from ropewalk.model.spec import Architecture, Numerics

FAMILIES = pytest.mark.parametrize("architecture", [LLAMA, NEOX], ids=["llama", "gpt_neox"])


def dense(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rows: list, scaling: float
) -> torch.Tensor:
    """Attend with a [T, T] mask in float64; returns [B, T, H, D]."""
    groups = query.shape[1] // key.shape[1]
    tokens = query.shape[2]
    out = torch.zeros(query.shape[0], tokens, *query.shape[1:2], query.shape[3]).double()
    for b, ends in enumerate(rows):
        document = np.searchsorted(np.asarray(ends[1:]), np.arange(tokens), side="right")
        allowed = (document[:, None] == document[None]) & np.tri(tokens, dtype=bool)
        for h in range(query.shape[1]):
            q, k, v = query[b, h].double(), key[b, h // groups], value[b, h // groups]
            scores = (q @ k.double().T * scaling).masked_fill(~torch.from_numpy(allowed), -np.inf)
            out[b, :, h] = scores.softmax(-1) @ v.double()
    return out


@st.composite
def boundaries(draw: st.DrawFn, rows: int, tokens: int) -> list[tuple[int, ...]]:
    """Draw segment ends for every row; some rows end in padding."""
    found = []
    for _ in range(rows):
        last = draw(st.integers(1, tokens))
        inner = draw(st.sets(st.integers(1, tokens), max_size=5))
        found.append((0, *sorted({e for e in inner if e < last} | {last})))
    return found


@settings(max_examples=40, deadline=None)
@given(bounds=boundaries(rows=3, tokens=17), groups=st.sampled_from([1, 2, 4]))
def test_model_attention_equals_dense_reference(bounds: list, groups: int) -> None:
    """A wrong cut at any boundary would leak between documents without an error."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(3, 4, 17, 8, generator=generator)
    key, value = torch.randn(2, 3, 4 // groups, 17, 8, generator=generator)
    found, _ = sdpa(
        torch.nn.Identity(),
        query,
        key,
        value,
        None,
        scaling=0.3,
        segments=segments(bounds, 3, 17, CPU),
    )
    torch.testing.assert_close(
        found.double(), dense(query, key, value, bounds, 0.3), atol=1e-6, rtol=1e-5
    )


@FAMILIES
@pytest.mark.parametrize("recompute", [False, True], ids=["keep", "recompute"])
@pytest.mark.parametrize("positions", ["natural", "skipping", "repeating"])
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
