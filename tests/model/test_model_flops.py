"""FLOPs and parameters from the shape of a model, against torch's counter and published numbers."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_sample import CPU, LLAMA, NEOX, TIED, ids, small
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ropewalk.model import loss as loss_module
from ropewalk.model.attention import segments
from ropewalk.model.flops import (
    attended_pairs,
    forward_flops,
    matmul_parameters,
    model_flops_per_token,
    parameters,
    step_flops,
)
from ropewalk.model.forward import hidden, inputs, loss_sum
from ropewalk.model.spec import Architecture

FAMILIES = pytest.mark.parametrize(
    "architecture", [LLAMA, NEOX, TIED], ids=["llama", "gpt_neox", "tied"]
)
# The models of STRING: TinyLlama's shape with Llama 3's vocabulary.
STRING = Architecture(
    layers=22,
    hidden=2048,
    heads=32,
    kv_heads=4,
    ffn=5632,
    vocabulary_size=128256,
    context_tokens=2048,
)
# From config.json of EleutherAI/pythia-160m.
PYTHIA = Architecture(
    family="gpt_neox",
    layers=12,
    hidden=768,
    heads=12,
    ffn=3072,
    vocabulary_size=50304,
    context_tokens=2048,
    rotary_share=0.25,
)


def added_product(_sum: object, left: tuple, right: tuple, **_: object) -> int:
    """Return the FLOPs of `addmm_`, which torch's counter does not know, from two shapes."""
    return 2 * left[0] * left[1] * right[1]


@FAMILIES
@pytest.mark.parametrize("ends", [((0, 20), (0, 20)), ((0, 5, 17), (0, 1, 20))])
def test_model_flops_equal_torch_counter(
    architecture: Architecture, ends: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A matrix left out, counted twice or not transposed in backward only shows as a wrong MFU.

    torch counts what its plain attention multiplies, the whole square of a segment, so it is asked
    with squares in place of causal pairs; the loss counts the output matrix for every token.
    """
    monkeypatch.setattr(loss_module, "WORTH_LEAVING_OUT", 1.0)
    model = small(architecture)
    rows = inputs(ids(2, 20).numpy(), ends, np.arange(20)[None], CPU)
    in_place = {torch.ops.aten.addmm_: added_product}
    counting = FlopCounterMode(display=False, custom_mapping=in_place)
    with counting as counter, sdpa_kernel(SDPBackend.MATH):
        loss, _ = loss_sum(model, rows)
        loss.backward()
    squares = sum(n * n for row in rows.segments.rows for n in np.diff(row).tolist())
    assert counter.get_total_flops() == step_flops(architecture, tokens=40, pairs=squares)


@FAMILIES
@pytest.mark.parametrize(("tokens", "predicting"), [(20, 20), (17, 3), (1, 1), (9, 0)])
def test_model_forward_flops_equal_torch_counter(
    architecture: Architecture, tokens: int, predicting: int
) -> None:
    """Logits counted for all tokens where one is asked for triple the estimate of a small model.

    As above, torch counts squares where causal attention has pairs.
    """
    model = small(architecture).eval()
    counting = FlopCounterMode(display=False)
    with torch.no_grad(), counting as counter, sdpa_kernel(SDPBackend.MATH):
        states = hidden(model, ids(2, tokens), None)
        if predicting:
            model.get_output_embeddings()(states[:, -predicting:])
    found = forward_flops(
        architecture, tokens=2 * tokens, pairs=2 * tokens**2, predicting=2 * predicting
    )
    assert counter.get_total_flops() == found


def test_model_forward_flops_are_a_third_of_a_step() -> None:
    """Backward is twice forward: the two counts must not drift apart."""
    for architecture in (LLAMA, NEOX, TIED, PYTHIA, STRING):
        forward = forward_flops(architecture, tokens=300, pairs=4000, predicting=300)
        assert 3 * forward == step_flops(architecture, tokens=300, pairs=4000)


@FAMILIES
def test_model_parameters_equal_the_built_model(architecture: Architecture) -> None:
    """A bias or norm forgotten moves N' and every memory estimate by a little, unseen."""
    model = small(architecture)
    assert parameters(architecture) == sum(p.numel() for p in model.parameters())
    looked_up = model.get_input_embeddings().weight
    matrices = {id(p): p.numel() for p in model.parameters() if p.ndim == 2}
    if not architecture.tied_embeddings:
        del matrices[id(looked_up)]
    assert matmul_parameters(architecture) == sum(matrices.values())


@given(data=st.data())
def test_model_attended_pairs_by_mask(data: st.DataObject) -> None:
    """Off by the diagonal, or padding forgotten: counted here one pair at a time."""
    tokens = data.draw(st.integers(1, 24))
    rows = []
    for _ in range(data.draw(st.integers(1, 3))):
        last = data.draw(st.integers(1, tokens))
        inner = data.draw(st.sets(st.integers(1, last), max_size=5))
        rows.append((0, *sorted(inner | {last})))
    found = attended_pairs(segments(rows, len(rows), tokens, CPU).rows)
    allowed = 0
    for ends in rows:
        document = np.searchsorted(np.asarray(ends[1:]), np.arange(tokens), side="right")
        allowed += int(((document[:, None] == document[None]) & np.tri(tokens, dtype=bool)).sum())
    assert found == allowed


def test_model_flops_of_string_as_published() -> None:
    """Parameters with the input embedding, or half the attention, give another utilisation.

    STRING: 10^12 tokens in 28 and 32 days on 16 A100 of 312 TFLOP/s; GFLOP/token and MFU were
    worked out by hand from its appendix A.2.
    """
    assert parameters(STRING) == 1_494_312_960
    assert parameters(STRING) - STRING.vocabulary_size * STRING.hidden == 1_231_644_672
    for length, days, giga, speed, mfu in (
        (2048, 28, 8.497, 25835, 0.704),
        (4096, 32, 9.604, 22606, 0.696),
    ):
        found = model_flops_per_token(STRING, length)
        assert found / 1e9 == pytest.approx(giga, abs=5e-4)
        tokens_per_second = 1e12 / (days * 86400 * 16)
        assert tokens_per_second == pytest.approx(speed, abs=1)
        assert found * tokens_per_second / 312e12 == pytest.approx(mfu, abs=5e-4)


def test_model_parameters_of_pythia_as_published() -> None:
    """EleutherAI's table: 162,322,944 parameters, 85,056,000 without the two embeddings."""
    assert parameters(PYTHIA) == 162_322_944
    assert parameters(PYTHIA) - 2 * PYTHIA.vocabulary_size * PYTHIA.hidden == 85_056_000


@FAMILIES
def test_model_flops_conventions_differ_as_stated(architecture: Architecture) -> None:
    """One whole row: the convention counts the square and the norms, a step neither."""
    length = architecture.context_tokens
    pairs = attended_pairs([(0, length)])
    step = step_flops(architecture, tokens=length, pairs=pairs)
    published = length * model_flops_per_token(architecture, length)
    looked_up = architecture.vocabulary_size * architecture.hidden
    vectors = parameters(architecture) - matmul_parameters(architecture)
    vectors -= 0 if architecture.tied_embeddings else looked_up
    above_diagonal = length * (length - 1) // 2
    more = 12 * architecture.layers * architecture.hidden * above_diagonal + 6 * vectors * length
    assert published - step == more
