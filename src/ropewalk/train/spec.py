"""What the training room can be asked for."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from ropewalk.base.canonical import EXECUTION
from ropewalk.model.spec import (
    Architecture,
    DynamicNtkRope,
    LogScaledRope,
    NaturalPositions,
    Numerics,
    PlainRope,
    PosePositions,
    Positions,
    Rope,
    StringRope,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScratchWeights:
    """Random initial weights; every tensor is drawn from its own address (seed, tensor name)."""

    kind: Literal["scratch"] = "scratch"
    seed: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunWeights:
    """The final weights of another run, named `study/run`."""

    kind: Literal["run"] = "run"
    run: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """A checkpoint somebody published: a folder on disk or a repository on the hub."""

    kind: Literal["published"] = "published"
    hub: str | None = None
    revision: str | None = None
    location: str | None = None  # the name under `locations` in config.yaml, instead of the hub

    def __post_init__(self) -> None:
        if (self.hub is None) == (self.location is None):
            raise ValueError("exactly one of hub and location must be given")


Weights = ScratchWeights | RunWeights | PublishedWeights


@dataclasses.dataclass(frozen=True, kw_only=True)
class SecondsLike:
    """A budget of time: a share of the seconds that another run takes, by calibrations.

    Calibrations say what a step of either run costs, so the budget becomes a number of steps before
    the first one is done; nothing is timed while it trains.
    """

    run: str  # `study/run`; its own phases are given in steps or tokens
    share: float

    def __post_init__(self) -> None:
        if self.share <= 0:
            raise ValueError(f"share {self.share} must be above 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of one run with one length, one set of windows, one rope, one position method."""

    windows: str  # name of a windows definition
    length_tokens: int
    steps: int | None = None  # exactly one of steps, tokens and seconds_like
    tokens: int | None = None
    seconds_like: SecondsLike | None = None
    rope: Rope = PlainRope()
    positions: Positions = NaturalPositions()

    def __post_init__(self) -> None:
        if [self.steps, self.tokens, self.seconds_like].count(None) != 2:
            raise ValueError("exactly one of steps, tokens and seconds_like must be given")
        if self.length_tokens < 2:
            raise ValueError(f"length_tokens {self.length_tokens} is below 2")
        frequencies = self.rope.frequencies if isinstance(self.rope, LogScaledRope) else self.rope
        if isinstance(frequencies, StringRope | DynamicNtkRope):
            raise ValueError(
                f"rope.kind {frequencies.kind!r} is a method of inference; a phase trains with one "
                "whose angles do not depend on the length that is read"
            )
        if self.context_tokens < self.length_tokens:
            raise ValueError(
                f"positions.target_tokens {self.context_tokens} is below length_tokens "
                f"{self.length_tokens}: every token needs a position of its own"
            )
        if isinstance(self.positions, PosePositions) and self.positions.chunks > self.length_tokens:
            raise ValueError(
                f"positions.chunks {self.positions.chunks} is more than length_tokens "
                f"{self.length_tokens}: a chunk has at least one token"
            )

    @property
    def context_tokens(self) -> int:
        """Return the window that the phase's positions reach."""
        return context_of(self.positions, self.length_tokens)


def context_of(positions: Positions, length_tokens: int) -> int:
    """Return the window that positions of rows of a length reach, in tokens."""
    return length_tokens if isinstance(positions, NaturalPositions) else positions.target_tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """AdamW (arXiv 1711.05101)."""

    lr: float  # peak learning rate
    betas: tuple[float, float]
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float | None = None  # gradients are scaled down to this global norm


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """Learning rate over the whole run, as a share of the peak."""

    shape: Literal["constant", "linear", "cosine"]
    warmup_steps: int = 0
    warmup_from: float = 0.0  # share of the peak at the first step
    final: float = 0.0  # share of the peak at the last step (linear, cosine)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """Size of one optimizer step, over all processes. Exactly one of the two."""

    sequences: int | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        if (self.sequences is None) == (self.tokens is None):
            raise ValueError("exactly one of sequences and tokens must be given")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hardware:
    """Where and how a run executes: never part of what it is."""

    device: str = "cpu"  # cpu, or a GPU type of the hardware table (a100-80, v100-32, ...)
    processes: int = 1  # over all nodes; GPUs where the device is a GPU
    nodes: int = 1
    sequences_per_forward: int | None = None  # per process; None: as many as the step gives it
    recompute_activations: bool = False
    compile: bool = False  # each decoder block by torch.compile
    checkpoint_every_seconds: int = 600
    checkpoints_kept: int = 2
    checkpoint_in_background: bool | None = None  # while training goes on; None: on GPUs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One training. Without phases it adopts weights as they are."""

    architecture: Architecture
    tokenizer: str  # name of the tokenizer whose ids the model reads
    weights: Weights
    phases: tuple[Phase, ...] = ()
    batch: Batch | None = None
    optimizer: Optimizer | None = None
    schedule: Schedule | None = None
    numerics: Numerics = Numerics()
    calibration: str | None = None  # `study/calibration` that knows the seconds of its steps
    snapshot_steps: tuple[int, ...] = ()  # steps after which weights are kept, beside the final
    seed: int = 0  # order of the data
    hardware: Hardware = dataclasses.field(default=Hardware(), metadata=EXECUTION)

    def __post_init__(self) -> None:
        needed = {
            "batch": self.batch,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
        }
        absent = [name for name, value in needed.items() if value is None]
        if self.phases and absent:
            raise ValueError(f"a run with phases needs {', '.join(absent)}")
        for phase in self.phases:
            if self.batch and self.batch.tokens and self.batch.tokens % phase.length_tokens:
                raise ValueError(
                    f"batch.tokens {self.batch.tokens} is not divisible by the phase's "
                    f"length_tokens {phase.length_tokens}"
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timed:
    """Steps whose seconds a calibration knows: a phase of a run that a budget is taken from."""

    calibration: str  # `study/calibration`
    length_tokens: int
    context_tokens: int
    sequences: int
    steps: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainJob:
    """Stage `train`: one run."""

    run: Run
    timed: Mapping[str, tuple[Timed, ...]] | None = None
    # the runs that `seconds_like` names, phase by phase
    folder: str | None = dataclasses.field(default=None, metadata=EXECUTION)
    # where the `location` of published weights lies


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """The rows of an optimizer step that a calibration measures."""

    length_tokens: int
    sequences: int | None = None  # exactly one of the two
    tokens: int | None = None
    positions: Positions = NaturalPositions()  # PoSE: its content is not read, tokens are random

    def __post_init__(self) -> None:
        if (self.sequences is None) == (self.tokens is None):
            raise ValueError("exactly one of sequences and tokens must be given")
        if self.length_tokens < 2 or self.rows < 1 or (self.tokens or 0) % self.length_tokens:
            raise ValueError(
                f"{self.rows} rows of length_tokens {self.length_tokens}: the length must be at "
                "least 2, and tokens a multiple of it"
            )
        if self.context_tokens < self.length_tokens:
            raise ValueError(
                f"positions.target_tokens {self.context_tokens} is below length_tokens "
                f"{self.length_tokens}: every token needs a position of its own"
            )

    @property
    def rows(self) -> int:
        """Return the sequences of a step."""
        if self.sequences is not None:
            return self.sequences
        return (self.tokens or 0) // self.length_tokens

    @property
    def context_tokens(self) -> int:
        """Return the window that the positions reach."""
        return context_of(self.positions, self.length_tokens)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrateJob:
    """Stage `calibrate`: seconds and memory of training steps of one model, on one device.

    The device is part of what this is, unlike in a run: a time is the time of a machine. Learning
    rates, seeds and corpora are no part of it, they cost no time.
    """

    architecture: Architecture
    numerics: Numerics
    shapes: Mapping[str, Shape]  # by label
    rounds: int = 5  # of which each measures every shape in turn
    steps: int = 3  # of a shape in a round, of which the median counts
    memory_gigabytes: float | None = None  # what tokens are to fit into; 1 GB is 1e9 bytes
    device: str = "cpu"
    sequences_per_forward: int | None = None
    recompute_activations: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        if not self.shapes:
            raise ValueError("shapes is empty: name at least one label with its rows")
        for name in ("rounds", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be at least 1")
