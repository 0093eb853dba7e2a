"""The same model is trained however a step is cut, and it is the one a plain script trains."""

import copy
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from train_sample import RUN, changed, exported, losses, start
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from ropewalk.base.manifest import read_manifest
from ropewalk.base.stage import StageError
from ropewalk.data.loader import Loader, Windows
from ropewalk.model import numerics
from ropewalk.model.spec import (
    LinearRope,
    NaturalPositions,
    NtkRope,
    PlainRope,
    PosePositions,
    Positions,
    RandPosPositions,
    YarnRope,
)
from ropewalk.train import checkpoint, loop
from ropewalk.train.optimizer import LossScale
from ropewalk.train.rows import Data, Rows
from ropewalk.train.spec import Batch, Optimizer, Phase, Run, Schedule

TWENTY = changed(RUN, phases=(Phase(windows="packed", length_tokens=32, steps=20),))


def rows_of(made: dict[str, Path], phase: Phase, number: int, sequences: int) -> Data:
    """Return the data of a phase, read as a training reads it."""
    name = f"windows:{phase.windows}:{phase.length_tokens}"
    windows = Windows(read_manifest(made[name]), {"corpus": read_manifest(made["tokens:corpus"])})
    loader = Loader(windows, seed=0, phase=number, sequences=sequences)
    return Data(loader=loader, positions=phase.positions, seed=0, phase=number)


def documents(rows: Rows) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield ids and positions of every document of some rows, [1, n] each, without padding."""
    positions = np.broadcast_to(rows.position_ids, rows.input_ids.shape)
    for row, ends in enumerate(rows.boundaries):
        for begin, end in itertools.pairwise(ends):
            yield (
                torch.from_numpy(rows.input_ids[row : row + 1, begin:end].copy()),
                torch.from_numpy(positions[row : row + 1, begin:end].copy()),
            )


def plain_loop(run: Run, made: dict[str, Path], start_folder: Path) -> list[float]:
    """Train with transformers' own model, document by document, and torch's AdamW and clipping."""
    spec, schedule = run.optimizer, run.schedule
    assert spec is not None
    assert schedule is not None
    model = AutoModelForCausalLM.from_pretrained(start_folder, attn_implementation="eager").train()
    optimizer = torch.optim.AdamW(
        [
            {
                "params": [p for p in model.parameters() if p.ndim > 1],
                "weight_decay": spec.weight_decay,
            },
            {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=spec.lr,
        betas=spec.betas,
        eps=spec.epsilon,
        foreach=False,
    )
    total = sum(phase.steps or 0 for phase in run.phases)
    found: list[float] = []
    for number, phase in enumerate(run.phases):
        # A new rope is a new model in transformers; weights and optimizer state are kept.
        config = copy.deepcopy(model.config)
        config.rope_parameters = transformers_rope(phase)
        model.model.rotary_emb = LlamaForCausalLM(config).model.rotary_emb
        assert run.batch is not None
        sequences = run.batch.sequences or (run.batch.tokens or 0) // phase.length_tokens
        data = rows_of(made, phase, number, sequences)
        for step in range(phase.steps or 0):
            sums = []
            for ids, positions in documents(data.rows(step)):
                size = ids.shape[1]
                # An explicit mask: without one, transformers takes jumps for document boundaries.
                mask = torch.full((1, 1, size, size), torch.finfo(torch.float32).min).triu(1)
                logits = model(
                    input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False
                ).logits
                losses_ = torch.nn.functional.cross_entropy(
                    logits[0, :-1], ids[0, 1:], reduction="none"
                )
                sums.append(losses_)
            loss = torch.cat(sums).mean()
            loss.backward()
            if spec.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), spec.clip_norm)
            for group in optimizer.param_groups:
                group["lr"] = spec.lr * share(schedule, len(found), total)
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.item())
    return found


def share(schedule: Schedule, step: int, steps: int) -> float:
    """Return the learning rate of a step as a share of the peak: linear warm-up, then cosine."""
    if step < schedule.warmup_steps:
        return schedule.warmup_from + (1 - schedule.warmup_from) * step / schedule.warmup_steps
    gone = (step - schedule.warmup_steps) / (steps - 1 - schedule.warmup_steps)
    return schedule.final + (1 - schedule.final) * (1 + np.cos(np.pi * gone)) / 2


def transformers_rope(phase: Phase) -> dict[str, object]:
    """Return the rope of a phase in transformers' words, written by hand."""
    plain = {"rope_theta": 1e4}
    match phase.rope:
        case PlainRope():
            return {"rope_type": "default", **plain}
        case LinearRope(factor=factor):
            return {"rope_type": "linear", "factor": factor, **plain}
        case NtkRope(factor=factor):
            return {"rope_type": "default", "rope_theta": 1e4 * factor ** (8 / 6)}
        case YarnRope(factor=factor):
            original = {"original_max_position_embeddings": 32}
            return {"rope_type": "yarn", "factor": factor, **original, **plain}
    raise AssertionError(phase.rope)


POSE = PosePositions(target_tokens=128)
LOOPS = {
    "packed": (Phase(windows="packed", length_tokens=32, steps=20),),
    "growing": (
        Phase(windows="packed", length_tokens=32, steps=6),
        Phase(windows="packed", length_tokens=64, steps=6, rope=YarnRope(factor=2)),
    ),
    "pose": (
        Phase(windows="packed", length_tokens=32, steps=4),
        Phase(
            windows="single",
            length_tokens=32,
            steps=8,
            rope=LinearRope(factor=4),
            positions=POSE,
        ),
    ),
    "randpos": (
        Phase(
            windows="packed",
            length_tokens=32,
            steps=8,
            rope=NtkRope(factor=4),
            positions=RandPosPositions(target_tokens=128),
        ),
    ),
}


@pytest.mark.parametrize("phases", LOOPS.values(), ids=LOOPS)
def test_train_equals_a_plain_loop_over_single_documents(
    phases: tuple[Phase, ...], made: dict[str, Path], tmp_path: Path
) -> None:
    """Packing, positions, rope, phases and optimizer state against a script anybody can read."""
    run = changed(RUN, phases=phases, batch=Batch(tokens=256), snapshot_steps=(0,))
    start(run, made, tmp_path)
    assert losses(tmp_path) == pytest.approx(
        plain_loop(run, made, tmp_path / "step-000000"), rel=1e-5
    )


@pytest.fixture(scope="module")
def twenty(made: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Return the losses of one process that reads 8 sequences at once, 20 steps long."""
    folder = tmp_path_factory.mktemp("twenty")
    start(TWENTY, made, folder)
    return losses(folder)


@pytest.mark.parametrize(
    "hardware",
    [{"sequences_per_forward": 1}, {"processes": 2}, {"processes": 4, "sequences_per_forward": 1}],
    ids=["8 passes of 1", "2 processes of 4", "4 processes of 2 passes"],
)
def test_train_twenty_steps_do_not_depend_on_how_a_step_is_cut(
    hardware: dict[str, int], made: dict[str, Path], twenty: list[float], tmp_path: Path
) -> None:
    """Another order of the data, or a mean of means, moves the curve by far more than rounding."""
    start(changed(TWENTY, hardware=hardware), made, tmp_path)
    assert losses(tmp_path) == pytest.approx(twenty, rel=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_train_shards_in_bf16_are_cast_as_one_process_casts_them(
    family: str, made: dict[str, Path], tmp_path: Path
) -> None:
    """Norms, embeddings or gradients rounded to bf16 on the way train worse, only with shards."""
    run = changed(RUN, numerics={"precision": "bf16"})
    if family == "gpt_neox":
        neox = {"family": family, "kv_heads": None, "rotary_share": 0.5, "tied_embeddings": False}
        run = changed(run, architecture=neox)
    start(run, made, tmp_path / "one")
    sharded = {"processes": 2, "sequences_per_forward": 2, "recompute_activations": True}
    start(changed(run, hardware=sharded), made, tmp_path / "two")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=3e-5)


def test_train_fp16_shards_train_the_same(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss that grows with the processes overflows earlier the more of them there are."""
    monkeypatch.setattr(numerics, "check", lambda *_: None)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "fp16"))  # for the workers
    run = changed(RUN, numerics={"precision": "fp16"})
    start(run, made, tmp_path / "one")
    start(changed(run, hardware={"processes": 2}), made, tmp_path / "two")
    one, two = (loop_metrics(tmp_path / name) for name in ("one", "two"))
    assert [e["scale"] for e in two] == [e["scale"] for e in one]
    assert [e["loss"] for e in two] == pytest.approx([e["loss"] for e in one], rel=1e-4)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_train_data_order_does_not_depend_on_the_processes(
    world: int, made: dict[str, Path]
) -> None:
    """Rows and positions of a step, put together from all processes, are those of one."""
    phase = Phase(windows="single", length_tokens=32, steps=5, positions=POSE)
    data = rows_of(made, phase, 1, 8)
    again = rows_of(made, phase, 1, 8)
    for step in (4, 0, 2):
        whole = data.rows(step)
        for rank in range(world):
            part = again.rows(step, (rank, world))
            assert np.array_equal(part.input_ids, whole.input_ids[rank::world])
            assert np.array_equal(part.position_ids, whole.position_ids[rank::world])


@pytest.mark.parametrize("content", ["random", "contiguous"])
def test_train_pose_with_one_chunk_is_ordinary(
    content: str, made: dict[str, Path], tmp_path: Path
) -> None:
    """One chunk has no skip: anything else than the ordinary row is a wrong row."""

    def trained(name: str, positions: Positions) -> dict[str, bytes]:
        folder = tmp_path / name
        phase = Phase(windows="single", length_tokens=32, steps=3, positions=positions)
        start(changed(RUN, phases=(phase,)), made, folder)
        kept = exported(folder)
        return {name: kept[name] for name in kept if name.endswith(".safetensors")}

    pose = trained("pose", PosePositions(target_tokens=32, chunks=1, content=content))
    if content == "contiguous":
        assert pose == trained("natural", NaturalPositions())
    else:  # of the document's beginning, where an ordinary row begins anywhere
        assert pose != trained("natural", NaturalPositions())
        assert pose == trained(
            "aligned", PosePositions(target_tokens=32, chunks=1, content="aligned")
        )


def test_train_pose_needs_text_to_skip(made: dict[str, Path], tmp_path: Path) -> None:
    """Packed rows have no document to read on in; contiguous chunks would be another arm."""
    phase = Phase(windows="packed", length_tokens=32, steps=2, positions=POSE)
    with pytest.raises(StageError, match="policy to per_document"):
        start(changed(RUN, phases=(phase,)), made, tmp_path)


def test_train_exports_the_window_the_positions_reach(
    made: dict[str, Path], tmp_path: Path
) -> None:
    """`max_position_embeddings` of the training row would cut the context other tools offer."""
    phase = Phase(
        windows="single", length_tokens=32, steps=2, rope=LinearRope(factor=4), positions=POSE
    )
    start(changed(RUN, phases=(phase,)), made, tmp_path)
    config = json.loads((tmp_path / "final" / "config.json").read_text())
    assert config["max_position_embeddings"] == 128
    assert config["rope_parameters"]["factor"] == 4.0


def test_train_fp16_trains_what_fp32_does(
    made: dict[str, Path], twenty: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scaled losses must be unscaled before clipping and before they are written down.

    And weights must be cast anew after every update: autocast would keep its first copies.

    fp16 is refused on a CPU because it is slow, not because it cannot be computed.
    """
    monkeypatch.setattr(numerics, "check", lambda *_: None)
    begin_with(monkeypatch, LossScale(factor=256.0))
    start(changed(TWENTY, numerics={"precision": "fp16"}), made, tmp_path)
    assert losses(tmp_path) != twenty
    assert losses(tmp_path) == pytest.approx(twenty, abs=1e-3)


def test_train_fp16_overflow_skips_the_update_and_resumes(
    made: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_after: Callable[[int | None], None],
) -> None:
    """Infinite gradients spoil weights; a scale that is not in the checkpoint spoils the bits."""
    monkeypatch.setattr(numerics, "check", lambda *_: None)
    begin_with(monkeypatch, LossScale(factor=2.0**30))
    run = changed(
        TWENTY, numerics={"precision": "fp16"}, optimizer=Optimizer(lr=1e-3, betas=(0.9, 0.95))
    )
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    start(run, made, whole)
    norms = [entry["grad_norm"] for entry in loop_metrics(whole)]
    skipped = [norm is None for norm in norms]
    assert 2 <= sum(skipped) < 15
    assert skipped == sorted(skipped, reverse=True)  # halved until it fits, then never again
    stop_after(1)
    for _ in range(3):
        with pytest.raises(SystemExit):
            start(run, made, broken)
    stop_after(None)
    start(run, made, broken)
    assert exported(broken) == exported(whole)
    assert loop.math.isfinite(losses(whole)[-1])


def loop_metrics(folder: Path) -> list[dict[str, float]]:
    """Return the steps of the only run in `folder`."""
    (work,) = folder.glob("work-*")
    lines = (work / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines if '"step"' in line]


def begin_with(monkeypatch: pytest.MonkeyPatch, scale: LossScale) -> None:
    """Let new runs begin with another loss scale; a checkpoint brings its own."""
    original = checkpoint.Progress.__init__

    def begin(self: checkpoint.Progress, **given: Any) -> None:
        original(self, **{"scale": scale, **given})

    monkeypatch.setattr(checkpoint.Progress, "__init__", begin)


@pytest.mark.slow
def test_train_compiled_blocks_train_the_same(made: dict[str, Path], tmp_path: Path) -> None:
    """A compiled block that drops the boundaries or the positions trains another model."""
    run = changed(
        RUN,
        phases=(Phase(windows="single", length_tokens=32, steps=4, positions=POSE),),
    )
    for name in ("eager", "compiled"):
        start(changed(run, hardware={"compile": name == "compiled"}), made, tmp_path / name)
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "eager"), rel=1e-5)
