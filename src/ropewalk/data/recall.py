"""Synthetic recall: marked key-value pairs in a stream, and keys asked for again later.

Everything is built from token ids. A pair is three tokens: marker, key, value. None of them occurs
in text: the marker is the tokenizer's EOS, keys and values are tokens it reserves. In training
documents keys come back with the value they were first shown with; a probe shows pairs once or
more, then filler, then the marker and one of the keys: the model has to answer with its value.
"""

import numpy as np

from ropewalk.base.rng import generator
from ropewalk.base.spec import SpecError
from ropewalk.data.spec import RecallCorpus
from ropewalk.data.tokens import Tokens

BOS = 0  # ids of the tokenizers trained here; the tokenize stage refuses others
MARKER = 1
FIRST_RESERVED = 2
PAIR_TOKENS = 3
MINIMUM_DISTANCE = 4  # key, value, marker, asked key: the pair right before the question
FILLER_TOKENS = 1 << 22  # how much of a corpus filler is cut from


def alphabet(reserved_tokens: int, keys: int) -> tuple[np.ndarray, np.ndarray]:
    """Return `(key ids, value ids)`, int64 [keys] each, disjoint.

    They are the tokenizer's reserved tokens, which no text contains: a key that also stood in the
    filler would be a second, wrong clue, and models of a million parameters drown in those.

    Raises:
        SpecError: if the tokenizer reserves too few.
    """
    if not 0 < 2 * keys <= reserved_tokens:
        raise SpecError(
            f"keys: {keys} keys and as many values need {2 * keys} reserved tokens; the tokenizer "
            f"has {reserved_tokens}: raise its reserved_tokens"
        )
    ids = FIRST_RESERVED + np.arange(2 * keys, dtype=np.int64)
    return ids[0::2], ids[1::2]


def filler_of(tokens: Tokens, limit: int = FILLER_TOKENS) -> np.ndarray:
    """Return the first `limit` tokens of a corpus as one int64 array, without BOS and marker.

    Raises:
        SpecError: if nothing is left.
    """
    pieces, total = [np.empty(0, dtype=np.int64)], 0
    for index in range(tokens.count):
        if total >= limit:
            break
        ids = tokens.document(index).astype(np.int64)
        ids = ids[(ids != BOS) & (ids != MARKER)][: limit - total]
        pieces.append(ids)
        total += len(ids)
    if not total:
        raise SpecError("filler: the corpus has no tokens to cut filler from")
    return np.concatenate(pieces)


def document(
    spec: RecallCorpus, index: int, filler: np.ndarray, reserved_tokens: int
) -> np.ndarray:
    """Return recall document `index`: int64 [spec.length_tokens], a pure function of its arguments.

    The stream is a sequence of elements: with a probability drawn from `filler_share` a piece of
    filler, otherwise one of the document's pairs, drawn evenly, or, in a share `copy_share` of the
    documents, always the same segment of random tokens. It is cut at `length_tokens`, in
    the middle of an element if need be. Lengths of filler are log-uniform, so that keys are asked
    for again at every distance, mostly short ones: without these, small models never start to
    retrieve.

    Raises:
        SpecError: if the pairs or the alphabet do not fit.
    """
    least, most = spec.pairs
    if not 1 <= least <= most <= spec.keys:
        raise SpecError(f"pairs: {spec.pairs} must be a range within 1 and keys = {spec.keys}")
    low, high = spec.filler_share
    if not 0 <= low <= high < 1 or spec.filler_longest_tokens < 1:
        raise SpecError(
            f"filler_share {spec.filler_share} must be a range within [0, 1) and "
            f"filler_longest_tokens {spec.filler_longest_tokens} be at least 1"
        )
    if not 0 <= spec.copy_share <= 1 or not 2 <= spec.copy_tokens[0] <= spec.copy_tokens[1]:
        raise SpecError(
            f"copy_share {spec.copy_share} must lie within [0, 1] and copy_tokens "
            f"{spec.copy_tokens} be a range from 2 on"
        )
    rng = generator(spec.seed, "recall", index)
    if generator(spec.seed, "recall or copy", index).random() < spec.copy_share:
        table = _segment(spec, rng, filler)
    else:
        table = _pairs(spec, rng, reserved_tokens)
    shown, shown_tokens = table.shape
    # Every element has a token at least, so `length` of them are always enough.
    length = spec.length_tokens
    is_filler = rng.random(length) < rng.uniform(low, high)
    lengths = np.exp(rng.uniform(0, np.log(spec.filler_longest_tokens + 1), length))
    sizes = np.where(is_filler, lengths.astype(np.int64), shown_tokens)
    which = rng.integers(shown, size=length)
    begins = rng.integers(len(filler), size=length)
    # token -> its element and its place inside the element
    ends = np.cumsum(sizes)
    places = np.arange(length)
    element = np.searchsorted(ends, places, side="right")
    inside = places - (ends - sizes)[element]
    text = filler.take(begins[element] + inside, mode="wrap")
    again = table[which[element], np.minimum(inside, shown_tokens - 1)]
    return np.where(is_filler[element], text, again).astype(np.int64)


def _pairs(spec: RecallCorpus, rng: np.random.Generator, reserved_tokens: int) -> np.ndarray:
    """Return the pairs of one document: int64 [pairs, 3]."""
    keys, values = alphabet(reserved_tokens, spec.keys)
    pairs = int(rng.integers(spec.pairs[0], spec.pairs[1] + 1))
    return np.stack(
        [
            np.full(pairs, MARKER),
            rng.choice(keys, pairs, replace=False),
            rng.choice(values, pairs, replace=False),
        ],
        axis=1,
    )


def _segment(spec: RecallCorpus, rng: np.random.Generator, filler: np.ndarray) -> np.ndarray:
    """Return what a copying document repeats: int64 [1, tokens], as frequent as in the corpus."""
    least, most = spec.copy_tokens
    size = int(np.exp(rng.uniform(np.log(least), np.log(most + 1))))
    return filler[rng.integers(len(filler), size=(1, min(size, most)))].astype(np.int64)


def distance_range(
    context_tokens: int, pairs: int, bos: int | None = BOS, shown: int = 1
) -> tuple[int, int] | None:
    """Return the smallest and largest distance a probe can have; each between them is possible too.

    None if the pairs do not fit the context.
    """
    opening = 0 if bos is None else 1
    question = 3  # marker, asked key, answer
    slack = 2 * (PAIR_TOKENS - 1)  # what may be left over on both sides of whole pairs
    if opening + PAIR_TOKENS * pairs * shown + slack + question > context_tokens:
        return None
    before = PAIR_TOKENS * pairs * (shown - 1)  # earlier showings stand before the one that counts
    return MINIMUM_DISTANCE, context_tokens - 2 - opening - before


def shortest_context(distance: int, pairs: int, bos: int | None = BOS, shown: int = 1) -> int:
    """Return the fewest tokens a probe with this distance can have, prompt and answer."""
    context = distance + 3
    while True:
        limits = distance_range(context, pairs, bos, shown)
        if limits is not None and distance <= limits[1]:
            return context
        context += 1


def probe(
    context_tokens: int,
    distance: int,
    pairs: int,
    keys: int,
    trial: int,
    seed: int,
    filler: np.ndarray,
    reserved_tokens: int,
    bos: int | None = BOS,
    shown: int = 1,
) -> tuple[np.ndarray, int, int]:
    """Return `(ids, answer, position)` of one question.

    ids: int64 [context_tokens] = BOS, filler, `pairs` adjacent pairs `shown` times over, filler,
    marker, asked key, answer. The prompt is all but the last token; `position` = context_tokens - 1
    is where the answer stands. `distance` is the number of tokens from the asked key where it was
    last shown (inclusive) to the end of the prompt: prompt[-distance] is that key. Where among the
    pairs it stands is drawn from the places that fit.

    Raises:
        SpecError: if `distance` is not in `distance_range`.
    """
    limits = distance_range(context_tokens, pairs, bos, shown)
    if limits is None or not limits[0] <= distance <= limits[1]:
        raise SpecError(
            f"distance: {distance} with {pairs} pairs in a context of {context_tokens} tokens; "
            + (f"use {limits[0]} to {limits[1]}" if limits else "the pairs do not fit")
        )
    key_ids, value_ids = alphabet(reserved_tokens, keys)
    if not 1 <= pairs <= keys or shown < 1:
        raise SpecError(
            f"pairs: {pairs} must lie within 1 and keys = {keys}, shown: {shown} be at least 1"
        )
    rng = generator(seed, "recall-probe", distance, trial)
    shown_keys = rng.choice(key_ids, pairs, replace=False)
    shown_values = rng.choice(value_ids, pairs, replace=False)
    prompt = context_tokens - 1
    opening = 0 if bos is None else 1
    marker = prompt - distance - 1  # place of the asked pair
    most_before = (marker - opening) // PAIR_TOKENS - pairs * (shown - 1)
    most_after = (prompt - 2 - (marker + PAIR_TOKENS)) // PAIR_TOKENS
    asked = int(rng.integers(max(0, pairs - 1 - most_after), min(pairs - 1, most_before) + 1))

    ids = filler.take(rng.integers(len(filler)) + np.arange(context_tokens), mode="wrap")
    ids = ids.astype(np.int64)
    if bos is not None:
        ids[0] = bos
    once = np.stack([np.full(pairs, MARKER), shown_keys, shown_values], axis=1).ravel()
    block = np.tile(once, shown)
    start = marker - PAIR_TOKENS * (asked + pairs * (shown - 1))
    ids[start : start + len(block)] = block
    ids[-3:] = MARKER, shown_keys[asked], shown_values[asked]
    return ids, int(shown_values[asked]), prompt
