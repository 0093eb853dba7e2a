"""Another base that is not applied, or another one than was said, does not obey the laws."""

import functools

import numpy as np
import pytest
from bench import Bench, Json, outcome, predicted
from written import Abilities

from ropewalk.base.manifest import Manifest
from ropewalk.evaluate.check_rope_laws import RopeBounds
from ropewalk.evaluate.spec import PositionCurve
from ropewalk.model.spec import BaseRope, LinearRope, PlainRope, Rope
from ropewalk.train.spec import Phase

STUDY, ORIGINAL = "rope_scaling_laws", "shared/base"
BASES = {"pretrained": None, "40k": 40_000.0, "120k": 120_000.0, "largest": 1_000_000.0}
STILL = 1000.0  # times slower: no pair comes back within what is read
CURVE = PositionCurve(contexts={"1x": 64, "4x": 256, "8x": 512, "16x": 1024}, points=36)


def rope_of(base: float | None) -> Rope:
    return PlainRope() if base is None else BaseRope(base=base)


@functools.cache
def tuned(bench: Bench, name: str) -> Manifest:
    phase = Phase(windows="texts", length_tokens=64, steps=1, rope=rope_of(BASES[name]))
    return bench.run(f"base-{name}", phase)


@functools.cache
def curve(bench: Bench, name: str, under: Rope | None = None) -> Json:
    """Return the curve of a run under its own rope, or under another."""
    return bench.evaluated(tuned(bench, name), CURVE, under, name=str(under))


def says(bench: Bench, claim: str, curves: dict[str, Json]) -> str:
    names = {name: f"{STUDY}/plain-{name}-mini-1x" for name in BASES}
    evaluations = {("by_position", names[name]): found for name, found in curves.items()}
    evaluations["by_position", ORIGINAL] = curves["pretrained"]
    laws = {names[name]: predicted(tuned(bench, name)) for name in BASES}
    return outcome(STUDY, claim, evaluations=evaluations, predicted=laws)


@pytest.mark.parametrize(
    "claim", ["bounds_as_predicted", "bounds_grow_with_the_base", "larger_base_extrapolates"]
)
def test_the_base_is_applied(bench: Bench, claim: str) -> None:
    """Guards against models that are read under the base of pretraining, whatever they say."""
    sound = {name: curve(bench, name) for name in BASES}
    not_applied = {name: curve(bench, name, PlainRope()) for name in BASES}
    assert says(bench, claim, sound) == "reproduced"
    assert says(bench, claim, not_applied) != "reproduced"


@pytest.mark.parametrize("claim", ["bounds_as_predicted", "bounds_grow_with_the_base"])
def test_each_run_has_its_own_base(bench: Bench, claim: str) -> None:
    """Guards against checkpoints of bases that change places."""
    sound = {name: curve(bench, name) for name in BASES}
    others = ("120k", "largest", "pretrained", "40k")
    turned = {name: sound[other] for name, other in zip(BASES, others, strict=True)}
    assert says(bench, claim, sound) == "reproduced"
    assert says(bench, claim, turned) == "contradicted"


@pytest.mark.parametrize("claim", ["collapse_beyond_the_bound", "original_breaks_down"])
def test_a_bound_is_a_bound(bench: Bench, claim: str) -> None:
    """Guards against a collapse that is found in any model: here in one that nothing turns."""
    sound = {name: curve(bench, name) for name in BASES}
    still = bench.run("still", abilities=Abilities(slower=STILL))
    never = bench.evaluated(still, CURVE, LinearRope(factor=STILL))
    assert says(bench, claim, sound) == "reproduced"
    assert says(bench, claim, dict.fromkeys(BASES, never)) == "contradicted"


class NotApplied(RopeBounds):
    """The laws beside frequencies of the base of pretraining, whichever base is asked for."""

    def _periods(self, base: float) -> np.ndarray:
        return super()._periods(self.base)


class InRadians(RopeBounds):
    """The laws beside wavelengths that somebody forgot to multiply by 2 pi."""

    def _periods(self, base: float) -> np.ndarray:
        return super()._periods(base) / (2 * np.pi)


@pytest.mark.parametrize(
    ("claim", "broken"),
    [
        ("dimensions_counted", NotApplied),
        ("dimensions_counted", InRadians),
        ("bound_is_a_period", NotApplied),
        ("bound_is_a_period", InRadians),
        ("beta_3_completes", NotApplied),
    ],
)
def test_formulas_are_held_against_the_frequencies(claim: str, broken: type[RopeBounds]) -> None:
    """Guards against a formula that is compared with itself."""
    sound, other = ({"laws": {"numbers": k().run().numbers}} for k in (RopeBounds, broken))
    assert outcome(STUDY, claim, checks=sound) == "reproduced"
    assert outcome(STUDY, claim, checks=other) == "contradicted"
