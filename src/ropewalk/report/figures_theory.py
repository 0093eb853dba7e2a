"""Figures of checks of theory."""

from collections.abc import Callable, Mapping
from typing import Any

from ropewalk.report.drawn import Drawn, Json, drawn
from ropewalk.report.svg import Line, Panel
from ropewalk.report.wording import figure


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


def _packed_frequency(check: Json, series: Json) -> Drawn:
    forms = ("full windows", "uniform lengths")
    names = [name for name in series if name not in forms]
    shares = {
        name: {"x": [x / (curve["x"][-1] + 1) for x in curve["x"]], "y": curve["y"]}
        for name, curve in series.items()
    }
    tokens = {
        name: {"x": [x for x, _ in seen], "y": [y for _, y in seen]}
        for name in names
        if (seen := [(x, y) for x, y in _points(series[name]) if x and y])
    }
    panels = [
        Panel(
            name=f"theory-{check['check']}-share",
            title="By share of the window",
            description=_numbers(check),
            x_label="distance / window",
            y_label="share of tokens that see it",
            lines=tuple(_plain(shares, {name: name for name in (*names, *forms)})),
        ),
        Panel(
            name=f"theory-{check['check']}-tokens",
            title="By distance",
            description=_numbers(check),
            x_label="distance, tokens",
            y_label="share of tokens that see it",
            x_scale="log",
            lines=tuple(_plain(tokens, {name: name for name in names})),
        ),
    ]
    caption = (
        "STRING's figures 1 and 3b: of all tokens in the windows as they were packed, the share "
        "that has another one so far before it within what its attention sees (f(i) / f(0) of "
        "equation 2); times the tokens of a training it is how often that distance was shown. "
        "Beside it the closed forms of full windows and of document lengths spread evenly."
    )
    return drawn(f"figure-{check['check']}", "Position frequency", caption, panels)


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
    "packed_frequency": _packed_frequency,
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
