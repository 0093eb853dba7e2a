"""The check of the RoPE scaling laws against the rotary embedding of transformers."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from ropewalk.evaluate.check_rope_laws import LARGER_BASES, RopeBounds
from ropewalk.model import rope_laws

MINI = {"dimension": 32, "trained_tokens": 256, "tuned_tokens": 1024}


def periods(dimension: int, base: float) -> np.ndarray:
    """Return 2 pi / inverse frequency of every pair, as transformers computes it in fp32."""
    config = LlamaConfig(
        hidden_size=dimension,
        num_attention_heads=1,
        rope_parameters={"rope_type": "default", "rope_theta": base},
    )
    return 2 * math.pi / LlamaRotaryEmbedding(config).inv_freq.double().numpy()


@pytest.mark.parametrize("parameters", [{}, MINI, {**MINI, "dimension": 64, "base": 500_000.0}])
def test_numbers_are_those_of_the_rotary_embedding(parameters: dict[str, Any]) -> None:
    """Guards against laws about frequencies that no model has."""
    check = RopeBounds(**parameters)
    found = check.run().numbers
    pretrained = periods(check.dimension, check.base)
    complete = int((pretrained <= check.trained_tokens).sum())
    assert found["critical_dimension"] == found["counted_dimensions"] == 2 * complete
    assert found["untrained_dimensions"] == check.dimension - 2 * complete
    assert found["last_complete_period"] == pytest.approx(pretrained[complete - 1], rel=1e-6)
    assert found["first_incomplete_period"] == pytest.approx(pretrained[complete], rel=1e-6)
    larger = [base for base in LARGER_BASES if base > check.base]
    for base in LARGER_BASES:
        assert (f"bound_{base}" in found) == (f"bound_{base}_long" in found) == (base in larger)
    for base in larger:
        bound = periods(check.dimension, base)[complete]
        assert found[f"bound_{base}"] == pytest.approx(bound, rel=1e-6)
        long = bound if base > found["beta_0_long"] else check.tuned_tokens
        assert found[f"bound_{base}_long"] == pytest.approx(long, rel=1e-6)
    goals = {"goal": check.goal_tokens} | {f"{n}x": n * check.trained_tokens for n in (4, 16, 256)}
    for name, tokens in goals.items():
        bound = periods(check.dimension, found[f"base_for_{name}"])[complete]
        assert bound == pytest.approx(tokens, rel=1e-5)
    for name in ("beta_1", "beta_2", "beta_3", "smallest"):
        base = found["smallest_base" if name == "smallest" else name]
        small = periods(check.dimension, base)
        trained = 2 * int((small <= check.trained_tokens).sum())
        assert found[f"trained_dimensions_{name}"] == trained
        slowest = 2 * math.pi * check.trained_tokens / small[-1]
        assert found[f"slowest_angle_{name}"] == pytest.approx(slowest, rel=1e-5)
    quarters = [found[f"slowest_angle_beta_{n}"] / (math.pi / 2) for n in (1, 2, 3)]
    assert quarters[0] > 1
    assert quarters[1] > 2
    assert quarters[2] > 4
    assert found["smallest_base"] < found["beta_3"]
    assert found["beta_0"] == pytest.approx(check.base)
    for n in (1, 2, 3):
        stretch = check.tuned_tokens / check.trained_tokens
        assert found[f"beta_{n}_long"] == pytest.approx(found[f"beta_{n}"] * stretch)
    assert found["counted_difference"] == 0
    assert found["period_difference"] < 1e-12


def test_numbers_of_the_paper() -> None:
    """Guards against a check of other lengths or another model than the paper's LLaMA 2."""
    found = RopeBounds().run().numbers
    printed = {
        "critical_dimension": (92, 0),
        "last_complete_period": (4080, 0.5),
        "first_incomplete_period": (4712, 0.5),
        "beta_0": (10_000, 1e-6),
        "beta_1": (2608, 0.5),
        "beta_2": (1304, 0.5),
        "beta_3": (652, 0.5),
        "beta_0_long": (71_738, 1),
        "bound_40000": (12_762, 1),
        "bound_80000": (21_003, 1),
        "bound_120000": (28_109, 1),
        "bound_600000": (89_377, 1),
        "bound_1000000": (129_027, 1),
        "bound_40000_long": (16_384, 0),
        "base_for_goal": (701_472, 1),
        "base_for_256x": (1.845e7, 5e3),
        "trained_dimensions_beta_1": (106, 0),
        "trained_dimensions_beta_2": (116, 0),
        "trained_dimensions_beta_3": (128, 0),
        "smallest_base": (500, 1e-9),
        "trained_dimensions_smallest": (128, 0),
    }
    for name, (value, tolerance) in printed.items():
        assert found[name] == pytest.approx(value, abs=tolerance), name


def test_curves_are_the_laws_at_their_bases() -> None:
    """Guards against a figure of another model, or of the other tuning length."""
    curves = RopeBounds(**MINI, points=40).run().series
    assert curves["period"]["x"] == list(range(0, 32, 2))
    assert curves["period"]["y"] == pytest.approx(periods(32, 10000.0), rel=1e-6)
    for ending, tokens in (("", 256), ("_long", 1024)):
        assert len(curves[f"bound{ending}"]["x"]) == 40
        for base, bound in zip(*curves[f"bound{ending}"].values(), strict=True):
            above = base > rope_laws.critical_base(10000.0, 256, tokens)
            assert bound == pytest.approx(periods(32, base)[7] if above else tokens, rel=1e-5)
        for base, trained in zip(*curves[f"trained_dimensions{ending}"].values(), strict=True):
            assert trained == 2 * (periods(32, base) <= tokens).sum()


@pytest.mark.parametrize("broken", ["critical_dimension", "context_bound"])
def test_a_law_that_is_off_is_seen(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against differences that are 0 because a formula is compared with itself."""
    whole: Callable[..., float] = getattr(rope_laws, broken)
    monkeypatch.setattr(rope_laws, broken, lambda *a, **k: whole(*a, **k) + 2)
    found = RopeBounds(**MINI).run().numbers
    if broken == "critical_dimension":
        assert found["counted_difference"] == 2
    assert found["period_difference"] > 1e-4
