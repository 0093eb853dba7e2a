"""Stage `check`: every check by its name, its parameters, and what it leaves."""

import dataclasses
import importlib
import json
import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest

from ropewalk.base.spec import SpecError
from ropewalk.base.stage import run_stage
from ropewalk.cli import main
from ropewalk.evaluate import check
from ropewalk.evaluate.spec import CHECKS_OF_WINDOWS, CheckJob, PackedWindows, check_module

# Small enough for seconds; where a default is as quick it is left.
SMALL: Mapping[str, Mapping[str, float]] = {
    "pi_interpolation_bound": {"draws": 4},
    "pi_extrapolation_bound": {"positions": 300},
    "pi_random_fit": {"positions": 300, "seeds": 1},
    "pose_coverage": {"window_tokens": 64, "target_tokens": 256, "draws": 128},
    "pose_cost": {},
    "rope_bounds": {"dimension": 32, "trained_tokens": 256, "tuned_tokens": 1024},
    "position_frequency": {"length_tokens": 256},
    "packed_frequency": {"points": 16},
    "training_time": {},
}
# What checks of windows are given: f of two documents of 5 and 3 tokens, whole and cut at 4.
PACKED = {"short": np.array([8, 5, 3, 1]), "long": np.array([8, 6, 4, 2, 1, 0, 0, 0])}


def kind(name: str) -> Any:
    return importlib.import_module(check_module(name)).CHECKS[name]


def run(name: str) -> Any:
    made = check.made(kind(name), SMALL[name])
    return made.run(PACKED) if name in CHECKS_OF_WINDOWS else made.run()


def test_every_named_check_exists_and_no_other() -> None:
    """Guards against a name that a study may write and the stage cannot find, and the reverse."""
    names = set(get_args(get_type_hints(CheckJob)["check"]))
    assert names == set(SMALL)
    modules = {check_module(name) for name in names}
    assert {n for m in modules for n in importlib.import_module(m).CHECKS} == names


@pytest.mark.parametrize("name", SMALL)
def test_series_are_pairs_of_equal_length_and_finite(name: str) -> None:
    """Guards against a figure drawn from x and y that do not belong together, and numbers of nan.

    x grows, so that a curve can be drawn through the points.
    """
    findings = run(name)
    assert findings.series
    for values in findings.series.values():
        assert len(values["x"]) == len(values["y"]) > 1
        assert np.isfinite(values["y"]).all()
        assert (np.diff(values["x"]) > 0).all()
    for number, value in findings.numbers.items():
        assert type(value) in (int, float), number
        assert math.isfinite(value), number


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("pi_extrapolation_bound", {"dimensions": 64.0}, "did you mean 'dimension'"),
        (
            "pi_extrapolation_bound",
            {"positions": 10.5},
            r"parameters\.positions: 10\.5 must be a whole number",
        ),
        (
            "pi_extrapolation_bound",
            {"positions": math.inf},
            r"parameters\.positions: inf must be a whole number",
        ),
        (
            "pi_extrapolation_bound",
            {"positions": 0.0},
            r"parameters\.positions: 0\.0 must be at least 1",
        ),
        ("pi_extrapolation_bound", {"dimension": 7.0}, "dimension 7 must be even"),
        ("pi_extrapolation_bound", {"base": 0.5}, r"base 0\.5 above 1"),
        ("pose_coverage", {"draws": 63}, "draws 63 is below 64"),
        (
            "pose_coverage",
            {"window_tokens": 16384},
            "window_tokens 16384 must lie between 3 and target_tokens 16384 minus 1",
        ),
        ("pose_coverage", {"target_tokens": 7, "window_tokens": 4}, "target_tokens be at least 8"),
        ("rope_bounds", {"tuned_tokens": 4000}, "tuned_tokens 4000 is below trained_tokens 4096"),
        ("rope_bounds", {"trained_tokens": 8}, "trained_tokens 8 leaves no base above 1"),
        ("rope_bounds", {"base": 1.0}, r"base 1\.0 must be above 1"),
        ("rope_bounds", {"base": 500.0}, "the law sets no bound"),
        ("rope_bounds", {"goal_tokens": 6}, "bound_tokens 6 must be above 2 pi"),
        ("position_frequency", {"length_tokens": 3}, "length_tokens 3 is below 4"),
    ],
)
def test_parameters_that_cannot_be_used_are_refused(
    name: str, parameters: dict[str, float], message: str
) -> None:
    """Guards against a misspelt parameter that leaves the default in force."""
    with pytest.raises(SpecError, match=message):
        check.made(kind(name), parameters)


@pytest.mark.parametrize("name", sorted(set(SMALL) - set(CHECKS_OF_WINDOWS)))
def test_the_stage_writes_numbers_and_series(tmp_path: Path, name: str) -> None:
    """Guards against results that differ between two runs, or that claims cannot find."""
    spec = CheckJob(check=name, parameters=SMALL[name])  # type: ignore[arg-type]
    files: list[Any] = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        manifest = run_stage(
            "check",
            "ropewalk.evaluate.check",
            lambda job: check.work(
                dataclasses.replace(job, chosen=importlib.import_module(check_module(name)))
            ),
            chosen=check_module(name),
            spec=spec,
            inputs={},
            folder=folder,
        )
        files.append((folder / "result.json").read_bytes())
    result = json.loads(files[0])
    assert files[0] == files[1]
    assert set(result) == {"numbers", "series"}
    assert manifest.result["numbers"] == result["numbers"]


@pytest.mark.parametrize(
    ("name", "windows", "message"),
    [
        ("packed_frequency", {}, "needs windows"),
        ("rope_bounds", {"a": PackedWindows(windows="w", length_tokens=8)}, "has no use for"),
    ],
)
def test_windows_are_given_to_the_checks_that_look_at_them(
    name: Any, windows: dict[str, PackedWindows], message: str
) -> None:
    """Guards against a check of data without data, and windows that nobody looks at."""
    with pytest.raises(ValueError, match=message):
        CheckJob(check=name, windows=windows)


def test_a_check_runs_by_hand(tmp_path: Path) -> None:
    """Guards against a check that only the workflow can start."""
    spec = json.dumps({"check": "rope_bounds", "parameters": {"trained_tokens": 2048}})
    assert main(["check", "--spec", spec, "--out", str(tmp_path)]) == 0
    numbers = json.loads((tmp_path / "result.json").read_text())["numbers"]
    assert numbers["beta_1"] == pytest.approx(2 * 2048 / math.pi)


def test_a_check_that_stands_imports_nothing(tmp_path: Path) -> None:
    """Guards against seconds of imports for every job that has nothing to do."""
    spec = json.dumps({"check": "rope_bounds", "parameters": {}})
    code = (
        "import sys\n"
        "from ropewalk.cli import main\n"
        f"assert not main(['check', '--spec', {spec!r}, '--out', {str(tmp_path)!r}])\n"
        "print('ropewalk.evaluate.check' in sys.modules)\n"
    )
    printed = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.split()[-1]
        for _ in range(2)
    ]
    assert printed == ["True", "False"]
