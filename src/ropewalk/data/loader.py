"""Batches as a pure function of (seed, step): no state to save, the same for every world size."""

import dataclasses

import numpy as np

from ropewalk.base.rng import generator
from ropewalk.data.windows import Windows

__all__ = ["Batch", "Loader", "Windows"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """Some rows of one step. B rows, T tokens each."""

    input_ids: np.ndarray  # int64 [B, T]
    boundaries: list[tuple[int, ...]]  # per row: cumulative ends of its segments, (0, ..., n <= T)
    rows: np.ndarray  # int64 [B]: which windows these are


class Loader:
    """Deals the windows out in a shuffled order, a new one every epoch.

    Sequence j of step s is number s * sequences + j of an endless stream: epoch after epoch, each
    a permutation of all rows addressed by (seed, windows.seed, epoch).
    """

    def __init__(self, windows: Windows, *, seed: int, sequences: int) -> None:
        """Prepare batches of `sequences` rows per step, over all ranks together.

        Raises:
            ValueError: if there are no rows to deal out.
        """
        if windows.rows < 1 or sequences < 1:
            raise ValueError(f"{sequences} sequences per step of {windows.rows} windows: need 1")
        self.windows = windows
        self.sequences = sequences
        self._seed = seed
        self._orders: dict[int, np.ndarray] = {}  # the epochs in use; a step may touch several

    def batch(self, step: int, part: tuple[int, int] = (0, 1)) -> Batch:
        """Return what one rank reads in a step: with `part` (rank, world), every world-th sequence.

        Raises:
            ValueError: for a rank outside its world or a negative step.
        """
        rank, world = part
        if not 0 <= rank < world or step < 0:
            raise ValueError(f"step {step}, rank {rank} of {world}: rank must lie in [0, world)")
        numbers = step * self.sequences + np.arange(rank, self.sequences, world)
        epochs, places = np.divmod(numbers, self.windows.rows)
        rows = np.empty(len(numbers), dtype=np.int64)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            rows[here] = self._order(epoch)[places[here]]
        read = [self.windows.row(row) for row in rows.tolist()]
        ids = np.empty((len(read), self.windows.length), dtype=np.int64)
        for place, (row_ids, _) in enumerate(read):
            ids[place] = row_ids
        return Batch(input_ids=ids, boundaries=[ends for _, ends in read], rows=rows)

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            rng = generator(self._seed, "rows", self.windows.seed, epoch)
            self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1}
            self._orders[epoch] = rng.permutation(self.windows.rows)
        return self._orders[epoch]
