from typing import Any

import numpy as np
import pytest
from data_samples import Chain, Run

from ropewalk.base.manifest import ArtifactError, Manifest
from ropewalk.base.stage import StageError
from ropewalk.data.loader import Loader, Windows
from ropewalk.data.shards import Tokens
from ropewalk.data.spec import PackJob, RecallCorpus, Share, TokenizeJob
from ropewalk.data.spec import Windows as WindowsSpec

LENGTH = 128


class Packed:
    """Windows of two corpora, with their tokens."""

    def __init__(self, run: Run, chain: Chain, policy: str, **changes: Any) -> None:
        code = chain.tokens()
        recall = run(
            "tokenize",
            TokenizeJob(
                corpus=RecallCorpus(
                    filler="code", documents=30, length_tokens=150, keys=16, pairs=(2, 4)
                )
            ),
            "recall",
            filler=code,
            tokenizer=chain.tokenizer,
        )
        self.tokens: dict[str, Manifest] = {"code": code, "recall": recall}
        shares = changes.pop("mixture", {"code": 0.75, "recall": 0.25})
        spec = WindowsSpec(
            mixture=tuple(Share(corpus=c, weight=w) for c, w in shares.items()),
            tokenizer="t",
            policy=policy,  # type: ignore[arg-type]
            **changes,
        )
        inputs = {f"tokens__{name}": manifest for name, manifest in self.tokens.items()}
        self.manifest = run("pack", PackJob(windows=spec, length_tokens=LENGTH), policy, **inputs)
        self.windows = Windows(self.manifest, self.tokens)


@pytest.fixture(params=["concat", "documents", "per_document"])
def packed(request: pytest.FixtureRequest, run: Run, chain: Chain) -> Packed:
    """Return windows of each policy."""
    return Packed(run, chain, request.param)


def test_rows_hold_the_tokens_of_their_pieces(packed: Packed) -> None:
    """Guards against an index that points at other tokens than it means."""
    readers = {name: Tokens(manifest) for name, manifest in packed.tokens.items()}
    for row in range(packed.windows.rows):
        ids, boundaries = packed.windows.row(row)
        made_of = packed.windows.pieces(row)
        parts = [
            readers[made_of.corpus].document(d)[s : s + n]
            for d, s, n in zip(made_of.document, made_of.start, made_of.length, strict=True)
        ]
        expected = np.concatenate(parts)[:LENGTH]
        assert ids.dtype == np.int64
        assert ids.shape == (LENGTH,)
        assert ids[: len(expected)].tolist() == expected.tolist()
        assert not ids[len(expected) :].any()
        if packed.windows.policy == "documents":
            assert boundaries == (0, *np.cumsum([len(p) for p in parts]).tolist())
        else:
            assert boundaries == (0, LENGTH)


def test_concat_rows_are_the_corpus_in_order(run: Run, chain: Chain) -> None:
    """Guards against blocks that skip or repeat text."""
    packed = Packed(run, chain, "concat", mixture={"code": 1})
    reader = Tokens(packed.tokens["code"])
    whole = np.concatenate([reader.document(i) for i in range(reader.count)]).astype(np.int64)
    rows = np.concatenate([packed.windows.row(i)[0] for i in range(packed.windows.rows)])
    assert rows.tolist() == whole[: len(rows)].tolist()
    assert 0 <= len(whole) - len(rows) < LENGTH


def test_counts_of_a_mixture_add_up(packed: Packed) -> None:
    """Guards against tokens that are in no count, and weights that are not followed."""
    result = packed.manifest.result
    for name, counts in result["by_corpus"].items():
        total = counts["tokens"] + counts["unused_tokens"] + counts["dropped_tokens"]
        assert total == Tokens(packed.tokens[name]).total
    assert result["rows"] == packed.windows.rows
    assert abs(result["by_corpus"]["recall"]["rows"] - result["rows"] / 4) < 1
    if packed.windows.policy != "per_document":
        assert result["tokens"] + result["padding_tokens"] == result["rows"] * LENGTH


def test_a_batch_is_a_pure_function_of_seed_and_step(packed: Packed) -> None:
    """Guards against a loader with a state: a resumed run would see other data."""
    loader = Loader(packed.windows, seed=5, sequences=3)
    forward = [loader.batch(step) for step in range(40)]
    fresh = Loader(packed.windows, seed=5, sequences=3)
    for step in (39, 0, 17, 38, 3):
        batch = fresh.batch(step)
        assert batch.rows.tolist() == forward[step].rows.tolist()
        assert (batch.input_ids == forward[step].input_ids).all()
        assert batch.boundaries == forward[step].boundaries
        for place, row in enumerate(batch.rows.tolist()):
            assert (batch.input_ids[place] == packed.windows.row(row)[0]).all()
    other = Loader(packed.windows, seed=6, sequences=3)
    assert any((other.batch(s).rows != forward[s].rows).any() for s in range(4))


def test_every_epoch_deals_out_every_row_once_in_a_new_order(packed: Packed) -> None:
    """Guards against rows that are never seen, or a second epoch in the order of the first."""
    rows, sequences = packed.windows.rows, packed.windows.rows + 3
    loader = Loader(packed.windows, seed=0, sequences=sequences)  # steps touch several epochs
    dealt = np.concatenate([loader.batch(step).rows for step in range(4)])
    epochs = [dealt[e * rows : (e + 1) * rows] for e in range(3)]
    assert all(sorted(epoch.tolist()) == list(range(rows)) for epoch in epochs)
    assert epochs[0].tolist() != epochs[1].tolist() != epochs[2].tolist()
    assert epochs[0].tolist() != list(range(rows))


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_ranks_share_out_the_step_of_one_process(packed: Packed, world: int) -> None:
    """Guards against a run whose data changes with the number of processes."""
    loader = Loader(packed.windows, seed=1, sequences=6)
    for step in (0, 7):
        whole = loader.batch(step)
        for rank in range(world):
            part = Loader(packed.windows, seed=1, sequences=6).batch(step, part=(rank, world))
            assert part.rows.tolist() == whole.rows[rank::world].tolist()
            assert (part.input_ids == whole.input_ids[rank::world]).all()
            assert part.boundaries == whole.boundaries[rank::world]


def test_the_seed_of_the_windows_changes_the_order(run: Run, chain: Chain) -> None:
    """Guards against a setting that is part of the identity and does nothing."""
    first = Loader(Packed(run, chain, "concat").windows, seed=0, sequences=8).batch(0)
    second = Loader(Packed(run, chain, "concat", seed=1).windows, seed=0, sequences=8).batch(0)
    assert first.rows.tolist() != second.rows.tolist()


def test_a_rank_outside_its_world_is_refused(packed: Packed) -> None:
    """Guards against ranks counted from one."""
    with pytest.raises(ValueError, match="rank 2 of 2"):
        Loader(packed.windows, seed=0, sequences=4).batch(0, part=(2, 2))


def test_windows_refuse_other_tokens_than_they_were_cut_from(run: Run, chain: Chain) -> None:
    """Guards against an index read over the wrong corpus: plausible text, wrong experiment."""
    packed = Packed(run, chain, "concat")
    swapped = {"code": packed.tokens["recall"], "recall": packed.tokens["code"]}
    with pytest.raises(ArtifactError, match="corpus 'code'"):
        Windows(packed.manifest, swapped)
    with pytest.raises(ArtifactError, match="'recall' are missing"):
        Windows(packed.manifest, {"code": packed.tokens["code"]})


def test_a_corpus_too_short_for_a_window_is_named(run: Run, chain: Chain) -> None:
    """Guards against a mixture that quietly lost one of its corpora."""
    tokens = chain.tokens()
    spec = WindowsSpec(mixture=(Share(corpus="code", weight=1),), tokenizer="t")
    job = PackJob(windows=spec, length_tokens=10**7)
    with pytest.raises(StageError, match="'code' has no window of 10000000 tokens"):
        run("pack", job, "none", tokens__code=tokens)


def test_a_weight_too_small_for_one_window_is_named(run: Run, chain: Chain) -> None:
    """Guards against a corpus in the mixture that contributes nothing."""
    with pytest.raises(StageError, match=r"weight 1e-09 leaves corpus 'recall' no window"):
        Packed(run, chain, "concat", mixture={"code": 1, "recall": 1e-9})
