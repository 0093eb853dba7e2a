"""`ropewalk show position_interpolation --scale paper --json` against what the authors state."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

from ropewalk.cli import main

ROOT = Path(__file__).resolve().parents[2]

# Section 3.1 of arXiv 2306.15595. Numbers of parameters: the released LLaMA checkpoints.
PARAMETERS = {
    "7B": 6_738_415_616,
    "13B": 13_015_864_320,
    "33B": 32_528_943_616,
    "65B": 65_285_660_672,
}
LR = {"7B": 2e-5, "13B": 2e-5, "33B": 1e-5, "65B": 1e-5}
LENGTHS = {"4x": 8192, "8x": 16384, "16x": 32768}
STEPS = {"pi": 1000, "direct": 10000}
# The cells of tables 1 to 4, and the comparison run of section 3.4.
CELLS = {
    ("pi", "7B", "4x", "pile"),
    ("pi", "7B", "8x", "pile"),
    ("pi", "7B", "16x", "pile"),
    ("pi", "13B", "4x", "pile"),
    ("pi", "13B", "8x", "pile"),
    ("pi", "13B", "16x", "pile"),
    ("pi", "33B", "4x", "pile"),
    ("pi", "33B", "8x", "pile"),
    ("pi", "65B", "4x", "pile"),
    ("direct", "7B", "4x", "pile"),
    ("direct", "13B", "4x", "pile"),
    ("direct", "33B", "4x", "pile"),
    ("pi", "7B", "4x", "redpajama"),
}


@pytest.fixture(scope="module")
def shown() -> dict[str, Any]:
    """Return what the command prints."""
    text = io.StringIO()
    command = ["show", "position_interpolation", "--scale", "paper", "--json"]
    with contextlib.redirect_stdout(text):
        assert main([*command, "--config", str(ROOT / "config.yaml")]) == 0
    found: dict[str, Any] = json.loads(text.getvalue())
    return found


def test_the_runs_are_the_cells_of_the_paper(shown: dict[str, Any]) -> None:
    """Guards against a cell that is lost, and against one that the paper does not have."""
    assert set(shown["runs"]) == {"-".join(cell) for cell in CELLS}


@pytest.mark.parametrize("cell", sorted(CELLS), ids="-".join)
def test_a_run_is_trained_as_the_authors_state(
    shown: dict[str, Any], cell: tuple[str, str, str, str]
) -> None:
    """Guards against an override of one cell that reaches another."""
    method, size, length, data = cell
    run = shown["runs"]["-".join(cell)]
    small = size in ("7B", "13B", "33B") and length == "4x"  # extended to 8192: fewer GPUs
    (phase,) = run["phases"]
    assert run["start"] == f"shared/llama-{size}"
    assert run["architecture"]["context_tokens"] == 2048
    assert run["optimizer"]["betas"] == [0.9, 0.95]
    assert run["optimizer"]["lr"] == LR[size]
    assert run["optimizer"]["weight_decay"] == 0.0
    assert run["schedule"]["warmup_steps"] == 20
    assert run["schedule"]["warmup_from"] == 0.1
    assert run["hardware"]["processes"] == (32 if small else 128)
    assert run["hardware"]["device"].startswith("a100")
    assert run["batch"] == {"sequences": 64 if small else 128}
    assert run["numerics"]["attention"] == "flash"
    assert phase["length_tokens"] == LENGTHS[length]
    assert phase["steps"] == STEPS[method]
    assert phase["positions"] == {"kind": "natural"}
    factor = LENGTHS[length] / 2048
    expected = {"kind": "linear", "factor": factor} if method == "pi" else {"kind": "plain"}
    assert phase["rope"] == expected
    corpora = [share["corpus"] for share in _mixture(shown, phase)]
    assert corpora == [f"{data}-train"]


def _mixture(shown: dict[str, Any], phase: dict[str, Any]) -> list[dict[str, Any]]:
    windows = shown["data"]["pack"][f"{phase['windows']}/{phase['length_tokens']}"]["windows"]
    found: list[dict[str, Any]] = windows["mixture"]
    return found


def test_the_corpora_are_the_pile_and_redpajama(shown: dict[str, Any]) -> None:
    """Guards against a corpus that has the name of the Pile only."""
    tokens = {key.split("/")[0]: spec for key, spec in shown["data"]["tokenize"].items()}
    for name in ("pile", "redpajama"):
        assert tokens[f"{name}-train"]["corpus"]["split"] == "train"
        assert tokens[f"{name}-train"]["source"]["location"] == name


def parameters(a: dict[str, Any]) -> int:
    """Return the number of weights of a LLaMA model: embedding, layers, final norm, head."""
    h, f, kv = a["hidden"], a["ffn"], a["hidden"] * a.get("kv_heads", a["heads"]) // a["heads"]
    attention = 2 * h * h + 2 * h * kv
    layer = attention + 3 * h * f + 2 * h
    head = 0 if a["tied_embeddings"] else a["vocabulary_size"] * h
    return a["vocabulary_size"] * h + a["layers"] * layer + h + head


@pytest.mark.parametrize("size", PARAMETERS)
def test_the_architectures_have_as_many_weights_as_the_released_models(
    shown: dict[str, Any], size: str
) -> None:
    """Guards against a wrong width that only a 65B checkpoint on a cluster would show."""
    found = {
        parameters(run["architecture"])
        for name, run in shown["runs"].items()
        if name.split("-")[1] == size
    }
    assert found == {PARAMETERS[size]}


def test_what_section_3_1_states_is_classed_so(shown: dict[str, Any]) -> None:
    """Guards against our choices that pass for the authors', and the other way round."""
    stated = (
        "optimizer.betas optimizer.lr optimizer.weight_decay schedule.warmup_steps "
        "schedule.warmup_from batch.sequences hardware.processes phases.0.steps "
        "phases.0.length_tokens phases.0.windows start numerics.attention"
    ).split()
    ours = "schedule.shape numerics.precision optimizer.epsilon seed hardware.nodes".split()
    for run in shown["runs"]:
        assert {shown["provenance"][f"runs.{run}.{key}"] for key in stated} == {"seed"}
        assert {shown["provenance"][f"runs.{run}.{key}"] for key in ours} == {"assumed"}
