"""What all figures of a page share: how runs look, are called and described."""

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from ropewalk.report.svg import Line, Panel, render
from ropewalk.report.wording import figure, listed, span

Json = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawn:
    """One figure: its panels as SVG, side by side where there is room."""

    name: str  # anchor on the page
    title: str
    caption: str
    panels: tuple[tuple[str, str], ...]  # heading of a panel, SVG


@dataclasses.dataclass(frozen=True, kw_only=True)
class Look:
    """What a run is called and how it is drawn, the same in every figure of a page."""

    study: str
    styles: Mapping[str, int]
    variants: Mapping[str, str] = dataclasses.field(default_factory=dict)
    # evaluations that repeat another one under another rope -> the other one

    def label(self, name: str) -> str:
        """Return a run's or evaluation's name without the study it shares with the page."""
        return name.removeprefix(f"{self.study}/")


def drawn(name: str, title: str, caption: str, panels: Sequence[Panel]) -> Drawn:
    """Return a figure with its panels rendered."""
    return Drawn(
        name=name, title=title, caption=caption, panels=tuple((p.title, render(p)) for p in panels)
    )


def grouped(series: Sequence[Json], key: str) -> list[tuple[str, list[Json]]]:
    """Return series by the value of a key, in its order."""
    ordered = sorted(series, key=lambda s: s[key])
    return [(name, list(group)) for name, group in groupby(ordered, key=lambda s: s[key])]


def by_evaluation(series: Sequence[Json], look: Look) -> list[tuple[str, list[Json]]]:
    """Return the panels of a figure: title, and series that know their `label` and `style`.

    A panel is an evaluation, a line one of its runs. Evaluations that only try other ropes on one
    run would be panels of one line each; they are lines of one panel.
    """
    panels: dict[str, list[Json]] = {}
    for evaluation, group in grouped(series, "evaluation"):
        name, of = look.label(evaluation), look.variants.get(evaluation)
        if of is None or len(group) > 1:
            lines = [{"label": look.label(s["run"]), "style": look.styles[s["run"]]} for s in group]
            panels[name] = [{**s, **own} for s, own in zip(group, lines, strict=True)]
            continue
        run = group[0]["run"]
        panel = panels.setdefault(f"{look.label(of)} of {look.label(run)}, other ropes", [])
        panel.append({**group[0], "label": name, "style": len(panel)})
    return list(panels.items())


def conventions(series: Sequence[Json], judged: Json, look: Look) -> str:
    """Return how the evaluations of a figure measure: no number without its convention."""
    names = sorted({s["evaluation"] for s in series})
    said = [
        f"{look.label(name)}: {judged['protocols'][name]}"
        for name in names
        if look.variants.get(name) not in names
    ]
    for of in names:
        again = [look.label(name) for name in names if look.variants.get(name) == of]
        if again:
            other = "another rope" if len(again) == 1 else "other ropes, each named by its protocol"
            said.append(f"{listed(again)}: as {look.label(of)}, read with {other}.")
    return " ".join(said)


def line(series: Json, value: str = "number", *, bounded: bool = True, **more: Any) -> Line:
    """Return the line of one run with its intervals, if all of its points have closed ones.

    `value` is the key of a number; its ends are `low` and `high`, or `<value>_low` and so on.
    Without `bounded` there are none.
    """
    points = series["points"]
    low, high = ("low", "high") if value == "number" else (f"{value}_low", f"{value}_high")
    closed = bounded and all(p.get(low) is not None and p.get(high) is not None for p in points)
    return Line(
        label=series["label"],
        x=[p["x"] for p in points],
        y=[p[value] for p in points],
        low=[p[low] for p in points] if closed else (),
        high=[p[high] for p in points] if closed else (),
        style=series["style"],
        **more,
    )


def described(what: str, group: Sequence[Json], at: str, unit: str) -> str:
    """Return every number of a panel, for readers who cannot see it."""
    said = "; ".join(
        f"{s['label']}: "
        + ", ".join(
            f"{figure(p['number'], unit)} ({span(p['low'], p['high'], unit)}) {at} {p['x']:,}"
            for p in s["points"]
        )
        for s in group
    )
    return f"{what}. {said}."
