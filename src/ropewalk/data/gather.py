"""Stage `gather`: the parts of a corpus become its tokens, one manifest over all shards.

Nothing is copied: the parts lie in the folder of the tokens, and their shards were hashed when they
were written and when this stage checked its inputs.
"""

import os
from pathlib import PurePosixPath
from typing import Any

from ropewalk.base.manifest import File, Manifest
from ropewalk.base.stage import Job, StageError
from ropewalk.data.spec import GatherJob
from ropewalk.data.tally import Tally

_SAME = ("vocabulary_size", "dtype", "opening", "closing")


def work(job: Job) -> tuple[list[File], dict[str, Any]]:
    """List the shards of all parts in order and add up what was counted.

    Raises:
        StageError: if a part is missing or made otherwise than the rest, no document is left, or
            more records are damaged than the corpus allows.
    """
    spec: GatherJob = job.spec
    parts = [manifest for _, manifest in sorted(job.many("part").items())]
    if [part.spec.get("part", 0) for part in parts] != list(range(spec.parts)):
        raise StageError(
            f"gather: parts 0 to {spec.parts - 1} are needed, each once and in order; there are "
            f"{[part.spec.get('part', 0) for part in parts]}"
        )
    first = parts[0]
    for part in parts[1:]:
        _check_alike(first, part)
    tally = Tally.sum(Tally.of_facts(part.result) for part in parts)
    tally.check_damage(spec.damaged_limit)
    if not tally.documents:
        raise StageError(_nothing(first, tally))
    files, shards = [], []
    for part in parts:
        below = _below(job, part)
        files += [
            File(path=f"{below}/{f.path}", bytes=f.bytes, sha256=f.sha256) for f in part.files
        ]
        shards += [{**s, "file": f"{below}/{s['file']}"} for s in part.result["shards"]]
    print(
        f"gather: {tally.documents} documents, {tally.tokens} tokens in {len(shards)} shards, "
        f"{tally.skipped.total()} records skipped",
        flush=True,
    )
    return files, {
        **tally.facts(),
        "shards": shards,
        "limit_reached": any(part.result["limit_reached"] for part in parts),
        "engine": first.result["engine"],
        **{key: first.result[key] for key in _SAME},
    }


def _check_alike(first: Manifest, part: Manifest) -> None:
    def made(manifest: Manifest) -> Any:
        spec = {key: value for key, value in manifest.spec.items() if key != "part"}
        return spec, dict(manifest.inputs), [manifest.result[key] for key in _SAME]

    if made(first) != made(part):
        raise StageError(
            f"gather: {part.folder} was made from another corpus, tokenizer or source than "
            f"{first.folder}; run snakemake again: it makes what differs"
        )


def _nothing(first: Manifest, tally: Tally) -> str:
    causes = ", ".join(f"{n} {cause}" for cause, n in sorted(tally.skipped.items())) or "none found"
    corpus = first.spec["corpus"]
    if "source" not in corpus:
        return f"corpus: no document is left: corpus.documents is {corpus.get('documents')}"
    return (
        f"corpus: no document is left of split {corpus['split']!r} of source {corpus['source']!r} "
        f"({causes}); check corpus.split, corpus.subsets and corpus.minimum_tokens = "
        f"{corpus.get('minimum_tokens', 0)}"
    )


def _below(job: Job, part: Manifest) -> str:
    """Return the part's folder relative to the folder of the tokens."""
    below = os.path.relpath(part.folder.resolve(), job.folder.resolve())
    if PurePosixPath(below).parts[:1] in (("..",), ()):
        raise StageError(f"gather: {part.folder} must lie below {job.folder}, as its parts")
    return below
