"""What Snakemake cannot see: artifacts made otherwise than planned that it would leave alone.

Snakemake compares params with its own record of the last job, which is absent after
`.snakemake/metadata` was removed, results were copied from elsewhere, or a stage was run by hand.
Each artifact records what it was made from, so the plan compares these records itself.
"""

import base64
import json
import os
from pathlib import Path

from ropewalk.base.spec import SpecError
from ropewalk.study.plan import Plan
from ropewalk.study.triggers import Triggers
from ropewalk.study.why import Why

METADATA = Path(".snakemake") / "metadata"
_SHOWN = 3  # differences per artifact in the message


def recorded_params(root: Path, output: str) -> set[str] | None:
    """Return the params (as `repr`) of Snakemake's record of an output, or None without one.

    The record of `output` lies in `.snakemake/metadata`, named by the URL-safe base64 of the path,
    cut where a file system limits the length of names.
    """
    folder = root / METADATA
    if not folder.is_dir():
        return None
    name = base64.urlsafe_b64encode(output.encode()).decode()
    longest = os.pathconf(folder, "PC_NAME_MAX") - 1
    parts = [name[i : i + longest] for i in range(0, len(name), longest)]
    try:
        text = folder.joinpath(*(f"@{part}" for part in parts[:-1]), parts[-1]).read_text()
        return set(json.loads(text)["params"])
    except (OSError, ValueError, KeyError, TypeError):  # Snakemake ignores a broken record as well
        return None


class Unseen:
    """Artifacts of a plan that differ from it and that Snakemake would not make again."""

    def __init__(self, plan: Plan, triggers: Triggers, root: Path) -> None:
        self.plan = plan
        self.triggers = triggers
        self.root = root
        self._why = Why(plan, triggers, root)
        self._again: dict[str, bool] = {}
        self._found: dict[str, list[str]] = {}

    def refuse(self) -> None:
        """Stop before anything stale is taken for fresh.

        Raises:
            SpecError: naming the artifacts, how they differ, and the remedy.
        """
        found = self.find()
        if not found:
            return
        lines = []
        for manifest, reasons in found.items():
            more = f"; {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else ""
            lines.append(f"  {Path(manifest).parent}: {'; '.join(reasons[:_SHOWN])}{more}")
        raise SpecError(
            "these results were made otherwise than planned, and Snakemake has no record by which "
            "it would make them again:\n"
            + "\n".join(lines)
            + "\nDelete their manifests, and the stages will do again what really differs "
            f"(`ropewalk why all` lists every difference):\n  rm {' '.join(found)}"
        )

    def find(self) -> dict[str, list[str]]:
        """Return manifest -> differences; what follows from one of them is left out."""
        for manifest in self.plan.manifests():
            self._made_again(manifest)
        return dict(sorted(self._found.items()))

    def _made_again(self, manifest: str) -> bool:
        """Return whether Snakemake makes an artifact again, or would once the findings are gone."""
        if manifest not in self._again:
            self._again[manifest] = self._decide(manifest)
        return self._again[manifest]

    def _decide(self, manifest: str) -> bool:
        node, path = self.plan.nodes[manifest], self.root / manifest
        if any(self._made_again(source) for source in node.inputs.values()):
            return True
        if not path.is_file():
            return True
        recorded = recorded_params(self.root, manifest)
        if recorded is not None and recorded != {repr(c) for c in ("", *self.triggers.of(node))}:
            return True
        made = path.stat().st_mtime_ns
        newer = {
            name
            for name, source in node.inputs.items()
            if (self.root / source).stat().st_mtime_ns > made
        }
        if newer and recorded is None:
            return True
        reasons = self._why.own(manifest)
        inputs = self._why.inputs(manifest)
        reasons += [reason for name, reason in inputs.items() if name not in newer]
        if reasons:
            self._found[manifest] = reasons
        return bool(reasons or inputs)
