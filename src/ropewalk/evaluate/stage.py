"""Stage `evaluate`: one protocol applied to the snapshots of one run.

Leaves `scores.arrow`, the loss and hit of every scored token, and `result.json`, the numbers made
from it; `cost.json` beside them says what it took and is no part of the artifact. Blocks of scores
lie in `blocks-<recipe>/` while the stage works, so that an evaluation that was killed goes on where
it stopped.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ropewalk.base.canonical import plain
from ropewalk.base.files import write_json
from ropewalk.base.manifest import Manifest
from ropewalk.base.stage import Job, StageError
from ropewalk.data.encoding import load
from ropewalk.data.tokens import Tokens
from ropewalk.evaluate import cost
from ropewalk.evaluate.measure import Found, key, measure
from ropewalk.evaluate.spec import EvaluateJob
from ropewalk.evaluate.store import Blocks

FINAL = "final"


def work(job: Job) -> tuple[Iterable[Path], Mapping[str, Any]]:
    """Measure every snapshot the spec asks for and write `scores.arrow` and `result.json`.

    Raises:
        StageError: if the inputs do not fit each other or the protocol, or something is lost that
            the protocol does not allow to be.
    """
    spec: EvaluateJob = job.spec
    run, corpus, tokenizer = job.input("run"), job.input("tokens"), job.input("tokenizer")
    _refuse_other_tokenizer(run, corpus, tokenizer)
    blocks = Blocks(
        job.folder / f"blocks-{job.recipe}",
        {"code": job.code, "inputs": {name: m.content for name, m in job.inputs.items()}},
    )
    folders = snapshots(run, spec.snapshots)
    found = measure(spec, folders, Tokens(corpus), load(tokenizer), blocks, job.chosen)
    scores_file, result_file = job.folder / "scores.arrow", job.folder / "result.json"
    rows = found.write_scores(scores_file, blocks)
    result = {
        "run": run.recipe,
        "key": key(spec, run=run.content, tokenizer=tokenizer.content, data=corpus.content),
        "protocol": plain(spec.protocol),
        "final_step": int(run.result["final_step"]),
        "snapshots": dict(found.snapshots),
        "cost": modelled(found),
    }
    write_json(result_file, result)
    write_json(job.folder / "cost.json", measured(found))
    blocks.remove()
    return [result_file, scores_file], {
        "final_step": result["final_step"],
        "snapshots": list(found.snapshots),
        "scored_tokens": rows,
    }


def modelled(found: Found) -> dict[str, Any]:
    """Return the cost that follows from the plan alone."""
    return {
        "flops": found.flops,
        "flops_formula": cost.FORMULA,
        "tokens_read": found.tokens_read,
        "tokens_scored": found.tokens_scored,
    }


def measured(found: Found) -> dict[str, Any]:
    """Return the cost as it was measured, beside the modelled one."""
    seconds = found.seconds
    return {
        **modelled(found),
        "seconds": seconds,
        "flops_per_second": found.flops / seconds if found.flops and seconds else None,
        "tokens_scored_per_second": found.tokens_scored / seconds if seconds else None,
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
