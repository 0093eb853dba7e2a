"""What cannot work is refused before anything runs, by name and with a suggestion."""

from pathlib import Path
from typing import Any

import pytest
from study_samples import DEMO, SHARED, changed, plan, problems, write

SPEC = ("runs", "extend", "spec")
MIXTURE = ("windows", "plain", "mixture")

IN_DEMO: dict[str, tuple[dict[Any, Any], str]] = {
    "length does not divide the batch": (
        {(*SPEC, "batch"): {"tokens": 100}},
        "demo: runs.pi-2x: batch.tokens 100 is not divisible by the phase's length_tokens 32",
    ),
    "processes do not divide the sequences": (
        {(*SPEC, "hardware"): {"processes": 3}},
        "runs.pi-2x.phases.0: 4 sequences per step are not divisible by hardware.processes 3",
    ),
    "processes do not divide the sequences of a token batch": (
        {(*SPEC, "batch"): {"tokens": 64}, (*SPEC, "hardware"): {"processes": 4, "nodes": 2}},
        "1 sequences per step are not divisible by hardware.processes 4",
    ),
    "nodes do not divide the processes": (
        {(*SPEC, "hardware"): {"processes": 4, "nodes": 3}},
        "processes 4 are not divisible by nodes 3",
    ),
    "no process": ({(*SPEC, "hardware"): {"processes": 0}}, "both must be at least 1"),
    "no node": ({(*SPEC, "hardware"): {"nodes": 0}}, "both must be at least 1"),
    "unknown start": (
        {(*SPEC, "start"): "shared/bas"},
        "demo: runs.pi-2x.start: there is no run 'shared/bas'; did you mean 'shared/base'?",
    ),
    "a run that starts from itself": (
        {("runs", "own"): {"name": "own", "spec": {"start": "demo/own"}}},
        "'demo/own' leads back to itself: demo/own -> demo/own",
    ),
    "runs that start from each other": (
        {
            ("runs", "a"): {"name": "a", "spec": {"start": "demo/b"}},
            ("runs", "b"): {"name": "b", "spec": {"start": "demo/a"}},
        },
        "'demo/a' leads back to itself: demo/a -> demo/b -> demo/a",
    ),
    "unknown windows": (
        {(*SPEC, "phases", 0, "windows"): "plane"},
        "demo: runs.pi-2x.phases.0.windows: windows has no 'plane'; did you mean 'plain'?",
    ),
    "unknown corpus of an evaluation": (
        {("evaluations", "loss", "corpus"): "tset"},
        "demo: evaluations.loss.corpus: corpora has no 'tset'; did you mean 'test'?",
    ),
    "a pattern that matches no run": (
        {("evaluations", "loss", "runs"): ["demo/*", "demo/pj-*"]},
        "demo: evaluations.loss.runs: 'demo/pj-*' matches no run; did you mean 'demo/pi-",
    ),
    "an override for no run": (
        {("evaluations", "loss", "overrides", "longer", "runs"): ["demo/*-8x"]},
        "demo: evaluations.loss.overrides: 'demo/*-8x' matches none of its runs",
    ),
    "overrides that do not go together": (
        {
            ("evaluations", "loss", "overrides"): {
                "a": {"runs": ["demo/*"], "set": {"protocol.contexts.1x": 12}},
                "b": {"runs": ["demo/pi-*"], "set": {"protocol.scored_tokens": 14}},
            }
        },
        "demo: evaluations.loss: for 'demo/pi-2x': protocol: scored_tokens 14 must lie between",
    ),
    "unknown check": (
        {("claims", "exact", "rule", "check"): "theorie"},
        "claims.exact.rule.check: no check 'theorie'; did you mean 'theory'?",
    ),
    "unknown evaluation of a claim": (
        {("claims", "better", "rule", "ascending", 0, "evaluation"): "los"},
        "claims.better.rule: there is no evaluation 'los'; did you mean 'loss'?",
    ),
    "unknown evaluation of a table": (
        {("tables", "one", "evaluation"): "los"},
        "tables.one.evaluation: there is no evaluation 'los'; did you mean 'loss'?",
    ),
    "unknown claim to decide": (
        {("decides",): ["bettr"]},
        "decides: there is no claim 'bettr'; did you mean 'better'?",
    ),
    "a claim without rule and outcome": (
        {("claims", "better", "rule"): ...},
        "claims.better: give a rule, or an outcome that says why not",
    ),
    "a row of another width": (
        {("tables", "one", "rows", 0, "cells"): ["1"]},
        "tables.one.rows.0: 1 cells for 2 columns",
    ),
    "two names for one recipe": (
        {("runs", "extend", "axes", "length"): ["2x", "4x", "two"]}
        | {("runs", "extend", "only"): ...},
        "runs 'demo/direct-2x' and 'demo/direct-two' have the same settings",
    ),
    "a name that is no folder": (
        {("checks", "a b"): {"check": "pi_random_fit", "parameters": {"seed": 0}}},
        "check 'a b': names become folders",
    ),
    "a name that leaves its folder": (
        {("runs", "x"): {"name": "../x", "spec": {"start": "shared/base", "seed": 7}}},
        "run '../x': names become folders",
    ),
    "one name, two definitions": (
        {("corpora", "test"): {"kind": "documents", "source": "text", "split": "train"}},
        "demo: corpora.test: defined differently elsewhere",
    ),
}

IN_SHARED: dict[str, tuple[dict[Any, Any], str]] = {
    "a tokenizer larger than the model": (
        {("architectures", "small", "vocabulary_size"): 48},
        "shared: runs.base: tokenizer 'bpe' has 64 tokens, the model's vocabulary_size is 48",
    ),
    "windows of another tokenizer": (
        {("windows", "plain", "tokenizer"): "other"},
        "phases.0.windows: 'plain' are tokens of 'other', the model reads 'bpe'",
    ),
    "an empty mixture": ({MIXTURE: []}, "windows.plain.mixture: empty"),
    "a weight of nothing": (
        {MIXTURE: [{"corpus": "train", "weight": 0.0}]},
        "windows.plain.mixture: weight 0.0 of 'train': must be above 0",
    ),
    "unknown corpus of a mixture": (
        {MIXTURE: [{"corpus": "trian", "weight": 1.0}]},
        "windows.plain.mixture: corpora has no 'trian'; did you mean 'train'?",
    ),
    "unknown source": (
        {("corpora", "test", "source"): "txt"},
        "corpora.test.source: sources has no 'txt'; did you mean 'text'?",
    ),
    "unknown tokenizer": (
        {("models", "small", "tokenizer"): "bpee", ("windows", "plain", "tokenizer"): "bpee"},
        "tokenizers has no 'bpee'; did you mean 'bpe'?",
    ),
    "unknown corpus of a tokenizer": (
        {("tokenizers", "bpe", "corpus"): "tran"},
        "tokenizers.bpe.corpus: corpora has no 'tran'; did you mean 'train'?",
    ),
    "unknown model": (
        {("runs", "base", "spec", "model"): "smal"},
        "shared: runs.base.model: models has no 'smal'; did you mean 'small'?",
    ),
    "unknown architecture": (
        {("models", "small", "architecture"): "smal"},
        "models.small.architecture: architectures has no 'smal'; did you mean 'small'?",
    ),
    "filler that is not text": (
        {
            ("corpora", "recall"): {"kind": "recall", "filler": "recall"}
            | {"documents": 1, "length_tokens": 8},
            MIXTURE: [{"corpus": "recall", "weight": 1.0}],
        },
        "corpora.recall.filler: 'recall' is synthetic; name a corpus of text",
    ),
    "a location that config.yaml lacks": (
        {("sources", "text"): {"kind": "jsonl", "location": "pile", "train": ["*.jsonl"]}},
        "config.yaml: locations.pile: missing; sources.text reads it",
    ),
    "a run with phases and no optimizer": (
        {("runs", "base", "spec", "optimizer"): ...},
        "shared: runs.base: a run with phases needs optimizer",
    ),
}


def test_the_samples_themselves_can_be_planned(tmp_path: Path) -> None:
    """Guards against refusals below that have another reason than the one they test."""
    assert plan(write(tmp_path)).nodes


@pytest.mark.parametrize("case", IN_DEMO)
def test_an_impossible_study_is_refused(tmp_path: Path, case: str) -> None:
    """Guards against a mistake that shows after a day in the queue, or never."""
    changes, message = IN_DEMO[case]
    assert message in problems(write(tmp_path, demo=changed(DEMO, changes)))


@pytest.mark.parametrize("case", IN_SHARED)
def test_an_impossible_shared_part_is_refused(tmp_path: Path, case: str) -> None:
    """Guards against a mistake that shows after a day in the queue, or never."""
    changes, message = IN_SHARED[case]
    assert message in problems(write(tmp_path, shared=changed(SHARED, changes)))


def test_a_broken_start_is_told_once_and_is_no_circle(tmp_path: Path) -> None:
    """Guards against one mistake told as another in every run that builds on it."""
    shared = changed(SHARED, {("runs", "base", "spec", "model"): "smal"})
    found = problems(write(tmp_path, shared=shared))
    assert "leads back" not in found
    assert found.count("models has no 'smal'") == 1


def test_runs_that_differ_only_in_where_they_run_are_one_recipe(tmp_path: Path) -> None:
    """Guards against the same training done twice on two kinds of machine."""
    other = changed(DEMO, {(*SPEC, "hardware"): {"processes": 2}})
    other = other.replace("demo/", "other/")
    found = problems(write(tmp_path, other=other))
    assert "runs 'demo/pi-2x' and 'other/pi-2x' have the same settings" in found
