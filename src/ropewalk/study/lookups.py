"""What the rules ask of the plan: inputs, arguments, logs and resources by wildcards."""

import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ropewalk.base.stage import SUBMITTED_CODE
from ropewalk.study.config import check_file
from ropewalk.study.data_nodes import Node
from ropewalk.study.plan import Plan
from ropewalk.study.records import Unseen
from ropewalk.study.registry import STAGES
from ropewalk.study.triggers import UNPINNED, Triggers

# Memory in MiB and run time in minutes where a node says nothing more exact.
CLASSES: Mapping[str, Mapping[str, int]] = {
    "cpu_small": {"mem_mb": 4000, "runtime": 60},
    "cpu_large": {"mem_mb": 16000, "runtime": 720},
    "accelerator": {"mem_mb": 8000, "runtime": 720},
}
CONFIG = "config.yaml"
MEMORY_PER_GPU_MB = 100_000
GPUS_TIME_MINUTES = 2880


class Lookups:
    """One-line answers for rules; every method takes Snakemake's wildcards."""

    def __init__(self, plan: Plan, triggers: Triggers) -> None:
        self.plan = plan
        self.triggers = triggers

    @classmethod
    def load(cls, config: Mapping[str, Any], root: Path) -> "Lookups":
        """Return the lookups for a configuration; SpecError lists everything wrong with it."""
        check_file(root / CONFIG)  # Snakemake lets the last of two equal keys win silently
        plan = Plan.load(config, root)
        return cls(plan, Triggers(plan, root))

    def prepare_jobs(self) -> None:
        """Set what jobs inherit: the `ropewalk` beside this Python, and the code they must run.

        The first parse freezes the code digests; a job that starts later and finds other code
        refuses. It is also the one that plans, so it looks for results that Snakemake would wrongly
        leave as they are; jobs parse again while others write.

        Raises:
            SpecError: if there are such results.
        """
        if SUBMITTED_CODE not in os.environ:
            Unseen(self.plan, self.triggers, self.triggers.root).refuse()
        beside = str(Path(sys.executable).parent)
        os.environ["PATH"] = f"{beside}{os.pathsep}{os.environ.get('PATH', '')}"
        os.environ.setdefault(SUBMITTED_CODE, self.triggers.submitted())

    def _node(self, stage: str, wildcards: Any) -> Node:
        return self.plan.node(stage, self.plan.wildcards(stage, dict(wildcards.items())))

    def inputs(self, stage: str, wildcards: Any) -> list[str]:
        """Return the manifests a stage reads."""
        return sorted(set(self._node(stage, wildcards).inputs.values()))

    def arguments(self, stage: str, wildcards: Any) -> str:
        """Return the command line after the stage's name, quoted for the shell.

        It holds what the plan compared as well: pins, accepted code, the listing of a source.
        """
        node = self._node(stage, wildcards)
        words = ["--spec", self.plan.spec_json(node), "--out", str(Path(node.manifest).parent)]
        for name, path in node.inputs.items():
            words += ["--input", f"{name}={path}"]
        for library in self.triggers.libraries(node):
            if not library.endswith(f"=={UNPINNED}"):
                words += ["--library", library]
        for accepted in self.triggers.accepted_of(node):
            words += ["--accept", accepted]
        source = self.triggers.source(node)
        if source:
            words += ["--listing", source]
        rebuilds = self.triggers.rebuilds(node)
        if rebuilds:
            words += ["--rebuilds", str(rebuilds)]
        return shlex.join(words)

    def wildcards(self) -> dict[str, str]:
        """Return what each wildcard may be: one folder, for parts lie below the tokens they are of.

        Snakemake lets a wildcard span folders otherwise.
        """
        folders = " ".join(stage.folder for stage in STAGES.values())
        return dict.fromkeys(re.findall(r"{(\w+)}", folders), "[^/]+")

    def log(self, stage: str) -> str:
        """Return the log pattern of a stage: beside the results, by stage and wildcards."""
        where = STAGES[stage].folder.replace("{name}", self.plan.config.run_name)
        return f"{self.plan.config.results}/logs/{where}/{stage}.log"

    def resources(self, stage: str) -> dict[str, Callable[[Any], int | str]]:
        """Return resource functions: memory, time and, for GPUs, their number, type and nodes."""
        kind = STAGES[stage].resource_class
        names = ["mem_mb", "runtime"]
        if kind == "accelerator":
            names += ["nodes", "gpus", "device"]
        return {name: self._resource(stage, name) for name in names}

    def _resource(self, stage: str, name: str) -> Callable[[Any], int | str]:
        def value(wildcards: Any) -> int | str:
            return requirements(self._node(stage, wildcards))[name]

        return value


def requirements(node: Node) -> dict[str, int | str]:
    """Return what a node's job occupies: MiB per machine, minutes, machines, GPUs, device."""
    found: dict[str, int | str] = dict(CLASSES[STAGES[node.stage].resource_class])
    if STAGES[node.stage].resource_class != "accelerator":
        return found
    if node.stage == "train":
        hardware = node.spec.run.hardware
        if not node.spec.run.phases:  # adopting weights needs no GPU
            return found | {"nodes": 1, "gpus": 0, "device": "cpu"}
        device, processes, nodes = hardware.device, hardware.processes, hardware.nodes
    else:
        device, processes, nodes = node.spec.device, 1, 1
    if device == "cpu":
        return found | {"nodes": nodes, "gpus": 0, "device": device}
    found |= {"nodes": nodes, "gpus": processes, "device": device, "runtime": GPUS_TIME_MINUTES}
    return found | {"mem_mb": MEMORY_PER_GPU_MB * processes // nodes}
