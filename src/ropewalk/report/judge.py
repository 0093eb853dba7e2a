"""Stage `judge`: verdicts, tables and figure data of one study, from result files only."""

import dataclasses
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

from ropewalk.base.canonical import leaves, plain
from ropewalk.base.files import read_json, write_json
from ropewalk.base.manifest import Manifest
from ropewalk.base.spec import decode
from ropewalk.base.stage import Job, StageError
from ropewalk.data import frequency
from ropewalk.report import accounts, bounds, curves, measurements, series
from ropewalk.report.compare import Comparison, Sampling
from ropewalk.report.conventions import convention
from ropewalk.report.estimate import LEVEL
from ropewalk.report.quantities import Results, describe
from ropewalk.report.samples import Measured, Missing, Seen
from ropewalk.report.spec import Claim, JudgeJob
from ropewalk.report.verdict import DECIDED, Evidence, Verdict, judge_claim, quantities
from ropewalk.report.wording import listed
from ropewalk.train.spec import Run

JUDGED = "judged.json"
JUDGED_VERSION = 2
Json = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Material:
    """What the study left behind, read."""

    evaluations: Mapping[tuple[str, str], Manifest]  # (study/evaluation, study/run)
    results: Results
    checks: Mapping[str, Manifest]
    check_results: Mapping[str, Json]
    runs: Mapping[str, Manifest]
    calibrations: Mapping[str, Manifest] = dataclasses.field(default_factory=dict)


def work(job: Job) -> tuple[Iterable[Path], Mapping[str, Any]]:
    """Write `judged.json`; the result counts claims by outcome."""
    spec: JudgeJob = job.spec
    judged = judge(spec, read_material(job))
    path = job.folder / JUDGED
    write_json(path, judged)
    outcomes: dict[str, int] = {}
    for claim in judged["claims"].values():
        outcomes[claim["outcome"]] = outcomes.get(claim["outcome"], 0) + 1
    return [path], {"study": spec.study, "outcomes": outcomes}


def read_material(job: Job) -> Material:
    """Read every result a job was given.

    Raises:
        StageError: if an input is named wrongly or has no `result.json`.
    """
    evaluations = {}
    for name, manifest in job.many("evaluation").items():
        evaluation, colon, run = name.partition(":")
        if not colon:
            raise StageError(
                f"{job.stage}: input 'evaluation:{name}' names no run; "
                "the name must be 'evaluation:<study>/<evaluation>:<study>/<run>'"
            )
        evaluations[evaluation, run] = manifest
    checks = job.many("check")
    runs, calibrations = job.many("run"), job.many("calibration")
    return Material(
        evaluations=evaluations,
        results=Results(
            study=job.spec.study,
            by_name={key: _result(manifest) for key, manifest in evaluations.items()},
            calibrations={name: _result(manifest) for name, manifest in calibrations.items()},
            trainings={
                name: {
                    **manifest.result,
                    "calibration": manifest.spec["run"].get("calibration"),
                    "start": manifest.spec["run"]["weights"].get("run"),
                }
                for name, manifest in runs.items()
            },
            seen={run: _seen(packed, runs[run]) for run, packed in job.many("windows").items()},
            replicas=job.spec.replicas,
        ),
        checks=checks,
        check_results={name: _result(manifest) for name, manifest in checks.items()},
        runs=runs,
        calibrations=calibrations,
    )


def _seen(packed: Manifest, trained: Manifest) -> Seen:
    """Return how often the training of a run shows every distance of its windows."""
    f = frequency.packed(packed.path(frequency.STATISTICS))
    steps = _fact(trained, "final_step")
    return Seen(per_token=f / f[0], tokens_per_step=_fact(trained, "tokens") / steps)


def _result(manifest: Manifest) -> Json:
    try:
        path = manifest.path("result.json")
    except KeyError as error:
        raise StageError(f"{error.args[0]}: a judged stage must leave one") from None
    return read_json(path)


def judge(spec: JudgeJob, material: Material) -> Json:
    """Return everything the report says about one study, as plain JSON.

    A promise is kept if the claim came out decided, in either direction; a claim that was not
    promised breaks none.

    Raises:
        StageError: if `decides` names a claim the study does not have.
    """
    unknown = sorted(set(spec.decides) - set(spec.claims))
    if unknown:
        raise StageError(
            f"decides: {unknown[0]!r} is no claim of {spec.study}; claims: "
            f"{', '.join(sorted(spec.claims))}"
        )
    sampling = Sampling(draws=spec.bootstrap_draws, seed=spec.seed)
    evidence = Evidence(
        scale=spec.scale,
        results=material.results,
        checks=material.check_results,
        sampling=sampling,
        predicted=_predicted(material.runs),
    )
    claims = {
        name: _claim(claim, judge_claim(claim, evidence), material, name in spec.decides)
        for name, claim in spec.claims.items()
    }
    results, windows = material.results, _windows(material.runs)
    again = {name for names in spec.replicas.values() for name in names}
    return plain(
        {
            "format_version": JUDGED_VERSION,
            "study": spec.study,
            "scale": spec.scale,
            "seeds": 1 + max((len(names) for names in spec.replicas.values()), default=0),
            "title": spec.title,
            "summary": spec.summary,
            "paper": dict(spec.paper),
            "claims": claims,
            "tables": {
                name: series.table(table, spec.cells.get(name, {}), results, sampling)
                for name, table in spec.tables.items()
            },
            "figures": {
                "perplexity_by_context": series.perplexity_by_context(results, sampling),
                "paper_by_context": series.paper_by_context(spec.tables, spec.cells),
                "by_step": series.by_step(results, sampling),
                "by_convention": curves.by_convention(results, sampling),
                "by_position": curves.by_position(results, windows, sampling),
                "bounds": curves.bounds(spec.claims, results, evidence.predicted, sampling),
                "by_distance": curves.by_distance(results, windows),
                "copied": curves.copied(results, windows, sampling),
                "theory": _theory(material),
                "training": _training(material.runs, again),
            },
            "variants": accounts.variants(results),
            "cells": accounts.cells(results, sampling),
            "cost": accounts.cost(results),
            "lost": accounts.lost(results),
            "runs": {
                name: _run(manifest, spec.provenance.get(name, {}))
                for name, manifest in sorted(material.runs.items())
            },
            "evaluations": {
                f"{evaluation}:{run}": _evaluation(evaluation, run, manifest)
                for (evaluation, run), manifest in sorted(material.evaluations.items())
            },
            "checks": {
                name: {"recipe": manifest.recipe, "content": manifest.content}
                for name, manifest in sorted(material.checks.items())
            },
            "calibrations": {
                name: {
                    "recipe": manifest.recipe,
                    "content": manifest.content,
                    **material.results.calibrations[name],
                }
                for name, manifest in sorted(material.calibrations.items())
            },
            "protocols": _protocols(material.results)
            | {
                name: measurements.sentence(result)
                for name, result in sorted(material.results.calibrations.items())
            },
            "inconsistencies": list(spec.inconsistencies),
            "deviations": list(spec.deviations),
            "unstated": list(spec.unstated),
            "bootstrap": {"draws": spec.bootstrap_draws, "seed": spec.seed, "level": LEVEL},
        }
    )


def _claim(claim: Claim, verdict: Verdict, material: Material, promised: bool) -> Json:
    single = verdict.comparisons[0] if len(verdict.comparisons) == 1 else None
    measured = [_measured(m, material.results) for m in verdict.measured]
    if verdict.number is not None:
        measured.append(
            {"what": f"check {verdict.checks[0]}", "unit": "number", "number": verdict.number}
        )
    replicas = material.results.replicas
    keys = dict.fromkeys(
        (m["evaluation"], run)
        for m in measured
        for run in (m.get("run"), *replicas.get(m.get("run", ""), ()))
        if (m.get("evaluation"), run) in material.evaluations
    )
    return {
        "statement": claim.statement,
        "location": claim.location,
        "printed": claim.printed,
        "note": claim.note,
        "outcome": verdict.outcome,
        "reason": verdict.reason,
        "measured": measured,
        "interval": _interval(single) if single else None,
        "comparisons": [
            {
                "of": c.of,
                "needs": c.needs,
                "region_low": c.region.low,
                "region_high": c.region.high,
                "standing": c.standing,
                **_interval(c),
            }
            for c in verdict.comparisons
        ],
        "evidence": {
            "evaluations": [f"{evaluation}:{run}" for evaluation, run in keys],
            "checks": list(verdict.checks),
        },
        "measurement": any(m.quantity.measurement for m in verdict.measured)
        or any(q.measurement for c in claim.requires for q in quantities(c)),
        "promised": promised,
        "kept": not promised or verdict.outcome in DECIDED,
    }


def _measured(found: Measured | Missing, results: Results) -> Json:
    evaluation, run = results.key(found.quantity)
    return {
        "what": describe(found.quantity),
        "unit": found.quantity.value,
        "number": found.number if isinstance(found, Measured) else None,
        "missing": found.reason if isinstance(found, Missing) else None,
        "evaluation": evaluation,
        "run": run,
    }


def _interval(comparison: Comparison) -> Json:
    e = comparison.estimate
    return {
        "number": series.finite(e.number),
        "low": series.finite(e.low),
        "high": series.finite(e.high),
        "unit": e.unit,
        "method": e.method,
    }


def _evaluation(evaluation: str, run: str, manifest: Manifest) -> Json:
    trained = manifest.inputs.get("run", {})
    return {
        "evaluation": evaluation,
        "run": run,
        "recipe": manifest.recipe,
        "content": manifest.content,
        "run_recipe": trained.get("recipe"),
        "run_content": trained.get("content"),
    }


def _run(manifest: Manifest, provenance: Mapping[str, str]) -> Json:
    settings = []
    for key, value in leaves(manifest.spec["run"]):
        settings.append({"key": key, "value": value, "class": provenance.get(key)})
    commit = manifest.result.get("origin", {}).get("commit")
    if commit:  # what the revision that was asked for turned out to be
        settings.append({"key": "weights.commit", "value": commit, "class": None})
    return {
        "recipe": manifest.recipe,
        "content": manifest.content,
        "steps": _fact(manifest, "steps"),
        "tokens": _fact(manifest, "tokens"),
        "parameters": _fact(manifest, "parameters"),
        "settings": settings,
    }


def _protocols(results: Results) -> dict[str, str]:
    """Return how each evaluation measures; where that differs between runs, for which run how."""
    sentences: dict[str, dict[str, list[str]]] = {}
    for (evaluation, run), result in results.shown:
        key = result["key"]
        said = convention(result["protocol"], rope=key["rope"], numerics=key["numerics"])
        sentences.setdefault(evaluation, {}).setdefault(said, []).append(run)
    return {
        evaluation: next(iter(runs))
        if len(runs) == 1
        else " ".join(f"{listed(names)}: {said}" for said, names in runs.items())
        for evaluation, runs in sentences.items()
    }


def _windows(runs: Mapping[str, Manifest]) -> dict[str, tuple[int, int]]:
    """Return run -> tokens of the window it was pretrained on, and of its last training."""
    found = {}
    for name, manifest in runs.items():
        run = manifest.spec["run"]
        pretrained = int(run["architecture"]["context_tokens"])
        phases = run.get("phases") or [{"length_tokens": pretrained}]
        found[name] = pretrained, int(phases[-1]["length_tokens"])
    return found


def _predicted(runs: Mapping[str, Manifest]) -> dict[str, float]:
    """Return run -> its bound by the laws of RoPE bases, where they say something of its rope."""
    found = {}
    for name, manifest in runs.items():
        bound = bounds.predicted(decode(Run, manifest.spec["run"]))
        if bound is not None:
            found[name] = bound
    return found


def _theory(material: Material) -> list[Json]:
    return [
        {
            "check": name,
            "kind": manifest.spec["check"],
            "numbers": material.check_results[name]["numbers"],
            "series": material.check_results[name].get("series", {}),
        }
        for name, manifest in sorted(material.checks.items())
    ]


def _training(runs: Mapping[str, Manifest], again: Container[str]) -> list[Json]:
    return [
        {"run": name, "points": [[int(step), float(loss)] for step, loss in curve]}
        for name, manifest in sorted(runs.items())
        if name not in again and (curve := _fact(manifest, "loss_curve"))
    ]


def _fact(manifest: Manifest, key: str) -> Any:
    """Return a fact of a training's result; a missing one must not just leave a figure out."""
    if key not in manifest.result:
        raise StageError(
            f"{manifest.folder}: the manifest's result has no {key!r}, only "
            f"{', '.join(sorted(manifest.result))}: it is not the manifest of a training"
        )
    return manifest.result[key]
