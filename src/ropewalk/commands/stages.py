"""Every stage by hand: `ropewalk tokenize --spec SPEC --input tokenizer=PATH --out FOLDER`."""

import argparse
import dataclasses
import importlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ropewalk.base.files import read_json
from ropewalk.base.manifest import Manifest
from ropewalk.base.spec import SpecError, decode
from ropewalk.base.stage import Accepted, Job, Work, run_stage
from ropewalk.commands import by_hand, evaluate_flags, train_flags
from ropewalk.study.registry import STAGES, Stage

# Stages that can also be told what to do by flags: what adds them, what does it.
BY_FLAGS = {
    "tokenize": (by_hand.add_tokenize, by_hand.tokenize),
    "pack": (by_hand.add_pack, by_hand.pack),
    "train": (train_flags.add_train, train_flags.train),
    "evaluate": (evaluate_flags.add_evaluate, evaluate_flags.evaluate),
}


def register(commands: Any) -> None:
    """Add one command per stage of the registry."""
    for stage in STAGES.values():
        command = commands.add_parser(
            stage.name,
            help=stage.summary,
            description=f"{stage.summary} The stage of this name, run by hand.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog=(
                f"SPEC is a {stage.spec.__name__} (see {stage.spec.__module__}). The workflow's\n"
                "own specs and inputs can be seen with:\n"
                "  snakemake -n -p RESULT/manifest.json\n"
                "The stage checks its inputs against their manifests, does nothing if FOLDER\n"
                "already holds what the same inputs, spec and code gave, and writes\n"
                "FOLDER/manifest.json last."
            ),
        )
        by_flags = BY_FLAGS.get(stage.name)
        command.add_argument(
            "--spec",
            required=by_flags is None,
            help="the spec: JSON text, or the path of a JSON file",
        )
        command.add_argument(
            "--input",
            action="append",
            default=[],
            metavar="NAME=MANIFEST",
            help="an input by name: the path of its manifest.json; repeat for each",
        )
        command.add_argument("--out", required=True, type=Path, help="folder of the artifact")
        command.add_argument(
            "--rebuilds", type=int, default=0, help="how often damaged files were made again"
        )
        command.add_argument(
            "--library",
            action="append",
            default=[],
            metavar="NAME==VERSION",
            help="refuse to run under another version of this library; repeat for each",
        )
        command.add_argument(
            "--accept",
            action="append",
            default=[],
            metavar="FILE@NEW=OLD",
            help="take this digest of a file of code for the older one; repeat for each",
        )
        command.add_argument(
            "--listing",
            help="digest of the files of a source, as planned (default: as the files are now)",
        )
        if by_flags is not None:
            by_flags[0](command)
        command.set_defaults(run=_runner(stage))


def _runner(stage: Stage) -> Any:
    def run(options: argparse.Namespace) -> int:
        # Waiting threads that spin slow every neighbour down; torch reads this when it is imported.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        if options.spec is None:
            return BY_FLAGS[stage.name][1](options, _by_hand)
        inputs = {}
        for item in options.input:
            name, separator, path = item.partition("=")
            if not separator:
                raise SpecError(f"--input {item!r}: write NAME=MANIFEST")
            inputs[name] = Path(path)
        spec: Any = decode(stage.spec, _spec_data(options.spec))
        chosen = _chosen(stage, spec)
        run_stage(
            stage.name,
            stage.entry,
            _work(stage, chosen),
            chosen=chosen,
            spec=spec,
            inputs=inputs,
            folder=options.out,
            rebuilds=options.rebuilds,
            listing=_listing(spec) if options.listing is None else options.listing,
            libraries={**dict.fromkeys(stage.libraries_of(spec)), **_pins(options.library)},
            accepted=_accepted(options.accept),
        )
        return 0

    return run


def _by_hand(name: str, spec: Any, folder: Path, inputs: dict[str, Path]) -> Manifest:
    """Run a stage without a plan: with the libraries and the source as they are now."""
    stage = STAGES[name]
    chosen = _chosen(stage, spec)
    return run_stage(
        name,
        stage.entry,
        _work(stage, chosen),
        chosen=chosen,
        spec=spec,
        inputs=inputs,
        folder=folder,
        listing=_listing(spec),
        libraries=dict.fromkeys(stage.libraries_of(spec)),
    )


def _chosen(stage: Stage, spec: Any) -> str | None:
    return None if stage.chosen is None else stage.chosen(spec)


def _work(stage: Stage, chosen: str | None) -> Work:
    """Return the work of a stage, whose libraries take seconds to import: not for what stands."""

    def work(job: Job) -> Any:
        module = None if chosen is None else importlib.import_module(chosen)
        return importlib.import_module(stage.entry).work(dataclasses.replace(job, chosen=module))

    return work


def _listing(spec: Any) -> str:
    from ropewalk.study.triggers import listing_of  # with YAML, which stages do not need otherwise

    return listing_of(spec)


def _pins(items: list[str]) -> Mapping[str, str]:
    pins = {}
    for item in items:
        name, separator, version = item.partition("==")
        if not separator:
            raise SpecError(f"--library {item!r}: write NAME==VERSION")
        pins[name] = version
    return pins


def _accepted(items: list[str]) -> Accepted:
    accepted = {}
    for item in items:
        file, at, digests = item.rpartition("@")
        new, separator, old = digests.partition("=")
        if not (at and separator):
            raise SpecError(f"--accept {item!r}: write FILE@NEW=OLD")
        accepted[file, new] = old
    return accepted


def _spec_data(text: str) -> Any:
    if text.lstrip().startswith("{"):
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise SpecError(f"--spec: not valid JSON: {error}") from None
    path = Path(text)
    if not path.is_file():
        raise SpecError(f"--spec {text!r}: neither JSON text nor a file")
    try:
        return read_json(path)
    except ValueError as error:
        raise SpecError(str(error)) from None
