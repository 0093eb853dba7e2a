"""The flags of `ropewalk evaluate`; what they mean as a spec stands in `evaluate_spec`."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

from ropewalk.commands.flags import Run, add_numerics, add_rope, whole_numbers, words
from ropewalk.evaluate.presets import PRESETS
from ropewalk.evaluate.spec import Outcome, Protocol

KINDS: Mapping[str, type] = {kind.kind: kind for kind in get_args(Protocol)}


def add_evaluate(command: argparse.ArgumentParser) -> None:
    """Add the flags of `ropewalk evaluate`."""
    group = command.add_argument_group(
        "by flags, in place of --spec and --input",
        "Measure a checkpoint: ropewalk evaluate --model DIR --protocol pi_sliding --data "
        "TEXT.jsonl --out RESULT.json. Here --out is a file. The same line goes on after an "
        "interruption.",
    )
    add = group.add_argument
    add(
        "--model",
        metavar="FOLDER",
        help="a Hugging Face folder that transformers loads, or hub:NAME",
    )
    add("--model-revision", metavar="COMMIT", help="with hub:NAME (default: main as it is now)")
    add(
        "--protocol",
        metavar="NAME",
        help=f"a preset ({', '.join(PRESETS)}), a kind ({', '.join(KINDS)}), or a whole protocol "
        "as JSON, text or file",
    )
    add("--again", action="store_true", help="measure anew what --out holds")
    add("--keep", action="store_true", help="keep the work folder, with scores.arrow in it")
    add("--dry-run", action="store_true", help="say what would be done and what it costs")
    _data(command)
    _protocol(command)
    add = add_rope(
        command,
        "rope, in place of the checkpoint's own",
        "Llama and GPT-NeoX only",
        "dynamic_ntk",
        "string",
    )
    add("--shift", type=int, metavar="TOKENS", help="string: S, from where distances are moved")
    add("--string-window", type=int, metavar="TOKENS", help="string: W, where they are moved to")
    add_numerics(command)
    _hardware(command)


def evaluate(options: argparse.Namespace, run: Run) -> int:
    """Evaluate by flags; what that needs is imported when it is done."""
    from ropewalk.commands import evaluate_by_hand

    return evaluate_by_hand.evaluate(options, run)


def _data(command: argparse.ArgumentParser) -> None:
    add = command.add_argument_group("the text").add_argument
    add(
        "--data",
        action="append",
        type=Path,
        metavar="FILE",
        help="documents: .jsonl or .txt (also .gz, .zst), .parquet, .arrow; repeat. Or a folder of "
        "tokens, as `ropewalk tokenize` leaves them",
    )
    add("--text-field", help="the text in a record: text (default), meta.body")
    add("--prompt", metavar="TEMPLATE", help="summaries: what is read, with {text} in it")
    add("--target-field", help="with --prompt: the field with the reference")
    add("--text-tokens", type=int, help="with --prompt: cut the text")
    add("--target-tokens", type=int, help="with --prompt: cut the reference")
    add("--damaged-limit", type=int, help="records that may be unreadable (default: 0)")
    add(
        "--tokenizer",
        type=Path,
        metavar="FILE_OR_FOLDER",
        help="default: the model's own; of a folder of tokens: tokenizer/ in it",
    )
    add("--scheme", help="of tiktoken ranks: llama3")
    add(
        "--bos",
        action=argparse.BooleanOptionalAction,
        help="whether texts open with BOS where the protocol leaves it to the tokenizer (default: "
        "as the tokenizer does)",
    )


def _protocol(command: argparse.ArgumentParser) -> None:
    add = command.add_argument_group("what the protocol leaves open").add_argument
    add(
        "--context",
        action="extend",
        type=whole_numbers,
        metavar="TOKENS",
        help="of a window or prompt; repeat, or A,B,... (default: the model's own window)",
    )
    add("--stride", type=int, metavar="TOKENS", help="between windows (default: the preset's)")
    add("--scored-tokens", type=int, help="same_tokens: the targets at the end of a context")
    add("--documents", type=int, help="only the first ones; harness: of each task (default: all)")
    add("--minimum-tokens", type=int, help="leave shorter documents out (default: none)")
    add("--cut-tokens", type=int, help="cut longer documents (default: none)")
    add("--distances", type=int, help="of a probe")
    add("--trials", type=int, help="of each distance; tasks: of each task at each length")
    add("--tasks", action="extend", type=words, metavar="A,B,...", help="tasks, harness: which")
    add("--lengths", action="extend", type=whole_numbers, metavar="A,B,...", help="tasks: tokens")
    add("--shots", type=int, help="harness: examples before the question (default: 0)")
    add("--task-folder", type=Path, help="harness: task files of your own")
    add(
        "--allow",
        action="append",
        choices=get_args(Outcome),
        help="count this loss of cases and go on, in place of refusing; repeat",
    )
    add("--seed", type=int, default=0, help="of what is drawn, intervals included (default: 0)")


def _hardware(command: argparse.ArgumentParser) -> None:
    add = command.add_argument_group("hardware: no part of what a result is").add_argument
    add("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    add("--sequences-per-forward", type=int, metavar="N", help="at most (default: 8)")
