"""Why an artifact would be made again: what it was made from against what is there now."""

import json
from pathlib import Path
from typing import Any

from ropewalk.base.canonical import leaves
from ropewalk.base.manifest import PROVENANCE
from ropewalk.base.spec import SpecError, suggestion
from ropewalk.study.plan import Plan
from ropewalk.study.registry import STAGES
from ropewalk.study.triggers import Triggers


def select(plan: Plan, target: str) -> list[str]:
    """Return the manifests a target means: a manifest, a folder above some, a study, or `all`.

    Raises:
        SpecError: if the plan has nothing of this name.
    """
    if target == "all":
        return plan.manifests()
    if target in plan.study_names:
        return plan.manifests(target)
    prefix = target.rstrip("/")
    found = [m for m in plan.manifests() if m == prefix or m.startswith(f"{prefix}/")]
    if not found:
        known = [*plan.study_names, *plan.manifests()]
        raise SpecError(f"target {target!r} is not in the plan; {suggestion(target, known)}")
    return found


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
        node = self.plan.nodes[manifest]
        path = self.root / manifest
        if not path.is_file():
            return ["has not been made yet"]
        record = path.parent / PROVENANCE
        if not record.is_file():
            return ["has no provenance.json: it was not made by this workflow"]
        made, seen = _read(path), _read(record)
        reasons = [f"file {what}" for what in self.triggers.damaged(node)]
        before = self._causes(node.stage, made, seen)
        now = {
            c for c in self.triggers.of(node) if not c.startswith(("rebuilds=", "input.", "files="))
        }
        reasons += [f"was {gone}" for gone in sorted(before - now)]
        reasons += [f"now {new}" for new in sorted(now - before)]
        for name in sorted(set(made["inputs"]) ^ set(node.inputs)):
            reasons.append(f"input {name} is {'new' if name in node.inputs else 'gone'}")
        for name, source in node.inputs.items():
            parent = self.root / source
            if not parent.is_file():
                reasons.append(f"input {name} ({source}) does not exist")
            elif name in made["inputs"] and made["inputs"][name]["content"] != _read(parent).get(
                "content"
            ):
                reasons.append(f"input {name} ({source}) has other content now")
            elif self.explain(source):
                reasons.append(f"input {name} ({source}) would be made again")
        return reasons

    def _causes(self, stage: str, made: dict[str, Any], seen: dict[str, Any]) -> set[str]:
        """Return the causes an artifact was made from, as its manifest and provenance say."""
        settings = {
            f"spec.{key}={json.dumps(value, sort_keys=True, ensure_ascii=False)}"
            for key, value in leaves(made["spec"])
        }
        code = {
            f"{file}@{self.triggers.canonical(file, found)}"
            for file, found in seen["code_files"].items()
        }
        versions = {name.lower(): version for name, version in seen["libraries"].items()}
        libraries = {
            f"{name}=={versions.get(name, '').partition('+')[0] or 'unpinned'}"
            for name in STAGES[stage].libraries
        }
        return settings | code | libraries


def _read(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return data
