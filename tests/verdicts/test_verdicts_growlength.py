"""GrowLength whose stages are swapped, skipped or not applied."""

import functools
from collections.abc import Sequence

from bench import Bench, outcome, training

from ropewalk.base.manifest import Manifest
from ropewalk.train.spec import Phase

STUDY = "growlength"
GROW, JUMP = f"{STUDY}/mini-grow-seconds", f"{STUDY}/mini-jump-seconds"
BY_TOKEN = {rows: f"{STUDY}/mini-{rows}-tokens" for rows in ("short", "long", "grow")}
STEPS = 6
# Seconds of a step of 512 tokens by length of row, as a machine might take them, round by round.
SECONDS = {16: 1.0, 32: 1.05, 64: 1.2, 128: 1.5}
CALIBRATION = {
    "rounds": 6,
    "shapes": {
        f"rows of {length}": {
            "length_tokens": length,
            "context_tokens": length,
            "sequences": 512 // length,
            "tokens": 512,
            "seconds": [seconds * (1 + 0.002 * r) for r in range(6)],
        }
        for length, seconds in SECONDS.items()
    },
}


@functools.cache
def trained(bench: Bench, lengths: tuple[int, ...]) -> Manifest:
    """Train stages of rows of these lengths, by a rate of 0, on a model that reads 100 tokens."""
    phases = (Phase(windows="texts", length_tokens=n, steps=STEPS) for n in lengths)
    return bench.run(f"rows-{'-'.join(map(str, lengths))}", *phases)


def says(bench: Bench, claim: str, runs: dict[str, Sequence[int]]) -> str:
    trainings = {
        name: training(trained(bench, tuple(lengths)), f"{STUDY}/main")
        for name, lengths in runs.items()
    }
    calibrations = {f"{STUDY}/main": CALIBRATION}
    return outcome(STUDY, claim, trainings=trainings, calibrations=calibrations)


def test_a_jump_to_rows_that_cannot_be_read_shows(bench: Bench) -> None:
    """Guards against switches that are looked for at the wrong step, or turned round."""
    assert says(bench, "jump_spikes", {JUMP: (16, 512)}) == "reproduced"
    assert says(bench, "jump_spikes", {JUMP: (512, 16)}) == "contradicted"


def test_doubling_is_smooth_where_it_doubles(bench: Bench) -> None:
    """Guards against stages that are left out, or in another order, and still called doublings."""
    stages = {"doubling_to_256_is_smooth": (16, 512), "doubling_to_512_is_smooth": (32, 16, 512)}
    for claim, broken in stages.items():
        assert says(bench, claim, {GROW: (16, 32, 64)}) == "reproduced"
        assert says(bench, claim, {GROW: broken}) == "contradicted"


def test_a_jump_is_more_than_the_last_doubling(bench: Bench) -> None:
    """Guards against runs that change places."""
    grow, jump = (16, 32, 64, 128), (16, 512)
    claim = "jump_spikes_more_than_doubling"
    assert says(bench, claim, {GROW: grow, JUMP: jump}) == "reproduced"
    assert says(bench, claim, {GROW: (16, 32, 64, 512), JUMP: (16, 64)}) == "contradicted"


def test_growing_rows_take_less_time(bench: Bench) -> None:
    """Guards against stages that are planned and then trained at the last length."""
    claim, long = "growing_takes_less_time", (128, 128, 128, 128)
    grow = (16, 32, 64, 128)
    runs = {BY_TOKEN["long"]: long, BY_TOKEN["grow"]: grow}
    assert says(bench, claim, runs) == "reproduced"
    assert says(bench, claim, {**runs, BY_TOKEN["grow"]: long}) == "contradicted"


def test_long_rows_take_longer(bench: Bench) -> None:
    """Guards against seconds of the wrong run."""
    claim, long, short = "long_takes_longer", (128,) * 4, (16,) * 4
    sound = {BY_TOKEN["long"]: long, BY_TOKEN["short"]: short}
    assert says(bench, claim, sound) == "reproduced"
    swapped = {BY_TOKEN["long"]: short, BY_TOKEN["short"]: long}
    assert says(bench, claim, swapped) == "contradicted"
