"""The index, its statistics and the loader over tokens whose every token is known."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from data_samples import Run
from hypothesis import given
from token_samples import counting, write_tokens

from ropewalk.base.manifest import ArtifactError, Manifest
from ropewalk.base.stage import StageError
from ropewalk.data.frequency import concatenated
from ropewalk.data.loader import Loader, Windows, hashed, permuted
from ropewalk.data.spec import PackJob, Share
from ropewalk.data.spec import Windows as WindowsSpec
from ropewalk.data.tokens import Tokens

LENGTH = 32
STATUS = Path("/proc/self/status")
POLICIES = ["concat", "documents", "per_document"]


def sizes(seed: int, count: int) -> list[int]:
    """Return lengths around a window, some of them 0."""
    drawn = np.random.default_rng(seed).lognormal(3, 1, count).astype(int)
    return [*drawn.tolist(), 0, 3 * LENGTH, LENGTH]


class Packed:
    """Windows of two corpora, with their tokens."""

    def __init__(
        self,
        run: Run,
        folder: Path,
        policy: str,
        *,
        mixture: dict[str, float] | None = None,
        prompts: dict[str, int] | None = None,
        **changes: Any,
    ) -> None:
        documents = {
            "code": counting(sizes(0, 120)),
            "recall": counting(sizes(1, 60), first=50_000),
        }
        self.prompts = {
            name: np.minimum((prompts or {}).get(name, 0), [len(d) for d in ids])
            for name, ids in documents.items()
        }
        self.tokens: dict[str, Manifest] = {
            name: write_tokens(folder / name, ids, prompts=self.prompts[name].tolist())
            for name, ids in documents.items()
        }
        weights = mixture or {"code": 0.75, "recall": 0.25}
        spec = WindowsSpec(
            mixture=tuple(Share(corpus=c, weight=w) for c, w in weights.items()),
            tokenizer="t",
            policy=policy,  # type: ignore[arg-type]
            **changes,
        )
        inputs = {f"tokens__{name}": manifest for name, manifest in self.tokens.items()}
        self.manifest = run("pack", PackJob(windows=spec, length_tokens=LENGTH), policy, **inputs)
        self.windows = Windows(self.manifest, self.tokens)

    def loader(self, *, seed: int = 0, phase: int = 0, sequences: int = 6) -> Loader:
        return Loader(self.windows, seed=seed, phase=phase, sequences=sequences)


@pytest.fixture(params=POLICIES)
def packed(request: pytest.FixtureRequest, run: Run, tmp_path: Path) -> Packed:
    """Return windows of each policy."""
    return Packed(run, tmp_path, request.param)


def test_rows_hold_the_tokens_of_their_pieces(packed: Packed) -> None:
    """Guards against an index that points at other tokens than it means."""
    readers = {name: Tokens(manifest) for name, manifest in packed.tokens.items()}
    rows = packed.windows.read(np.arange(packed.windows.count))
    assert rows.input_ids.dtype == np.int64
    assert rows.input_ids.shape == (packed.windows.count, LENGTH)
    assert rows.targets is None
    for window in range(packed.windows.count):
        ids, boundaries = packed.windows.row(window)
        assert ids.tolist() == rows.input_ids[window].tolist()
        assert boundaries == rows.boundaries[window]
        made_of = packed.windows.pieces(window)
        parts = [
            readers[made_of.corpus].document(d)[s : s + n]
            for d, s, n in zip(made_of.document, made_of.start, made_of.length, strict=True)
        ]
        expected = np.concatenate(parts)[:LENGTH]
        assert ids[: len(expected)].tolist() == expected.tolist()
        assert not ids[len(expected) :].any()
        if packed.windows.policy == "documents":
            assert boundaries == (0, *np.cumsum([len(p) for p in parts]).tolist())
        else:
            assert boundaries == (0, LENGTH)


def test_concat_rows_are_the_corpus_in_order(run: Run, tmp_path: Path) -> None:
    """Guards against blocks that skip or repeat text."""
    packed = Packed(run, tmp_path, "concat", mixture={"code": 1})
    total = sum(sizes(0, 120))
    rows = packed.windows.read(np.arange(packed.windows.count)).input_ids.ravel()
    assert rows.tolist() == list(range(1, total // LENGTH * LENGTH + 1))


def test_every_token_of_every_document_is_in_one_row(run: Run, tmp_path: Path) -> None:
    """Guards against tokens that are lost or trained on twice in an epoch."""
    packed = Packed(run, tmp_path, "documents", mixture={"code": 1})
    loader = packed.loader(sequences=1)
    seen = []
    for step in range(packed.windows.count):
        batch = loader.batch(step)
        seen += batch.input_ids[0, : batch.boundaries[0][-1]].tolist()
    assert sorted(seen) == list(range(1, sum(sizes(0, 120)) + 1))


def test_the_index_is_what_it_is_documented_to_be(packed: Packed) -> None:
    """Guards against a format that only its writer can read."""
    table = pa.ipc.open_file(str(packed.manifest.path("windows.arrow"))).read_all()
    assert table.num_rows == packed.windows.count
    names = ["code", "recall"]
    for window, row in enumerate(table.to_pylist()):
        made_of = packed.windows.pieces(window)
        assert names[row["corpus"]] == made_of.corpus
        assert [p["document"] for p in row["pieces"]] == made_of.document.tolist()
        assert [p["start"] for p in row["pieces"]] == made_of.start.tolist()
        assert [p["length"] for p in row["pieces"]] == made_of.length.tolist()
        tokens = Tokens(packed.tokens[made_of.corpus])
        begins = tokens.begins[made_of.document] + made_of.start
        assert [p["begin"] for p in row["pieces"]] == begins.tolist()


# Statistics


def test_counts_of_a_mixture_add_up(packed: Packed) -> None:
    """Guards against tokens that are in no count, and weights that are not followed."""
    result = packed.manifest.result
    for name, counts in result["by_corpus"].items():
        tokens = Tokens(packed.tokens[name])
        total = counts["tokens"] + counts["unused_tokens"] + counts["dropped_tokens"]
        assert total == tokens.total
        assert counts["documents"] == tokens.count
        assert counts["prompt_tokens"] == 0
    assert result["windows"] == packed.windows.count
    assert abs(result["by_corpus"]["recall"]["windows"] - result["windows"] / 4) < 1
    if packed.windows.policy != "per_document":
        assert result["tokens"] + result["padding_tokens"] == result["windows"] * LENGTH
    for key, value in result["by_corpus"]["code"].items():
        if isinstance(value, int):
            assert result[key] == value + result["by_corpus"]["recall"][key]


def test_position_frequency_is_that_of_the_rows(packed: Packed) -> None:
    """Guards against a histogram of other segments than attention is given."""
    statistics = json.loads(packed.manifest.path("statistics.json").read_text())
    rows = packed.windows.read(np.arange(packed.windows.count))
    found = dict.fromkeys(("code", "recall", "total"), np.zeros(LENGTH, dtype=np.int64))
    for window, ends in enumerate(rows.boundaries):
        counts = np.zeros(LENGTH, dtype=np.int64)
        for begin, end in itertools.pairwise(ends):
            for token in range(begin, end):
                for seen in range(begin, token + 1):
                    counts[token - seen] += 1
        for name in (packed.windows.pieces(window).corpus, "total"):
            found[name] = found[name] + counts
    assert statistics["length_tokens"] == LENGTH
    for name, frequency in found.items():
        part = statistics["total"] if name == "total" else statistics["by_corpus"][name]
        assert part["position_frequency"]["f"] == frequency.tolist()
        brief = packed.manifest.result if name == "total" else packed.manifest.result["by_corpus"]
        brief = brief if name == "total" else brief[name]
        assert part["position_frequency"]["shares"] == brief["position_shares"]
    if packed.windows.policy != "documents":
        assert found["total"].tolist() == concatenated(packed.windows.count, LENGTH).tolist()


def test_statistics_do_not_depend_on_the_draw(run: Run, tmp_path: Path) -> None:
    """Guards against statistics of windows in an order that was not written."""
    first = Packed(run, tmp_path / "a", "documents", mixture={"code": 1})
    second = Packed(run, tmp_path / "b", "documents", mixture={"code": 1}, seed=7)
    assert first.manifest.result == second.manifest.result
    orders = [
        [p.windows.row(i)[0].tolist() for i in range(p.windows.count)] for p in (first, second)
    ]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


# The loader


def test_a_batch_is_a_pure_function_of_seed_phase_and_step(packed: Packed) -> None:
    """Guards against a loader with a state: a resumed run would see other data."""
    forward = [packed.loader(seed=5).batch(step) for step in range(40)]
    fresh = packed.loader(seed=5)
    for step in (39, 0, 17, 38, 3):
        batch = fresh.batch(step)
        assert batch.rows.tolist() == forward[step].rows.tolist()
        assert (batch.input_ids == forward[step].input_ids).all()
        assert batch.boundaries == forward[step].boundaries
        assert batch.numbers.tolist() == list(range(6 * step, 6 * step + 6))
    for other in (packed.loader(seed=6), packed.loader(seed=5, phase=1)):
        assert any((other.batch(s).rows != forward[s].rows).any() for s in range(4))


def test_every_epoch_deals_out_every_window_once_in_a_new_order(packed: Packed) -> None:
    """Guards against windows that are never seen, or a second epoch in the order of the first."""
    count = packed.windows.count
    loader = packed.loader(sequences=count + 3)  # steps touch several epochs
    dealt = np.concatenate([loader.batch(step).rows for step in range(4)])
    epochs = [dealt[e * count : (e + 1) * count] for e in range(3)]
    assert all(sorted(epoch.tolist()) == list(range(count)) for epoch in epochs)
    assert epochs[0].tolist() != epochs[1].tolist() != epochs[2].tolist()
    assert epochs[0].tolist() != list(range(count))


@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
def test_ranks_share_out_the_step_of_one_process(packed: Packed, world: int) -> None:
    """Guards against a run whose data changes with the number of processes."""
    for step in (0, 7, 1_000_003):
        whole = packed.loader(seed=1).batch(step)
        for rank in range(world):
            part = packed.loader(seed=1).batch(step, part=(rank, world))
            assert part.rows.tolist() == whole.rows[rank::world].tolist()
            assert part.numbers.tolist() == whole.numbers[rank::world].tolist()
            assert (part.input_ids == whole.input_ids[rank::world]).all()
            assert part.boundaries == whole.boundaries[rank::world]
            if whole.offsets is not None and part.offsets is not None:
                assert part.offsets.tolist() == whole.offsets[rank::world].tolist()


def test_the_seed_of_the_windows_changes_the_order(run: Run, tmp_path: Path) -> None:
    """Guards against a setting that is part of the identity and does nothing."""
    first = Packed(run, tmp_path / "a", "concat").loader().batch(0)
    second = Packed(run, tmp_path / "b", "concat", seed=1).loader().batch(0)
    assert first.rows.tolist() != second.rows.tolist()


def test_rows_of_one_document_begin_anywhere_in_it(run: Run, tmp_path: Path) -> None:
    """Guards against examples that never read the end of a document, or read past it."""
    packed = Packed(run, tmp_path, "per_document", mixture={"recall": 1})
    windows = packed.windows
    lengths = windows.document_lengths(np.arange(windows.count))
    loader = packed.loader(sequences=windows.count)
    drawn: dict[int, list[int]] = {window: [] for window in range(windows.count)}
    for step in range(300):  # an epoch each
        batch = loader.batch(step)
        assert batch.offsets is not None
        for window, offset, ids in zip(
            batch.rows.tolist(), batch.offsets.tolist(), batch.input_ids, strict=True
        ):
            drawn[window].append(offset)
            whole = windows.document(window)
            assert len(whole) == lengths[window]
            assert ids.tolist() == whole[offset : offset + LENGTH].tolist()
    tested = 0
    for window, offsets in drawn.items():
        places = int(lengths[window]) - LENGTH + 1
        counts = np.bincount(offsets, minlength=places)
        assert len(counts) == places
        if places == 1:
            continue
        expected = 300 / places
        squares = ((counts - expected) ** 2 / expected).sum()  # chi-square, places - 1 degrees
        assert squares < places - 1 + 6 * math.sqrt(2 * (places - 1)) + 6
        tested += 1
    assert tested > 10
    assert 0 in set(itertools.chain(*drawn.values()))


def test_only_one_document_has_an_offset(run: Run, tmp_path: Path) -> None:
    """Guards against reading windows of many documents as if they were one."""
    packed = Packed(run, tmp_path, "documents")
    assert packed.loader().batch(0).offsets is None
    with pytest.raises(ValueError, match="several documents"):
        packed.windows.document(0)
    with pytest.raises(ValueError, match="several documents"):
        packed.windows.document_lengths(np.array([0]))
    with pytest.raises(ValueError, match="several documents"):
        packed.windows.prompt_tokens(np.array([0]))


@pytest.mark.parametrize("policy", POLICIES)
def test_tokens_of_a_prompt_are_no_targets(run: Run, tmp_path: Path, policy: str) -> None:
    """Guards against fine-tuning that learns to write the prompts."""
    packed = Packed(run, tmp_path, policy, prompts={"recall": 40})
    prompts = {  # token -> whether its document's prompt has it; no token occurs twice
        int(token): place < packed.prompts["recall"][document]
        for document, ids in enumerate(counting(sizes(1, 60), first=50_000))
        for place, token in enumerate(ids)
    }
    loader = packed.loader(sequences=packed.windows.count)
    batch = loader.batch(3)
    assert batch.targets is not None
    assert batch.targets.dtype == bool
    seen = set()
    for ids, ends, targets in zip(batch.input_ids, batch.boundaries, batch.targets, strict=True):
        for token, target in zip(ids[: ends[-1]].tolist(), targets[: ends[-1]], strict=True):
            assert target == (not prompts.get(token, False))
            seen.add((token >= 50_000, bool(target)))
    assert seen == {(False, True), (True, True), (True, False)}
    in_windows = packed.manifest.result["by_corpus"]["recall"]["prompt_tokens"]
    if policy == "per_document":  # counts whole documents, of which a row reads a part
        of_documents = [
            packed.prompts[pieces.corpus][pieces.document[0]]
            for pieces in map(packed.windows.pieces, batch.rows)
        ]
        assert packed.windows.prompt_tokens(batch.rows).tolist() == of_documents
        assert in_windows == sum(of_documents)
    else:
        assert in_windows == int((~batch.targets).sum())
    assert packed.manifest.result["prompt_tokens"] == in_windows


def test_a_rank_outside_its_world_is_refused(packed: Packed) -> None:
    """Guards against ranks counted from one."""
    with pytest.raises(ValueError, match="rank 2 of 2"):
        packed.loader().batch(0, part=(2, 2))
    with pytest.raises(ValueError, match="step -1"):
        packed.loader().batch(-1)


@pytest.mark.skipif(not STATUS.exists(), reason="needs /proc")
def test_an_epoch_takes_no_memory(run: Run, tmp_path: Path) -> None:
    """Guards against a process that grows by every page of the corpus it has read."""
    tokens = write_tokens(tmp_path / "big", [np.zeros(50_000)] * 200, shard_tokens=1_000_000)
    spec = WindowsSpec(mixture=(Share(corpus="big", weight=1),), tokenizer="t")
    job = PackJob(windows=spec, length_tokens=2048)
    loader = Loader(
        Windows(run("pack", job, "big-windows", tokens__big=tokens), {"big": tokens}),
        seed=0,
        phase=0,
        sequences=64,
    )
    before, _ = resident_kib(), loader.batch(0)
    for step in range(loader.windows.count // 64):
        loader.batch(step)
    corpus = 4 * 200 * 50_000 // 1024
    assert resident_kib() - before < corpus / 4


def resident_kib() -> int:
    lines = STATUS.read_text().splitlines()
    return sum(int(x.split()[1]) for x in lines if x.startswith(("RssFile", "RssAnon")))


# Its two counter-based parts, against plain Python


def reference_hash(counter: int, key: int) -> int:
    bits = (counter * 0x9E3779B97F4A7C15 + key) % 2**64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits = (bits ^ (bits >> shift)) * factor % 2**64
    return bits ^ (bits >> 31)


def reference_permuted(place: int, count: int, keys: list[int]) -> int:
    high = math.isqrt(count - 1) + 1
    low = -(-count // high)
    while True:
        a, b = divmod(place, low)
        for index, key in enumerate(keys):
            if index % 2:
                b = (b + reference_hash(a, key) % 2**64) % 2**64 % low
            else:
                a = (a + reference_hash(b, key) % 2**64) % 2**64 % high
        place = a * low + b
        if place < count:
            return place


def test_hash_is_splitmix64() -> None:
    """Guards against bits that differ from platform to platform (the published sequence)."""
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    counters = np.arange(1, 6, dtype=np.uint64)
    assert hashed(counters, np.array([1234567], dtype=np.uint64)).tolist() == expected
    assert counters.tolist() == [1, 2, 3, 4, 5]


@given(
    st.integers(1, 10**12),
    st.lists(st.integers(0, 2**64 - 1), min_size=8, max_size=8),
    st.data(),
)
def test_permutation_is_that_of_plain_integers(
    count: int, keys: list[int], data: st.DataObject
) -> None:
    """Guards against arithmetic that wraps where integers of Python do not."""
    places = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=5))
    found = permuted(np.array(places), count, np.array(keys, dtype=np.uint64))
    assert found.tolist() == [reference_permuted(place, count, keys) for place in places]


def keys(number: int) -> np.ndarray:
    return np.random.Philox(key=number).random_raw(8)


def test_permutation_is_a_bijection() -> None:
    """Guards against a window dealt out twice and another one never."""
    for count in [*range(1, 300), 1000, 1024, 1025, 99_991]:
        found = permuted(np.arange(count), count, keys(count))
        assert np.bincount(found, minlength=count).tolist() == [1] * count


def test_permutations_are_even() -> None:
    """Guards against orders that keep windows near their places, or neighbours together."""
    count, draws = 12, 3000
    places, steps = np.zeros((count, count)), np.zeros(count)
    for number in range(draws):
        found = permuted(np.arange(count), count, keys(number))
        places[np.arange(count), found] += 1
        steps += np.bincount((found[1:] - found[:-1]) % count, minlength=count)
    expected = draws / count
    squares = ((places - expected) ** 2 / expected).sum()
    degrees = (count - 1) ** 2
    assert abs(squares - degrees) < 5 * math.sqrt(2 * degrees)
    assert steps[0] == 0
    assert ((steps[1:] - draws) ** 2 / draws).sum() < 40  # about 10 degrees of freedom

    count = 50_000
    found = permuted(np.arange(count), count, keys(1))
    again = permuted(np.arange(count), count, keys(2))
    for a, b in ((np.arange(count), found), (found[1:], found[:-1]), (found, again)):
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / math.sqrt(count)


def test_any_step_costs_the_same(packed: Packed) -> None:
    """Guards against a loader that walks to the step it is asked for, or holds an epoch."""
    far = packed.loader().batch(10**12)
    assert far.rows.min() >= 0
    assert far.rows.max() < packed.windows.count
    assert far.numbers[0] == 6 * 10**12
    huge = permuted(np.array([0, 10**15 - 1]), 10**15, keys(0))
    assert len(set(huge.tolist())) == 2


# What is refused


def test_windows_refuse_other_tokens_than_they_were_cut_from(run: Run, tmp_path: Path) -> None:
    """Guards against an index read over the wrong corpus: plausible text, wrong experiment."""
    packed = Packed(run, tmp_path, "concat")
    swapped = {"code": packed.tokens["recall"], "recall": packed.tokens["code"]}
    with pytest.raises(ArtifactError, match="corpus 'code'"):
        Windows(packed.manifest, swapped)
    with pytest.raises(ArtifactError, match="'recall' are missing"):
        Windows(packed.manifest, {"code": packed.tokens["code"]})
    with pytest.raises(IndexError, match=f"window {packed.windows.count} of"):
        packed.windows.pieces(packed.windows.count)


def test_a_corpus_too_short_for_a_window_is_named(run: Run, tmp_path: Path) -> None:
    """Guards against a mixture that quietly lost one of its corpora."""
    tokens = write_tokens(tmp_path / "code", counting([3, 4]))
    spec = WindowsSpec(mixture=(Share(corpus="code", weight=1),), tokenizer="t")
    with pytest.raises(StageError, match=r"'code' has no window of 10 tokens .*2 doc.* 7 tokens"):
        run("pack", PackJob(windows=spec, length_tokens=10), "none", tokens__code=tokens)


def test_a_weight_too_small_for_one_window_is_named(run: Run, tmp_path: Path) -> None:
    """Guards against a corpus in the mixture that contributes nothing."""
    with pytest.raises(StageError, match=r"weight 1e-09 leaves corpus 'recall' no window"):
        Packed(run, tmp_path, "concat", mixture={"code": 1, "recall": 1e-9})
