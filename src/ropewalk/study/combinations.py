"""Combinations of settings that could only fail later, on the cluster, or train one run twice."""

from collections.abc import Mapping
from typing import Any

from ropewalk.base.canonical import digest, plain
from ropewalk.study.load import Problems
from ropewalk.train.spec import Run


def check_run(
    where: str, run: Run, definitions: Mapping[str, Mapping[str, Any]], problems: Problems
) -> None:
    """Add a problem for every setting of a run that does not fit another one of its settings."""
    tokenizer = definitions["tokenizers"].get(run.tokenizer)
    if tokenizer and (tokenizer.vocabulary_size or 0) > run.architecture.vocabulary_size:
        problems.add(
            f"{where}: tokenizer {run.tokenizer!r} has {tokenizer.vocabulary_size} tokens, the "
            f"model's vocabulary_size is {run.architecture.vocabulary_size}"
        )
    hardware = run.hardware
    if hardware.processes < 1 or hardware.nodes < 1 or hardware.processes % hardware.nodes:
        problems.add(
            f"{where}.hardware: processes {hardware.processes} are not divisible by nodes "
            f"{hardware.nodes}; both must be at least 1"
        )
    for index, phase in enumerate(run.phases):
        place = f"{where}.phases.{index}"
        windows = definitions["windows"].get(phase.windows)
        if windows and windows.tokenizer != run.tokenizer:
            problems.add(
                f"{place}.windows: {phase.windows!r} are tokens of {windows.tokenizer!r}, the "
                f"model reads {run.tokenizer!r}"
            )
        sequences = run.batch.sequences if run.batch else None
        if run.batch and run.batch.tokens:
            sequences = run.batch.tokens // phase.length_tokens
        if sequences and hardware.processes > 0 and sequences % hardware.processes:
            problems.add(
                f"{place}: {sequences} sequences per step are not divisible by "
                f"hardware.processes {hardware.processes}"
            )


def check_twins(runs: Mapping[str, Run | None], problems: Problems) -> None:
    """Add a problem for two names of one training: it would be done twice and counted twice."""
    first: dict[str, str] = {}
    for name, run in sorted(runs.items()):
        if run is None:
            continue
        twin = first.setdefault(digest(plain(run, identity=True)), name)
        if twin != name:
            problems.add(
                f"runs {twin!r} and {name!r} have the same settings; keep one of them (an alias "
                "can give it a second name)"
            )
