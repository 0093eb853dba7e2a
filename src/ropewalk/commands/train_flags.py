"""The flags of `ropewalk train`; what they mean as a spec stands in `train_spec`."""

import argparse
from pathlib import Path

from ropewalk.commands.flags import Run, add_numerics, add_rope, whole_numbers

# A forward pass of one process reads this many tokens, or one row: enough for matrix products to be
# efficient, few enough for a model of a few billion parameters. No part of what a run is.
TOKENS_PER_FORWARD = 8192


def add_train(command: argparse.ArgumentParser) -> None:
    """Add the flags of `ropewalk train`."""
    group = command.add_argument_group(
        "by flags, in place of --spec and --input",
        "Extend a checkpoint on tokens of your own: ropewalk train --model DIR --data TOKENS "
        "--rope linear --factor 4 --positions pose --target 8192 --steps 1000 --out DIR. The same "
        "line goes on after an interruption (exit code 75: stopped early).",
    )
    add = group.add_argument
    add(
        "--model",
        metavar="FOLDER",
        help="a Hugging Face folder; hub:NAME; or scratch:CONFIG.json for random weights",
    )
    add("--model-revision", metavar="COMMIT", help="with hub:NAME (default: main as it is now)")
    add(
        "--data",
        action="append",
        metavar="TOKENS",
        help="tokens, as `ropewalk tokenize` leaves them; repeat for a mixture",
    )
    add("--weight", action="append", type=float, help="share of each, in the order of --data")
    add("--tokenizer", type=Path, metavar="FOLDER", help="theirs (default: tokenizer/ in --data)")
    add(
        "--adopt",
        action="store_true",
        help="train nothing: take the weights of --model as they are, as a run whose manifest has "
        "their origin (commit, sha256); pickled weights are written as safetensors",
    )
    add("--dry-run", action="store_true", help="say what would be done and print the spec")
    add_rope(
        command,
        "rope: how positions become angles",
        "default: what the checkpoint has; linear is Position Interpolation",
    )
    _positions(command)
    _schedule(command)
    add_numerics(command)
    _hardware(command)


def train(options: argparse.Namespace, run: Run) -> int:
    """Train by flags; what that needs is imported when it is done."""
    if options.adopt:
        from ropewalk.commands import train_adopt

        return train_adopt.adopt(options, run)
    from ropewalk.commands import train_by_hand

    return train_by_hand.train(options, run)


def _positions(command: argparse.ArgumentParser) -> None:
    add = command.add_argument_group("rows and the positions of their tokens").add_argument
    add("--positions", choices=("natural", "pose", "randpos"), default="natural")
    add("--target", type=int, help="the window to be learned, in tokens")
    add("--chunks", type=int, help="pose: of a row (default: 2)")
    add("--chunk-lengths", choices=("uniform", "short_first"), help="pose (default: uniform)")
    add(
        "--content",
        choices=("random", "contiguous", "aligned"),
        help="pose: the text of the chunks, from all over a document (default) or in one piece",
    )
    add("--first", choices=("zero", "random"), help="pose: position of the first token")
    add("--document-tokens", type=int, help="pose: read only the beginning of documents")
    add(
        "--length",
        type=int,
        help="tokens of a row (default: the pretraining window; natural: --target)",
    )
    add(
        "--lengths",
        type=whole_numbers,
        metavar="A,B,...",
        help="rows that grow (GrowLength): phases of equal share and tokens per step",
    )
    add(
        "--policy",
        choices=("concat", "documents", "per_document"),
        help="how rows are cut (default: documents; per_document where pose needs it)",
    )


def _schedule(command: argparse.ArgumentParser) -> None:
    add = command.add_argument_group("schedule and optimizer (AdamW)").add_argument
    add("--steps", type=int, help="of the optimizer")
    add("--train-tokens", type=int, help="in place of --steps: whole steps of so many tokens")
    add("--batch", type=int, metavar="ROWS", help="of a step, all processes together (default: 64)")
    add("--batch-tokens", type=int, metavar="TOKENS", help="in place of --batch")
    add("--lr", type=float, default=2e-5, help="peak learning rate (default: 2e-5)")
    add("--betas", type=_numbers, default=(0.9, 0.95), metavar="B1,B2", help="default: 0.9,0.95")
    add("--weight-decay", type=float, default=0.0, help="default: 0")
    add("--clip", type=float, default=1.0, help="gradient norm; 0 for none (default: 1)")
    add("--schedule", choices=("constant", "linear", "cosine"), default="constant")
    add("--warmup", type=int, default=20, metavar="STEPS", help="default: 20")
    add("--warmup-from", type=float, default=0.1, help="share of --lr at first (default: 0.1)")
    add("--final-share", type=float, help="linear, cosine: share of --lr at last (default: 0)")
    add("--seed", type=int, default=0, help="of the data's order and scratch weights (default: 0)")
    add(
        "--snapshot-steps",
        type=whole_numbers,
        default=(),
        metavar="A,B,...",
        help="export the weights after these steps too",
    )


def _hardware(command: argparse.ArgumentParser) -> None:
    add = command.add_argument_group("hardware: no part of what a run is").add_argument
    add("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    add("--processes", type=int, default=1, help="the model is sharded over them (default: 1)")
    add(
        "--sequences-per-forward",
        type=int,
        metavar="ROWS",
        help=f"of one process (default: as many as have {TOKENS_PER_FORWARD:,} tokens)",
    )
    add("--recompute", action="store_true", help="recompute activations: less memory, more time")
    add("--compile", action="store_true", help="decoder blocks by torch.compile")
    add("--checkpoint-every", type=int, metavar="SECONDS", help="default: 600")


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: write numbers with commas between") from None
