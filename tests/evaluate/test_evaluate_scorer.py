"""Scores of spans against transformers' own loss."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from readers import PlainReader
from transformers import LlamaForCausalLM

from ropewalk.base.stage import StageError
from ropewalk.evaluate.scorer import TOKENS_AT_ONCE, score
from ropewalk.evaluate.spans import Spans

Make = Callable[..., LlamaForCausalLM]
Show = Callable[[LlamaForCausalLM], PlainReader]
BOS = 5


def table(rows: list[tuple[int, int, int, int, int, bool]]) -> Spans:
    """Return spans from (document, start, end, scored_start, scored_end, opening)."""
    names = ("document", "start", "end", "scored_start", "scored_end", "opening")
    columns = dict(zip(names, zip(*rows, strict=True), strict=True))
    return Spans(
        **{
            name: np.array(column, dtype=bool if name == "opening" else np.int64)
            for name, column in columns.items()
        }
    )


SPANS = table(
    [
        (0, 0, 24, 1, 24, False),
        (0, 7, 31, 24, 31, False),
        (1, 3, 20, 3, 20, True),  # the first token read is scored, after BOS
        (2, 10, 34, 20, 35, False),  # one target more than is read
        (3, 2, 26, 19, 26, False),
        (1, 4, 9, 6, 10, True),
    ]
)


@pytest.fixture(scope="module")
def documents() -> list[np.ndarray]:
    random = np.random.default_rng(1)
    return [random.integers(0, 97, size=size).astype(np.uint16) for size in (70, 33, 64, 90)]


def test_losses_equal_those_of_transformers(
    small_model: Make, as_reader: Show, documents: list[np.ndarray]
) -> None:
    """Guards: targets shifted by one, BOS left out or counted, scores that land in another row.

    The reference is the loss transformers returns for labels that are -100 outside the scored part.
    """
    model = small_model()
    scores = score(as_reader(model), SPANS, documents.__getitem__, opening=BOS)
    offset = 0
    for row in range(len(SPANS)):
        document = documents[SPANS.document[row]].astype(np.int64)
        start, end = int(SPANS.start[row]), int(SPANS.end[row])
        first, last = int(SPANS.scored_start[row]), int(SPANS.scored_end[row])
        opening = [BOS] if SPANS.opening[row] else []
        ids = torch.tensor([[*opening, *document[start : max(end, last)].tolist()]])
        labels = torch.full_like(ids, -100)
        shift = len(opening) - start
        labels[:, first + shift : last + shift] = ids[:, first + shift : last + shift]
        with torch.no_grad():
            found = model(input_ids=ids, labels=labels)
        mine = slice(offset, offset + last - first)
        assert scores.nll[mine].mean() == pytest.approx(found.loss.item(), rel=1e-5)
        targets = ids[0, first + shift : last + shift]
        chosen = found.logits[0, first + shift - 1 : last + shift - 1].argmax(-1) == targets
        assert scores.hit[mine].tolist() == chosen.tolist()
        assert (scores.document[mine] == SPANS.document[row]).all()
        assert scores.position[mine].tolist() == list(range(first, last))
        assert scores.preceding[mine].tolist() == list(range(first + shift, last + shift))
        assert (scores.window[mine] == row).all()
        offset += last - first
    assert offset == len(scores)
    assert scores.nll.std() > 0


@pytest.mark.parametrize("sequences", [1, 2, 64])
def test_losses_do_not_depend_on_the_batch(
    small_model: Make, as_reader: Show, documents: list[np.ndarray], sequences: int
) -> None:
    """Guards: rows of a forward pass that see each other, or scores that land in another row."""
    random = np.random.default_rng(3)
    rows = []
    for _ in range(12):  # three shapes, mixed
        length, scored = ((12, 4), (12, 7), (20, 4))[random.integers(3)]
        document, start = int(random.integers(4)), int(random.integers(10))
        rows.append(
            (document, start, start + length, start + length - scored, start + length, False)
        )
    spans = table(rows)
    reader = as_reader(small_model())
    one = score(reader, spans, documents.__getitem__, sequences=3)
    reader.calls.clear()
    other = score(reader, spans, documents.__getitem__, sequences=sequences)
    np.testing.assert_allclose(one.nll, other.nll, rtol=1e-5, atol=1e-5)
    assert (one.position == other.position).all()
    assert max(rows for rows, _ in reader.calls) <= sequences
    if sequences == 64:  # one forward pass per shape
        assert len(reader.calls) == len({(row[2] - row[1], row[4] - row[3]) for row in rows})


@given(st.integers(0, 5), st.integers(1, 6))
def test_a_piece_of_a_table_scores_as_in_the_whole(begin: int, size: int) -> None:
    """Guards: windows counted anew in every block, so that blocks cannot be told apart."""
    documents = [np.arange(100) % 7 for _ in range(4)]
    reader = _Constant()
    whole = score(reader, SPANS, documents.__getitem__, opening=BOS)
    piece = SPANS[begin : begin + size]
    found = score(reader, piece, documents.__getitem__, opening=BOS, first_window=begin)
    same = (whole.window >= begin) & (whole.window < begin + size)
    for name in ("document", "position", "preceding", "window", "nll", "hit"):
        assert getattr(found, name).tolist() == getattr(whole, name)[same].tolist()


class _Constant(PlainReader):
    """Says what was read instead of a loss: the sum of the ids up to the target."""

    def __init__(self) -> None:
        self.name, self.device, self.vocabulary_size = "constant", torch.device("cpu"), 97
        self.shapes: list[tuple[int, int]] = []

    def losses(
        self, ids: torch.Tensor, first: int, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.shapes.append(tuple(ids.shape))
        read = ids.cumsum(1)[:, first : first + targets.shape[1]]
        return (read + targets).float(), targets > 3


def test_long_rows_are_read_few_at_a_time() -> None:
    """Guards: memory for as many rows as short ones would take."""
    documents = [np.zeros(TOKENS_AT_ONCE, dtype=np.int64)]
    length = TOKENS_AT_ONCE // 3
    reader = _Constant()
    spans = table([(0, 0, length, 1, 3, False)] * 5)
    score(reader, spans, documents.__getitem__, sequences=8)
    assert reader.shapes == [(3, length), (2, length)]


def test_a_token_the_model_does_not_have_is_an_error() -> None:
    """Guards: an index error, or on a GPU none at all, for text tokenised for another model."""
    documents = [np.array([0, 1, 97, 3])]
    with pytest.raises(StageError, match=r"vocabulary of 97.* has the id 97"):
        score(_Constant(), table([(0, 0, 4, 1, 4, False)]), documents.__getitem__)
