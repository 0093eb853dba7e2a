"""Resolved settings with their provenance class: what the authors said, and what is ours."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ropewalk.base.canonical import leaves, plain
from ropewalk.base.manifest import MANIFEST, read_manifest
from ropewalk.base.spec import SpecError, suggestion
from ropewalk.data.spec import part_name
from ropewalk.study.data_nodes import Node
from ropewalk.study.plan import Plan
from ropewalk.study.provenance import (
    CLASSES,
    class_of,
    class_of_definition,
    definition_layers,
    inherited_layers,
)
from ropewalk.study.registry import folder
from ropewalk.study.schema import Study
from ropewalk.train.spec import PublishedWeights

SECTIONS = (
    "runs",
    "calibrations",
    "evaluations",
    "data",
    "checks",
    "claims",
    "tables",
    "decides",
)
DATA_STAGES = ("inventory", "tokenizer", "tokenize", "pack")
FIRST_PART = part_name(0)  # stands for all parts of a corpus: they differ in their number only


def resolved(plan: Plan, study: str) -> dict[str, Any]:
    """Return the settings of a study, and `provenance`: key path -> class for every leaf of them.

    `runs.<run>` is a run as it is trained. `evaluations.<name>` is an evaluation as it is defined,
    `evaluations.<name>.runs.<study/run>` as it applies to one run, overrides included.
    `data.<stage>.<name>` is what the stages of the data room are given, without the folders of this
    machine. `calibrations`, `checks`, `claims` and `decides` are as the study states them; `tables`
    lack their printed cells, which are the paper's.

    Raises:
        SpecError: if there is no such study.
    """
    if study not in plan.studies:
        raise SpecError(f"study {study!r} is unknown; {suggestion(study, plan.studies)}")
    found = plan.studies[study]
    nodes = _data_nodes(plan, study)
    body = {
        "runs": _runs(plan, found),
        "evaluations": _evaluations(plan, found),
        "data": {
            stage: {name: plain(n.spec, identity=True) for name, n in nodes[stage].items()}
            for stage in nodes
        },
        "calibrations": plain(found.file.calibrations),
        "checks": plain(found.file.checks),
        "claims": plain(found.file.claims),
        "tables": {
            name: {key: value for key, value in plain(table).items() if key != "rows"}
            for name, table in found.file.tables.items()
        },
        "decides": list(found.file.decides),
    }
    return {
        "study": study,
        "scale": plan.config.scale,
        "title": found.file.title,
        "paper": dict(found.file.paper),
        **body,
        "unstated": list(found.file.unstated),
        "inconsistencies": list(found.file.inconsistencies),
        "deviations": list(found.file.deviations),
        "provenance": {
            **dict(_stated(plan, found, body)),
            **dict(_of_evaluations(plan, found, body["evaluations"])),
            **dict(_of_data(plan, study, nodes)),
        },
    }


def adopted(plan: Plan, study: str, root: Path) -> dict[str, dict[str, Any]]:
    """Return the runs of a study that are published weights as they are, and where from.

    A run that stands below `root` has the `origin` of its manifest, with commit and sha256 of every
    file; one that was not adopted yet what its spec asks for.
    """
    found = {}
    for name in plan.studies[study].runs:
        run = plan.run(f"{study}/{name}")
        if run.phases or not isinstance(run.weights, PublishedWeights):
            continue
        place = folder(
            "train", plan.config.results, name=plan.config.run_name, study=study, run=name
        )
        manifest = root / place / MANIFEST
        asked = {k: v for k, v in plain(run.weights).items() if k != "kind" and v is not None}
        made = read_manifest(manifest, verify=False).result if manifest.is_file() else {}
        found[name] = made.get("origin", asked)
    return found


def settings(shown: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield `(key path, value)` of every setting, section by section; empty sections have none."""
    for section in SECTIONS:
        if shown[section]:
            yield from leaves(shown[section], section)


def lines(shown: Mapping[str, Any]) -> Iterator[str]:
    """Yield the settings as aligned text lines."""
    yield f"{shown['study']} at scale {shown['scale']}: {shown['title']}"
    for kind, meaning in CLASSES.items():
        yield f"  {kind:8} {meaning}"
    for path, value in settings(shown):
        yield f"{shown['provenance'][path]:8} {path} = {value!r}"
    for title in ("unstated", "inconsistencies", "deviations"):
        for line in shown[title]:
            yield f"{title}: {line}"
    for run, origin in shown.get("adopted", {}).items():
        files = origin.get("files")
        said = ", ".join(f"{key} {value}" for key, value in origin.items() if key != "files")
        yield f"adopted: {run}: {said}" + ("" if files else " (not yet)")
        for name, sha256 in (files or {}).items():
            yield f"adopted: {run}: {name} sha256 {sha256}"


def _runs(plan: Plan, study: Study) -> dict[str, Any]:
    runs: dict[str, Any] = {name: plain(plan.run(f"{study.name}/{name}")) for name in study.runs}
    for name, settings in study.runs.items():
        if settings.start is not None:
            runs[name]["start"] = settings.start
        if settings.model is not None:
            runs[name]["model"] = settings.model
    return runs


def _evaluations(plan: Plan, study: Study) -> dict[str, Any]:
    """Return evaluations as defined; in place of the patterns in `runs`, each run they select."""
    return {
        name: {
            **plain(evaluation),
            "runs": {
                run: _without_runs(plain(plan.evaluation(study.name, name, run)))
                for run in plan.evaluated(study.name, name)
            },
        }
        for name, evaluation in study.evaluations.items()
    }


def _without_runs(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in evaluation.items() if key != "runs"}


def _data_nodes(plan: Plan, study: str) -> dict[str, dict[str, Node]]:
    """Return the data stages that the study's own nodes need: stage -> name -> node."""
    manifests = plan.manifests(study) if study in plan.study_names else sorted(plan.nodes)
    found: dict[str, dict[str, Node]] = {}
    for manifest in manifests:
        node = plan.nodes[manifest]
        names = [value for key, value in node.wildcards.items() if key != "part"]
        if node.stage in DATA_STAGES and node.wildcards.get("part", FIRST_PART) == FIRST_PART:
            found.setdefault(node.stage, {})["/".join(names)] = node
    return found


def _stated(plan: Plan, study: Study, body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield `(key path, class)` of what stands in the study's file, or in what runs take over."""
    layers, written = dict(study.layers), definition_layers(plan.studies)
    for name in study.runs:
        layers |= inherited_layers(plan.studies, written, study.name, name)
    for path, _ in settings(body):
        if not path.startswith(("evaluations.", "data.")):
            yield path, class_of(study, path, layers)


def _of_evaluations(
    plan: Plan, study: Study, evaluations: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    """Yield the classes of evaluations; for one run by the definition's globs.

    A value that an override set is of the layer that wrote the override.
    """
    for name, evaluation in evaluations.items():
        prefix = f"evaluations.{name}"
        for path, _ in leaves(_without_runs(evaluation)):
            yield f"{prefix}.{path}", class_of(study, f"{prefix}.{path}", study.layers)
        for run, applied in evaluation["runs"].items():
            layers = dict(study.layers)
            for key in plan.overriding(study.name, name, run):
                start = f"{prefix}.overrides.{key}.set."
                layers |= {
                    f"{prefix}.{path.removeprefix(start)}": layer
                    for path, layer in study.layers.items()
                    if path.startswith(start)
                }
            for path, _ in leaves(applied):
                yield f"{prefix}.runs.{run}.{path}", class_of(study, f"{prefix}.{path}", layers)


def _of_data(
    plan: Plan, study: str, nodes: Mapping[str, Mapping[str, Node]]
) -> Iterator[tuple[str, str]]:
    """Yield the classes of what data stages are given, each by the definition it comes from."""
    for stage, by_name in nodes.items():
        for name, node in by_name.items():
            for path, _ in leaves(plain(node.spec, identity=True)):
                whole = f"data.{stage}.{name}.{path}"
                if (stage, path) == ("pack", "length_tokens"):
                    yield whole, _class_of_length(plan, node)
                else:
                    definition = _definition(node, path)
                    yield whole, class_of_definition(plan.studies, study, definition)


def _definition(node: Node, path: str) -> str:
    """Return the key path of the named part that a leaf of a data stage's spec was copied from.

    What belongs to the stage itself keeps its name: `tokenize.bos`.
    """
    part, _, rest = path.partition(".")
    names = node.wildcards
    if part == "source":
        return f"sources.{names.get('source') or node.spec.corpus.source}.{rest}"
    if part == "corpus":
        return f"corpora.{names.get('corpus') or node.spec.tokenizer.corpus}.{rest}"
    if part == "tokenizer":
        return f"tokenizers.{names['tokenizer']}.{rest}"
    if part == "windows":
        return f"windows.{names['windows']}.{rest}"
    return f"{node.stage}.{path}"


def _class_of_length(plan: Plan, pack: Node) -> str:
    """Return the class of a windows' length: that of the first phase trained on them, or check."""
    wanted = (pack.wildcards["windows"], pack.spec.length_tokens)
    for node in plan.of_stage("train"):
        for index, phase in enumerate(node.spec.run.phases):
            if (phase.windows, phase.length_tokens) == wanted:
                owner = plan.studies[node.wildcards["study"]]
                path = f"runs.{node.wildcards['run']}.phases.{index}.length_tokens"
                return class_of(owner, path, owner.layers)
    for node in plan.of_stage("check"):
        for label, packed in node.spec.windows.items():
            if (packed.windows, packed.length_tokens) == wanted:
                owner = plan.studies[node.wildcards["study"]]
                path = f"checks.{node.wildcards['check']}.windows.{label}.length_tokens"
                return class_of(owner, path, owner.layers)
    raise AssertionError(f"{pack.manifest} is planned for no phase and no check")
