"""The data behind figures of what was measured by position, by distance and by convention.

All of it is of the final weights.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ropewalk.evaluate import intervals
from ropewalk.report.compare import Sampling
from ropewalk.report.estimate import LEVEL
from ropewalk.report.quantities import Results, extract
from ropewalk.report.samples import Measured, PerPosition
from ropewalk.report.series import final, number
from ropewalk.report.spec import Claim, Predicted, Quantity

Json = dict[str, Any]


def by_convention(results: Results, sampling: Sampling) -> list[Json]:
    """Return one model's perplexity under every preset, one series per evaluation and run.

    `spread` is the largest less the smallest over the smallest.
    """
    found = []
    for (evaluation, run), result in results.shown:
        if result["protocol"]["kind"] != "conventions":
            continue
        points = []
        for preset in result["protocol"]["presets"]:
            q = Quantity(evaluation=evaluation, run=run, context=preset, value="perplexity")
            measured = extract(q, results)
            if isinstance(measured, Measured):
                points.append({"preset": preset, **number(measured, sampling)})
        numbers = [point["number"] for point in points]
        if numbers:
            spread = (max(numbers) - min(numbers)) / min(numbers)
            found.append({"evaluation": evaluation, "run": run, "spread": spread, "points": points})
    return found


def by_position(
    results: Results, windows: Mapping[str, tuple[int, int]], sampling: Sampling
) -> list[Json]:
    """Return loss and next-token accuracy by position, one series per evaluation and run.

    A point is a bin of positions [`first`, `last`], drawn at `x`, their geometric mean. `windows`
    are the tokens a run was pretrained and last trained on; the intervals are over documents.
    """
    found = []
    for (evaluation, run), result in results.shown:
        curve = final(result).get("curve")
        if curve is None:
            continue
        counts = np.asarray(curve["counts"], dtype=np.float64).T  # [bins, documents]
        ends = {
            name: _ends(np.asarray(curve[key], dtype=np.float64).T, counts, sampling)
            for name, key in (("nll", "nll_sums"), ("accuracy", "hits"))
        }
        points = []
        for place, (first, stop) in enumerate(
            zip(curve["edges"][:-1], curve["edges"][1:], strict=True)
        ):
            if not curve["tokens"][place]:
                continue
            point = {"x": math.sqrt(first * (stop - 1)), "first": first, "last": stop - 1}
            for name in ("nll", "accuracy"):
                low, high = ends[name]
                point |= {
                    name: curve[name][place],
                    f"{name}_low": float(low[place]),
                    f"{name}_high": float(high[place]),
                }
            points.append(point)
        found.append(
            {"evaluation": evaluation, "run": run, **_windows(windows, run)} | {"points": points}
        )
    return found


def _ends(
    sums: np.ndarray, counts: np.ndarray, sampling: Sampling
) -> tuple[np.ndarray, np.ndarray]:
    """Return both ends of the interval of `sums / counts` for each row [rows, documents]."""
    held = counts.sum(axis=1) > 0
    low, high = np.full((2, len(sums)), np.nan)
    # A draw without a document that reaches a bin has no mean there, and says nothing of it.
    with np.errstate(invalid="ignore"):
        drawn = intervals.nll_draws(
            sums[held], counts[held], seed=sampling.seed, draws=sampling.draws
        )
    low[held], high[held] = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1)
    return low, high


def bounds(
    claims: Mapping[str, Claim],
    results: Results,
    predicted: Mapping[str, float],
    sampling: Sampling,
) -> list[Json]:
    """Return every bound that a claim sets against its prediction, one entry per run and window.

    `beyond` marks a bound that lies beyond the positions that were read: `number` is then the
    longest of them.
    """
    rules = [claim.rule for claim in claims.values() if isinstance(claim.rule, Predicted)]
    wanted = {
        (*results.key(q), q.context or "", q.snapshot): q for rule in rules for q in rule.along
    }
    found = []
    for (evaluation, run, context, _), quantity in sorted(wanted.items()):
        measured = extract(quantity, results)
        if not isinstance(measured, Measured) or run not in predicted:
            continue
        sample = measured.by_seed[0].sample
        assert isinstance(sample, PerPosition)  # what `bound` is read from
        found.append(
            {
                "evaluation": evaluation,
                "run": run,
                "context": context,
                "predicted": predicted[run],
                "beyond": measured.number >= int(sample.edges[-1]),
                **number(measured, sampling),
            }
        )
    return found


def by_distance(results: Results, windows: Mapping[str, tuple[int, int]]) -> list[Json]:
    """Return the success rate of retrieval by distance, one series per evaluation and run.

    Intervals are Wilson's, as the evaluation left them.
    """
    found = []
    for (evaluation, run), result in results.shown:
        snapshot = final(result)
        if "successes" not in snapshot:
            continue
        rows = zip(
            snapshot["distances"],
            snapshot["trials"],
            snapshot["successes"],
            snapshot["wilson"],
            strict=True,
        )
        points = [
            {"x": x, "number": good / of, "low": low, "high": high, "successes": good, "trials": of}
            for x, of, good, (low, high) in rows
        ]
        found.append(
            {
                "evaluation": evaluation,
                "run": run,
                **_windows(windows, run),
                "threshold": result["protocol"]["threshold"],
                "chance": snapshot.get("chance"),
                "points": points,
            }
        )
    return found


def copied(
    results: Results, windows: Mapping[str, tuple[int, int]], sampling: Sampling
) -> list[Json]:
    """Return the drop of a copy probe by distance, one series per evaluation and run.

    Intervals are over trials. `accuracy` is the share of first choices in the second showing.
    """
    found = []
    for (evaluation, run), result in results.shown:
        snapshot = final(result)
        if "drops" not in snapshot:
            continue
        drops = np.asarray(snapshot["drops"], dtype=np.float64)  # [distances, trials]
        low, high = _ends(drops, np.ones_like(drops), sampling)
        points = [
            {
                "x": x,
                "number": float(drops[i].mean()),
                "low": float(low[i]),
                "high": float(high[i]),
                "accuracy": snapshot["accuracy"][i],
            }
            for i, x in enumerate(snapshot["distances"])
        ]
        found.append(
            {
                "evaluation": evaluation,
                "run": run,
                **_windows(windows, run),
                "reach": snapshot["reach"],
                "chance_accuracy": snapshot["chance_accuracy"],
                "points": points,
            }
        )
    return found


def _windows(windows: Mapping[str, tuple[int, int]], run: str) -> Json:
    """Return what a run was trained on, where that is known."""
    pretrained, trained = windows.get(run, (None, None))
    return {"pretrained_tokens": pretrained, "trained_tokens": trained}
