"""What the evaluation room can be asked for.

Contexts are labelled 1x, 2x, ... of the window. A protocol says everything its number depends on
beside weights, rope, data and numerics; `presets` has those of the papers by name.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from ropewalk.base.canonical import EXECUTION
from ropewalk.model.spec import Numerics, Rope

Outcome = Literal["non_finite", "dropped", "truncated"]
# What a number may quietly have lost: losses that are not finite, cases that could not be made,
# texts that were cut although no setting says so. Each is counted; a stage fails at the first kind
# its protocol does not name in `allow`.
Bos = Literal["none", "document", "window"]
# Where BOS (EOS where a tokenizer has no BOS) is read: nowhere, before a document, before every
# window. It is never scored, and counts in the tokens of a document, a window and a minimum.


def _shortest(contexts: Mapping[str, int]) -> int:
    if not contexts:
        raise ValueError("contexts is empty: name at least one label with its tokens")
    return min(contexts.values())


def _at_least(minimum: int, **values: float | None) -> None:
    for name, value in values.items():
        if value is not None and value < minimum:
            raise ValueError(f"{name} {value} must be at least {minimum}")


def _shares(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value <= 1:
            raise ValueError(f"{name} {value} must lie in (0, 1]")


def _all_finite(allow: tuple[Outcome, ...]) -> None:
    if "non_finite" in allow:
        raise ValueError(
            "allow 'non_finite' is for losses of a given text alone: without its numbers a trial "
            "or an answer is neither right nor wrong; name dropped or truncated, or none"
        )


# Losses of a given text.


@dataclasses.dataclass(frozen=True, kw_only=True)
class SameTokens:
    """Loss on the same target tokens at every context: one forward per document and context.

    Each document gives the stretch of max(contexts) tokens after its first one. At context L the
    model reads its last L tokens, and the last `scored_tokens` of them are scored. So a difference
    between contexts is the effect of the context, never of other targets.
    """

    kind: Literal["same_tokens"] = "same_tokens"
    contexts: Mapping[str, int]  # label -> tokens read
    scored_tokens: int
    documents: int  # documents with more than max(contexts) tokens; fewer is an error
    allow: tuple[Outcome, ...] = ()

    def __post_init__(self) -> None:
        shortest = _shortest(self.contexts)
        _at_least(1, documents=self.documents)
        if not 0 < self.scored_tokens < shortest:
            raise ValueError(
                f"scored_tokens {self.scored_tokens} must lie between 1 and the shortest context "
                f"{shortest} minus 1"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlidingWindow:
    """Sliding-window perplexity, in every convention that is in use (`presets` names them).

    The first window is scored whole, each later one, `stride_tokens` further on, only on what is
    new in it.
    """

    kind: Literal["sliding_window"] = "sliding_window"
    contexts: Mapping[str, int]  # label -> tokens of a window
    stride_tokens: int | None = None  # None: one window, the beginning of the text ("truncated")
    documents: int | None = None  # the first ones, in corpus order; None: all
    skip_tokens: int = 0
    # left out at the beginning of each document, which is then counted from there: licences and
    # title pages are alike, so that a model knows them by heart
    minimum_tokens: int = 0  # shorter documents are left out
    cut_tokens: int | None = None  # documents are cut to this length
    text: Literal["documents", "stream"] = "documents"
    # stream: all documents laid end to end, windows cross their borders
    bos: Bos = "document"
    window: Literal["tokens", "inputs"] = "tokens"
    # whether a window's last target is among its tokens, or one more than it reads
    tail: Literal["full", "short", "drop", "drop_last"] = "full"
    # the last window, with less than a stride left to score: moved left until it is full; begun a
    # stride further on like all others and so shorter; left out; left out with the one before it
    scored: Literal["new", "all"] = "new"  # all: tokens in several windows count several times
    mean: Literal["tokens", "windows", "labels"] = "tokens"
    # over scored tokens; over the means of windows; over those, weighted by their scored tokens
    # less one in every window but the first of a text (an off-by-one of a widely copied loop)
    allow: tuple[Outcome, ...] = ()

    def __post_init__(self) -> None:
        shortest = _shortest(self.contexts)
        _at_least(1, documents=self.documents)
        _at_least(0, skip_tokens=self.skip_tokens, minimum_tokens=self.minimum_tokens)
        if self.window == "tokens" and shortest < 2:
            raise ValueError(f"the context {shortest} is below 2: no token can be scored")
        longest = shortest if self.window == "inputs" else shortest - 1
        if self.stride_tokens is not None and not 0 < self.stride_tokens <= longest:
            raise ValueError(
                f"stride_tokens {self.stride_tokens} must lie between 1 and {longest}, what the "
                f"shortest context {shortest} can score (nothing predicts the first token of a "
                "window)"
            )
        _at_least(2, cut_tokens=self.cut_tokens)  # the first one is not scored


@dataclasses.dataclass(frozen=True, kw_only=True)
class PositionCurve:
    """Loss and next-token accuracy by position, and truncated perplexity at every context.

    One forward per document serves all contexts: by causality the loss at a token depends on the
    tokens before it alone. That fails where the rope depends on the length that is read (dynamic
    NTK; STRING, whose shift is chosen for a length): there it is refused.
    """

    kind: Literal["position_curve"] = "position_curve"
    contexts: Mapping[str, int]  # label -> tokens from the beginning of the document
    documents: int | None = None  # the first ones with at least max(contexts) tokens; None: all
    skip_tokens: int = 0  # left out at the beginning of each document, see `SlidingWindow`
    bos: Bos = "document"
    points: int = 64  # of the curve: bins of positions whose widths grow geometrically
    allow: tuple[Outcome, ...] = ()

    def __post_init__(self) -> None:
        if _shortest(self.contexts) < 2:
            raise ValueError("a context below 2 tokens scores nothing")
        _at_least(1, documents=self.documents, points=self.points)
        _at_least(0, skip_tokens=self.skip_tokens)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conventions:
    """One model, one text, one window and stride under several presets: what convention alone does.

    Windows that presets share are read once.
    """

    kind: Literal["conventions"] = "conventions"
    context_tokens: int
    stride_tokens: int
    documents: int | None = None
    minimum_tokens: int = 0
    cut_tokens: int | None = None
    presets: tuple[str, ...] = (
        "pi_sliding",
        "pose_sliding",
        "yarn_window_mean",
        "longlora_all_windows",
        "hf_guide",
        "lm_eval_rolling",
    )
    allow: tuple[Outcome, ...] = ()

    def __post_init__(self) -> None:
        _at_least(2, context_tokens=self.context_tokens, cut_tokens=self.cut_tokens)
        _at_least(1, stride_tokens=self.stride_tokens, documents=self.documents)
        _at_least(0, minimum_tokens=self.minimum_tokens)
        if not self.presets or len(set(self.presets)) < len(self.presets):
            raise ValueError(f"presets {list(self.presets)} must name at least one, each once")


# Retrieval.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Passkey:
    """Passkey retrieval in the wording of the paper (PI fig. 3), reach by its k_max rule.

    `distances` values of k (tokens between the key and the end of the prompt) lie evenly in
    (0, context]; k_max is the largest k such that every k' <= k succeeds in at least `threshold` of
    its trials (PI, section 3.3).
    """

    kind: Literal["passkey"] = "passkey"
    context_tokens: int
    distances: int = 32
    trials: int = 10  # per distance
    threshold: float = 0.2
    digits: int = 5
    prompt: Literal["shortest", "full"] = "shortest"
    # as long as the distance needs, or always `context_tokens` (filled before the key)
    decoded_tokens: int | None = None
    # None: no decoding; all answer tokens must be first choices given those before them, which is
    # what greedy decoding with token equality decides
    scorer: Literal["tokens", "first_integer", "substring"] = "tokens"  # which of them decides
    allow: tuple[Outcome, ...] = ()

    def __post_init__(self) -> None:
        _all_finite(self.allow)
        _at_least(1, context_tokens=self.context_tokens, distances=self.distances)
        _at_least(1, trials=self.trials, digits=self.digits, decoded_tokens=self.decoded_tokens)
        _shares(threshold=self.threshold)
        if self.scorer != "tokens" and self.decoded_tokens is None:
            raise ValueError(f"scorer {self.scorer!r} reads an answer: set decoded_tokens (10)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecallProbe:
    """Retrieval for models too small to read: recall documents, asked at chosen distances.

    Same rule for the reach as `Passkey`; chance is 1 / `keys`.
    """

    kind: Literal["recall"] = "recall"
    context_tokens: int
    distances: int = 32
    trials: int = 10
    threshold: float = 0.2
    keys: int = 64
    pairs: int = 4  # pairs shown together; one of them is asked for
    shown: int = 2  # times they are shown, one showing after the other, as the passkey prompt does
    prompt: Literal["shortest", "full"] = "shortest"
    # as long as the distance needs, or always `context_tokens` (filled before the pairs)
    allow: tuple[Outcome, ...] = ()

    def __post_init__(self) -> None:
        _all_finite(self.allow)
        _at_least(1, context_tokens=self.context_tokens, distances=self.distances)
        _at_least(1, trials=self.trials, shown=self.shown)
        if not 1 <= self.pairs <= self.keys:
            raise ValueError(f"pairs {self.pairs} must lie between 1 and keys {self.keys}")
        _shares(threshold=self.threshold)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CopyProbe:
    """Induction, for models too small to read: random tokens, filler, the same tokens again.

    The drop is the mean loss of the first showing less that of the second. The effective length is
    the largest distance such that at it and at every shorter one the drop is at least `share` of
    the drop at the shortest; 0 where the shortest drop is not above `least_nats`.
    """

    kind: Literal["copy"] = "copy"
    context_tokens: int
    distances: int = 16  # from the shortest to the longest possible, spaced geometrically
    trials: int = 32  # per distance
    segment_tokens: int = 16
    share: float = 0.5
    least_nats: float = 0.5
    allow: tuple[Outcome, ...] = ()

    def __post_init__(self) -> None:
        _all_finite(self.allow)
        _at_least(1, distances=self.distances, trials=self.trials)
        _at_least(2, segment_tokens=self.segment_tokens)
        _at_least(0, least_nats=self.least_nats)
        _shares(share=self.share)
        if self.context_tokens < 2 * self.segment_tokens + 1:
            raise ValueError(
                f"context_tokens {self.context_tokens} cannot hold two segments of "
                f"{self.segment_tokens} tokens and one before them"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tasks:
    """Needle and RULER-like tasks at chosen lengths, answered by greedy decoding."""

    kind: Literal["tasks"] = "tasks"
    tasks: tuple[str, ...]  # names in `tasks.TASKS`
    lengths: tuple[int, ...]  # tokens of a prompt with the room for its answer
    samples: int = 50  # per task and length
    allow: tuple[Outcome, ...] = ()

    def __post_init__(self) -> None:
        if not self.tasks or not self.lengths:
            raise ValueError("tasks and lengths must name at least one each")
        _all_finite(self.allow)
        _at_least(1, samples=self.samples, lengths=min(self.lengths))


# Generation, and other people's tasks.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summaries:
    """Summaries of documents that come with one, by ROUGE (PI, section 3.5: GovReport).

    The corpus is a fine-tuning corpus: its prompt is read, its target is the reference.
    """

    kind: Literal["summaries"] = "summaries"
    documents: int | None = None  # the first ones; None: all
    new_tokens: int = 1000  # of a summary, at most
    temperature: float = 0.5  # 0: greedy
    top_p: float = 0.95
    stemmer: bool = False
    sentences: Literal["newlines", "full_stops"] = "full_stops"
    # what ends a sentence for ROUGE-Lsum; ROUGE-1, 2 and L read a text as one
    allow: tuple[Outcome, ...] = ()

    def __post_init__(self) -> None:
        _all_finite(self.allow)
        _at_least(1, documents=self.documents, new_tokens=self.new_tokens)
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"temperature {self.temperature} must be 0 or above, top_p {self.top_p} in (0, 1]"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Harness:
    """Tasks of lm-evaluation-harness, in process, with the model as it is read here."""

    kind: Literal["harness"] = "harness"
    tasks: tuple[str, ...]  # names of the papers (`harness.NAMES`) or of the harness
    shots: int = 0
    limit: int | None = None  # documents of each task; None: all
    context_tokens: int | None = None
    # the longest text that is read; a longer prompt counts as truncated, a document is scored in
    # windows of as many. None: what the model can read at all
    folder: str | None = dataclasses.field(default=None, metadata=EXECUTION)
    # of task files of your own
    allow: tuple[Outcome, ...] = ()

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError("tasks is empty: name at least one")
        _all_finite(self.allow)
        _at_least(1, limit=self.limit, context_tokens=self.context_tokens)
        _at_least(0, shots=self.shots)


Losses = SameTokens | SlidingWindow | PositionCurve | Conventions
Protocol = (
    SameTokens
    | SlidingWindow
    | PositionCurve
    | Conventions
    | Passkey
    | RecallProbe
    | CopyProbe
    | Tasks
    | Summaries
    | Harness
)


_ROOM = __name__.rpartition(".")[0]
_MODULES: Mapping[type, str] = {
    SameTokens: "losses",
    SlidingWindow: "losses",
    PositionCurve: "losses",
    Conventions: "losses",
    Passkey: "passkey",
    RecallProbe: "recall_probe",
    CopyProbe: "copying",
    Tasks: "tasks",
    Summaries: "summaries",
    Harness: "harness",
}


def protocol_module(protocol: Protocol) -> str:
    """Return the module that knows a protocol: its function `plan`, or `run` for the harness."""
    return f"{_ROOM}.{_MODULES[type(protocol)]}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A protocol applied to runs. For retrieval the corpus gives the filler text."""

    protocol: Protocol
    corpus: str  # name of the corpus it is measured on
    runs: tuple[str, ...]  # run names, `study/run`, or patterns such as `shared/*`
    snapshots: Literal["final", "all"] = "final"
    rope: Rope | None = None  # in place of the one the run was trained with
    numerics: Numerics = Numerics()
    seed: int = 0
    device: str = dataclasses.field(default="cpu", metadata=EXECUTION)
    sequences_per_forward: int = dataclasses.field(default=8, metadata=EXECUTION)

    def __post_init__(self) -> None:
        _at_least(1, sequences_per_forward=self.sequences_per_forward)


# What the stages are given.


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateJob:
    """Stage `evaluate`: one evaluation of one run, at its final weights and snapshots."""

    protocol: Protocol
    snapshots: Literal["final", "all"] = "final"
    rope: Rope | None = None
    numerics: Numerics = Numerics()
    seed: int = 0
    device: str = dataclasses.field(default="cpu", metadata=EXECUTION)
    sequences_per_forward: int = dataclasses.field(default=8, metadata=EXECUTION)

    def __post_init__(self) -> None:
        _at_least(1, sequences_per_forward=self.sequences_per_forward)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckJob:
    """Stage `check`: an exact check of theory or data that needs no model."""

    check: Literal[
        "pi_interpolation_bound",
        "pi_extrapolation_bound",
        "pi_random_fit",
        "pose_coverage",
        "rope_bounds",
        "position_frequency",
    ]
    parameters: Mapping[str, float]


_CHECKS = {
    "pi_interpolation_bound": "check_pi",
    "pi_extrapolation_bound": "check_pi",
    "pi_random_fit": "check_pi",
    "pose_coverage": "check_pose",
    "rope_bounds": "check_rope_laws",
    "position_frequency": "check_string",
}


def check_module(check: str) -> str:
    """Return the module that holds a check in its `CHECKS`."""
    return f"{_ROOM}.{_CHECKS[check]}"
