"""Claims: what a paper says, and which measured quantities decide it."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

Outcome = Literal[
    "reproduced",
    "partly",
    "contradicted",
    "inconclusive",
    "not tested at this scale",
    "protocol underspecified",
    "blocked",
    "error",
]

Measure = Literal[
    "nll",  # nats per token, in the mean of the protocol
    "perplexity",
    "word_perplexity",
    "byte_perplexity",
    "accuracy",  # share of tokens, of retrieval trials, or of all needles, that are right
    "end_nll",  # nats per token in the last half of the context, from a curve by position
    "bound",  # tokens to which the loss stays within 0.5 nat of that (`report.bounds`)
    "reach",  # tokens
    "reach_share",  # of the longest distance, or length, that was tested
    "score",  # mean over the samples of one or more cells; over trials of retrieval
    "frequency",  # pairs of tokens at a distance that training had shown when it was first reached
    # Of a calibration: measurements of the machine it ran on.
    "seconds_per_step",
    "tokens_per_second",
    "seconds_per_million_tokens",
    "peak_gigabytes",  # most that tensors take during a step; 1 GB is 1e9 bytes
    "tokens_that_fit",  # into the memory that the calibration names, in proportion
    # Of a training itself.
    "run_seconds",  # of all its steps, by its calibration: a measurement too
    "loss_rise",  # mean training loss after the beginning of a phase less that before it
    "trained_tokens",  # of all its steps, where it starts from another run
]

COSTS = (
    "seconds_per_step",
    "tokens_per_second",
    "seconds_per_million_tokens",
    "peak_gigabytes",
    "tokens_that_fit",
)
OF_TRAINING = ("run_seconds", "loss_rise", "trained_tokens")


def _check_source(value: Measure, evaluation: str, calibration: str) -> None:
    """Refuse a value of something else than what is named."""
    wanted = (value not in (*COSTS, *OF_TRAINING), value in COSTS)
    if (bool(evaluation), bool(calibration)) != wanted:
        source = "a calibration" if wanted[1] else "an evaluation" if wanted[0] else "neither"
        raise ValueError(
            f"value {value!r} is of {source}"
            + ("; name one, and one only" if any(wanted) else " an evaluation nor a calibration")
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantity:
    """One measured number: of an evaluation of a run, of a calibration, or of a training."""

    evaluation: str = ""  # at most one of the two; none for values of a training itself
    calibration: str = ""
    run: str | Mapping[str, str] = dataclasses.field(default_factory=dict)
    # A run by name (`study/run`), or by axis values; axes not named take the study's main values.
    # Of a calibration: the run whose steps are meant, all phases together, in place of a shape.
    snapshot: str = "final"  # `final`, `first` (before any step), or a step number
    context: str | None = None
    # label of the context, for losses; of the window, for a bound; name of the preset, for
    # conventions; for scores the cell, or a pattern (`niah_*/8192`) of cells whose samples are
    # taken together; of no use to retrieval; label of the shape, for a calibration; number of the
    # phase that begins, for a loss rise
    depth: tuple[float, float] | None = None
    # for the accuracy of retrieval: only what stands there in prompts, [from, below), as shares of
    # their length
    distance: int | None = None  # for the frequency: of which distance, in tokens
    value: Measure = "nll"

    def __post_init__(self) -> None:
        _check_source(self.value, self.evaluation, self.calibration)
        if self.calibration and (self.context is None) == (not self.run):
            raise ValueError(
                f"value {self.value!r} of calibration {self.calibration!r} is of a shape or of a "
                "run: name a context or a run, and one only"
            )

    @property
    def measurement(self) -> bool:
        """Return whether this is of the machine it was measured on, and of no other."""
        return self.value in (*COSTS, "run_seconds")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Threshold:
    """A quantity, or its difference or ratio to a baseline, lies on one side of a number."""

    kind: Literal["threshold"] = "threshold"
    quantity: Quantity
    baseline: Quantity | None = None
    compare: Literal["value", "difference", "ratio"] = "value"
    at_least: float | None = None  # exactly one of the two
    at_most: float | None = None

    def __post_init__(self) -> None:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("exactly one of at_least and at_most must be given")
        if (self.compare == "value") != (self.baseline is None):
            raise ValueError("compare difference or ratio needs a baseline, compare value has none")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ordering:
    """Quantities from smallest to largest, each at least `margin` above the one before."""

    kind: Literal["ordering"] = "ordering"
    ascending: tuple[Quantity, ...]
    margin: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """Two quantities, the smaller one first."""

    below: Quantity
    above: Quantity


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs:
    """In every pair the second quantity is at least `margin` above the first."""

    kind: Literal["pairs"] = "pairs"
    pairs: tuple[Pair, ...]
    margin: float = 0.0

    def __post_init__(self) -> None:
        if not self.pairs:
            raise ValueError("pairs is empty: name at least one pair")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trend:
    """Quantities along an index that go one way, each step by more than `-slack`."""

    kind: Literal["trend"] = "trend"
    along: tuple[Quantity, ...]
    direction: Literal["falling", "rising"]
    slack: float = 0.0  # a step the other way of up to this much is tolerated


@dataclasses.dataclass(frozen=True, kw_only=True)
class Steeper:
    """Of three losses the step from the second to the third is larger than that before it."""

    kind: Literal["steeper"] = "steeper"
    along: tuple[Quantity, ...]  # three, of value `nll` or `end_nll`
    direction: Literal["falling", "rising"]

    def __post_init__(self) -> None:
        if len(self.along) != 3:
            raise ValueError(f"along names {len(self.along)} quantities; two steps need three")
        if any(quantity.value not in ("nll", "end_nll") for quantity in self.along):
            raise ValueError("every quantity of along must have the value 'nll' or 'end_nll'")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predicted:
    """Measured bounds are those that the laws of RoPE bases predict of each run's own settings.

    Either each lies within a factor of its prediction, or they have the order of the predictions.
    """

    kind: Literal["predicted"] = "predicted"
    along: tuple[Quantity, ...]  # of value `bound`
    factor: float | None = None  # exactly one of the two
    rank_at_least: float | None = None  # Spearman's correlation
    least: int | None = None  # how many must lie within the factor; None: all

    def __post_init__(self) -> None:
        if (self.factor is None) == (self.rank_at_least is None):
            raise ValueError("exactly one of factor and rank_at_least must be given")
        if self.factor is not None and self.factor <= 1:
            raise ValueError(f"factor {self.factor} must be above 1")
        if self.least is not None and (
            self.factor is None or not 0 < self.least <= len(self.along)
        ):
            raise ValueError(
                f"least {self.least} must lie between 1 and the {len(self.along)} bounds, and "
                "needs a factor"
            )
        if self.rank_at_least is not None and len(self.along) < 3:
            raise ValueError(f"{len(self.along)} bounds have no order worth the name: give 3")
        if any(quantity.value != "bound" for quantity in self.along):
            raise ValueError("every quantity of along must have the value 'bound'")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Value:
    """A quantity equals a printed number within a relative tolerance."""

    kind: Literal["value"] = "value"
    quantity: Quantity
    printed: float
    relative_tolerance: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exact:
    """A number of a check of theory lies within bounds, without statistics."""

    kind: Literal["exact"] = "exact"
    check: str
    number: str  # key in the check's result
    at_least: float | None = None
    at_most: float | None = None


Rule = Threshold | Ordering | Pairs | Trend | Steeper | Predicted | Value | Exact


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """A statement of a paper and the rule that decides it. Rules are fixed before the run."""

    statement: str  # in our words
    location: str  # table, figure or section of the paper
    printed: str  # the paper's number or wording it rests on
    rule: Rule | None = None
    requires: tuple[Threshold, ...] = ()
    # what must hold for the rule to say anything, e.g. that the model retrieves at all
    outcome: Literal["blocked", "protocol underspecified", "not tested at this scale"] | None = None
    # without a rule: why nothing can be measured
    note: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a table."""

    run: str | Mapping[str, str]  # an alias, or axis values of the paper
    label: str
    cells: tuple[str, ...] = ()  # as printed, empty where the paper prints nothing; (): no paper
    snapshot: str = "final"
    evaluations: Mapping[str, str] = dataclasses.field(default_factory=dict)
    # an evaluation of the table -> the one that this row has in its place


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """A column that asks for another number than the rest of its table."""

    heading: str
    value: Measure
    evaluation: str = ""  # at most one of the two; none for values of a training itself
    calibration: str = ""  # of the steps of the row's run
    context: str | None = None

    def __post_init__(self) -> None:
        _check_source(self.value, self.evaluation, self.calibration)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A table of the paper with what of ours stands beside each cell, or one of ours alone."""

    title: str
    location: str = ""  # of the paper; of ours alone there is none
    evaluation: str = ""  # at most one of the two; with neither the table may be only printed
    calibration: str = ""
    value: Measure = "score"
    columns: tuple[str, ...]
    # labels of contexts, cells or shapes; snapshots; or evaluations, empty where none is of them
    by: Literal["context", "snapshot", "evaluation"] = "context"
    headings: tuple[str, ...] = ()  # of the columns, as printed; none: the columns themselves
    context: str | None = None  # for tables by snapshot or by evaluation
    other: Mapping[str, Column] = dataclasses.field(default_factory=dict)
    # those of the columns that ask for another number, by label
    rows: tuple[Row, ...]

    def __post_init__(self) -> None:
        unknown = sorted(set(self.other) - set(self.columns))
        if unknown:
            raise ValueError(f"other names {unknown[0]!r}, which is not among the columns")
        known = {self.evaluation, *(column.evaluation for column in self.other.values())}
        for row in self.rows:
            if not set(row.evaluations) <= known:
                raise ValueError(
                    f"row {row.label!r} replaces {min(set(row.evaluations) - known)!r}, which no "
                    "column asks for"
                )
        if self.evaluation and self.calibration:
            raise ValueError("at most one of evaluation and calibration may be given")
        if bool(self.calibration) != (self.value in COSTS):
            raise ValueError(
                f"value {self.value!r} is "
                + ("of a calibration; name one" if self.value in COSTS else "of no calibration")
            )
        if self.calibration and self.by != "context":
            raise ValueError(f"by {self.by!r}: the columns of a calibration are its shapes")
        if self.headings and len(self.headings) != len(self.columns):
            raise ValueError(f"{len(self.headings)} headings for {len(self.columns)} columns")


# What the stages are given.


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeJob:
    """Stage `judge`: measured numbers and verdicts of one study."""

    study: str
    scale: str
    title: str
    summary: str = ""
    paper: Mapping[str, str]  # authors, year, url, ...; empty: a study of no paper
    claims: Mapping[str, Claim]  # quantities name runs as `study/run`
    tables: Mapping[str, Table]
    cells: Mapping[str, Mapping[str, Quantity]]  # table -> "row,column" from 0 -> ours
    replicas: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    # run -> the same run under other seeds: numbers of the run are means over all of them
    decides: tuple[str, ...]  # claims this scale promised to decide
    inconsistencies: tuple[str, ...]  # of the paper itself
    deviations: tuple[str, ...]  # ours from the paper at this scale
    unstated: tuple[str, ...]  # what the paper does not say and we had to choose
    provenance: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    # run -> key path of a setting -> where it comes from (seed, paper, repo, assumed)
    bootstrap_draws: int = 2000
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accepted:
    """A change of code that somebody declared harmless, so that nothing was made again for it."""

    file: str  # relative to src/, e.g. `ropewalk/data/pack.py`
    old: str  # digest under which the artifacts were made
    new: str  # digest of the file now
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportJob:
    """Stage `report`: pages from the judged studies."""

    name: str
    scale: str
    accepted: tuple[Accepted, ...] = ()  # a reader must see what was not recomputed
