"""The plan: every artifact once, each with all it needs."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from study_samples import DEMO, SHARED, changed, plan, write

from ropewalk.base.canonical import plain
from ropewalk.base.spec import decode
from ropewalk.evaluate.spec import EvaluateJob
from ropewalk.study.plan import Plan
from ropewalk.study.registry import STAGES

EXPECTED = """\
results/data/inventories/text
results/data/tokenizers/bpe
results/data/tokens/test/bpe
results/data/tokens/test/bpe/parts/00000
results/data/tokens/test/bpe/parts/00001
results/data/tokens/train/bpe
results/data/tokens/train/bpe/parts/00000
results/data/windows/plain/16
results/data/windows/plain/32
results/data/windows/plain/64
results/paper/checks/demo/theory
results/paper/evaluations/demo/loss/demo/direct-2x
results/paper/evaluations/demo/loss/demo/pi-2x
results/paper/evaluations/demo/loss/demo/pi-4x
results/paper/evaluations/demo/loss/shared/base
results/paper/judged/demo
results/paper/report
results/paper/runs/demo/direct-2x
results/paper/runs/demo/pi-2x
results/paper/runs/demo/pi-4x
results/paper/runs/shared/base
""".split()

OTHER = changed(
    DEMO.replace("demo/", "other/"), {("runs", "extend", "spec", "seed"): 1, ("title",): "Other"}
)


@pytest.fixture
def demo(tmp_path: Path) -> Plan:
    return plan(write(tmp_path))


def test_the_plan_has_what_the_study_needs_and_nothing_else(demo: Plan) -> None:
    """Guards against artifacts nobody asked for, and against paths that move."""
    assert demo.manifests() == [f"{folder}/manifest.json" for folder in EXPECTED]


def test_inputs_exist_and_there_is_no_circle(demo: Plan) -> None:
    """Guards against a rule whose input no rule makes."""
    done: set[str] = set()
    waiting = set(demo.nodes)
    while waiting:
        ready = {path for path in waiting if set(demo.nodes[path].inputs.values()) <= done}
        assert ready, f"wait for one another: {waiting}"
        done |= ready
        waiting -= ready


def test_inputs_have_the_names_that_the_stages_read(demo: Plan) -> None:
    """Guards against a stage that looks for an input under another name."""
    by_path = {path.removesuffix("/manifest.json"): node for path, node in demo.nodes.items()}
    names = {
        "results/data/inventories/text": set(),
        "results/data/tokenizers/bpe": {"inventory"},
        "results/data/tokens/test/bpe/parts/00000": {"inventory", "tokenizer"},
        "results/data/tokens/test/bpe/parts/00001": {"inventory", "tokenizer"},
        "results/data/tokens/test/bpe": {"part:00000", "part:00001"},
        "results/data/windows/plain/32": {"tokens:train"},
        "results/paper/runs/shared/base": {"tokenizer", "tokens:train", "windows:plain:16"},
        "results/paper/runs/demo/pi-4x": {"run", "tokenizer", "tokens:train", "windows:plain:64"},
        "results/paper/evaluations/demo/loss/demo/pi-4x": {"run", "tokens", "tokenizer"},
        "results/paper/checks/demo/theory": set(),
        "results/paper/judged/demo": {
            "check:theory",
            *(f"evaluation:demo/loss:{run}" for run in ("shared/base", "demo/pi-2x", "demo/pi-4x")),
            "evaluation:demo/loss:demo/direct-2x",
            *(f"run:{run}" for run in ("shared/base", "demo/pi-2x", "demo/pi-4x")),
            "run:demo/direct-2x",
        },
        "results/paper/report": {"judged:demo"},
    }
    assert {path: set(by_path[path].inputs) for path in names} == names
    pi = by_path["results/paper/runs/demo/pi-4x"]
    assert pi.inputs["run"] == "results/paper/runs/shared/base/manifest.json"
    for part in (0, 1):
        assert by_path[f"results/data/tokens/test/bpe/parts/0000{part}"].spec.part == part
    assert by_path["results/data/tokens/test/bpe"].spec.parts == 2


def test_what_two_studies_share_is_one_node(tmp_path: Path) -> None:
    """Guards against a base model trained once per paper."""
    alone = plan(write(tmp_path))
    both = plan(write(tmp_path, other=OTHER))
    added = {path for path in both.nodes if path not in alone.nodes}
    assert added
    assert all("/other" in path for path in added)
    for path, node in alone.nodes.items():
        if node.stage != "report":
            assert both.nodes[path] == node
    shared = "results/paper/runs/shared/base/manifest.json"
    assert {shared} == set(both.manifests("demo")) & {shared} & set(both.manifests("other"))
    assert not any("/other" in path for path in both.manifests("demo"))
    assert plan(tmp_path, studies=["demo"]).manifests() == alone.manifests()


def test_only_reports_and_runs_carry_the_name_of_the_reproduction(tmp_path: Path) -> None:
    """Guards against corpora built once per scale, and against scales that share a training."""
    write(tmp_path)
    first, second = plan(tmp_path), plan(tmp_path, name="mine", results="out")
    renamed = {
        path.replace("results/paper/", "out/mine/").replace("results/data", "out/data")
        for path in first.nodes
    }
    assert set(second.nodes) == renamed


def test_every_node_is_found_by_its_wildcards_and_its_pattern(demo: Plan) -> None:
    """Guards against a rule that is asked for one artifact and plans another."""
    for path, node in demo.nodes.items():
        assert demo.node(node.stage, node.wildcards) is node
        short = {k: v for k, v in node.wildcards.items() if k != "name"}
        assert demo.node(node.stage, demo.wildcards(node.stage, short)) is node
        assert demo.pattern(node.stage).format_map(short) == path
    with pytest.raises(KeyError, match="no pack"):
        demo.node("pack", {"windows": "plain", "length": "17"})


def test_specs_reach_the_stages_unchanged(demo: Plan) -> None:
    """Guards against a stage that runs with other settings than the plan shows."""
    for node in demo.nodes.values():
        spec = decode(STAGES[node.stage].spec, json.loads(demo.spec_json(node)))
        assert spec == decode(STAGES[node.stage].spec, plain(node.spec))
        assert plain(spec) == plain(node.spec)


def test_a_run_that_starts_from_a_run_reads_its_model_and_tokenizer(demo: Plan) -> None:
    """Guards against a fine-tuning of another architecture than was pretrained."""
    base, tuned = demo.run("shared/base"), demo.run("demo/pi-2x")
    assert tuned.architecture == base.architecture
    assert tuned.tokenizer == base.tokenizer
    assert plain(tuned.weights) == {"kind": "run", "run": "shared/base"}
    with pytest.raises(KeyError, match="demo/none"):
        demo.run("demo/none")
    assert demo.run("demo/pi-2x") == tuned  # an unknown name spoils nothing


def test_evaluations_take_the_overrides_of_their_runs(demo: Plan) -> None:
    """Guards against a context that a run is measured on and another is not."""
    contexts = {
        run: dict(demo.evaluation("demo", "loss", run).protocol.contexts)
        for run in ("demo/pi-2x", "demo/pi-4x", "shared/base")
    }
    short = {"1x": 16, "2x": 32}
    assert contexts == {
        "demo/pi-2x": short,
        "demo/pi-4x": {**short, "4x": 64},
        "shared/base": short,
    }


def test_a_rope_in_place_of_the_runs_reaches_the_stage(tmp_path: Path) -> None:
    """Guards against a model read as it was trained where the study says otherwise.

    No field of an evaluation may stop at the plan, whatever else is added to one.
    """
    changes: dict[Any, Any] = {
        ("evaluations", "loss", "rope"): {"kind": "yarn", "factor": 2.0},
        ("evaluations", "loss", "seed"): 7,
        ("evaluations", "loss", "snapshots"): "all",
        ("evaluations", "loss", "numerics"): {"precision": "bf16"},
        ("evaluations", "loss", "device"): "a100-80",
        ("evaluations", "loss", "sequences_per_forward"): 3,
        ("evaluations", "loss", "overrides", "longer", "set", "rope.factor"): 4.0,
    }
    found = plan(write(tmp_path, demo=changed(DEMO, changes)))
    factors = {}
    for node in found.of_stage("evaluate"):
        job = decode(EvaluateJob, json.loads(found.spec_json(node)))
        run = f"{node.wildcards['run_study']}/{node.wildcards['run']}"
        applied = found.evaluation("demo", "loss", run)
        for field in dataclasses.fields(EvaluateJob):
            assert getattr(job, field.name) == getattr(applied, field.name), field.name
        factors[run] = job.rope.factor  # type: ignore[union-attr]
    assert factors.pop("demo/pi-4x") == 4.0
    assert set(factors.values()) == {2.0}


def test_planning_needs_no_data(tmp_path: Path) -> None:
    """Guards against a laptop that cannot plan the paper's scale: null plans without the data."""
    source = {"kind": "jsonl", "location": "pile", "train": ["*.jsonl"], "test": ["*.jsonl"]}
    write(tmp_path, shared=changed(SHARED, {("sources", "text"): source}))
    unset = plan(tmp_path, locations={"pile": None})
    there = plan(tmp_path, locations={"pile": "/somewhere"})
    assert unset.manifests() == there.manifests()
    node = there.node("inventory", {"source": "text"})
    assert node.spec.folder == "/somewhere"
    assert plain(node.spec, identity=True) == plain(
        unset.node("inventory", {"source": "text"}).spec, identity=True
    )
