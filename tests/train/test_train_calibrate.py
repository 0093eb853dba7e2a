"""The stage `calibrate`, and trainings whose steps follow from one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from train_sample import ARCHITECTURE, RUN, changed, exported

from ropewalk.base.closure import closure
from ropewalk.base.files import read_json, write_json
from ropewalk.base.manifest import MANIFEST, Manifest, write_manifest
from ropewalk.base.stage import run_stage
from ropewalk.model.spec import Numerics, PosePositions
from ropewalk.train import calibrate, stage
from ropewalk.train.calibrate import fitting_tokens, random_rows
from ropewalk.train.memory import peak_bytes
from ropewalk.train.spec import (
    Batch,
    CalibrateJob,
    Phase,
    Run,
    SecondsLike,
    Shape,
    Timed,
    TrainJob,
)
from ropewalk.train.timetable import forward_rows, timetable

JOB = CalibrateJob(
    architecture=ARCHITECTURE,
    numerics=Numerics(),
    shapes={
        "short": Shape(length_tokens=32, tokens=128),
        "far": Shape(length_tokens=32, sequences=4, positions=PosePositions(target_tokens=512)),
    },
    rounds=3,
    steps=2,
    memory_gigabytes=1.0,
)


def calibrated(folder: Path, job: CalibrateJob = JOB) -> Manifest:
    """Run the stage and return its manifest."""
    return run_stage(
        "calibrate",
        "ropewalk.train.calibrate",
        calibrate.work,
        spec=job,
        inputs={},
        folder=folder,
    )


def test_a_calibration_is_made_once_and_says_what_it_measured(tmp_path: Path) -> None:
    """Guards against budgets that move because a stage was merely started again."""
    first = calibrated(tmp_path)
    found = read_json(tmp_path / "result.json")
    assert found["rounds"] == 3
    assert found["device"].startswith("cpu")
    for label, shape in found["shapes"].items():
        assert len(shape["seconds"]) == 3, label
        assert min(shape["seconds"]) > 0
        assert shape["seconds_per_step"] == np.median(shape["seconds"])
        assert shape["tokens"] == 128
        assert shape["peak_bytes"] > found["standing_bytes"] > 0
    assert found["shapes"]["far"]["context_tokens"] == 512
    (tmp_path / MANIFEST).unlink()  # as Snakemake does before a job
    assert calibrated(tmp_path).content == first.content


def test_standing_bytes_are_weights_gradients_and_two_moments(tmp_path: Path) -> None:
    """Guards against memory without the optimizer, and so too many tokens that fit."""
    calibrated(tmp_path)
    found = read_json(tmp_path / "result.json")
    hidden, ffn, vocabulary = 32, 48, 96
    block = hidden * (32 + 16 + 16) + 32 * hidden + 3 * hidden * ffn + 2 * hidden
    weights = vocabulary * hidden + 2 * block + hidden
    assert found["standing_bytes"] == pytest.approx(16 * weights, rel=0.01)


def test_peak_memory_is_what_stands_at_once() -> None:
    """Guards against a sum of all allocations, or what is left at the end, taken for the peak."""

    def work() -> None:
        first = torch.zeros(1000, 250)  # 1 MB
        second = first + 1
        del first
        third = second * 2
        del second, third
        torch.zeros(10)

    assert peak_bytes(torch.device("cpu"), work, 500) == pytest.approx(2_000_500, abs=100)


def test_tokens_that_fit_are_in_proportion_to_what_is_above_the_standing() -> None:
    """Guards against weights that are counted again for every token."""
    assert fitting_tokens(100, peak=30, standing=10, memory=110) == 500
    assert fitting_tokens(100, peak=30, standing=10, memory=5) == 0


def test_rows_reach_the_positions_of_the_shape() -> None:
    """Guards against PoSE timed at the positions of plain rows."""
    rows = random_rows(JOB.shapes["far"], 96, 1)
    assert rows.input_ids.shape == (4, 32)
    assert rows.position_ids.shape == (4, 32)
    assert rows.position_ids.max() > 32
    plain = random_rows(JOB.shapes["short"], 96, 0)
    assert plain.position_ids.tolist() == [list(range(32))]


def test_only_what_a_step_runs_is_the_code_of_a_calibration() -> None:
    """Guards against budgets measured anew for a change of checkpoints, metrics or the loader."""
    files = {Path(file).stem for file in closure("ropewalk.train.calibrate")}
    assert files >= {"step", "attention", "loss", "optimizer", "forward", "calibrate"}
    assert not files & {"checkpoint", "metrics", "loop", "loader", "export", "saving", "attempt"}
    assert not files & {"budget", "lease", "trackers", "segments", "schedule"}


# Trainings


def measured(folder: Path, seconds: float) -> Path:
    """Leave a calibration whose steps of 8 x 32 tokens take `seconds`; return its manifest."""
    folder.mkdir(parents=True)
    write_json(
        folder / "result.json",
        {
            "shapes": {
                "rows": {
                    "length_tokens": 32,
                    "context_tokens": 32,
                    "sequences": 8,
                    "seconds_per_step": seconds,
                },
                "long rows": {
                    "length_tokens": 64,
                    "context_tokens": 64,
                    "sequences": 4,
                    "seconds_per_step": 0.2,
                },
            }
        },
    )
    files = [folder / "result.json"]
    write_manifest(folder, stage="calibrate", spec=JOB, inputs={}, files=files, result={})
    return folder / MANIFEST


LIKE = SecondsLike(run="s/long", share=0.5)
BUDGET: Run = changed(
    RUN,
    phases=(
        Phase(windows="packed", length_tokens=32, seconds_like=LIKE),
        Phase(windows="packed", length_tokens=64, seconds_like=LIKE),
    ),
    batch=Batch(tokens=256),
    calibration="s/main",
)
LONG = Timed(calibration="s/main", length_tokens=64, context_tokens=64, sequences=4, steps=6)


def trained(run: Run, made: dict[str, Path], folder: Path, cost: Path) -> Manifest:
    """Train by a calibration and return the manifest."""
    return run_stage(
        "train",
        "ropewalk.train.stage",
        stage.work,
        spec=TrainJob(run=run, timed={"s/long": (LONG,)}),
        inputs={**made, "calibration:s/main": cost},
        folder=folder,
    )


def test_a_budget_of_time_trains_the_steps_it_stands_for(
    made: dict[str, Path], tmp_path: Path
) -> None:
    """Guards against a run of equal time whose steps nobody can read, or that differs from its own.

    The same run given in steps is the independent source.
    """
    found = trained(BUDGET, made, tmp_path / "time", measured(tmp_path / "cost", 0.1))
    # Half of 6 steps of 0.2 s: 6 of 0.1 s, 3 of 0.2 s.
    assert [phase["steps"] for phase in found.result["phases"]] == [6, 3]
    assert found.result["steps"] == 9
    phases = (
        Phase(windows="packed", length_tokens=32, steps=6),
        Phase(windows="packed", length_tokens=64, steps=3),
    )
    trained(changed(BUDGET, phases=phases), made, tmp_path / "steps", tmp_path / "cost" / MANIFEST)
    assert exported(tmp_path / "time") == exported(tmp_path / "steps")
    (switch,) = found.result["switches"]
    assert (switch["phase"], switch["step"]) == (1, 6)
    assert (len(switch["before"]), len(switch["after"])) == (6, 3)


def test_a_new_measurement_is_another_run(made: dict[str, Path], tmp_path: Path) -> None:
    """Guards against a run that goes on from checkpoints of another number of steps."""
    first = trained(BUDGET, made, tmp_path / "run", measured(tmp_path / "first", 0.1))
    second = trained(BUDGET, made, tmp_path / "run", measured(tmp_path / "second", 0.05))
    assert first.recipe != second.recipe
    assert [phase["steps"] for phase in second.result["phases"]] == [12, 3]
    assert len(list((tmp_path / "run").glob("work-*"))) == 2


def test_steps_of_a_calibration_are_cut_as_those_of_a_run() -> None:
    """Guards against a step that is timed in other passes than it is trained in."""
    run = changed(RUN, hardware={"sequences_per_forward": 3})
    (stretch,) = timetable(run)
    parts = forward_rows(stretch, run.hardware)
    assert [len(range(8)[part]) for part in parts] == [3, 3, 2]
    assert calibrate.passes(8, 3) == list(parts)
    assert calibrate.passes(8, None) == [slice(0, 8)]
