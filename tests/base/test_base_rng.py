"""Randomness is addressed: draw i does not depend on what was drawn before."""

import hashlib
import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ropewalk.base.rng import fraction, generator

ADDRESSES = st.tuples(
    st.integers(0, 2**40), st.text(max_size=8), st.lists(st.integers(0, 10**9), max_size=3)
)


def draws(address: tuple[int, str, list[int]]) -> list[float]:
    seed, purpose, index = address
    return generator(seed, purpose, *index).random(4).tolist()


@given(st.lists(ADDRESSES, max_size=6), st.randoms())
def test_draws_do_not_depend_on_order(
    addresses: list[tuple[int, str, list[int]]], mix: random.Random
) -> None:
    """Guards against data that change with the number of workers or after a restart."""
    forwards = [draws(a) for a in addresses]
    order = list(range(len(addresses)))
    mix.shuffle(order)
    again = {i: draws(addresses[i]) for i in order}
    assert [again[i] for i in range(len(addresses))] == forwards


@given(st.integers(0, 1000), st.integers(0, 10**6), st.integers(0, 10**6))
def test_neighbouring_addresses_are_different_streams(seed: int, i: int, j: int) -> None:
    """Guards against rows or purposes that share their randomness."""
    found = [
        draws((seed, "a", [i, j])),
        draws((seed + 1, "a", [i, j])),
        draws((seed, "b", [i, j])),
        draws((seed, "a", [i, j + 1])),
        draws((seed, "a", [i + 1, j])),
        draws((seed, "a", [i])),
    ]
    assert len({tuple(f) for f in found}) == len(found)


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    """Guards against a draw that another library's seeding changes."""
    np.random.seed(1)
    before = np.random.get_state()[1].tolist()
    first = draws((0, "x", [1]))
    assert np.random.get_state()[1].tolist() == before
    np.random.seed(2)
    assert draws((0, "x", [1])) == first


def test_the_stream_is_philox_under_the_hashed_address() -> None:
    """Guards against a new addressing, which would silently change every training."""
    key = int.from_bytes(hashlib.sha256(b"7/positions/3/5").digest()[:16], "little")
    expected = np.random.Generator(np.random.Philox(key=key)).integers(0, 1 << 30, 5)
    found = generator(7, "positions", 3, 5).integers(0, 1 << 30, 5)
    np.testing.assert_array_equal(found, expected)


def test_fractions_are_uniform_and_fixed_by_their_text() -> None:
    """Guards against splits of another size than asked for."""
    found = np.array([fraction(0, "split", f"document {i}") for i in range(4000)])
    assert found.min() >= 0
    assert found.max() < 1
    # Kolmogorov-Smirnov distance; 1.95 / sqrt(n) is passed by chance once in a thousand.
    steps = np.arange(1, found.size + 1) / found.size
    assert np.abs(np.sort(found) - steps).max() < 1.95 / np.sqrt(found.size)
    assert fraction(0, "split", "a") == fraction(0, "split", "a") != fraction(1, "split", "a")
