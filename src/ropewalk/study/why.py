"""Why an artifact would be made again: what it was made from against what is there now."""

import difflib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ropewalk.base.canonical import leaves
from ropewalk.base.manifest import ArtifactError, Manifest, read_manifest, read_provenance
from ropewalk.base.spec import SpecError
from ropewalk.base.stage import public_version
from ropewalk.study.data_nodes import Node
from ropewalk.study.plan import Plan
from ropewalk.study.registry import STAGES
from ropewalk.study.triggers import UNPINNED, Triggers


def select(plan: Plan, target: str, root: Path) -> list[str]:
    """Return the manifests a target means: a manifest, a folder above some, a study, or `all`.

    Paths may be absolute or relative to the project's folder `root`.

    Raises:
        SpecError: if the plan has nothing of this name.
    """
    if target == "all":
        return plan.manifests()
    if target in plan.study_names:
        return plan.manifests(target)
    prefix = os.path.relpath(root / target, root)
    found = [m for m in plan.manifests() if m == prefix or m.startswith(f"{prefix}/")]
    if found or prefix == os.curdir:
        return found or plan.manifests()
    folders = {str(folder) for m in plan.manifests() for folder in Path(m).parents}
    close = difflib.get_close_matches(prefix, [*plan.study_names, *folders], n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise SpecError(
        f"target {target!r} is not in the plan; {hint}Name a manifest, a folder above some "
        f"({plan.config.results}/...), a study ({', '.join(plan.study_names)}), or all"
    )


class Why:
    """Reasons for the nodes of one plan; each node is looked at once."""

    def __init__(self, plan: Plan, triggers: Triggers, root: Path) -> None:
        self.plan = plan
        self.triggers = triggers
        self.root = root
        self._known: dict[str, list[str]] = {}

    def explain(self, manifest: str) -> list[str]:
        """Return the reasons why the artifact would be made again; empty if it would not."""
        if manifest not in self._known:
            self._known[manifest] = self._explain(manifest)
        return self._known[manifest]

    def _explain(self, manifest: str) -> list[str]:
        if not (self.root / manifest).is_file():
            return ["has not been made yet"]
        reasons = self.own(manifest)
        inputs = self.inputs(manifest)
        for name, source in self.plan.nodes[manifest].inputs.items():
            if name not in inputs and self.explain(source):
                inputs[name] = f"input {name} ({source}) would be made again"
        return [*reasons, *inputs.values()]

    def own(self, manifest: str) -> list[str]:
        """Return how an artifact that stands differs from its plan in itself, inputs aside."""
        node = self.plan.nodes[manifest]
        reasons = [f"file {what}" for what in self.triggers.damaged(node)]
        made, seen = self._made(manifest)
        if made is None or seen is None:
            return reasons
        before = self._causes(node, made, seen)
        now = {c for c in self.triggers.of(node) if not c.startswith(("rebuilds=", "input."))}
        reasons += [f"was {gone}" for gone in sorted(before - now)]
        reasons += [f"now {new}" for new in sorted(now - before)]
        return reasons

    def inputs(self, manifest: str) -> dict[str, str]:
        """Return how the inputs of an artifact that stands differ from what it was made from."""
        made, _ = self._made(manifest)
        if made is None:
            return {}
        planned = self.plan.nodes[manifest].inputs
        reasons = {
            name: f"input {name} is {'new' if name in planned else 'gone'}"
            for name in sorted(set(made.inputs) ^ set(planned))
        }
        for name, source in planned.items():
            if not (self.root / source).is_file():
                reasons[name] = f"input {name} ({source}) does not exist"
            elif name in made.inputs:
                parent, _ = self._made(source)
                if parent is None or parent.content != made.inputs[name]["content"]:
                    reasons[name] = f"input {name} ({source}) has other content now"
        return reasons

    def _made(self, manifest: str) -> tuple[Manifest | None, Mapping[str, Any] | None]:
        """Return what an artifact's two records say; None for one that cannot be believed."""
        path = self.root / manifest
        seen = read_provenance(path.parent)
        try:
            return read_manifest(path, verify=False), seen
        except ArtifactError:
            return None, seen

    def _causes(self, node: Node, made: Manifest, seen: Mapping[str, Any]) -> set[str]:
        """Return the causes an artifact was made from, as its manifest and provenance say."""
        settings = {
            f"spec.{key}={json.dumps(value, sort_keys=True, ensure_ascii=False)}"
            for key, value in leaves(made.spec)
        }
        versions = {name.lower(): public_version(v) for name, v in seen["libraries"].items()}
        libraries = {
            f"{name}=={versions.get(name, UNPINNED) if name in self.triggers.pins else UNPINNED}"
            for name in STAGES[node.stage].libraries_of(node.spec)
        }
        listed = {seen["listing"]} if seen.get("listing") else set()
        return settings | set(self.triggers.code_causes(seen["code_files"])) | libraries | listed
