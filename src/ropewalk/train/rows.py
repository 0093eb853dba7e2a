"""What a process trains on in a step: the loader's rows with the positions of the phase.

A PoSE row whose chunks lie apart in their document is read again, chunk by chunk, from the whole
document. Every other row keeps the text that the loader gave it.

Dimensions: B rows, T tokens of a row.
"""

import dataclasses
from typing import TypeGuard

import numpy as np

from ropewalk.base.rng import generator
from ropewalk.base.stage import StageError
from ropewalk.data.loader import Batch, Loader
from ropewalk.data.windows import Windows
from ropewalk.model.positions import placed, position_ids
from ropewalk.model.spec import PosePositions, Positions
from ropewalk.train.step import Rows


def rows(positions: Positions, batch: Batch, windows: Windows, *, seed: int, phase: int) -> Rows:
    """Return the rows of a batch with the positions they are trained at.

    Everything drawn for a row is addressed by (seed, phase, `Batch.numbers`): it is the same for
    every number of processes and after every restart.

    PoSE with content `random` or `aligned` begins where the paper does, at the first token of the
    document (v_0 = 0; for `aligned` at u_0). The paper gives its other arms (contiguous, RandPos,
    full length) the first T tokens of a document too; here they keep the loader's row, which begins
    anywhere in it. No relative distance and no position depends on that, and where documents serve
    for several epochs, rows that all begin at their first token would repeat the same text. It does
    mean that those arms see a document's beginning, and its BOS, less often than PoSE does.

    Args:
        positions: the phase's method.
        batch: from the phase's loader.
        windows: those of the loader.
        seed: of the run.
        phase: its number.

    Raises:
        StageError: if the method needs text that the windows do not have (see `check`).
    """
    tokens = batch.input_ids.shape[1]
    rngs = (generator(seed, "positions", phase, number) for number in batch.numbers.tolist())
    if not _rereads(positions):
        return Rows(
            input_ids=batch.input_ids,
            boundaries=batch.boundaries,
            position_ids=position_ids(positions, tokens, rngs),
            targets=batch.targets,
        )
    check(positions, windows, batch.rows)
    lengths = windows.document_lengths(batch.rows).tolist()
    chunks = [placed(positions, tokens, *row) for row in zip(rngs, lengths, strict=True)]
    places = np.stack([row.document_places for row in chunks])
    ids = np.empty_like(batch.input_ids)
    for index, window in enumerate(batch.rows.tolist()):
        ids[index] = windows.document(window)[places[index]]
    targets = None
    if batch.targets is not None:
        targets = places >= windows.prompt_tokens(batch.rows)[:, None]
    return Rows(
        input_ids=ids,
        boundaries=batch.boundaries,
        position_ids=np.stack([row.positions for row in chunks]),
        targets=targets,
    )


def check(positions: Positions, windows: Windows, which: np.ndarray | None = None) -> None:
    """Refuse windows that do not have the text a method reads.

    Called for all windows before a phase begins, it finds the one short document that would end the
    training days later.

    Args:
        positions: the phase's method.
        windows: the phase's windows.
        which: int64 [B], the windows in question. None: all.

    Raises:
        StageError: if content `random` or `aligned` meets windows that are no single documents, a
            `document_tokens` below the window, or (aligned) a document shorter than the target.
    """
    if not _rereads(positions):
        return
    content = f"positions.content {positions.content}"
    if windows.policy != "per_document":
        raise StageError(
            f"{content} reads chunks from all over a document, but the windows have policy "
            f"{windows.policy!r} and not per_document: set the windows' policy to per_document, or "
            "positions.content to contiguous"
        )
    if positions.content == "random":
        readable, length = positions.document_tokens, windows.length
        if readable is not None and readable < length:
            raise StageError(
                f"positions.document_tokens {readable} is below the {length} tokens of a window: "
                "set it to at least that, or leave it out to read whole documents"
            )
        return
    which = np.arange(windows.count) if which is None else which
    lengths = windows.document_lengths(which)
    short = np.flatnonzero(lengths < positions.target_tokens)
    if len(short):
        first = windows.pieces(int(which[short[0]]))
        raise StageError(
            f"{content} reads a document at its positions, which reach positions.target_tokens "
            f"{positions.target_tokens}, but {len(short)} of {len(which)} documents are shorter: "
            f"document {first.document[0]} of corpus {first.corpus!r} has {lengths[short[0]]} "
            f"tokens. Set minimum_tokens of that corpus (length_tokens of a recall corpus) to "
            f"{positions.target_tokens}, or another positions.content"
        )


def _rereads(positions: Positions) -> TypeGuard[PosePositions]:
    return isinstance(positions, PosePositions) and positions.content != "contiguous"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """The data of one phase: a pure function of the step."""

    loader: Loader
    positions: Positions
    seed: int
    phase: int

    def rows(self, step: int, part: tuple[int, int] = (0, 1)) -> Rows:
        """Return the rows that process `part[0]` of `part[1]` reads in a step of the phase."""
        batch = self.loader.batch(step, part)
        windows = self.loader.windows
        return rows(self.positions, batch, windows, seed=self.seed, phase=self.phase)
