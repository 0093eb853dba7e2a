"""How an evaluation measures, in plain English: everything its numbers depend on beside the run."""

from collections.abc import Mapping
from typing import Any

from ropewalk.evaluate.presets import PRESETS
from ropewalk.report.wording import count, listed, percent

Json = Mapping[str, Any]

# Fields of `sliding_window` that are a convention, with the value of each that is left out.
_DEFAULTS: Json = {
    "text": "documents",
    "bos": "document",
    "window": "tokens",
    "tail": "full",
    "scored": "new",
    "mean": "tokens",
}


def convention(protocol: Json, *, rope: Json | None = None, numerics: Json | None = None) -> str:
    """Return how an evaluation measures, derived from its protocol.

    `rope` is read in place of the run's own, `numerics` say in which precision.

    Raises:
        ValueError: for a kind of protocol that has no sentence.
    """
    kinds = {
        "same_tokens": _same_tokens,
        "sliding_window": _sliding_window,
        "position_curve": _position_curve,
        "conventions": _conventions,
        "passkey": _passkey,
        "recall": _recall,
        "copy": _copy,
        "tasks": _tasks,
        "summaries": _summaries,
        "harness": _harness,
    }
    kind = protocol["kind"]
    if kind not in kinds:
        raise ValueError(f"protocol.kind: {kind!r} has no convention; known: {', '.join(kinds)}")
    sentences = [kinds[kind](protocol)]
    if rope:
        sentences.append(f"Read with this rope in place of the run's own: {_settings(rope)}.")
    if numerics:
        sentences.append(f"Computed in {numerics['precision']}.")
    sentences += [_ALLOWED[outcome] for outcome in protocol.get("allow", ()) if outcome in _ALLOWED]
    return " ".join(sentences)


_ALLOWED = {
    "dropped": "What cannot be made (a text with nothing to score, a distance no prompt has) is "
    "left out and counted.",
    "non_finite": "Losses that are not finite are left out and counted.",
    "truncated": "Texts that had to be cut are counted.",
}


# Losses.

_MEANS = {
    "tokens": "the mean loss over all scored tokens (token mean)",
    "windows": "the mean of the mean losses of windows, all alike however few tokens they score "
    "(window mean)",
    "labels": "the mean of the mean losses of windows, weighted by the tokens they score, less one "
    "but in the first window of a text (label mean)",
}
_BOS = {
    "none": "no BOS is read",
    "document": "a BOS is read before each text and never scored",
    "window": "a BOS is read before every window, takes one of its tokens and is never scored",
}
_TAILS = {
    "full": "the last window is moved left until it is full",
    "short": "the last window begins a stride after the one before, like others, and is shorter",
    "drop": "a last window that is not full is left out",
    "drop_last": "a last window that is not full is left out, with the one before it",
}
_SCORED = {
    "new": "the first window is scored whole, each later one on the tokens the window before did "
    "not reach",
    "all": "every window is scored whole, so that tokens in several windows count several times",
}


def _same_tokens(protocol: Json) -> str:
    longest = max(protocol["contexts"].values())
    return (
        f"Perplexity is exp of {_MEANS['tokens']}: the last {protocol['scored_tokens']:,} tokens "
        f"of one {longest:,}-token stretch from each of {count(protocol['documents'], 'document')},"
        f" read with the last L tokens of the stretch (L in tokens: {_contexts(protocol)}), so "
        "that every context is scored on the same targets; a BOS token is never scored."
    )


def _sliding_window(protocol: Json) -> str:
    p = {**_DEFAULTS, **protocol}
    of = f"of L tokens (L: {_contexts(p)})"
    if p.get("stride_tokens") is None:
        parts = [f"one window {of}, the beginning of each text (truncated: nothing slides)"]
    else:
        parts = [f"windows {of} that slide by {p['stride_tokens']:,} tokens", _SCORED[p["scored"]]]
    if p["window"] == "inputs":
        parts.append("a window reads L tokens and its last target is one more")
    if p.get("stride_tokens") is not None:
        parts.append(_TAILS[p["tail"]])
    parts += [_texts(p), _BOS[p["bos"]]]
    return f"Perplexity is exp of {_MEANS[p['mean']]}: {'; '.join(parts)}.{_presets(p)}"


def _position_curve(protocol: Json) -> str:
    longest = max(protocol["contexts"].values())
    texts = _texts({"minimum_tokens": longest, "cut_tokens": longest, **protocol})
    bos = protocol.get("bos", _DEFAULTS["bos"])
    return (
        "Loss and next-token accuracy by position, the number of tokens read before the scored "
        f"one, in up to {protocol.get('points', 64)} bins whose widths grow geometrically. "
        f"Perplexity is exp of {_MEANS['tokens']}: the first L tokens of each text (L: "
        f"{_contexts(protocol)}), read from its beginning; {texts}; {_BOS[bos]}."
    )


def _conventions(protocol: Json) -> str:
    names = protocol["presets"]
    return (
        f"One model and one text ({_texts(protocol)}), by windows of "
        f"{protocol['context_tokens']:,} tokens and, where a preset leaves the choice, a stride of "
        f"{protocol['stride_tokens']:,}, in the conventions of {count(len(names), 'preset')}. "
        f"{'; '.join(f'{name}: {_short(name)}' for name in names)}."
    )


def _short(name: str) -> str:
    """Return the convention of a preset in a few words."""
    settings = {**_DEFAULTS, **PRESETS[name].settings}
    means = {
        "tokens": "token mean",
        "windows": "window mean",
        "labels": "mean of windows weighted by their scored tokens less one",
    }
    tails = {
        "full": "last window moved left until full",
        "short": "last window shorter",
        "drop": "last window left out if not full",
        "drop_last": "last window left out, and the one before",
    }
    bos = {
        "none": "no BOS",
        "document": "BOS before each text",
        "window": "BOS before every window",
    }
    parts = [means[settings["mean"]], bos[settings["bos"]], tails[settings["tail"]]]
    if PRESETS[name].stride == "window":
        parts.append("windows do not overlap")
    if PRESETS[name].stride == "none":
        parts[-1] = "one window"
    if settings["text"] == "stream":
        parts.append("one stream over all documents")
    if settings["scored"] == "all":
        parts.append("all tokens of every window")
    if settings["window"] == "inputs":
        parts.append("one target more than a window reads")
    return ", ".join(parts)


def _contexts(protocol: Json) -> str:
    ordered = sorted(protocol["contexts"].items(), key=lambda item: (item[1], item[0]))
    return listed([f"{label} = {tokens:,}" for label, tokens in ordered])


def _texts(protocol: Json) -> str:
    """Return which documents are read, and how much of them."""
    number, least = protocol.get("documents"), protocol.get("minimum_tokens")
    cut = protocol.get("cut_tokens")
    parts = [
        "all documents" if number is None else f"the first {count(number, 'document')}",
        f"of at least {least:,} tokens" if least else "of any length",
    ]
    skipped = protocol.get("skip_tokens")
    if skipped:
        parts.append(f"beyond the first {skipped:,}, which are left out")
    text = " ".join(parts) + (f", cut to {cut:,} tokens" if cut else "")
    if protocol.get("text") == "stream":
        text += ", laid end to end in one stream whose windows cross their borders"
    return text


def _presets(protocol: Json) -> str:
    """Return which presets these conventions are those of; empty if there is none."""
    stride = protocol.get("stride_tokens")
    contexts = protocol["contexts"].values()
    way = "none" if stride is None else "window" if {stride} == set(contexts) else "given"
    alike = [
        name
        for name, preset in PRESETS.items()
        if preset.stride == way
        and all({**_DEFAULTS, **preset.settings}[key] == protocol[key] for key in _DEFAULTS)
    ]
    if way == "given":
        equal = [name for name in alike if PRESETS[name].settings["stride_tokens"] == stride]
        if alike and not equal:
            return f" But for the stride these are the conventions of {listed(alike)}."
        alike = equal
    return f" These are the conventions of {listed(alike)}." if alike else ""


# Retrieval.

_PROMPTS = {
    "shortest": "prompts are as long as the distance needs",
    "full": "prompts always fill the context",
}


def _rule(protocol: Json) -> str:
    """Return where a probe asks, how often, and what its reach is."""
    return (
        f"at {protocol['distances']} distances evenly spaced in a context of "
        f"{protocol['context_tokens']:,} tokens"
        f", {count(protocol['trials'], 'trial')} each; the reach is the largest distance up to "
        "which every tested distance succeeds in at least "
        f"{percent(protocol['threshold'])} of its trials"
    )


def _passkey(protocol: Json) -> str:
    decoded, scorer = protocol.get("decoded_tokens"), protocol.get("scorer", "tokens")
    read = "" if decoded is None else f"a greedy reply of up to {decoded:,} tokens"
    right = {
        "tokens": f"{read} must begin with the tokens of the key"
        if read
        else "each of its tokens must be the model's first choice given those before it, as greedy "
        "decoding would have it",
        "first_integer": f"the first whole number in {read} must be the key",
        "substring": f"{read} must hold the key",
    }[scorer]
    return (
        f"A pass key of {protocol['digits']} digits must be given back, in the wording of Position "
        f"Interpolation (figure 3), {_rule(protocol)}; {right}; {_PROMPTS[protocol['prompt']]}."
    )


def _recall(protocol: Json) -> str:
    pairs, shown = protocol["pairs"], protocol.get("shown", 1)
    what = "A key-value pair" if pairs == 1 else f"One of {pairs} key-value pairs"
    times = "" if shown == 1 else f" and shown {'twice' if shown == 2 else f'{shown} times'}"
    return (
        f"{what} hidden in filler text{times} is asked for {_rule(protocol)}; "
        f"{_PROMPTS[protocol['prompt']]}, chance is 1 in {protocol['keys']}."
    )


def _copy(protocol: Json) -> str:
    return (
        f"{protocol['segment_tokens']} random tokens, filler, and the same tokens again: the drop "
        "is the mean loss of the first showing less that of the second, over all tokens of a "
        f"showing but its first; at up to {protocol['distances']} distances spaced geometrically "
        f"in a context of {protocol['context_tokens']:,} tokens, "
        f"{count(protocol['trials'], 'trial')} each; rows are as long as the distance needs. The "
        "reach is the largest distance such that there and at every shorter one the drop is at "
        f"least {percent(protocol['share'])} of that at the shortest, 0 where that is not above "
        f"{protocol['least_nats']:g} nat."
    )


# What is measured sample by sample.


def _tasks(protocol: Json) -> str:
    lengths = listed([f"{length:,}" for length in protocol["lengths"]])
    return (
        f"Needle and RULER-like tasks ({listed(list(protocol['tasks']))}) at {lengths} tokens, the "
        f"room for the answer included, {count(protocol['samples'], 'sample')} each"
        ", answered by greedy decoding; a score is the share of what the answer should hold, or "
        "1 or 0 where one thing decides. Cells are called task/length."
    )


def _summaries(protocol: Json) -> str:
    number = protocol.get("documents")
    ends = {
        "newlines": "at newlines",
        "full_stops": "after a full stop, question or exclamation mark before white space",
    }
    how = "greedily"
    if protocol["temperature"]:
        how = f"at temperature {protocol['temperature']:g} and top-p {protocol['top_p']:g}"
    return (
        f"Summaries of {'all' if number is None else f'the first {number:,}'} documents of the "
        f"corpus, up to {protocol['new_tokens']:,} tokens decoded {how}, by the F1 of ROUGE-1, "
        f"ROUGE-2, ROUGE-L and ROUGE-Lsum ({'with' if protocol['stemmer'] else 'without'} "
        f"stemming; for Lsum sentences end {ends[protocol['sentences']]})."
    )


def _harness(protocol: Json) -> str:
    limit, longest = protocol.get("limit"), protocol.get("context_tokens")
    return (
        f"Tasks of lm-evaluation-harness with {count(protocol['shots'], 'example')} in the prompt: "
        f"{listed(list(protocol['tasks']))}, "
        f"{'all documents' if limit is None else f'the first {limit:,} documents'} of each; a "
        "score is the mean over documents of the metric the papers report, or else of the task's "
        "first (nats for perplexities)."
        + ("" if longest is None else f" Texts of up to {longest:,} tokens are read.")
    )


def _settings(value: Json) -> str:
    """Return a spec of a kind in words: `linear (factor 4)`."""
    parts = []
    for key, item in value.items():
        if key != "kind":
            name = key.replace("_", " ")
            parts.append(f"{name} {_settings(item) if isinstance(item, Mapping) else _value(item)}")
    return f"{value['kind']} ({', '.join(parts)})" if parts else str(value["kind"])


def _value(item: Any) -> str:
    return (
        f"{item:,}" if isinstance(item, int) else f"{item:g}" if isinstance(item, float) else item
    )
