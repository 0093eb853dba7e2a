"""Batches as a pure function of (seed, phase, step, row): the same for every world size.

Nothing is saved but the step number, and any step costs the same: the order of an epoch is a keyed
bijection that is evaluated where it is needed, not a permutation that is held.
"""

import dataclasses
import math

import numpy as np

from ropewalk.base.rng import generator
from ropewalk.data.windows import Windows

__all__ = ["Batch", "Loader", "Windows"]

ROUNDS = 8
_AHEAD = 4096  # places of the order evaluated at a time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """Some rows of one step. B rows, T tokens each."""

    input_ids: np.ndarray  # int64 [B, T]
    boundaries: list[tuple[int, ...]]  # per row: cumulative ends of its segments, (0, ..., n <= T)
    targets: np.ndarray | None  # bool [B, T]: tokens that are trained on; None: all
    rows: np.ndarray  # int64 [B]: which windows these are
    numbers: np.ndarray  # int64 [B]: which sequences of the phase; the address of further draws
    offsets: np.ndarray | None
    # int64 [B]: where in its document each row of policy `per_document` begins (the whole document
    # is `Windows.document(row)`); None for other policies


class Loader:
    """Deals the windows out in a shuffled order, a new one every epoch.

    Sequence j of step s of a phase is number s * sequences + j of an endless stream: epoch after
    epoch, each a permutation of all windows addressed by (seed, windows.seed, phase, epoch). A row
    of policy `per_document` begins at an offset drawn evenly from those that leave a whole window,
    addressed by (seed, windows.seed, phase, number).
    """

    def __init__(self, windows: Windows, *, seed: int, phase: int, sequences: int) -> None:
        """Prepare batches of `sequences` rows per step, over all ranks together.

        Raises:
            ValueError: if there are no windows to deal out.
        """
        if windows.count < 1 or sequences < 1:
            raise ValueError(f"{sequences} sequences per step of {windows.count} windows: need 1")
        self.windows = windows
        self.sequences = sequences
        self._seed = seed
        self._phase = phase
        self._offset_keys = self._keys("offsets", 2)
        self._ahead = (0, np.empty(0, dtype=np.int64))  # first number, and the windows from there

    def batch(self, step: int, part: tuple[int, int] = (0, 1)) -> Batch:
        """Return what one rank reads in a step of the phase.

        Steps count from 0 in every phase. With `part` (rank, world), every world-th sequence.

        Raises:
            ValueError: for a rank outside its world or a negative step.
        """
        rank, world = part
        if not 0 <= rank < world or step < 0:
            raise ValueError(f"step {step}, rank {rank} of {world}: rank must lie in [0, world)")
        first = step * self.sequences
        rows = self._dealt(first)[rank::world].copy()
        numbers = np.arange(first + rank, first + self.sequences, world)
        offsets = None
        if self.windows.policy == "per_document":
            places = self.windows.document_lengths(rows) - self.windows.length + 1
            drawn = hashed(numbers.astype(np.uint64), self._offset_keys)
            offsets = (drawn % places.astype(np.uint64)).astype(np.int64)
        read = self.windows.read(rows, offsets)
        return Batch(
            input_ids=read.input_ids,
            boundaries=read.boundaries,
            targets=read.targets,
            rows=rows,
            numbers=numbers,
            offsets=offsets,
        )

    def _dealt(self, first: int) -> np.ndarray:
        """Return the windows of the step that begins with number `first`, int64 [sequences]."""
        begin, windows = self._ahead
        if not begin <= first <= first + self.sequences <= begin + len(windows):
            ahead = min(_AHEAD, self.windows.count)
            begin, windows = first, self._order(first, max(self.sequences, ahead))
            self._ahead = begin, windows
        return windows[first - begin : first - begin + self.sequences]

    def _order(self, first: int, count: int) -> np.ndarray:
        epochs, places = np.divmod(np.arange(first, first + count), self.windows.count)
        order = np.empty(count, dtype=np.int64)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            here = slice(*np.searchsorted(epochs, [epoch, epoch + 1]))
            keys = self._keys("rows", ROUNDS, epoch)
            order[here] = permuted(places[here], self.windows.count, keys)
        return order

    def _keys(self, purpose: str, count: int, *index: int) -> np.ndarray:
        rng = generator(self._seed, purpose, self.windows.seed, self._phase, *index)
        return rng.bit_generator.random_raw(count)


def permuted(places: np.ndarray, count: int, keys: np.ndarray) -> np.ndarray:
    """Return where a keyed permutation of 0 ... count - 1 takes some places, int64 [n].

    A Feistel network over pairs (a, b) of about sqrt(count) values each (Black and Rogaway 2002,
    "Ciphers with Arbitrary Finite Domains"), walked along its cycle where it leaves the domain. It
    takes no memory, and integers only, so it is the same on every platform.

    Args:
        places: int64 [n], each in [0, count).
        count: at least 1.
        keys: uint64 [rounds].
    """
    high = math.isqrt(count - 1) + 1
    low = -(-count // high)  # high * low is at least count, by less than high
    sides = np.uint64(high), np.uint64(low)
    found = places.astype(np.uint64)
    outside = np.arange(len(found))
    while len(outside):
        halves = list(np.divmod(found[outside], sides[1]))
        for index in range(len(keys)):
            side, other = index % 2, (index + 1) % 2
            mixed = hashed(halves[other], keys[index : index + 1])
            halves[side] = (halves[side] + mixed) % sides[side]
        found[outside] = halves[0] * sides[1] + halves[1]
        outside = outside[found[outside] >= np.uint64(count)]
    return found.astype(np.int64)


def hashed(counters: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Return 64 well mixed bits for each counter, uint64 [n], addressed by the keys, uint64 [k].

    Each key is a pass through SplitMix64 (Steele et al. 2014): what this generator, begun at the
    key, gives as its number `counter`.
    """
    bits = counters
    for key in keys:
        bits = bits * _STEP + key
        bits ^= bits >> _SHIFTS[0]
        bits *= _FACTORS[0]
        bits ^= bits >> _SHIFTS[1]
        bits *= _FACTORS[1]
        bits ^= bits >> _SHIFTS[2]
    return bits


_STEP = np.uint64(0x9E3779B97F4A7C15)
_SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)
_FACTORS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
