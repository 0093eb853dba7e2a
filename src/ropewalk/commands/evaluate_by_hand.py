"""`ropewalk evaluate` by flags: a checkpoint, a protocol and a text in; one file of numbers out.

Tokens and blocks of scores lie in `OUT.work/` until the file is written, so that the same command
goes on after an interruption. The file says what its numbers depend on; where it stands with the
same, nothing is measured again.
"""

import argparse
import contextlib
import dataclasses
import importlib
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ropewalk import __version__
from ropewalk.base.canonical import digest, plain
from ropewalk.base.closure import closure
from ropewalk.base.files import read_json, sha256_file, write_json
from ropewalk.base.manifest import ArtifactError, Manifest
from ropewalk.base.spec import SpecError
from ropewalk.base.stage import StageError, installed, public_version
from ropewalk.commands import evaluate_inputs, evaluate_result, evaluate_spec, evaluate_text
from ropewalk.commands.evaluate_inputs import Model, Prepared, Text
from ropewalk.commands.evaluate_spec import Named
from ropewalk.commands.flags import Run, need
from ropewalk.commands.train_spec import numerics as numerics_of
from ropewalk.data.encoding import load
from ropewalk.data.tokens import Tokens
from ropewalk.evaluate import cost, stage
from ropewalk.evaluate.measure import (
    Found,
    key,
    measure,
    plan_of,
    reader_of,
    refuse_other_vocabulary,
)
from ropewalk.evaluate.spec import EvaluateJob, Harness, PositionCurve, protocol_module
from ropewalk.evaluate.store import Blocks, begun
from ropewalk.model import numerics
from ropewalk.model.readers import depends_on_length, device_of
from ropewalk.study.registry import STAGES
from ropewalk.train.machine import machine

SCORES = "scores.arrow"
_CODE = (
    "ropewalk.data.tokenize",
    "ropewalk.evaluate.measure",
    "ropewalk.commands.evaluate_result",
)
_STEP = 0  # the only snapshot


def evaluate(options: argparse.Namespace, run: Run) -> int:
    """Measure, write --out, and say what came out.

    Raises:
        SpecError, StageError, ArtifactError: naming the flag, its value and what would be right.
    """
    need(options, "model", "protocol")
    start = evaluate_inputs.model(options)
    named = evaluate_spec.protocol(options, start.window_tokens)
    try:
        return _evaluate(options, run, start, named)
    except (SpecError, StageError) as error:
        raise StageError(evaluate_spec.by_flags(str(error), named=bool(named.name))) from error


def _evaluate(options: argparse.Namespace, run: Run, start: Model, named: Named) -> int:
    spec = _spec(options, start, named)
    needed = evaluate_spec.reads_text(named.protocol)
    text, remark = evaluate_inputs.text(options, start, needed=needed)
    if text.tokens is None:
        evaluate_inputs.check_tokenizer(options, start)
    out: Path = options.out
    work = out.with_name(f"{out.name}.work")
    if _stands(options, spec, start, named, text, work, run):
        return 0
    with _folder(work, temporary=options.dry_run) as folder:
        prepared = evaluate_inputs.prepare(options, start, text, folder, run)
        made = evaluate_inputs.tokenized(prepared, folder, run)
        made_from = _key(spec, start, prepared)
        told = evaluate_text.lines(
            spec=spec,
            named=named,
            model=start,
            text=text,
            tokens=made,
            out=out,
            begun=begun(work / "blocks", _without_allow(made_from)),
            remarks=[remark] if remark else [],
        )
        print(told, flush=True)
        if options.dry_run:
            _estimate(spec, start, made, prepared)
            return 0
        blocks = Blocks(folder / "blocks", _without_allow(made_from))
        if isinstance(spec.protocol, Harness):  # what data sets it was of cannot be known
            blocks.note(f"{_STEP}-harness").unlink(missing_ok=True)
        found, measured = _measure(spec, start, made, prepared, blocks)
        result = {
            **evaluate_result.numbers(spec.protocol, found.snapshots[str(_STEP)], spec.seed),
            **_facts(spec, start, named, prepared, made),
            "key": made_from,
            "cost": stage.modelled(found),
            "measured": measured,
        }
        if options.keep and any(found.sources.values()):
            result["scores"] = str(folder / SCORES)
            found.write_scores(folder / SCORES, blocks)
        write_json(out, result)
        blocks.remove()
        if not options.keep:
            shutil.rmtree(folder)
    print(evaluate_text.headline(result))
    print(out)
    return 0


def _spec(options: argparse.Namespace, start: Model, named: Named) -> EvaluateJob:
    """Return what the stage of this name would be given.

    Raises:
        SpecError, StageError: for a rope or numerics that cannot be, or not with the protocol.
    """
    there = torch.cuda.is_available()
    device = device_of(options.device or ("cuda" if there else "cpu"))
    cuda = device.type == "cuda"
    computed = numerics_of(options, torch.cuda.get_device_capability(device) if cuda else None)
    if start.numerics:
        if options.attention == "flash":
            raise SpecError(
                f"--attention flash: --model {start.name} is read by transformers' own class, "
                f"with {start.numerics['attention']}; leave it out"
            )
        computed = dataclasses.replace(computed, attention="sdpa")
    numerics.check(computed, device)
    rope = evaluate_spec.rope(options, start.architecture, start.rope)
    if isinstance(named.protocol, PositionCurve) and depends_on_length(start.folder, rope):
        raise SpecError(
            "--protocol position_curve reads the longest --context once for all shorter ones, but "
            "the rope of this evaluation depends on the length that is read (as dynamic_ntk and "
            "string do): use --protocol sliding_window without --stride, which then reads every "
            "--context on its own"
        )
    at_once = options.sequences_per_forward
    if at_once is not None and at_once < 1:
        raise SpecError(f"--sequences-per-forward {at_once} must be at least 1")
    return EvaluateJob(
        protocol=named.protocol,
        rope=rope,
        numerics=computed,
        seed=options.seed,
        device=device.type,
        **({} if at_once is None else {"sequences_per_forward": at_once}),
    )


@contextlib.contextmanager
def _folder(work: Path, *, temporary: bool) -> Iterator[Path]:
    """Yield the work folder; where nothing was measured in a new one, a refusal leaves none."""
    if temporary:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
        return
    fresh = not work.exists()
    try:
        yield work
    except (SpecError, StageError, ArtifactError):
        if fresh and not any((work / "blocks").glob("*.arrow")):
            shutil.rmtree(work, ignore_errors=True)
        raise


def _key(spec: EvaluateJob, start: Model, prepared: Prepared) -> dict[str, Any]:
    """Return all that the numbers depend on."""
    code = closure(*_CODE, protocol_module(spec.protocol))
    contents = {}
    if isinstance(spec.protocol, Harness) and spec.protocol.folder is not None:
        tasks = Path(spec.protocol.folder)
        files = sorted(path for path in tasks.rglob("*") if path.is_file())
        found = [[file.relative_to(tasks).as_posix(), sha256_file(file)] for file in files]
        contents["task_files"] = digest(found)
    versions = {name: installed(name) for name in STAGES["evaluate"].libraries_of(spec)}
    return {
        **key(
            spec,
            weights=start.weights,
            config=start.config,
            data=prepared.identity,
            code=digest(code),
            **contents,
        ),
        "tokenizer": prepared.encoding,
        "libraries": {name: v and public_version(v) for name, v in versions.items()},
    }


def _without_allow(made_from: Mapping[str, Any]) -> dict[str, Any]:
    """Return what blocks of scores depend on: what may be left out of a number is no part of it."""
    protocol = {name: value for name, value in made_from["protocol"].items() if name != "allow"}
    return {**made_from, "protocol": protocol}


def _stands(
    options: argparse.Namespace,
    spec: EvaluateJob,
    start: Model,
    named: Named,
    text: Text,
    work: Path,
    run: Run,
) -> bool:
    """Return whether --out holds these very numbers, and say so.

    Raises:
        SpecError: if it holds something else, or what cannot be known to be the same, and --again
            does not say that it may go.
    """
    out: Path = options.out
    if out.is_dir():
        raise SpecError(f"--out {out} is a folder; by flags it is a file, such as {out}.json")
    if not out.exists():
        return False
    try:
        result = read_json(out)
        stands = plain(result["key"])
    except (ValueError, KeyError, TypeError):
        raise SpecError(
            f"--out {out} exists and is no result of this command; give another file"
        ) from None
    if options.again:
        return False
    if isinstance(spec.protocol, Harness):
        raise SpecError(
            f"--out {out} exists. Whether the data sets of its tasks are still the same cannot be "
            "known, so that nothing stands for --protocol harness: give --again to measure anew, "
            "or another file"
        )
    with tempfile.TemporaryDirectory() as folder:
        prepared = evaluate_inputs.prepare(options, start, text, Path(folder), run)
    here = plain(_key(spec, start, prepared))
    other = evaluate_spec.differences(stands, here, named=bool(named.name))
    if other:
        shown = "; ".join(
            f"{name} {'not set' if old is None else old} there, "
            f"{'not set' if new is None else new} here"
            for name, old, new in other[:3]
        )
        raise SpecError(
            f"--out {out} holds another evaluation ({shown}{'; ...' if len(other) > 3 else ''}); "
            "give another file, or --again to replace it"
        )
    kept = Path(result.get("scores", "")).is_file()
    if options.keep and not kept:
        print("evaluate: --keep has nothing of what stands to keep (give --again to have it)")
    if work.exists() and not kept and not options.dry_run:
        shutil.rmtree(work)  # killed after the file was written
    print(f"evaluate: unchanged: {out} stands as it is (--again measures anew)")
    print(evaluate_text.headline(result))
    print(out)
    return True


def _facts(
    spec: EvaluateJob, start: Model, named: Named, prepared: Prepared, tokens: Manifest
) -> dict[str, Any]:
    """Return what was measured, with what, on what."""
    rope = spec.rope or start.rope
    stride = getattr(spec.protocol, "stride_tokens", None)
    return {
        "protocol": {"name": named.name or spec.protocol.kind, **plain(spec.protocol)},
        **({} if not hasattr(spec.protocol, "stride_tokens") else {"stride_tokens": stride}),
        "model": {
            "path": start.name,
            "revision": start.revision,
            "family": start.family,
            "weights": start.weights,
            "config_sha256": start.config,
            "window_tokens": start.window_tokens,
            "rope": None if rope is None else plain(rope),
            "rope_given": spec.rope is not None,
        },
        "tokenizer": prepared.encoding,
        "data": {
            "files": prepared.files,
            "documents": tokens.result["documents"],
            "tokens": tokens.result["tokens"],
            "skipped": tokens.result.get("skipped", {}),
        },
        "numerics": {**plain(spec.numerics), **start.numerics},
        "seed": spec.seed,
        "ropewalk": __version__,
    }


def _measure(
    spec: EvaluateJob, start: Model, tokens: Manifest, prepared: Prepared, blocks: Blocks
) -> tuple[Found, dict[str, Any]]:
    """Return what was found, and what was measured of the work and of the machine it ran on."""
    clock, load_average = time.monotonic(), os.getloadavg()
    module = importlib.import_module(protocol_module(spec.protocol))
    tokenizer = load(prepared.tokenizer)
    found = measure(spec, {_STEP: start.folder}, Tokens(tokens), tokenizer, blocks, module)
    wall_seconds = time.monotonic() - clock
    device = device_of(spec.device)
    cuda = device.type == "cuda"
    with numerics.applied(spec.numerics, device, weights_change=False):
        rate = cost.product_rate(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    measured = stage.measured(found)
    seconds = found.seconds
    return found, {
        **{name: value for name, value in measured.items() if name not in stage.modelled(found)},
        "wall_seconds": wall_seconds,
        "load_average": list(load_average),
        "tokens_read_per_second": found.tokens_read / seconds if seconds else None,
        "matrix_products_flops_per_second": rate,
        "estimated_seconds": None if found.flops is None else found.flops / rate,
        "peak_memory_bytes": torch.cuda.max_memory_allocated(device) if cuda else peak,
        "device": machine(device, 1, spec.numerics).device,
        "threads": torch.get_num_threads(),
    }


def _estimate(spec: EvaluateJob, start: Model, tokens: Manifest, prepared: Prepared) -> None:
    """Print what would be read and what that costs; the model is loaded, nothing is measured.

    Raises:
        StageError: for whatever the evaluation would be refused for.
    """
    if isinstance(spec.protocol, Harness):
        with reader_of(spec, start.folder, _STEP):
            print("evaluate: what the harness asks is known only once it runs")
        return
    module = importlib.import_module(protocol_module(spec.protocol))
    tokenizer = load(prepared.tokenizer)
    planned = plan_of(spec, start.folder, Tokens(tokens), tokenizer, module)
    for outcome, cases in (("dropped", planned.dropped), ("truncated", planned.truncated)):
        if cases:
            print(f"evaluate: {len(cases)} cases {outcome}, the first: {cases[0]}")
    progress = cost.Progress(planned, 1)
    with reader_of(spec, start.folder, _STEP) as reader:
        refuse_other_vocabulary(reader, tokenizer)
        progress.start(reader, cost.flops(reader, planned), snapshots=1)
