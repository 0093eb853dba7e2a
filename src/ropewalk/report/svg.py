"""One panel of a figure as inline SVG: same data, same bytes.

Colours are those of Okabe and Ito (2008), told apart in every common form of colour blindness; each
line also has a marker of its own, so that nothing rests on colour alone.
"""

import dataclasses
import html
import io
import math
import re
from collections.abc import Sequence
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from ropewalk.report.wording import MINUS

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*Xph<>"
DASHES = ("-", "--", ":", "-.")
INK, FAINT = "#22262b", "#c9ced6"
WIDTH, HEIGHT, LEGEND_ROW = 4.6, 2.9, 0.19  # inches of a panel and of one row of its legend
WIDE_LABEL = 22  # characters beyond which the legend has one column

Scale = Literal["linear", "log", "symlog"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """One series. `style` picks colour, marker and dashes, so a run looks the same everywhere."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()  # interval per point, where there is one
    high: Sequence[float] = ()
    interval: Literal["bars", "band", "sideways"] = "bars"  # sideways: of x, not of y
    style: int = 0
    draw: Literal["points", "line", "dots", "markers"] = "points"
    # line with markers, plain line, small dots only, markers only
    beyond: Sequence[float] = ()  # x of values known only to lie above the axis


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panel:
    """One pair of axes."""

    name: str  # unique on its page
    title: str
    description: str  # what a reader who cannot see it must know
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    x_scale: Scale = "linear"
    y_scale: Scale = "linear"
    x_ticks: tuple[tuple[float, str], ...] = ()  # where, and what is written there
    y_ticks: tuple[tuple[float, str], ...] = ()  # likewise; the first is the uppermost
    level: float | None = None  # a horizontal line of reference
    marks: tuple[tuple[float, str], ...] = ()  # vertical ones, with what is written at the top


def render(panel: Panel) -> str:
    """Return the panel as an `<svg>` element with title and description, ids prefixed by name."""
    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": panel.name,
        "font.family": "DejaVu Sans",
        "font.size": 8.5,
        "axes.edgecolor": INK,
        "axes.linewidth": 0.7,
        "axes.labelcolor": INK,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.unicode_minus": True,
        "path.simplify": False,
        "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    }
    with mpl.rc_context(settings):
        rows = _legend_rows(panel)
        figure = Figure(figsize=(WIDTH, HEIGHT + LEGEND_ROW * rows), layout="constrained")
        axes = figure.add_subplot()
        _draw(axes, panel)
        handles = [_handle(line) for line in panel.lines]
        figure.legend(
            handles=handles,
            loc="outside lower left",
            ncols=_columns(panel),
            frameon=False,
            fontsize=8,
            handlelength=2.6,
            columnspacing=1.4,
        )
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    return _inline(stream.getvalue(), panel)


def _columns(panel: Panel) -> int:
    return 1 if any(len(line.label) > WIDE_LABEL for line in panel.lines) else 2


def _legend_rows(panel: Panel) -> int:
    return -(-len(panel.lines) // _columns(panel))


def _look(line: Line) -> dict[str, Any]:
    colour = COLOURS[line.style % len(COLOURS)]
    marker = MARKERS[line.style % len(MARKERS)] if line.draw != "line" else None
    dash = (
        DASHES[line.style // len(COLOURS) % len(DASHES)]
        if line.draw in ("points", "line")
        else "none"
    )
    size = 2.0 if line.draw == "dots" else 4.5
    return {
        "color": colour,
        "marker": "." if line.draw == "dots" else marker,
        "linestyle": dash,
        "markersize": size,
        "linewidth": 1.4,
        "markeredgewidth": 0.6,
    }


def _handle(line: Line) -> Line2D:
    return Line2D([], [], label=line.label, **_look(line))


def _draw(axes: Axes, panel: Panel) -> None:
    if panel.x_scale != "linear":
        axes.set_xscale(panel.x_scale)
    if panel.y_scale != "linear":
        axes.set_yscale(panel.y_scale)
    for line in panel.lines:
        look = _look(line)
        axes.plot(line.x, line.y, **look, zorder=3)
        if line.low:
            _interval(axes, line, look["color"])
        if line.beyond:
            axes.plot(
                line.beyond,
                [0.975] * len(line.beyond),
                transform=axes.get_xaxis_transform(),
                marker="^",
                linestyle="none",
                markersize=6,
                markerfacecolor="none",
                markeredgecolor=look["color"],
                clip_on=False,
            )
    if panel.level is not None:
        axes.axhline(panel.level, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    for x, text in panel.marks:
        axes.axvline(x, color=INK, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
        top = axes.get_xaxis_transform()
        axes.text(x, 1.01, text, transform=top, ha="center", va="bottom", fontsize=7)
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x" if panel.y_ticks else "y", color=FAINT, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.margins(x=0.04, y=0.08)
    if any(line.beyond for line in panel.lines):
        low, high = axes.get_ylim()
        axes.set_ylim(low, high * (high / low) ** 0.12 if panel.y_scale == "log" else high * 1.1)
    if panel.x_ticks:
        axes.set_xticks([x for x, _ in panel.x_ticks], [text for _, text in panel.x_ticks])
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        _plain_ticks(axes.xaxis, panel.x_scale, axes.get_xlim())
    if panel.y_ticks:
        axes.set_yticks([y for y, _ in panel.y_ticks], [text for _, text in panel.y_ticks])
        axes.set_ylim(panel.y_ticks[-1][0] - 0.6, panel.y_ticks[0][0] + 0.6)
    else:
        _plain_ticks(axes.yaxis, panel.y_scale, axes.get_ylim())


def _interval(axes: Axes, line: Line, colour: str) -> None:
    if line.interval == "band":
        axes.fill_between(
            line.x, line.low, line.high, color=colour, alpha=0.15, linewidth=0, zorder=2
        )
        return
    draw, at = (axes.hlines, line.y) if line.interval == "sideways" else (axes.vlines, line.x)
    draw(at, line.low, line.high, color=colour, linewidth=1.1, zorder=2, alpha=0.55)


def _plain_ticks(axis: Axis, scale: Scale, limits: tuple[float, float]) -> None:
    """Label few ticks with plain numbers, also on a logarithmic axis of less than a decade."""
    low, high = limits
    if scale == "log":
        few = MaxNLocator(5) if high < 4 * low else LogLocator(subs=(1.0, 2.0, 5.0), numticks=8)
        wide = high > 200 * low
        axis.set_major_locator(LogLocator(numticks=6) if wide else few)
    elif scale == "symlog":
        axis.set_major_locator(FixedLocator(_symmetric(low, high)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    axis.set_minor_locator(NullLocator())


def _symmetric(low: float, high: float) -> list[float]:
    """Return about seven powers of ten, negative and positive, and zero, within the limits."""
    decades = max(1, math.floor(math.log10(max(abs(low), abs(high), 10))))
    powers = range(decades, -1, -max(1, math.ceil(decades / 3)))
    both = [sign * 10.0**p for p in powers for sign in (-1, 1)]
    return sorted(value for value in (*both, 0.0) if low <= value <= high)


def tick(value: float) -> str:
    """Return the label of a tick: `1,000`, `0.5`, `10⁶`."""
    if abs(value) >= 1e5 and math.log10(abs(value)).is_integer():
        power = str(round(math.log10(abs(value)))).translate(_SUPERSCRIPT)
        return f"{MINUS if value < 0 else ''}10{power}"
    return f"{value:,.6g}".replace("-", MINUS)


_SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def _inline(text: str, panel: Panel) -> str:
    """Return the `<svg>` element alone: without page-wide styles, with ids of its own."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<style.*?</style>\s*", "", text, flags=re.DOTALL)
    head, _, body = text.partition(">")
    box = re.search(r'viewBox="[^"]*"', head)
    if box is None:
        raise ValueError(f"panel {panel.name!r}: matplotlib wrote no viewBox")
    body = re.sub(r'\bid="', f'id="{panel.name}-', body)
    body = re.sub(r"url\(#", f"url(#{panel.name}-", body)
    body = re.sub(r'xlink:href="#', f'href="#{panel.name}-', body)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {box[0]} role="img" '
        f'aria-labelledby="{panel.name}-title {panel.name}-desc">'
        f'<title id="{panel.name}-title">{html.escape(panel.title)}</title>'
        f'<desc id="{panel.name}-desc">{html.escape(panel.description)}</desc>{body}'
    )
