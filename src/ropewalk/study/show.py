"""Resolved settings with their provenance class: what the authors said, and what is ours."""

from collections.abc import Iterator, Mapping
from typing import Any

from ropewalk.base.canonical import leaves, plain
from ropewalk.base.spec import SpecError, suggestion
from ropewalk.study.plan import Plan
from ropewalk.study.provenance import CLASSES, class_of, inherited_layers
from ropewalk.study.schema import Study


def resolved(plan: Plan, study: str) -> dict[str, Any]:
    """Return the settings of a study: `runs.<run>....`, `evaluations.<name>....`, provenance.

    Raises:
        SpecError: if there is no such study.
    """
    if study not in plan.studies:
        raise SpecError(f"study {study!r} is unknown; {suggestion(study, plan.studies)}")
    found = plan.studies[study]
    runs = {name: plain(plan.run(f"{study}/{name}")) for name in found.runs}
    for name, settings in found.runs.items():
        if settings.start is not None:
            runs[name]["start"] = settings.start
        if settings.model is not None:
            runs[name]["model"] = settings.model
    body = {
        "runs": runs,
        "evaluations": {name: plain(e) for name, e in found.evaluations.items()},
    }
    return {
        "study": study,
        "scale": plan.config.scale,
        "title": found.file.title,
        "paper": dict(found.file.paper),
        **body,
        "data": _data(plan, study),
        "unstated": list(found.file.unstated),
        "inconsistencies": list(found.file.inconsistencies),
        "deviations": list(found.file.deviations),
        "provenance": dict(provenance(plan, found, body)),
    }


def provenance(plan: Plan, study: Study, body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield `(key path, class)` for every leaf of the resolved runs and evaluations."""
    layers = dict(study.layers)
    for name in study.runs:
        layers |= inherited_layers(plan.studies, study.name, name)
    for path, _ in leaves(body):
        yield path, class_of(study, path, layers)


def _data(plan: Plan, study: str) -> dict[str, Any]:
    """Return the definitions the study's own nodes read: windows, corpora, sources, tokenizers."""
    used: dict[str, Any] = {}
    manifests = plan.manifests(study) if study in plan.study_names else sorted(plan.nodes)
    for manifest in manifests:
        node = plan.nodes[manifest]
        if node.stage in ("inventory", "tokenizer", "tokenize", "pack"):
            name = "/".join(v for k, v in node.wildcards.items())
            used.setdefault(node.stage, {})[name] = plain(node.spec)
    return used


def lines(shown: Mapping[str, Any]) -> Iterator[str]:
    """Yield the settings as aligned text lines."""
    yield f"{shown['study']} at scale {shown['scale']}: {shown['title']}"
    for kind, meaning in CLASSES.items():
        yield f"  {kind:8} {meaning}"
    body = {"runs": shown["runs"], "evaluations": shown["evaluations"]}
    for path, value in leaves(body):
        yield f"{shown['provenance'][path]:8} {path} = {value!r}"
    for title in ("unstated", "inconsistencies", "deviations"):
        for line in shown[title]:
            yield f"{title}: {line}"
