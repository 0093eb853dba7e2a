"""Numbers and conventions in plain English. Every number on a page is worded here."""

import math
from collections.abc import Mapping
from typing import Any

Unit = str  # one of UNITS
UNITS = {
    "nll": "nat per token",
    "perplexity": "",
    "accuracy": "",
    "reach": "tokens",
    "reach_share": "",
    "ratio": "",
    "number": "",
}
MINUS = "\N{MINUS SIGN}"


def figure(value: float, unit: Unit) -> str:
    """Return a number with the digits that suit its unit, without the unit's name."""
    if not math.isfinite(value):
        return str(value)
    if unit == "reach" or (value == int(value) and 10 <= abs(value) < 1e15):
        text = f"{value:,.0f}"
    elif unit in ("nll", "accuracy", "reach_share") or (unit == "ratio" and abs(value) < 10):
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
    """Return an interval in words, e.g. `24.1 to 25.9`."""
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


def convention(protocol: Mapping[str, Any]) -> str:
    """Return in one sentence how an evaluation measures, derived from its protocol."""
    kinds = {
        "same_tokens": _same_tokens,
        "sliding_window": _sliding_window,
        "passkey": _passkey,
        "recall": _recall,
    }
    kind = protocol["kind"]
    if kind not in kinds:
        raise ValueError(f"protocol.kind: {kind!r} has no convention; known: {', '.join(kinds)}")
    return kinds[kind](protocol)


def _contexts(protocol: Mapping[str, Any]) -> str:
    ordered = sorted(protocol["contexts"].items(), key=lambda item: (item[1], item[0]))
    return listed([f"{label} = {tokens:,}" for label, tokens in ordered])


def _same_tokens(protocol: Mapping[str, Any]) -> str:
    longest = max(protocol["contexts"].values())
    return (
        "Perplexity is exp of the mean loss over all scored tokens (token mean): the last "
        f"{protocol['scored_tokens']:,} tokens of one {longest:,}-token stretch from each of "
        f"{count(protocol['documents'], 'document')}, read with the last L tokens of the stretch "
        f"(L in tokens: {_contexts(protocol)}), so that every context is scored on the same "
        "targets; a BOS token is never scored."
    )


def _sliding_window(protocol: Mapping[str, Any]) -> str:
    length = f"of at least {protocol['minimum_tokens']:,} tokens"
    if not protocol.get("minimum_tokens"):
        length = "of any length"
    cut = protocol.get("cut_tokens")
    return (
        "Perplexity is exp of the mean loss over all scored tokens (token mean), with windows of L "
        f"tokens (L: {_contexts(protocol)}) that slide by {protocol['stride_tokens']:,} tokens: "
        "the first window is scored whole, each later one on the tokens the window before did not "
        f"reach; {count(protocol['documents'], 'document')} {length}"
        + (f", cut to {cut:,} tokens" if cut else "")
        + "; a BOS token is never scored."
    )


def _rule(protocol: Mapping[str, Any]) -> str:
    return (
        f"at {protocol['distances']} distances evenly spaced in a context of "
        f"{protocol['context_tokens']:,} tokens (those that no prompt can have are left out), "
        f"{count(protocol['trials'], 'trial')} each; the reach is the largest distance up to which "
        f"every tested distance succeeds in at least {percent(protocol['threshold'])} of its trials"
    )


_PROMPTS = {
    "shortest": "prompts are as long as the distance needs",
    "full": "prompts always fill the context",
}


def _passkey(protocol: Mapping[str, Any]) -> str:
    return (
        f"A pass key of {protocol['digits']} digits must be given back token by token "
        f"{_rule(protocol)}; {_PROMPTS[protocol['prompt']]}."
    )


def _recall(protocol: Mapping[str, Any]) -> str:
    pairs = protocol["pairs"]
    shown = "A key-value pair" if pairs == 1 else f"One of {pairs} key-value pairs"
    return (
        f"{shown} hidden in filler text is asked for "
        f"{_rule(protocol)}; {_PROMPTS[protocol['prompt']]}, chance is 1 in {protocol['keys']}."
    )
