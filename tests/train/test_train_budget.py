"""Steps from seconds, against arithmetic by hand."""

import pytest
from train_sample import RUN, changed

from ropewalk.base.stage import StageError
from ropewalk.train.budget import with_steps
from ropewalk.train.spec import Batch, Phase, SecondsLike, Timed
from ropewalk.train.timetable import timetable


def shape(length: int, sequences: int, seconds: float) -> dict[str, float]:
    return {
        "length_tokens": length,
        "context_tokens": length,
        "sequences": sequences,
        "seconds_per_step": seconds,
    }


COSTS = {
    "s/main": {"shapes": {"a": shape(32, 16, 0.18), "b": shape(64, 8, 0.22)}},
    "s/small": {"shapes": {"a": shape(32, 16, 0.09)}},
}
LONG = (
    Timed(calibration="s/main", length_tokens=64, context_tokens=64, sequences=8, steps=100),
    Timed(calibration="s/main", length_tokens=32, context_tokens=32, sequences=16, steps=50),
)


def phase(length: int, share: float) -> Phase:
    like = SecondsLike(run="s/long", share=share)
    return Phase(windows="packed", length_tokens=length, seconds_like=like)


def run(*phases: Phase, calibration: str | None = "s/main") -> object:
    return changed(RUN, phases=phases, batch=Batch(tokens=512), calibration=calibration)


def test_a_share_of_the_seconds_of_all_phases_of_the_other_run() -> None:
    """Guards against a budget that counts one phase only, or one length's cost for all."""
    seconds = 100 * 0.22 + 50 * 0.18  # 31
    found = with_steps(run(phase(32, 0.25), phase(64, 0.75)), {"s/long": LONG}, COSTS)
    assert [p.steps for p in found.phases] == [
        round(seconds / 4 / 0.18),
        round(seconds * 3 / 4 / 0.22),
    ]
    assert [p.seconds_like for p in found.phases] == [None, None]
    assert timetable(found)[-1].first == 43


def test_another_model_has_its_own_seconds() -> None:
    """Guards against a small model that trains as few steps as the large one it is held against."""
    found = with_steps(run(phase(32, 1.0), calibration="s/small"), {"s/long": LONG}, COSTS)
    assert found.phases[0].steps == round(31 / 0.09)


@pytest.mark.parametrize("seconds", [0.1, 0.3, 1 / 3, 0.0137, 123.456])
@pytest.mark.parametrize("steps", [1, 3, 7, 21973])
def test_the_seconds_of_a_twin_give_its_steps_exactly(seconds: float, steps: int) -> None:
    """Guards against a step lost to rounding, and so to two names for almost one run."""
    costs = {"s/main": {"shapes": {"a": shape(32, 16, seconds)}}}
    own = Timed(
        calibration="s/main", length_tokens=32, context_tokens=32, sequences=16, steps=steps
    )
    found = with_steps(run(phase(32, 1.0)), {"s/long": (own,)}, costs)
    assert found.phases[0].steps == steps


def test_runs_without_a_budget_of_time_stay_as_they_are() -> None:
    """Guards against a calibration that changes a run that never asked for one."""
    assert with_steps(RUN, {}, {}) == RUN


@pytest.mark.parametrize(
    ("phases", "timed", "costs", "message"),
    [
        ((phase(128, 1.0),), {"s/long": LONG}, COSTS, "no shape of 4 sequences of 128 tokens"),
        ((phase(32, 1.0),), {}, COSTS, "the steps of 's/long'"),
        ((phase(32, 1.0),), {"s/long": LONG}, {}, "calibration:s/main"),
        ((phase(32, 1e-4),), {"s/long": LONG}, COSTS, "less than one step"),
    ],
)
def test_a_budget_that_cannot_become_steps_says_why(
    phases: tuple[Phase, ...], timed: object, costs: object, message: str
) -> None:
    """Guards against a run of no steps, or of steps of another shape's cost."""
    with pytest.raises(StageError, match=message):
        with_steps(run(*phases), timed, costs)


def test_seconds_without_a_calibration_are_refused_by_name() -> None:
    """Guards against a run by hand whose budget of time is taken for no budget at all."""
    with pytest.raises(StageError, match=r"phases\[0\]\.seconds_like"):
        timetable(run(phase(32, 1.0)))
