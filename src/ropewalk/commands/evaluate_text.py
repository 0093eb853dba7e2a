"""What `ropewalk evaluate` is about to do and what came out, in lines."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ropewalk.base.canonical import leaves, plain
from ropewalk.base.manifest import Manifest
from ropewalk.commands.evaluate_inputs import Model, Text
from ropewalk.commands.evaluate_spec import Named
from ropewalk.evaluate.spec import EvaluateJob
from ropewalk.model.flops import parameters


def lines(
    *,
    spec: EvaluateJob,
    named: Named,
    model: Model,
    text: Text,
    tokens: Manifest,
    out: Path,
    begun: bool,
    remarks: Iterable[str],
) -> str:
    """Return what will be done."""
    size = f"{parameters(model.architecture):,} parameters, " if model.architecture else ""
    window = "none stated" if model.window_tokens is None else f"{model.window_tokens:,} tokens"
    rope = spec.rope or model.rope
    settings = plain(spec.protocol)
    kind = settings.pop("kind")
    if not settings["allow"]:
        del settings["allow"]
    if "contexts" in settings:
        settings["contexts"] = list(settings["contexts"].values())
    told = [
        ("model", f"{model.name} ({model.family}, {size}window of its config.json {window})"),
        ("rope", "its own, in transformers' class" if rope is None else _settings(plain(rope))),
        ("protocol", f"{named.name or 'as given'}: {kind}: {_pairs(settings)}"),
    ]
    if text.files or text.tokens:
        skipped = tokens.result.get("skipped", {})
        left = "".join(f", {count} records skipped: {cause}" for cause, count in skipped.items())
        some = ", ".join(file.name for file in text.files[:3])
        more = f" and {len(text.files) - 3} more" if len(text.files) > 3 else ""
        where = f"{some}{more}" if text.files else str(tokens.folder)
        told.append(
            (
                "data",
                f"{where}: {tokens.result['documents']:,} documents, "
                f"{tokens.result['tokens']:,} tokens{left}",
            )
        )
    told += [
        ("numerics", _pairs({**plain(spec.numerics), **model.numerics})),
        ("device", f"{spec.device}, up to {spec.sequences_per_forward} sequences per forward"),
        ("result", f"{out}{' (begun, goes on)' if begun else ''}"),
        *(("remark", remark) for remark in remarks),
    ]
    return "\n".join(["evaluate:", *(f"  {name:<12}{value}" for name, value in told)])


def headline(result: Mapping[str, Any]) -> str:
    """Return the numbers of a result that are looked for first."""
    found = []
    for key, what in (("contexts", "context {}"), ("conventions", "{}")):
        for label, one in sorted(
            result.get(key, {}).items(), key=lambda item: item[1]["context_tokens"]
        ):
            found.append(
                f"{what.format(label)}: token perplexity {one['token_perplexity']:.6g}"
                f"{_interval(one['interval'])}, {one['tokens_scored']:,} tokens of "
                f"{one['documents']:,} documents"
            )
    if "reach" in result:
        reach = result.get("reach_interval")
        found.append(
            f"reach {result['reach']:,} of {result['context_tokens']:,} tokens{_interval(reach)}"
        )
    for name, cell in result.get("cells", {}).items():
        found.append(f"{name}: {cell['mean']:.4g}{_interval(cell['interval'])}")
    return "\n".join(f"evaluate: {line}" for line in found)


def _interval(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    ends = (found[end] for end in ("low", "high"))
    return f" [{', '.join('too large' if end is None else f'{end:.6g}' for end in ends)}]"


def _settings(settings: dict[str, Any]) -> str:
    kind = settings.pop("kind")
    return f"{kind}: {_pairs(settings)}" if settings else str(kind)


def _pairs(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in leaves(settings))
