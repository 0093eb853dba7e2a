"""The stage registry: the one place that says what a stage is.

Rule params, output paths, environments, resource classes, the profile check and the table in the
documentation are all derived from it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

from ropewalk.data.spec import GatherJob, InventoryJob, PackJob, TokenizeJob, TokenizerJob
from ropewalk.evaluate.spec import CheckJob, EvaluateJob, check_module, protocol_module
from ropewalk.report.spec import JudgeJob, ReportJob
from ropewalk.train.spec import CalibrateJob, TrainJob

Family = Literal["data", "train", "evaluate", "report"]
ResourceClass = Literal["cpu_small", "cpu_large", "accelerator"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of the workflow."""

    name: str  # also the rule's name and the command's name
    entry: str  # module with `work(job)`
    spec: type
    family: Family  # environment: envs/<family>.yaml
    resource_class: ResourceClass
    folder: str  # of its artifact below `results`, wildcards in braces
    libraries: tuple[str, ...]  # whose pinned versions its numbers depend on
    summary: str
    chosen: Callable[[Any], str] | None = None
    # spec -> the module that does the work where kinds of it share a stage: what belongs to one
    # kind alone must not make the others rerun
    chosen_libraries: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    # such a module -> the libraries that its work alone depends on

    def libraries_of(self, spec: Any) -> tuple[str, ...]:
        """Return the libraries that the numbers of this stage with a spec depend on."""
        more = () if self.chosen is None else self.chosen_libraries.get(self.chosen(spec), ())
        return (*self.libraries, *more)

    def modules(self, spec: Any) -> tuple[str, ...]:
        """Return the modules whose imports are the code of this stage with a spec."""
        return (self.entry,) if self.chosen is None else (self.entry, self.chosen(spec))


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            name="inventory",
            entry="ropewalk.data.inventory",
            spec=InventoryJob,
            family="data",
            resource_class="cpu_small",
            folder="data/inventories/{source}",
            libraries=("numpy",),
            summary="List the files of a source with size and sha256.",
        ),
        Stage(
            name="tokenizer",
            entry="ropewalk.data.tokenizer",
            spec=TokenizerJob,
            family="data",
            resource_class="cpu_small",
            folder="data/tokenizers/{tokenizer}",
            libraries=("gigatoken", "sentencepiece", "tokenizers"),
            summary="Train a tokenizer on a corpus, or import one.",
        ),
        Stage(
            name="tokenize",
            entry="ropewalk.data.tokenize",
            spec=TokenizeJob,
            family="data",
            resource_class="cpu_large",
            folder="data/tokens/{corpus}/{tokenizer}/parts/{part}",
            libraries=("gigatoken", "numpy", "orjson", "pyarrow", "tokenizers"),
            summary="Turn a part of a corpus into tokens in Arrow shards.",
        ),
        Stage(
            name="gather",
            entry="ropewalk.data.gather",
            spec=GatherJob,
            family="data",
            resource_class="cpu_small",
            folder="data/tokens/{corpus}/{tokenizer}",
            libraries=(),
            summary="Put the parts of a corpus together as its tokens.",
        ),
        Stage(
            name="pack",
            entry="ropewalk.data.pack",
            spec=PackJob,
            family="data",
            resource_class="cpu_small",
            folder="data/windows/{windows}/{length}",
            libraries=("numpy", "pyarrow"),
            summary="Cut training windows of one length from tokens, as an index.",
        ),
        Stage(
            name="calibrate",
            entry="ropewalk.train.calibrate",
            spec=CalibrateJob,
            family="train",
            resource_class="accelerator",
            folder="{name}/calibrations/{study}/{calibration}",
            libraries=("numpy", "torch", "transformers"),
            summary="Measure seconds and memory of a model's training steps, once.",
        ),
        Stage(
            name="train",
            entry="ropewalk.train.stage",
            spec=TrainJob,
            family="train",
            resource_class="accelerator",
            folder="{name}/runs/{study}/{run}",
            libraries=("numpy", "pyarrow", "safetensors", "torch", "transformers"),
            summary="Train one run over its phases, or adopt published weights.",
        ),
        Stage(
            name="evaluate",
            entry="ropewalk.evaluate.stage",
            spec=EvaluateJob,
            family="evaluate",
            resource_class="accelerator",
            folder="{name}/evaluations/{study}/{evaluation}/{run_study}/{run}",
            libraries=("numpy", "pyarrow", "safetensors", "tokenizers", "torch", "transformers"),
            summary="Apply one protocol to one run, at its final weights and snapshots.",
            chosen=lambda spec: protocol_module(spec.protocol),
            chosen_libraries={
                "ropewalk.evaluate.harness": ("datasets", "lm-eval"),
                "ropewalk.evaluate.summaries": ("rouge-score",),
            },
        ),
        Stage(
            name="check",
            entry="ropewalk.evaluate.check",
            spec=CheckJob,
            family="evaluate",
            resource_class="cpu_small",
            folder="{name}/checks/{study}/{check}",
            libraries=("numpy",),
            summary="Check a statement of theory exactly, without a model.",
            chosen=lambda spec: check_module(spec.check),
        ),
        Stage(
            name="judge",
            entry="ropewalk.report.judge",
            spec=JudgeJob,
            family="report",
            resource_class="cpu_small",
            folder="{name}/judged/{study}",
            libraries=("numpy",),
            summary="Decide the claims of a study from what was measured.",
        ),
        Stage(
            name="report",
            entry="ropewalk.report.stage",
            spec=ReportJob,
            family="report",
            resource_class="cpu_small",
            folder="{name}/report",
            libraries=("jinja2", "matplotlib"),
            summary="Write the pages and report.json from the judged studies.",
        ),
    )
}


def folder(stage: str, results: str, **wildcards: str) -> str:
    """Return the folder of an artifact: `folder("pack", "results", windows="w", length="256")`."""
    return f"{results}/{STAGES[stage].folder.format_map(wildcards)}"
