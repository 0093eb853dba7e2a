"""One training step of ropewalk on one device: its parts put together, its time and its memory.

Nothing of the step is rewritten here: objective, inputs, loss, AdamW, gradient norm and numerics
are those of a training run, called in the loop's order. Left out are the loader, which
`benchmarks/loader.py` measures, and checkpoints.

Dimensions: B rows, T tokens of a row.
"""

import dataclasses
import statistics
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from gpu_record import GIB

from ropewalk.base.stage import StageError
from ropewalk.data.packing import best_fit, draw
from ropewalk.model.flops import (
    MODEL_FORMULA,
    STEP_FORMULA,
    attended_pairs,
    model_flops_per_token,
    step_flops,
)
from ropewalk.model.forward import inputs, loss_sum
from ropewalk.model.numerics import applied
from ropewalk.model.spec import Architecture, Numerics, PlainRope, Rope
from ropewalk.train.optimizer import adamw, gradient_norm, scale_gradients
from ropewalk.train.peak import peak_flops
from ropewalk.train.sharding import objective
from ropewalk.train.spec import Optimizer
from ropewalk.train.world import World

# SlimPajama: 627 B tokens in 590 M documents; the spread is the Pile's (`common.py`), in ln tokens.
SLIMPAJAMA_TOKENS, SPREAD = 1062, 1.25
SEED = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of one forward pass."""

    input_ids: np.ndarray  # int64 [B, T]
    boundaries: list[tuple[int, ...]]  # per row (0, ..., n <= T); behind n is padding
    position_ids: np.ndarray  # int64 [1 or B, T]

    @property
    def tokens(self) -> int:
        """Return B * T, padding included: it is computed like the rest."""
        return self.input_ids.size

    @property
    def pairs(self) -> int:
        """Return the (query, key) pairs that attention computes, padding included."""
        length = self.input_ids.shape[1]
        ends = [(*row, length) if row[-1] < length else row for row in self.boundaries]
        return attended_pairs(ends)


def whole(random: np.random.Generator, vocabulary: int, rows: int, length: int) -> Rows:
    """Return rows that are one segment each."""
    return Rows(
        input_ids=_ids(random, vocabulary, rows, length),
        boundaries=[(0, length)] * rows,
        position_ids=np.arange(length)[None],
    )


def packed(
    random: np.random.Generator, vocabulary: int, rows: int, length: int, mean_tokens: int
) -> Rows:
    """Return rows of documents of lognormal length, packed as the policy `documents` does."""
    location = np.log(mean_tokens) - SPREAD**2 / 2
    documents = 64 + 4 * rows * length // mean_tokens  # more than fill the rows
    lengths = np.maximum(random.lognormal(location, SPREAD, documents), 1).astype(np.int32)
    cut = best_fit(lengths, length)
    taken = cut.take(np.resize(draw("documents", cut.count, rows, random), rows))
    pieces = np.split(taken.length, taken.offsets[1:-1])
    return Rows(
        input_ids=_ids(random, vocabulary, rows, length),
        boundaries=[(0, *np.cumsum(row).tolist()) for row in pieces],
        position_ids=np.arange(length)[None],
    )


def halved(rows: Rows) -> Rows:
    """Return rows in which no segment crosses the middle."""
    middle = rows.input_ids.shape[1] // 2
    cut = [tuple(sorted({*ends, min(middle, ends[-1])})) for ends in rows.boundaries]
    return dataclasses.replace(rows, boundaries=cut)


def _ids(random: np.random.Generator, vocabulary: int, rows: int, length: int) -> np.ndarray:
    """Return token ids whose frequency falls as 1 / rank, so that there is something to learn."""
    ranks = vocabulary ** random.random((rows, length))
    return np.minimum(ranks.astype(np.int64), vocabulary) - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnDevice:
    """Random weights drawn on the device: a ropewalk Source for models that exist for a minute.

    `Scratch` draws every tensor on the CPU by its address, which takes minutes for 7 B parameters.
    The distribution is the same: matrices N(0, std), norms 1, biases 0.
    """

    device: torch.device
    std: float

    def check(self, shapes: Mapping[str, torch.Size]) -> None:
        """Accept every model."""

    def rows(self, name: str, shape: torch.Size, start: int, stop: int) -> torch.Tensor:
        """Return rows of a tensor, fp32, on the device."""
        size = (stop - start, *shape[1:])
        if len(shape) == 1:
            fill = torch.zeros if name.endswith(".bias") else torch.ones
            return fill(size, device=self.device)
        random = torch.Generator(self.device).manual_seed(zlib.crc32(name.encode()))
        return torch.empty(size, device=self.device).normal_(0, self.std, generator=random)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """What is trained, and how."""

    architecture: Architecture
    rope: Rope = PlainRope()
    numerics: Numerics
    recompute_activations: bool = False
    compile: bool = False
    lr: float = 4e-4


class Trainer:
    """A model with its optimizer."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case = case
        self.device = device
        self.objective = objective(
            case.architecture,
            case.rope,
            case.numerics,
            OnDevice(device=device, std=case.architecture.init_std),
            World(rank=0, size=1, device=device, mesh=None),
            recompute_activations=case.recompute_activations,
            compile=case.compile,
        )
        spec = Optimizer(lr=case.lr, betas=(0.9, 0.95), weight_decay=0.1, clip_norm=1.0)
        self.clip_norm = spec.clip_norm
        self.optimizer = adamw(self.objective, spec)

    def step(self, passes: Sequence[Rows]) -> float:
        """Do one optimizer step over the rows of all passes; return the mean loss in nats."""
        try:
            with applied(self.case.numerics, self.device):
                loss = self._accumulate(passes)
                parameters = list(self.objective.parameters())
                norm = float(gradient_norm(parameters))
                if self.clip_norm is not None and norm > self.clip_norm:
                    scale_gradients(parameters, self.clip_norm / norm)
                self.optimizer.step()
        finally:  # gradients of a step that did not fit would fill the memory of the next
            self.optimizer.zero_grad(set_to_none=True)
        return loss

    def probe(self, rows: Rows) -> float:
        """Return the seconds of one forward and backward pass, after one that warms up.

        Raises:
            torch.cuda.OutOfMemoryError: if the pass does not fit.
        """
        try:
            with applied(self.case.numerics, self.device):
                self._accumulate([rows])
                return timed(lambda: self._accumulate([rows]), self.device)
        finally:
            self.optimizer.zero_grad(set_to_none=True)

    def _accumulate(self, passes: Sequence[Rows]) -> float:
        ready = [
            inputs(rows.input_ids, rows.boundaries, rows.position_ids, self.device)
            for rows in passes
        ]
        targets = sum(rows.targets for rows in ready)
        total = torch.zeros((), device=self.device)
        for rows in ready:
            loss, _ = loss_sum(self.objective, rows)
            (loss / targets).backward()
            total += loss.detach()
        return float(total) / targets


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Return the wall time of a call in seconds, until the device has done all of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    clock = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - clock


def fits(work: Callable[[], object], device: torch.device) -> bool:
    """Return whether a call gets the memory it asks for; what it held is freed when it does not."""
    try:
        work()
    except torch.cuda.OutOfMemoryError:
        found = False  # the exception holds the tensors of its frames until this block is left
    else:
        found = True
    release_cache(device)
    return found


def release_cache(device: torch.device) -> None:
    """Give freed memory back to the device, so that a search step starts like a new process."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()


def most(possible: Callable[[int], bool], least: int, limit: int) -> int:
    """Return about the largest multiple of `least` up to `limit` that is possible, 0 if none is.

    It doubles until it fails and halves the gap from there to 3 %; larger numbers must not become
    possible again.
    """
    low, high = 0, 1
    while high * least <= limit and possible(high * least):
        low, high = high, high * 2
    while high - low > max(1, low // 32):
        middle = (low + high) // 2
        if middle * least <= limit and possible(middle * least):
            low = middle
        else:
            high = middle
    return low * least


def measured(
    trainer: Trainer, steps: Iterable[list[Rows]], *, warm_up: int, turns: int
) -> dict[str, Any]:
    """Return time, speed and memory of optimizer steps; `steps` has the passes of each, all alike.

    `warm_up` steps (at least one) go before: the first compiles and allocates optimizer state.
    `graphs_compiled` counts after every step; it should not grow while steps are measured.

    Raises:
        StageError: if compilation was asked for and nothing was compiled: torch.compile then runs
            the model as it is, without a word.
    """
    case, device = trainer.case, trainer.device
    already = _graphs() if case.compile else 0
    losses, seconds, flops, graphs = [], [], [], []
    for turn, rows in enumerate(islice(steps, warm_up + turns)):
        if turn == warm_up and device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        # B023: the call is over before the next turn.
        seconds.append(timed(lambda: losses.append(trainer.step(rows)), device))  # noqa: B023
        pairs = sum(r.pairs for r in rows)
        tokens = sum(r.tokens for r in rows)
        graphs.append(_graphs() - already if case.compile else 0)
        if case.compile and not graphs[0]:
            raise StageError("compile: torch.compile fell back to eager, no graph was compiled")
        flops.append(step_flops(case.architecture, tokens=tokens, pairs=pairs))
    length = rows[0].input_ids.shape[1]
    median = statistics.median(seconds[warm_up:])
    per_second = statistics.mean(flops[warm_up:]) / median
    as_published = model_flops_per_token(case.architecture, length) * tokens / median
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    peak = peak_flops(name, case.numerics)
    return {
        "numerics": case.numerics,
        "recompute_activations": case.recompute_activations,
        "compile": case.compile,
        "length_tokens": length,
        "tokens_per_pass": rows[0].tokens,
        "tokens_per_step": tokens,
        "attended_pairs_per_token": pairs / tokens,
        "graphs_compiled": graphs,
        "warm_up_seconds": seconds[:warm_up],
        "seconds": seconds[warm_up:],
        "median_seconds": median,
        "tokens_per_second": tokens / median,
        "flops_per_second": per_second,
        "flops_formula": STEP_FORMULA,
        "peak_flops_per_second": peak,
        "mfu": None if peak is None else per_second / peak,
        "mfu_palm": None if peak is None else as_published / peak,
        "mfu_palm_formula": MODEL_FORMULA,
        "losses": losses,
        **memory(device),
    }


def _graphs() -> int:
    from torch._dynamo.utils import counters  # seconds to import, and for compiled arms only

    return int(counters["stats"]["unique_graphs"])


def memory(device: torch.device) -> dict[str, float | None]:
    """Return the most memory of tensors, and of the allocator, since the counters were reset."""
    if device.type == "cpu":
        return {"peak_allocated_gib": None, "peak_reserved_gib": None}
    return {
        "peak_allocated_gib": round(torch.cuda.max_memory_allocated(device) / GIB, 3),
        "peak_reserved_gib": round(torch.cuda.max_memory_reserved(device) / GIB, 3),
    }
