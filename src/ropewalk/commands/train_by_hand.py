"""`ropewalk train` by flags: the spec of a run as a study has it, its windows, then the stage."""

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ropewalk.base.canonical import leaves, plain
from ropewalk.base.files import read_json, write_json
from ropewalk.base.manifest import MANIFEST, Manifest, read_manifest, recipe_id
from ropewalk.base.spec import SpecError, decode
from ropewalk.base.stage import StageError
from ropewalk.commands import train_inputs, train_spec, train_summary
from ropewalk.commands.flags import Run as RunStage
from ropewalk.commands.flags import need
from ropewalk.commands.train_inputs import Data, Model
from ropewalk.commands.train_spec import WINDOWS
from ropewalk.data.spec import PackJob, Share, Windows
from ropewalk.model import numerics as numerics_
from ropewalk.train.attempt import work_folder
from ropewalk.train.spec import Run, TrainJob
from ropewalk.train.timetable import forward_rows, timetable

SPEC = "spec.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resolved:
    """What the flags come to."""

    job: TrainJob
    packs: Mapping[int, PackJob]  # by tokens of a row
    model: Model
    data: Data


def train(options: argparse.Namespace, run: RunStage) -> int:
    """Cut the windows below --out, train there, and say where the model is.

    Raises:
        SpecError, StageError, ArtifactError: before anything is written, for flags that cannot be.
    """
    need(options, "model", "data")
    found = resolve(options)
    remark = train_inputs.check_tokenizer(found.model, found.data)
    for stretch in timetable(found.job.run):
        forward_rows(stretch, found.job.run.hardware)  # refuses what does not divide
    out: Path = options.out
    inputs = {f"tokens:{c.name}": c.tokens.folder / MANIFEST for c in found.data.corpora}
    names = {length: f"windows:{WINDOWS}:{length}" for length in found.packs}
    recipe = _recipe(found)
    _refuse_other(out, recipe, found.job)
    train_summary.check_documents(found.packs, found.data, found.job.run)
    if options.dry_run:
        available = train_summary.counted(found.packs, found.data)
    else:
        made = {
            length: run("pack", spec, out / f"windows-{length}", inputs)
            for length, spec in found.packs.items()
        }
        available = train_summary.packed(made, found.data)
    print(
        train_summary.text(
            job=found.job,
            model=found.model.name,
            available=available,
            out=out,
            work=work_folder(out, recipe),
            remarks=[remark] if remark else [],
        ),
        flush=True,
    )
    if options.dry_run:
        print(json.dumps(plain(found.job), indent=2, sort_keys=True))
        return 0
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / SPEC, plain(found.job))
    inputs["tokenizer"] = found.data.tokenizer.folder / MANIFEST
    inputs |= {names[length]: manifest.folder / MANIFEST for length, manifest in made.items()}
    run("train", found.job, out, inputs)
    print(out / "final")
    return 0


def resolve(options: argparse.Namespace) -> Resolved:
    """Return what the flags come to; nothing is written.

    Raises:
        SpecError, StageError, ArtifactError: naming the flag, its value and what would be right.
    """
    model = train_inputs.model(options)
    data = train_inputs.data(options)
    rope = train_spec.rope(options, model.architecture, model.rope)
    positions = train_spec.positions(options)
    rows = train_spec.lengths(options, model.architecture.context_tokens)
    batch = train_spec.batch(options, rows)
    device = _device(options)
    cuda = device.type == "cuda"
    numerics = train_spec.numerics(
        options, torch.cuda.get_device_capability(device) if cuda else None
    )
    numerics_.check(numerics, device)
    try:
        run = Run(
            architecture=model.architecture,
            tokenizer=WINDOWS,
            weights=model.weights,
            phases=train_spec.phases(options, rows, batch, rope, positions),
            batch=batch,
            optimizer=train_spec.optimizer(options),
            schedule=train_spec.schedule(options),
            numerics=numerics,
            snapshot_steps=options.snapshot_steps,
            seed=options.seed,
            hardware=train_spec.hardware(options, device.type, rows),
        )
    except ValueError as error:
        raise error if isinstance(error, SpecError) else SpecError(str(error)) from None
    windows = Windows(
        mixture=tuple(Share(corpus=c.name, weight=c.weight) for c in data.corpora),
        tokenizer=WINDOWS,
        policy=train_spec.policy(options, positions),  # type: ignore[arg-type]  # one of its three
        seed=options.seed,
    )
    return Resolved(
        job=TrainJob(run=run, folder=model.weights_folder),
        packs={length: PackJob(windows=windows, length_tokens=length) for length in rows},
        model=model,
        data=data,
    )


def _device(options: argparse.Namespace) -> torch.device:
    there = torch.cuda.is_available()
    if options.device == "cuda" and not there:
        raise StageError(
            "--device cuda: CUDA is not available here; leave it out, or train on a GPU node"
        )
    return torch.device(options.device or ("cuda" if there else "cpu"))


def _recipe(found: Resolved) -> str:
    """Return the recipe id the run will have, from those its windows will have."""
    tokens = {f"tokens:{corpus.name}": corpus.tokens for corpus in found.data.corpora}
    inputs = {**tokens, "tokenizer": found.data.tokenizer}
    for length, spec in found.packs.items():
        inputs[f"windows:{WINDOWS}:{length}"] = Manifest(
            stage="pack",
            recipe=recipe_id("pack", spec, tokens),
            content="",
            spec={},
            inputs={},
            files=(),
            result={},
            folder=Path(),
        )
    return recipe_id("train", found.job, inputs)


def _refuse_other(out: Path, recipe: str, job: TrainJob) -> None:
    """Refuse a folder in which something else stands: training there would remove its weights."""
    if out.is_file():
        raise SpecError(f"--out {out} is a file; give a folder")
    if (out / MANIFEST).is_file():
        stage = read_manifest(out / MANIFEST, verify=False).stage
        if stage != "train":
            raise SpecError(f"--out {out} holds what stage {stage!r} left; give another folder")
    begun = {path.name.removeprefix("work-").partition(".")[0] for path in out.glob("work-*")}
    if begun and recipe not in begun:
        raise SpecError(
            f"--out {out} holds another run{_difference(out / SPEC, job)}; give another folder, or "
            "remove this one"
        )


def _difference(file: Path, job: TrainJob) -> str:
    """Return what sets the run in a folder apart from this one, as a parenthesis."""
    try:
        stands = plain(decode(TrainJob, read_json(file)), identity=True)
    except (OSError, ValueError):
        return ""
    there, here = dict(leaves(stands)), dict(leaves(plain(job, identity=True)))
    keys = [key for key in sorted({*there, *here}) if there.get(key) != here.get(key)]
    if not keys:
        return " (with other data)"
    shown = [f"{key} {_value(there, key)} there, {_value(here, key)} here" for key in keys[:3]]
    return f" ({'; '.join(shown)}{'; ...' if len(keys) > 3 else ''})"


def _value(found: Mapping[str, Any], key: str) -> Any:
    return found.get(key, "not set")
