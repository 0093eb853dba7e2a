"""The data behind tables and figures: pure functions from results to plain JSON."""

import math
import re
from collections.abc import Mapping
from typing import Any

from ropewalk.report.compare import Arms, Sampling, estimated
from ropewalk.report.quantities import Results, extract
from ropewalk.report.samples import Measured, Missing
from ropewalk.report.spec import Measure, Quantity, Table

Json = dict[str, Any]
_PRINTED = re.compile(r"(?P<beyond>[<>]?)\s*(?P<number>\d+(?:\.\d+)?(?:e[+-]?\d+)?)")


def printed_number(text: str) -> tuple[float, bool] | None:
    """Return a printed cell as `(number, is only a bound)`, e.g. `>1e3` as `(1000.0, True)`.

    None for a cell that holds no number.
    """
    found = _PRINTED.fullmatch(text.strip().replace(",", ""))
    return (float(found["number"]), bool(found["beyond"])) if found else None


def finite(value: float) -> float | None:
    """Return a number JSON can hold: None for an end without a bound."""
    return float(value) if math.isfinite(value) else None


def cell(quantity: Quantity | None, results: Results, sampling: Sampling) -> Json:
    """Return a number of ours in a table with its interval, or why there is none.

    Keys: `number`, `low`, `high`, `method`, or `missing`; and `evaluation`, `run`, `snapshot`,
    `value`, `context` where named. A column of steps or contexts is the paper's; those of the cell
    are ours.
    """
    if quantity is None:
        return {"missing": "not part of this scale"}
    evaluation, run = results.key(quantity)
    names = {"evaluation": evaluation, "run": run, "snapshot": quantity.snapshot}
    names["value"] = quantity.value
    if quantity.context is not None:
        names["context"] = quantity.context
    found = extract(quantity, results)
    if isinstance(found, Missing):
        return {**names, "missing": found.reason}
    return {**names, **number(found, sampling)}


def number(measured: Measured, sampling: Sampling) -> Json:
    """Return a measured number with its interval and the method of that."""
    e = estimated(Arms(subject=measured, baseline=None, compare="value"), sampling)
    return {"number": e.number, "low": finite(e.low), "high": finite(e.high), "method": e.method}


def table(spec: Table, cells: Mapping[str, Quantity], results: Results, sampling: Sampling) -> Json:
    """Return a table with our number in every cell, beside what is printed there.

    `cells` is keyed by `row,column`, both counted from 0. A cell has what is `printed` as the paper
    has it (empty where it prints nothing) and ours. `others` are evaluations and calibrations that
    some columns ask for in place of the table's.
    """
    others = [column.evaluation or column.calibration for column in spec.other.values()]
    return {
        "title": spec.title,
        "location": spec.location,
        "evaluation": _full(spec.evaluation or spec.calibration, results.study),
        "value": spec.value,
        "by": spec.by,
        "columns": list(
            spec.headings or [spec.other[c].heading if c in spec.other else c for c in spec.columns]
        ),
        "others": [_full(name, results.study) for name in dict.fromkeys(others) if name],
        "rows": [
            {
                "label": row.label,
                "cells": [
                    {"printed": printed, **cell(cells.get(f"{i},{j}"), results, sampling)}
                    for j, printed in enumerate(row.cells or [""] * len(spec.columns))
                ],
            }
            for i, row in enumerate(spec.rows)
        ],
    }


def perplexity_by_context(results: Results, sampling: Sampling) -> list[Json]:
    """Return final perplexity against context, one series per evaluation and run."""
    found = []
    for (evaluation, run), result in results.shown:
        contexts = _contexts(result)
        points = []
        for label, tokens in contexts:
            q = Quantity(evaluation=evaluation, run=run, context=label, value="perplexity")
            measured = extract(q, results)
            if isinstance(measured, Measured):
                points.append({"x": tokens, "label": label, **number(measured, sampling)})
        if points:
            found.append({"evaluation": evaluation, "run": run, "points": points})
    return found


def by_step(results: Results, sampling: Sampling) -> list[Json]:
    """Return perplexity (at the longest context) or reach against steps, where snapshots allow it.

    `value` is `perplexity` or `reach`; `context` the label of the longest context for the former,
    the cells of a task for a reach by length.
    """
    found = []
    for (evaluation, run), result in results.shown:
        steps = sorted(result["snapshots"], key=int)
        if len(steps) < 2:
            continue
        for value, context, tokens in _asked(result):
            points = []
            for step in steps:
                q = Quantity(
                    evaluation=evaluation, run=run, snapshot=step, context=context, value=value
                )
                measured = extract(q, results)
                if isinstance(measured, Measured):
                    points.append({"x": int(step), **number(measured, sampling)})
            found.append(
                {
                    "evaluation": evaluation,
                    "run": run,
                    "value": value,
                    "context": context,
                    "context_tokens": tokens,
                    "points": points,
                }
            )
    return found


def paper_by_context(
    tables: Mapping[str, Table], cells: Mapping[str, Mapping[str, Quantity]]
) -> list[Json]:
    """Return the printed perplexities of the rows we have a counterpart of, against context.

    `x` is the context as a multiple of the window (label `4x` is 4); `beyond` marks a printed
    bound such as `>1e3`.
    """
    found = []
    for name, spec in sorted(tables.items()):
        if spec.value != "perplexity" or spec.by != "context":
            continue
        ours = {int(key.partition(",")[0]) for key in cells.get(name, {})}
        for index, row in enumerate(spec.rows):
            if index not in ours:
                continue
            points = []
            for column, text in zip(spec.columns, row.cells, strict=False):
                known = printed_number(text)
                times = multiple(column)
                if known is not None and times is not None:
                    points.append({"x": times, "number": known[0], "beyond": known[1]})
            if points:
                found.append({"table": name, "label": row.label, "points": points})
    return found


def multiple(label: str) -> float | None:
    """Return the number in a context label such as `4x`, or None for another kind of label."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)x", label)
    return float(found[1]) if found else None


def final(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the snapshot of the final weights."""
    snapshot: Mapping[str, Any] = result["snapshots"][str(result["final_step"])]
    return snapshot


def _contexts(result: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Return the contexts of a loss evaluation, shortest first; none where labels are others."""
    if result["protocol"]["kind"] == "conventions":
        return []
    contexts = final(result).get("contexts", {})
    return sorted(
        ((label, int(c["context_tokens"])) for label, c in contexts.items()), key=lambda c: c[1]
    )


def _asked(result: Mapping[str, Any]) -> list[tuple[Measure, str | None, int]]:
    """Return what is drawn against steps: measure, context of the quantity, and its tokens."""
    if contexts := _contexts(result):
        return [("perplexity", *contexts[-1])]
    snapshot = final(result)
    if "reach" in snapshot:
        return [("reach", None, int(snapshot["context_tokens"]))]
    lengths: dict[str, list[int]] = {}
    for label, cell in snapshot.get("cells", {}).items():
        if all(score in (0, 1) for score in cell["scores"]) and "length_tokens" in cell:
            lengths.setdefault(label.rpartition("/")[0], []).append(int(cell["length_tokens"]))
    return [("reach", f"{task}/*", max(each)) for task, each in lengths.items() if len(each) > 1]


def _full(evaluation: str, study: str) -> str:
    return evaluation if "/" in evaluation else f"{study}/{evaluation}"
