"""The figures of a study, from the data `judge` collected."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

from ropewalk.report.svg import Line, Panel, render
from ropewalk.report.wording import count, figure, listed, span

Json = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawn:
    """One figure: its panels as SVG, side by side where there is room."""

    name: str  # anchor on the page
    title: str
    caption: str
    panels: tuple[tuple[str, str], ...]  # heading of a panel, SVG


def figures(judged: Json) -> list[Drawn]:
    """Return the figures there is data for, in reading order."""
    data = judged["figures"]
    study = judged["study"]
    runs = sorted(
        {s["run"] for key in ("perplexity_by_context", "by_step", "training") for s in data[key]}
    )
    look = Look(study=study, styles={run: index for index, run in enumerate(runs)})
    drawn = [
        _by_context(data["perplexity_by_context"], data["paper_by_context"], judged, look),
        _by_step(data["by_step"], "perplexity", judged, look),
        _by_step(data["by_step"], "reach", judged, look),
        *(_theory(check) for check in data["theory"] if check["series"]),
        _training(data["training"], look),
    ]
    return [figure for figure in drawn if figure is not None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Look:
    """What a run is called and how it is drawn, the same in every figure of a page."""

    study: str
    styles: Mapping[str, int]

    def label(self, name: str) -> str:
        """Return a run's or evaluation's name without the study it shares with the page."""
        return name.removeprefix(f"{self.study}/")


def _by_context(
    ours: Sequence[Json], paper: Sequence[Json], judged: Json, look: Look
) -> Drawn | None:
    if not ours:
        return None
    panels = []
    for number, (evaluation, group) in enumerate(_grouped(ours, "evaluation")):
        ticks = {p["x"]: p["label"] for s in group for p in s["points"]}
        panels.append(
            Panel(
                name=f"context-{number}",
                title=f"Ours: {look.label(evaluation)}",
                description=_described("Perplexity against context", group, look, "at"),
                x_label="context, tokens",
                y_label="perplexity",
                x_scale="log",
                y_scale="log",
                x_ticks=tuple((x, f"{x:,}\n{ticks[x]}") for x in sorted(ticks)),
                lines=tuple(_line(s, look) for s in group),
            )
        )
    for number, (name, rows) in enumerate(_grouped(paper, "table")):
        panels.append(_paper_panel(f"paper-{number}", judged["tables"][name], rows))
    caption = (
        "Final perplexity against the context read, with 95 % intervals over documents (the "
        "differences that decide claims are paired, and sharper). Beside it the rows of the paper "
        "that have a counterpart here, redrawn from its tables; a hollow triangle at the upper "
        "edge is a value printed only as a bound. Models, texts and tokenizers differ: compare the "
        "shapes, not the heights. " + _conventions(ours, judged, look)
    )
    return _drawn("perplexity-context", "Perplexity against context", caption, panels)


def _paper_panel(name: str, table: Json, rows: Sequence[Json]) -> Panel:
    times = sorted({p["x"] for row in rows for p in row["points"]})
    lines = []
    for index, row in enumerate(rows):
        known = [p for p in row["points"] if not p["beyond"]]
        lines.append(
            Line(
                label=row["label"],
                x=[p["x"] for p in known],
                y=[p["number"] for p in known],
                beyond=[p["x"] for p in row["points"] if p["beyond"]],
                style=index,
            )
        )
    said = "; ".join(
        f"{row['label']}: "
        + ", ".join(
            f"{'more than ' if p['beyond'] else ''}{figure(p['number'], 'perplexity')} "
            f"at {p['x']:g}x"
            for p in row["points"]
        )
        for row in rows
    )
    return Panel(
        name=name,
        title=f"Paper: {table['location']}",
        description=f"Perplexity against context as printed. {said}.",
        x_label="context, multiples of the window",
        y_label="perplexity",
        x_scale="log",
        y_scale="log",
        x_ticks=tuple((x, f"{x:g}x") for x in times),
        lines=tuple(lines),
    )


def _by_step(series: Sequence[Json], value: str, judged: Json, look: Look) -> Drawn | None:
    panels = []
    chosen = [s for s in series if s["value"] == value]
    for number, (evaluation, group) in enumerate(_grouped(chosen, "evaluation")):
        contexts = sorted({s["context_tokens"] for s in group})
        panels.append(
            Panel(
                name=f"{value}-steps-{number}",
                title=look.label(evaluation),
                description=_described(f"{value.capitalize()} against steps", group, look, "step"),
                x_label="optimizer steps",
                y_label="perplexity" if value == "perplexity" else "reach, tokens",
                y_scale="log" if value == "perplexity" else "linear",
                level=contexts[0] if value == "reach" and len(contexts) == 1 else None,
                lines=tuple(_line(s, look) for s in group),
            )
        )
    if not panels:
        return None
    where = listed([f"{c:,}" for c in sorted({s["context_tokens"] for s in chosen})])
    if value == "perplexity":
        caption = (
            f"Perplexity at a context of {where} tokens while fine-tuning, 95 % intervals. "
            + _conventions(chosen, judged, look)
        )
        return _drawn("perplexity-steps", "Perplexity against fine-tuning steps", caption, panels)
    caption = (
        "Reach of retrieval: the largest distance up to which every tested distance succeeds often "
        f"enough, 95 % intervals. The dashed line is the context of {where} tokens. "
        + _conventions(chosen, judged, look)
    )
    return _drawn("reach-steps", "Retrieval reach against fine-tuning steps", caption, panels)


def _conventions(series: Sequence[Json], judged: Json, look: Look) -> str:
    """Return how the evaluations of a figure measure: no number without its convention."""
    names = sorted({s["evaluation"] for s in series})
    return " ".join(f"{look.label(name)}: {judged['protocols'][name]}" for name in names)


def _training(series: Sequence[Json], look: Look) -> Drawn | None:
    if not series:
        return None
    panel = Panel(
        name="training-loss",
        title="Training loss",
        description="Loss per step. "
        + "; ".join(
            f"{look.label(s['run'])} goes from {figure(s['points'][0][1], 'nll')} to "
            f"{figure(s['points'][-1][1], 'nll')} in {count(s['points'][-1][0], 'step')}"
            for s in series
        )
        + ".",
        x_label="optimizer steps",
        y_label="loss, nat per token",
        x_scale="log",
        lines=tuple(
            Line(
                label=look.label(s["run"]),
                x=[max(p[0], 1) for p in s["points"]],
                y=[p[1] for p in s["points"]],
                style=look.styles[s["run"]],
                draw="line",
            )
            for s in series
        ),
    )
    return _drawn(
        "training", "Training loss", "Mean loss of the tokens of each step, in nats.", [panel]
    )


def _theory(check: Json) -> Drawn:
    build = _THEORY.get(check["kind"], _any_check)
    return build(check, check["series"])


def _random_fit(check: Json, series: Json) -> Drawn:
    inside = _plain(series, {"targets": "targets (random)"}, draw="dots", style=6)
    curves = {
        "in_range": "fit, inside the window",
        "out_of_range": "fit, outside it",
        "ridge_out_of_range": "outside, with ridge",
    }
    between = series["interpolated"]
    low, high = min(between["x"]), max(between["x"])
    near = [(x, y) for x, y in _points(series["targets"]) if low <= x <= high]
    dots = Line(
        label="targets (random)",
        x=[x for x, _ in near],
        y=[y for _, y in near],
        style=6,
        draw="dots",
    )
    panels = [
        Panel(
            name=f"theory-{check['check']}-range",
            title="Inside the window and beyond",
            description=_numbers(check),
            x_label="position s",
            y_label="a(s)",
            y_scale="symlog",
            lines=(*inside, *_plain(series, curves)),
        ),
        Panel(
            name=f"theory-{check['check']}-between",
            title="Between whole positions",
            description=_numbers(check),
            x_label="position s",
            y_label="a(s)",
            lines=(dots, *_plain(series, {"interpolated": "fit, eighths of a position"})),
        ),
    ]
    caption = (
        "The paper's figure 2: sines and cosines of RoPE fitted to random targets at the positions "
        "of the window, then read outside it (note the scale, linear below 1 and logarithmic "
        "above) and between whole positions. How large the fit grows outside is a matter of "
        "rounding: the problem is singular to working precision."
    )
    return _drawn(f"theory-{check['check']}", "Extrapolation and interpolation", caption, panels)


def _extrapolation_bound(check: Json, series: Json) -> Drawn:
    panel = Panel(
        name=f"theory-{check['check']}",
        title="B(s) / d",
        description=_numbers(check),
        x_label="relative position s",
        y_label="B(s) / d",
        x_scale="log",
        y_scale="log",
        level=1.0,
        lines=tuple(_plain(series, dict.fromkeys(series, "B(s) / d"))),
    )
    caption = (
        "The paper's figure 5: the bound on an attention score that holds at any distance, over "
        "the head dimension. Where it is at least 1 (dashed), the bound on interpolated "
        "scores is several hundred times smaller."
    )
    return _drawn(f"figure-{check['check']}", "The extrapolation bound", caption, [panel])


def _interpolation_bound(check: Json, series: Json) -> Drawn:
    names = {
        "bound": "bound as printed",
        "largest_error": "largest error, random h",
        "aligned_error": "error, aligned h",
    }
    panel = Panel(
        name=f"theory-{check['check']}",
        title="Interpolation error",
        description=_numbers(check),
        x_label="fraction of the way between two positions",
        y_label="error / max |h|",
        y_scale="log",
        lines=tuple(_plain(_positive(series), names)),
    )
    caption = (
        "Theorem 2.1: the error of linear interpolation between neighbouring positions, against "
        "the bound as printed; the aligned coefficients are the worst there are."
    )
    return _drawn(f"figure-{check['check']}", "The interpolation bound", caption, [panel])


def _any_check(check: Json, series: Json) -> Drawn:
    panel = Panel(
        name=f"theory-{check['check']}",
        title=check["check"],
        description=_numbers(check),
        x_label="x",
        y_label="y",
        lines=tuple(_plain(series, {name: name.replace("_", " ") for name in sorted(series)})),
    )
    title = check["check"].replace("_", " ")
    return _drawn(f"figure-{check['check']}", title, f"Check {check['check']}.", [panel])


_THEORY: Mapping[str, Callable[[Json, Json], Drawn]] = {
    "pi_random_fit": _random_fit,
    "pi_extrapolation_bound": _extrapolation_bound,
    "pi_interpolation_bound": _interpolation_bound,
}


def _plain(series: Json, names: Mapping[str, str], **look: Any) -> list[Line]:
    return [
        Line(
            label=label,
            x=series[name]["x"],
            y=series[name]["y"],
            **{"style": index, "draw": "line", **look},
        )
        for index, (name, label) in enumerate(names.items())
        if name in series
    ]


def _positive(series: Json) -> Json:
    """Return the points a logarithmic axis can show: errors are zero at the grid points."""
    kept = {name: [(x, y) for x, y in _points(s) if y > 0] for name, s in series.items()}
    return {n: {"x": [x for x, _ in p], "y": [y for _, y in p]} for n, p in kept.items()}


def _points(series: Json) -> list[tuple[float, float]]:
    return list(zip(series["x"], series["y"], strict=True))


def _numbers(check: Json) -> str:
    said = [f"{k.replace('_', ' ')} {figure(v, 'number')}" for k, v in check["numbers"].items()]
    return "; ".join(said) + "."


def _line(series: Json, look: Look) -> Line:
    points = series["points"]
    closed = all(p["low"] is not None and p["high"] is not None for p in points)
    return Line(
        label=look.label(series["run"]),
        x=[p["x"] for p in points],
        y=[p["number"] for p in points],
        low=[p["low"] for p in points] if closed else (),
        high=[p["high"] for p in points] if closed else (),
        style=look.styles[series["run"]],
    )


def _described(what: str, group: Sequence[Json], look: Look, at: str) -> str:
    unit = "reach" if group[0].get("value") == "reach" else "perplexity"
    said = "; ".join(
        f"{look.label(s['run'])}: "
        + ", ".join(
            f"{figure(p['number'], unit)} ({span(p['low'], p['high'], unit)}) {at} {p['x']:,}"
            for p in s["points"]
        )
        for s in group
    )
    return f"{what}. {said}."


def _grouped(series: Sequence[Json], key: str) -> list[tuple[str, list[Json]]]:
    ordered = sorted(series, key=lambda s: s[key])
    return [(name, list(group)) for name, group in groupby(ordered, key=lambda s: s[key])]


def _drawn(name: str, title: str, caption: str, panels: Sequence[Panel]) -> Drawn:
    return Drawn(
        name=name, title=title, caption=caption, panels=tuple((p.title, render(p)) for p in panels)
    )
