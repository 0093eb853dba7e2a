"""What `ropewalk train` is about to do, in lines: checked against the documents there are."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from ropewalk.base.canonical import leaves, plain
from ropewalk.base.manifest import MANIFEST, Manifest
from ropewalk.base.spec import SpecError
from ropewalk.commands.train_inputs import Data
from ropewalk.commands.train_spec import reach
from ropewalk.data import packing
from ropewalk.data.spec import PackJob
from ropewalk.data.tokens import Tokens
from ropewalk.model.flops import parameters
from ropewalk.model.spec import LogScaledRope, PosePositions, YarnRevisedRope
from ropewalk.train.spec import Phase, Run, TrainJob
from ropewalk.train.timetable import Stretch, forward_rows, timetable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Available:
    """Windows of one length that a corpus gives to the mixture."""

    corpus: str
    windows: int
    documents: int  # of the corpus
    usable: int  # of them, those that are in a window


def check_documents(packs: Mapping[int, PackJob], data: Data, run: Run) -> None:
    """Refuse a corpus whose documents are too short for rows of one document each.

    Raises:
        SpecError: naming the corpus, its longest document and what would be right.
    """
    aligned = [
        phase.positions.target_tokens
        for phase in run.phases
        if isinstance(phase.positions, PosePositions) and phase.positions.content == "aligned"
    ]
    for length, spec in packs.items():
        if spec.windows.policy != "per_document":
            continue
        for corpus in data.corpora:
            lengths = Tokens(corpus.tokens).lengths
            longest = lengths.max(initial=0)
            if longest < length:
                raise SpecError(
                    f"--data {corpus.tokens.folder}: a row is {length} tokens of one document, but "
                    f"the longest of its {len(lengths)} documents has {longest}; give longer "
                    "documents, a shorter --length, or (pose) --content contiguous, which reads "
                    "documents in a row"
                )
            short = int(np.count_nonzero(lengths[lengths >= length] < max(aligned, default=0)))
            if short:
                raise SpecError(
                    f"--data {corpus.tokens.folder}: --content aligned reads documents of at least "
                    f"--target {max(aligned)} tokens, {short} are shorter; leave them out "
                    f"(ropewalk tokenize --minimum-tokens {max(aligned)}), or use --content random"
                )


def counted(packs: Mapping[int, PackJob], data: Data) -> dict[int, list[Available]]:
    """Return the windows that the pack stage will make, by length, without making them."""
    found = {}
    for length, spec in packs.items():
        cut = packing.POLICIES[spec.windows.policy]
        cuts = [cut(Tokens(corpus.tokens).lengths, length) for corpus in data.corpora]
        taken = packing.shares([c.count for c in cuts], [c.weight for c in data.corpora])
        found[length] = [
            Available(
                corpus=corpus.name,
                windows=windows,
                documents=corpus.tokens.result["documents"],
                usable=corpus.tokens.result["documents"] - cut.documents_dropped,
            )
            for corpus, cut, windows in zip(data.corpora, cuts, taken, strict=True)
        ]
    return found


def packed(made: Mapping[int, Manifest], data: Data) -> dict[int, list[Available]]:
    """Return the windows that the pack stage made, by length."""
    return {
        length: [
            Available(
                corpus=corpus.name,
                windows=facts["windows"],
                documents=facts["documents"],
                usable=facts["documents"] - facts["documents_dropped"],
            )
            for corpus in data.corpora
            for facts in [manifest.result["by_corpus"][corpus.name]]
        ]
        for length, manifest in made.items()
    }


def text(
    *,
    job: TrainJob,
    model: str,
    available: Mapping[int, list[Available]],
    out: Path,
    work: Path,
    remarks: Iterable[str],
) -> str:
    """Return what will be done.

    Raises:
        StageError: for a run shorter than a step, or rows that do not divide over the processes.
    """
    run, hardware = job.run, job.run.hardware
    stretches = timetable(run)
    last = stretches[-1]
    steps = last.first + last.steps
    tokens = sum(stretch.steps * stretch.tokens_per_step for stretch in stretches)
    architecture, numerics = run.architecture, run.numerics
    lines = [
        (
            "model",
            f"{model} ({architecture.family}, {parameters(architecture):,} parameters, "
            f"pretraining window {architecture.context_tokens:,} tokens)",
        ),
        ("rope", _settings(last.phase.rope)),
        ("positions", _settings(last.phase.positions)),
    ]
    for stretch in stretches:
        lines += _phase(stretch, available[stretch.phase.length_tokens], run)
    lines += [
        ("training", f"{steps:,} steps, {tokens:,} tokens, seed {run.seed}"),
        ("optimizer", f"adamw: {_pairs(plain(run.optimizer))}"),
        ("schedule", _settings(run.schedule, "shape")),
        ("numerics", _pairs(plain(numerics))),
        (
            "hardware",
            f"{hardware.device}, {hardware.processes} "
            f"{'process' if hardware.processes == 1 else 'processes'}, up to "
            f"{hardware.sequences_per_forward} rows per forward pass, a checkpoint every "
            f"{hardware.checkpoint_every_seconds} s"
            + (", activations recomputed" if hardware.recompute_activations else "")
            + (", compiled" if hardware.compile else ""),
        ),
        ("model to be", f"{out / 'final'} ({_loads(last.phase)})"),
        ("on the way", f"{work}: {_state(out, work)}"),
    ]
    for remark in [*remarks, *_remarks(run, stretches)]:
        lines.append(("remark", remark))
    return "\n".join(["train:", *(f"  {name:<12}{value}" for name, value in lines)])


def _phase(stretch: Stretch, found: list[Available], run: Run) -> list[tuple[str, str]]:
    windows = sum(part.windows for part in found)
    rows = stretch.steps * stretch.sequences
    passes = len(forward_rows(stretch, run.hardware))
    documents = ", ".join(
        f"{part.corpus}: {part.windows:,} windows from {part.usable:,} of {part.documents:,} "
        "documents"
        for part in found
    )
    return [
        (
            "rows",
            f"{stretch.phase.length_tokens:,} tokens each: {stretch.steps:,} steps of "
            f"{stretch.sequences:,} rows, {stretch.tokens_per_step:,} tokens "
            f"(per process {passes} forward {'pass' if passes == 1 else 'passes'})",
        ),
        ("", f"{documents}; {rows / windows:.2f} epochs"),
    ]


def _remarks(run: Run, stretches: Iterable[Stretch]) -> list[str]:
    found = []
    for stretch in stretches:
        phase = stretch.phase
        known = reach(run.architecture, phase.rope)
        if known is not None and phase.context_tokens > known:
            found.append(
                f"positions reach {phase.context_tokens:,}, beyond the {known:,.0f} tokens for "
                f"which rope {phase.rope.kind} keeps angles to those of the pretraining window "
                f"({run.architecture.context_tokens:,}): the model has never seen them"
            )
    steps = sum(stretch.steps for stretch in stretches)
    if run.schedule is not None and run.schedule.warmup_steps >= steps:
        found.append(
            f"warmup takes {run.schedule.warmup_steps} steps, the run has {steps}: the learning "
            "rate never reaches its peak"
        )
    return found


def _loads(phase: Phase) -> str:
    match phase.rope:
        case YarnRevisedRope():
            return "transformers loads it after `import ropewalk.model.rotary`"
        case LogScaledRope():
            return "ropewalk.model.build.load loads it"
    return "transformers loads it"


def _state(out: Path, work: Path) -> str:
    checkpoints = sorted((work / "checkpoints").glob("step-*[0-9]"))
    if (out / MANIFEST).is_file() and work.is_dir():
        return "finished"
    if checkpoints:
        return f"begun, goes on from {max(checkpoints).name}"
    return "begun" if work.is_dir() else "nothing yet"


def _settings(spec: object, kind_key: str = "kind") -> str:
    settings = plain(spec)
    kind = settings.pop(kind_key)
    return f"{kind}: {_pairs(settings)}" if settings else str(kind)


def _pairs(settings: Mapping[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in leaves(settings))
