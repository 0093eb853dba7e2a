"""From YAML files to resolved studies: layers, axes, overrides, and every problem at once."""

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from ropewalk.base.canonical import leaves, plain
from ropewalk.base.spec import Problem, SpecError, decode, suggestion
from ropewalk.evaluate.spec import Evaluation
from ropewalk.study import presets
from ropewalk.study.config import SCALES, Config
from ropewalk.study.schema import (
    Definitions,
    EvaluationOverride,
    Family,
    RunSettings,
    Study,
    StudyFile,
)
from ropewalk.study.tree import (
    Leaf,
    Origin,
    Tree,
    assign,
    load_yaml,
    located,
    origin_of,
    substitute,
    unwrap,
)

SHARED = "shared"
PAPER = "paper"  # the scale the bodies state
DEFINITIONS = tuple(field.name for field in dataclasses.fields(Definitions))
T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Overrides:
    overrides: Mapping[str, EvaluationOverride]


@dataclasses.dataclass
class Problems:
    """Messages collected on the way, raised together."""

    lines: list[str] = dataclasses.field(default_factory=list)

    def take(self, error: SpecError, tree: Tree, prefix: str = "") -> None:
        """Keep a decoding error with the places its values were written."""
        self.lines += [located(p, tree, prefix) for p in error.problems]

    def add(self, message: str) -> None:
        """Keep one message."""
        self.lines.append(message)

    def check(self) -> None:
        """Raise everything collected so far."""
        if self.lines:
            raise SpecError([Problem((), line) for line in dict.fromkeys(self.lines)])


def available(papers: Path) -> tuple[str, ...]:
    """Return the names of the studies in a folder."""
    return tuple(sorted(p.stem for p in papers.glob("*.yaml") if p.stem != SHARED))


def load_studies(config: Config, root: Path) -> dict[str, Study]:
    """Return the shared definitions and every chosen study at the configured scale, by name.

    Raises:
        SpecError: with every problem of every file, each with file, line, key and value.
    """
    papers = root / config.papers
    known = available(papers)
    problems = Problems()
    names = config.studies if config.studies is not None else known
    for name in names:
        if name not in known:
            problems.add(f"config.yaml: studies: {name!r} is unknown; {suggestion(name, known)}")
    problems.check()
    overlays = []
    for name in config.overlays:
        try:
            overlay = load_yaml(root / name, layer="overlay", shown=name)
        except SpecError as error:
            problems.take(error, {})
            continue
        overlays.append(overlay)
        for key in overlay:
            if key not in (SHARED, *known):
                problems.add(
                    f"{origin_of(overlay, (key,)) or name}: {key!r} is not a study; "
                    f"{suggestion(key, (SHARED, *known))}"
                )
    studies = {}
    for name in (SHARED, *names):
        file = papers / f"{name}.yaml"
        try:
            body = load_yaml(file, shown=str(Path(config.papers) / file.name))
            extra = [overlay.get(name, {}) for overlay in overlays]
            studies[name] = _resolve(name, body, config.scale, extra, problems)
        except SpecError as error:
            problems.take(error, {})
    problems.check()
    return studies


def _resolve(
    name: str, body: dict[str, Tree], scale: str, overlays: list[Tree], problems: Problems
) -> Study:
    """Return one study at one scale; decoding problems are collected, not raised."""
    scales = body.pop("scales", {})
    if not isinstance(scales, Mapping):
        problems.add(f"{origin_of(scales, ())}: scales: not a map of scales")
        scales = {}
    tree = presets.spelled_out(body, problems.add)
    for key, overlay in _chain(scales, scale, problems):
        tree = presets.overlaid(tree, _relabel(overlay, f"scale {key}"), problems.add)
    for overlay in overlays:
        tree = presets.overlaid(tree, overlay, problems.add)
    try:
        file = decode(StudyFile, unwrap(tree))
    except SpecError as error:
        problems.take(error, tree)
        # Without the sections that failed, so that the problems of the others are found too.
        failed = {problem.path[0] for problem in error.problems if problem.path}
        tree = {key: value for key, value in tree.items() if key not in failed}
        file = decode(StudyFile, unwrap(tree))
    layers: dict[str, str] = {}
    for kind in (*DEFINITIONS, "calibrations", "checks", "claims", "tables"):
        for part, value in getattr(file, kind).items():
            _record_layers(f"{kind}.{part}", tree[kind][part], plain(value), layers)
    _record_layers("decides", tree.get("decides", {}), list(file.decides), layers)
    runs, axes = _expand(file, tree, layers, problems)
    evaluations, evaluation_overrides = _evaluations(file, tree, layers, problems)
    return Study(
        name=name,
        file=file,
        runs=runs,
        axes=axes,
        evaluations=evaluations,
        evaluation_overrides=evaluation_overrides,
        paper_main=unwrap(body.get("main", {})),
        paper_aliases=unwrap(body.get("aliases", {})),
        layers=layers,
    )


def _chain(scales: Tree, scale: str, problems: Problems) -> list[tuple[str, Tree]]:
    """Return the overlays of a scale, lowest first: a scale may be written `like` another."""
    for key, overlay in scales.items():
        where = f"{origin_of(scales, (key,))}: scales.{key}"
        if key not in SCALES:
            problems.add(f"{where}: unknown; {suggestion(key, SCALES)}")
        if not isinstance(overlay, Mapping) and overlay.value not in (None, {}):
            problems.add(f"{where}: {unwrap(overlay)!r} is not a map")
    if scales and scale not in scales and scale != PAPER:
        problems.add(
            f"{origin_of(scales, ())}: scales: there is no scale {scale!r} here, and the body "
            f"states the paper's sizes; {suggestion(scale, scales)}"
        )
    chain: list[tuple[str, Tree]] = []
    key = scale
    while key in scales and isinstance(scales[key], Mapping):
        overlay = dict(scales[key])
        like = unwrap(overlay.pop("like", Leaf(None, Origin("", 0, ""))))
        chain.insert(0, (key, overlay))
        if like is None:
            break
        if like not in scales or like in dict(chain):
            problems.add(
                f"{origin_of(scales[key], ('like',))}: scales.{key}.like: {like!r}: name another "
                f"scale of this file; {suggestion(like, scales)}"
            )
            break
        key = like
    return chain


def _relabel(tree: Tree, layer: str) -> Tree:
    """Return `tree` with its leaves marked as written by `layer`."""
    if isinstance(tree, Mapping):
        return {key: _relabel(value, layer) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_relabel(item, layer) for item in tree]
    return dataclasses.replace(tree, origin=dataclasses.replace(tree.origin, layer=layer))


def matches(cell: Mapping[str, str], when: Mapping[str, str | tuple[str, ...]]) -> bool:
    """Return whether every axis named in `when` has one of the values it names."""
    return all(
        cell.get(axis) == value if isinstance(value, str) else cell.get(axis) in value
        for axis, value in when.items()
    )


def _expand(
    file: StudyFile, tree: Tree, layers: dict[str, str], problems: Problems
) -> tuple[dict[str, RunSettings], dict[str, dict[str, str]]]:
    runs: dict[str, RunSettings] = {}
    axes: dict[str, dict[str, str]] = {}
    for family_name, family in file.runs.items():
        family_tree = tree["runs"][family_name]
        where = f"runs.{family_name}"
        _check_axes(family, family_tree, where, problems)
        for values in itertools.product(*family.axes.values()):
            cell = dict(zip(family.axes, values, strict=True))
            spec = family_tree["spec"]
            if family.only and not any(matches(cell, when) for when in family.only):
                continue
            try:
                name = family.name.format_map(cell)
                for key, override in family.overrides.items():
                    if matches(cell, override.when):
                        settings = family_tree["overrides"][key]["set"]
                        for dotted_key in override.set:
                            spec = assign(spec, dotted_key, settings[dotted_key])
                spec = substitute(spec, cell)
                run = decode(RunSettings, unwrap(spec))
            except KeyError as error:
                problems.add(
                    f"{origin_of(family_tree, ('name',))}: {where}.name: {family.name!r} names "
                    f"{error}, which is not an axis ({', '.join(family.axes)})"
                )
                break
            except SpecError as error:
                problems.take(error, spec, f"run {_label(family, cell)}: ")
                continue
            if name in runs:
                problems.add(
                    f"{origin_of(family_tree, ('name',))}: {where}.name: {name!r} stands for two "
                    "runs; name every axis with more than one value in it"
                )
            runs[name], axes[name] = run, cell
            _record_layers(f"runs.{name}", spec, plain(run), layers)
    return runs, axes


def _label(family: Family, cell: Mapping[str, str]) -> str:
    try:
        return family.name.format_map(cell)
    except KeyError:
        return str(dict(cell))


def _check_axes(family: Family, tree: Tree, where: str, problems: Problems) -> None:
    """Every axis and value that `only` and `overrides` name must exist."""
    conditions = [(f"only.{i}", when) for i, when in enumerate(family.only)]
    conditions += [(f"overrides.{k}.when", o.when) for k, o in family.overrides.items()]
    for place, when in conditions:
        keys = tuple(int(k) if k.isdigit() else k for k in place.split("."))
        for axis, chosen in when.items():
            if axis not in family.axes:
                problems.add(
                    f"{origin_of(tree, keys)}: {where}.{place}: {axis!r} is not an axis; "
                    f"{suggestion(axis, family.axes)}"
                )
                continue
            for value in (chosen,) if isinstance(chosen, str) else chosen:
                if value not in family.axes[axis]:
                    problems.add(
                        f"{origin_of(tree, (*keys, axis))}: {where}.{place}: {value!r} is not a "
                        f"value of axis {axis!r}; {suggestion(value, family.axes[axis])}"
                    )


def _evaluations(
    file: StudyFile, tree: Tree, layers: dict[str, str], problems: Problems
) -> tuple[dict[str, Evaluation], dict[str, Mapping[str, EvaluationOverride]]]:
    evaluations: dict[str, Evaluation] = {}
    overrides: dict[str, Mapping[str, EvaluationOverride]] = {}
    for name in file.evaluations:
        whole = tree["evaluations"][name]
        where = f"evaluations.{name}: "
        own = dict(whole) if isinstance(whole, Mapping) else {}
        own = presets.settled(own, where, problems.add)
        over = own.pop("overrides", {})
        try:
            evaluations[name] = decode(Evaluation, unwrap(own))
            changes = decode(_Overrides, {"overrides": unwrap(over) or {}}).overrides
        except SpecError as error:
            problems.take(error, whole, where)
            continue
        for place, message in presets.unknown(evaluations[name].protocol):
            origin = origin_of(own, ("protocol", "presets", place))
            problems.add(f"{origin}: {where}protocol.presets.{place}: {message}")
        for key, change in changes.items():
            try:
                apply(Evaluation, evaluations[name], change.set)
            except SpecError as error:
                problems.take(error, over[key]["set"], f"{where}overrides.{key}.set: ")
            for dotted_key, value in change.set.items():
                prefix = f"evaluations.{name}.overrides.{key}.set.{dotted_key}"
                _record_layers(prefix, over[key]["set"][dotted_key], value, layers)
        overrides[name] = changes
        _record_layers(f"evaluations.{name}", own, plain(evaluations[name]), layers)
    return evaluations, overrides


def apply(kind: type[T], spec: T, settings: Mapping[str, Any]) -> T:
    """Return a spec with dotted keys set to plain values, validated again."""
    changed: Any = _wrap(plain(spec))
    for key, value in settings.items():
        changed = assign(changed, key, _wrap(value))
    return decode(kind, unwrap(changed))


def _wrap(data: Any) -> Tree:
    if isinstance(data, Mapping) and data:
        return {key: _wrap(value) for key, value in data.items()}
    if isinstance(data, list) and data:
        return [_wrap(item) for item in data]
    return Leaf(data, Origin("", 0, "body"))


def _record_layers(prefix: str, tree: Tree, resolved: Any, layers: dict[str, str]) -> None:
    """Note for every resolved leaf which layer wrote it; what nobody wrote is a `default`."""
    for path, _ in leaves(resolved):
        keys = tuple(int(k) if k.isdigit() else k for k in path.split(".")) if path else ()
        written: Any = tree
        for key in keys:
            try:
                written = written[key]
            except (KeyError, IndexError, TypeError):
                written = None
                break
        origin = origin_of(written, ()) if written is not None else None
        layers[f"{prefix}.{path}" if path else prefix] = origin.layer if origin else "default"
