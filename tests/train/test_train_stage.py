"""What the stage leaves: ordinary checkpoints, adopted weights, refusals that name the key."""

import json
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from train_sample import ARCHITECTURE, RUN, changed, exported, inputs, start
from transformers import AutoModelForCausalLM, AutoTokenizer

from ropewalk.base.manifest import read_manifest
from ropewalk.base.stage import StageError
from ropewalk.data.loader import Windows
from ropewalk.model.build import load
from ropewalk.model.forward import hidden
from ropewalk.model.spec import Architecture, LinearRope, PosePositions
from ropewalk.train.metrics import curve
from ropewalk.train.spec import Phase, PublishedWeights, RunWeights

NEOX = Architecture(
    family="gpt_neox",
    layers=2,
    hidden=32,
    heads=4,
    ffn=48,
    vocabulary_size=96,
    context_tokens=32,
    rotary_share=0.25,
)
SHORT = changed(RUN, phases=(Phase(windows="packed", length_tokens=32, steps=2),))


@pytest.mark.parametrize("architecture", [ARCHITECTURE, NEOX], ids=["llama", "gpt_neox"])
def test_train_export_is_an_ordinary_checkpoint(
    made: dict[str, Path], architecture: Architecture, tmp_path: Path
) -> None:
    """Rope, norms or a renamed matrix lost in export would only show as a bad evaluation."""
    phase = Phase(windows="packed", length_tokens=64, steps=2, rope=LinearRope(factor=2))
    run = changed(RUN, architecture=architecture, phases=(phase,))
    manifest = start(run, made, tmp_path)
    folder = tmp_path / "final"
    theirs, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    assert theirs.dtype == torch.float32
    assert theirs.config.max_position_embeddings == 64
    mine = load(folder)
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 96, (2, 60)))
    with torch.inference_mode():
        logits = mine.get_output_embeddings()(hidden(mine, ids, None))
        torch.testing.assert_close(logits, theirs.eval()(ids).logits, atol=1e-6, rtol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.bos_token_id == theirs.config.bos_token_id == 0
    assert theirs.generation_config.eos_token_id == tokenizer.eos_token_id == 1
    assert manifest.result["parameters"] == sum(p.numel() for p in theirs.parameters())


def test_train_exports_are_the_same_bytes_again(made: dict[str, Path], tmp_path: Path) -> None:
    """Equal inputs must give an equal manifest, or everything behind it runs again."""
    run = changed(SHORT, snapshot_steps=(0, 1))
    for name in ("a", "b"):
        start(run, made, tmp_path / name)
    assert exported(tmp_path / "a") == exported(tmp_path / "b")
    manifests = [(tmp_path / name / "manifest.json").read_bytes() for name in ("a", "b")]
    assert manifests[0] == manifests[1]


def test_train_snapshot_zero_is_the_start_under_the_new_rope(
    made: dict[str, Path], tmp_path: Path
) -> None:
    """Evaluations before any step measure untrained interpolation: old weights, new angles."""
    start(SHORT, made, tmp_path / "base")
    phase = Phase(windows="packed", length_tokens=64, steps=2, rope=LinearRope(factor=2))
    run = changed(SHORT, weights=RunWeights(run="study/base"), phases=(phase,), snapshot_steps=(0,))
    start(run, {**made, "run": tmp_path / "base" / "manifest.json"}, tmp_path / "tuned")
    old = AutoModelForCausalLM.from_pretrained(tmp_path / "base" / "final")
    new = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned" / "step-000000")
    assert all(torch.equal(a, b) for a, b in zip(old.parameters(), new.parameters(), strict=True))
    assert old.config.rope_parameters["rope_type"] == "default"
    assert new.config.rope_parameters["rope_type"] == "linear"
    assert new.config.max_position_embeddings == 64


def test_train_without_phases_adopts_weights(made: dict[str, Path], tmp_path: Path) -> None:
    """Published and adopted weights must stay the bytes they were, under a complete config."""
    start(SHORT, made, tmp_path / "base")
    final = tmp_path / "base" / "final"
    bare = changed(
        RUN, phases=(), batch=None, optimizer=None, schedule=None, weights=RunWeights(run="s/base")
    )
    tokenizer = {"tokenizer": made["tokenizer"]}
    base = {**tokenizer, "run": tmp_path / "base" / "manifest.json"}
    adopted = start(bare, base, tmp_path / "same")
    assert exported(tmp_path / "same") == exported(tmp_path / "base")
    assert adopted.result["snapshots"] == {"0": "final"}
    assert adopted.result["steps"] == adopted.result["tokens"] == 0

    drawn = start(changed(bare, weights=RUN.weights), tokenizer, tmp_path / "drawn")
    assert drawn.result["parameters"] == adopted.result["parameters"]

    # An old export: rope settings at the top level, which transformers 5 moves by itself.
    old = json.loads((final / "config.json").read_text())
    del old["ropewalk"]
    old["rope_theta"] = old.pop("rope_parameters")["rope_theta"]
    (final / "config.json").write_text(json.dumps(old))
    published = changed(bare, weights=PublishedWeights(location="models"))
    start(published, tokenizer, tmp_path / "published", published=final)
    assert exported(tmp_path / "published") == exported(tmp_path / "same")


def test_train_refuses_weights_of_another_architecture(
    made: dict[str, Path], tmp_path: Path
) -> None:
    """Another rotary base or epsilon fits every shape, and is wrong everywhere."""
    start(SHORT, made, tmp_path / "base")
    other = changed(
        SHORT, weights=RunWeights(run="study/base"), architecture={"rope_base": 500000.0}
    )
    with pytest.raises(StageError, match=r"architecture\.rope_base: the run says 500000"):
        start(other, {**made, "run": tmp_path / "base" / "manifest.json"}, tmp_path / "other")


def test_train_refusals_name_the_key(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hardware that cannot do what the study asks for must not do something else."""
    cases = {
        r"hardware\.device: 'h100'": changed(RUN, hardware={"device": "h100"}),
        r"numerics\.precision: 'fp16'": changed(RUN, numerics={"precision": "fp16"}),
        r"numerics\.attention: 'flash'": changed(RUN, numerics={"attention": "flash"}),
        r"hardware\.compile: true": changed(
            RUN, hardware={"compile": True, "recompute_activations": True}
        ),
        r"hardware\.processes: 3": changed(RUN, hardware={"processes": 3, "nodes": 2}),
        r"weights\.location: 'models'": changed(RUN, weights=PublishedWeights(location="models")),
        r"snapshot_steps: 9": changed(RUN, snapshot_steps=(9,)),
        r"windows:packed:48": changed(
            RUN, phases=(Phase(windows="packed", length_tokens=48, steps=1),)
        ),
    }
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    for index, (message, run) in enumerate(cases.items()):
        with pytest.raises(StageError, match=message):
            start(run, made, tmp_path / str(index))


def test_train_last_phase_is_checked_before_the_first(
    made: dict[str, Path], tmp_path: Path
) -> None:
    """A training of weeks must not end where the next phase finds nothing to read."""
    first = Phase(windows="packed", length_tokens=32, steps=2)
    aligned = PosePositions(target_tokens=4096, content="aligned")
    for last, message in (
        (Phase(windows="packed", length_tokens=48, steps=1), "windows:packed:48"),
        (Phase(windows="single", length_tokens=32, steps=1, positions=aligned), "are shorter"),
    ):
        with pytest.raises(StageError, match=message):
            start(changed(RUN, phases=(first, last)), made, tmp_path / message[:4])
        assert not list(tmp_path.rglob("metrics.jsonl"))


def test_train_hub_without_network_says_so(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A download error deep in a library does not tell which setting asked for it."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    run = changed(RUN, weights=PublishedWeights(hub="nobody/nothing", revision="main"))
    with pytest.raises(StageError, match=r"weights\.hub: 'nobody/nothing'"):
        start(run, made, tmp_path)


def test_train_another_recipe_leaves_no_stale_export(made: dict[str, Path], tmp_path: Path) -> None:
    """A snapshot of an earlier recipe beside the new ones would look like theirs."""
    start(changed(SHORT, snapshot_steps=(1,)), made, tmp_path)
    start(changed(SHORT, snapshot_steps=(0,)), made, tmp_path)
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-000000"]
    assert len(list(tmp_path.glob("work-*"))) == 2


def test_train_curve_keeps_both_ends() -> None:
    """The last loss is the one everybody reads."""
    entries = [{"step": i + 1, "loss": float(i)} for i in range(1001)]
    found = curve(entries)
    assert len(found) == 200
    assert found[0] == [1, 0.0]
    assert found[-1] == [1001, 1000.0]
    assert curve(entries[:5]) == [[e["step"], e["loss"]] for e in entries[:5]]


def test_train_inputs_of_the_tests_are_what_they_claim(tmp_path: Path) -> None:
    """The packed windows must hold boundaries, or the equality tests prove nothing about them."""
    made = inputs(tmp_path)
    windows = Windows(
        read_manifest(made["windows:packed:32"]),
        {"corpus": read_manifest(made["tokens:corpus"])},
    )
    ends = [windows.row(i)[1] for i in range(windows.count)]
    assert any(len(row) > 2 for row in ends)
    assert any(row[-1] < 32 for row in ends)
