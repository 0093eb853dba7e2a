"""Angles: the papers' formulas, transformers' modules, and what the models really hold."""

import cmath
import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_sample import CPU, LLAMA, NEOX, ids, small
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from ropewalk.base.spec import SpecError, decode
from ropewalk.base.stage import StageError
from ropewalk.model.build import load
from ropewalk.model.config import architecture_of, config, rope_of
from ropewalk.model.forward import hidden
from ropewalk.model.numerics import applied
from ropewalk.model.rope import (
    attention_factor,
    inverse_frequencies,
    log_scale,
    ntk_base,
    plain_frequencies,
    rope_parameters,
    yarn_kept,
)
from ropewalk.model.rotary import Rotary, set_rope
from ropewalk.model.spec import (
    Architecture,
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

FAMILIES = pytest.mark.parametrize("architecture", [LLAMA, NEOX], ids=["llama", "gpt_neox"])
# Windows of 32 tokens make 5 turns of the fastest pair: these betas put the ramp inside.
YARN = {"factor": 4.0, "beta_fast": 4.0, "beta_slow": 0.5}
ROPES: list[Rope] = [
    PlainRope(),
    BaseRope(base=500.0),
    LinearRope(factor=3),
    NtkRope(factor=4),
    YarnRope(**YARN),
    YarnRope(**YARN, attention_factor=1.0),
    YarnRevisedRope(**YARN),
    Llama3Rope(factor=8, original_tokens=16),
    DynamicNtkRope(factor=2),
    LogScaledRope(window_tokens=8, frequencies=BaseRope(base=500.0)),
    StringRope(shift_tokens=6, window_tokens=2, frequencies=YarnRope(**YARN)),
]
EACH = pytest.mark.parametrize("rope", ROPES, ids=[f"{i}-{r.kind}" for i, r in enumerate(ROPES)])


def head(dimension: int, base: float, window: int) -> Architecture:
    """Return an architecture whose only head has `dimension` dimensions."""
    return Architecture(
        layers=1,
        hidden=dimension,
        heads=1,
        ffn=8,
        vocabulary_size=8,
        context_tokens=window,
        rope_base=base,
    )


@given(
    dimension=st.sampled_from([8, 32, 64, 128]),
    base=st.floats(500, 1e8),
    factor=st.floats(1, 64),
    window=st.sampled_from([128, 2048, 4096, 131072]),
)
@settings(deadline=None)
def test_model_rope_formula_is_what_transformers_computes(
    dimension: int, base: float, factor: float, window: int
) -> None:
    """A factor or base that does not reach the model would train plain RoPE without a sign."""
    architecture = head(dimension, base, window)
    original = {"original_max_position_embeddings": window}
    for rope, extra in (
        (PlainRope(), {"rope_type": "default"}),
        (BaseRope(base=base), {"rope_type": "default"}),
        (LinearRope(factor=factor), {"rope_type": "linear", "factor": factor}),
        (YarnRope(factor=factor), {"rope_type": "yarn", "factor": factor, **original}),
        (
            YarnRope(factor=factor, beta_fast=16, beta_slow=2, attention_factor=1.25),
            {
                "rope_type": "yarn",
                "factor": factor,
                "beta_fast": 16.0,
                "beta_slow": 2.0,
                "attention_factor": 1.25,
                **original,
            },
        ),
        (
            Llama3Rope(factor=factor, original_tokens=window),
            {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                **original,
            },
        ),
    ):
        theirs = LlamaRotaryEmbedding(
            LlamaConfig(
                hidden_size=dimension,
                num_attention_heads=1,
                max_position_embeddings=window,
                rope_parameters={"rope_theta": base, **extra},
            )
        )
        ours = inverse_frequencies(architecture, rope)
        assert ours.dtype == np.float64
        np.testing.assert_allclose(theirs.inv_freq.numpy(), ours, rtol=5e-6)
        assert attention_factor(rope) == pytest.approx(theirs.attention_scaling, rel=1e-12)


@given(
    dimension=st.sampled_from([8, 64, 128]),
    factor=st.floats(1, 8),
    window=st.sampled_from([64, 2048]),
    length=st.integers(1, 9000),
)
@settings(deadline=None)
def test_model_rope_dynamic_is_that_of_transformers_at_every_length(
    dimension: int, factor: float, window: int, length: int
) -> None:
    """Transformers keeps the frequencies of the longest row it has seen; each length counts here.

    A fresh module of theirs per length has no memory yet.
    """
    theirs = LlamaRotaryEmbedding(
        LlamaConfig(
            hidden_size=dimension,
            num_attention_heads=1,
            max_position_embeddings=window,
            rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": factor},
        )
    )
    theirs(torch.zeros(1), torch.arange(length)[None])
    ours = inverse_frequencies(
        head(dimension, 1e4, window), DynamicNtkRope(factor=factor), length_tokens=length
    )
    np.testing.assert_allclose(theirs.inv_freq.numpy(), ours, rtol=1e-5)


def test_model_rope_dynamic_rows_do_not_depend_on_each_other() -> None:
    """A row must be turned the same whatever it is batched with and whatever came before it."""
    architecture = LLAMA
    rope = DynamicNtkRope(factor=2)
    rotary = small(architecture, rope).base_model.rotary_emb
    short, long = torch.arange(20)[None], torch.arange(20)[None] + 100
    x = torch.zeros(1)
    alone = rotary(x, short)
    together = rotary(x, torch.cat((long, short)))
    assert torch.equal(together[0][1], alone[0][0])
    assert not torch.equal(together[0][0], rotary(x, long - 100)[0][0])
    assert torch.equal(rotary(x, short)[0], alone[0])


def test_model_rope_ntk_by_hand() -> None:
    """The bases PoSE's factors give at head dimension 128 (derived in the notes on the paper)."""
    bases = {2: 20221, 4: 40890, 8: 82685, 16: 167199, 48: 510420, 64: 683675}
    assert {s: round(ntk_base(1e4, 128, s)) for s in bases} == bases
    plain = plain_frequencies(1e4, 128)
    ntk = inverse_frequencies(head(128, 1e4, 2048), NtkRope(factor=8))
    assert ntk[0] == plain[0]
    assert plain[-1] / ntk[-1] == pytest.approx(8, rel=1e-12)
    with pytest.raises(ValueError, match="two pairs"):
        ntk_base(1e4, 2, 8)


def test_model_rope_yarn_by_hand() -> None:
    """Where the ramp lies for LLaMA, and how far the revised form differs inside it."""
    for window, low, high in ((2048, 16, 41), (4096, 20, 46)):
        kept = yarn_kept(1e4, 128, window, 32, 1)
        assert (kept[: low + 1] == 1).all()
        assert kept[low + 1] < 1
        assert kept[high - 1] > 0
        assert (kept[high:] == 0).all()
    kept = yarn_kept(1e4, 128, 2048, 32, 1)
    assert kept[20] == pytest.approx(1 - 4 / 25)
    for factor, most in ((8, 2.5), (64, 16.5)):
        llama = head(128, 1e4, 2048)
        original = inverse_frequencies(llama, YarnRope(factor=factor))
        revised = inverse_frequencies(llama, YarnRevisedRope(factor=factor))
        ends = (kept == 0) | (kept == 1)
        np.testing.assert_allclose(original[ends], revised[ends], rtol=1e-12)
        assert most * 0.97 < (original / revised).max() < most * 1.03
        # The revised form mixes wavelengths: plain ones and those of interpolation.
        plain = plain_frequencies(1e4, 128)
        mixed = kept / plain + (1 - kept) * factor / plain
        np.testing.assert_allclose(1 / revised, mixed, rtol=1e-12)
    factors = {8: 1.2079, 16: 1.2773, 48: 1.3871, 64: 1.4159}
    assert {s: round(attention_factor(YarnRope(factor=s)), 4) for s in factors} == factors


def test_model_rope_linear_divides_positions() -> None:
    """Interpolation by 4 gives position 4p the angles position p was trained with (eq. 4)."""
    plain = inverse_frequencies(LLAMA, PlainRope())
    linear = inverse_frequencies(LLAMA, LinearRope(factor=4))
    positions = np.arange(100)[:, None]
    np.testing.assert_allclose(4 * positions * linear, positions * plain, rtol=1e-15)


@FAMILIES
@EACH
def test_model_rope_score_is_that_of_complex_numbers(
    architecture: Architecture, rope: Rope
) -> None:
    """Pairs laid out wrong, or a factor that misses cos or sin, still give plausible scores.

    RoFormer, eq. 12 to 16: each pair is a complex number turned by exp(i m theta).
    """
    rotary = small(architecture, rope).base_model.rotary_emb
    frequencies = inverse_frequencies(architecture, rope, length_tokens=40)
    positions = torch.tensor([[3, 39]])
    cos, sin = (part[0].double().numpy() for part in rotary(torch.zeros(1), positions))
    pairs = len(frequencies)
    query, key = np.random.default_rng(0).normal(size=(2, 2 * pairs))

    def turned(x: np.ndarray, place: int) -> np.ndarray:
        half = np.concatenate((-x[pairs:], x[:pairs]))  # as both families of transformers do it
        return x * cos[place] + half * sin[place]

    found = turned(query, 1) @ turned(key, 0)
    expected = (
        sum(
            complex(query[i], query[i + pairs])
            * complex(key[i], key[i + pairs]).conjugate()
            * cmath.exp(1j * (39 - 3) * frequencies[i])
            for i in range(pairs)
        ).real
        * attention_factor(rope) ** 2
    )
    assert found == pytest.approx(expected, abs=2e-5)


def test_model_rope_log_scale_by_hand() -> None:
    """The factor starts at the window's end and counts the tokens attended to, not positions."""
    found = log_scale(torch.tensor([0, 6, 7, 8, 63]), 8)
    np.testing.assert_allclose(found, [1, 1, 1, math.log(9, 8), 2], rtol=1e-12)


@FAMILIES
@EACH
def test_model_rope_buffers_are_filled_in_fp32(architecture: Architecture, rope: Rope) -> None:
    """Meta initialisation leaves rotary buffers as garbage memory; bf16 angles are noise."""
    model = small(architecture, rope)
    rotary = model.base_model.rotary_emb
    assert rotary.inv_freq.dtype == torch.float32
    np.testing.assert_allclose(
        rotary.inv_freq.numpy(), inverse_frequencies(architecture, rope), rtol=1e-6
    )
    model.to(torch.bfloat16)
    with pytest.raises(TypeError, match=r"bfloat16, not torch\.float32"):
        rotary(torch.zeros(1), torch.arange(4)[None])


@pytest.mark.parametrize("matmul", ["highest", "medium"])
def test_model_rope_angles_are_exact_under_every_matmul_setting(matmul: str) -> None:
    """As a matrix product, angles would be rounded to the precision of matrix products."""
    architecture = head(64, 1e4, 32768)
    rotary = Rotary(architecture, PlainRope(), torch.from_numpy(plain_frequencies(1e4, 64)).float())
    positions = torch.arange(32768)[None]
    with applied(Numerics(matmul=matmul, precision="bf16"), CPU):
        cos, _ = rotary(torch.zeros(1), positions)
    expected = np.cos(np.arange(32768)[:, None] * plain_frequencies(1e4, 64))
    # An angle of n radians in fp32 is off by at most n / 2^24, twice: frequency and product.
    assert np.abs(cos[0, :, :32].numpy() - expected).max() < 2 * 32768 / 2**24 + 1e-6


@FAMILIES
@EACH
def test_model_rope_can_change_between_phases(architecture: Architecture, rope: Rope) -> None:
    """Changing the config of a built model alone changes nothing in transformers 5."""
    model = small(architecture)
    set_rope(model, architecture, rope, length_tokens=256)
    fresh = small(architecture, rope)
    assert torch.equal(model.base_model.rotary_emb.inv_freq, fresh.base_model.rotary_emb.inv_freq)
    assert model.config.rope_parameters == fresh.config.rope_parameters
    assert model.config.max_position_embeddings == 256
    assert next(model.parameters()).device == CPU


@FAMILIES
@EACH
def test_model_config_round_trip(architecture: Architecture, rope: Rope) -> None:
    """A checkpoint's config must say everything needed to build the same model again."""
    found = config(architecture, rope, length_tokens=4 * architecture.context_tokens)
    assert architecture_of(found) == architecture
    assert rope_of(found) == rope
    assert set(rope_parameters(architecture, rope)) <= set(found.rope_parameters)


@FAMILIES
@EACH
def test_model_checkpoint_gives_the_same_logits_in_transformers(
    architecture: Architecture, rope: Rope, tmp_path: Path
) -> None:
    """An exported config that leaves something out loads without a word and reads otherwise.

    A method that transformers does not have must be refused by it, never read as plain RoPE.
    """
    model = small(architecture, rope).eval()
    set_rope(model, architecture, rope, length_tokens=64)
    model.config.architectures = [type(model).__name__]
    model.save_pretrained(tmp_path)
    tokens = ids(2, 48)
    with torch.inference_mode():
        again = load(tmp_path)
        mine = again.lm_head(hidden(again, tokens, None))
        torch.testing.assert_close(mine, model.lm_head(hidden(model, tokens, None)), rtol=0, atol=0)
        if isinstance(rope, LogScaledRope | StringRope):
            with pytest.raises(KeyError, match=rope.kind):
                AutoModelForCausalLM.from_pretrained(tmp_path)
            return
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="sdpa").eval()
        if isinstance(rope, DynamicNtkRope):  # their window is `max_position_embeddings`, 64 here
            set_rope(model, dataclasses.replace(architecture, context_tokens=64), rope)
            mine = model.lm_head(hidden(model, tokens, None))
        torch.testing.assert_close(theirs(tokens).logits, mine, atol=2e-5, rtol=1e-5)


@FAMILIES
@EACH
def test_model_rope_reads_a_packed_document_as_it_reads_it_alone(
    architecture: Architecture, rope: Rope
) -> None:
    """Where a document stands in its row may not matter, least of all to absolute methods."""
    # Angles of dynamic NTK follow from how far a row reaches: alone, it is read at the same places.
    reach = torch.arange(9, 40)[None] if isinstance(rope, DynamicNtkRope) else None
    model = small(architecture, rope).eval()
    tokens = ids(2, 40)
    with torch.inference_mode():
        packed = hidden(model, tokens, [(0, 9, 40), (0, 40)])
        alone = hidden(model, tokens[:1, 9:], None, reach)
    torch.testing.assert_close(packed[:1, 9:], alone, atol=3e-5, rtol=1e-4)


def test_model_config_of_somebody_else() -> None:
    """Published long-context checkpoints say their rope in transformers' words only."""
    shared = {"hidden_size": 64, "num_attention_heads": 2, "max_position_embeddings": 8192}
    theirs = {
        "yarn": {"factor": 4.0, "original_max_position_embeddings": 2048},
        "llama3": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 2048,
        },
        "dynamic": {"factor": 2.0},
        "linear": {"factor": 4.0},
    }
    ours = {
        "yarn": YarnRope(factor=4.0),
        "llama3": Llama3Rope(factor=8.0, original_tokens=2048),
        "dynamic": DynamicNtkRope(factor=2.0),
        "linear": LinearRope(factor=4.0),
    }
    for kind, extra in theirs.items():
        found = LlamaConfig(
            **shared, rope_parameters={"rope_type": kind, "rope_theta": 5e5, **extra}
        )
        assert rope_of(found) == ours[kind]
        architecture = architecture_of(found)
        assert architecture.rope_base == 5e5
        window = 2048 if "original_max_position_embeddings" in extra else 8192
        assert architecture.context_tokens == window
        expected = LlamaRotaryEmbedding(found).inv_freq.numpy()
        np.testing.assert_allclose(
            inverse_frequencies(architecture, ours[kind]), expected, rtol=1e-5
        )
    unknown = LlamaConfig(
        **shared,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 5e5,
            "truncate": False,
            **theirs["yarn"],
        },
    )
    with pytest.raises(StageError, match="truncate"):
        rope_of(unknown)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"head_dim": 64}, "head_dim is 64"),
        (
            {
                "rope_parameters": {
                    "rope_type": "dynamic",
                    "rope_theta": 1e4,
                    "factor": 2.0,
                    "original_max_position_embeddings": 2048,
                }
            },
            "original_max_position_embeddings is 2048",
        ),
    ],
)
def test_model_config_that_is_not_built(settings: dict[str, Any], key: str) -> None:
    """Guards against a published variant that would train and be read as another model."""
    shared = {"hidden_size": 64, "num_attention_heads": 2, "max_position_embeddings": 8192}
    with pytest.raises(StageError, match=key):
        architecture_of(LlamaConfig(**{**shared, **settings}))


def test_model_config_edited_by_hand_is_refused() -> None:
    """Our name of the rope beside other parameters: one of the two would be ignored silently."""
    found = config(LLAMA, NtkRope(factor=4))
    found.rope_parameters = {**found.rope_parameters, "rope_theta": 1e6}
    with pytest.raises(StageError, match="not those of the rope it was written with"):
        rope_of(found)


def test_model_rope_specs_refuse_what_has_no_meaning() -> None:
    """A factor below 1 would compress the window; a base of 1 turns every pair alike."""
    for data, message in (
        ({"kind": "linear", "factor": 0.5}, "factor 0.5 is below 1"),
        ({"kind": "base", "base": 1.0}, "base 1.0 must be above 1"),
        ({"kind": "yarn", "factor": 4.0, "beta_slow": 40.0}, "beta_slow 40.0 must lie between"),
        ({"kind": "string", "shift_tokens": 4, "window_tokens": 5}, "window_tokens 5 must lie"),
        ({"kind": "log_scaled", "window_tokens": 1}, "window_tokens 1 is below 2"),
        ({"kind": "ntq", "factor": 4.0}, "did you mean 'ntk'"),
    ):
        with pytest.raises(SpecError, match=message):
            decode(Rope, data)  # type: ignore[arg-type]
    nested = {
        "kind": "log_scaled",
        "window_tokens": 4096,
        "frequencies": {"kind": "base", "base": 500},
    }
    assert decode(Rope, nested) == LogScaledRope(  # type: ignore[arg-type]
        window_tokens=4096, frequencies=BaseRope(base=500.0)
    )


def test_model_config_refuses_what_a_family_cannot_express() -> None:
    """Llama ignores a partial rotary share; GPT-NeoX ignores kv_heads."""
    plain = head(8, 1e4, 8)
    with pytest.raises(SpecError, match=r"rotary_share: 0\.5"):
        config(dataclasses.replace(plain, rotary_share=0.5), PlainRope())
    with pytest.raises(SpecError, match="kv_heads: 1"):
        config(dataclasses.replace(plain, family="gpt_neox", heads=2, kv_heads=1), PlainRope())
