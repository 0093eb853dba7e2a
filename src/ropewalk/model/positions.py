"""Position indices: which number a token's angles are computed from.

Positions are independent of document boundaries: attention reads those from the batch and never
guesses them from jumps in the positions. Whoever draws gives every row a generator of its own,
addressed by the row, so that a row's positions depend on nothing else.

Dimensions: B rows, T tokens of a row (Lc of the PoSE paper), N chunks of a row, Lt target_tokens.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np

from ropewalk.model.spec import NaturalPositions, PosePositions, Positions, RandPosPositions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chunks:
    """Chunks of one row, N each: the token at place t of the row, if it lies in chunk i, ...

    ... has position skips[i] + t and is token texts[i] + t of its document.
    """

    lengths: tuple[int, ...]  # l_i, tokens; at least 1, in sum T
    skips: tuple[int, ...]  # u_i, tokens; ascending, at most Lt - T
    texts: tuple[int, ...]  # v_i, tokens; ascending, at most document - T

    @property
    def positions(self) -> np.ndarray:
        """Return the position of every token, int64 [T]: strictly increasing, below Lt."""
        return self._shifted(self.skips)

    @property
    def document_places(self) -> np.ndarray:
        """Return which token of its document every token is, int64 [T]: strictly increasing."""
        return self._shifted(self.texts)

    def _shifted(self, by: tuple[int, ...]) -> np.ndarray:
        shifted = np.repeat(by, self.lengths)
        shifted += np.arange(len(shifted))
        return shifted


def placed(
    positions: PosePositions,
    tokens: int,
    rng: np.random.Generator,
    document_tokens: int | None = None,
) -> Chunks:
    """Draw the chunks of one row (PoSE, arXiv 2309.10400, section 3.2, equations 3 to 5).

    With st_i = l_0 + ... + l_(i-1), chunk i has positions u_i + st_i + (0 ... l_i - 1) and is
    tokens v_i + st_i + (0 ... l_i - 1) of its document, where u_0 = v_0 = 0,
    u_i ~ U{u_(i-1) ... Lt - T} and v_i ~ U{v_(i-1) ... document - T}. `lengths: uniform` is the
    paper's figure 6: l_0 ~ U{1 ... T - (N - 1)}, each next one from 1 to what leaves the others a
    token, the last one the rest; `short_first` is the released code's l_0 ~ U{1 ... (T + 1) // 2}.
    `first: random` is version 1 of the paper: u_0 ~ U{0 ... Lt - T}.

    Lengths are drawn first, then skips, then texts: the positions of a row are the same whatever
    `content` says, so that runs which differ in content differ in nothing else.

    Args:
        positions: how to draw.
        tokens: T.
        rng: of this row alone.
        document_tokens: the document's length. None: a row that is read as it is (all v_i = 0).

    Raises:
        ValueError: if the chunks do not fit the row, the row does not fit the target or the
            document, or `content: aligned` meets a document shorter than the target.
    """
    if not positions.chunks <= tokens <= positions.target_tokens:
        raise ValueError(
            f"a row of {tokens} tokens must lie within positions.chunks {positions.chunks} and "
            f"positions.target_tokens {positions.target_tokens}"
        )
    lengths = _lengths(positions, tokens, rng)
    room = positions.target_tokens - tokens
    skips = [_between(rng, 0, room) if positions.first == "random" else 0]
    for _ in lengths[1:]:
        skips.append(_between(rng, skips[-1], room))
    return Chunks(
        lengths=tuple(lengths),
        skips=tuple(skips),
        texts=tuple(_texts(positions, tokens, rng, document_tokens, skips)),
    )


def _lengths(positions: PosePositions, tokens: int, rng: np.random.Generator) -> list[int]:
    if positions.lengths == "short_first":
        first = _between(rng, 1, (tokens + 1) // 2)
        return [first, tokens - first]
    lengths: list[int] = []
    left = tokens
    for after in range(positions.chunks - 1, 0, -1):
        lengths.append(_between(rng, 1, left - after))
        left -= lengths[-1]
    return [*lengths, left]


def _texts(
    positions: PosePositions,
    tokens: int,
    rng: np.random.Generator,
    document_tokens: int | None,
    skips: list[int],
) -> list[int]:
    if document_tokens is None or positions.content == "contiguous":
        return [0] * len(skips)
    if positions.content == "aligned":
        if document_tokens < positions.target_tokens:
            raise ValueError(
                f"positions.content aligned: a document of {document_tokens} tokens is shorter "
                f"than positions.target_tokens {positions.target_tokens}"
            )
        return skips
    readable = min(document_tokens, positions.document_tokens or document_tokens)
    if readable < tokens:
        raise ValueError(
            f"{readable} tokens of a document (positions.document_tokens "
            f"{positions.document_tokens}) are fewer than the {tokens} of a row"
        )
    texts = [0]
    for _ in skips[1:]:
        texts.append(_between(rng, texts[-1], readable - tokens))
    return texts


def _between(rng: np.random.Generator, low: int, high: int) -> int:
    return int(rng.integers(low, high, endpoint=True))


def scattered(positions: RandPosPositions, tokens: int, rng: np.random.Generator) -> np.ndarray:
    """Draw RandPos for one row (PoSE, section 4.1): a sorted T-subset of {0 ... Lt - 1}.

    Every subset is equally likely. Returns int64 [T], strictly increasing.

    Raises:
        ValueError: if the target has fewer positions than the row has tokens.
    """
    target = positions.target_tokens
    if tokens > target:
        raise ValueError(f"positions.target_tokens {target} is below the {tokens} of a row")
    # Marked and read off in order, which takes a third of the time that sorting takes.
    taken = np.zeros(target, dtype=bool)
    taken[rng.choice(target, tokens, replace=False, shuffle=False)] = True
    return np.flatnonzero(taken)


def position_ids(
    positions: Positions, tokens: int, rngs: Iterable[np.random.Generator] = ()
) -> np.ndarray:
    """Return the positions of rows, one per generator: int64 [B, T].

    Natural positions draw nothing and are those of any number of rows: int64 [1, T].

    Raises:
        ValueError: if the rows do not fit the target (see `placed`, `scattered`), or if there is no
            generator to draw from.
    """
    match positions:
        case NaturalPositions():
            return np.arange(tokens, dtype=np.int64)[None]
        case PosePositions():
            drawn = [placed(positions, tokens, rng).positions for rng in rngs]
        case RandPosPositions():
            drawn = [scattered(positions, tokens, rng) for rng in rngs]
    if not drawn:
        raise ValueError(f"positions {positions.kind!r} are drawn: each row needs a generator")
    return np.stack(drawn)
