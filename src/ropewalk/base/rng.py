"""Randomness that is addressed, not consumed.

Every draw comes from a counter-based generator (Philox) keyed by a seed, a purpose and indices, so
that draw i is the same whatever the number of workers, processes or restarts.
"""

import hashlib

import numpy as np


def generator(seed: int, purpose: str, *index: int) -> np.random.Generator:
    """Return the generator of one address, e.g. `generator(seed, "positions", step, row)`."""
    address = f"{seed}/{purpose}/{'/'.join(map(str, index))}".encode()
    key = int.from_bytes(hashlib.sha256(address).digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=key))


def fraction(seed: int, purpose: str, text: str) -> float:
    """Return a number in [0, 1) addressed by a string, e.g. to place a document in a split."""
    hashed = hashlib.sha256(f"{seed}/{purpose}/{text}".encode()).digest()
    return int.from_bytes(hashed[:8], "little") / 2**64
