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
from ropewalk.evaluate.scorer import SCORER_VERSION, Scores, score
from ropewalk.evaluate.spans import Spans
from ropewalk.evaluate.spec import EvaluateJob, Harness, Losses
from ropewalk.evaluate.store import Blocks, cut, lengths_of, write_scores
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
    planned = _plan(spec, list(folders.values())[-1], tokens, tokenizer, module)
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
                if path.is_file():
                    progress.skip(sum(sizes[label][piece]))
                else:
                    todo.append((label, piece, path))
        if not todo:
            continue
        with _reader(spec, folder, step) as reader:
            _refuse_other_vocabulary(reader, tokenizer)
            flops = cost.flops(reader, planned)
            write_json(blocks.note("flops"), flops)
            progress.start(reader, flops, snapshots=len(folders))
            for label, piece, path in todo:
                clock = time.monotonic()
                block = _block(spec, reader, planned, asked[label], piece)
                blocks.write(path, block, time.monotonic() - clock)
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


def _plan(
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
        for begin in range(0, len(same), spec.sequences_per_forward):
            batch = same[begin : begin + spec.sequences_per_forward]
            ids = torch.stack([torch.from_numpy(prompts.ids[row]) for row in batch])
            answers = reader.generate(
                ids.to(reader.device),
                prompts.new_tokens,
                chooser(prompts, batch, spec.seed),
                prompts.stop,
            )
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
    lost = _non_finite(scores, planned)
    if lost and "non_finite" not in spec.protocol.allow:
        raise StageError(
            f"{name}: {len(lost)} losses are not finite, the first is {lost[0]}: the weights or "
            "numerics.precision overflow there; evaluate in fp32 or bf16, look at the loss curve "
            "of the run, or add 'non_finite' to protocol.allow to have them counted and left out"
        )
    replies = {label: blocks.replies(paths[label]) for label in planned.prompts}
    return {
        **planned.summarise(scores, replies),
        "outcomes": {
            "sequences": planned.sequences,
            "scored_tokens": planned.scored,
            "non_finite": len(lost),
            "dropped": len(planned.dropped),
            "truncated": len(planned.truncated),
        },
    }


def _non_finite(scores: Mapping[str, Scores], planned: Plan) -> list[str]:
    """Return in words which scored tokens have no finite loss."""
    import numpy as np

    return [
        f"that of document {planned.documents[int(found.document[row])]!r} at position "
        f"{int(found.position[row])} after {int(found.preceding[row])} tokens ({label})"
        for label, found in scores.items()
        for row in np.flatnonzero(~np.isfinite(found.nll)).tolist()
    ]


def _reader(spec: EvaluateJob, folder: Path, step: int) -> Any:
    return open_reader(
        folder,
        rope=spec.rope,
        numerics=spec.numerics,
        device=device_of(spec.device),
        name=f"{folder} (step {step})",
    )


def _refuse_other_vocabulary(reader: Reader, tokenizer: LoadedTokenizer) -> None:
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
            with _reader(spec, folder, step) as reader:
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
