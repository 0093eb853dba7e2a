"""`preset: NAME` in the protocol of an evaluation: the fields it stands for, spelled out.

That is done layer by layer, before layers are merged and anything is decoded. So whatever comes
after (scales, overrides, messages, `show`) knows single fields only, each as if it were written
where the preset is named.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ropewalk.base.spec import suggestion
from ropewalk.evaluate.presets import PRESETS
from ropewalk.evaluate.spec import Protocol
from ropewalk.study.tree import Leaf, Origin, Tree, merge, origin_of

KEY = "preset"
KIND = "sliding_window"  # of every preset
Add = Callable[[str], None]  # takes the message of a problem


@dataclasses.dataclass(frozen=True)
class Given(Leaf):
    """A leaf that a preset wrote: it goes when a higher layer names another preset, or none."""

    preset: str


def spelled_out(layer: Tree, add: Add) -> Tree:
    """Return one layer of a study with its presets spelled out; fields beside a preset replace its.

    An unknown preset is told to `add` with file and line.
    """
    for name, protocol in _naming(layer):
        written = {key: value for key, value in protocol.items() if key != KEY}
        chosen = protocol[KEY]
        preset = chosen.value if isinstance(chosen, Leaf) else None
        given = {}
        if isinstance(preset, str) and preset in PRESETS:
            settings = {"kind": KIND, **PRESETS[preset].settings}
            given = {key: _given(value, chosen.origin, preset) for key, value in settings.items()}
        elif not (isinstance(chosen, Leaf) and preset is None):
            add(
                f"{origin_of(chosen, ())}: evaluations.{name}: protocol.preset: "
                f"{'a list or map' if preset is None else repr(preset)} is unknown; "
                f"{suggestion(preset, PRESETS)}"
            )
            given = {"kind": _given(KIND, Origin("", 0, ""), "")}
        layer = _with_protocol(layer, name, {**given, **written})
    return layer


def overlaid(below: Tree, above: Tree, add: Add) -> Tree:
    """Return `below`, spelled out, overlaid by the layer `above`.

    Where `above` names a preset, or null for none, what the one below had given is no more.
    """
    for name, _ in _naming(above):
        protocol = dict(_protocols(below)).get(name)
        if protocol is not None:
            below = _with_protocol(below, name, _without_given(protocol) or {})
    return merge(below, spelled_out(above, add))


def settled(evaluation: Tree, where: str, add: Add) -> Tree:
    """Return a merged evaluation whose stride is its context, where its preset has it so.

    A kind of protocol that has no presets is told to `add` where one has given fields.
    """
    protocol = evaluation.get("protocol")
    presets = sorted(_presets(protocol))
    if not presets:
        return evaluation
    kind = protocol.get("kind")
    if isinstance(kind, Leaf) and kind.value != KIND:
        add(
            f"{kind.origin}: {where}protocol.kind: {kind.value!r} has no presets, and the body or "
            f"a lower scale names {presets[0]!r}: add 'preset: null' beside it"
        )
    stride, contexts = protocol.get("stride_tokens"), protocol.get("contexts")
    window = [name for name in presets if PRESETS[name].stride == "window"]
    if window and stride is None and isinstance(contexts, Mapping):
        if len(contexts) != 1:
            add(
                f"{origin_of(contexts, ())}: {where}protocol.contexts: preset {window[0]!r} has "
                f"the context as its stride: name one context, not {', '.join(contexts)}"
            )
            return evaluation
        (context,) = contexts.values()
        origin = protocol["kind"].origin
        stride = Given(context.value, origin, window[0])
        return {**evaluation, "protocol": {**protocol, "stride_tokens": stride}}
    return evaluation


def unknown(protocol: Protocol) -> Iterator[tuple[int, str]]:
    """Yield place and message of every preset that a `conventions` protocol names wrongly."""
    for place, name in enumerate(getattr(protocol, "presets", ())):
        if name not in PRESETS:
            yield place, f"{name!r} is unknown; {suggestion(name, PRESETS)}"


def _protocols(layer: Tree) -> list[tuple[str, Mapping[str, Tree]]]:
    """Return name and protocol of the evaluations of a layer that have a map there."""
    evaluations = layer.get("evaluations") if isinstance(layer, Mapping) else None
    found = evaluations.items() if isinstance(evaluations, Mapping) else ()
    pairs = [(name, e.get("protocol")) for name, e in found if isinstance(e, Mapping)]
    return [(name, protocol) for name, protocol in pairs if isinstance(protocol, Mapping)]


def _naming(layer: Tree) -> list[tuple[str, Mapping[str, Tree]]]:
    """Return those of `_protocols` that name a preset."""
    return [(name, protocol) for name, protocol in _protocols(layer) if KEY in protocol]


def _with_protocol(layer: Tree, name: str, protocol: Mapping[str, Tree]) -> Tree:
    evaluation = {**layer["evaluations"][name], "protocol": protocol}
    return {**layer, "evaluations": {**layer["evaluations"], name: evaluation}}


def _given(value: Any, origin: Origin, preset: str) -> Tree:
    if isinstance(value, Mapping) and value:
        return {key: _given(item, origin, preset) for key, item in value.items()}
    return Given(value, origin, preset)


def _without_given(tree: Tree) -> Tree | None:
    """Return a tree without what a preset wrote, None if nothing is left."""
    if isinstance(tree, Mapping):
        kept = {key: found for key, v in tree.items() if (found := _without_given(v)) is not None}
        return kept or None
    return None if isinstance(tree, Given) else tree


def _presets(tree: Tree) -> set[str]:
    """Return the presets that wrote something of a tree."""
    if isinstance(tree, Mapping):
        return set().union(*map(_presets, tree.values()))
    return {tree.preset} if isinstance(tree, Given) and tree.preset else set()
