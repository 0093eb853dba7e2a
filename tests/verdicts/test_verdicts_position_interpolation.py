"""Position Interpolation that is not applied, or wrongly, does not pass for the paper's."""

import functools

import pytest
import written
from bench import Bench, Json, outcome
from written import KEYS, Abilities

from ropewalk.evaluate.spec import RecallProbe, SameTokens
from ropewalk.model.spec import BaseRope, LinearRope, PlainRope, Rope
from ropewalk.train.spec import Phase

STUDY = "position_interpolation"
BASE, DIRECT, PI = "shared/base", f"{STUDY}/direct-mini-4x-python", f"{STUDY}/pi-mini-4x-python"
LOSSES = SameTokens(contexts={"1x": 64, "4x": 256}, scored_tokens=32, documents=16)
PROBE = RecallProbe(
    context_tokens=256, distances=8, trials=16, keys=KEYS, pairs=1, shown=1, allow=("dropped",)
)
INTERPOLATED, PLAIN = LinearRope(factor=4.0), PlainRope()
NOT_APPLIED, TOO_SMALL = LinearRope(factor=1.0), LinearRope(factor=1.5)
THE_WRONG_WAY = BaseRope(base=100.0)  # turns faster, where it should turn slower
IGNORED = LinearRope(factor=1e6)  # every position is the first
SHARPER = Abilities(slower=4.0)  # what training under the interpolated rope can come to


@functools.cache
def measured(bench: Bench, rope: Rope, abilities: Abilities = written.PLAIN) -> dict[str, Json]:
    """Return losses and retrieval of a run that was trained under a rope, by a rate of 0."""
    name = f"pi-{rope}-{abilities}".replace("/", "")
    phase = Phase(windows="texts", length_tokens=256, steps=1, rope=rope)
    run = bench.run(name, phase, abilities=abilities, snapshot_steps=(0,))
    return {
        "perplexity": bench.evaluated(run, LOSSES),
        "retrieval": bench.evaluated(run, PROBE),
    }


def says(claim: str, **runs: dict[str, Json]) -> str:
    """Return the verdict on a claim, given what was measured of `base`, `direct` and `pi`."""
    names = {"base": BASE, "direct": DIRECT, "pi": PI}
    evaluations = {(e, names[run]): r for run, found in runs.items() for e, r in found.items()}
    return outcome(STUDY, claim, evaluations=evaluations)


def test_the_original_is_left_as_it_is(bench: Bench) -> None:
    """Guards against interpolation that is applied to every arm, so that nothing breaks down."""
    assert says("extrapolation_blows_up", base=measured(bench, PLAIN)) == "reproduced"
    assert says("extrapolation_blows_up", base=measured(bench, INTERPOLATED)) == "contradicted"


@pytest.mark.parametrize(
    ("claim", "broken"),
    [
        ("untrained_pi_bounded", NOT_APPLIED),
        ("untrained_pi_bounded", THE_WRONG_WAY),
        ("pi_reaches_the_target", NOT_APPLIED),
        ("pi_reaches_the_target", THE_WRONG_WAY),
        ("pi_reaches_the_target", TOO_SMALL),
    ],
)
def test_the_factor_is_applied(bench: Bench, claim: str, broken: Rope) -> None:
    """Guards against an interpolation that leaves positions beyond the window where they were."""
    base = measured(bench, PLAIN)
    assert says(claim, base=base, pi=measured(bench, INTERPOLATED)) == "reproduced"
    assert says(claim, base=base, pi=measured(bench, broken)) != "reproduced"


def test_positions_are_not_ignored(bench: Bench) -> None:
    """Guards against a model to which far and near are the same."""
    base, claim = measured(bench, PLAIN), "direct_stays_behind"
    assert says(claim, base=base, direct=base) == "reproduced"
    assert says(claim, base=base, direct=measured(bench, IGNORED)) == "contradicted"


def test_interpolation_has_its_price(bench: Bench) -> None:
    """Guards against weights that were trained already, shown as untrained ones."""
    base = measured(bench, PLAIN)
    claim = "untrained_pi_costs"
    assert says(claim, base=base, pi=measured(bench, INTERPOLATED)) == "reproduced"
    assert says(claim, base=base, pi=measured(bench, INTERPOLATED, SHARPER)) == "contradicted"


@pytest.mark.parametrize("claim", ["pi_beats_direct", "direct_stays_behind"])
def test_the_arms_are_not_mixed_up(bench: Bench, claim: str) -> None:
    """Guards against checkpoints, or results, that change places."""
    base = direct = measured(bench, PLAIN)
    pi = measured(bench, INTERPOLATED, SHARPER)
    assert says(claim, base=base, direct=direct, pi=pi) == "reproduced"
    assert says(claim, base=base, direct=pi, pi=direct) == "contradicted"
