"""A small study made up for tests: real manifests, invented numbers, known verdicts."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ropewalk.base.canonical import plain
from ropewalk.base.files import write_json
from ropewalk.base.manifest import MANIFEST, read_manifest, write_manifest
from ropewalk.base.stage import run_stage
from ropewalk.evaluate import check, check_pi, copying, intervals
from ropewalk.evaluate.curve import curve, edges
from ropewalk.evaluate.scorer import Scores
from ropewalk.evaluate.spec import (
    CheckJob,
    Conventions,
    CopyProbe,
    EvaluateJob,
    Passkey,
    PositionCurve,
    Protocol,
    SameTokens,
    SlidingWindow,
    Tasks,
)
from ropewalk.model.spec import Architecture, LinearRope, Numerics, PlainRope
from ropewalk.report import judge, stage
from ropewalk.report.spec import (
    Accepted,
    Claim,
    Exact,
    JudgeJob,
    Ordering,
    Quantity,
    ReportJob,
    Row,
    Table,
    Threshold,
    Trend,
    Value,
)
from ropewalk.train.spec import Batch, Optimizer, Phase, Run, RunWeights, Schedule, TrainJob

CONTEXTS = {"1x": 256, "2x": 512, "4x": 1024}
LOSSES = SameTokens(contexts=CONTEXTS, scored_tokens=128, documents=24)
SLIDING = SlidingWindow(contexts=CONTEXTS, stride_tokens=64, documents=24, minimum_tokens=1024)
RETRIEVAL = Passkey(context_tokens=1024, distances=8, trials=10, allow=("dropped",))
STRIP = Conventions(context_tokens=256, stride_tokens=64, documents=24)
CURVE = PositionCurve(contexts={"1x": 256, "2x": 512}, documents=6, points=8)
COPY = CopyProbe(context_tokens=512, distances=6, trials=12, segment_tokens=16)
TASKS = Tasks(tasks=("passkey", "vt"), lengths=(512,), samples=12, allow=("dropped",))
HOSTILE = "<script>alert('1')</script> & \"quotes\" $x_1$ {{ 7*7 }}"


def losses(
    levels: Mapping[str, float], *, seed: int = 0, documents: int = 24, noise: float = 0.02
) -> dict[str, Any]:
    """Return a snapshot of a loss evaluation: documents share their difficulty between arms."""
    shared = np.random.default_rng(7).normal(scale=0.3, size=documents)
    random = np.random.default_rng(seed)
    tokens = np.full(documents, 128)
    contexts = {}
    for label, level in levels.items():
        means = np.log(level) + shared + random.normal(scale=noise, size=documents)
        nll = float((means * tokens).sum() / tokens.sum())
        contexts[label] = {
            "context_tokens": CONTEXTS.get(label, 256),
            "mean": "tokens",
            "documents": [f"doc-{i:03d}" for i in range(documents)],
            "tokens": tokens.tolist(),
            "words": [60] * documents,
            "bytes": [400] * documents,
            "nll_sums": (means * tokens).tolist(),
            "hits": [40 + i % 5 for i in range(documents)],
            "windows": documents,
            "preceding": [128, 255],
            "non_finite": 0,
            "nll": nll,
            "perplexity": float(np.exp(nll)),
            "word_perplexity": float(np.exp(nll * 128 / 60)),
            "byte_perplexity": float(np.exp(nll * 128 / 400)),
            "bits_per_byte": nll * 128 / 400 / float(np.log(2)),
        }
    return {"contexts": contexts}


def window_mean(level: float, *, seed: int = 0) -> dict[str, Any]:
    """Return the numbers of one context whose mean weighs windows: document i has 1 + i % 3."""
    (found,) = losses({"1x": level}, seed=seed)["contexts"].values()
    weights = np.array([1.0 + i % 3 for i in range(len(found["tokens"]))])
    weighted = weights * np.array(found["nll_sums"]) / 128
    nll = float(weighted.sum() / weights.sum())
    numbers = {"mean": "windows", "nll": nll, "perplexity": float(np.exp(nll))}
    numbers["word_perplexity"] = float(np.exp(nll * 128 / 60))
    return {**found, **numbers, "weights": weights.tolist(), "weighted_sums": weighted.tolist()}


def strip(level: float) -> dict[str, Any]:
    """Return a snapshot of one model under every preset of `STRIP`, a per cent apart."""
    contexts = {}
    for place, name in enumerate(STRIP.presets):
        at = level * 1.01**place
        made = losses({name: at})["contexts"][name]
        contexts[name] = window_mean(at) if name == "yarn_window_mean" else made
    return {"contexts": contexts}


def position_curve(falls: float, rises: float) -> dict[str, Any]:
    """Return a snapshot of 6 documents whose loss falls until position 256 and then rises."""
    random = np.random.default_rng(3)
    preceding = np.tile(np.arange(1, 512), 6)
    nll = 5 - falls * np.log(np.minimum(preceding, 256)) + rises * (preceding > 256)
    scores = Scores(
        document=np.repeat(np.arange(6), 511).astype(np.int32),
        position=preceding.astype(np.int32),
        preceding=preceding.astype(np.int32),
        window=np.zeros(len(preceding), dtype=np.int32),
        nll=(nll + random.normal(scale=0.3, size=len(nll))).astype(np.float32),
        hit=random.random(len(nll)) < 0.3,
    )
    documents = [f"doc-{i:03d}" for i in range(6)]
    made = losses({"1x": 30.0, "2x": 40.0 * np.exp(rises)})
    return {**made, "curve": curve(scores, documents, edges(512, CURVE.points))}


def copy_probe(limit: int) -> dict[str, Any]:
    """Return a snapshot of a model that copies up to a distance, as the probe makes it."""
    random = np.random.default_rng(limit)
    rows = copying.build(COPY, 0, np.arange(500), 0)
    size = COPY.segment_tokens

    def scored(nll: np.ndarray) -> Scores:
        n = len(nll) * size
        noisy = np.repeat(nll, size) + random.normal(scale=0.2, size=n)
        index = np.arange(n, dtype=np.int32)
        return Scores(
            document=index // size,
            position=index,
            preceding=index,
            window=index // size,
            nll=noisy.astype(np.float32),
            hit=noisy < 2,
        )

    second = np.repeat(np.where(np.array(rows.distances) <= limit, 1.0, 6.0), COPY.trials)
    scores = {copying.FIRST: scored(np.full(COPY.trials, 6.0)), copying.SECOND: scored(second)}
    return copying.summarise(scores, rows, COPY, 0)


def cells(**scores: list[float]) -> dict[str, Any]:
    """Return a snapshot of what is measured sample by sample, by cell; `__` stands for a slash."""
    return {
        "cells": {
            name.replace("__", "/"): {
                "samples": list(range(len(values))),
                "scores": values,
                "mean": float(np.mean(values)),
            }
            for name, values in scores.items()
        }
    }


def retrieval(rates: list[float]) -> dict[str, Any]:
    """Return a snapshot of a retrieval evaluation with the given success rate per distance."""
    n = len(rates)
    distances = [1024 * (i + 1) // n for i in range(n)]
    good = [i for i, rate in enumerate(rates) if rate < 0.2]
    reach = distances[-1] if not good else ([0, *distances])[good[0]]
    return {
        "context_tokens": 1024,
        "distances": distances,
        "untestable": [],
        "trials": [10] * n,
        "successes": [round(10 * rate) for rate in rates],
        "wilson": [
            [found.low, found.high]
            for found in (intervals.wilson(round(10 * rate), 10) for rate in rates)
        ],
        "accuracy": sum(round(10 * r) for r in rates) / (10 * n),
        "reach": reach,
        "reach_share": reach / 1024,
    }


def result(
    run: str, protocol: Protocol, snapshots: Mapping[int, Any], **lost: int
) -> dict[str, Any]:
    """Return an evaluation result as the evaluation room writes it; `lost` counts outcomes."""
    outcomes = {"sequences": 24, "scored_tokens": 3072, "non_finite": 0, "dropped": 0}
    return {
        "run": run,
        "key": {"rope": None, "numerics": plain(Numerics())},
        "protocol": plain(protocol),
        "final_step": max(snapshots),
        "snapshots": {
            str(step): {**snapshot, "outcomes": {**outcomes, "truncated": 0, **lost}}
            for step, snapshot in snapshots.items()
        },
        "cost": {
            "flops": 123_456_789_012 * len(snapshots),
            "flops_formula": "2 * weights * tokens",
            "tokens_read": 24_576 * len(snapshots),
            "tokens_scored": 3072 * len(snapshots),
        },
    }


# Perplexity at 256, 512 and 1,024 tokens, by run and step.
PERPLEXITY = {
    "shared/base": {0: (24.1, 31.7, 46.0)},
    "pi/direct": {10: (24.5, 27.8, 36.4), 40: (24.7, 25.1, 26.9), 80: (24.4, 24.5, 25.5)},
    "pi/interpolated": {
        0: (35.7, 35.8, 36.3),
        10: (31.3, 31.2, 31.5),
        40: (26.1, 26.0, 26.3),
        80: (25.2, 25.1, 25.0),
    },
    "pi/zero-shot": {0: (35.7, 35.8, 36.3)},
}
RATES = {
    "pi/direct": {
        10: [1.0, 1.0, 0.1, 0, 0, 0, 0, 0],
        80: [1.0, 1.0, 1.0, 0.1, 0, 0, 0, 0],
    },
    "pi/interpolated": {0: [0.9] + [0.0] * 7, 10: [1.0] * 8, 80: [1.0] * 8},
}


def run_of(name: str) -> Run:
    """Return the spec of a run of the sample."""
    architecture = Architecture(
        layers=4, hidden=128, heads=4, ffn=352, vocabulary_size=2048, context_tokens=256
    )
    rope = LinearRope(factor=4.0) if name != "pi/direct" else PlainRope()
    return Run(
        architecture=architecture,
        tokenizer="shared",
        weights=RunWeights(run="shared/base"),
        phases=(Phase(windows="long", length_tokens=1024, steps=80, rope=rope),),
        batch=Batch(sequences=4),
        optimizer=Optimizer(lr=2e-4, betas=(0.9, 0.95)),
        schedule=Schedule(shape="constant", warmup_steps=20, warmup_from=0.1),
        snapshot_steps=(10, 40),
    )


def q(run: str, context: str | None = "4x", **more: Any) -> Quantity:
    """Return a quantity of the sample's loss evaluation."""
    return Quantity(evaluation=more.pop("evaluation", "loss"), run=run, context=context, **more)


def judge_job(**changes: Any) -> JudgeJob:
    """Return the sample's judge job: one claim for every outcome that data can give."""
    base, direct, pi = "shared/base", "pi/direct", "pi/interpolated"
    claims = {
        "base-blows-up": Claim(
            statement="Read far beyond its window, the untouched model's perplexity explodes.",
            location="Table 1",
            printed="> 10^3 from 2x the window on",
            rule=Threshold(
                quantity=q(base, value="perplexity"),
                baseline=q(base, "1x", value="perplexity"),
                compare="ratio",
                at_least=1.5,
            ),
        ),
        "pi-below-direct": Claim(
            statement="After the same few steps, Position Interpolation is ahead of direct "
            "fine-tuning at the extended length.",
            location="Table 1",
            printed="6.95 against 7.69",
            rule=Ordering(
                ascending=(
                    q(pi, value="perplexity", snapshot="10"),
                    q(direct, value="perplexity", snapshot="10"),
                    q(base, value="perplexity"),
                )
            ),
        ),
        "loss-falls": Claim(
            statement="Perplexity at the extended length falls with every further step.",
            location="Table 3",
            printed="16.10, 7.12, 7.10, 7.02, 6.99, 6.95",
            rule=Trend(
                along=tuple(q(pi, snapshot=s) for s in ("first", "10", "40", "final")),
                direction="falling",
            ),
        ),
        "free-inside": Claim(
            statement="Inside the old window nothing is lost.",
            location="section 3.2",
            printed="7.20 becomes 7.13",
            rule=Threshold(
                quantity=q(pi, "1x"),
                baseline=q(base, "1x"),
                compare="difference",
                at_most=0.0,
            ),
        ),
        "partly": Claim(
            statement="Every longer context lowers the perplexity of the extended model.",
            location="Table 1",
            printed="7.13, 6.96, 6.95",
            rule=Ordering(
                ascending=(
                    q(base, "1x", value="perplexity"),
                    q(base, value="perplexity"),
                    q(base, "2x", value="perplexity"),
                )
            ),
        ),
        "reaches": Claim(
            statement="After 10 steps the extended model retrieves from the whole window.",
            location="Table 4",
            printed="8192 of 8192",
            rule=Threshold(
                quantity=Quantity(evaluation="passkey", run=pi, snapshot="10", value="reach_share"),
                at_least=1.0,
            ),
        ),
        "undecided": Claim(
            statement="Direct fine-tuning ends within half a per cent of where it was.",
            location="Table 1",
            printed="7.20 and 7.21",
            rule=Threshold(
                quantity=q(direct, "1x", value="perplexity"),
                baseline=q(base, "1x", value="perplexity"),
                compare="ratio",
                at_most=1.0125,
            ),
        ),
        "value": Claim(
            statement="Perplexity on PG-19 at the extended length.",
            location="Table 1",
            printed="6.95",
            rule=Value(quantity=q(pi, value="perplexity"), printed=6.95, relative_tolerance=0.01),
        ),
        "not-run": Claim(
            statement="The 33B model shows the same.",
            location="Table 1",
            printed="5.71",
            rule=Threshold(quantity=q("pi/33b", value="perplexity"), at_most=6.0),
        ),
        "theory": Claim(
            statement="The extrapolation bound never falls below the head dimension.",
            location="figure 5",
            printed="B(s)/d at least 1",
            rule=Exact(check="figure-5", number="minimum", at_least=1.0),
        ),
        "blocked": Claim(
            statement=f"Zero-shot benchmarks hardly suffer. {HOSTILE}",
            location="Table 5",
            printed="at most 2 % degradation",
            outcome="blocked",
            note="The harness is not named.",
        ),
    }
    rows = (
        Row(run={"method": "none"}, label="7B none", cells=("7.20", ">1e3", ">1e3")),
        Row(run={"method": "direct"}, label="7B 8k FT", cells=("7.21", "7.34", "7.69")),
        Row(run={"method": "pi"}, label="7B 8k PI", cells=("7.13", "6.96", "6.95")),
        Row(run={"method": "pi"}, label="13B 8k PI", cells=("6.55", "6.42", "")),
    )
    reach_rows = (
        Row(run={}, label="7B 8k FT", cells=("1792", "2560")),
        Row(run={}, label="7B 8k PI", cells=("8192", "8192")),
    )
    runs = (base, direct, pi)
    fields = {
        "study": "pi",
        "scale": "mini",
        "title": "Extending Context Window of Large Language Models via Positional Interpolation",
        "paper": {
            "authors": "Chen, Wong, Chen, Tian",
            "year": "2023",
            "url": "https://arxiv.org/abs/2306.15595",
        },
        "claims": claims,
        "tables": {
            "table-1": Table(
                title="Perplexity on long documents",
                location="Table 1",
                evaluation="loss",
                value="perplexity",
                columns=("1x", "2x", "4x"),
                rows=rows,
            ),
            "table-4": Table(
                title="Effective window, by fine-tuning steps",
                location="Table 4",
                evaluation="passkey",
                value="reach",
                columns=("10", "80"),
                by="snapshot",
                rows=reach_rows,
            ),
        },
        "cells": {
            "table-1": {
                f"{i},{j}": q(run, label, value="perplexity")
                for i, run in enumerate(runs)
                for j, label in enumerate(CONTEXTS)
            },
            "table-4": {
                f"{i},{j}": Quantity(evaluation="passkey", run=run, snapshot=s, value="reach")
                for i, run in enumerate((direct, pi))
                for j, s in enumerate(("10", "80"))
            },
        },
        "decides": ("base-blows-up", "theory", "undecided"),
        "inconsistencies": ("“Up to 32 times”: the largest experiment is 16 times.",),
        "deviations": (
            "Models of 1 M parameters trained on Python sources, not LLaMA on the Pile.",
            HOSTILE,
        ),
        "unstated": ("Gradient clipping (none here).", HOSTILE),
        "provenance": {pi: {"optimizer.lr": "paper", "schedule.shape": "assumed"}},
        "bootstrap_draws": 500,
    }
    return JudgeJob(**{**fields, **changes})


def build_inputs(root: Path) -> dict[str, Path]:
    """Write manifests of runs, evaluations and checks under `root`; return the judge's inputs."""
    inputs: dict[str, Path] = {}
    for name in ("shared/base", "pi/direct", "pi/interpolated"):
        folder = root / "runs" / name
        folder.mkdir(parents=True)
        (folder / "weights").write_text(name)
        curve = [[step, 3.9 - 0.2 * (step / 80) ** 0.5] for step in range(0, 81, 4)]
        write_manifest(
            folder,
            stage="train",
            spec=TrainJob(run=run_of(name)),
            inputs={},
            files=[folder / "weights"],
            result={
                "steps": 80,
                "final_step": 80,
                "tokens": 327680,
                "parameters": 1066880,
                "loss_curve": curve,
            },
        )
        inputs[f"run:{name}"] = folder / MANIFEST
    for run, steps in PERPLEXITY.items():
        snapshots = {
            step: losses(dict(zip(CONTEXTS, levels, strict=True)), seed=index)
            for index, (step, levels) in enumerate(sorted(steps.items()))
        }
        inputs[f"evaluation:pi/loss:{run}"] = _evaluation(root, "loss", run, LOSSES, snapshots)
    for run, rates in RATES.items():
        snapshots = {step: retrieval(r) for step, r in rates.items()}
        name = f"evaluation:pi/passkey:{run}"
        inputs[name] = _evaluation(root, "passkey", run, RETRIEVAL, snapshots)
    probes: list[tuple[str, Protocol, dict[str, dict[str, Any]]]] = [
        ("strip", STRIP, {"shared/base": strip(24.0), "pi/interpolated": strip(25.0)}),
        (
            "curve",
            CURVE,
            {
                "shared/base": position_curve(0.3, 1.0),
                "pi/interpolated": position_curve(0.28, 0.0),
            },
        ),
        ("copy", COPY, {"shared/base": copy_probe(128), "pi/interpolated": copy_probe(512)}),
        (
            "tasks",
            TASKS,
            {
                "shared/base": cells(passkey__512=[0.0] * 12, vt__512=[0.2, 0.4] * 6),
                "pi/interpolated": cells(passkey__512=[1.0] * 12, vt__512=[0.4, 0.6] * 6),
            },
        ),
    ]
    for name, protocol, runs in probes:
        for run, snapshot in runs.items():
            key = f"evaluation:pi/{name}:{run}"
            lost = {"dropped": 3} if name == "tasks" else {}
            inputs[key] = _evaluation(root, name, run, protocol, {80: snapshot}, **lost)
    checks = {
        "figure-5": CheckJob(check="pi_extrapolation_bound", parameters={}),
        "figure-2": CheckJob(check="pi_random_fit", parameters={"seeds": 1, "points": 128}),
        "theorem-2.1": CheckJob(check="pi_interpolation_bound", parameters={"draws": 4}),
    }
    for name, spec in checks.items():
        folder = root / "checks" / name
        run_stage(
            "check",
            "ropewalk.evaluate.check",
            lambda job: check.work(dataclasses.replace(job, chosen=check_pi)),
            chosen=check_pi.__name__,
            spec=spec,
            inputs={},
            folder=folder,
        )
        inputs[f"check:{name}"] = folder / MANIFEST
    return inputs


def _evaluation(
    root: Path,
    evaluation: str,
    run: str,
    protocol: Protocol,
    snapshots: Mapping[int, Any],
    **lost: int,
) -> Path:
    folder = root / "evaluations" / evaluation / run
    folder.mkdir(parents=True)
    write_json(folder / "result.json", result(run, protocol, snapshots, **lost))
    trained = root / "runs" / run / MANIFEST
    write_manifest(
        folder,
        stage="evaluate",
        spec=EvaluateJob(protocol=protocol, snapshots="all", numerics=Numerics(), seed=0),
        inputs={"run": read_manifest(trained)} if trained.is_file() else {},
        files=[folder / "result.json"],
        result={},
    )
    return folder / MANIFEST


ACCEPTED = (
    Accepted(
        file="ropewalk/data/pack.py",
        old="0123456789ab",
        new="ba9876543210",
        reason=f"Only a message differs. {HOSTILE}",
    ),
)


def build(root: Path, *, spoil_cost: bool = False, **changes: Any) -> Path:
    """Judge and report the sample under `root`; return the folder of the report.

    With `spoil_cost` every evaluation has a measured cost beside it, as a machine leaves it.
    """
    inputs = build_inputs(root)
    if spoil_cost:
        for result_file in root.glob("evaluations/**/result.json"):
            write_json(result_file.with_name("cost.json"), {"seconds": 12.5})
    run_stage(
        "judge",
        "ropewalk.report.judge",
        judge.work,
        spec=judge_job(**changes),
        inputs=inputs,
        folder=root / "judged",
    )
    run_stage(
        "report",
        "ropewalk.report.stage",
        stage.work,
        spec=ReportJob(name="sample", scale="mini", accepted=ACCEPTED),
        inputs={"judged:pi": root / "judged" / MANIFEST},
        folder=root / "report",
    )
    return root / "report"
