"""The rows of a step: text and positions, against documents whose every token is known."""

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ropewalk.base.manifest import Manifest, write_manifest
from ropewalk.base.rng import generator
from ropewalk.base.stage import StageError, run_stage
from ropewalk.data import pack
from ropewalk.data.loader import Loader
from ropewalk.data.shards import ShardWriter
from ropewalk.data.spec import PackJob, Share
from ropewalk.data.spec import Windows as WindowsSpec
from ropewalk.data.windows import Windows
from ropewalk.model.positions import placed
from ropewalk.model.spec import NaturalPositions, PosePositions, Positions, RandPosPositions
from ropewalk.train.rows import Rows, check, rows

LENGTH, TARGET, SEQUENCES, SEED, PHASE = 16, 64, 8, 5, 1
PLAIN = ("one", "two")  # corpora
METHODS: dict[str, Positions] = {
    "natural": NaturalPositions(),
    "randpos": RandPosPositions(target_tokens=TARGET),
    "contiguous": PosePositions(target_tokens=TARGET, content="contiguous"),
    "random": PosePositions(target_tokens=TARGET),
    "three": PosePositions(target_tokens=TARGET, chunks=3),
    "limited": PosePositions(target_tokens=TARGET, document_tokens=2 * LENGTH),
    "released": PosePositions(target_tokens=TARGET, lengths="short_first", first="random"),
    "aligned": PosePositions(target_tokens=TARGET, content="aligned", first="random"),
}
REREAD = ["random", "three", "limited", "released", "aligned"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Made:
    """Windows, and what is in their documents."""

    windows: Windows
    documents: dict[str, list[np.ndarray]]  # corpus -> tokens; none occurs twice
    prompts: dict[str, list[int]]  # corpus -> leading tokens that are no targets

    def loader(self, *, seed: int = SEED, phase: int = PHASE) -> Loader:
        return Loader(self.windows, seed=seed, phase=phase, sequences=SEQUENCES)

    def rows(
        self,
        method: str,
        step: int = 0,
        part: tuple[int, int] = (0, 1),
        *,
        seed: int = SEED,
        phase: int = PHASE,
    ) -> Rows:
        batch = self.loader(seed=seed, phase=phase).batch(step, part)
        return rows(METHODS[method], batch, self.windows, seed=seed, phase=phase)

    def document(self, window: int) -> np.ndarray:
        pieces = self.windows.pieces(window)
        return self.documents[pieces.corpus][pieces.document[0]]


Make = Callable[..., Made]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Return a function that packs two corpora: `make("per_document", shortest=64)`."""

    def _make(policy: str, *, shortest: int = TARGET, prompt: int = 0) -> Made:
        documents: dict[str, list[np.ndarray]] = {}
        prompts: dict[str, list[int]] = {}
        tokens: dict[str, Manifest] = {}
        first = 1
        for index, name in enumerate(PLAIN):
            sizes = np.random.default_rng(index).integers(shortest, 200, 30).tolist()
            ends = first + np.cumsum([0, *sizes])
            first = int(ends[-1])
            documents[name] = [np.arange(a, b) for a, b in itertools.pairwise(ends)]
            prompts[name] = [prompt * (name == "two")] * len(sizes)
            tokens[name] = _write(tmp_path / name, documents[name], prompts[name])
        spec = PackJob(
            windows=WindowsSpec(
                mixture=tuple(Share(corpus=name, weight=1.0) for name in PLAIN),
                tokenizer="words",
                policy=policy,  # type: ignore[arg-type]
            ),
            length_tokens=LENGTH,
        )
        packed = run_stage(
            "pack",
            "ropewalk.data.pack",
            pack.work,
            spec=spec,
            inputs={f"tokens:{n}": m.folder / "manifest.json" for n, m in tokens.items()},
            folder=tmp_path / policy,
        )
        return Made(windows=Windows(packed, tokens), documents=documents, prompts=prompts)

    return _make


def _write(folder: Path, documents: list[np.ndarray], prompts: list[int]) -> Manifest:
    shards = []
    with ShardWriter(folder, vocabulary_size=20_000, shard_tokens=1000) as writer:
        for index, (ids, prompt) in enumerate(zip(documents, prompts, strict=True)):
            shards.append(writer.add(f"d{index}", ids, subset=None, text_bytes=1, prompt=prompt))
        shards.append(writer.close())
    files = [folder / shard.file for shard in shards if shard is not None]
    return write_manifest(folder, stage="tokenize", spec={}, inputs={}, files=files, result={})


@pytest.fixture
def made(make: Make) -> Made:
    """Return windows of a document each, all of them as long as the target."""
    return make("per_document")


# Text


@pytest.mark.parametrize("method", REREAD)
def test_train_rows_hold_the_chunks_of_their_documents(made: Made, method: str) -> None:
    """Guards against chunks of other text than the positions were drawn for."""
    positions = METHODS[method]
    assert isinstance(positions, PosePositions)
    apart = 0
    for step in range(6):
        batch = made.loader().batch(step)
        found = made.rows(method, step)
        assert found.input_ids.dtype == found.position_ids.dtype == np.int64
        assert found.input_ids.shape == found.position_ids.shape == (SEQUENCES, LENGTH)
        for row, window in enumerate(batch.rows.tolist()):
            document = made.document(window)
            rng = generator(SEED, "positions", PHASE, step * SEQUENCES + row)
            chunks = placed(positions, LENGTH, rng, len(document))
            begin = 0
            for length, u, v in zip(chunks.lengths, chunks.skips, chunks.texts, strict=True):
                for place in range(begin, begin + length):
                    assert found.input_ids[row, place] == document[v + place]
                    assert found.position_ids[row, place] == u + place
                begin += length
            if method != "aligned":
                assert found.input_ids[row, 0] == document[0]
            apart += bool((np.diff(found.input_ids[row]) > 1).any())
    assert apart > SEQUENCES  # the texts of chunks do lie apart


def test_train_rows_of_aligned_content_are_at_their_true_places(made: Made) -> None:
    """Guards against v_i = u_i that holds for the first chunk only."""
    for step in range(6):
        found = made.rows("aligned", step)
        windows = made.loader().batch(step).rows.tolist()
        for ids, positions, window in zip(
            found.input_ids, found.position_ids, windows, strict=True
        ):
            assert ids.tolist() == made.document(window)[positions].tolist()


def test_train_rows_read_no_further_than_document_tokens(made: Made) -> None:
    """Guards against the released rule of 5 windows being ignored."""
    last = 0
    for step in range(20):
        windows = made.loader().batch(step).rows.tolist()
        for ids, window in zip(made.rows("limited", step).input_ids, windows, strict=True):
            last = max(last, int(ids[-1] - made.document(window)[0]))
    assert last == 2 * LENGTH - 1


@pytest.mark.parametrize("policy", ["concat", "documents", "per_document"])
@pytest.mark.parametrize("method", ["natural", "randpos", "contiguous"])
def test_train_rows_keep_text_and_boundaries(make: Make, method: str, policy: str) -> None:
    """Guards against a jump of positions that moves text or cuts a document apart."""
    made = make(policy, shortest=20, prompt=25)
    jumps = 0
    for step in range(4):
        batch, found = made.loader().batch(step), made.rows(method, step)
        assert np.array_equal(found.input_ids, batch.input_ids)
        assert found.boundaries == batch.boundaries
        assert batch.targets is not None
        assert np.array_equal(found.targets, batch.targets)
        assert (np.diff(found.position_ids) >= 1).all()
        assert found.position_ids.max() < TARGET
        jumps += int((np.diff(found.position_ids) > 1).sum())
        if method == "natural":
            assert found.position_ids.tolist() == [list(range(LENGTH))]
        else:
            assert found.position_ids.shape == (SEQUENCES, LENGTH)
    assert (jumps == 0) == (method == "natural")


@pytest.mark.parametrize("method", REREAD)
def test_train_rows_that_are_read_again_are_one_segment(made: Made, method: str) -> None:
    """Guards against attention that is cut where text and positions jump."""
    assert made.rows(method).boundaries == [(0, LENGTH)] * SEQUENCES


def test_train_rows_of_one_chunk_are_ordinary(made: Made) -> None:
    """Guards against an N = 1 baseline that differs from ordinary training."""
    batch = made.loader().batch(0)
    for content in ("contiguous", "random", "aligned"):
        one = PosePositions(target_tokens=TARGET, chunks=1, content=content)  # type: ignore[arg-type]
        found = rows(one, batch, made.windows, seed=SEED, phase=PHASE)
        assert (found.position_ids == np.arange(LENGTH)).all()
        if content == "contiguous":
            assert np.array_equal(found.input_ids, batch.input_ids)
        else:
            begun = [made.document(window)[:LENGTH].tolist() for window in batch.rows.tolist()]
            assert found.input_ids.tolist() == begun


# Targets


@pytest.mark.parametrize("method", REREAD)
def test_train_rows_of_prompts_are_no_targets(make: Make, method: str) -> None:
    """Guards against targets of the text that was there before the row was read again."""
    made = make("per_document", prompt=25)
    prompt_of = {
        int(document[0]): prompt
        for name in PLAIN
        for document, prompt in zip(made.documents[name], made.prompts[name], strict=True)
    }
    seen = set()
    for step in range(6):
        found = made.rows(method, step)
        windows = made.loader().batch(step).rows.tolist()
        assert found.targets is not None
        assert found.targets.dtype == bool
        for ids, targets, window in zip(found.input_ids, found.targets, windows, strict=True):
            first = int(made.document(window)[0])
            for token, target in zip(ids.tolist(), targets.tolist(), strict=True):
                assert target == (token - first >= prompt_of[first])
                seen.add((prompt_of[first] > 0, target))
    assert seen == {(False, True), (True, True), (True, False)}


@pytest.mark.parametrize("method", METHODS)
def test_train_rows_without_prompts_are_all_targets(made: Made, method: str) -> None:
    """Guards against a mask that is built, and paid for, where nothing is masked."""
    assert made.rows(method).targets is None


# Addressed randomness


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("method", METHODS)
def test_train_rows_are_those_of_any_number_of_processes(
    make: Make, method: str, world: int
) -> None:
    """Guards against another training on another number of GPUs."""
    made = make("per_document", prompt=25)
    for step in (0, 3):
        whole = made.rows(method, step)
        for rank in range(world):
            part = made.rows(method, step, (rank, world))
            assert np.array_equal(part.input_ids, whole.input_ids[rank::world])
            assert part.boundaries == whole.boundaries[rank::world]
            assert part.targets is not None
            assert whole.targets is not None
            assert np.array_equal(part.targets, whole.targets[rank::world])
            ids = whole.position_ids
            assert np.array_equal(part.position_ids, ids if len(ids) == 1 else ids[rank::world])


@pytest.mark.parametrize("method", METHODS)
def test_train_rows_are_those_of_any_order_of_steps(made: Made, method: str) -> None:
    """Guards against a restart that goes on with other draws."""
    forward = [made.rows(method, step) for step in range(5)]
    for step in (4, 0, 2, 3, 1):
        again = made.rows(method, step)
        assert np.array_equal(again.input_ids, forward[step].input_ids)
        assert np.array_equal(again.position_ids, forward[step].position_ids)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "natural"])
def test_train_rows_differ_between_steps_phases_and_seeds(made: Made, method: str) -> None:
    """Guards against positions that repeat, epoch after epoch, in another order of text."""
    epoch = made.windows.count  # steps after which every window has come back as often
    found = [
        made.rows(method),
        made.rows(method, 1),
        made.rows(method, epoch),
        made.rows(method, phase=PHASE + 1),
        made.rows(method, seed=SEED + 1),
    ]
    drawn = [row for rows_ in found for row in rows_.position_ids.tolist()]
    assert len(set(map(tuple, drawn))) > 0.9 * len(drawn)


# What is refused


def pose(**changes: Any) -> PosePositions:
    return PosePositions(target_tokens=TARGET, **changes)


@pytest.mark.parametrize("policy", ["concat", "documents"])
@pytest.mark.parametrize("content", ["random", "aligned"])
def test_train_rows_need_windows_of_one_document(make: Make, content: str, policy: str) -> None:
    """Guards against chunks read from a document that the row is only in part."""
    made = make(policy)
    message = f"content {content} .* policy '{policy}' .*per_document, or .*to contiguous"
    with pytest.raises(StageError, match=message):
        check(pose(content=content), made.windows)
    batch = made.loader().batch(0)
    with pytest.raises(StageError, match=message):
        rows(pose(content=content), batch, made.windows, seed=SEED, phase=PHASE)
    check(pose(content="contiguous"), made.windows)


def test_train_rows_name_the_document_too_short_to_be_aligned(make: Make) -> None:
    """Guards against a training that ends at the first short document, days after it began."""
    made = make("per_document", shortest=20)
    documents = [made.document(window) for window in range(made.windows.count)]
    short = [window for window, ids in enumerate(documents) if len(ids) < TARGET]
    assert 0 < len(short) < len(documents)
    named = made.windows.pieces(short[0])
    with pytest.raises(StageError) as refused:
        check(pose(content="aligned"), made.windows)
    for part in (
        f"{len(short)} of {len(documents)} documents are shorter",
        f"document {named.document[0]} of corpus '{named.corpus}' has "
        f"{len(documents[short[0]])} tokens",
        f"minimum_tokens of that corpus (length_tokens of a recall corpus) to {TARGET}",
    ):
        assert part in str(refused.value)
    batch = dataclasses.replace(made.loader().batch(0), rows=np.array(short[:SEQUENCES]))
    with pytest.raises(StageError, match="documents are shorter"):
        rows(pose(content="aligned"), batch, made.windows, seed=SEED, phase=PHASE)
    check(pose(content="random"), made.windows)


def test_train_rows_refuse_fewer_document_tokens_than_a_window(made: Made) -> None:
    """Guards against rows that are read beyond the limit that was set."""
    with pytest.raises(StageError, match=r"document_tokens 15 is below the 16 tokens of a window"):
        check(pose(document_tokens=LENGTH - 1), made.windows)
    check(pose(document_tokens=LENGTH), made.windows)
