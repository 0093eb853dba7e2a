"""Whole runs of lm-evaluation-harness, and the papers' names of its tasks."""

import dataclasses
import json
import logging
import random
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from harness_sample import (
    CHOICE,
    ROLLING,
    documents,
    in_transformers,
    model_of,
    sentence,
    theirs,
    write_task,
)
from lm_eval.tasks import TaskManager
from perplexity_cases import BOS, EOS, WORDS, loaded
from readers import PlainReader
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from ropewalk.base.stage import StageError
from ropewalk.data.encoding import LoadedTokenizer
from ropewalk.evaluate import harness
from ropewalk.evaluate.harness_names import NAMES
from ropewalk.evaluate.spec import Harness


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away what the machine says of caches: the work folder is where they belong."""
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    monkeypatch.delenv("HF_HOME", raising=False)


@pytest.fixture(scope="module")
def model(small_model) -> LlamaForCausalLM:
    return model_of(small_model)


@pytest.fixture
def plain(tmp_path: Path, tokenizer: Tokenizer) -> LoadedTokenizer:
    return loaded(tmp_path / "tokenizer", tokenizer, opening=False)


class Watched(LoadedTokenizer):
    """Remembers the texts it encoded."""

    texts: list[str]

    def encode(self, text: str) -> np.ndarray:
        self.texts.append(text)
        return super().encode(text)


def watched(tmp_path: Path) -> Watched:
    """Return the tokenizer that the fixture `plain` left."""
    facts = {"vocabulary_size": WORDS, "bos": BOS, "eos": EOS}
    words = Watched(tmp_path / "tokenizer" / "tokenizer.json", facts)
    words.texts = []
    return words


_PROTOCOL = ("shots", "limit", "allow", "context_tokens")


def run(
    tmp_path: Path, model: LlamaForCausalLM, words: LoadedTokenizer, *tasks: str, **more: Any
) -> dict[str, Any]:
    settings = {name: more.pop(name) for name in _PROTOCOL if name in more}
    protocol = Harness(tasks=tasks, folder=str(tmp_path / "tasks"), **settings)
    given = {"seed": 7, "work_folder": tmp_path / "work", **more}
    return harness.run(protocol, PlainReader(model), words, **given)


def test_a_task_s_own_metric_makes_the_cell(
    tmp_path: Path, model: LlamaForCausalLM, plain: LoadedTokenizer
) -> None:
    """Guards against scores of a metric that has none per document, and bits called nats."""
    two = [{**row, "choices": row["choices"][:2]} for row in documents(8)]  # F1 is of yes and no
    f1 = {"metric": "f1", "aggregation": "f1", "higher_is_better": True}
    write_task(
        tmp_path / "tasks",
        "choice",
        {**CHOICE, "metric_list": [f1, *CHOICE["metric_list"]]},
        two,
    )
    cell = run(tmp_path, model, plain, "choice")["cells"]["choice"]
    assert cell["metric"] == "acc"
    assert set(cell["metrics"]) == {"f1,none", "acc,none", "acc_norm,none", "acc_mutual_info,none"}
    write_task(tmp_path / "tasks", "choice", {**CHOICE, "metric_list": [f1]}, two)
    with pytest.raises(StageError, match="'choice' has no metric with a number for every document"):
        run(tmp_path, model, plain, "choice")
    bits = {**ROLLING, "metric_list": ROLLING["metric_list"][::-1]}
    write_task(tmp_path / "tasks", "rolling", bits, documents(8))
    cell = run(tmp_path, model, plain, "rolling")["cells"]["rolling"]
    assert cell["metric"] == "bits_per_byte"
    assert cell["mean"] == pytest.approx(cell["value"], rel=1e-12)
    assert cell["weights"] == [len(row["text"].encode()) for row in documents(8)]


def test_the_paper_s_metric_makes_the_cell_of_its_benchmark(
    tmp_path: Path,
    model: LlamaForCausalLM,
    plain: LoadedTokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Guards against an accuracy where the paper normalises by length."""
    benchmark = dataclasses.replace(NAMES["ARC-C"], task="choice", folder=None)
    monkeypatch.setattr(harness, "NAMES", {"ARC-C": benchmark})
    write_task(tmp_path / "tasks", "choice", CHOICE, documents(30))
    cell = run(tmp_path, model, plain, "ARC-C")["cells"]["ARC-C"]
    assert cell["metric"] == "acc_norm"
    assert cell["value"] == cell["metrics"]["acc_norm,none"] != cell["metrics"]["acc,none"]
    assert (cell["task"], cell["note"]) == ("choice", benchmark.note)


def test_a_window_is_not_remembered(
    tmp_path: Path, model: LlamaForCausalLM, plain: LoadedTokenizer
) -> None:
    """Guards against the number of one window under the name of another, as from a cache."""
    write_task(tmp_path / "tasks", "rolling", ROLLING, documents(5))
    found = [
        run(tmp_path, model, plain, "rolling", context_tokens=tokens) for tokens in (16, 64, 16)
    ]
    means = [one["cells"]["rolling"]["mean"] for one in found]
    assert means[0] == means[2] != means[1]
    assert [one["context_tokens"] for one in found] == [16, 64, 16]


def test_shots_and_limit_are_those_of_the_protocol(
    tmp_path: Path, model: LlamaForCausalLM, tokenizer: Tokenizer, plain: LoadedTokenizer
) -> None:
    """Guards against a number of shots that the task file decides after all."""
    task = {**CHOICE, "num_fewshot": 1, "fewshot_split": "test"}
    write_task(tmp_path / "tasks", "choice", task, documents(9))
    expected = theirs(
        model, in_transformers(tokenizer, False), tmp_path / "tasks", "choice", bos=False, shots=2
    )
    cell = run(tmp_path, model, plain, "choice", shots=2)["cells"]["choice"]
    assert cell["shots"] == 2
    assert cell["scores"] == [sample["acc"] for sample in expected["samples"]["choice"]]
    hashes = [
        s[name]
        for s in expected["samples"]["choice"]
        for name in ("doc_hash", "prompt_hash", "target_hash")
    ]
    from lm_eval.utils import hash_string

    assert cell["task_hash"] == hash_string("".join(hashes))
    assert (
        cell["task_hash"] != run(tmp_path, model, plain, "choice")["cells"]["choice"]["task_hash"]
    )
    some = run(tmp_path, model, plain, "choice", shots=2, limit=4)["cells"]["choice"]
    assert some["scores"] == cell["scores"][:4]
    write_task(tmp_path / "tasks", "fixed", {**CHOICE, "num_fewshot": 0}, documents(3))
    with pytest.raises(StageError, match="'fixed' is one of 0 shots by its own file"):
        run(tmp_path, model, plain, "fixed", shots=2)


@pytest.mark.parametrize(
    ("splits", "leaks"),
    [
        ({"test_split": "test"}, True),
        ({"test_split": "test", "fewshot_split": "test"}, False),  # the harness leaves it out
        ({"test_split": "test", "validation_split": "other"}, False),
        ({"test_split": None, "validation_split": "test"}, False),  # left out as well
        ({"test_split": None, "validation_split": "test", "fewshot_split": "test"}, True),
        ({"test_split": None, "validation_split": "test", "training_split": "other"}, False),
    ],
)
def test_no_document_is_an_example_for_itself(
    tmp_path: Path,
    model: LlamaForCausalLM,
    plain: LoadedTokenizer,
    splits: dict[str, str | None],
    leaks: bool,
) -> None:
    """Guards against prompts with the answer in them."""
    folder = tmp_path / "tasks"
    rows = documents(4)
    write_task(folder, "choice", CHOICE, rows)
    both = {name: str(folder / "choice.jsonl") for name in ("test", "other")}
    write_task(folder, "choice", {**CHOICE, **splits, "dataset_kwargs": {"data_files": both}}, rows)
    if leaks:
        with pytest.raises(StageError, match="draws examples from the documents it asks"):
            run(tmp_path, model, plain, "choice", shots=2)
        return
    words = watched(tmp_path)
    run(tmp_path, model, words, "choice", shots=2)
    asked = [text for text in words.texts if text.count("Question:") == 3]
    assert len(asked) > 8
    if "other" not in splits.values():  # which has the same rows
        for text in asked:
            questions = [part.partition("\n")[0] for part in text.split("Question: ")[1:]]
            assert questions[2] not in questions[:2]


def test_a_run_leaves_nothing_behind(
    tmp_path: Path,
    model: LlamaForCausalLM,
    plain: LoadedTokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Guards against caches in the user's home, and against random states that others rely on."""
    import datasets.config

    home = tmp_path / "home"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home)
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", home / "downloads")
    write_task(tmp_path / "tasks", "choice", CHOICE, documents(4))
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    handlers = list(logging.getLogger("lm_eval").handlers)
    run(tmp_path, model, plain, "choice")
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert logging.getLogger("lm_eval").handlers == handlers
    assert home == datasets.config.HF_DATASETS_CACHE
    assert not home.exists()
    assert list((tmp_path / "work" / "datasets").rglob("*.arrow"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(home))  # said by the user
    run(tmp_path, model, plain, "choice", work_folder=tmp_path / "other")
    assert list(home.rglob("*.arrow"))
    assert not (tmp_path / "other").exists()


def test_a_warning_of_the_harness_is_an_error(
    tmp_path: Path,
    model: LlamaForCausalLM,
    plain: LoadedTokenizer,
    request: pytest.FixtureRequest,
) -> None:
    """Guards against a doubtful number with exit code 0, wherever warnings are shown or not."""
    request.addfinalizer(lambda: logging.getLogger("lm_eval").setLevel(logging.NOTSET))
    logging.getLogger("lm_eval").setLevel(logging.CRITICAL)
    rows = documents(3)
    rows[1]["label"] = 9  # there is no such choice: the harness calls the answer wrong
    write_task(tmp_path / "tasks", "choice", CHOICE, rows)
    with pytest.raises(StageError, match="lm-evaluation-harness warns: Label index"):
        run(tmp_path, model, plain, "choice")
    write_task(
        tmp_path / "tasks", "choice", {**CHOICE, "metric_list": [{"metric": "acc"}]}, documents(3)
    )
    found = run(tmp_path, model, plain, "choice")
    assert ["aggregation is not" in text for text in found["warnings"]] == [True, False]


def test_a_missing_data_set_says_what_to_fetch(
    tmp_path: Path,
    model: LlamaForCausalLM,
    plain: LoadedTokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Guards against a page of the hub's own errors on a node without network."""
    import datasets.config
    import huggingface_hub.constants

    for module in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", True)
    write_task(
        tmp_path / "tasks",
        "away",
        {**CHOICE, "dataset_path": "some/where", "dataset_name": "small", "dataset_kwargs": {}},
        [],
    )
    with pytest.raises(StageError, match="'away' cannot be loaded") as error:
        run(tmp_path, model, plain, "away")
    assert "datasets.load_dataset('some/where', 'small')" in str(error.value)
    assert "set HF_DATASETS_CACHE" in str(error.value)
    write_task(tmp_path / "tasks", "gone", CHOICE, documents(2))
    (tmp_path / "tasks" / "gone.jsonl").unlink()
    with pytest.raises(StageError, match=r"'gone' .*data_files must name files that exist"):
        run(tmp_path, model, plain, "gone")


def test_unknown_names_and_folders_are_refused(
    tmp_path: Path,
    model: LlamaForCausalLM,
    plain: LoadedTokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Guards against a traceback of the harness for a slip of the pen."""
    monkeypatch.setattr(  # reading all task files takes seconds, and none of them is asked for
        "lm_eval.tasks.TaskManager",
        lambda include_path, include_defaults: TaskManager(
            include_path=include_path, include_defaults=False
        ),
    )
    with pytest.raises(StageError, match=r"protocol\.folder: .* is no folder"):
        run(tmp_path, model, plain, "choice")
    write_task(tmp_path / "tasks", "choice", CHOICE, documents(3))
    with pytest.raises(StageError, match="'no_such_task' is no task"):
        run(tmp_path, model, plain, "choice", "no_such_task")
    (tmp_path / "tasks" / "group.yaml").write_text("group: both\ntask: [choice]\n")
    with pytest.raises(StageError, match="'both' and 'choice' both run the task 'choice'"):
        run(tmp_path, model, plain, "both", "choice")
    assert set(run(tmp_path, model, plain, "both")["cells"]) == {"both"}


@pytest.mark.slow
def test_every_task_of_the_harness_can_be_named() -> None:
    """Guards against names that the documentation gives and only the papers' tasks have."""
    manager = harness._manager([harness.OWN_TASKS], {"arc_easy", "race_middle", "lambada_openai"})
    assert len(manager.all_tasks) > 10_000


def test_without_the_harness_the_message_says_how_to_install_it(
    tmp_path: Path,
    model: LlamaForCausalLM,
    plain: LoadedTokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Guards against an import error where an extra was not asked for."""
    monkeypatch.setitem(sys.modules, "lm_eval.evaluator", None)
    with pytest.raises(StageError, match=re.escape('pip install "ropewalk[harness]"')):
        run(tmp_path, model, plain, "choice")


# Names of the papers.


def test_every_benchmark_of_the_papers_stands_for_a_task_with_its_metric() -> None:
    """Guards against a table row that no task stands for, and against another metric's number."""
    from lm_eval.tasks._yaml_loader import load_yaml

    manager = harness._manager([harness.OWN_TASKS], {b.task for b in NAMES.values()})
    assert len(manager.all_tasks) < 1000  # found without reading all of the harness's
    for name, benchmark in NAMES.items():
        config = load_yaml(manager.task_index[benchmark.task].yaml_path, resolve_func=False)
        assert benchmark.metric in [entry["metric"] for entry in config["metric_list"]], name
    files = {f"harness_tasks/{path.name}" for path in harness.OWN_TASKS.glob("*.yaml")}
    assert files == set(harness.DATA_FILES)


@pytest.mark.parametrize("level", ["middle", "high"])
def test_race_asks_every_question_by_itself(
    tmp_path: Path, model: LlamaForCausalLM, plain: LoadedTokenizer, level: str
) -> None:
    """Guards against a task file that reads the data set's fields wrongly."""
    random = np.random.default_rng(6)
    rows = [
        {
            "example_id": f"{level}{n // 3}.txt",
            "article": sentence(random, 30),
            "question": sentence(random, 9),
            "options": [sentence(random, 4) for _ in range(4)],
            "answer": "ABCD"[int(random.integers(4))],
        }
        for n in range(60)
    ]
    data = tmp_path / "race.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "local.yaml").write_text(
        yaml.safe_dump(
            {
                "include": str(harness.OWN_TASKS / f"race_{level}.yaml"),
                "task": "local",
                "dataset_path": "json",
                "dataset_name": None,
                "dataset_kwargs": {"data_files": {"test": str(data)}},
                "training_split": None,
                "validation_split": None,
            }
        )
    )
    words = watched(tmp_path)
    cell = run(tmp_path, model, words, "local")["cells"]["local"]
    right: Counter[str] = Counter()
    for row, score in zip(rows, cell["scores"], strict=True):
        prompt = f"Article: {row['article']}\n\nQuestion: {row['question']}\nAnswer:"
        assert prompt in words.texts
        start = len(plain.encode(prompt))
        sums = []
        for option in row["options"]:
            ids = plain.encode(f"{prompt} {option}").tolist()
            with torch.no_grad():
                logs = torch.log_softmax(model(torch.tensor([ids])).logits[0], -1)
            sums.append(sum(float(logs[i - 1, ids[i]]) for i in range(start, len(ids))))
        assert score == (int(np.argmax(sums)) == "ABCD".index(row["answer"]))
        right[row["answer"]] += int(score)
    assert all(right[letter] for letter in "ABCD")
    config = yaml.safe_load((harness.OWN_TASKS / f"race_{level}.yaml").read_text())
    assert config["dataset_name"] == level
