"""The check of position frequency against loops, and against what attention really looks at."""

from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ropewalk.data.frequency import histogram, position_frequency
from ropewalk.evaluate.check_string import PositionFrequency, _last_third, _of_length
from ropewalk.model.attention import sdpa, segments


def counted(lengths: list[int], size: int) -> list[int]:
    """Count every pair of a token and one not after it in its segment, by distance."""
    frequency = [0] * size
    for length in lengths:
        for token in range(length):
            for seen in range(token + 1):
                frequency[token - seen] += 1
    return frequency


def share(frequency: list[int], lowest: Fraction, highest: Fraction) -> float:
    kept = sum(f for i, f in enumerate(frequency) if lowest <= i <= highest)
    return kept / sum(frequency)


@pytest.mark.parametrize("length", [4, 7, 12, 96])
def test_shares_are_those_of_counted_pairs(length: int) -> None:
    """Guards against closed forms of another length, or shares over other distances."""
    found = PositionFrequency(length_tokens=length, corpora=2, masks=1).run().numbers
    cases = {"concatenated": [length], "uniform": list(range(1, length + 1))}
    whole = Fraction(length)
    for case, lengths in cases.items():
        frequency = counted(lengths, length)
        expected = {
            "below_half": share(frequency, Fraction(0), whole / 2),
            "last_quarter": share(frequency, whole * 3 / 4, whole),
            "last_third": share(frequency, whole * 2 / 3, whole),
        }
        for name, value in expected.items():
            assert found[f"{case}_{name}"] == pytest.approx(value, rel=1e-12)
        assert found[f"{case}_difference"] == 0


def test_shares_at_2048_tokens() -> None:
    """Guards against shares at another length: by sums of L - i and (L - i)(L - i + 1) / 2."""
    found = PositionFrequency(corpora=20).run().numbers
    left = [2048 - i for i in range(2048)]
    frequencies = {"concatenated": left, "uniform": [n * (n + 1) // 2 for n in left]}
    printed = {
        "concatenated": {"below_half": 0.750, "last_quarter": 0.0626, "last_third": 0.111},
        "uniform": {"below_half": 0.875, "last_quarter": 0.0157, "last_third": 0.037},
    }
    for case, values in printed.items():
        total = sum(frequencies[case])
        exact = {
            "below_half": sum(frequencies[case][:1025]),
            "last_quarter": sum(frequencies[case][1536:]),
            "last_third": sum(frequencies[case][1366:]),
        }
        for name, value in values.items():
            assert found[f"{case}_{name}"] == pytest.approx(exact[name] / total, rel=1e-12)
            assert found[f"{case}_{name}"] == pytest.approx(value, abs=5e-4)
    # The last third is also given from i = 1365 on, one distance before 2 L / 3.
    assert sum(left[1365:]) / sum(left) == pytest.approx(0.1113, abs=5e-5)
    assert found["theorem_violations"] == found["theorem_exceptions"] == 0
    assert 0.9 < found["theorem_largest_ratio"] < 1  # corpora come close to full windows
    assert found["count_differences"] == 0
    assert (found["doubled_at_zero"], found["doubled_falls"]) == (1, 0)


def looked_at(boundaries: list[int] | None, size: int) -> np.ndarray:
    """Return which keys the model's attention gives weight, bool [query, key]: values are units."""
    random = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 1, size, size, generator=random)
    module: Any = SimpleNamespace(config=None)
    given = None if boundaries is None else [boundaries]
    found = segments(given, 1, size, torch.device("cpu"))
    value = torch.eye(size)[None, None]
    output, _ = sdpa(module, query, key, value, None, scaling=size**-0.5, segments=found)
    return output[0, :, 0].numpy() > 0


def test_position_frequency_is_that_of_attention_as_it_runs() -> None:
    """Guards against a frequency that training does not have: documents apart, or not at all."""
    size, lengths = 48, [5, 1, 20, 3, 19]
    apart = looked_at([0, *np.cumsum(lengths).tolist()], size)
    for sight, pieces in ((apart, lengths), (looked_at(None, size), [size])):
        query, key = np.nonzero(sight)
        frequency = np.bincount(query - key, minlength=size)
        assert frequency.tolist() == counted(pieces, size)
        expected = position_frequency(histogram(np.array(pieces), size))
        assert frequency.tolist() == expected.tolist()


def test_far_shares_are_exact() -> None:
    """Guards against a theorem that holds by rounding."""
    for length in range(4, 30):
        for segment in range(1, length + 1):
            frequency = counted([segment], length)
            far = sum(f for i, f in enumerate(frequency) if 3 * i >= 2 * length)
            expected = Fraction(far, sum(frequency))
            assert _of_length(segment, length) == expected
            assert _last_third(np.array(frequency)) == expected


def test_the_theorem_is_not_true_of_near_distances() -> None:
    """Guards the check: a bound that nothing can break, turned round, must be broken.

    Of the distances below a third, short segments have more than full windows.
    """
    length = 60
    near = [share(counted([n], length), Fraction(0), Fraction(19)) for n in range(1, length + 1)]
    assert all(value > near[-1] for value in near[:-1])
    assert all(_of_length(n, length) < _of_length(length, length) for n in range(1, length))
