"""Stage `pack`: the windows of a mixture, as an index into the tokens of its corpora."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ropewalk.base.files import replacing
from ropewalk.base.stage import Job, StageError
from ropewalk.data.packing import POLICIES, Cut, shares
from ropewalk.data.shards import Tokens
from ropewalk.data.spec import PackJob
from ropewalk.data.windows import SCHEMA, WINDOWS

_BATCH_ROWS = 65_536


def work(job: Job) -> tuple[list[Path], dict[str, Any]]:
    """Cut every corpus on its own, take windows in corpus order by the weights, write the index.

    The result's counts satisfy, for each corpus: tokens of the corpus = `tokens` (in the windows
    taken) + `unused_tokens` (in windows not taken) + `dropped_tokens` (in no window).

    Raises:
        StageError: if a corpus has no window of this length, or none of its windows is taken.
    """
    spec: PackJob = job.spec
    mixture = spec.windows.mixture
    names = [share.corpus for share in mixture]
    if len(set(names)) < len(names):
        raise StageError(f"windows.mixture: a corpus is listed twice in {', '.join(names)}")
    inputs = job.many("tokens")
    cuts = []
    for name in names:
        if name not in inputs:
            raise StageError(f"pack: input 'tokens:{name}' is missing for windows.mixture")
        lengths = Tokens(inputs[name]).lengths
        cut = POLICIES[spec.windows.policy](lengths, spec.length_tokens)
        if not cut.count:
            raise StageError(
                f"windows.mixture: corpus {name!r} has no window of {spec.length_tokens} tokens "
                f"(its {len(lengths)} documents have {lengths.sum()} tokens, the longest "
                f"{lengths.max(initial=0)}); use a shorter length_tokens or a larger corpus"
            )
        cuts.append(cut)
    taken = _take(names, cuts, [share.weight for share in mixture])
    file = job.folder / WINDOWS
    _write(file, taken)
    by_corpus = {
        name: _statistics(cut, part, spec.length_tokens)
        for name, cut, part in zip(names, cuts, taken, strict=True)
    }
    totals = {key: sum(s[key] for s in by_corpus.values()) for key in by_corpus[names[0]]}
    print(f"pack: {totals['rows']} windows of {spec.length_tokens} tokens", flush=True)
    return [file], {"length_tokens": spec.length_tokens, **totals, "by_corpus": by_corpus}


def _take(names: list[str], cuts: list[Cut], weights: list[float]) -> list[Cut]:
    try:
        counts = shares([cut.count for cut in cuts], weights)
    except ValueError as error:
        raise StageError(f"windows.mixture: {error}") from None
    for name, count, weight in zip(names, counts, weights, strict=True):
        if not count:
            raise StageError(
                f"windows.mixture: weight {weight} leaves corpus {name!r} no window among "
                f"{sum(counts)}; give the smallest corpus more documents or {name!r} more weight"
            )
    return [cut.first(count) for cut, count in zip(cuts, counts, strict=True)]


def _statistics(cut: Cut, taken: Cut, length_tokens: int) -> dict[str, int]:
    tokens = int(taken.length.sum())
    filled = np.add.reduceat(taken.length, taken.rows[:-1])
    return {
        "rows": taken.count,
        "tokens": tokens,
        "unused_tokens": int(cut.length.sum()) - tokens,
        "dropped_tokens": cut.dropped_tokens,
        "padding_tokens": int(np.maximum(length_tokens - filled, 0).sum()),
        "documents_cut": cut.documents_cut,
    }


def _write(file: Path, taken: list[Cut]) -> None:
    with replacing(file) as partial, pa.ipc.new_file(str(partial), SCHEMA) as sink:
        for corpus, cut in enumerate(taken):
            for begin in range(0, cut.count, _BATCH_ROWS):
                rows = cut.rows[begin : begin + _BATCH_ROWS + 1]
                pieces = slice(int(rows[0]), int(rows[-1]))
                offsets = pa.array(rows - rows[0], pa.int32())
                columns = zip(
                    (cut.document, cut.start, cut.length),
                    (pa.int32(), pa.int64(), pa.int32()),
                    strict=True,
                )
                lists = [
                    pa.ListArray.from_arrays(offsets, pa.array(values[pieces], kind))
                    for values, kind in columns
                ]
                corpora = pa.array(np.full(len(rows) - 1, corpus), pa.int32())
                sink.write_batch(pa.record_batch([corpora, *lists], schema=SCHEMA))
