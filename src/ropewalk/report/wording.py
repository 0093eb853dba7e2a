"""Numbers in plain English. Every number on a page is worded here."""

import math

Unit = str  # one of UNITS
UNITS = {
    "nll": "nat per token",
    "perplexity": "",
    "word_perplexity": "per word",
    "byte_perplexity": "per byte",
    "accuracy": "",
    "end_nll": "nat per token",
    "bound": "tokens",
    "reach": "tokens",
    "reach_share": "",
    "score": "",
    "seconds_per_step": "s",
    "tokens_per_second": "tokens per second",
    "seconds_per_million_tokens": "s",
    "peak_gigabytes": "GB",
    "tokens_that_fit": "tokens",
    "run_seconds": "s",
    "loss_rise": "nat per token",
    "trained_tokens": "tokens",
    "frequency": "pairs",
    "flops": "FLOP",
    "ratio": "",
    "number": "",
}
MINUS = "\N{MINUS SIGN}"


def figure(value: float, unit: Unit) -> str:
    """Return a number with the digits that suit its unit, without the unit's name."""
    if not math.isfinite(value):
        return str(value)
    if unit == "flops":
        text = f"{value:.2e}"
    elif unit in ("reach", "bound", "tokens_that_fit", "trained_tokens") or (
        value == int(value) and 10 <= abs(value) < 1e15
    ):
        text = f"{value:,.0f}"
    elif unit in ("nll", "end_nll", "loss_rise", "accuracy", "reach_share", "score") or (
        unit == "ratio" and abs(value) < 10
    ):
        text = f"{value:.3f}"
    elif abs(value) >= 1e6 or 0 < abs(value) < 1e-3:
        text = f"{value:.2e}"
    elif abs(value) >= 1000:
        text = f"{value:,.0f}"
    elif abs(value) >= 100:
        text = f"{value:.1f}"
    elif abs(value) >= 1:
        text = f"{value:.2f}"
    else:
        text = f"{value:.3f}"
    return text.replace("-", MINUS)


def with_unit(value: float, unit: Unit) -> str:
    """Return a number with its unit, e.g. `0.123 nat per token`."""
    return f"{figure(value, unit)} {UNITS[unit]}".rstrip()


def percent(share: float) -> str:
    """Return a share in per cent, e.g. `95 %`."""
    return f"{100 * share:g} %"


def span(low: float, high: float, unit: Unit) -> str:
    """Return an interval in words, e.g. `24.1 to 25.9`, or `24.1 and more` without an end."""
    if high == math.inf and math.isfinite(low):
        return f"{figure(low, unit)} and more"
    return f"{figure(low, unit)} to {figure(high, unit)}"


def edge(value: float) -> str:
    """Return the edge of a region as the rule gives it: `1.0125`, `0`."""
    return f"{value:.10g}".replace("-", MINUS)


def bounds(low: float | None, high: float | None, *, strict: bool = False) -> str:
    """Return what a rule asks for: `at least 2`, `at most 1.1`, `between 3 and 4`.

    With `strict` the edge itself is outside: `more than 0`.

    Raises:
        ValueError: without any bound.
    """
    if low is not None and high is not None:
        return f"between {edge(low)} and {edge(high)}"
    if low is not None:
        return f"{'more than' if strict else 'at least'} {edge(low)}"
    if high is not None:
        return f"{'less than' if strict else 'at most'} {edge(high)}"
    raise ValueError("a rule needs at least one bound")


def count(number: int, noun: str) -> str:
    """Return `1 claim`, `2 claims`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def listed(items: list[str]) -> str:
    """Return `a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)
