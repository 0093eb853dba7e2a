"""Stage `evaluate`: one protocol applied to the snapshots of one run.

Leaves `scores.arrow`, the loss and hit of every scored token, and `result.json`, the numbers made
from it. Blocks of scores lie in `blocks-<recipe>/` while the stage works, so that an evaluation
that was killed goes on where it stopped.
"""

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ropewalk.base.canonical import plain
from ropewalk.base.files import write_json
from ropewalk.base.manifest import Manifest
from ropewalk.base.stage import Job, StageError
from ropewalk.data.encoding import LoadedTokenizer, load
from ropewalk.data.tokens import Tokens
from ropewalk.evaluate.plan import Plan, plan
from ropewalk.evaluate.scorer import Scorer, Scores, score
from ropewalk.evaluate.spec import EvaluateJob
from ropewalk.evaluate.store import Blocks, cut, write_scores
from ropewalk.model import build, forward, numerics

FINAL = "final"


def work(job: Job) -> tuple[Iterable[Path], Mapping[str, Any]]:
    """Score every snapshot the spec asks for and write `scores.arrow` and `result.json`.

    Raises:
        StageError: if the inputs do not fit each other or the protocol, or a loss is not finite.
    """
    spec: EvaluateJob = job.spec
    run, corpus = job.input("run"), job.input("tokens")
    tokenizer = load(job.input("tokenizer"))
    _refuse_other_tokenizer(run, corpus, job.input("tokenizer"))
    planned = plan(spec, Tokens(corpus), tokenizer)
    folders = snapshots(run, spec.snapshots)
    blocks = Blocks(
        job.folder / f"blocks-{job.recipe}",
        {"code": job.code, "inputs": {name: m.content for name, m in job.inputs.items()}},
    )
    paths = _score_all(spec, planned, folders, tokenizer, blocks)
    labels = list(planned.spans)

    def pieces() -> Iterator[tuple[int, int, Scores]]:
        for step in folders:
            for number in range(len(labels)):
                yield step, number, blocks.read(paths[step, number])

    scores_file, result_file = job.folder / "scores.arrow", job.folder / "result.json"
    rows = write_scores(scores_file, pieces(), labels, planned.documents)
    numbers = {
        str(step): planned.summarise(
            {label: blocks.read(paths[step, number]) for number, label in enumerate(labels)}
        )
        for step in folders
    }
    result = {
        "run": run.recipe,
        "protocol": plain(spec.protocol),
        "final_step": int(run.result["final_step"]),
        "snapshots": numbers,
    }
    write_json(result_file, result)
    blocks.remove()
    return [result_file, scores_file], {
        "final_step": result["final_step"],
        "snapshots": list(numbers),
        "scored_tokens": rows,
    }


def snapshots(run: Manifest, which: str) -> dict[int, Path]:
    """Return step -> folder with weights, ascending: the final one, or all including it."""
    final = int(run.result["final_step"])
    folders = {final: run.folder / FINAL}
    if which == "all":
        folders |= {
            int(step): run.folder / folder
            for step, folder in run.result["snapshots"].items()
            if int(step) != final
        }
    return dict(sorted(folders.items()))


def _refuse_other_tokenizer(run: Manifest, corpus: Manifest, tokenizer: Manifest) -> None:
    """Ids of another tokenizer give a loss too, only a meaningless one."""
    for what, manifest in (("run", run), ("tokens", corpus)):
        made_with = manifest.inputs.get("tokenizer")
        if made_with is not None and made_with["content"] != tokenizer.content:
            raise StageError(
                f"input {what!r} ({manifest.folder}) was made with the tokenizer "
                f"{made_with['content']}, this evaluation is given {tokenizer.content} "
                f"({tokenizer.folder}): use one tokenizer for both"
            )


def _score_all(
    spec: EvaluateJob,
    planned: Plan,
    folders: Mapping[int, Path],
    tokenizer: LoadedTokenizer,
    blocks: Blocks,
) -> dict[tuple[int, int], list[Path]]:
    """Score whatever has no block yet; return the blocks of each (snapshot, label number)."""
    cuts = [cut(spans) for spans in planned.spans.values()]
    paths = {
        (step, number): [blocks.path(step, number, i) for i in range(len(pieces))]
        for step in folders
        for number, pieces in enumerate(cuts)
    }
    progress = _Progress(planned, len(folders))
    for step, folder in folders.items():
        todo = []
        for number, pieces in enumerate(cuts):
            for path, spans in zip(paths[step, number], pieces, strict=True):
                if path.is_file():
                    progress.skip(int(spans.lengths.sum()))
                else:
                    todo.append((path, spans))
        if not todo:
            continue
        with _scorer(spec, folder, step, tokenizer) as scorer:
            for path, spans in todo:
                blocks.write(path, score(scorer, spans, planned.document, planned.documents))
                progress.add(step, int(spans.lengths.sum()))
    return paths


@contextlib.contextmanager
def _scorer(
    spec: EvaluateJob, folder: Path, step: int, tokenizer: LoadedTokenizer
) -> Iterator[Scorer]:
    """Load one snapshot and yield its scorer, under the numerics of the spec."""
    device = _device(spec.device)
    with numerics.applied(spec.numerics, device, weights_change=False):
        model = build.load(folder, numerics=spec.numerics, device=device)
        head = model.get_output_embeddings().weight.detach()
        if head.shape[0] < tokenizer.vocabulary_size:
            raise StageError(
                f"{folder} has a vocabulary of {head.shape[0]}, the tokenizer one of "
                f"{tokenizer.vocabulary_size}: the run was made for another tokenizer"
            )
        yield Scorer(
            hidden=lambda ids: forward.hidden(model, ids, None),
            head=head,
            name=f"{folder} (step {step})",
            sequences=spec.sequences_per_forward,
        )


def _device(name: str) -> torch.device:
    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise StageError(
            f"device: {name!r} is a GPU, but this machine has none that torch can use; "
            "set device to 'cpu' or run the evaluation on a GPU node"
        )
    return torch.device("cuda")


class _Progress:
    """Says what is to be done, and after each block what is done and how long the rest takes."""

    def __init__(self, planned: Plan, snapshots: int) -> None:
        self._total = planned.tokens * snapshots
        self._done = 0
        self._measured = 0
        self._clock = time.monotonic()
        print(
            f"evaluate: {snapshots} snapshots x {planned.windows} windows: reads {self._total} "
            f"tokens, scores {planned.scored * snapshots}",
            flush=True,
        )

    def skip(self, tokens: int) -> None:
        """Count a block that was scored before."""
        self._done += tokens

    def add(self, step: int, tokens: int) -> None:
        """Count a block scored now and print how far the evaluation is."""
        self._done += tokens
        self._measured += tokens
        rate = self._measured / (time.monotonic() - self._clock)
        left = (self._total - self._done) / rate
        print(
            f"evaluate: step {step}: {self._done / self._total:.0%} of the tokens read, "
            f"{rate:.0f} tokens/s, about {left:.0f} s left",
            flush=True,
        )
