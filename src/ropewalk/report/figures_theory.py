"""Figures of checks of theory, and of measurements set against it."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ropewalk.report.bounds import EXCESS_NATS
from ropewalk.report.drawn import Drawn, Json, Look, conventions, drawn
from ropewalk.report.svg import Line, Panel
from ropewalk.report.wording import figure, span


def bounds(series: Sequence[Json], judged: Json, look: Look) -> Drawn | None:
    """Return measured bounds on the context against predicted ones, a point per run."""
    if not series:
        return None
    low, high = (end(s["predicted"] for s in series) for end in (min, max))
    panel = Panel(
        name="bounds",
        title="Measured against predicted",
        description="; ".join(
            f"{look.label(s['run'])}: predicted {figure(s['predicted'], 'bound')}, measured "
            f"{'at least ' if s['beyond'] else ''}{figure(s['number'], 'bound')} tokens"
            + ("" if s["high"] is None else f" ({span(s['low'], s['high'], 'bound')})")
            for s in series
        )
        + ".",
        x_label="predicted bound, tokens",
        y_label="measured bound, tokens",
        x_scale="log",
        y_scale="log",
        lines=(
            Line(label="as predicted", x=[low, high], y=[low, high], style=6, draw="line"),
            Line(
                label="half of it, twice of it",
                x=[low, high, math.nan, low, high],
                y=[low / 2, high / 2, math.nan, 2 * low, 2 * high],
                style=20,
                draw="line",
            ),
            *(_bound_point(s, look) for s in series),
        ),
    )
    caption = (
        "How far the loss by position stays within "
        f"{EXCESS_NATS:g} nat of the loss in the last half of the window, against what the "
        "extended law predicts from base, head dimension and lengths, with 95 % intervals over "
        "documents. A hollow triangle at the upper edge is a bound beyond the longest position "
        "that was read. " + conventions(series, judged, look)
    )
    return drawn("bounds", "Measured against predicted bounds", caption, [panel])


def _bound_point(s: Json, look: Look) -> Line:
    closed = not s["beyond"] and s["high"] is not None
    return Line(
        label=look.label(s["run"]),
        x=[] if s["beyond"] else [s["predicted"]],
        y=[] if s["beyond"] else [s["number"]],
        low=[s["low"]] if closed else (),
        high=[s["high"]] if closed else (),
        beyond=[s["predicted"]] if s["beyond"] else (),
        draw="markers",
        style=look.styles[s["run"]],
    )


def theory(check: Json) -> Drawn:
    """Return the figure of a check: its own, or its series as they are."""
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
    return drawn(f"theory-{check['check']}", "Extrapolation and interpolation", caption, panels)


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
    return drawn(f"figure-{check['check']}", "The extrapolation bound", caption, [panel])


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
    return drawn(f"figure-{check['check']}", "The interpolation bound", caption, [panel])


def _rope_bounds(check: Json, series: Json) -> Drawn:
    lengths = {"": "tuned at the window", "_long": "tuned at the longer one"}
    panels = [
        Panel(
            name=f"theory-{check['check']}-{name}",
            title=title,
            description=_numbers(check),
            x_label="base",
            y_label=label,
            x_scale="log",
            y_scale="log",
            lines=tuple(
                _plain(series, {f"{name}{ending}": said for ending, said in lengths.items()})
            ),
        )
        for name, title, label in (
            ("bound", "Bound on the context", "tokens"),
            ("trained_dimensions", "Dimensions that see a period", "dimensions"),
        )
    ]
    caption = (
        "The extended law: the bound on the context by base (up to the critical base it is the "
        "tuning length), and how many dimensions of a head complete a period while tuning. All of "
        "them do for small enough bases, which is why those meet no bound."
    )
    return drawn(f"theory-{check['check']}", "Bases and bounds", caption, panels)


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
    return drawn(f"figure-{check['check']}", title, f"Check {check['check']}.", [panel])


_THEORY: Mapping[str, Callable[[Json, Json], Drawn]] = {
    "pi_random_fit": _random_fit,
    "pi_extrapolation_bound": _extrapolation_bound,
    "pi_interpolation_bound": _interpolation_bound,
    "rope_bounds": _rope_bounds,
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
