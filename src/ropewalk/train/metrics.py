"""What a training writes down: one JSON line per step, and what the numbers in it mean.

`metrics.jsonl` has a line per step and nothing else. `metrics-header.json` beside it says once what
each field means, which formulas count the FLOPs, and for every attempt which machine it ran on and
the peak its MFU is a share of: a run can go on on another GPU.

Fields are of two kinds. Results follow from the recipe and are equal to the bit when a run is
repeated on a CPU; measurements are not, and no result or verdict is computed from them.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from ropewalk.base.files import read_json, write_json, write_text
from ropewalk.model.flops import MODEL_FORMULA, STEP_FORMULA
from ropewalk.train.machine import Machine
from ropewalk.train.screen import Screen
from ropewalk.train.trackers import trackers


def _result(meaning: str) -> dict[str, str]:
    return {"kind": "result", "meaning": meaning}


def _measurement(meaning: str) -> dict[str, str]:
    return {"kind": "measurement", "meaning": meaning}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metrics:
    """One optimizer step. What a field means stands in its metadata, and in the header."""

    step: int = dataclasses.field(metadata=_result("optimizer steps done after this one"))
    tokens: int = dataclasses.field(metadata=_result("tokens read so far, over all processes"))
    loss: float = dataclasses.field(
        metadata=_result("mean over the targets of the step, nats per token, before the update")
    )
    lr: float = dataclasses.field(metadata=_result("learning rate of the update"))
    grad_norm: float | None = dataclasses.field(
        metadata=_result("L2 norm of the gradient before clipping; null: fp16 overflowed")
    )
    phase: int | None = dataclasses.field(
        default=None, metadata=_result("index of the phase the step belongs to, from 0")
    )
    sequences: int | None = dataclasses.field(
        default=None,
        metadata=_result("sequences of the phase read so far: the number of the next one"),
    )
    scale: float | None = dataclasses.field(
        default=None, metadata=_result("fp16 loss scale of the step; null in other precisions")
    )
    skipped: bool | None = dataclasses.field(
        default=None, metadata=_result("whether fp16 overflowed and nothing was updated")
    )
    tokens_per_second: float = dataclasses.field(
        metadata=_measurement("of this step, over all processes")
    )
    flops_per_second: float | None = dataclasses.field(
        default=None,
        metadata=_measurement("matrix-product FLOPs of this step, executed, over all processes"),
    )
    mfu: float | None = dataclasses.field(
        default=None,
        metadata=_measurement(
            "flops_per_second as a share of the dense peak of all devices; null: peak not known"
        ),
    )
    memory_bytes: int | None = dataclasses.field(
        default=None,
        metadata=_measurement(
            "largest over processes; GPU: most allocated in the step; CPU: resident set"
        ),
    )


class MetricsLog:
    """The metrics of a run, continued after a given step; only one process has one."""

    def __init__(
        self,
        work: Path,
        *,
        after_step: int,
        steps: int,
        machine: Machine | None = None,
        model_flops_per_token: Sequence[int] = (),
        run_id: str | None = None,
        config: Mapping[str, Any] | None = None,
        screen: Screen | None = None,
    ) -> None:
        """Open the files and trackers, which can take seconds: before the first step is timed.

        `model_flops_per_token`, by phase, is `ropewalk.model.flops.model_flops_per_token`;
        `run_id` (default: the name of the work folder) and `config` are for the trackers.

        Raises:
            StageError: for a tracker that was asked for and cannot be had.
        """
        self.file = work / "metrics.jsonl"
        # Steps behind the checkpoint are done again: their lines go, and with them a torn last one.
        kept = [entry for entry in read(self.file) if entry["step"] <= after_step]
        write_text(self.file, "".join(json.dumps(entry) + "\n" for entry in kept))
        _write_header(work / "metrics-header.json", after_step, machine, model_flops_per_token)
        self._trackers = trackers(
            work, after_step=after_step, run_id=run_id or work.name, config=config or {}
        )
        self._stream: TextIO = self.file.open("a", encoding="utf-8")
        self._screen = screen or Screen(after_step=after_step, steps=steps)

    def add(self, metrics: Metrics) -> None:
        """Append one step."""
        entry = vars(metrics)
        self._stream.write(json.dumps(entry) + "\n")
        self._stream.flush()
        values = {k: float(v) for k, v in entry.items() if k != "step" and v is not None}
        for tracker in self._trackers:
            tracker.add(metrics.step, values)
        self._screen.show(
            step=metrics.step,
            loss=metrics.loss,
            lr=metrics.lr,
            tokens_per_second=metrics.tokens_per_second,
            flops_per_second=metrics.flops_per_second,
            mfu=metrics.mfu,
            memory_bytes=metrics.memory_bytes,
            skipped=metrics.skipped,
        )

    def sync(self) -> None:
        """Make everything written so far durable, before a checkpoint says that it happened."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        for tracker in self._trackers:
            tracker.sync()

    def close(self, *, failed: bool = False) -> None:
        """Sync and close; `failed` tells trackers that the training ended with an error."""
        self._screen.close()
        self.sync()
        self._stream.close()
        for tracker in self._trackers:
            tracker.close(failed=failed)


def read(file: Path) -> list[dict[str, Any]]:
    """Return the steps in a metrics file, in order; a torn last line is left out."""
    entries: list[dict[str, Any]] = []
    if file.is_file():
        for line in file.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                entries.append(json.loads(line))
    return entries


def curve(entries: list[dict[str, Any]], points: int = 200) -> list[list[float]]:
    """Return [[step, loss]] at up to `points` evenly spaced steps, first and last included."""
    count = len(entries)
    if count > points:
        chosen = sorted({round(i * (count - 1) / (points - 1)) for i in range(points)})
        entries = [entries[i] for i in chosen]
    return [[entry["step"], entry["loss"]] for entry in entries]


def switches(entries: list[dict[str, Any]], steps: int = 20) -> list[dict[str, Any]]:
    """Return the losses around the beginning of every phase but the first, nats per token.

    `step` is the number of steps done before it; `before` and `after` hold the losses of up to
    `steps` steps on either side, within the two phases that meet there.
    """
    found = []
    for place in range(1, len(entries)):
        old, new = entries[place - 1]["phase"], entries[place]["phase"]
        if old == new:
            continue
        before = [e["loss"] for e in entries[max(0, place - steps) : place] if e["phase"] == old]
        after = [e["loss"] for e in entries[place : place + steps] if e["phase"] == new]
        found.append({"phase": new, "step": place, "before": before, "after": after})
    return found


def _write_header(
    file: Path, after_step: int, machine: Machine | None, model_flops_per_token: Sequence[int]
) -> None:
    """Write the header anew, with the attempts whose steps stand in the metrics and this one."""
    before = read_json(file)["attempts"] if file.is_file() else []
    attempt: dict[str, Any] = {"from_step": after_step}
    if machine is not None:
        attempt |= dataclasses.asdict(machine)
    write_json(
        file,
        {
            "fields": {f.name: dict(f.metadata) for f in dataclasses.fields(Metrics)},
            "flops_of_a_step": STEP_FORMULA,
            "mfu": "flops_of_a_step / seconds / (processes * peak_flops_per_second)",
            "mfu_as_published": (
                "tokens_per_second * model_flops_per_token[phase] / (processes * "
                "peak_flops_per_second)"
            ),
            "model_flops_per_token": list(model_flops_per_token),
            "model_flops_per_token_formula": MODEL_FORMULA,
            "attempts": [a for a in before if a["from_step"] < after_step] + [attempt],
        },
    )
