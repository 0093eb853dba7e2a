"""Figures of what was measured by distance, by position and by convention."""

from collections.abc import Sequence

from ropewalk.report.drawn import (
    Drawn,
    Json,
    Look,
    by_evaluation,
    conventions,
    described,
    drawn,
    line,
)
from ropewalk.report.svg import Line, Panel
from ropewalk.report.wording import figure, listed, percent, span

WINDOWS = "Dotted lines mark windows that these runs were pretrained or trained on."
_MOST_BANDS = 6  # of one panel
_MARGIN = 1.1  # a mark may lie so much beyond the last point


def by_distance(series: Sequence[Json], judged: Json, look: Look) -> Drawn | None:
    """Return success rates of retrieval against the distance, a band for the interval."""
    if not series:
        return None
    panels = []
    for number, (title, group) in enumerate(by_evaluation(series, look)):
        panels.append(
            Panel(
                name=f"distance-{number}",
                title=title,
                description=described("Success rate against distance", group, "at", "accuracy"),
                x_label="distance, tokens",
                y_label="success rate",
                level=group[0]["threshold"],
                marks=_marks(group),
                lines=tuple(
                    line(s, interval="band", bounded=len(group) <= _MOST_BANDS) for s in group
                ),
            )
        )
    levels = sorted({s["threshold"] for s in series})
    chances = sorted({s["chance"] for s in series if s["chance"] is not None})
    chance = f" Chance is {listed([figure(c, 'accuracy') for c in chances])}." if chances else ""
    caption = (
        "Share of trials that retrieve, by distance, final weights; bands are Wilson 95 % "
        f"intervals, left out where more than {_MOST_BANDS} would overlap. The dashed line at "
        f"{listed([percent(level) for level in levels])} is where the reach ends.{chance} "
        f"{WINDOWS} {conventions(series, judged, look)}"
    )
    return drawn("retrieval-distance", "Retrieval against distance", caption, panels)


def copied(series: Sequence[Json], judged: Json, look: Look) -> Drawn | None:
    """Return how much less a second showing of random tokens costs, against the distance."""
    if not series:
        return None
    panels = []
    for number, (title, group) in enumerate(by_evaluation(series, look)):
        reaches = "; ".join(f"{s['label']} reaches {s['reach']:,} tokens" for s in group)
        accuracies = "; ".join(
            f"{s['label']}: "
            + ", ".join(f"{figure(p['accuracy'], 'accuracy')} at {p['x']:,}" for p in s["points"])
            for s in group
        )
        panels.append(
            Panel(
                name=f"copy-{number}",
                title=title,
                description=f"{described('Drop against distance', group, 'at', 'nll')} {reaches}.",
                x_label="distance, tokens",
                y_label="drop of the loss, nat per token",
                x_scale="log",
                marks=_marks(group),
                lines=tuple(line(s, interval="band") for s in group),
            )
        )
        panels.append(
            Panel(
                name=f"copy-accuracy-{number}",
                title=f"{title}: next token right",
                description=f"Share of first choices in the second showing. {accuracies}.",
                x_label="distance, tokens",
                y_label="share of tokens",
                x_scale="log",
                marks=_marks(group),
                lines=tuple(line(s, "accuracy") for s in group),
            )
        )
    caption = (
        "How much less random tokens cost when they are shown again, by the distance between the "
        f"two showings, final weights; bands are 95 % intervals over trials. {WINDOWS} "
        + conventions(series, judged, look)
    )
    return drawn("copy-distance", "Copying against distance", caption, panels)


def by_position(series: Sequence[Json], judged: Json, look: Look) -> Drawn | None:
    """Return loss and next-token accuracy against the position."""
    if not series:
        return None
    panels = []
    for number, (title, group) in enumerate(by_evaluation(series, look)):
        for value, what, label in (
            ("nll", "loss", "loss, nat per token"),
            ("accuracy", "next token right", "share of tokens"),
        ):
            panels.append(
                Panel(
                    name=f"position-{value}-{number}",
                    title=f"{title}: {what}",
                    description=_ends(what, group, value),
                    x_label="position: tokens read before",
                    y_label=label,
                    x_scale="log",
                    marks=_marks(group),
                    lines=tuple(line(s, value, interval="band", draw="line") for s in group),
                )
            )
    caption = (
        "Loss and share of right first choices by how many tokens were read before, final "
        f"weights; bands are 95 % intervals over documents. {WINDOWS} "
        + conventions(series, judged, look)
    )
    return drawn("position", "Loss and accuracy by position", caption, panels)


def by_convention(series: Sequence[Json], judged: Json, look: Look) -> Drawn | None:
    """Return one model's perplexity under every preset: what convention alone does."""
    if not series:
        return None
    panels = []
    for number, s in enumerate(series):
        points = s["points"]
        rows = [float(len(points) - place) for place in range(len(points))]
        said = ", ".join(
            f"{p['preset']} {figure(p['number'], 'perplexity')} "
            f"({span(p['low'], p['high'], 'perplexity')})"
            for p in points
        )
        panels.append(
            Panel(
                name=f"conventions-{number}",
                title=f"{look.label(s['run'])}: {_spread(s)} between the lowest and the highest",
                description=f"Perplexity of {look.label(s['run'])} under every preset. {said}.",
                x_label="perplexity",
                y_label="",
                y_ticks=tuple((row, p["preset"]) for row, p in zip(rows, points, strict=True)),
                lines=(
                    Line(
                        label=look.label(s["run"]),
                        x=[p["number"] for p in points],
                        y=rows,
                        low=[p["low"] for p in points],
                        high=[p["high"] for p in points],
                        interval="sideways",
                        draw="markers",
                        style=look.styles[s["run"]],
                    ),
                ),
            )
        )
    spreads = listed([f"{_spread(s)} for {look.label(s['run'])}" for s in series])
    caption = (
        "The same weights, text and window under the conventions of papers and tools: none of the "
        "differences says anything about the model. From the lowest to the "
        f"highest perplexity it is {spreads}. Bars are 95 % intervals over documents; the "
        f"conventions share the documents. {conventions(series, judged, look)}"
    )
    return drawn("conventions", "What convention alone does to perplexity", caption, panels)


def _spread(series: Json) -> str:
    return f"{100 * series['spread']:.1f} %"


def _marks(group: Sequence[Json]) -> tuple[tuple[float, str], ...]:
    """Return the windows the runs of a panel were trained on, as far as its points go."""
    windows = {s[key] for s in group for key in ("pretrained_tokens", "trained_tokens")} - {None}
    end = max(point.get("last", point["x"]) for s in group for point in s["points"])
    return tuple((w, f"{w:,}") for w in sorted(windows) if w <= _MARGIN * end)


def _ends(what: str, group: Sequence[Json], value: str) -> str:
    """Return where each curve begins, is lowest or highest, and ends."""
    said = []
    for s in group:
        places = [s["points"][0], s["points"][-1]]
        best = min if value == "nll" else max
        places.insert(1, best(s["points"], key=lambda p: p[value]))
        numbers = ", ".join(
            f"{figure(p[value], value)} at {p['first']:,} to {p['last']:,}" for p in places
        )
        said.append(f"{s['label']}: {numbers}")
    return f"{what.capitalize()} at the first, the best and the last positions. {'; '.join(said)}."
