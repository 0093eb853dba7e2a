"""`ropewalk show pose --scale paper --json` against what the authors state."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

from ropewalk.cli import main
from ropewalk.report.spec import Exact
from ropewalk.study.project import load_plan

ROOT = Path(__file__).resolve().parents[2]
TARGETS = {"16k": 16384, "32k": 32768, "96k": 98304, "128k": 131072}
WINDOWS = {"llama-7B": 2048, "llama2-7B": 4096}
KINDS = {"linear": "linear", "ntk": "ntk", "yarn": "yarn_revised", "plain": "plain"}
# Tables 1, 2, 3 and 6, figures 2 and 4; the last two are controls that the paper does not have.
CELLS = (
    {("pose", i, t, "llama-7B") for i in ("linear", "ntk", "yarn") for t in ("16k", "96k", "128k")}
    | {("pose", i, "16k", "llama2-7B") for i in ("linear", "ntk", "yarn")}
    | {("full", i, "16k", "llama-7B") for i in ("linear", "ntk", "yarn")}
    | {("randpos", "linear", t, "llama-7B") for t in ("16k", "32k")}
    | {("pose", "linear", "32k", "llama-7B")}
    | {("short", "linear", "16k", "llama-7B"), ("pose", "plain", "16k", "llama-7B")}
)
VARIANTS = {
    "contiguous": {"content": "contiguous"},
    "aligned": {"content": "aligned"},
    "three": {"chunks": 3},
    "first_random": {"first": "random"},
    "short_first": {"lengths": "short_first"},
}
MAIN = {
    "kind": "pose",
    "target_tokens": 16384,
    "chunks": 2,
    "lengths": "uniform",
    "content": "random",
    "first": "zero",
}


@pytest.fixture(scope="module")
def shown() -> dict[str, Any]:
    """Return what the command prints."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        command = ["show", "pose", "--scale", "paper", "--json"]
        assert main([*command, "--config", str(ROOT / "config.yaml")]) == 0
    found: dict[str, Any] = json.loads(text.getvalue())
    return found


def test_the_runs_are_the_cells_of_the_paper(shown: dict[str, Any]) -> None:
    """Guards against a cell that is lost, and against one that nobody asked for."""
    cost = {
        f"cost-{method}-{target}" for method in ("pose", "full") for target in ("4k", "8k", "16k")
    }
    ablations = {f"ablation-{variant}" for variant in VARIANTS}
    assert set(shown["runs"]) == {"-".join(cell) for cell in CELLS} | ablations | cost


@pytest.mark.parametrize("cell", sorted(CELLS), ids="-".join)
def test_a_run_is_trained_as_the_authors_state(
    shown: dict[str, Any], cell: tuple[str, str, str, str]
) -> None:
    """Guards against an override of one cell that reaches another."""
    method, interpolation, target, model = cell
    run = shown["runs"]["-".join(cell)]
    (phase,) = run["phases"]
    window, reached = WINDOWS[model], TARGETS[target]
    assert run["start"] == f"shared/{model}"
    assert run["architecture"]["context_tokens"] == window
    assert phase["length_tokens"] == (reached if method == "full" else window)
    assert phase["steps"] == 1000
    assert phase["rope"]["kind"] == KINDS[interpolation]
    assert phase["rope"].get("factor") == (
        None if interpolation == "plain" else pytest.approx(reached / window)
    )
    positions = dict(phase["positions"])
    if method == "pose":
        positions.pop("document_tokens", None)
        assert positions == {**MAIN, "target_tokens": reached}
    elif method == "randpos":
        assert positions == {"kind": "randpos", "target_tokens": reached}
    else:
        assert positions == {"kind": "natural"}


def test_all_runs_share_what_section_4_1_states(shown: dict[str, Any]) -> None:
    """Guards against an arm that is better for more steps, rows or a larger learning rate."""
    for name, run in shown["runs"].items():
        assert run["batch"] == {"sequences": 16 if name.startswith("cost-") else 64}
        assert run["optimizer"]["lr"] == 2e-5
        assert run["optimizer"]["betas"] == [0.9, 0.999]
        assert run["optimizer"]["weight_decay"] == 0.0
        assert (run["schedule"]["shape"], run["schedule"]["warmup_steps"]) == ("linear", 10)
        assert run["hardware"]["processes"] == 8
        assert run["hardware"]["device"].startswith("v100")
        assert sum(phase["steps"] for phase in run["phases"]) == 1000


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_ablation_changes_one_thing(shown: dict[str, Any], variant: str) -> None:
    """Guards against a difference that is put down to the wrong cause."""
    run = shown["runs"][f"ablation-{variant}"]
    main_run = shown["runs"]["pose-linear-16k-llama-7B"]
    (phase,), (usual,) = run["phases"], main_run["phases"]
    changed = {key for key in usual if phase[key] != usual[key]}
    # Chunks that stand where their positions say need documents as long as the target.
    assert changed == ({"positions", "windows"} if variant == "aligned" else {"positions"})
    for key, value in {**MAIN, **VARIANTS[variant]}.items():
        assert phase["positions"][key] == value
    for key in ("optimizer", "schedule", "batch", "numerics", "seed", "start"):
        assert run[key] == main_run[key]


@pytest.mark.parametrize("target", ["4k", "8k", "16k"])
def test_figure_3_compares_rows_of_the_window_with_rows_of_the_target(
    shown: dict[str, Any], target: str
) -> None:
    """Guards against a cost that is flat because both arms read the same."""
    tokens = int(target[:-1]) * 1024
    pose, full = (
        shown["runs"][f"cost-{method}-{target}"]["phases"][0] for method in ("pose", "full")
    )
    assert (pose["length_tokens"], full["length_tokens"]) == (2048, tokens)
    assert pose["positions"]["target_tokens"] == tokens
    assert pose["rope"] == full["rope"] == {"kind": "linear", "factor": tokens / 2048}


def test_the_documents_have_at_least_2048_tokens_and_give_a_row_each(
    shown: dict[str, Any],
) -> None:
    """Guards against chunks of two documents in one row, and against rows that are too few."""
    corpus = shown["data"]["tokenize"]["pile-long/llama"]["corpus"]
    assert (corpus["split"], corpus["minimum_tokens"]) == ("train", 2048)
    assert corpus["limit_documents"] >= 64 * 1000  # less than an epoch, as in the released script
    assert shown["data"]["pack"]["pile-long/2048"]["windows"]["policy"] == "per_document"
    longer = shown["data"]["tokenize"]["pile-16k/llama"]["corpus"]
    assert longer["minimum_tokens"] == 16384


def test_the_protocols_are_the_papers(shown: dict[str, Any]) -> None:
    """Guards against table 1 measured as figure 4, and the other way round."""
    protocols = {name: found["protocol"] for name, found in shown["evaluations"].items()}
    for name in ("perplexity", "proof_pile"):
        assert protocols[name]["stride_tokens"] == 1024
        assert protocols[name]["documents"] == 50
        assert protocols[name]["minimum_tokens"] == 32768
    assert protocols["truncated"].get("stride_tokens") is None
    assert max(protocols["truncated"]["contexts"].values()) == 16384
    assert protocols["long_books"]["stride_tokens"] == 16384
    assert protocols["long_books"]["documents"] == 20
    assert protocols["retrieval"]["samples"] == 50
    assert protocols["retrieval"]["lengths"] == [
        *range(2048, 16385, 2048),
        *range(20480, 32769, 4096),
    ]
    shots = {task: p["shots"] for p in protocols.values() if "shots" in p for task in p["tasks"]}
    zero = dict.fromkeys(("BoolQ", "PIQA", "WinoGrande", "TruthfulQA"), 0)
    assert shots == {**zero, "ARC-C": 25, "HellaSwag": 10}


def test_pi_only_is_the_rope_of_each_interpolation_before_any_step(shown: dict[str, Any]) -> None:
    """Guards against rows of table 6 that are measured after training."""
    for interpolation in ("linear", "ntk", "yarn"):
        name = f"pose-{interpolation}-16k-llama-7B"
        assert shown["runs"][name]["snapshot_steps"] == [0]
        for evaluation in ("perplexity", "proof_pile"):
            assert shown["evaluations"][evaluation]["runs"][f"pose/{name}"]["snapshots"] == "all"


def test_classes_tell_the_authors_settings_from_ours(shown: dict[str, Any]) -> None:
    """Guards against our choices that pass for the authors', and the other way round."""
    run, expected = "runs.pose-yarn-16k-llama-7B", {}
    stated = (
        "optimizer.lr batch.sequences phases.0.steps schedule.shape schedule.warmup_steps "
        "hardware.processes phases.0.windows"
    )
    expected |= dict.fromkeys(stated.split(), "seed")
    expected |= dict.fromkeys(
        ("start", "phases.0.positions.chunks", "phases.0.rope.factor"), "paper"
    )
    released = "phases.0.rope.kind numerics.precision optimizer.betas optimizer.clip_norm"
    expected |= dict.fromkeys(released.split(), "repo")
    ours = "numerics.matmul schedule.warmup_from seed hardware.nodes snapshot_steps"
    expected |= dict.fromkeys(ours.split(), "assumed")
    known = shown["provenance"]
    assert {key: known[f"{run}.{key}"] for key in expected} == expected
    assert known["runs.short-linear-16k-llama-7B.phases.0.positions.kind"] == "assumed"
    assert known["runs.pose-plain-16k-llama-7B.phases.0.rope.kind"] == "assumed"
    assert known["runs.pose-linear-128k-llama-7B.optimizer.lr"] == "assumed"
    assert known["runs.ablation-aligned.phases.0.windows"] == "assumed"
    assert known["data.tokenize.pile-long/llama.corpus.minimum_tokens"] == "seed"
    assert known["data.pack.pile-long-whole/16384.windows.policy"] == "assumed"


def test_what_cannot_be_had_is_said_and_not_dropped(shown: dict[str, Any]) -> None:
    """Guards against half a table that is missing without a word."""
    blocked = {name for name, claim in shown["claims"].items() if claim.get("outcome") == "blocked"}
    assert blocked == {"gpt_j", "baichuan2", "books3"}
    assert all(shown["claims"][name]["note"] for name in blocked)


@pytest.mark.parametrize("scale", ["mini", "small"])
def test_the_arms_of_a_small_scale_take_the_same_steps_and_rows(scale: str) -> None:
    """Guards against a comparison of methods that is one of training lengths."""
    plan = load_plan(ROOT / "config.yaml", {"scale": scale})
    study = plan.studies["pose"]
    runs = [plan.run(f"pose/{name}") for name in study.runs]
    assert len({(run.batch, run.optimizer, run.schedule, run.seed) for run in runs}) == 1
    assert len({tuple(phase.steps for phase in run.phases) for run in runs}) == 1
    lengths = {name: study.runs[name].phases[0].length_tokens for name in study.runs}
    assert {n: t for n, t in lengths.items() if t != 256} == {
        name: 1024 for name in lengths if name.startswith("full-")
    }


@pytest.mark.parametrize("scale", ["tiny", "mini", "small", "gpu"])
def test_the_controls_of_ours_say_so_and_are_judged_as_the_paper_is(scale: str) -> None:
    """Guards against a control that reads as a statement of the authors."""
    study = load_plan(ROOT / "config.yaml", {"scale": scale}).studies["pose"]
    ours = {"skips_lower_perplexity", "skips_lengthen_retrieval", "interpolation_is_needed"}
    for name in ours:
        assert "not a claim of the paper" in (study.file.claims[name].note or "")
    exact = {name for name, claim in study.file.claims.items() if isinstance(claim.rule, Exact)}
    assert exact <= set(study.file.decides) or scale == "gpu"
