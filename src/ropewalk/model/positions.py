"""Position indices: which number a token's angles are computed from.

Positions are independent of document boundaries: attention reads those from the batch and never
guesses them from jumps in the positions.
"""

import numpy as np

from ropewalk.model.spec import NaturalPositions, Positions


def position_ids(positions: Positions, tokens: int) -> np.ndarray:
    """Return the position of every token of a window, int64 [1 or rows, tokens]."""
    match positions:
        case NaturalPositions():
            return np.arange(tokens, dtype=np.int64)[None]
