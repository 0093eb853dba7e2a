"""The frame around protocols, on plans made by hand: order of work, what is refused and when."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from readers import PlainReader
from transformers import LlamaForCausalLM

from ropewalk.base.stage import StageError
from ropewalk.evaluate.measure import _replies, measure
from ropewalk.evaluate.plan import Plan, Prompts, Replies
from ropewalk.evaluate.scorer import TOKENS_AT_ONCE, Scores
from ropewalk.evaluate.spans import Spans
from ropewalk.evaluate.spec import EvaluateJob, Outcome, SameTokens, Tasks
from ropewalk.evaluate.store import Blocks

BROKEN = 7  # a token without a finite embedding
DOCUMENTS = [np.arange(8, 40), np.arange(8, 90)]
ANSWERED = Tasks(tasks=("vt",), lengths=(64,))


@pytest.fixture
def folder(tmp_path: Path, small_model: Callable[..., LlamaForCausalLM]) -> Path:
    """Return a model that is right unless it reads one token."""
    model = small_model()
    with torch.no_grad():
        model.get_input_embeddings().weight[BROKEN] = torch.nan
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def losses(*allow: Outcome) -> SameTokens:
    return SameTokens(contexts={"any": 8}, scored_tokens=1, documents=1, allow=allow)


def spans(document: int, length: int) -> Spans:
    """Return one span that scores all it reads but the first token."""
    rows = {"document": document, "start": 0, "end": length, "scored_start": 1}
    return Spans(
        **{name: np.array([value]) for name, value in rows.items()},
        scored_end=np.array([length]),
        opening=np.array([False]),
    )


def prompts(length: int, **settings: Any) -> Prompts:
    ids = [np.arange(8, 8 + length), np.arange(9, 9 + length)]
    names = [f"{length}/{number}" for number in range(len(ids))]
    return Prompts(**{"ids": ids, "names": names, "new_tokens": 3, **settings})


class Watched(Blocks):
    """Remembers in which order blocks are written."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, {})
        self.written: list[str] = []

    def write(self, path: Path, block: Scores | Replies, seconds: float) -> None:
        """Write and remember."""
        self.written.append(path.stem)
        super().write(path, block, seconds)


def measured(
    folder: Path,
    work: Path,
    protocol: SameTokens | Tasks,
    documents: Sequence[np.ndarray] = DOCUMENTS,
    **asked: Mapping[str, Any],
) -> tuple[Any, list[str]]:
    """Return what is found by a plan made by hand, and the blocks in the order of their writing."""
    planned = Plan(
        documents=["short", "long"],
        document=documents.__getitem__,
        summarise=lambda scores, replies: {
            "nll": {label: found.nll.tolist() for label, found in scores.items()},
            "ids": {label: [x.tolist() for x in r.ids] for label, r in replies.items()},
        },
        **{"spans": {}, **asked},  # type: ignore[arg-type]
    )
    module = SimpleNamespace(plan=lambda *_, **__: planned)
    tokenizer: Any = SimpleNamespace(vocabulary_size=97)
    blocks = Watched(work)
    spec = EvaluateJob(protocol=protocol, seed=3)
    nothing: Any = None
    return measure(spec, {5: folder}, nothing, tokenizer, blocks, module), blocks.written


LABELS = {"1x": spans(0, 12), "4x": spans(1, 80), "2x": spans(0, 30)}


def test_the_longest_sequences_are_read_first(folder: Path, tmp_path: Path) -> None:
    """Guards: hours of short contexts before the long one that memory has no room for.

    The order changes nothing of what is found, nor the order in which it stands.
    """
    whole, written = measured(folder, tmp_path / "w", losses(), spans=LABELS)
    assert written == ["5-4x-000000", "5-2x-000000", "5-1x-000000"]
    assert list(whole.snapshots["5"]["nll"]) == list(whole.sources[5]) == list(LABELS)
    (tmp_path / "w" / "5-4x-000000.arrow").unlink()
    again, written = measured(folder, tmp_path / "w", losses(), spans=LABELS)
    assert written == ["5-4x-000000"]
    assert again.snapshots == whole.snapshots


def test_the_first_loss_that_is_no_number_ends_the_work(folder: Path, tmp_path: Path) -> None:
    """Guards: hours of scoring before a refusal, and blocks of NaN that are taken as they lie."""
    texts = [DOCUMENTS[0], np.where(np.arange(82) == 60, BROKEN, DOCUMENTS[1])]
    asked = {"documents": texts, "spans": LABELS}
    message = (
        r"model: 79 losses are not finite, the first is that of document 'long' at position 1 "
        r"after 1 tokens \(4x\): .* add 'non_finite' to protocol\.allow"
    )
    with pytest.raises(StageError, match=message):
        measured(folder, tmp_path / "w", losses(), **asked)
    assert [p.name for p in (tmp_path / "w").glob("*.arrow")] == ["5-4x-000000.arrow"]
    weights = folder / "model.safetensors"
    weights.rename(tmp_path / "hidden")
    with pytest.raises(StageError, match=message):  # and nothing is read before it is said
        measured(folder, tmp_path / "w", losses(), **asked)
    (tmp_path / "hidden").rename(weights)
    found, written = measured(folder, tmp_path / "w", losses("non_finite"), **asked)
    assert written == ["5-2x-000000", "5-1x-000000"]
    assert found.snapshots["5"]["outcomes"]["non_finite"] == 79  # attention multiplies NaN by 0


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_an_answer_without_numbers_is_refused(
    folder: Path, tmp_path: Path, temperature: float
) -> None:
    """Guards: a score for a broken model, whose first choice among NaN is token 0."""
    ids = [np.arange(8, 20), np.array([8, 9, BROKEN, *range(10, 19)])]
    asked = prompts(12, ids=ids, temperature=temperature)
    message = re.escape("model (step 5), 12/1: the logits after 0 decoded tokens are not finite")
    with pytest.raises(StageError, match=message):
        measured(folder, tmp_path / "w", ANSWERED, prompts={"a": asked})
    assert not list((tmp_path / "w").glob("*.arrow"))


def test_long_prompts_are_answered_few_at_a_time() -> None:
    """Guards: memory for as many long prompts as short ones, which scoring never takes."""

    class Shapes(PlainReader):
        def __init__(self) -> None:
            self.device = torch.device("cpu")
            self.shapes: list[tuple[int, int]] = []

        def logits(self, ids: torch.Tensor, first: int, count: int) -> torch.Tensor:
            self.shapes.append(tuple(ids.shape))
            return torch.zeros(len(ids), count, 5)

    long = TOKENS_AT_ONCE // 3 - 1
    asked = Prompts(ids=[np.zeros(long, dtype=np.int64)] * 5, names=list("abcde"), new_tokens=1)
    reader = Shapes()
    spec = EvaluateJob(protocol=ANSWERED, sequences_per_forward=4)
    assert len(_replies(spec, reader, asked, slice(0, 5)).ids) == 5
    assert reader.shapes == [(3, long), (2, long)]


def test_answers_count_in_what_is_to_be_done(
    small_model: Callable[..., LlamaForCausalLM],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Guards: 100 % and no seconds left, said with half of the answers still to be decoded."""
    both = {"short": prompts(10, new_tokens=30), "long": prompts(10, new_tokens=50)}
    small_model().save_pretrained(tmp_path / "model")
    measured(tmp_path / "model", tmp_path / "w", ANSWERED, prompts=both)
    told = capsys.readouterr().out
    assert "4 sequences: reads 40 tokens, scores 0, decodes at most 160" in told
    assert re.findall(r"(\d+)% of the tokens", told) == ["60", "100"]
