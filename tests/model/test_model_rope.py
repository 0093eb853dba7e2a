"""Angles: our formula, transformers' module, and what the models really hold."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_sample import CPU, LLAMA, NEOX, small
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from ropewalk.base.spec import SpecError
from ropewalk.model.build import set_rope
from ropewalk.model.config import architecture_of, config, rope_of
from ropewalk.model.rope import inverse_frequencies, rope_parameters
from ropewalk.model.spec import Architecture, LinearRope, PlainRope


@given(
    dimension=st.sampled_from([8, 32, 64, 128]),
    base=st.floats(500, 1e8),
    factor=st.floats(1, 64),
)
def test_model_rope_formula_is_what_transformers_computes(
    dimension: int, base: float, factor: float
) -> None:
    """A factor or base that does not reach the model would train plain RoPE without a sign."""
    architecture = Architecture(
        layers=1,
        hidden=dimension,
        heads=1,
        ffn=8,
        vocabulary_size=8,
        context_tokens=64,
        rope_base=base,
    )
    for rope, extra in (
        (PlainRope(), {"rope_type": "default"}),
        (LinearRope(factor=factor), {"rope_type": "linear", "factor": factor}),
    ):
        theirs = LlamaRotaryEmbedding(
            LlamaConfig(
                hidden_size=dimension,
                num_attention_heads=1,
                rope_parameters={"rope_theta": base, **extra},
            )
        )
        ours = inverse_frequencies(architecture, rope)
        assert ours.dtype == np.float64
        np.testing.assert_allclose(theirs.inv_freq.numpy(), ours, rtol=3e-6)


def test_model_rope_linear_divides_positions() -> None:
    """Interpolation by 4 gives position 4p the angles position p was trained with (eq. 4)."""
    plain = inverse_frequencies(LLAMA, PlainRope())
    linear = inverse_frequencies(LLAMA, LinearRope(factor=4))
    positions = np.arange(100)[:, None]
    np.testing.assert_allclose(4 * positions * linear, positions * plain, rtol=1e-15)


@pytest.mark.parametrize("architecture", [LLAMA, NEOX], ids=["llama", "gpt_neox"])
@pytest.mark.parametrize("rope", [PlainRope(), LinearRope(factor=3)], ids=["plain", "linear"])
def test_model_rope_buffers_are_filled_in_fp32(architecture: Architecture, rope: object) -> None:
    """Meta initialisation leaves rotary buffers as garbage memory."""
    rotary = small(architecture, rope).base_model.rotary_emb
    assert rotary.inv_freq.dtype == torch.float32
    np.testing.assert_allclose(
        rotary.inv_freq.numpy(), inverse_frequencies(architecture, rope), rtol=1e-6
    )
    assert torch.equal(rotary.inv_freq, rotary.original_inv_freq)


@pytest.mark.parametrize("architecture", [LLAMA, NEOX], ids=["llama", "gpt_neox"])
def test_model_rope_can_change_between_phases(architecture: Architecture) -> None:
    """Changing the config of a built model alone changes nothing in transformers 5."""
    model = small(architecture)
    set_rope(model, architecture, LinearRope(factor=8), length_tokens=256)
    fresh = small(architecture, LinearRope(factor=8))
    assert torch.equal(model.base_model.rotary_emb.inv_freq, fresh.base_model.rotary_emb.inv_freq)
    assert model.config.rope_parameters == fresh.config.rope_parameters
    assert model.config.max_position_embeddings == 256
    assert next(model.parameters()).device == CPU


@pytest.mark.parametrize("architecture", [LLAMA, NEOX], ids=["llama", "gpt_neox"])
@pytest.mark.parametrize("rope", [PlainRope(), LinearRope(factor=3)], ids=["plain", "linear"])
def test_model_config_round_trip(architecture: Architecture, rope: object) -> None:
    """A checkpoint's config must say everything needed to build the same model again."""
    found = config(architecture, rope)
    assert architecture_of(found) == architecture
    assert rope_of(found) == rope
    assert set(rope_parameters(architecture, rope)) <= set(found.rope_parameters)


def test_model_config_refuses_what_a_family_cannot_express() -> None:
    """Llama ignores a partial rotary share; GPT-NeoX ignores kv_heads."""
    with pytest.raises(SpecError, match=r"rotary_share: 0\.5"):
        config(
            Architecture(
                layers=1,
                hidden=8,
                heads=1,
                ffn=8,
                vocabulary_size=8,
                context_tokens=8,
                rotary_share=0.5,
            ),
            PlainRope(),
        )
    with pytest.raises(SpecError, match="kv_heads: 1"):
        config(
            Architecture(
                family="gpt_neox",
                layers=1,
                hidden=8,
                heads=2,
                kv_heads=1,
                ffn=8,
                vocabulary_size=8,
                context_tokens=8,
            ),
            PlainRope(),
        )
