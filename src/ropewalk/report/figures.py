"""The figures of a study, from the data `judge` collected."""

from collections.abc import Sequence

from ropewalk.report import figures_probes
from ropewalk.report.drawn import (
    Drawn,
    Json,
    Look,
    by_evaluation,
    conventions,
    described,
    drawn,
    grouped,
    line,
)
from ropewalk.report.figures_theory import bounds, theory
from ropewalk.report.svg import Line, Panel
from ropewalk.report.wording import count, figure, listed


def figures(judged: Json) -> list[Drawn]:
    """Return the figures there is data for, in reading order."""
    data = judged["figures"]
    study = judged["study"]
    runs = sorted({s["run"] for found in data.values() for s in found if "run" in s})
    styles = {run: index for index, run in enumerate(runs)}
    look = Look(study=study, styles=styles, variants=judged["variants"])
    found = [
        _by_context(data["perplexity_by_context"], data["paper_by_context"], judged, look),
        _by_step(data["by_step"], "perplexity", judged, look),
        _by_step(data["by_step"], "reach", judged, look),
        figures_probes.by_distance(data["by_distance"], judged, look),
        figures_probes.copied(data["copied"], judged, look),
        figures_probes.by_position(data["by_position"], judged, look),
        figures_probes.by_convention(data["by_convention"], judged, look),
        bounds(data["bounds"], judged, look),
        *(theory(check) for check in data["theory"] if check["series"]),
        _training(data["training"], look),
    ]
    return [figure for figure in found if figure is not None]


def _by_context(
    ours: Sequence[Json], paper: Sequence[Json], judged: Json, look: Look
) -> Drawn | None:
    if not ours:
        return None
    panels = []
    for number, (title, group) in enumerate(by_evaluation(ours, look)):
        ticks = {p["x"]: p["label"] for s in group for p in s["points"]}
        panels.append(
            Panel(
                name=f"context-{number}",
                title=f"Ours: {title}",
                description=described("Perplexity against context", group, "at", "perplexity"),
                x_label="context, tokens",
                y_label="perplexity",
                x_scale="log",
                y_scale="log",
                x_ticks=tuple((x, f"{x:,}\n{ticks[x]}") for x in sorted(ticks)),
                lines=tuple(line(s) for s in group),
            )
        )
    for number, (name, rows) in enumerate(grouped(paper, "table")):
        panels.append(_paper_panel(f"paper-{number}", judged["tables"][name], rows))
    caption = (
        "Final perplexity against the context read, with 95 % intervals over documents (the "
        "differences that decide claims are paired, and sharper). "
    )
    if paper:
        caption += (
            "Beside it the rows of the paper that have a counterpart here, redrawn from its "
            "tables; a hollow triangle at the upper edge is a value printed only as a bound. "
            "Models, texts and tokenizers differ: compare the shapes, not the heights. "
        )
    caption += conventions(ours, judged, look)
    return drawn("perplexity-context", "Perplexity against context", caption, panels)


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
    for number, (title, group) in enumerate(by_evaluation(chosen, look)):
        contexts = sorted({s["context_tokens"] for s in group})
        panels.append(
            Panel(
                name=f"{value}-steps-{number}",
                title=title,
                description=described(f"{value.capitalize()} against steps", group, "step", value),
                x_label="optimizer steps",
                y_label="perplexity" if value == "perplexity" else "reach, tokens",
                y_scale="log" if value == "perplexity" else "linear",
                level=contexts[0] if value == "reach" and len(contexts) == 1 else None,
                lines=tuple(line(s) for s in group),
            )
        )
    if not panels:
        return None
    where = listed([f"{c:,}" for c in sorted({s["context_tokens"] for s in chosen})])
    if value == "perplexity":
        caption = (
            f"Perplexity at a context of {where} tokens while fine-tuning, 95 % intervals. "
            + conventions(chosen, judged, look)
        )
        return drawn("perplexity-steps", "Perplexity against fine-tuning steps", caption, panels)
    caption = (
        "Reach: the largest distance up to which a probe succeeds often enough at every tested "
        f"distance, 95 % intervals. The dashed line is the context of {where} tokens. "
        + conventions(chosen, judged, look)
    )
    return drawn("reach-steps", "Reach against fine-tuning steps", caption, panels)


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
    return drawn(
        "training", "Training loss", "Mean loss of the tokens of each step, in nats.", [panel]
    )
