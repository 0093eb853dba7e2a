"""What a file in `papers/` holds. Bodies state the paper; `scales` state how a scale deviates."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ropewalk.data.spec import Corpus, Source, Tokenizer, Windows
from ropewalk.evaluate.spec import CheckJob, Evaluation
from ropewalk.model.spec import Architecture, Numerics
from ropewalk.report.spec import Claim, Table
from ropewalk.train.spec import Batch, Hardware, Optimizer, Phase, Schedule, Shape, Weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """An architecture with its tokenizer and initial weights."""

    architecture: str  # name of an architecture
    tokenizer: str  # name of a tokenizer
    weights: Weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class Override:
    """Settings of the cells that match: `when` maps axes to values, `set` dotted keys to values."""

    when: Mapping[str, str | tuple[str, ...]]
    set: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """Runs written as axes; `{axis}` in the name and in texts of `spec` is the cell's value."""

    name: str
    axes: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    only: tuple[Mapping[str, str | tuple[str, ...]], ...] = ()  # if given, cells that match one
    spec: Mapping[str, Any]  # a RunSettings
    overrides: Mapping[str, Override] = dataclasses.field(default_factory=dict)  # applied in order


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSettings:
    """A run as a study writes it: it starts from a model or from another run."""

    model: str | None = None  # name of a model; exactly one of the two
    start: str | None = None  # `study/run` whose final weights it starts from
    phases: tuple[Phase, ...] = ()
    batch: Batch | None = None
    optimizer: Optimizer | None = None
    schedule: Schedule | None = None
    numerics: Numerics = Numerics()
    calibration: str | None = None  # name of a calibration, `study/...` for another study's
    snapshot_steps: tuple[int, ...] = ()
    seed: int = 0
    hardware: Hardware = Hardware()

    def __post_init__(self) -> None:
        if (self.model is None) == (self.start is None):
            raise ValueError("exactly one of model and start must be given")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """Seconds and memory of training steps, measured with a run's model, numerics and hardware."""

    run: str | Mapping[str, str]  # `study/run`, an alias, or axis values beside the main ones
    shapes: Mapping[str, Shape]  # by label
    rounds: int = 5  # of which each measures every shape in turn
    steps: int = 3  # of a shape in a round, of which the median counts
    memory_gigabytes: float | None = None  # what tokens are to fit into


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationOverride:
    """Settings of an evaluation for the runs that match one of the patterns."""

    runs: tuple[str, ...]
    set: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Definitions:
    """Named parts that studies share. Names are global: one name, one definition."""

    sources: Mapping[str, Source] = dataclasses.field(default_factory=dict)
    corpora: Mapping[str, Corpus] = dataclasses.field(default_factory=dict)
    tokenizers: Mapping[str, Tokenizer] = dataclasses.field(default_factory=dict)
    windows: Mapping[str, Windows] = dataclasses.field(default_factory=dict)
    architectures: Mapping[str, Architecture] = dataclasses.field(default_factory=dict)
    models: Mapping[str, Model] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyFile(Definitions):
    """One file of `papers/` at one scale, families not yet expanded."""

    title: str = ""
    paper: Mapping[str, str] = dataclasses.field(default_factory=dict)  # authors, year, arxiv, ...
    summary: str = ""
    seeds: int = 1  # with how many every run is trained (see `study.seeds`)
    main: Mapping[str, str] = dataclasses.field(default_factory=dict)
    # axis -> the value that claims mean when they name none
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)  # short name -> study/run
    snapshots: Mapping[str, str] = dataclasses.field(default_factory=dict)
    # a step of the paper's table -> the step that stands beside it; empty: none does
    contexts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    # a label of the paper's contexts -> the label that stands beside it; empty: none does
    runs: Mapping[str, Family] = dataclasses.field(default_factory=dict)
    calibrations: Mapping[str, Calibration] = dataclasses.field(default_factory=dict)
    evaluations: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    checks: Mapping[str, CheckJob] = dataclasses.field(default_factory=dict)
    claims: Mapping[str, Claim] = dataclasses.field(default_factory=dict)
    tables: Mapping[str, Table] = dataclasses.field(default_factory=dict)
    decides: tuple[str, ...] = ()  # claims that this scale must decide, named before the run
    inconsistencies: tuple[str, ...] = ()  # of the paper itself
    deviations: tuple[str, ...] = ()  # of this scale from the paper
    unstated: tuple[str, ...] = ()  # what the paper does not say and we had to choose
    provenance: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds {self.seeds} must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replica:
    """A run under another seed."""

    settings: RunSettings
    number: int  # of its seed, from 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """A study at one scale, resolved: every run and evaluation by name."""

    name: str
    file: StudyFile
    runs: Mapping[str, RunSettings]
    axes: Mapping[str, Mapping[str, str]]  # run -> axis values
    evaluations: Mapping[str, Evaluation]
    evaluation_overrides: Mapping[str, Mapping[str, EvaluationOverride]]  # applied in order
    paper_main: Mapping[str, str]  # `main` of the body: which cell of the paper stands for ours
    paper_aliases: Mapping[str, str]
    paper_evaluations: frozenset[str]  # of the body: a scale may leave some out
    layers: Mapping[str, str]  # resolved key path -> layer that set it
    replicas: Mapping[str, Mapping[str, Replica]] = dataclasses.field(default_factory=dict)
    # run -> its other repetitions by name, in the order of their seeds


__all__ = [
    "Calibration",
    "Definitions",
    "EvaluationOverride",
    "Family",
    "Model",
    "Override",
    "Replica",
    "RunSettings",
    "Study",
    "StudyFile",
]
