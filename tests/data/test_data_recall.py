import dataclasses
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from ropewalk.base.spec import SpecError
from ropewalk.data.recall import (
    BOS,
    MARKER,
    PAIR_TOKENS,
    alphabet,
    distance_range,
    document,
    probe,
    shortest_context,
)
from ropewalk.data.spec import RecallCorpus

RESERVED = 40
FILLER = np.random.default_rng(0).integers(2 + RESERVED, 512, 5000)


def corpus(**changes: Any) -> RecallCorpus:
    return dataclasses.replace(
        RecallCorpus(filler="f", documents=9, length_tokens=600, keys=16, pairs=(2, 12)), **changes
    )


def shown_pairs(ids: np.ndarray) -> list[tuple[int, int, int]]:
    """Return (place, key, value) of every whole pair."""
    places = [p for p in np.flatnonzero(ids == MARKER).tolist() if p + 2 < len(ids)]
    return [(p, int(ids[p + 1]), int(ids[p + 2])) for p in places]


@given(st.integers(0, 10**6), st.integers(0, 5))
def test_a_repeated_key_has_the_value_it_was_first_shown_with(index: int, seed: int) -> None:
    """Guards against documents that teach nothing because the answer is random."""
    keys, values = (set(ids.tolist()) for ids in alphabet(RESERVED, 16))
    ids = document(corpus(seed=seed, filler_share=(0.0, 0.2)), index, FILLER, RESERVED)
    first: dict[int, int] = {}
    pairs = shown_pairs(ids)
    for _, key, value in pairs:
        assert key in keys
        assert value in values
        assert first.setdefault(key, value) == value
    assert 2 <= len(first) <= 12
    assert len(set(first.values())) == len(first)  # one answer per question
    assert len(pairs) > len(first)  # keys do come back
    assert len(ids) == 600
    assert ids.dtype == np.int64


@given(st.integers(0, 10**6), st.integers(2, 40), st.integers(0, 40))
def test_a_copying_document_repeats_one_segment(index: int, least: int, more: int) -> None:
    """Guards against copies that differ, or text that only looks like one: nothing to induce."""
    filler = np.random.default_rng(1).permutation(100_000)[:5000] + 1000  # every token once
    spec = corpus(copy_share=1.0, copy_tokens=(least, least + more), filler_share=(0.0, 0.0))
    ids = document(spec, index, filler, RESERVED)
    assert len(ids) == 600
    assert set(ids.tolist()) <= set(filler.tolist())
    period = next(n for n in range(1, 600) if (ids[n:] == ids[:-n]).all())
    assert least <= period <= least + more
    place = {token: i for i, token in enumerate(filler.tolist())}
    steps = np.diff([place[token] for token in ids[:period].tolist()])
    assert np.mean(steps == 1) < 0.5  # no run of the corpus
    between = document(dataclasses.replace(spec, filler_share=(0.4, 0.4)), index, filler, RESERVED)
    windows = np.lib.stride_tricks.sliding_window_view(between, period)
    assert (windows == ids[:period]).all(axis=1).sum() >= 2 or period > 60


def test_a_share_of_documents_copies() -> None:
    """Guards against a share that changes the other documents, or counts something else."""
    plain = corpus()
    mixed = corpus(copy_share=0.3)
    same = [
        document(plain, i, FILLER, RESERVED).tobytes()
        == document(mixed, i, FILLER, RESERVED).tobytes()
        for i in range(400)
    ]
    assert np.mean(same) == pytest.approx(0.7, abs=0.08)
    copying = [document(mixed, i, FILLER, RESERVED) for i in range(400) if not same[i]]
    assert not any((ids == MARKER).any() for ids in copying)
    with pytest.raises(SpecError, match=r"copy_share 1\.5 must lie within"):
        document(corpus(copy_share=1.5), 0, FILLER, RESERVED)
    with pytest.raises(SpecError, match=r"copy_tokens \(1, 9\) be a range from 2 on"):
        document(corpus(copy_tokens=(1, 9)), 0, FILLER, RESERVED)


def test_documents_are_addressed_by_index_and_seed() -> None:
    """Guards against documents that depend on those made before them."""
    spec = corpus()
    again = [document(spec, i, FILLER, RESERVED).tobytes() for i in (3, 1, 2)]
    assert again == [document(spec, i, FILLER, RESERVED).tobytes() for i in (3, 1, 2)]
    assert len(set(again)) == 3
    assert document(corpus(seed=1), 3, FILLER, RESERVED).tobytes() not in again


def test_filler_is_cut_from_the_corpus_in_the_given_share() -> None:
    """Guards against filler that is noise, or a share that counts something else."""
    spec = corpus(length_tokens=60_000, filler_share=(0.3, 0.3), filler_longest_tokens=200)
    filler = np.arange(2, 3000) % 400 + 100_000  # consecutive, and unlike any pair
    ids = document(spec, 0, filler, RESERVED)
    is_filler = ids >= 100_000
    starts = is_filler & ~np.append(False, is_filler[:-1])
    inside = is_filler[1:] & is_filler[:-1]
    steps = np.diff(ids)[inside]
    assert np.mean((steps == 1) | (steps == -399)) > 0.95  # pieces are runs of the corpus
    # mean of the whole part of exp(uniform(0, ln 201)): sum over n of n ln((n + 1) / n) / ln 201
    n = np.arange(1, 201)
    mean = float((n * np.log((n + 1) / n)).sum() / np.log(201))
    assert np.mean(is_filler) == pytest.approx(0.3 * mean / (0.3 * mean + 0.7 * 3), abs=0.03)
    assert (ids[~is_filler] == MARKER).sum() * 3 == pytest.approx((~is_filler).sum(), abs=3)
    assert starts.sum() > 100


@given(st.integers(64, 4096), st.integers(1, 200))
def test_the_alphabet_is_disjoint_and_past_the_special_tokens(reserved: int, keys: int) -> None:
    """Guards against a token that is key and value at once, or that texts contain."""
    if 2 * keys > reserved:
        with pytest.raises(SpecError, match=f"{keys} keys"):
            alphabet(reserved, keys)
        return
    key_ids, value_ids = alphabet(reserved, keys)
    together = {*key_ids.tolist(), *value_ids.tolist()}
    assert len(key_ids) == len(value_ids) == keys
    assert len(together) == 2 * keys
    assert min(together) == 2
    assert max(together) < 2 + reserved


@given(st.data(), st.integers(30, 200), st.integers(1, 6), st.integers(0, 50))
def test_probe_distances_are_exact(
    data: st.DataObject, context: int, pairs: int, trial: int
) -> None:
    """Guards against a reach measured at other distances than it is plotted at."""
    limits = distance_range(context, pairs)
    assert limits is not None
    distance = data.draw(st.integers(*limits))
    ids, answer, position = probe(context, distance, pairs, 16, trial, 0, FILLER, RESERVED)
    assert ids.shape == (context,)
    assert ids.dtype == np.int64
    assert position == context - 1
    prompt = ids[:position]
    assert prompt[0] == BOS
    assert prompt[-2] == MARKER
    assert prompt[-distance] == prompt[-1]  # the asked key, where it was shown
    assert prompt[-distance - 1] == MARKER
    assert prompt[-distance + 1] == answer == ids[position]
    shown = shown_pairs(prompt[:-2])
    assert len(shown) == pairs
    places = [place for place, *_ in shown]
    assert np.diff(places).tolist() == [PAIR_TOKENS] * (pairs - 1)
    assert len({key for _, key, _ in shown}) == len({value for *_, value in shown}) == pairs
    key_ids, value_ids = alphabet(RESERVED, 16)
    assert {key for _, key, _ in shown} <= set(key_ids.tolist())
    assert {value for *_, value in shown} <= set(value_ids.tolist())


@pytest.mark.parametrize("distance", [3, 62, 64])
def test_a_distance_that_cannot_be_is_refused(distance: int) -> None:
    """Guards against a question whose answer was never shown."""
    assert distance_range(64, 2) == (4, 61)
    with pytest.raises(SpecError, match=rf"distance: {distance} .*use 4 to 61"):
        probe(64, distance, 2, 16, 0, 0, FILLER, RESERVED)


def test_pairs_that_do_not_fit_have_no_distance() -> None:
    """Guards against an endless or empty grid of distances."""
    assert distance_range(22, 5) is None
    with pytest.raises(SpecError, match="do not fit"):
        probe(22, 5, 5, 16, 0, 0, FILLER, RESERVED)


def test_trials_differ_and_the_asked_pair_moves() -> None:
    """Guards against ten trials of one question, or an answer that is always the first pair."""
    made = [probe(128, 60, 4, 16, t, 0, FILLER, RESERVED) for t in range(60)]
    assert len({ids.tobytes() for ids, *_ in made}) == 60
    places = {[key for _, key, _ in shown_pairs(ids[:-3])].index(int(ids[-2])) for ids, *_ in made}
    assert places == {0, 1, 2, 3}
    assert len({answer for _, answer, _ in made}) > 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pairs": (2, 17)}, "pairs"),
        ({"pairs": (0, 2)}, "pairs"),
        ({"filler_share": (0.2, 1.0)}, "filler_share"),
        ({"filler_longest_tokens": 0}, "filler_longest_tokens"),
        ({"keys": 400}, "keys"),
    ],
)
def test_specs_that_make_no_document_name_the_key(changes: dict, message: str) -> None:
    """Guards against an endless loop or an exception from deep inside numpy."""
    with pytest.raises(SpecError, match=message):
        document(corpus(**changes), 0, FILLER, RESERVED)


@given(st.integers(4, 400), st.integers(1, 4), st.integers(1, 3), st.integers(0, 50))
def test_shortest_prompt_is_shortest_and_shows_the_answer_as_often_as_said(
    distance: int, pairs: int, shown: int, trial: int
) -> None:
    """Guards against a distance that is not the one named, or a prompt padded without need."""
    context = shortest_context(distance, pairs, shown=shown)
    ids, answer, position = probe(
        context, distance, pairs, 16, trial, 0, FILLER, RESERVED, shown=shown
    )
    assert len(ids) == context
    assert position == context - 1
    assert ids[-1] == answer
    prompt = ids[:-1]
    asked = prompt[-1]
    assert prompt[-distance] == asked
    assert prompt[-distance + 1] == answer
    markers = np.flatnonzero(prompt[:-2] == MARKER)
    assert len(markers) == pairs * shown
    assert (prompt[markers + 1] == asked).sum() == shown
    limits = distance_range(context - 1, pairs, shown=shown)
    assert limits is None or distance > limits[1]
