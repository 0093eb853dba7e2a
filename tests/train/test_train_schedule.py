"""Learning rates against values computed by hand, and the cut of runs into steps."""

import math

import pytest
from train_sample import RUN, changed

from ropewalk.base.stage import StageError
from ropewalk.train.schedule import share
from ropewalk.train.spec import Batch, Hardware, Phase, Schedule
from ropewalk.train.timetable import forward_rows, stretch_of, timetable


def test_train_schedule_by_hand() -> None:
    """An off-by-one in warmup or decay is invisible in a loss curve."""
    linear = Schedule(shape="linear", warmup_steps=4, warmup_from=0.2, final=0.1)
    found = [share(linear, step, 10) for step in range(10)]
    expected = [0.2, 0.4, 0.6, 0.8, 1.0, 0.82, 0.64, 0.46, 0.28, 0.1]
    assert found == pytest.approx(expected)
    cosine = Schedule(shape="cosine", final=0.1)
    assert [share(cosine, step, 5) for step in range(5)] == pytest.approx(
        [1, 0.1 + 0.45 * (1 + math.sqrt(0.5)), 0.55, 0.1 + 0.45 * (1 - math.sqrt(0.5)), 0.1]
    )
    constant = Schedule(shape="constant", warmup_steps=2)
    assert [share(constant, step, 4) for step in range(4)] == [0.0, 0.5, 1.0, 1.0]


def test_train_schedule_of_position_interpolation() -> None:
    """PI warms up in 20 steps from 10 % of the peak, then stays: step 0 is exactly 10 %."""
    schedule = Schedule(shape="constant", warmup_steps=20, warmup_from=0.1)
    assert share(schedule, 0, 1000) == 0.1
    assert share(schedule, 10, 1000) == pytest.approx(0.55)
    assert share(schedule, 20, 1000) == 1.0
    assert share(schedule, 999, 1000) == 1.0


@pytest.mark.parametrize("shape", ["constant", "linear", "cosine"])
def test_train_schedule_of_a_run_as_short_as_its_warmup(shape: str) -> None:
    """No division by zero where nothing is left to decay."""
    schedule = Schedule(shape=shape, warmup_steps=3, final=0.5)
    assert [share(schedule, step, 4) for step in range(4)] == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_train_timetable_keeps_tokens_per_step() -> None:
    """A longer phase must not quietly get a larger batch."""
    run = changed(
        RUN,
        phases=(
            Phase(windows="packed", length_tokens=32, tokens=2048),
            Phase(windows="packed", length_tokens=64, steps=3),
        ),
        batch=Batch(tokens=512),
    )
    first, second = timetable(run)
    assert (first.first, first.steps, first.sequences) == (0, 4, 16)
    assert (second.first, second.steps, second.sequences) == (4, 3, 8)
    assert first.tokens_per_step == second.tokens_per_step == 512
    assert [stretch_of((first, second), s) for s in (0, 3, 4, 7)] == [first, first, second, second]


def test_train_timetable_refuses_what_would_do_nothing() -> None:
    """A phase of zero steps or a snapshot after the end would silently be left out."""
    short = changed(RUN, phases=(Phase(windows="packed", length_tokens=32, tokens=255),))
    with pytest.raises(StageError, match=r"phases\[0\]: 255 tokens are less than one step.* 256"):
        timetable(short)
    with pytest.raises(StageError, match="snapshot_steps: 7"):
        timetable(changed(RUN, snapshot_steps=(7,)))


def test_train_forward_passes_cover_every_row_once() -> None:
    """Each process does equally many passes, or a sharded model waits for ever."""
    (stretch,) = timetable(RUN)
    for processes, at_once, passes in ((1, None, 1), (1, 3, 3), (2, 3, 2), (8, 4, 1)):
        hardware = Hardware(processes=processes, sequences_per_forward=at_once)
        rows = forward_rows(stretch, hardware)
        assert len(rows) == passes
        assert [i for part in rows for i in range(8)[part]] == list(range(8 // processes))
    with pytest.raises(StageError, match=r"hardware\.processes: 3"):
        forward_rows(stretch, Hardware(processes=3))
