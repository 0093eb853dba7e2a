"""What evaluations measured sample by sample, cost and lost, and which repeat another one."""

from typing import Any

from ropewalk.report.compare import Sampling
from ropewalk.report.quantities import Results, extract
from ropewalk.report.samples import Measured
from ropewalk.report.series import final, number
from ropewalk.report.spec import Quantity

Json = dict[str, Any]
LOST = ("non_finite", "dropped", "truncated")


def cells(results: Results, sampling: Sampling) -> list[Json]:
    """Return every cell of every evaluation that has some: its score, interval and samples."""
    found = []
    for (evaluation, run), result in results.shown:
        for name, cell in final(result).get("cells", {}).items():
            q = Quantity(evaluation=evaluation, run=run, context=name, value="score")
            measured = extract(q, results)
            if isinstance(measured, Measured):
                found.append(
                    {
                        "evaluation": evaluation,
                        "run": run,
                        "cell": name,
                        "metric": cell.get("metric"),
                        "samples": len(cell["scores"]),
                        **number(measured, sampling),
                    }
                )
    return found


def cost(results: Results) -> list[Json]:
    """Return the modelled cost of every evaluation of a run, all its snapshots together."""
    return [
        {"evaluation": evaluation, "run": run, "snapshots": len(result["snapshots"])}
        | result["cost"]
        for (evaluation, run), result in sorted(results.by_name.items())
    ]


def variants(results: Results) -> dict[str, str]:
    """Return evaluations that repeat another one of a run under another rope -> the other one."""
    found: dict[str, str] = {}
    for (evaluation, run), result in results.shown:
        key = result["key"]
        for (other, same), usual in results.shown if key["rope"] else ():
            if same == run and usual["key"] == {**key, "rope": None}:
                found.setdefault(evaluation, other)
    return found


def lost(results: Results) -> list[Json]:
    """Return the counted outcomes of every snapshot that lost something its protocol allows."""
    found = []
    for (evaluation, run), result in sorted(results.by_name.items()):
        for step, snapshot in sorted(result["snapshots"].items(), key=lambda item: int(item[0])):
            outcomes = snapshot["outcomes"]
            counts = {outcome: int(outcomes.get(outcome, 0)) for outcome in LOST}
            if any(counts.values()):
                found.append({"evaluation": evaluation, "run": run, "step": int(step), **counts})
    return found
