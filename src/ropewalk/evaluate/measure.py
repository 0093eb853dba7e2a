"""Applying a protocol to snapshots of a model, block by block, so that a killed one goes on.

The library under the stage and under `ropewalk evaluate`: it knows folders with weights, not
manifests.
"""

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ropewalk.base.files import read_json, write_json
from ropewalk.base.stage import StageError
from ropewalk.data.encoding import LoadedTokenizer
from ropewalk.data.tokens import Tokens
from ropewalk.evaluate import cost
from ropewalk.evaluate.plan import Plan, Prompts, Replies
from ropewalk.evaluate.sampling import chooser
from ropewalk.evaluate.scorer import SCORER_VERSION, Scores, at_once, score
from ropewalk.evaluate.spans import Spans
from ropewalk.evaluate.spec import EvaluateJob, Harness, Losses
from ropewalk.evaluate.store import Blocks, cut, lengths_of, write_scores
from ropewalk.model.decode import NotFiniteError
from ropewalk.model.reader import Reader
from ropewalk.model.readers import depends_on_length, device_of, open_reader

Json = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """What an evaluation found."""

    snapshots: Mapping[str, Json]  # step -> numbers, as they stand in `result.json`
    flops: int | None  # modelled, of all snapshots; None where the architecture is not counted
    tokens_read: int
    tokens_scored: int
    seconds: float  # measured, of all attempts
    sources: Mapping[int, Mapping[str, list[Path]]]  # step -> label -> blocks of scores
    documents: Sequence[str]

    def write_scores(self, path: Path, blocks: Blocks) -> int:
        """Write the scores of every snapshot and label into one Arrow file; return its rows."""
        labels = list(next(iter(self.sources.values()), {}))

        def pieces() -> Iterator[tuple[int, int, Scores]]:
            for step, by_label in self.sources.items():
                for number, label in enumerate(labels):
                    yield step, number, blocks.scores(by_label[label])

        return write_scores(path, pieces(), labels, self.documents)


def key(spec: EvaluateJob, **contents: str) -> Json:
    """Return all that the scores depend on; `contents` are digests of weights, tokenizer, data."""
    from ropewalk.base.canonical import plain

    return {
        **contents,
        "protocol": plain(spec.protocol),
        "rope": plain(spec.rope),
        "numerics": plain(spec.numerics),
        "seed": spec.seed,
        "scorer": SCORER_VERSION,
    }


def measure(
    spec: EvaluateJob,
    folders: Mapping[int, Path],
    tokens: Tokens,
    tokenizer: LoadedTokenizer,
    blocks: Blocks,
    module: Any,
) -> Found:
    """Score or answer whatever has no block yet; return the numbers of every snapshot.

    `folders` maps steps to Hugging Face folders, in the order they are measured; `module` is the
    one that knows the protocol (`spec.protocol_module`).

    Raises:
        StageError: if inputs, rope, device and protocol do not fit each other, or if cases are
            lost that the protocol does not allow to be.
    """
    if isinstance(spec.protocol, Harness):
        return _harness(spec, folders, tokenizer, blocks, module)
    planned = plan_of(spec, list(folders.values())[-1], tokens, tokenizer, module)
    work = {label: cut(lengths_of(asked)) for label, asked in _asked(planned)}
    paths = {
        step: {
            label: [blocks.path(step, label, number) for number in range(len(pieces))]
            for label, pieces in work.items()
        }
        for step in folders
    }
    asked = dict(_asked(planned))
    sizes = {label: lengths_of(wanted) for label, wanted in asked.items()}
    progress = cost.Progress(planned, len(folders))
    for step, folder in folders.items():
        todo = []
        for label, pieces in work.items():
            for piece, path in zip(pieces, paths[step][label], strict=True):
                if not path.is_file():
                    todo.append((label, piece, path))
                    continue
                if label in planned.spans:  # what lies there may have been allowed to be lost
                    _non_finite(spec, planned, str(folder), label, blocks.scores([path]))
                progress.skip(sum(sizes[label][piece]))
        if not todo:
            continue
        # Longest sequences first, so that memory fails early; blocks know nothing of each other.
        todo.sort(key=lambda item: -max(sizes[item[0]][item[1]], default=0))
        with reader_of(spec, folder, step) as reader:
            refuse_other_vocabulary(reader, tokenizer)
            flops = cost.flops(reader, planned)
            write_json(blocks.note("flops"), flops)
            progress.start(reader, flops, snapshots=len(folders))
            for label, piece, path in todo:
                clock = time.monotonic()
                block = _block(spec, reader, planned, asked[label], piece)
                blocks.write(path, block, time.monotonic() - clock)
                if isinstance(block, Scores):
                    _non_finite(spec, planned, str(folder), label, block)
                progress.add(step, sum(sizes[label][piece]))
    one = read_json(blocks.note("flops"))  # of a snapshot: all have one architecture
    numbers = {
        str(step): _summary(spec, planned, paths[step], blocks, str(folder))
        for step, folder in folders.items()
    }
    every = [path for by_label in paths.values() for found in by_label.values() for path in found]
    return Found(
        snapshots=numbers,
        flops=None if one is None else one * len(folders),
        tokens_read=planned.tokens * len(folders),
        tokens_scored=planned.scored * len(folders),
        seconds=blocks.seconds(every),
        sources={
            step: {label: by_label[label] for label in planned.spans}
            for step, by_label in paths.items()
        },
        documents=planned.documents,
    )


def plan_of(
    spec: EvaluateJob, folder: Path, tokens: Tokens, tokenizer: LoadedTokenizer, module: Any
) -> Plan:
    """Return what the protocol asks of a model; what is lost must be allowed to be."""
    protocol = spec.protocol
    settings = {}
    if isinstance(protocol, Losses):
        settings["depends_on_length"] = depends_on_length(folder, spec.rope)
    planned: Plan = module.plan(protocol, spec.seed, tokens, tokenizer, **settings)
    lost = (
        ("dropped", planned.dropped, "could not be made"),
        ("truncated", planned.truncated, "were cut"),
    )
    for outcome, cases, what in lost:
        if cases and outcome not in protocol.allow:
            some = "; ".join(cases[:3]) + ("; ..." if len(cases) > 3 else "")
            raise StageError(
                f"protocol {protocol.kind}: {len(cases)} cases {what}: {some}. Change the "
                f"protocol, or add '{outcome}' to protocol.allow to have them counted and left out"
            )
    return planned


def _asked(planned: Plan) -> list[tuple[str, Spans | Prompts]]:
    twice = set(planned.spans) & set(planned.prompts)
    assert not twice, f"labels {sorted(twice)} name both spans and prompts"
    return [*planned.spans.items(), *planned.prompts.items()]


def _block(
    spec: EvaluateJob, reader: Reader, planned: Plan, asked: Spans | Prompts, piece: slice
) -> Scores | Replies:
    if isinstance(asked, Spans):
        return score(
            reader,
            asked[piece],
            planned.document,
            opening=planned.opening,
            sequences=spec.sequences_per_forward,
            first_window=piece.start,
        )
    return _replies(spec, reader, asked, piece)


@torch.inference_mode()
def _replies(spec: EvaluateJob, reader: Reader, prompts: Prompts, piece: slice) -> Replies:
    """Decode the answers of some prompts, those of one length together."""
    rows = list(range(*piece.indices(len(prompts))))
    found: dict[int, Any] = {}
    for length in sorted({len(prompts.ids[row]) for row in rows}, reverse=True):
        same = [row for row in rows if len(prompts.ids[row]) == length]
        size = at_once(spec.sequences_per_forward, length + prompts.new_tokens)
        for begin in range(0, len(same), size):
            batch = same[begin : begin + size]
            ids = torch.stack([torch.from_numpy(prompts.ids[row]) for row in batch])
            try:
                answers = reader.generate(
                    ids.to(reader.device),
                    prompts.new_tokens,
                    chooser(prompts, batch, spec.seed),
                    prompts.stop,
                )
            except NotFiniteError as error:
                name = prompts.names[batch[error.row]]
                raise StageError(f"{reader.name}, {name}: {error}") from None
            found.update(zip(batch, answers, strict=True))
    return Replies(ids=[found[row] for row in rows])


def _summary(
    spec: EvaluateJob,
    planned: Plan,
    paths: Mapping[str, list[Path]],
    blocks: Blocks,
    name: str,
) -> Json:
    """Return the numbers of one snapshot with its counted outcomes."""
    scores = {label: blocks.scores(paths[label]) for label in planned.spans}
    lost = sum(_non_finite(spec, planned, name, *found) for found in scores.items())
    replies = {label: blocks.replies(paths[label]) for label in planned.prompts}
    return {
        **planned.summarise(scores, replies),
        "outcomes": {
            "sequences": planned.sequences,
            "scored_tokens": planned.scored,
            "non_finite": lost,
            "dropped": len(planned.dropped),
            "truncated": len(planned.truncated),
        },
    }


def _non_finite(spec: EvaluateJob, planned: Plan, name: str, label: str, scores: Scores) -> int:
    """Return how many losses are not finite.

    Raises:
        StageError: if there is one and the protocol does not allow that.
    """
    import numpy as np

    lost = np.flatnonzero(~np.isfinite(scores.nll))
    if len(lost) and "non_finite" not in spec.protocol.allow:
        allowed = isinstance(spec.protocol, Losses)
        raise StageError(
            f"{name}: {len(lost)} losses are not finite, the first is that of document "
            f"{planned.documents[int(scores.document[lost[0]])]!r} at position "
            f"{int(scores.position[lost[0]])} after {int(scores.preceding[lost[0]])} tokens "
            f"({label}): the weights or numerics.precision overflow there; evaluate in fp32 or "
            "bf16, or look at the loss curve of the run"
            + (
                "; or add 'non_finite' to protocol.allow to have them counted and left out"
                if allowed
                else ""
            )
        )
    return len(lost)


def reader_of(spec: EvaluateJob, folder: Path, step: int) -> Any:
    """Open the weights of a snapshot as an evaluation reads them, see `open_reader`."""
    return open_reader(
        folder,
        rope=spec.rope,
        numerics=spec.numerics,
        device=device_of(spec.device),
        name=f"{folder} (step {step})",
    )


def refuse_other_vocabulary(reader: Reader, tokenizer: LoadedTokenizer) -> None:
    """Raise StageError for a model that does not know every token of the tokenizer."""
    if reader.vocabulary_size < tokenizer.vocabulary_size:
        raise StageError(
            f"{reader.name} has a vocabulary of {reader.vocabulary_size}, the tokenizer one of "
            f"{tokenizer.vocabulary_size}: the run was made for another tokenizer"
        )


def _harness(
    spec: EvaluateJob,
    folders: Mapping[int, Path],
    tokenizer: LoadedTokenizer,
    blocks: Blocks,
    module: Any,
) -> Found:
    """Run other people's tasks, one snapshot after the other; each is a block."""
    numbers = {}
    seconds = 0.0
    for step, folder in folders.items():
        path = blocks.note(f"{step}-harness")
        if not path.is_file():
            clock = time.monotonic()
            with reader_of(spec, folder, step) as reader:
                found = module.run(
                    spec.protocol,
                    reader,
                    tokenizer,
                    seed=spec.seed,
                    work_folder=path.parent,
                    sequences=spec.sequences_per_forward,
                )
            write_json(path, {"found": found, "seconds": time.monotonic() - clock})
        block = read_json(path)
        numbers[str(step)] = block["found"]
        seconds += block["seconds"]
    return Found(
        snapshots=numbers,
        flops=None,
        tokens_read=0,
        tokens_scored=0,
        seconds=seconds,
        sources={},
        documents=(),
    )
