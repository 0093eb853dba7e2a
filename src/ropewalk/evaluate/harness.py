"""Tasks of lm-evaluation-harness, in process, with a model as it is read here.

The harness makes prompts, and scores from log-likelihoods and answers; `harness_model` gives it
those. Its own traps are closed: nothing is cached but data sets, its warnings are errors, it writes
no results, and random states that it sets are put back. It is an extra: it is imported when a task
is run and not before.
"""

import contextlib
import hashlib
import logging
import math
import os
import random
from collections.abc import Iterator, Mapping, Sequence, Set
from importlib import metadata
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ropewalk.base.stage import StageError
from ropewalk.data.encoding import LoadedTokenizer
from ropewalk.evaluate.harness_names import NAMES, Benchmark
from ropewalk.evaluate.spec import Harness
from ropewalk.model.reader import Reader

DATA_FILES = ("harness_tasks/race_high.yaml", "harness_tasks/race_middle.yaml")
OWN_TASKS = Path(__file__).parent / "harness_tasks"
# Metrics whose items are (log-likelihood, words or bytes of the document).
PER_UNIT = ("word_perplexity", "byte_perplexity", "bits_per_byte")
# Warnings that a task file leaves something to a default; they are recorded.
_HARMLESS = (
    "is defined, but aggregation is not",
    "is defined, but higher_is_better is not",
    "using preconfigured rule",  # for where examples come from
)

Json = dict[str, Any]


def run(
    protocol: Harness,
    reader: Reader,
    tokenizer: LoadedTokenizer,
    *,
    seed: int,
    work_folder: Path,
    sequences: int = 8,
) -> Json:
    """Return the snapshot of one model: a cell per task, counted outcomes, what it was made with.

    A cell has the `scores` of its documents in `metric`, the paper's or else the first of the task,
    and their `mean`, weighted by `weights` where there are any. `value` is what the harness prints:
    the mean, but for perplexities, whose scores are nats (per word or byte, where it weighs so).
    `metrics` are all numbers of the harness for the task (null: not finite), `task_hash` is of
    documents, prompts and targets, as it computes it, `stderr` the standard error of an unweighted
    mean.

    Data sets are kept where HF_DATASETS_CACHE or HF_HOME say, else in
    `work_folder`. Texts that are read together, `sequences` at most, are of one length.

    Raises:
        StageError: without the harness, for an unknown task, a data set that is not there, a
            warning of the harness, or an outcome the protocol does not allow.
    """
    try:
        from lm_eval.evaluator import evaluate

        from ropewalk.evaluate.harness_model import Bridge
    except ImportError as error:
        raise StageError(
            f"protocol harness needs lm-evaluation-harness, which cannot be imported ({error}): "
            'pip install "ropewalk[harness]"'
        ) from None

    bridge = Bridge(
        reader,
        tokenizer,
        seed=seed,
        sequences=sequences,
        context_tokens=protocol.context_tokens,
        allow=protocol.allow,
    )
    with _warnings() as warnings, _random_states(seed), _data_sets(work_folder):
        asked = _load(protocol)
        tasks = {task.task_name: task for found in asked.values() for task in found}
        for task in tasks.values():
            _set_shots(task, protocol.shots, seed)
        _refuse(warnings)
        results = evaluate(
            bridge, {"tasks": tasks}, limit=protocol.limit, bootstrap_iters=0, log_samples=True
        )
        noted = _refuse(warnings)
        cells = {
            name if len(found) == 1 else task.task_name: _cell(
                task, results, NAMES.get(name), protocol.shots
            )
            for name, found in asked.items()
            for task in found
        }
    return {
        "cells": cells,
        "outcomes": {
            "sequences": bridge.requests,
            "scored_tokens": bridge.scored_tokens,
            **bridge.counts,
        },
        "context_tokens": bridge.context_tokens,
        "harness": metadata.version("lm_eval"),
        "warnings": noted,
    }


# Tasks.


def _load(protocol: Harness) -> dict[str, list[Any]]:
    """Return the tasks that every name of the protocol stands for: one, or those of a group."""
    folders = [OWN_TASKS]
    if protocol.folder is not None:
        folders.append(Path(protocol.folder))
        if not folders[-1].is_dir():
            raise StageError(f"protocol.folder: {protocol.folder} is no folder of task files")
    names = {name: NAMES[name].task if name in NAMES else name for name in protocol.tasks}
    manager = _manager(folders, set(names.values()))
    found = {}
    owners: dict[str, str] = {}
    for name, task in names.items():
        found[name] = _build(manager, task)
        for built in found[name]:
            other = owners.setdefault(built.task_name, name)
            if other != name:
                raise StageError(
                    f"protocol.tasks: {other!r} and {name!r} both run the task "
                    f"{built.task_name!r}: name it once"
                )
    return found


def _manager(folders: Sequence[Path], names: Set[str]) -> Any:
    """Return an index of task files with these names; of all the harness has only where needed.

    It has 14,000, which take seconds to read; those of the papers are looked for where they are.
    """
    from lm_eval import tasks

    known = [b.folder for b in NAMES.values() if b.folder is not None and b.task in names]
    places = [*(Path(tasks.__file__).parent / folder for folder in known), *folders]
    manager = tasks.TaskManager(include_path=places, include_defaults=False)
    if not names <= set(manager.all_tasks):
        manager = tasks.TaskManager(include_path=list(folders), include_defaults=True)
    if unknown := sorted(names - set(manager.all_tasks)):
        raise StageError(
            f"protocol.tasks: {unknown[0]!r} is no task: not of the papers ({', '.join(NAMES)}), "
            f"nor of a file that can be read in {' or '.join(map(str, folders))}, nor of "
            f"lm-evaluation-harness {metadata.version('lm_eval')}"
        )
    return manager


def _build(manager: Any, name: str) -> list[Any]:
    try:
        return list(manager.load([name])["tasks"].values())
    except (OSError, ValueError, RuntimeError) as error:
        # A data set that is not there is any of these, by its kind and by how the network fails.
        config = manager.task_index[name].cfg or {}
        files = (config.get("dataset_kwargs") or {}).get("data_files")
        named = [config[key] for key in ("dataset_path", "dataset_name") if config.get(key)]
        remedy = (
            f"dataset_kwargs.data_files must name files that exist (seen from {Path.cwd()})"
            if files
            else f"to have the data set {' '.join(named) or 'it needs'} without a network, run "
            'where there is one: HF_DATASETS_CACHE=FOLDER python -c "import datasets; '
            f'datasets.load_dataset({", ".join(map(repr, named))})", and set HF_DATASETS_CACHE to '
            "that folder here"
        )
        raise StageError(
            f"task {name!r} cannot be loaded: {type(error).__name__}: {error}: {remedy}"
        ) from error


def _set_shots(task: Any, shots: int, seed: int) -> None:
    own = task.get_config("num_fewshot")
    if own == 0 and shots:
        raise StageError(
            f"protocol.shots: {shots}, but task {task.task_name!r} is one of 0 shots by its own "
            "file: set shots to 0, or leave the task to another evaluation"
        )
    if shots and _asks_its_examples(task):
        raise StageError(
            f"protocol.shots: {shots}, but task {task.task_name!r} draws examples from the "
            "documents it asks, the one it asks included: give its file a training_split"
        )
    task.set_config("num_fewshot", shots)
    task.set_fewshot_seed(seed)


def _asks_its_examples(task: Any) -> bool:
    """Return whether a document may be an example for itself.

    The harness takes examples from `fewshot_split`, else from the first there is of training,
    validation and test documents. It leaves out the one it asks only where `fewshot_split` is what
    `test_split` is, a name or nothing.
    """
    from lm_eval.api.task import ConfigurableTask

    if not isinstance(task, ConfigurableTask):
        return False
    config, split = task.config, task.fewshot_cfg.split
    if split is None and task.fewshot_cfg.samples is not None:
        return False
    drawn = split or config.training_split or config.validation_split or config.test_split
    return drawn == (config.test_split or config.validation_split) and split != config.test_split


# Results.


def _cell(task: Any, results: Any, benchmark: Benchmark | None, shots: int) -> Json:
    name = task.task_name
    samples = results["samples"][name]
    numbers = results["results"][name]
    # In the order of the task's file; results come in another.
    printed = {
        key: numbers[key]
        for metric in task.aggregation()
        for key in numbers
        if key.rpartition(",")[0] == metric
    }
    key, found = _chosen(name, benchmark, printed, samples)
    metric = key.rpartition(",")[0]
    weights = None
    if metric in PER_UNIT:
        weights = [float(units) for _, units in found]
        found = [nats / units if units else 0.0 for nats, units in found]
    sign = -1.0 if metric in (*PER_UNIT, "perplexity") else 1.0
    unit = math.log(2) if metric == "bits_per_byte" else 1.0
    scores = [sign * float(score) / unit for score in found]
    if broken := [number for number, score in enumerate(scores) if not math.isfinite(score)]:
        raise StageError(
            f"task {name!r}: the {metric} of {len(broken)} documents is not finite, the first is "
            f"number {broken[0]}: a task must give a number for each"
        )
    cell: Json = {
        "task": name,
        "metric": metric,
        "scores": scores,
        "mean": float(np.average(scores, weights=weights)),
        "value": _or_none(printed[key]),
        "stderr": _standard_error(scores) if weights is None else None,
        "documents": len(scores),
        "shots": shots,
        "version": str(results["versions"][name]),
        "task_hash": _task_hash(samples),
        "metrics": {key: _or_none(number) for key, number in printed.items()},
    }
    if weights is not None:
        cell["weights"] = weights
    if benchmark is not None and benchmark.note:
        cell["note"] = benchmark.note
    return cell


def _chosen(
    task: str, benchmark: Benchmark | None, printed: Mapping[str, Any], samples: Sequence[Json]
) -> tuple[str, list[Any]]:
    """Return the key of the metric that makes the cell (`acc,none`) and its item per document.

    It is the paper's, or the first that has a number for every document: an F1 has none.
    """
    for key in printed:
        metric, _, way = key.rpartition(",")
        items = [sample.get(metric) for sample in samples if sample["filter"] == way]
        if benchmark is not None:
            chosen = metric == benchmark.metric
        else:
            chosen = metric in PER_UNIT or all(isinstance(item, Real) for item in items)
        if chosen:
            return key, items
    raise StageError(
        f"task {task!r} has no metric with a number for every document, only {', '.join(printed)}"
    )


def _or_none(number: Any) -> Any:
    """Return a number of the harness, None for one that JSON cannot hold."""
    return None if isinstance(number, float) and not math.isfinite(number) else number


def _standard_error(scores: Sequence[float]) -> float | None:
    if len(scores) < 2:
        return None
    return float(np.std(scores, ddof=1)) / math.sqrt(len(scores))


def _task_hash(samples: Sequence[Json]) -> str:
    hashes = ("doc_hash", "prompt_hash", "target_hash")
    joined = "".join(sample[name] for sample in samples for name in hashes)
    return hashlib.sha256(joined.encode()).hexdigest()


# What the harness and `datasets` do beside, kept from the rest of the process.


class _Collected(logging.Handler):
    """Keeps the texts of warnings and errors."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the text of a record."""
        self.texts.append(record.getMessage())


@contextlib.contextmanager
def _warnings() -> Iterator[list[str]]:
    """Yield the list that the harness's warnings are collected in, shown or not."""
    logger = logging.getLogger("lm_eval")
    level, collected = logger.level, _Collected()
    logger.addHandler(collected)
    logger.setLevel(min(logger.getEffectiveLevel(), logging.WARNING))
    try:
        yield collected.texts
    finally:
        logger.setLevel(level)
        logger.removeHandler(collected)


def _refuse(warnings: Sequence[str]) -> list[str]:
    """Return the harmless ones of what was warned of.

    Raises:
        StageError: for any other: the harness would go on and leave a number that is not meant.
    """
    for text in warnings:
        if not any(harmless in text for harmless in _HARMLESS):
            raise StageError(f"lm-evaluation-harness warns: {text}")
    return list(warnings)


@contextlib.contextmanager
def _random_states(seed: int) -> Iterator[None]:
    """Seed what task files may draw from, and put it back as it was."""
    before = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(seed)
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


@contextlib.contextmanager
def _data_sets(work_folder: Path) -> Iterator[None]:
    """Have `datasets` keep its files in `work_folder`, where the user has named no place for them.

    A task gives no cache folder to `datasets`, whose settings are the one way to set it.
    """
    from datasets import config

    if os.environ.get("HF_DATASETS_CACHE") or os.environ.get("HF_HOME"):
        yield
        return
    cache = work_folder.absolute() / "datasets"
    settings = {
        "HF_DATASETS_CACHE": cache,
        "DOWNLOADED_DATASETS_PATH": cache / "downloads",
        "EXTRACTED_DATASETS_PATH": cache / "downloads" / "extracted",
    }
    before = {name: getattr(config, name) for name in settings}
    try:
        for name, value in settings.items():
            setattr(config, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)
