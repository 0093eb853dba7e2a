"""Blocks of scores and replies, and the file they end in."""

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ropewalk.evaluate.plan import Replies
from ropewalk.evaluate.scorer import Scores
from ropewalk.evaluate.store import Blocks, begun, cut, read_scores, write_scores


def scores(size: int, seed: int = 0) -> Scores:
    random = np.random.default_rng(seed)
    return Scores(
        document=random.integers(0, 3, size).astype(np.int32),
        position=np.arange(size, dtype=np.int32),
        preceding=random.integers(0, 99, size).astype(np.int32),
        window=random.integers(0, 9, size).astype(np.int32),
        nll=random.exponential(size=size).astype(np.float32),
        hit=random.random(size) < 0.5,
    )


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 120))
def test_blocks_hold_every_sequence_once_in_order(lengths: list[int], limit: int) -> None:
    """Guards: sequences lost or repeated where blocks meet, and blocks without bound."""
    blocks = cut(lengths, limit)
    assert [i for block in blocks for i in range(*block.indices(len(lengths)))] == [
        *range(len(lengths))
    ]
    for block in blocks:
        assert sum(lengths[block]) <= limit or block.stop - block.start == 1
    for one, following in itertools.pairwise(blocks):  # closed only when the next would not fit
        assert sum(lengths[one]) + lengths[following.start] > limit


def test_blocks_give_back_what_was_written(tmp_path: Path) -> None:
    """Guards: columns swapped or cast, seconds lost, replies of unequal length cut."""
    blocks = Blocks(tmp_path / "b", {"code": "one"})
    paths = [blocks.path(7, "1x", number) for number in range(2)]
    first, second = scores(5), scores(3, seed=1)
    blocks.write(paths[0], first, 1.5)
    blocks.write(paths[1], second, 0.25)
    found = blocks.scores(paths)
    for name in ("document", "position", "preceding", "window", "nll", "hit"):
        expected = [*getattr(first, name).tolist(), *getattr(second, name).tolist()]
        assert getattr(found, name).tolist() == expected
    assert blocks.seconds(paths) == 1.75
    path = blocks.path(7, "passkey", 0)
    blocks.write(path, Replies(ids=[np.array([3, 1]), np.array([], dtype=np.int64)]), 2.0)
    assert [ids.tolist() for ids in blocks.replies([path, path]).ids] == [[3, 1], [], [3, 1], []]
    assert len(blocks.scores([])) == 0


def test_blocks_of_other_code_are_not_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards: scores of an older version of the code merged into a new result."""
    first = Blocks(tmp_path / "b", {"code": "one"})
    path = first.path(7, "1x", 0)
    first.write(path, scores(2), 1.0)
    assert len(Blocks(tmp_path / "b", {"code": "one"}).scores([path])) == 2
    assert begun(tmp_path / "b", {"code": "one"})
    assert not begun(tmp_path / "b", {"code": "two"})  # nobody is told that it goes on
    assert not begun(tmp_path / "none", {"code": "one"})
    Blocks(tmp_path / "b", {"code": "two"})
    assert not path.exists()
    assert "starting anew" in capsys.readouterr().out


def test_the_file_of_scores_holds_every_column(tmp_path: Path) -> None:
    """Guards: a store from which a curve or a convention cannot be made again."""
    path = tmp_path / "scores.arrow"
    pieces = [(0, 0, scores(4)), (0, 1, scores(2, 1)), (5, 0, scores(3, 2))]
    assert write_scores(path, iter(pieces), ["1x", "2x"], ["a", "b", "c"]) == 9
    table = read_scores(path)
    assert table["snapshot"].to_pylist() == [0] * 6 + [5] * 3
    assert table["context"].to_pylist() == ["1x"] * 4 + ["2x"] * 2 + ["1x"] * 3
    names = [["a", "b", "c"][i] for _, _, found in pieces for i in found.document]
    assert table["document"].to_pylist() == names
    for name in ("position", "preceding", "window", "nll", "hit"):
        expected = [x for _, _, found in pieces for x in getattr(found, name).tolist()]
        assert table[name].to_pylist() == expected
    assert table.schema.field("nll").type == pa.float32()
