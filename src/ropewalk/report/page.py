"""Judged studies as HTML: offline, without scripts, byte for byte the same from the same data."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from jinja2 import Environment, PackageLoader, StrictUndefined

from ropewalk.report import wording
from ropewalk.report.figures import figures
from ropewalk.report.spec import Accepted, Outcome
from ropewalk.report.strip import strips

Json = Mapping[str, Any]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
SYMBOLS: Mapping[Outcome, str] = {
    "reproduced": "✓",
    "partly": "◐",
    "contradicted": "✗",
    "inconclusive": "≈",
    "not tested at this scale": "\N{EN DASH}",
    "protocol underspecified": "?",
    "blocked": "■",
    "error": "!",
}
MEANINGS: Mapping[Outcome, str] = {
    "reproduced": "the whole interval satisfies the claim, for our models at this scale",
    "partly": "some steps of a chain as claimed, some the other way",
    "contradicted": "no part of the interval satisfies the claim, for our models at this scale",
    "inconclusive": "the interval straddles the edge: more documents or seeds are needed",
    "not tested at this scale": "not measured here, or a printed value that only the paper's own "
    "models can be held to",
    "protocol underspecified": "the paper does not say enough to measure it",
    "blocked": "something outside this work is missing",
    "error": "a result exists but cannot be read",
}
SCALE_NOTES: Mapping[str, str] = {
    "tiny": "Models of about 0.1 million parameters, trained for seconds: this scale shows that "
    "every stage runs from end to end. Its verdicts say nothing about the papers' models.",
    "mini": "Models of about 1 million parameters, trained for minutes on 2 CPU cores. This scale "
    "can decide exact checks of theory and data, and orderings, trends and thresholds whose effect "
    "is large. It cannot decide printed values, effects of about 0.02 nat or less, or anything "
    "that needs a capable model.",
    "small": "Models of 1 to 10 million parameters with several seeds. This scale can decide exact "
    "checks, and orderings, trends and thresholds, also where training noise matters. It cannot "
    "decide printed values or anything that needs a capable model.",
    "gpu": "Published configurations where one GPU holds them, on real corpora. This scale can "
    "decide orderings, trends and thresholds. Printed values are shown beside ours and not "
    "compared.",
    "paper": "The papers' models, lengths and steps: printed values are compared as well.",
}
OTHER_SCALE = "Printed values are shown beside ours and compared at scale paper only."


def slug(text: str) -> str:
    """Return text fit for an anchor or a file name."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-.") or "-"


def tally(claims: Mapping[str, Json]) -> dict[Outcome, int]:
    """Return how many claims have each outcome, in the order of `Outcome`, without zeros."""
    counted = {o: sum(c["outcome"] == o for c in claims.values()) for o in OUTCOMES}
    return {outcome: number for outcome, number in counted.items() if number}


def broken_promises(judged: Json) -> list[str]:
    """Return the claims this scale promised to decide and did not."""
    return [name for name, claim in judged["claims"].items() if not claim["kept"]]


def index_page(
    name: str, scale: str, studies: Mapping[str, Json], accepted: tuple[Accepted, ...] = ()
) -> str:
    """Return the page over all studies, those of papers first."""
    studies = dict(sorted(studies.items(), key=lambda item: not item[1]["paper"]))
    return (
        _environment()
        .get_template("index.html")
        .render(
            name=name,
            scale=scale,
            scale_note=SCALE_NOTES.get(scale, OTHER_SCALE),
            studies=studies,
            tallies={study: tally(judged["claims"]) for study, judged in studies.items()},
            outcomes=[
                o for o in OUTCOMES if any(tally(j["claims"]).get(o) for j in studies.values())
            ],
            broken={s: broken for s, j in studies.items() if (broken := broken_promises(j))},
            accepted=accepted,
        )
    )


def study_page(name: str, judged: Json) -> str:
    """Return the page of one study."""
    return (
        _environment()
        .get_template("study.html")
        .render(
            name=name,
            judged=judged,
            scale=judged["scale"],
            scale_note=SCALE_NOTES.get(judged["scale"], OTHER_SCALE),
            tally=tally(judged["claims"]),
            broken=broken_promises(judged),
            figures=figures(judged),
            cell_tables=cell_tables(judged["cells"]),
            lost=lost_rows(judged["lost"]),
            formulas=sorted({c["flops_formula"] for c in judged["cost"] if c.get("flops")}),
            shared=shared_settings(judged["runs"]),
            own=own_settings(judged["runs"]),
            link=paper_link(judged["paper"]),
        )
    )


def paper_link(paper: Mapping[str, str]) -> str | None:
    """Return the paper's address if it is one a browser may follow."""
    url = paper.get("url", "")
    return url if url.startswith(("https://", "http://")) else None


def shared_settings(runs: Mapping[str, Json]) -> list[Json]:
    """Return the settings all runs have in common; none where there is but one run."""
    if len(runs) < 2:
        return []
    by_run = [{s["key"]: s for s in run["settings"]} for run in runs.values()]
    first = by_run[0]
    return [s for key, s in first.items() if all(other.get(key) == s for other in by_run[1:])]


def own_settings(runs: Mapping[str, Json]) -> dict[str, list[Json]]:
    """Return per run the settings it does not share with all others."""
    shared = {s["key"] for s in shared_settings(runs)}
    return {
        name: [s for s in run["settings"] if s["key"] not in shared] for name, run in runs.items()
    }


def cell_tables(cells: Sequence[Json]) -> list[Json]:
    """Return a table per evaluation that was measured sample by sample: cells by runs."""
    tables: list[Json] = []
    for evaluation in dict.fromkeys(c["evaluation"] for c in cells):
        own = [c for c in cells if c["evaluation"] == evaluation]
        found = {(c["cell"], c["run"]): c for c in own}
        runs = list(dict.fromkeys(c["run"] for c in own))
        names = dict.fromkeys((c["cell"], c.get("metric")) for c in own)
        rows = [
            {"cell": name, "metric": metric, "runs": [found.get((name, run)) for run in runs]}
            for name, metric in names
        ]
        tables.append({"evaluation": evaluation, "runs": runs, "rows": rows})
    return tables


def beside(table: Json) -> bool:
    """Return whether a table has numbers of a paper for ours to stand beside."""
    return any(cell["printed"] for row in table["rows"] for cell in row["cells"])


def measured(row: Json) -> bool:
    """Return whether a row of a table has a number of ours."""
    return any("number" in cell for cell in row["cells"])


def lost_rows(lost: Sequence[Json]) -> list[Json]:
    """Return counted outcomes by evaluation and run; snapshots that lost the same share a row."""
    names = ("evaluation", "run", "non_finite", "dropped", "truncated")
    rows: dict[tuple[Any, ...], list[int]] = {}
    for entry in lost:
        rows.setdefault(tuple(entry[name] for name in names), []).append(entry["step"])
    return [{**dict(zip(names, key, strict=True)), "steps": steps} for key, steps in rows.items()]


def setting(value: Any) -> str:
    """Return the value of a setting as it is read, e.g. `[0.9, 0.95]`."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(setting, value)) + "]"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def interval(low: float | None, high: float | None, unit: str) -> str:
    """Return an interval in words, also one without an end."""
    if low is None or high is None:
        known = [wording.figure(v, unit) for v in (low, high) if v is not None]
        return (
            f"{'at least ' if low is not None else 'at most '}{known[0]}" if known else "unbounded"
        )
    return wording.span(low, high, unit)


def by_location(claims: Mapping[str, Json]) -> list[tuple[str, Json]]:
    """Return claims in the order of their places in the paper: `Table 2` before `Table 10`."""

    def place(item: tuple[str, Json]) -> tuple[list[str], str]:
        parts = re.split(r"(\d+)", item[1]["location"].lower())
        return [p.zfill(6) if p.isdigit() else p for p in parts], item[0]

    return sorted(claims.items(), key=place)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("ropewalk.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": wording.percent,
        "by_location": by_location,
        "slug": slug,
        "setting": setting,
        "figure": wording.figure,
        "with_unit": wording.with_unit,
        "listed": wording.listed,
    }
    environment.tests |= {"beside": beside, "measured": measured}
    environment.globals |= {
        "symbols": SYMBOLS,
        "meanings": MEANINGS,
        "interval": interval,
        "count": wording.count,
        "strips": strips,
    }
    return environment
