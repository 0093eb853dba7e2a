"""Stage `pack`: the windows of a mixture, as an index into the tokens of its corpora."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ropewalk.base.files import write_json
from ropewalk.base.rng import generator
from ropewalk.base.stage import Job, StageError
from ropewalk.data import frequency, packing
from ropewalk.data.frequency import STATISTICS
from ropewalk.data.packing import Cut
from ropewalk.data.spec import PackJob
from ropewalk.data.tokens import Tokens
from ropewalk.data.windows import WINDOWS, write_index

_BLOCK = 1 << 22  # pieces


@dataclasses.dataclass(frozen=True, kw_only=True)
class Statistics:
    """What became of a corpus, or of several together.

    Tokens of the corpus = `tokens` + `unused_tokens` + `dropped_tokens`. Under `per_document`,
    `tokens` are those of whole documents, of which an example reads a window.
    """

    documents: int  # of the corpus
    documents_cut: int  # in more than one window, or with a part in none
    documents_dropped: int  # with tokens, but none of them in a window
    windows: int  # taken for the mixture
    tokens: int  # in the windows taken
    prompt_tokens: int  # of these, how many are no training targets
    padding_tokens: int  # places of the windows taken that hold no token
    unused_tokens: int  # in windows not taken
    dropped_tokens: int  # in no window
    position_frequency: np.ndarray  # int64 [length_tokens]: see `frequency`; of the windows taken

    def counts(self) -> dict[str, int]:
        """Return everything but the position frequency."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del fields["position_frequency"]
        return fields

    def brief(self) -> dict[str, Any]:
        """Return what the manifest has: the counts, and shares of the position frequency."""
        return {**self.counts(), "position_shares": frequency.shares(self.position_frequency)}

    def full(self) -> dict[str, Any]:
        """Return what the file of statistics has."""
        return {
            **self.counts(),
            "position_frequency": {
                "length_tokens": len(self.position_frequency),
                "f": self.position_frequency.tolist(),
                "shares": frequency.shares(self.position_frequency),
            },
        }


def work(job: Job) -> tuple[list[Path], dict[str, Any]]:
    """Cut every corpus on its own, draw windows by the weights, write index and statistics.

    Raises:
        StageError: if a corpus has no window of this length, or none of its windows is taken.
    """
    spec: PackJob = job.spec
    policy, length = spec.windows.policy, spec.length_tokens
    names = [share.corpus for share in spec.windows.mixture]
    if len(set(names)) < len(names):
        raise StageError(f"windows.mixture: a corpus is listed twice in {', '.join(names)}")
    inputs = job.many("tokens")
    for name in names:
        if name not in inputs:
            raise StageError(f"pack: input 'tokens:{name}' is missing for windows.mixture")
    corpora = [Tokens(inputs[name]) for name in names]
    cuts = [_cut(name, tokens, policy, length) for name, tokens in zip(names, corpora, strict=True)]
    counts = _counts(names, cuts, [share.weight for share in spec.windows.mixture])
    taken = []
    for name, cut, count in zip(names, cuts, counts, strict=True):
        rng = generator(spec.windows.seed, f"windows/{name}")
        chosen = packing.draw(policy, cut.count, count, rng)
        taken.append(cut if chosen is None else cut.take(chosen))
    index = job.folder / WINDOWS
    write_index(index, [(part, tokens.begins) for part, tokens in zip(taken, corpora, strict=True)])
    by_corpus = {
        name: statistics(tokens, cut, part, policy, length)
        for name, tokens, cut, part in zip(names, corpora, cuts, taken, strict=True)
    }
    total = _sum(by_corpus.values())
    file = job.folder / STATISTICS
    write_json(
        file,
        {
            "length_tokens": length,
            "policy": policy,
            "total": total.full(),
            "by_corpus": {name: found.full() for name, found in by_corpus.items()},
        },
    )
    print(
        f"pack: {total.windows} windows of {length} tokens, {total.padding_tokens} tokens of "
        f"padding, {total.documents_cut} of {total.documents} documents cut, "
        f"{total.dropped_tokens} tokens dropped",
        flush=True,
    )
    return [index, file], {
        "length_tokens": length,
        **total.brief(),
        "by_corpus": {name: found.brief() for name, found in by_corpus.items()},
    }


def _cut(name: str, tokens: Tokens, policy: str, length_tokens: int) -> Cut:
    lengths = tokens.lengths
    cut = packing.POLICIES[policy](lengths, length_tokens)
    if not cut.count:
        raise StageError(
            f"windows.mixture: corpus {name!r} has no window of {length_tokens} tokens (its "
            f"{tokens.count} documents have {tokens.total} tokens, the longest "
            f"{lengths.max(initial=0)}); use a shorter length_tokens or a larger corpus"
        )
    return cut


def _counts(names: list[str], cuts: list[Cut], weights: list[float]) -> list[int]:
    try:
        counts = packing.shares([cut.count for cut in cuts], weights)
    except ValueError as error:
        raise StageError(f"windows.mixture: {error}") from None
    for name, count, weight in zip(names, counts, weights, strict=True):
        if not count:
            raise StageError(
                f"windows.mixture: weight {weight} leaves corpus {name!r} no window among "
                f"{sum(counts)}; give the smallest corpus more documents or {name!r} more weight"
            )
    return counts


def statistics(tokens: Tokens, cut: Cut, taken: Cut, policy: str, length_tokens: int) -> Statistics:
    """Return the statistics of one corpus: `cut` are all its windows, `taken` those of the mixture.

    Segments, for the position frequency, are what the loader gives as boundaries: pieces under
    `documents`, whole windows under the other policies.
    """
    if policy == "documents":
        segments = frequency.histogram(taken.length, length_tokens)
    else:
        segments = np.zeros(length_tokens + 1, dtype=np.int64)
        segments[length_tokens] = taken.count
    used = taken.tokens
    return Statistics(
        documents=tokens.count,
        documents_cut=cut.documents_cut,
        documents_dropped=cut.documents_dropped,
        windows=taken.count,
        tokens=used,
        prompt_tokens=_prompt_tokens(tokens.prompts, taken),
        padding_tokens=max(0, taken.count * length_tokens - used),
        unused_tokens=cut.tokens - used,
        dropped_tokens=cut.dropped_tokens,
        position_frequency=frequency.position_frequency(segments),
    )


def _prompt_tokens(prompts: np.ndarray, taken: Cut) -> int:
    total = 0
    if prompts.any():
        for begin in range(0, len(taken.document), _BLOCK):
            block = slice(begin, begin + _BLOCK)
            inside = prompts[taken.document[block]] - taken.start[block]
            total += int(np.clip(inside, 0, taken.length[block]).sum(dtype=np.int64))
    return total


def _sum(parts: Iterable[Statistics]) -> Statistics:
    values: list[Mapping[str, Any]] = [vars(part) for part in parts]
    return Statistics(**{key: sum(v[key] for v in values) for key in values[0]})
