"""An interval against the region a claim names, drawn as a strip: what a verdict looks like."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from ropewalk.report.wording import edge, figure

Json = Mapping[str, Any]
WIDTH, HEIGHT, MIDDLE = 360, 34, 11  # units of the viewBox
MARGIN = 0.18  # of the span, left free at either end


def strips(comparisons: Sequence[Json]) -> list[str]:
    """Return one `<svg>` per comparison of a claim, all on one scale; none without numbers.

    The shaded part is where the claim needs the number, the line is the 95 % interval and the dot
    the estimate.
    """
    values = [
        c[key]
        for c in comparisons
        for key in ("number", "low", "high", "region_low", "region_high")
        if c[key] is not None
    ]
    if not values:
        return []
    low, high = min(values), max(values)
    room = MARGIN * (high - low) or abs(high) * MARGIN or 1.0
    return [_strip(c, low - room, high + room) for c in comparisons]


def _strip(c: Json, start: float, end: float) -> str:
    def x(value: float | None, otherwise: float) -> float:
        at = otherwise if value is None else value
        return round(WIDTH * (at - start) / (end - start), 2)

    left, right = x(c["region_low"], start), x(c["region_high"], end)
    low, high = x(c["low"], start), x(c["high"], end)
    parts = [
        f'<rect class="needed" x="{left}" y="1" width="{round(right - left, 2)}" height="20"/>',
        f'<line class="ground" x1="0" x2="{WIDTH}" y1="{MIDDLE}" y2="{MIDDLE}"/>',
    ]
    for key, at in (("region_low", left), ("region_high", right)):
        if c[key] is not None:
            parts.append(f'<line class="edge" x1="{at}" x2="{at}" y1="1" y2="21"/>')
            parts.append(
                f'<text x="{min(max(at, 12), WIDTH - 12)}" y="32" text-anchor="middle">'
                f"{edge(c[key])}</text>"
            )
    parts.append(f'<line class="interval" x1="{low}" x2="{high}" y1="{MIDDLE}" y2="{MIDDLE}"/>')
    if c["number"] is not None:
        parts.append(f'<circle cx="{x(c["number"], start)}" cy="{MIDDLE}" r="4"/>')
    number = "undefined" if c["number"] is None else figure(c["number"], c["unit"])
    label = html.escape(f"Estimate {number}; the claim needs {c['needs']}: {c['standing']}.")
    return (
        f'<svg class="strip {c["standing"]}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{label}">{"".join(parts)}</svg>'
    )
