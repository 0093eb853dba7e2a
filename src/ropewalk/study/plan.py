"""The plan: which artifacts a configuration needs, from what, and with which spec.

It is the only seam between the workflow and the library. Planning reads `config.yaml` and
`papers/`, never data: a plan of the paper scale can be made on a laptop with nothing downloaded.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ropewalk.base.canonical import canonical_json, plain
from ropewalk.base.manifest import MANIFEST
from ropewalk.evaluate.spec import Evaluation
from ropewalk.study.accepted import ACCEPTED, read_accepted
from ropewalk.study.config import Config, read_config
from ropewalk.study.data_nodes import Node
from ropewalk.study.load import SHARED, load_studies
from ropewalk.study.nodes import Builder
from ropewalk.study.registry import STAGES, folder
from ropewalk.study.schema import Model
from ropewalk.train.spec import Run


class Plan:
    """Every node a configuration needs, keyed by the path of the manifest it leaves."""

    def __init__(self, config: Config, builder: Builder) -> None:
        self.config = config
        self.studies = builder.studies
        self.report = builder.report()
        self._builder = builder
        builder.problems.check()
        self.nodes: Mapping[str, Node] = builder.nodes
        self._by_wildcards = {
            (node.stage, tuple(sorted(node.wildcards.items()))): node
            for node in self.nodes.values()
        }

    @classmethod
    def load(cls, config: Mapping[str, Any], root: Path) -> "Plan":
        """Return the plan of a configuration (plain data) for the project in `root`.

        Raises:
            SpecError: with every problem found, each naming file, key, value and what is allowed.
        """
        parsed = read_config(config)
        studies = load_studies(parsed, root)
        accepted = read_accepted(root / ACCEPTED)
        return cls(parsed, Builder(parsed, studies, accepted))

    @property
    def study_names(self) -> tuple[str, ...]:
        """Return the chosen studies, without the shared definitions."""
        return tuple(name for name in self.studies if name != SHARED)

    def node(self, stage: str, wildcards: Mapping[str, str]) -> Node:
        """Return the node of a stage by its wildcards.

        Raises:
            KeyError: if the configuration has no such artifact.
        """
        key = (stage, tuple(sorted((k, str(v)) for k, v in wildcards.items())))
        if key not in self._by_wildcards:
            raise KeyError(f"the plan has no {stage} for {dict(wildcards)}")
        return self._by_wildcards[key]

    def pattern(self, stage: str) -> str:
        """Return the manifest path of a stage with Snakemake's wildcards in it."""
        fixed = STAGES[stage].folder.replace("{name}", self.config.run_name)
        return f"{self.config.results}/{fixed}/{MANIFEST}"

    def wildcards(self, stage: str, given: Mapping[str, str]) -> dict[str, str]:
        """Return Snakemake's wildcards completed with the name of this reproduction."""
        full = dict(given)
        if "{name}" in STAGES[stage].folder:
            full["name"] = self.config.run_name
        return full

    def of_stage(self, stage: str) -> list[Node]:
        """Return the nodes of one stage, ordered by path."""
        return [node for _, node in sorted(self.nodes.items()) if node.stage == stage]

    def manifests(self, study: str | None = None) -> list[str]:
        """Return every manifest needed, or those below one study's verdicts.

        They are all targets, because Snakemake does not miss a deleted intermediate otherwise.
        """
        if study is None:
            return sorted(self.nodes)
        top = folder("judge", self.config.results, name=self.config.run_name, study=study)
        pending, found = [f"{top}/{MANIFEST}"], set()
        while pending:
            path = pending.pop()
            if path not in found:
                found.add(path)
                pending.extend(self.nodes[path].inputs.values())
        return sorted(found)

    def spec_json(self, node: Node) -> str:
        """Return a node's spec as the JSON its stage is given, execution fields included."""
        return canonical_json(plain(node.spec))

    def run(self, name: str) -> Run:
        """Return a resolved run by its full name `study/run`; an unknown name is a KeyError."""
        if name not in self._builder.run_names():
            raise KeyError(f"there is no run {name!r}")
        run = self._builder.resolved(name, "run")
        self._builder.problems.check()
        assert run is not None  # else there was a problem
        return run

    def model(self, name: str) -> Model:
        """Return a model by name; an unknown name is a KeyError."""
        model: Model = self._builder.definitions["models"][name]
        return model

    def evaluation(self, study: str, name: str, run: str) -> Evaluation:
        """Return an evaluation as it applies to one run."""
        return self._builder.evaluation_of(self.studies[study], name, run)

    def evaluated(self, study: str, name: str) -> list[str]:
        """Return the runs, `study/run`, that an evaluation applies to."""
        return self._builder.evaluated(self.studies[study], name)

    def overriding(self, study: str, name: str, run: str) -> list[str]:
        """Return the names of the overrides that change an evaluation for one run, in order."""
        return self._builder.overriding(self.studies[study], name, run)
