"""What makes a stage rerun: its own settings, its own code, its libraries, damaged files.

Each cause is one string, so that Snakemake, which compares params as a set of texts, reports
exactly the string that changed: `spec.optimizer.lr=0.001`, `ropewalk/data/pack.py@1a2b3c`.
"""

import csv
import functools
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

from ropewalk.base.canonical import digest, leaves, plain
from ropewalk.base.closure import closure
from ropewalk.base.manifest import (
    ArtifactError,
    damage,
    read_manifest,
    read_provenance,
)
from ropewalk.base.stage import canonical_code, public_version
from ropewalk.data.spec import (
    HubSource,
    ImportedTokenizer,
    InventoryJob,
    PythonSource,
    Source,
    TokenizerJob,
)
from ropewalk.evaluate.spec import EvaluateJob, Harness
from ropewalk.study.accepted import ACCEPTED, read_accepted
from ropewalk.study.data_nodes import Node
from ropewalk.study.plan import Plan
from ropewalk.study.registry import STAGES

LOCK = "requirements.lock"
UNPINNED = "unpinned"


class Triggers:
    """The causes of a plan's nodes, computed once per process."""

    def __init__(self, plan: Plan, root: Path) -> None:
        self.plan = plan
        self.root = root
        entries = read_accepted(root / ACCEPTED)
        self.accepted = {(entry.file, entry.new): entry.old for entry in entries}
        self.pins = read_pins(root / LOCK)
        self._listings: dict[str, str] = {}
        self._closures: dict[tuple[str, ...], dict[str, str]] = {}

    def code_files(self, node: Node) -> dict[str, str]:
        """Return `file -> digest` of all code that a node's stage runs with its spec."""
        return self._closure(STAGES[node.stage].modules(node.spec))

    def _closure(self, modules: tuple[str, ...]) -> dict[str, str]:
        if modules not in self._closures:
            self._closures[modules] = closure(*modules)
        return self._closures[modules]

    def code(self, node: Node) -> list[str]:
        """Return `file@digest` for a node's code; accepted digests stand as the old."""
        return self.code_causes(self.code_files(node))

    def code_causes(self, code_files: Mapping[str, str]) -> list[str]:
        """Return `file@digest` of code, each digest as the oldest it was accepted as equal to."""
        known = canonical_code(code_files, self.accepted)
        return [f"{file}@{found}" for file, found in known.items()]

    def accepted_of(self, node: Node) -> list[str]:
        """Return the accepted changes of a node's code: `file@digest=older digest`."""
        files = self.code_files(node)
        return [f"{f}@{new}={old}" for (f, new), old in self.accepted.items() if f in files]

    def libraries(self, node: Node) -> list[str]:
        """Return `name==version` of the pinned libraries a node's numbers depend on."""
        return [self._pinned(name) for name in STAGES[node.stage].libraries_of(node.spec)]

    def _pinned(self, name: str) -> str:
        return f"{name}=={public_version(self.pins.get(name, UNPINNED))}"

    def params(self, stage: str) -> list[str | Callable[[Mapping[str, str]], str]]:
        """Return a rule's positional params: causes of all its nodes, then functions of wildcards.

        Snakemake compares a job's params as a set, so any function may give any cause: there are as
        many as the node with most causes of its own has, each gives one of them, and the empty text
        where a node has fewer. It is always present, so that it never changes a set.
        """
        causes = {node.manifest: set(self._planned(node)) for node in self.plan.of_stage(stage)}
        common = set.intersection(*causes.values()) if causes else set()
        shared = {cause for cause in common if "{" not in cause}  # Snakemake would fill braces in
        own = {manifest: sorted(found - shared) for manifest, found in causes.items()}
        return [
            "",
            *sorted(shared),
            *(
                _Param(functools.partial(self._own, stage, own, place))
                for place in range(max(map(len, own.values()), default=0))
            ),
            _Param(functools.partial(self._source, stage)),
            _Param(functools.partial(self._rebuilds, stage)),
        ]

    def of(self, node: Node) -> list[str]:
        """Return every cause of one node, sorted."""
        found = [self.source(node), self._rebuilt(node)]
        return sorted([*self._planned(node), *(cause for cause in found if cause)])

    def _planned(self, node: Node) -> list[str]:
        """Return the causes of a node that are known without its files."""
        settings = [f"{key}={value}" for key, value in spec_leaves(node).items()]
        return [*self.code(node), *self.libraries(node), *settings]

    def source(self, node: Node) -> str:
        """Return a digest of the files a stage reads from outside, so that changed ones rerun it.

        Those of a source for its inventory, those of an imported tokenizer, the task files of one's
        own for the harness; empty for others. A folder that is not on this machine counts as
        unchanged: planning never needs the data.
        """
        if not _reads_outside(node.spec):
            return ""
        if node.manifest not in self._listings:
            found = listing_of(node.spec)
            if not found:
                seen = read_provenance(self.root / Path(node.manifest).parent) or {}
                found = str(seen.get("listing", ""))
            self._listings[node.manifest] = found
        return self._listings[node.manifest]

    def submitted(self) -> str:
        """Return the code digests of all planned work as JSON, to be frozen for queued jobs."""
        every = {STAGES[node.stage].modules(node.spec) for node in self.plan.nodes.values()}
        return json.dumps(
            {" ".join(modules): digest(self._closure(modules)) for modules in sorted(every)}
        )

    def rebuilds(self, node: Node) -> int:
        """Return how often this artifact was rebuilt because its files were damaged.

        One more than recorded if they are damaged now: the changed number is what makes Snakemake
        run the stage, and the stage records it, so that the next plan is quiet again.
        """
        seen = read_provenance(self.root / Path(node.manifest).parent)
        return (seen["rebuilds"] if seen else 0) + bool(self.damaged(node))

    @functools.cache  # noqa: B019 - lives as long as the process that plans
    def _damaged(self, manifest: str) -> tuple[str, ...]:
        path = self.root / manifest
        if not path.is_file():
            return ()
        seen = read_provenance(path.parent)
        if seen is None:
            return (f"{manifest} has no readable provenance.json beside it",)
        if path.read_bytes() != seen["manifest"].encode():
            return (f"{manifest} differs from what the stage wrote",)
        try:
            listed = read_manifest(path, verify=False).files
        except ArtifactError:
            return (f"{manifest} cannot be read",)
        found = []
        for file in listed:
            target = path.parent / file.path
            if (
                target.is_file()
                and target.stat().st_size == file.bytes
                and target.stat().st_mtime_ns == seen["files"].get(file.path)
            ):
                continue
            problem = damage(path.parent, file)
            if problem:
                found.append(f"{Path(manifest).parent / file.path} {problem}")
        return tuple(found)

    def damaged(self, node: Node) -> tuple[str, ...]:
        """Return what is wrong with a node's files: by size and time, by hash where these moved."""
        return self._damaged(node.manifest)

    def _node(self, stage: str, wildcards: Mapping[str, str]) -> Node:
        return self.plan.node(stage, self.plan.wildcards(stage, dict(wildcards)))

    def _own(
        self,
        stage: str,
        own: Mapping[str, Sequence[str]],
        place: int,
        wildcards: Mapping[str, str],
    ) -> str:
        found = own[self._node(stage, wildcards).manifest]
        return found[place] if place < len(found) else ""

    def _source(self, stage: str, wildcards: Mapping[str, str]) -> str:
        return self.source(self._node(stage, wildcards))

    def _rebuilds(self, stage: str, wildcards: Mapping[str, str]) -> str:
        return self._rebuilt(self._node(stage, wildcards))

    def _rebuilt(self, node: Node) -> str:
        count = self.rebuilds(node)
        return f"rebuilds={count}" if count else ""


class _Param:
    """A param of a rule: a text by wildcards.

    Snakemake asks for the signature of every such function several times per job; what is written
    down need not be derived from a partial function each time.
    """

    __signature__ = inspect.Signature(
        [inspect.Parameter("wildcards", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    )

    def __init__(self, text: Callable[[Mapping[str, str]], str]) -> None:
        self._text = text

    def __call__(self, wildcards: Mapping[str, str]) -> str:
        return self._text(wildcards)


def spec_leaves(node: Node) -> dict[str, str]:
    """Return `spec.<key path> -> canonical value` of everything that is part of the identity.

    Inputs by name are part of it: a run that starts from another run has other ancestors.
    """
    found = {
        f"spec.{key}": json.dumps(value, sort_keys=True, ensure_ascii=False)
        for key, value in leaves(plain(node.spec, identity=True))
    }
    return found | {f"input.{name}": path for name, path in node.inputs.items()}


def _reads_outside(spec: Any) -> bool:
    """Return whether a stage with this spec reads files that no manifest describes."""
    return isinstance(spec, InventoryJob | TokenizerJob) or _task_folder(spec) is not None


def _task_folder(spec: Any) -> Path | None:
    """Return where the task files of one's own lie that an evaluation by the harness reads."""
    if isinstance(spec, EvaluateJob) and isinstance(spec.protocol, Harness):
        return None if spec.protocol.folder is None else Path(spec.protocol.folder)
    return None


def listing_of(spec: Any) -> str:
    """Return the listing of what a stage with this spec reads from outside; empty if nothing."""
    if isinstance(spec, InventoryJob):
        return listing(spec.source, spec.folder)
    if isinstance(spec, TokenizerJob) and isinstance(spec.tokenizer, ImportedTokenizer):
        path = Path(spec.tokenizer.path or "")
        if spec.tokenizer.path is not None and path.exists():
            files = sorted(path.iterdir()) if path.is_dir() else [path]
            return _stats(path if path.is_dir() else path.parent, files)
    tasks = _task_folder(spec)
    if tasks is not None and tasks.is_dir():
        return _stats(tasks, sorted(tasks.rglob("*")))
    return ""


def listing(source: Source, folder: str | None) -> str:
    """Return `files=<digest>` of the names and sizes (and, in folders, times) of a source's files.

    Distributions are described by name, version and the rows of RECORD that an inventory reads,
    whose hashes it checks: scripts, whose hashes hold the path of the environment, are no part.
    Empty for a folder that is not on this machine, and for the hub: a revision says it all.
    """
    if isinstance(source, PythonSource):
        found: list[Any] = []
        for name in source.distributions:
            try:
                distribution = metadata.distribution(name)
            except metadata.PackageNotFoundError:
                found.append([name, None])
                continue
            found.append([name, distribution.version, _python_rows(distribution)])
        return f"files={digest(found)}"
    if isinstance(source, HubSource) or folder is None or not Path(folder).is_dir():
        return ""
    patterns = sorted({*source.train, *source.validation, *source.test})
    paths = sorted({path for pattern in patterns for path in Path(folder).glob(pattern)})
    return _stats(Path(folder), paths)


def _stats(folder: Path, paths: list[Path]) -> str:
    stats = [(str(p.relative_to(folder)), p.stat()) for p in paths if p.is_file()]
    return f"files={digest([[name, s.st_size, s.st_mtime_ns] for name, s in stats])}"


def _python_rows(distribution: metadata.Distribution) -> list[list[str | int | None]]:
    """Return `[path, recorded hash, size on disk]` of the `.py` files inside site-packages."""
    rows: list[list[str | int | None]] = []
    for row in csv.reader((distribution.read_text("RECORD") or "").splitlines()):
        path = PurePosixPath(row[0] if row else "")
        if path.suffix == ".py" and not path.is_absolute() and ".." not in path.parts:
            file = Path(str(distribution.locate_file(path)))
            rows.append([str(path), row[1], file.stat().st_size if file.is_file() else None])
    return sorted(rows, key=lambda row: str(row[0]))


def read_pins(path: Path) -> dict[str, str]:
    """Return `name -> version` of the lock file; lower-case names."""
    pins = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        name, _, version = line.partition("#")[0].strip().partition("==")
        if version:
            pins[name.lower().replace("_", "-")] = version.partition(";")[0].strip()
    return pins


__all__ = [
    "LOCK",
    "UNPINNED",
    "Triggers",
    "listing",
    "listing_of",
    "read_pins",
    "spec_leaves",
]
