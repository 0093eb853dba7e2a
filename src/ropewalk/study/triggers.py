"""What makes a stage rerun: its own settings, its own code, its libraries, damaged files.

Each cause is one string, so that Snakemake, which compares params as a set of texts, reports
exactly the string that changed: `spec.optimizer.lr=0.001`, `ropewalk/data/pack.py@1a2b3c`.
"""

import functools
import json
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from ropewalk.base.canonical import digest, leaves, plain
from ropewalk.base.closure import closure
from ropewalk.base.manifest import MANIFEST, PROVENANCE, File, damage
from ropewalk.base.spec import SpecError
from ropewalk.data.spec import PythonSource, Source
from ropewalk.study.nodes import Node
from ropewalk.study.plan import Plan
from ropewalk.study.registry import STAGES

ACCEPTED = "accepted.yaml"
LOCK = "requirements.lock"


class Triggers:
    """The causes of a plan's nodes, computed once per process."""

    def __init__(self, plan: Plan, root: Path) -> None:
        self.plan = plan
        self.root = root
        self.accepted = read_accepted(root / ACCEPTED)
        self.pins = read_pins(root / LOCK)
        self._listings: dict[str, str] = {}
        self._leaves: dict[str, dict[str, str]] = {}
        self._keys = {
            stage: sorted({key for node in plan.of_stage(stage) for key in self._settings(node)})
            for stage in STAGES
        }

    def code(self, stage: str) -> list[str]:
        """Return `file@digest` for the stage's code closure; accepted digests stand as the old."""
        return [
            f"{file}@{self.canonical(file, found)}"
            for file, found in closure(STAGES[stage].entry).items()
        ]

    def libraries(self, stage: str) -> list[str]:
        """Return `name==version` of the pinned libraries the stage's numbers depend on."""
        return [f"{name}=={self.pins.get(name, 'unpinned')}" for name in STAGES[stage].libraries]

    def params(self, stage: str) -> list[str | Callable[[Mapping[str, str]], str]]:
        """Return a rule's positional params: constants, and one function of wildcards per key.

        The empty text stands for keys that a node does not have; it is always present, so that a
        key which appears in one node never changes the set of another.
        """
        return [
            "",
            *self.code(stage),
            *self.libraries(stage),
            *(functools.partial(self._setting, stage, key) for key in self._keys[stage]),
            functools.partial(self._source, stage),
            functools.partial(self._rebuilds, stage),
        ]

    def of(self, node: Node) -> list[str]:
        """Return every cause of one node, sorted."""
        settings = [f"{k}={v}" for k, v in self._settings(node).items()]
        rebuilds = self.rebuilds(node)
        extra = [f"rebuilds={rebuilds}"] if rebuilds else []
        source = [self.source(node)] if node.stage == "inventory" else []
        return sorted(
            [*self.code(node.stage), *self.libraries(node.stage), *settings, *source, *extra]
        )

    def source(self, node: Node) -> str:
        """Return a digest of a source's listing, so that changed files rerun its inventory.

        Empty for other stages, and for a folder that is not on this machine: planning never needs
        the data.
        """
        if node.stage != "inventory":
            return ""
        if node.manifest not in self._listings:
            self._listings[node.manifest] = listing(node.spec.source, node.spec.folder)
        return self._listings[node.manifest]

    def submitted(self) -> str:
        """Return the code digests of all stages as JSON, to be frozen for queued jobs."""
        return json.dumps({name: digest(closure(stage.entry)) for name, stage in STAGES.items()})

    def rebuilds(self, node: Node) -> int:
        """Return how often this artifact was rebuilt because its files were damaged.

        One more than recorded if they are damaged now: the changed number is what makes Snakemake
        run the stage, and the stage records it, so that the next plan is quiet again.
        """
        record = self.root / Path(node.manifest).parent / PROVENANCE
        if not record.is_file():
            return 0
        try:
            provenance = json.loads(record.read_text(encoding="utf-8"))
            count = int(provenance["rebuilds"])
        except (ValueError, KeyError):
            return 0
        return count + bool(self.damaged(node))

    @functools.cache  # noqa: B019 - lives as long as the process that plans
    def _damaged(self, manifest: str) -> tuple[str, ...]:
        path = self.root / manifest
        record = path.parent / PROVENANCE
        if not (path.is_file() and record.is_file()):
            return ()
        try:
            listed = json.loads(path.read_text(encoding="utf-8"))["files"]
            seen = json.loads(record.read_text(encoding="utf-8"))
            if path.read_text(encoding="utf-8") != seen["manifest"]:
                return (f"{manifest} differs from what the stage wrote",)
        except (ValueError, KeyError):
            return (f"{manifest} cannot be read",)
        found = []
        for entry in listed:
            file = File(**entry)
            target = path.parent / file.path
            if (
                target.is_file()
                and target.stat().st_size == file.bytes
                and target.stat().st_mtime_ns == seen.get("files", {}).get(file.path)
            ):
                continue
            problem = damage(path.parent, file)
            if problem:
                found.append(f"{Path(manifest).parent / file.path} {problem}")
        return tuple(found)

    def damaged(self, node: Node) -> tuple[str, ...]:
        """Return what is wrong with a node's files: by size and time, by hash where these moved."""
        return self._damaged(node.manifest)

    def canonical(self, file: str, found: str) -> str:
        """Return the oldest digest that `accepted.yaml` declares equal to this one."""
        seen = {found}
        while (file, found) in self.accepted:
            found = self.accepted[file, found]
            if found in seen:
                break
            seen.add(found)
        return found

    def _source(self, stage: str, wildcards: Mapping[str, str]) -> str:
        return self.source(self.plan.node(stage, self.plan.wildcards(stage, dict(wildcards))))

    def _setting(self, stage: str, key: str, wildcards: Mapping[str, str]) -> str:
        found = self._settings(self.plan.node(stage, self.plan.wildcards(stage, dict(wildcards))))
        return f"{key}={found[key]}" if key in found else ""

    def _settings(self, node: Node) -> dict[str, str]:
        if node.manifest not in self._leaves:
            self._leaves[node.manifest] = spec_leaves(node)
        return self._leaves[node.manifest]

    def _rebuilds(self, stage: str, wildcards: Mapping[str, str]) -> str:
        node = self.plan.node(stage, self.plan.wildcards(stage, dict(wildcards)))
        count = self.rebuilds(node)
        return f"rebuilds={count}" if count else ""


def spec_leaves(node: Node) -> dict[str, str]:
    """Return `spec.<key path> -> canonical value` of everything that is part of the identity.

    Inputs by name are part of it: a run that starts from another run has other ancestors.
    """
    found = {
        f"spec.{key}": json.dumps(value, sort_keys=True, ensure_ascii=False)
        for key, value in leaves(plain(node.spec, identity=True))
    }
    return found | {f"input.{name}": path for name, path in node.inputs.items()}


def listing(source: Source, folder: str | None) -> str:
    """Return `files=<digest>` of the names and sizes (and, in folders, times) of a source's files.

    Distributions are described by name, version and RECORD, whose hashes the inventory checks.
    """
    if isinstance(source, PythonSource):
        found: list[Any] = []
        for name in source.distributions:
            try:
                distribution = metadata.distribution(name)
            except metadata.PackageNotFoundError:
                found.append([name, None])
                continue
            record = distribution.read_text("RECORD") or ""
            files = distribution.files or []
            sizes = [
                [str(f), path.stat().st_size if (path := Path(str(f.locate()))).is_file() else None]
                for f in files
                if f.suffix == ".py"
            ]
            found.append([name, distribution.version, digest(record), digest(sizes)])
        return f"files={digest(found)}"
    if folder is None or not Path(folder).is_dir():
        return ""
    patterns = sorted({*source.train, *source.validation, *source.test})
    paths = sorted({path for pattern in patterns for path in Path(folder).glob(pattern)})
    stats = [(str(p.relative_to(folder)), p.stat()) for p in paths]
    return f"files={digest([[name, s.st_size, s.st_mtime_ns] for name, s in stats])}"


def read_accepted(path: Path) -> dict[tuple[str, str], str]:
    """Return `(file, new digest) -> old digest` from `accepted.yaml`, if there is one.

    Raises:
        SpecError: if an entry lacks file, from, to or reason.
    """
    if not path.is_file():
        return {}
    entries: Any = yaml.safe_load(path.read_text(encoding="utf-8")) or []
    accepted = {}
    for index, entry in enumerate(entries):
        lacking = [k for k in ("file", "from", "to", "reason") if not entry.get(k)]
        if lacking:
            raise SpecError(f"{path.name}: entry {index + 1}: {lacking[0]!r} is missing")
        accepted[entry["file"], str(entry["to"])] = str(entry["from"])
    return accepted


def read_pins(path: Path) -> dict[str, str]:
    """Return `name -> version` of the lock file; lower-case names."""
    pins = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        name, _, version = line.partition("#")[0].strip().partition("==")
        if version:
            pins[name.lower().replace("_", "-")] = version.partition(";")[0].strip()
    return pins


__all__ = ["ACCEPTED", "LOCK", "MANIFEST", "Triggers", "read_accepted", "read_pins", "spec_leaves"]
