"""From the flags of `ropewalk evaluate` to its protocol and rope: pure functions, without torch."""

import argparse
import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ropewalk.base.canonical import leaves, plain
from ropewalk.base.files import read_json
from ropewalk.base.spec import SpecError, decode, suggestion
from ropewalk.base.stage import StageError
from ropewalk.commands import train_spec
from ropewalk.commands.evaluate_flags import KINDS
from ropewalk.commands.flags import given, refuse, spelled
from ropewalk.evaluate import presets
from ropewalk.evaluate.spec import (
    CopyProbe,
    Losses,
    Protocol,
    RecallProbe,
    Summaries,
    Tasks,
)
from ropewalk.model.spec import Architecture, DynamicNtkRope, LogScaledRope, Rope, StringRope

_WINDOW = ("contexts", "context_tokens", "lengths")  # fields that are the window unless given
_TEXT = {"documents": "documents", "minimum_tokens": "minimum_tokens", "cut_tokens": "cut_tokens"}
_PROBE = {"context_tokens": "context", "distances": "distances", "trials": "trials"}
_PRESET = {"contexts": "context", "stride_tokens": "stride", **_TEXT}
_FIELDS: Mapping[str, Mapping[str, str]] = {  # kind -> field -> the flag that sets it
    "same_tokens": {
        "contexts": "context",
        "scored_tokens": "scored_tokens",
        "documents": "documents",
    },
    "sliding_window": _PRESET,
    "position_curve": {"contexts": "context", "documents": "documents"},
    "conventions": {"context_tokens": "context", "stride_tokens": "stride", **_TEXT},
    "passkey": _PROBE,
    "recall": _PROBE,
    "copy": _PROBE,
    "tasks": {"tasks": "tasks", "lengths": "lengths", "samples": "trials"},
    "summaries": {"documents": "documents"},
    "harness": {
        "tasks": "tasks",
        "shots": "shots",
        "limit": "documents",
        "context_tokens": "context",
        "folder": "task_folder",
    },
}
_FLAGS = tuple(dict.fromkeys(flag for fields in _FIELDS.values() for flag in fields.values()))
_STRING_FLAGS = ("shift", "string_window")
_TRAINED_FLAGS = ("factor", "base", "beta_fast", "beta_slow", "log_window")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Named:
    """A protocol and what it was called."""

    name: str  # of the preset or kind, "" for one that was given whole
    protocol: Protocol


def protocol(options: argparse.Namespace, window_tokens: int | None) -> Named:
    """Return the protocol of the flags; contexts are `window_tokens` unless given.

    Raises:
        SpecError: naming the flag that is missing, unknown, or not for this protocol.
    """
    name: str = options.protocol
    known = [*presets.PRESETS, *_FIELDS]
    if name.lstrip().startswith("{") or (name not in known and Path(name).is_file()):
        refuse(options, (*_FLAGS, "allow"), "and a whole protocol as JSON: write it in the JSON")
        return Named(name="", protocol=_decoded(_json(name)))
    if name not in known:
        raise SpecError(
            f"--protocol {name!r} is unknown; {suggestion(name, known)} "
            f"Presets: {', '.join(presets.PRESETS)}; kinds: {', '.join(_FIELDS)}; or a whole "
            "protocol as JSON, text or file"
        )
    find = _preset if name in presets.PRESETS else _of_kind
    try:
        return Named(name=name, protocol=find(name, options, window_tokens))
    except SpecError as error:
        raise SpecError(by_flags(str(error), named=True)) from None


def _of_kind(name: str, options: argparse.Namespace, window_tokens: int | None) -> Protocol:
    settings = _settings(name, _FIELDS[name], options, window_tokens)
    kind = KINDS[name]
    needed = {f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING}
    for field in sorted(needed - set(settings)):
        raise SpecError(f"--protocol {name} needs {spelled(_FIELDS[name][field])}")
    found: Protocol = given(kind, settings, f"--protocol {name}")
    return found


def _preset(name: str, options: argparse.Namespace, window_tokens: int | None) -> Protocol:
    """Return a preset with the contexts and the documents of the flags, not those of its paper."""
    settings = _settings(name, _PRESET, options, window_tokens)
    try:
        found = presets.resolve(
            name, contexts=settings["contexts"], stride_tokens=settings.get("stride_tokens")
        )
        return dataclasses.replace(
            found,
            documents=settings.get("documents"),
            minimum_tokens=settings.get("minimum_tokens", 0),
            cut_tokens=settings.get("cut_tokens"),
            allow=settings.get("allow", ()),
        )
    except (StageError, ValueError) as error:
        wrong = str(error).removeprefix(f"preset {name!r}: ")
        own = presets.PRESETS[name].settings.get("stride_tokens")
        hint = (
            f" (the preset's own --stride is {own}: give --stride, or a longer --context)"
            if options.stride is None and own is not None and "stride_tokens" in wrong
            else ""
        )
        raise SpecError(f"--protocol {name}: {wrong}{hint}") from None


def _settings(
    name: str, fields: Mapping[str, str], options: argparse.Namespace, window_tokens: int | None
) -> dict[str, Any]:
    """Return the fields of a protocol that flags set; contexts are always among them."""
    takes = set(fields.values())
    refuse(options, (f for f in _FLAGS if f not in takes), f"is not for --protocol {name}")
    settings: dict[str, Any] = {"allow": options.allow}
    for field, flag in fields.items():
        value = getattr(options, flag)
        if value is None and field in _WINDOW:
            if window_tokens is None:
                raise SpecError(
                    f"{spelled(flag)} is missing, and config.json of --model {options.model} "
                    "states no window (max_position_embeddings) to take in its place"
                )
            value = [window_tokens]
        if field == "contexts":
            value = {str(tokens): tokens for tokens in sorted(set(value))}
        elif field == "context_tokens":
            if len(value) != 1:
                raise SpecError(f"--context {value}: --protocol {name} takes one")
            value = value[0]
        settings[field] = str(value) if isinstance(value, Path) else value
    return {field: value for field, value in settings.items() if value is not None}


def _decoded(data: Any) -> Protocol:
    kind = str(data.get("kind")) if isinstance(data, dict) else ""
    if kind not in KINDS:
        raise SpecError(f"--protocol: kind {kind!r} is unknown; {suggestion(kind, KINDS)}")
    settings = {key: value for key, value in data.items() if key != "name"}  # of a result's own
    found: Protocol = decode(KINDS[kind], settings, ("--protocol",))
    return found


def _json(text: str) -> Any:
    try:
        return json.loads(text) if text.lstrip().startswith("{") else read_json(Path(text))
    except ValueError as error:
        raise SpecError(f"--protocol: not valid JSON: {error}") from None


def reads_text(protocol: Protocol) -> bool:
    """Return whether a protocol reads the text of --data; the others bring their own."""
    if isinstance(protocol, Tasks):
        from ropewalk.evaluate.tasks import TASKS

        return any(name in TASKS and TASKS[name].essay for name in protocol.tasks)
    return isinstance(protocol, Losses | RecallProbe | CopyProbe | Summaries)


def rope(
    options: argparse.Namespace, architecture: Architecture | None, theirs: Rope | None
) -> Rope | None:
    """Return the rope of the flags; None: the checkpoint is read under its own.

    `architecture` and `theirs`, its rope, are None for a checkpoint that ropewalk does not build.

    Raises:
        SpecError: for a missing parameter, one that the rope does not take, or a checkpoint that
            ropewalk does not build.
    """
    if options.rope is None:
        refuse(
            options,
            (*_TRAINED_FLAGS, *_STRING_FLAGS),
            "needs --rope: say which method it belongs to",
        )
        return None
    if architecture is None or theirs is None:
        raise SpecError(
            f"--rope {options.rope}: --model {options.model} is read by transformers' own class, "
            "under its own rope only; ropes are for the Llama and GPT-NeoX models that ropewalk "
            "builds. Leave --rope out"
        )
    flag = f"--rope {options.rope}"
    if options.rope == "string":
        refuse(options, _TRAINED_FLAGS, f"is not for {flag}")
        for name in _STRING_FLAGS:
            if getattr(options, name) is None:
                raise SpecError(f"{flag} needs {spelled(name)}")
        if isinstance(theirs, LogScaledRope | StringRope):
            theirs = theirs.frequencies
        return given(
            StringRope,
            {
                "shift_tokens": options.shift,
                "window_tokens": options.string_window,
                "frequencies": plain(theirs),
            },
            flag,
        )
    refuse(options, _STRING_FLAGS, f"is not for {flag}")
    if options.rope == "dynamic_ntk":
        refuse(options, _TRAINED_FLAGS[1:], f"is not for {flag}")
        return given(DynamicNtkRope, {"factor": options.factor}, flag)
    return train_spec.rope(options, architecture, theirs)


_SPOKEN = {  # setting of a protocol, as messages and keys name it -> the flag that sets it
    "protocol.contexts": "--context",
    "protocol.context_tokens": "--context",
    "protocol.scored_tokens": "--scored-tokens",
    "protocol.documents": "--documents",
    "protocol.limit": "--documents",
    "protocol.minimum_tokens": "--minimum-tokens",
    "protocol.cut_tokens": "--cut-tokens",
    "protocol.stride_tokens": "--stride",
    "protocol.distances": "--distances",
    "protocol.trials": "--trials",
    "protocol.samples": "--trials",
    "protocol.tasks": "--tasks",
    "protocol.lengths": "--lengths",
    "protocol.shots": "--shots",
    "protocol.folder": "--task-folder",
    "protocol.allow": "--allow",
    "stride_tokens": "--stride",
    "scored_tokens": "--scored-tokens",
    "minimum_tokens": "--minimum-tokens",
    "cut_tokens": "--cut-tokens",
    "context_tokens": "--context",
    "the shortest context": "the shortest --context",
}
_ALWAYS = {
    "corpus.damaged_limit": "--damaged-limit",
    "source.text_field": "--text-field",
    "prompt.target_field": "--target-field",
    "set tokenizer.bos to true or false": "give --bos or --no-bos",
    "set protocol.bos to 'none', or name its BOS in tokenizer.bos": (
        'choose a protocol that reads none (--protocol pi_sliding; in JSON "bos": "none"), or '
        "give as --tokenizer a folder whose tokenizer_config.json has a bos_token"
    ),
    "tokenizer.scheme": "--scheme",
    "numerics.precision": "--precision",
    "numerics.attention": "--attention",
}


def by_flags(message: str, *, named: bool) -> str:
    """Return a message about settings of a spec as one about flags.

    `named`: the protocol is a preset or a kind, whose settings are flags. What stands in a path, in
    the name of a file or in quotes is none of them.
    """
    for setting, flag in {**_ALWAYS, **(_SPOKEN if named else {})}.items():
        pattern = rf"(?<![\w./'\"-]){re.escape(setting)}(?![\w/-]|\.\w)"
        message = re.sub(pattern, flag, message)
    return message


def differences(
    there: Mapping[str, Any], here: Mapping[str, Any], *, named: bool
) -> list[tuple[str, Any, Any]]:
    """Return how two keys differ: (flag or setting, its value there, here), None where not set.

    `named` is as for `by_flags`.
    """
    then, now = (dict(leaves(_windows_as_list(key))) for key in (there, here))
    return [
        (_SPOKEN.get(name, name) if named else name, then.get(name), now.get(name))
        for name in sorted({*then, *now})
        if then.get(name) != now.get(name)
    ]


def _windows_as_list(key: Mapping[str, Any]) -> dict[str, Any]:
    """Return a key with the contexts of its protocol as --context takes them."""
    protocol = dict(key.get("protocol", {}))
    contexts = protocol.get("contexts")
    if isinstance(contexts, Mapping) and all(name == str(n) for name, n in contexts.items()):
        protocol["contexts"] = sorted(contexts.values())
    return {**key, "protocol": protocol}
