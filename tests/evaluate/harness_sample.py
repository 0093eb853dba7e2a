"""Tasks, documents and a tokenizer for the harness, and what it finds with its own model."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from perplexity_cases import BOS, EOS, WORDS
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

CPU = torch.device("cpu")
SOME_WORDS = (
    "grass green sky blue here there back again sun pass key hidden inside text Remember quiz 305 "
    "find items return important about information irrelevant"
).split()
CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{label}}",
    "metric_list": [
        {"metric": name, "aggregation": "mean", "higher_is_better": True}
        for name in ("acc", "acc_norm", "acc_mutual_info")
    ],
}
LAST_WORD = {
    "output_type": "loglikelihood",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [
        {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
    ],
}
ROLLING = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [
        {"metric": name, "aggregation": aggregation, "higher_is_better": False}
        for name, aggregation in (
            ("word_perplexity", "weighted_perplexity"),
            ("byte_perplexity", "weighted_perplexity"),
            ("bits_per_byte", "bits_per_byte"),
        )
    ],
}
ANSWER = {
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": [" the", "\n"], "max_gen_toks": 12, "do_sample": False},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}


def sentence(random: np.random.Generator, most: int) -> str:
    return " ".join(random.choice(SOME_WORDS) for _ in range(random.integers(1, most)))


def documents(count: int, seed: int = 0) -> list[dict[str, Any]]:
    random = np.random.default_rng(seed)
    return [
        {
            "question": sentence(random, 12),
            # one and several tokens, so that answers differ in length
            "choices": [sentence(random, 4) for _ in range(int(random.integers(2, 5)))],
            "label": int(random.integers(2)),
            "text": f"{sentence(random, 60)}\n {sentence(random, 6)}.",
            "answer": sentence(random, 3),
        }
        for _ in range(count)
    ]


def write_task(folder: Path, name: str, task: Mapping[str, Any], rows: list[Any]) -> None:
    """Write a task file and its documents, `name`.yaml and `name`.jsonl."""
    folder.mkdir(exist_ok=True)
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / f"{name}.yaml").write_text(
        yaml.safe_dump(
            {
                "task": name,
                "dataset_path": "json",
                "dataset_kwargs": {"data_files": {"test": str(data)}},
                "test_split": "test",
                "metadata": {"version": 3},
                **task,
            }
        )
    )


def model_of(small_model: Callable[[int], LlamaForCausalLM]) -> LlamaForCausalLM:
    """Return a model whose window is below the harness's: rolling texts take several."""
    made = small_model(WORDS)
    made.config.max_position_embeddings = 32
    made.generation_config.pad_token_id = EOS
    return made


def in_transformers(tokenizer: Tokenizer, opening: bool) -> PreTrainedTokenizerFast:
    """Return the tokenizer as transformers has it, adding BOS by itself where it opens."""
    copied = Tokenizer.from_str(tokenizer.to_str())
    if opening:
        copied.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=copied, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def theirs(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    task: str,
    *,
    bos: bool,
    shots: int = 0,
) -> Any:
    """Return what the harness finds with its own model."""
    lm = HFLM(
        pretrained=model,
        tokenizer=tokenizer,
        add_bos_token=bos,
        softmax_dtype="float32",
        max_length=32 if task == "rolling" else 256,
        batch_size=1,
    )
    loaded = TaskManager(include_path=str(folder), include_defaults=False).load([task])
    loaded["tasks"][task].set_config("num_fewshot", shots)
    loaded["tasks"][task].set_fewshot_seed(7)
    return evaluate(lm, loaded, bootstrap_iters=1000, log_samples=True)
