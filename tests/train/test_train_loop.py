"""The loop trains what a plain loop trains, however it is cut over processes and passes."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from train_sample import RUN, changed, inputs, losses, start
from transformers import AutoModelForCausalLM

from ropewalk.base.manifest import read_manifest
from ropewalk.base.stage import StageError
from ropewalk.data import loader as data_loader
from ropewalk.data.loader import Loader, Windows
from ropewalk.model.spec import LinearRope
from ropewalk.train import attempt
from ropewalk.train.optimizer import LossScale
from ropewalk.train.spec import Batch, Optimizer, Phase, Schedule


@pytest.fixture(scope="module")
def whole(made: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    start(changed(RUN, snapshot_steps=(0,)), made, folder)
    return folder


def test_train_equals_a_plain_loop(made: dict[str, Path], whole: Path) -> None:
    """Transformers' eager model, a dense mask, torch's loss, AdamW and clipping: same curve."""
    model = AutoModelForCausalLM.from_pretrained(
        whole / "step-000000", attn_implementation="eager"
    ).train()
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=3e-3,
        betas=(0.9, 0.95),
    )
    tokens = read_manifest(made["tokens:corpus"])
    windows = Windows(read_manifest(made["windows:packed:32"]), {"corpus": tokens})
    loader = Loader(windows, seed=0, phase=0, sequences=8)
    shares = [0.1, 0.55, 1.0]
    shares += [0.1 + 0.45 * (1 + np.cos(np.pi * k / 3)) for k in (1, 2, 3)]
    found = []
    for step, share in enumerate(shares):
        batch = loader.batch(step)
        ids, mask, labels = dense(batch)
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * share
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    assert losses(whole) == pytest.approx(found, abs=1e-5)
    final = AutoModelForCausalLM.from_pretrained(whole / "final")
    for mine, theirs in zip(final.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=1e-3)


def dense(batch: data_loader.Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ids, an additive mask over all pairs of tokens, and labels."""
    ids = torch.from_numpy(batch.input_ids)
    mask = torch.full((8, 1, 32, 32), torch.finfo(torch.float32).min)
    labels = torch.full((8, 32), -100)
    for row, ends in enumerate(batch.boundaries):
        padded = (*ends, 32) if ends[-1] < 32 else ends
        for a, b in itertools.pairwise(padded):
            mask[row, 0, a:b, a:b] = torch.triu(mask[row, 0, a:b, a:b], diagonal=1)
        for a, b in itertools.pairwise(ends):
            labels[row, a : b - 1] = ids[row, a + 1 : b]
    return ids, mask, labels


def test_train_learns_targets_only(tmp_path: Path) -> None:
    """Prompts that are trained on, or a mask that does not follow the rows of a forward pass."""
    made = inputs(tmp_path, prompt=20)
    run = changed(
        RUN,
        phases=(Phase(windows="packed", length_tokens=32, steps=1),),
        snapshot_steps=(0,),
        hardware={"sequences_per_forward": 3},
    )
    folder = tmp_path / "run"
    start(run, made, folder)
    model = AutoModelForCausalLM.from_pretrained(
        folder / "step-000000", attn_implementation="eager"
    )
    tokens = read_manifest(made["tokens:corpus"])
    windows = Windows(read_manifest(made["windows:packed:32"]), {"corpus": tokens})
    batch = Loader(windows, seed=0, phase=0, sequences=8).batch(0)
    ids, mask, labels = dense(batch)
    for row, window in enumerate(batch.rows.tolist()):
        pieces, place = windows.pieces(window), 0
        for begin, size in zip(pieces.start.tolist(), pieces.length.tolist(), strict=True):
            for token in range(begin, min(begin + size, 20)):
                if place + token > begin:
                    labels[row, place + token - begin - 1] = -100
            place += size
    assert 0 < (labels != -100).sum() < 128
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert losses(folder) == pytest.approx([loss.item()], abs=1e-5)


def test_train_every_phase_reads_its_own_stream_from_the_start(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two phases over the same windows must not repeat an order, nor begin in mid-epoch."""
    asked: list[tuple[int, int]] = []

    class Recorded(Loader):
        def __init__(self, windows: Windows, *, seed: int, phase: int, sequences: int) -> None:
            super().__init__(windows, seed=seed, phase=phase, sequences=sequences)
            self.number = phase

        def batch(self, step: int, part: tuple[int, int] = (0, 1)) -> data_loader.Batch:
            asked.append((self.number, step))
            return super().batch(step, part)

    monkeypatch.setattr(attempt, "Loader", Recorded)
    phase = Phase(windows="packed", length_tokens=32, steps=2)
    start(changed(RUN, phases=(phase, phase, phase)), made, tmp_path)
    assert asked == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]


@pytest.mark.parametrize(
    "hardware",
    [{"sequences_per_forward": 1, "recompute_activations": True}, {"sequences_per_forward": 3}],
    ids=["8x1", "3+3+2"],
)
def test_train_accumulation_changes_nothing(
    made: dict[str, Path], whole: Path, hardware: dict, tmp_path: Path
) -> None:
    """Averaging the means of unequal passes is the classic wrong loss."""
    start(changed(RUN, hardware=hardware), made, tmp_path)
    assert losses(tmp_path) == pytest.approx(losses(whole), abs=1e-5)


def test_train_two_processes_train_the_same_model(
    made: dict[str, Path], whole: Path, tmp_path: Path
) -> None:
    """Sharded weights, gradients averaged where a sum is wanted, a tied matrix in two parts."""
    hardware = {"processes": 2, "sequences_per_forward": 3}
    manifest = start(changed(RUN, snapshot_steps=(0,), hardware=hardware), made, tmp_path)
    assert losses(tmp_path) == pytest.approx(losses(whole), abs=1e-5)
    for name in ("step-000000", "final"):
        mine = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        theirs = AutoModelForCausalLM.from_pretrained(whole / name)
        exact = name == "step-000000"  # initial weights are drawn per tensor, not per process
        for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=0 if exact else 2e-5, rtol=0 if exact else 1e-3)
    assert manifest.result["tokens"] == 6 * 8 * 32


def test_train_phases_share_one_schedule_and_one_batch(
    made: dict[str, Path], tmp_path: Path
) -> None:
    """At a phase switch length, rope and sequences change; tokens per step and lr go on."""
    run = changed(
        RUN,
        phases=(
            Phase(windows="packed", length_tokens=32, steps=2),
            Phase(windows="packed", length_tokens=64, steps=2, rope=LinearRope(factor=2)),
        ),
        batch=Batch(tokens=256),
        schedule=Schedule(shape="linear", final=0.25),
        snapshot_steps=(2,),
    )
    manifest = start(run, made, tmp_path)
    lines = next(tmp_path.glob("work-*/metrics.jsonl")).read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert [e["tokens"] for e in entries] == [256, 512, 768, 1024]
    assert [e["lr"] / 3e-3 for e in entries] == pytest.approx([1, 0.75, 0.5, 0.25])
    assert all(np.isfinite(e["grad_norm"]) and e["tokens_per_second"] > 0 for e in entries)
    before = json.loads((tmp_path / "step-000002" / "config.json").read_text())
    after = json.loads((tmp_path / "final" / "config.json").read_text())
    assert before["rope_parameters"]["rope_type"] == "default"
    assert before["max_position_embeddings"] == 32
    assert after["rope_parameters"]["rope_type"] == "linear"
    assert after["rope_parameters"]["factor"] == 2.0
    assert after["max_position_embeddings"] == 64
    assert manifest.result["loss_curve"] == [[e["step"], e["loss"]] for e in entries]


def test_train_stops_before_weights_are_spoiled(made: dict[str, Path], tmp_path: Path) -> None:
    """A loss of NaN must not reach the weights, nor the next checkpoint."""
    run = changed(
        RUN,
        optimizer=Optimizer(lr=1e25, betas=(0.9, 0.95)),
        schedule=Schedule(shape="constant"),
    )
    with pytest.raises(StageError, match=r"not both finite.*checkpoints/step-\d{6}") as caught:
        start(run, made, tmp_path)
    (named,) = [p for p in tmp_path.glob("work-*/checkpoints/*") if str(p) in str(caught.value)]
    assert (named / "checkpoint.json").is_file()
    assert not (tmp_path / "manifest.json").exists()


def test_train_bf16_is_near_fp32(made: dict[str, Path], whole: Path, tmp_path: Path) -> None:
    """Autocast that is not on, that reaches the loss, or that keeps old weights shows here."""
    start(changed(RUN, numerics={"precision": "bf16"}), made, tmp_path)
    assert losses(tmp_path) != losses(whole)
    assert losses(tmp_path) == pytest.approx(losses(whole), abs=2e-3)


def test_train_loss_scale_by_hand() -> None:
    """A scale that never grows again trains fp16 with ever smaller gradients."""
    scale = LossScale(factor=8.0)
    for _ in range(2):
        scale = scale.after(finite=True, grow_every=3)
    assert scale == LossScale(factor=8.0, good_steps=2)
    assert scale.after(finite=True, grow_every=3) == LossScale(factor=16.0)
    assert scale.after(finite=False, grow_every=3) == LossScale(factor=4.0)
