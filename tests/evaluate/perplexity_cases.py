"""Documents of given tokens, and losses by brute force: what the perplexity tests start from."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from ropewalk.base.manifest import write_manifest
from ropewalk.data.encoding import LoadedTokenizer
from ropewalk.data.shards import ShardWriter
from ropewalk.data.tokens import Tokens
from ropewalk.evaluate.plan import Plan
from ropewalk.evaluate.scorer import Scores
from ropewalk.evaluate.spans import Spans

BOS, EOS, WORDS = 0, 1, 400


class Documents:
    """Documents in memory, with what the plans ask of `Tokens`."""

    def __init__(self, documents: Sequence[Sequence[int]]) -> None:
        self._documents = [np.array(ids, dtype=np.uint16) for ids in documents]
        self.count = len(documents)
        self.lengths = np.array([len(ids) for ids in documents], dtype=np.int32)
        self.ids = [f"doc-{i}" for i in range(len(documents))]

    def document(self, index: int) -> np.ndarray:
        return self._documents[index]


def numbered(lengths: Sequence[int], *, opened: bool = False) -> Documents:
    """Return documents without two equal tokens in any, so that each says where it stands."""
    first = [BOS] * opened
    return Documents(
        [first + list(range(2 + 1000 * i, 2 + 1000 * i + n)) for i, n in enumerate(lengths)]
    )


def random_ids(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    """Return documents of random words, without BOS and EOS."""
    random = np.random.default_rng(seed)
    return [random.integers(2, WORDS, size=n).tolist() for n in lengths]


def loaded(
    folder: Path,
    tokenizer: Tokenizer,
    *,
    bos: int | None = BOS,
    eos: int | None = EOS,
    opening: bool = False,
) -> LoadedTokenizer:
    """Return the tokenizer as the stages see it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    facts = {"vocabulary_size": WORDS, "bos": bos, "eos": eos, "opening": opening}
    return LoadedTokenizer(folder / "tokenizer.json", facts)


def stored(folder: Path, documents: Sequence[Sequence[int]]) -> Tokens:
    """Return the documents as the tokenize stage leaves them."""
    folder.mkdir(parents=True)
    with ShardWriter(folder, vocabulary_size=WORDS, shard_tokens=100) as writer:
        for number, ids in enumerate(documents):
            writer.add(f"doc-{number}", np.array(ids), subset=None, text_bytes=len(ids))
    manifest = write_manifest(
        folder,
        stage="tokenize",
        spec={},
        inputs={},
        files=writer.files,
        result={"documents": len(documents)},
    )
    return Tokens(manifest)


def scores_of(spans: Spans, *, with_end: bool = True) -> Scores:
    """Return scores whose losses are numbers made of what is read and which token is scored."""
    rows = np.arange(len(spans)).repeat(spans.scored)
    place = np.concatenate([np.arange(n) for n in spans.scored]) if len(spans) else np.arange(0)
    position = spans.scored_start[rows] + place
    nll = spans.document[rows]
    for column in (spans.start, spans.opening, spans.end * with_end):
        nll = nll * 200 + column[rows]
    return Scores(
        document=spans.document[rows].astype(np.int32),
        position=position.astype(np.int32),
        preceding=(position - spans.start[rows] + spans.opening[rows]).astype(np.int32),
        window=rows.astype(np.int32),
        nll=nll * 200.0 + position,
        hit=position % 3 == 0,
    )


@torch.inference_mode()
def brute_force(model: PreTrainedModel, planned: Plan) -> dict[str, Scores]:
    """Return what the plan asks for, one span at a time, in the model's own precision."""
    return {label: _scores(model, planned, spans) for label, spans in planned.spans.items()}


def _scores(model: PreTrainedModel, planned: Plan, spans: Spans) -> Scores:
    rows: list[tuple[int, int, int, int]] = []
    losses, hits = [], []
    for row in range(len(spans)):
        text = planned.document(int(spans.document[row])).tolist()
        start, end = int(spans.start[row]), int(spans.end[row])
        read = [planned.opening] * bool(spans.opening[row]) + text[start:end]
        logs = torch.log_softmax(model(input_ids=torch.tensor([read])).logits[0], -1)
        for position in range(int(spans.scored_start[row]), int(spans.scored_end[row])):
            preceding = position - start + bool(spans.opening[row])
            rows.append((int(spans.document[row]), position, preceding, row))
            losses.append(-logs[preceding - 1, text[position]].item())
            hits.append(int(logs[preceding - 1].argmax()) == text[position])
    columns = np.array(rows, dtype=np.int32).reshape(-1, 4).T
    return Scores(
        document=columns[0],
        position=columns[1],
        preceding=columns[2],
        window=columns[3],
        nll=np.array(losses),  # float64: what is compared is the arithmetic of protocols
        hit=np.array(hits, dtype=bool),
    )


def contexts(model: PreTrainedModel, planned: Plan) -> Mapping[str, dict]:
    """Return the numbers of every label, as they come out of `result.json`."""
    snapshot = planned.summarise(brute_force(model, planned), {})
    return json.loads(json.dumps(snapshot, allow_nan=False))["contexts"]
