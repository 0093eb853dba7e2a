"""`ropewalk show rope_scaling_laws --json` against what the authors state, and scales against laws.

Formulas are written out here once more: those of `ropewalk.model.rope_laws` are not used.
"""

import contextlib
import functools
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest

from ropewalk.cli import main
from ropewalk.report.spec import Predicted, Steeper
from ropewalk.study.config import SCALES
from ropewalk.study.plan import Plan
from ropewalk.study.project import load_plan

ROOT = Path(__file__).resolve().parents[2]
STUDY = "rope_scaling_laws"
# 500 and 1,000,000 stand on the release page, 2608, 1304 and 652 follow from the window.
BASES = {
    "smallest": 500.0,
    "beta3": 652.0,
    "beta2": 1304.0,
    "beta1": 2608.0,
    "pretrained": 10_000.0,
    "20k": 20_000.0,
    "40k": 40_000.0,
    "80k": 80_000.0,
    "120k": 120_000.0,
    "600k": 600_000.0,
    "largest": 1_000_000.0,
}
CLIP = {"7B": 2.5, "13B": 1.0}
LENGTHS = {"1x": 4096, "4x": 16384}


@pytest.fixture(scope="module")
def shown() -> dict[str, Any]:
    """Return what the command prints."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        assert (
            main(
                ["show", STUDY, "--scale", "paper", "--json", "--config", str(ROOT / "config.yaml")]
            )
            == 0
        )
    found: dict[str, Any] = json.loads(text.getvalue())
    return found


@functools.cache
def planned(scale: str) -> Plan:
    return load_plan(ROOT / "config.yaml", {"scale": scale})


def test_the_runs_are_every_base_at_both_sizes_and_lengths(shown: dict[str, Any]) -> None:
    """Guards against a base that is lost from a figure."""
    cells = {f"plain-{b}-{s}-{n}" for b in BASES for s in CLIP for n in LENGTHS}
    assert set(shown["runs"]) == cells | {"log-smallest-7B-4x"}


@pytest.mark.parametrize("size", CLIP)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("base", BASES)
def test_a_run_is_tuned_as_the_authors_state(
    shown: dict[str, Any], base: str, size: str, length: str
) -> None:
    """Guards against an override of one cell that reaches another."""
    run = shown["runs"][f"plain-{base}-{size}-{length}"]
    (phase,) = run["phases"]
    assert run["start"] == f"shared/llama2-{size}"
    assert run["architecture"]["context_tokens"] == 4096
    assert run["architecture"]["rope_base"] == 10_000
    assert run["architecture"]["hidden"] // run["architecture"]["heads"] == 128
    assert phase["rope"] == {"kind": "base", "base": BASES[base]}
    assert phase["length_tokens"] == LENGTHS[length]
    assert phase["steps"] == 1000
    assert run["batch"] == {"sequences": 128}
    assert run["optimizer"]["lr"] == 2e-5
    assert run["optimizer"]["weight_decay"] == 0.0
    assert run["optimizer"]["clip_norm"] == CLIP[size]
    assert run["schedule"].get("warmup_steps", 0) == 0
    assert run["hardware"]["processes"] == 32
    assert run["hardware"]["device"].startswith("a100")
    assert run["numerics"]["attention"] == "flash"


def test_log_scaling_is_of_the_smallest_base(shown: dict[str, Any]) -> None:
    """Guards against a scaled model that has lost its base on the way."""
    (phase,) = shown["runs"]["log-smallest-7B-4x"]["phases"]
    frequencies = {"kind": "base", "base": 500.0}
    expected = {"kind": "log_scaled", "window_tokens": 4096, "frequencies": frequencies}
    assert phase["rope"] == expected
    assert shown["evaluations"]["log_scaled"]["rope"] == expected


@pytest.mark.parametrize("size", CLIP)
def test_the_architectures_are_those_of_llama_2(shown: dict[str, Any], size: str) -> None:
    """Guards against a wrong width that only a cluster would show."""
    a = shown["runs"][f"plain-largest-{size}-1x"]["architecture"]
    h, f, v = a["hidden"], a["ffn"], a["vocabulary_size"]
    total = 2 * v * h + a["layers"] * (4 * h * h + 3 * h * f + 2 * h) + h
    assert total == {"7B": 6_738_415_616, "13B": 13_015_864_320}[size]


def classes(shown: dict[str, Any], prefix: str, keys: str) -> set[str]:
    known = shown["provenance"]
    return {known[f"{prefix}.{key}"] for key in keys.split()}


def test_what_is_stated_and_what_is_ours(shown: dict[str, Any]) -> None:
    """Guards against our choices that pass for the authors', and the other way round."""
    run = "runs.plain-largest-7B-1x"
    stated = (
        "start phases.0.windows phases.0.steps phases.0.length_tokens batch.sequences "
        "optimizer.lr optimizer.weight_decay optimizer.clip_norm schedule.warmup_steps "
        "hardware.processes numerics.attention"
    )
    ours = (
        "optimizer.betas schedule.shape numerics.precision seed hardware.device tokenizer "
        "optimizer.epsilon"
    )
    assert classes(shown, run, stated) == {"seed"}
    assert classes(shown, run, ours) == {"assumed"}
    assert classes(shown, run, "phases.0.rope.base") == {"repo"}
    assert classes(shown, "runs.plain-80k-7B-1x", "phases.0.rope.base") == {"assumed"}
    longer = "runs.plain-largest-7B-4x"
    assert classes(shown, longer, "batch.sequences") == {"assumed"}
    assert classes(shown, longer, "phases.0.length_tokens") == {"repo"}
    ours = "corpus protocol.documents protocol.bos protocol.points"
    assert classes(shown, "evaluations.by_position", ours) == {"assumed"}


def test_the_table_is_printed_as_it_stands(shown: dict[str, Any]) -> None:
    """Guards against a digit, and against a comparison with numbers of another corpus."""
    study = planned("paper").studies[STUDY].file
    cells = {row.label: row.cells for row in study.tables["million"].rows}
    assert cells == {
        "base 500": ("9.15", "12.41", "22.78", "51.28"),
        "base 500, log-scaled": ("9.13", "10.01", "12.07", "19.07"),
        "base 1,000,000": ("7.07", "76.82", "1520.41", "8349.9"),
    }
    assert study.claims["printed_perplexities"].outcome == "blocked"
    assert any("PG-19" in text for text in study.deviations)
    columns = shown["evaluations"]["far"]["protocol"]["contexts"]
    assert columns == {"32x": 2**17, "64x": 2**18, "128x": 2**19, "256x": 2**20}


@pytest.mark.parametrize("scale", SCALES)
def test_bases_below_that_of_pretraining_follow_the_window(scale: str) -> None:
    """Guards against base 500 at a window where it is not below beta_3, and so must not work."""
    plan = planned(scale)
    window = plan.run(plan.studies[STUDY].file.aliases["original"]).architecture.context_tokens
    wanted = {
        "smallest": 500 / 4096 * window,
        "beta3": window / (2 * math.pi),
        "beta2": window / math.pi,
        "beta1": 2 * window / math.pi,
    }
    for name, axes in plan.studies[STUDY].axes.items():
        run = plan.run(f"{STUDY}/{name}")
        assert run.architecture.context_tokens == window
        rope = getattr(run.phases[0].rope, "frequencies", run.phases[0].rope)
        expected = wanted.get(axes["base"], BASES[axes["base"]])
        assert rope.base == pytest.approx(expected, rel=2e-3), name
        assert run.phases[0].length_tokens == window * int(axes["length"][0])


@pytest.mark.parametrize("scale", SCALES)
def test_a_curve_reads_what_its_claims_ask_for(scale: str) -> None:
    """Guards against a dynamic NTK on other documents, and a bound of the wrong window.

    A context that a claim names and a protocol lacks would be 'not tested' without a word.
    """
    plan = planned(scale)
    job = plan.node("judge", {"name": scale, "study": STUDY}).spec
    for name, claim in job.claims.items():
        parts = [claim.rule, *claim.requires]
        quantities = [
            q
            for rule in parts
            for field in ("quantity", "baseline", "along", "ascending")
            for q in (lambda v: v if isinstance(v, tuple) else [v])(getattr(rule, field, None))
            if q is not None
        ]
        for quantity in quantities:
            protocol = plan.evaluation(STUDY, quantity.evaluation, quantity.run).protocol
            contexts = getattr(protocol, "contexts", None)
            if contexts is None:
                continue
            if scale == "tiny" and quantity.context not in contexts:
                continue  # it decides nothing about models
            assert quantity.context in contexts, name
            if quantity.value == "bound":
                tuned = plan.run(quantity.run).phases[-1].length_tokens
                assert contexts[quantity.context] == tuned, name
    original = plan.studies[STUDY].file.aliases["original"]
    ntk = plan.evaluation(STUDY, "dynamic_ntk", original).protocol
    curve = plan.evaluation(STUDY, "by_position", original).protocol
    assert ntk.contexts == curve.contexts
    assert ntk.minimum_tokens == max(curve.contexts.values())
    assert ntk.stride_tokens is None
    for field in ("documents", "skip_tokens", "bos"):
        assert getattr(ntk, field) == getattr(curve, field)
    if "log_scaled" in plan.studies[STUDY].evaluations:
        (run,) = plan.evaluated(STUDY, "log_scaled")
        scaled = plan.evaluation(STUDY, "log_scaled", run)
        assert scaled.protocol == curve
        tuned = plan.run(run).phases[-1]
        assert scaled.rope is not None
        assert scaled.rope.window_tokens == tuned.length_tokens  # so that tuning was the same
        assert scaled.rope.frequencies == tuned.rope


@pytest.mark.parametrize("scale", ["mini", "small"])
def test_lengths_stand_to_bounds_as_claims_say(scale: str) -> None:
    """Guards against a claim 'beyond its bound' at a length within it, at another head size."""
    plan = planned(scale)
    shape = plan.run("shared/base").architecture
    d, window = shape.head_dimension, shape.context_tokens
    d_extra = 2 * math.ceil(d / 2 * math.log(window / (2 * math.pi), 10_000))
    bound = {name: 2 * math.pi * b ** (d_extra / d) / window for name, b in BASES.items()}
    assert bound["40k"] < 4 < bound["largest"]  # collapse at 4x to 8x; stable at 4x
    critical = 10_000 ** (math.log(4 * window / (2 * math.pi), window / (2 * math.pi)))
    assert 40_000 < critical < 600_000
    file = plan.studies[STUDY].file
    assert isinstance(file.claims["bounds_as_predicted"].rule, Predicted)
    if scale == "small":
        assert isinstance(file.claims["gain_speeds_up"].rule, Steeper)


@pytest.mark.parametrize("scale", SCALES)
def test_the_study_keeps_within_its_share(scale: str) -> None:
    """Guards against a tiny scale that no longer is, and a plan too large to read."""
    plan = planned(scale)
    own = [n for n in plan.manifests(STUDY) if f"/{STUDY}/" in n or n.endswith(f"{STUDY}/manifest")]
    assert len(own) <= {"tiny": 7, "mini": 30, "small": 3 * 70, "gpu": 50, "paper": 120}[scale]
