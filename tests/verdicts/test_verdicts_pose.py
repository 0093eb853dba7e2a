"""PoSE whose skips are not applied, and checks of rows that are placed wrongly."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import written
from bench import Bench, Json, outcome
from written import KEYS, Abilities

from ropewalk.base.stage import StageError
from ropewalk.evaluate.check_pose import Place, PoseCost, PoseCoverage
from ropewalk.evaluate.spec import RecallProbe
from ropewalk.model.positions import position_ids
from ropewalk.model.spec import (
    LinearRope,
    NaturalPositions,
    PosePositions,
    Positions,
    RandPosPositions,
)
from ropewalk.train.spec import Batch, Optimizer, Phase

STUDY = "pose"
BASE, POSE, SHORT = "shared/base", f"{STUDY}/pose-linear-4x-base", f"{STUDY}/short-linear-4x-base"
PROBE = RecallProbe(
    context_tokens=256, distances=8, trials=24, keys=KEYS, pairs=1, shown=1, allow=("dropped",)
)
SKIPS = PosePositions(target_tokens=256, content="contiguous")
# It finds values to 96 tokens back, farther than rows of 64 can show, and can learn to find others.
START = Abilities(finder_pair=5, can_learn=True)


@functools.cache
def retrieval(bench: Bench, positions: Positions) -> Json:
    """Train on rows of the window, whose only target is an answer, and probe four windows."""
    rows = bench.tokens(
        f"asked-{positions.kind}", [written.asked(i, 64) for i in range(320)], prompts=True
    )
    phase = Phase(
        windows="texts",
        length_tokens=64,
        steps=30,
        rope=LinearRope(factor=4.0),
        positions=positions,
    )
    run = bench.run(
        f"trained-{positions.kind}",
        phase,
        tokens=rows,
        policy="per_document",
        abilities=START,
        batch=Batch(sequences=32),
        # Where nothing is to be learned nothing moves: epsilon is above what rounding leaves.
        optimizer=Optimizer(lr=0.04, betas=(0.9, 0.95), epsilon=2e-3),
    )
    return bench.evaluated(run, PROBE)


@pytest.mark.parametrize("claim", ["pose_retrieves", "skips_lengthen_retrieval"])
def test_skips_are_applied(bench: Bench, claim: str) -> None:
    """Guards against PoSE that trains at positions 0, 1, 2, ... and never meets a far distance."""
    base = bench.evaluated(bench.run("pose-base"), PROBE)
    short = retrieval(bench, NaturalPositions())

    def says(pose: Json) -> str:
        runs = {BASE: base, POSE: pose, SHORT: short}
        evaluations = {("retrieval", run): result for run, result in runs.items()}
        return outcome(STUDY, claim, evaluations=evaluations)

    assert says(retrieval(bench, SKIPS)) == "reproduced"
    assert says(retrieval(bench, NaturalPositions())) != "reproduced"


def checked(check: Any, place: Place = position_ids) -> dict[str, Json]:
    name = {PoseCoverage: "coverage", PoseCost: "cost"}[type(check)]
    return {name: {"numbers": check.run(place).numbers}}


def whole(positions: Positions, tokens: int, rngs: list[np.random.Generator]) -> np.ndarray:
    """Give every row of PoSE as many tokens as its target: full-length training by another name."""
    reach = positions.target_tokens if isinstance(positions, PosePositions) else tokens
    return position_ids(NaturalPositions(), reach, rngs)


def cut(_: Positions, tokens: int, rngs: list[np.random.Generator]) -> np.ndarray:
    """Cut every row to the window, also those of full-length training."""
    return position_ids(NaturalPositions(), min(tokens, PoseCost().window_tokens), rngs)


@pytest.mark.parametrize(
    ("claim", "broken"),
    [
        ("cost_is_flat", whole),
        ("pose_is_cheaper", whole),
        ("pose_is_cheaper", cut),
        ("full_length_cost_grows", cut),
    ],
)
def test_rows_are_as_long_as_they_should(claim: str, broken: Place) -> None:
    """Guards against a cost that is the same whatever is read."""
    assert outcome(STUDY, claim, checks=checked(PoseCost())) == "reproduced"
    assert outcome(STUDY, claim, checks=checked(PoseCost(), broken)) == "contradicted"


def without(kind: type) -> Callable[..., np.ndarray]:
    """Return a sampler that leaves rows of one kind where they are."""

    def place(positions: Positions, tokens: int, rngs: list[np.random.Generator]) -> np.ndarray:
        natural = NaturalPositions() if isinstance(positions, kind) else positions
        return position_ids(natural, tokens, rngs)

    return place


@pytest.mark.parametrize(
    ("claim", "kind"),
    [
        ("every_distance_is_met", PosePositions),
        ("first_position_zero_reaches_further", PosePositions),
        ("randpos_covers_nearly_all", RandPosPositions),
    ],
)
def test_coverage_is_that_of_the_rows_of_training(claim: str, kind: type) -> None:
    """Guards against closed forms that stay right when the sampler of training is wrong."""
    check = PoseCoverage(draws=128)
    assert outcome(STUDY, claim, checks=checked(check)) == "reproduced"
    with pytest.raises(StageError, match="positions are not placed as they should"):
        checked(check, without(kind))
