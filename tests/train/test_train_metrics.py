"""What a training writes down survives interruptions, says what it means, and costs no time."""

import dataclasses
import io
import json
import statistics
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ropewalk.base.stage import StageError
from ropewalk.model.spec import Numerics
from ropewalk.train.machine import Machine, machine, memory_bytes
from ropewalk.train.metrics import Metrics, MetricsLog, read
from ropewalk.train.peak import PEAKS, peak_flops
from ropewalk.train.screen import Screen
from ropewalk.train.trackers import Guarded

A100 = Machine(
    device="NVIDIA A100-SXM4-80GB",
    processes=16,
    precision="bf16",
    matmul="highest",
    peak_flops_per_second=312e12,
)


@pytest.fixture(autouse=True)
def no_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_PROJECT", raising=False)


def metrics(step: int, **changes: Any) -> Metrics:
    values: dict[str, Any] = {
        "step": step,
        "tokens": step * 256,
        "loss": 4.0 - step / 100,
        "lr": 1e-3,
        "grad_norm": 0.5,
        "tokens_per_second": 1000.0,
    }
    return Metrics(**{**values, **changes})


def write(work: Path, first: int, last: int, **settings: Any) -> None:
    log = MetricsLog(work, after_step=first - 1, steps=100, **settings)
    for step in range(first, last + 1):
        log.add(metrics(step))
    log.close()


# The file and its header


def test_train_metrics_go_on_behind_the_checkpoint(tmp_path: Path) -> None:
    """Steps done again must not stand in the curve twice, nor a torn line stop the resumption."""
    write(tmp_path, 1, 9)
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 10, "lo')
    write(tmp_path, 7, 8)
    entries = read(tmp_path / "metrics.jsonl")
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert Metrics(**entries[3]) == metrics(4)


def test_train_metrics_are_on_disk_step_by_step(tmp_path: Path) -> None:
    """A killed training would lose the steps that explain why."""
    log = MetricsLog(tmp_path, after_step=0, steps=9)
    log.add(metrics(1, grad_norm=None, scale=1024.0, skipped=True, phase=2, sequences=64))
    (entry,) = read(log.file)
    log.close()
    assert entry["skipped"] is True
    assert entry["grad_norm"] is None
    assert (entry["phase"], entry["sequences"], entry["scale"]) == (2, 64, 1024.0)
    assert entry["mfu"] is None  # not measured is not zero


def test_train_metrics_header_explains_every_field(tmp_path: Path) -> None:
    """A number without its unit and formula is read as somebody else's convention."""
    write(tmp_path, 1, 2, machine=A100, model_flops_per_token=[8_497, 9_604])
    header = json.loads((tmp_path / "metrics-header.json").read_text())
    assert set(header["fields"]) == set(read(tmp_path / "metrics.jsonl")[0])
    assert {f["kind"] for f in header["fields"].values()} == {"result", "measurement"}
    assert header["fields"]["tokens_per_second"]["kind"] == "measurement"
    assert header["fields"]["loss"]["kind"] == "result"
    assert header["model_flops_per_token"] == [8_497, 9_604]
    assert header["attempts"] == [{"from_step": 0, **dataclasses.asdict(A100)}]


def test_train_metrics_header_knows_the_machine_of_every_step(tmp_path: Path) -> None:
    """An MFU of yesterday's GPU over today's peak, or an attempt whose steps were all redone."""
    h100 = dataclasses.replace(A100, device="NVIDIA H100 PCIe", peak_flops_per_second=756.5e12)
    write(tmp_path, 1, 9, machine=A100)
    write(tmp_path, 6, 7, machine=h100)  # no checkpoint: its two steps are done again
    write(tmp_path, 6, 9, machine=A100)
    header = json.loads((tmp_path / "metrics-header.json").read_text())
    assert [(a["from_step"], a["device"]) for a in header["attempts"]] == [
        (0, A100.device),
        (5, A100.device),
    ]


def test_train_metrics_add_takes_well_under_a_millisecond(tmp_path: Path) -> None:
    """Logging on the training's own thread is invisible in a profile of the GPU."""
    log = MetricsLog(tmp_path, after_step=0, steps=1000, machine=A100)
    full = {"flops_per_second": 1e12, "mfu": 0.4, "memory_bytes": 2**30, "scale": 1.0, "phase": 0}
    seconds = []
    for step in range(1, 201):
        clock = time.perf_counter()
        log.add(metrics(step, **full))
        seconds.append(time.perf_counter() - clock)
    log.close()
    assert statistics.median(seconds) < 1e-3


# The line on the screen


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(stream: io.StringIO, *, every: float, steps: int, **changes: Any) -> str:
    now = [100.0]
    screen = Screen(after_step=0, steps=steps, stream=stream, clock=lambda: now[0])
    for step in range(1, steps + 1):
        now[0] += every
        screen.show(step=step, loss=3.14159, lr=3e-3, tokens_per_second=15_900, **changes)
    screen.close()
    return stream.getvalue()


def test_train_screen_rewrites_one_line_on_a_terminal() -> None:
    """A line per step floods a terminal; without a last newline the shell writes over it."""
    text = shown(Terminal(), every=0.125, steps=23, mfu=0.412, memory_bytes=3 * 2**30)
    assert text.count("\n") == 1
    assert text.endswith("\n")
    lines = text.rstrip("\n").split("\r")[1:]
    assert [line.split()[2] for line in lines] == [f"{s}/23" for s in (1, 5, 9, 13, 17, 21, 23)]


def test_train_screen_writes_now_and_then_to_a_log() -> None:
    """Carriage returns in a log are one endless line; the last step must always be there."""
    text = shown(io.StringIO(), every=1.0, steps=25, flops_per_second=97.04e9)
    assert "\r" not in text
    assert [line.split()[2] for line in text.splitlines()] == [f"{s}/25" for s in (1, 11, 21, 25)]
    assert text.splitlines()[1] == (
        "train: step 11/25  loss 3.1416  lr 3.00e-03  15,900 tokens/s  97.0 GFLOP/s  0:00:14 left"
    )


def test_train_screen_shows_utilisation_where_the_peak_is_known() -> None:
    """GFLOP/s beside an unknown peak, a share of it otherwise, never both nor a made-up share."""
    text = shown(
        io.StringIO(), every=1.0, steps=1, flops_per_second=1e12, mfu=0.412, memory_bytes=3 << 30
    )
    assert "MFU 41.2%  3.00 GiB" in text
    assert "GFLOP" not in text
    assert "overflow, no update" in shown(io.StringIO(), every=1.0, steps=1, skipped=True)


def test_train_screen_time_left_forgets_the_first_step() -> None:
    """One minute of compilation, spread over the run, promises days too many."""
    now = [0.0]
    stream = io.StringIO()
    screen = Screen(after_step=10, steps=1010, stream=stream, clock=lambda: now[0])
    for step, at in ((11, 60.0), (12, 61.0), (22, 71.0)):
        now[0] = at
        screen.show(step=step, loss=1.0, lr=1.0, tokens_per_second=1.0)
    assert stream.getvalue().splitlines()[-1].endswith("0:16:28 left")  # 988 steps of a second


def test_train_screen_line_is_ended_with_the_log(tmp_path: Path) -> None:
    """What is printed behind an unfinished line, an error above all, would be part of it."""
    stream = Terminal()
    write(tmp_path, 1, 2, screen=Screen(after_step=0, steps=9, stream=stream))
    assert stream.getvalue().startswith("\rtrain: step 1/9  loss 3.9900")
    assert stream.getvalue().endswith("\n")


# TensorBoard, Weights & Biases


def test_train_tensorboard_shows_each_step_once(tmp_path: Path) -> None:
    """After a resumption the abandoned steps would make a saw-tooth of the curve."""
    write(tmp_path, 1, 9)
    time.sleep(1.1)  # TensorBoard orders the files of attempts by the second they were begun in
    write(tmp_path, 6, 7)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [e.step for e in board.Scalars("loss")] == [1, 2, 3, 4, 5, 6, 7]
    assert board.Scalars("loss")[4].value == pytest.approx(metrics(5).loss)
    assert "mfu" not in board.Tags()["scalars"]


def test_train_tensorboard_has_every_step_before_a_checkpoint(tmp_path: Path) -> None:
    """Steps in a queue of a killed process are never done again once a checkpoint stands."""
    log = MetricsLog(tmp_path, after_step=0, steps=100)
    for step in range(1, 501):  # faster than they are written
        log.add(metrics(step))
    log.sync()
    board = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0})
    board.Reload()
    log.close()
    assert [e.step for e in board.Scalars("loss")] == list(range(1, 501))


class Wandb(types.ModuleType):
    """A service that keeps the runs it has seen; `fails_at` is a step at which its network ends."""

    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__("wandb")
        self.fails_at = fails_at
        self.runs: dict[str, dict[int, dict]] = {}
        self.calls: list[dict] = []
        self.exit_codes: list[int] = []
        self.refuses = False

    def init(self, **settings: Any) -> Any:
        if self.refuses:
            raise RuntimeError("no API key configured")
        self.calls.append(settings)
        history = self.runs.setdefault(settings["id"], {})
        service = self

        class Run:
            step = max(history) + 1 if history else 0

            def log(self, values: dict, step: int) -> None:
                if step == service.fails_at:
                    raise ConnectionError("network is unreachable")
                assert not history or step >= max(history), "steps must increase"
                history[step] = values

            def finish(self, exit_code: int) -> None:
                service.exit_codes.append(exit_code)

        return Run()


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Wandb:
    fake = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("WANDB_PROJECT", "ropes")
    return fake


def test_train_wandb_only_if_configured(
    tmp_path: Path, wandb: Wandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Installed is not asked for: nothing may leave the machine unasked."""
    monkeypatch.delenv("WANDB_PROJECT")
    write(tmp_path, 1, 2, run_id="r1")
    monkeypatch.setenv("WANDB_PROJECT", "")
    write(tmp_path, 3, 4, run_id="r1")
    assert wandb.calls == []


def test_train_wandb_goes_on_with_the_same_run(tmp_path: Path, wandb: Wandb) -> None:
    """A new run per attempt scatters a month of training over a hundred curves."""
    write(tmp_path, 1, 9, run_id="r1", config={"lr": 1e-3})
    write(tmp_path, 6, 12, run_id="r1", config={"lr": 1e-3})
    assert [(c["id"], c["resume"], c["project"]) for c in wandb.calls] == [
        ("r1", "allow", "ropes")
    ] * 2
    assert wandb.calls[0]["config"] == {"lr": 1e-3}
    assert wandb.calls[0]["dir"] == str(tmp_path)
    assert list(wandb.runs["r1"]) == list(range(1, 13))
    assert wandb.runs["r1"][4]["loss"] == metrics(4).loss
    assert "mfu" not in wandb.runs["r1"][4]
    assert wandb.exit_codes == [0, 0]


def test_train_wandb_run_id_is_that_of_the_work_folder(tmp_path: Path, wandb: Wandb) -> None:
    """Without an id of our own, wandb would draw one per attempt."""
    write(tmp_path / "work-abc123", 1, 2)
    assert list(wandb.runs) == ["work-abc123"]


def test_train_wandb_hears_of_a_failed_training(tmp_path: Path, wandb: Wandb) -> None:
    """A loss of NaN must not stand there as a finished run."""
    log = MetricsLog(tmp_path, after_step=0, steps=9)
    log.add(metrics(1))
    log.close(failed=True)
    assert wandb.exit_codes == [1]


def test_train_goes_on_without_a_tracker_that_fails(
    tmp_path: Path, wandb: Wandb, capsys: pytest.CaptureFixture[str]
) -> None:
    """A network that is down for a minute must not end a month of training, nor fill its log."""
    wandb.fails_at = 3
    write(tmp_path, 1, 9)
    assert list(wandb.runs[tmp_path.name]) == [1, 2]
    assert len(read(tmp_path / "metrics.jsonl")) == 9
    said = [line for line in capsys.readouterr().out.splitlines() if "given up" in line]
    assert said == [
        "train: Weights & Biases is given up from step 3 on: ConnectionError: network is "
        "unreachable; training goes on"
    ]


def test_train_tracker_that_cannot_finish_is_no_failure(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An upload that fails at the very end must not take the trained model with it."""

    class Broken:
        def add(self, step: int, values: Any) -> None: ...
        def sync(self) -> None: ...
        def close(self, *, failed: bool) -> None:
            raise TimeoutError("upload")

    tracker = Guarded("Board", Broken())
    tracker.add(1, {})
    tracker.sync()
    tracker.close(failed=False)
    assert "Board is given up at the end: TimeoutError" in capsys.readouterr().out


def test_train_wandb_missing_is_said_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user who set the project learns after a week that nothing was sent."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setenv("WANDB_PROJECT", "ropes")
    with pytest.raises(StageError, match=r"WANDB_PROJECT: 'ropes' .*pip install wandb"):
        MetricsLog(tmp_path, after_step=0, steps=9)


def test_train_wandb_that_refuses_stops_a_new_run_only(
    tmp_path: Path, wandb: Wandb, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong key is said at once; on a resumption it must not waste the checkpoint's queue."""
    wandb.refuses = True
    with pytest.raises(StageError, match=r"WANDB_PROJECT: 'ropes' .*no API key.*wandb login"):
        MetricsLog(tmp_path, after_step=0, steps=9)
    write(tmp_path, 6, 9)
    assert "given up for this attempt" in capsys.readouterr().out
    assert [entry["step"] for entry in read(tmp_path / "metrics.jsonl")] == [6, 7, 8, 9]


# The machine


@pytest.mark.parametrize(
    ("name", "precision", "expected"),
    [
        # multiprocessors * boost clock in GHz * FLOPs per clock of one, from the white papers
        ("Tesla V100-SXM2-32GB", "fp16", 80 * 1.530 * 1024),
        ("Tesla V100-PCIE-16GB", "fp16", 80 * 1.380 * 1024),
        ("Tesla V100-SXM2-16GB", "fp32", 80 * 1.530 * 128),
        ("NVIDIA A100-SXM4-80GB", "bf16", 108 * 1.410 * 2048),
        ("A100-PCIE-40GB", "fp16", 108 * 1.410 * 2048),
        ("NVIDIA A100 80GB PCIe", "fp32", 108 * 1.410 * 128),
        ("NVIDIA H100 80GB HBM3", "bf16", 132 * 1.830 * 4096),
        ("NVIDIA H100 80GB HBM3", "fp32", 132 * 1.980 * 256),
        ("NVIDIA H200", "bf16", 132 * 1.830 * 4096),
        ("NVIDIA H100 PCIe", "bf16", 114 * 1.620 * 4096),
        ("NVIDIA H100 PCIe", "fp32", 114 * 1.755 * 256),
        ("NVIDIA L4", "bf16", 60 * 2.040 * 1024),
        ("NVIDIA L40S", "bf16", 142 * 2.520 * 1024),
        ("NVIDIA A10", "bf16", 72 * 1.695 * 1024),
        ("NVIDIA GeForce RTX 4090", "bf16", 128 * 2.520 * 512),
        ("NVIDIA GeForce RTX 3090", "fp16", 82 * 1.695 * 512),
    ],
)
def test_train_peak_follows_from_the_silicon(name: str, precision: Any, expected: float) -> None:
    """A rate with sparsity, or with fp16 accumulation, is twice the truth and halves every MFU."""
    found = peak_flops(name, Numerics(precision=precision))
    assert found == pytest.approx(expected * 1e9, rel=0.04)


@pytest.mark.parametrize("name", list(PEAKS))
def test_train_peak_of_tf32_is_half_of_bf16(name: str) -> None:
    """True of every NVIDIA GPU that has both; a slip in the table breaks it."""
    peak = PEAKS[name]
    assert (peak.tf32 is None) == (peak.bf16 is None) == name.startswith("V100")
    if peak.tf32 is not None and peak.bf16 is not None:
        assert peak.bf16 == peak.fp16
        assert peak.bf16 / peak.tf32 == pytest.approx(2, rel=0.02)


def test_train_peak_of_fp32_is_that_of_the_units_used() -> None:
    """fp32 on tensor cores is TF32, eight times the plain rate; a V100 has none."""
    a100, v100 = "NVIDIA A100-SXM4-40GB", "Tesla V100-SXM2-16GB"
    assert peak_flops(a100, Numerics()) == 19.5e12
    assert peak_flops(a100, Numerics(matmul="high")) == 156e12
    assert peak_flops(a100, Numerics(matmul="medium")) == 156e12
    assert peak_flops(a100, Numerics(precision="bf16", matmul="high")) == 312e12
    assert peak_flops(v100, Numerics(matmul="high")) == 15.7e12
    assert peak_flops(v100, Numerics(precision="bf16")) is None


@pytest.mark.parametrize(
    "name",
    ["cpu x86_64", "NVIDIA A10G", "NVIDIA A100-SXM4-80GB MIG 1g.10gb", "NVIDIA A100-SXM-64GB"],
)
def test_train_peak_is_not_guessed_from_a_similar_name(name: str) -> None:
    """A slice of a GPU measured against the whole of it looks idle."""
    assert peak_flops(name, Numerics(precision="bf16")) is None


def test_train_mfu_is_of_all_devices() -> None:
    """The rate is over all processes, so the peak must be; by hand: 16 A100 at 40 %."""
    assert A100.mfu(16 * 0.4 * 312e12) == pytest.approx(0.4)
    here = machine(torch.device("cpu"), 2, Numerics(precision="bf16"))
    assert here.device.startswith("cpu ")
    assert (here.processes, here.precision) == (2, "bf16")
    assert here.mfu(1e12) is None


def test_train_memory_is_what_the_process_holds() -> None:
    """Kilobytes for bytes, or a peak that an earlier job of the process left behind."""
    cpu = torch.device("cpu")
    before = memory_bytes(cpu)
    held = np.ones(200 * 2**20, dtype=np.uint8)
    with_it = memory_bytes(cpu)
    size = held.nbytes
    del held
    assert with_it - before == pytest.approx(size, rel=0.1)
    assert memory_bytes(cpu) < with_it - size / 2
