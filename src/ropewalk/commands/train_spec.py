"""From the flags of `ropewalk train` to the parts of its spec: pure functions, without torch."""

import argparse
from collections.abc import Sequence

from ropewalk.base.canonical import plain
from ropewalk.base.spec import SpecError
from ropewalk.commands.flags import given, refuse, spelled
from ropewalk.commands.train_flags import TOKENS_PER_FORWARD
from ropewalk.model.spec import (
    Architecture,
    BaseRope,
    LinearRope,
    LogScaledRope,
    NaturalPositions,
    NtkRope,
    Numerics,
    PlainRope,
    PosePositions,
    Positions,
    RandPosPositions,
    Rope,
    StringRope,
    YarnRevisedRope,
    YarnRope,
)
from ropewalk.train.spec import Batch, Hardware, Optimizer, Phase, Schedule

WINDOWS = "by-hand"  # name of the only windows definition of a run by flags
ROWS = 64  # of a step, as in PoSE (arXiv 2309.10400, section 4.1)

_ROPES: dict[str, tuple[type, tuple[str, ...]]] = {  # kind -> spec, the flags it takes
    "plain": (PlainRope, ()),
    "base": (BaseRope, ("base",)),
    "linear": (LinearRope, ("factor",)),
    "ntk": (NtkRope, ("factor",)),
    "yarn": (YarnRope, ("factor", "beta_fast", "beta_slow")),
    "yarn_revised": (YarnRevisedRope, ("factor", "beta_fast", "beta_slow")),
    "log_scaled": (LogScaledRope, ("log_window", "base")),
}
_ROPE_FLAGS = ("factor", "base", "beta_fast", "beta_slow", "log_window")
_NEEDED = ("factor", "base")  # of those a rope takes; log_scaled needs none
_POSE_FLAGS = ("chunks", "chunk_lengths", "content", "first", "document_tokens")


def rope(options: argparse.Namespace, architecture: Architecture, theirs: Rope) -> Rope:
    """Return the rope of the flags, or `theirs` (of the checkpoint) where none is given.

    Raises:
        SpecError: for a missing parameter, or one that the rope does not take.
    """
    if options.rope is None:
        refuse(options, _ROPE_FLAGS, "needs --rope: say which method it belongs to")
        return theirs
    kind, takes = _ROPES[options.rope]
    refuse(options, (f for f in _ROPE_FLAGS if f not in takes), f"is not for --rope {options.rope}")
    flag = f"--rope {options.rope}"
    if kind is LogScaledRope:
        frequencies = (
            theirs.frequencies if isinstance(theirs, LogScaledRope | StringRope) else theirs
        )
        if options.base is not None:
            frequencies = given(BaseRope, {"base": options.base}, "--base")
        window = options.log_window or architecture.context_tokens
        settings = {"window_tokens": window, "frequencies": plain(frequencies)}
        return given(LogScaledRope, settings, flag)
    for name in takes:
        if name in _NEEDED and getattr(options, name) is None:
            raise SpecError(f"{flag} needs {spelled(name)}")
    return given(kind, {name: getattr(options, name) for name in takes}, flag)


def reach(architecture: Architecture, found: Rope) -> float | None:
    """Return up to where the angles of a rope are those of pretraining; None where unknown.

    A method with a factor s takes s times the window to where the window was.
    """
    match found:
        case PlainRope():
            return architecture.context_tokens
        case LinearRope(factor=s) | NtkRope(factor=s) | YarnRope(factor=s):
            return architecture.context_tokens * s
        case YarnRevisedRope(factor=s):
            return architecture.context_tokens * s
    return None


def positions(options: argparse.Namespace) -> Positions:
    """Return the positions of the flags.

    Raises:
        SpecError: for a missing target, or a flag that the method does not take.
    """
    method = options.positions
    if method != "pose":
        refuse(options, _POSE_FLAGS, f"is for --positions pose, not {method}")
    if method == "natural":
        return NaturalPositions()
    if options.target is None:
        raise SpecError(f"--positions {method} needs --target, the window to be learned")
    flag = f"--positions {method}"
    settings = {"target_tokens": options.target}
    if method == "randpos":
        return given(RandPosPositions, settings, flag)
    settings |= {
        "chunks": options.chunks,
        "lengths": options.chunk_lengths,
        "content": options.content,
        "first": options.first,
        "document_tokens": options.document_tokens,
    }
    return given(PosePositions, settings, flag)


def lengths(options: argparse.Namespace, window_tokens: int) -> tuple[int, ...]:
    """Return the tokens of a row, phase by phase; `window_tokens` is the pretraining window.

    Raises:
        SpecError: for flags that contradict each other.
    """
    if options.lengths is not None:
        refuse(options, ("length",), "and --lengths: give one of them")
        if options.positions == "natural":
            refuse(options, ("target",), "is for --length: the last of --lengths is the target")
        if len(set(options.lengths)) < len(options.lengths):
            raise SpecError(f"--lengths {options.lengths}: a length is given twice")
        return tuple(options.lengths)
    if options.positions != "natural":
        return (options.length or window_tokens,)
    if None not in (options.length, options.target) and options.length != options.target:
        raise SpecError(
            f"--length {options.length} and --target {options.target}: with --positions natural a "
            "row is as long as the window it teaches; give one of them, or --positions pose"
        )
    return (options.length or options.target or window_tokens,)


def policy(options: argparse.Namespace, found: Positions) -> str:
    """Return how rows are cut from documents.

    Raises:
        SpecError: for a policy that lacks the text which the positions read.
    """
    if not isinstance(found, PosePositions) or found.content == "contiguous":
        return options.policy or "documents"
    if options.policy not in (None, "per_document"):
        raise SpecError(
            f"--policy {options.policy}: --positions pose with --content {found.content} reads "
            "chunks from all over one document; leave --policy out, or add --content contiguous"
        )
    return "per_document"


def batch(options: argparse.Namespace, rows: Sequence[int]) -> Batch:
    """Return the size of a step; rows of several lengths have equal tokens per step.

    Raises:
        SpecError: for two sizes, or one that is not positive.
    """
    if options.batch is not None and options.batch_tokens is not None:
        raise SpecError("--batch and --batch-tokens: give one of them")
    for name in ("batch", "batch_tokens"):
        size = getattr(options, name)
        if size is not None and size < 1:
            raise SpecError(f"{spelled(name)} {size} must be at least 1")
    if options.batch_tokens is not None:
        return Batch(tokens=options.batch_tokens)
    sequences = options.batch or ROWS
    return Batch(sequences=sequences) if len(rows) == 1 else Batch(tokens=sequences * max(rows))


def phases(
    options: argparse.Namespace, rows: Sequence[int], size: Batch, angles: Rope, found: Positions
) -> tuple[Phase, ...]:
    """Return one phase per length of row, steps split evenly (earlier ones take what is over).

    Raises:
        SpecError: unless exactly one of steps and tokens is given, for fewer steps than phases, or
            for settings a phase refuses.
    """
    if (options.steps is None) == (options.train_tokens is None):
        raise SpecError("--steps or --train-tokens: give one of them")
    shares: list[dict[str, int | None]]
    if len(rows) == 1:
        shares = [{"steps": options.steps, "tokens": options.train_tokens}]
    else:
        steps = options.steps
        if steps is None:
            steps = options.train_tokens // (size.tokens or 1)
        if steps < len(rows):
            raise SpecError(
                f"--lengths has {len(rows)} phases, for {steps} steps: one each at least"
            )
        whole, over = divmod(steps, len(rows))
        shares = [{"steps": whole + (index < over)} for index in range(len(rows))]
    common = {"windows": WINDOWS, "rope": plain(angles), "positions": plain(found)}
    return tuple(
        given(Phase, {**common, **share, "length_tokens": length}, f"rows of {length} tokens")
        for share, length in zip(shares, rows, strict=True)
    )


def optimizer(options: argparse.Namespace) -> Optimizer:
    """Return AdamW as the flags say.

    Raises:
        SpecError: for other than two betas.
    """
    return given(
        Optimizer,
        {
            "lr": options.lr,
            "betas": options.betas,
            "weight_decay": options.weight_decay,
            "clip_norm": options.clip or None,
        },
        "optimizer",
    )


def schedule(options: argparse.Namespace) -> Schedule:
    """Return the schedule of the learning rate.

    Raises:
        SpecError: for a final share of a rate that stays where it is.
    """
    if options.schedule == "constant":
        refuse(options, ("final_share",), "is for --schedule linear or cosine")
    return given(
        Schedule,
        {
            "shape": options.schedule,
            "warmup_steps": options.warmup,
            "warmup_from": options.warmup_from,
            "final": options.final_share,
        },
    )


def numerics(options: argparse.Namespace, capability: tuple[int, int] | None) -> Numerics:
    """Return the numerics: what was given as it is, the rest by the device.

    `capability` is the compute capability of the GPU, None for a CPU. Whether the device can do
    what was asked for is checked elsewhere; nothing is changed for it.
    """
    recent = capability is not None and capability >= (8, 0)  # has bf16 and FlashAttention-2
    usual = "fp32" if capability is None else "bf16" if recent else "fp16"
    precision = options.precision or usual
    attention = "flash" if recent and precision != "fp32" else "sdpa"
    return given(
        Numerics,
        {
            "precision": precision,
            "matmul": options.matmul,
            "attention": options.attention or attention,
        },
    )


def hardware(options: argparse.Namespace, device: str, rows: Sequence[int]) -> Hardware:
    """Return where and how the run is executed."""
    at_once = options.sequences_per_forward or max(1, TOKENS_PER_FORWARD // max(rows))
    return given(
        Hardware,
        {
            "device": device,
            "processes": options.processes,
            "sequences_per_forward": at_once,
            "recompute_activations": options.recompute,
            "compile": options.compile,
            "checkpoint_every_seconds": options.checkpoint_every,
        },
    )
