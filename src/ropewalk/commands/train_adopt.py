"""`ropewalk train --adopt`: a checkpoint of somebody else as a run, its origin written down."""

import argparse
import json
from pathlib import Path

from ropewalk.base.canonical import plain
from ropewalk.base.files import write_json
from ropewalk.base.manifest import MANIFEST, read_manifest
from ropewalk.base.spec import SpecError
from ropewalk.commands import train_inputs
from ropewalk.commands.flags import Run as RunStage
from ropewalk.commands.flags import need, refuse
from ropewalk.commands.train_inputs import HUB, Model
from ropewalk.data.spec import ImportedTokenizer, TokenizerJob
from ropewalk.model.flops import parameters
from ropewalk.model.pickles import weight_files
from ropewalk.train.spec import PublishedWeights, Run, ScratchWeights, TrainJob

SPEC = "spec.json"
_OF_TRAINING = (
    "data weight rope factor base beta_fast beta_slow log_window target chunks chunk_lengths "
    "content first document_tokens length lengths policy steps train_tokens batch batch_tokens "
    "final_share"
).split()


def adopt(options: argparse.Namespace, run: RunStage) -> int:
    """Make a run of the weights of --model as they are, and say where it is.

    Raises:
        SpecError, StageError, ArtifactError: before anything is written, for flags that cannot be.
    """
    need(options, "model")
    refuse(options, _OF_TRAINING, "is for training; --adopt takes weights as they are")
    model = train_inputs.model(options, weight_files)
    if isinstance(model.weights, ScratchWeights):
        raise SpecError(f"--adopt: {model.name} has no weights; give a folder or {HUB}NAME")
    out: Path = options.out
    job = TrainJob(
        run=Run(architecture=model.architecture, tokenizer="by-hand", weights=model.weights),
        folder=model.weights_folder,
    )
    _refuse_other(out, job)
    print(_text(model, out), flush=True)
    if options.dry_run:
        print(json.dumps(plain(job), indent=2, sort_keys=True))
        return 0
    place = options.tokenizer or out / "tokenizer"
    if options.tokenizer is None:
        tokenizer = run("tokenizer", TokenizerJob(tokenizer=_tokenizer(model)), place, {})
    else:
        tokenizer = read_manifest(place / MANIFEST)
    if tokenizer.result["vocabulary_size"] > model.architecture.vocabulary_size:
        raise SpecError(
            f"{place} has {tokenizer.result['vocabulary_size']} tokens, --model {model.name} a "
            f"vocabulary of {model.architecture.vocabulary_size}; give its own as --tokenizer"
        )
    write_json(out / SPEC, plain(job))
    run("train", job, out, {"tokenizer": place / MANIFEST})
    print(out / "final")
    return 0


def _tokenizer(model: Model) -> ImportedTokenizer:
    weights = model.weights
    if isinstance(weights, PublishedWeights) and weights.hub is not None:
        return ImportedTokenizer(hub=weights.hub, revision=weights.revision)
    return ImportedTokenizer(path=str(model.folder))


def _refuse_other(out: Path, job: TrainJob) -> None:
    """Refuse a folder in which something else stands: its weights would be replaced."""
    if out.is_file():
        raise SpecError(f"--out {out} is a file; give a folder")
    there = read_manifest(out / MANIFEST, verify=False) if (out / MANIFEST).is_file() else None
    other = there is not None and there.spec != plain(job, identity=True)
    if other or any(out.glob("work-*")):
        raise SpecError(f"--out {out} holds another run; give another folder, or remove this one")


def _text(model: Model, out: Path) -> str:
    shape = model.architecture
    of_hub = isinstance(model.weights, PublishedWeights) and model.weights.hub is not None
    of = f" at {model.folder.name}" if of_hub else ""
    lines = [
        (
            "model",
            f"{model.name}{of} ({shape.family}, {parameters(shape):,} parameters, pretraining "
            f"window {shape.context_tokens:,} tokens)",
        ),
        ("rope", ", ".join(f"{key} {value}" for key, value in plain(model.rope).items())),
        ("training", "none: the weights are taken as they are"),
        ("run to be", f"{out / 'final'}, with its origin in {out / MANIFEST}"),
    ]
    return "\n".join(["train:", *(f"  {name:<12}{value}" for name, value in lines)])
