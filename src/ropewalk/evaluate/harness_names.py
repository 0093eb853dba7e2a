"""Benchmarks as the papers call them, and what stands for each in lm-evaluation-harness.

PI (arXiv 2306.15595, table 5) names no harness. PoSE (arXiv 2309.10400, table 3) used one of 2023
in fp16, whose prompts and data differ in places: compare such numbers within our own runs.
"""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One benchmark of a paper."""

    task: str  # of the harness, or of `harness_tasks`
    folder: str | None  # of its file below the harness's tasks; None: ours
    metric: str  # that the papers report
    note: str = ""  # in what it may differ from the paper's, for the report


NAMES: Mapping[str, Benchmark] = {
    "BoolQ": Benchmark(task="boolq", folder="super_glue/boolq", metric="acc"),
    "PIQA": Benchmark(task="piqa", folder="piqa", metric="acc"),
    "WinoGrande": Benchmark(task="winogrande", folder="winogrande", metric="acc"),
    "RACE-M": Benchmark(
        task="race_middle",
        folder=None,
        metric="acc",
        note="the harness has no RACE-middle: a task of our own; PI does not give its prompt",
    ),
    "RACE-H": Benchmark(
        task="race_high",
        folder=None,
        metric="acc",
        note="all questions, as for RACE-M: the harness's `race` asks one of each article; "
        "PI does not give its prompt",
    ),
    "TruthfulQA": Benchmark(
        task="truthfulqa_mc2",
        folder="truthfulqa",
        metric="acc",
        note="PoSE: mc2 of the `truthfulqa_mc` of 2023; 0 shots, as the prompt has its own six",
    ),
    "ARC-C": Benchmark(
        task="arc_challenge", folder="arc", metric="acc_norm", note="PoSE: 25 shots"
    ),
    "HellaSwag": Benchmark(
        task="hellaswag",
        folder="hellaswag",
        metric="acc_norm",
        note="PoSE: 10 shots, in the harness of 2023, whose numbers need not match",
    ),
}
