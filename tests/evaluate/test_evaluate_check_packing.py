"""The check of packed windows against counting pair by pair, and of a training time by hand."""

import itertools
import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from ropewalk.base.stage import run_stage
from ropewalk.data import frequency, packing
from ropewalk.evaluate import check, check_packing
from ropewalk.evaluate.check_packing import PackedFrequency
from ropewalk.evaluate.check_training_time import TrainingTime
from ropewalk.evaluate.spec import CheckJob, PackedWindows


def packed(lengths: list[int], window: int) -> np.ndarray:
    """Count pairs of the pieces that packing leaves, one by one."""
    pieces = packing.POLICIES["documents"](np.array(lengths, dtype=np.int32), window).length
    f = np.zeros(window, dtype=np.int64)
    for size in pieces:
        for token in range(size):
            for seen in range(token + 1):
                f[token - seen] += 1
    return f


@pytest.fixture(scope="module")
def lengths() -> list[int]:
    """Documents mostly shorter than the windows, some of them longer than both."""
    return np.random.default_rng(0).geometric(0.06, 300).clip(1, 90).tolist()


def test_shares_and_ratios_are_those_of_counted_pairs(lengths: list[int]) -> None:
    """Guards against a share over other distances, and arms compared without their tokens."""
    a, b = packed(lengths, 24), packed([*lengths, 24], 48)
    numbers = PackedFrequency().run({"long": b, "short": a}).numbers
    assert numbers["short_tokens"] == sum(lengths)
    for label, f, length in (("short", a, 24), ("long", b, 48)):
        total = sum(f)
        assert numbers[f"{label}_below_half"] == sum(f[: length // 2 + 1]) / total
        assert numbers[f"{label}_last_quarter"] == sum(f[3 * length // 4 :]) / total
        line = max(abs(x / f[0] - (length - i) / length) for i, x in enumerate(f))
        assert numbers[f"{label}_linear"] == pytest.approx(line, rel=1e-12)
    per_token = [
        Fraction(int(y), int(b[0])) / Fraction(int(x), int(a[0]))
        for x, y in zip(a, b, strict=False)
        if x
    ]
    assert numbers["long_below_short"] == sum(ratio < 1 for ratio in per_token)
    assert numbers["long_falls_short"] == sum(
        later < sooner for sooner, later in itertools.pairwise(per_token)
    )
    assert numbers["long_over_short_at_half"] == pytest.approx(float(per_token[12]))
    assert numbers["long_over_short_at_last_quarter"] == pytest.approx(float(per_token[18]))
    assert not [name for name in numbers if name.startswith("short_over")]


def test_documents_kept_apart_never_see_far_more_often_than_full_windows(
    lengths: list[int],
) -> None:
    """Guards against tails compared the wrong way round: full windows are the most there is."""
    full = frequency.concatenated(3, 24)
    made = PackedFrequency().run({"documents": packed(lengths, 24), "full": full}).numbers
    assert made["documents_above_full"] == 0
    assert made["full_above_full"] == 0
    assert made["full_linear"] == 0
    more = np.arange(1, 25)  # no corpus looks like this
    assert PackedFrequency().run({"odd": more}).numbers["odd_above_full"] == 3


def test_windows_without_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="'empty' hold no token"):
        PackedFrequency().run({"empty": np.zeros(8, dtype=np.int64)})


def test_the_stage_reads_what_pack_has_left(tmp_path: Path) -> None:
    """Guards against the frequency of one corpus of a mixture taken for that of all."""
    f = packed([5, 3, 9], 6)
    statistics = tmp_path / "pack" / frequency.STATISTICS
    text = json.dumps({"total": {"position_frequency": {"f": f.tolist()}}, "by_corpus": {}})

    def pack(job):  # type: ignore[no-untyped-def]
        statistics.write_text(text)
        return [statistics], {}

    spec = CheckJob(
        check="packed_frequency", windows={"a": PackedWindows(windows="w", length_tokens=6)}
    )
    entry = "ropewalk.evaluate.check"
    made = run_stage("pack", entry, pack, spec=spec, inputs={}, folder=tmp_path / "pack")

    def work(job):  # type: ignore[no-untyped-def]
        object.__setattr__(job, "chosen", check_packing)
        return check.work(job)

    found = run_stage(
        "check",
        entry,
        work,
        spec=spec,
        inputs={"windows:a": made.folder / "manifest.json"},
        folder=tmp_path / "check",
    )
    assert found.result["numbers"]["a_tokens"] == 17


def test_days_ask_for_the_speed_that_is_worked_out_by_hand() -> None:
    """Guards against days, GPUs or parameters in the wrong place: 1.2316 B without the embedding.

    Weights: 22 layers of 2 * 2048^2 + 2 * 2048 * 256 + 3 * 2048 * 5632, and the output matrix.
    """
    numbers = TrainingTime().run().numbers
    layer = 2 * 2048**2 + 2 * 2048 * 256 + 3 * 2048 * 5632
    matrices = 22 * layer + 128_256 * 2048
    norms = 45 * 2048
    for name, days, length in (("short", 28, 2048), ("long", 32, 4096)):
        speed = 1e12 / (days * 24 * 3600 * 16)
        assert numbers[f"{name}_speed"] == pytest.approx(speed)
        per_token = 6 * (matrices + norms) + 12 * 22 * 2048 * length
        assert numbers[f"{name}_utilisation"] == pytest.approx(speed * per_token / 312e12)
        least = speed * 6 * matrices / 312e12
        assert numbers[f"{name}_least_utilisation"] == pytest.approx(least)
    assert numbers["short_speed"] == pytest.approx(25_835, abs=1)
    assert numbers["short_utilisation"] == pytest.approx(0.704, abs=5e-4)
    assert numbers["flops_ratio"] == pytest.approx(9.604 / 8.497, rel=1e-3)
