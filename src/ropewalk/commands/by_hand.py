"""Stages of the data room by flags: they build the spec objects that the workflow passes."""

import argparse
import dataclasses
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

from ropewalk.base.canonical import canonical_json, plain
from ropewalk.base.manifest import MANIFEST, read_manifest
from ropewalk.base.spec import SpecError, suggestion
from ropewalk.base.stage import StageError
from ropewalk.commands.flags import Run, given, need
from ropewalk.data.spec import (
    SPLITS,
    DocumentCorpus,
    HubSource,
    ImportedTokenizer,
    InventoryJob,
    PackJob,
    PythonSource,
    Share,
    Source,
    TokenizeJob,
    TokenizerJob,
    Windows,
    gather_job,
    part_name,
)

_KINDS = {kind.kind: kind for kind in get_args(Source) if kind is not PythonSource}
_SPLITS = {"val": "validation", "dev": "validation"}
_ALIASES = {"hub": HubSource.kind, "proof-pile": "proof_pile", "pg-19": "pg19"}


def add_tokenize(command: argparse.ArgumentParser) -> None:
    """Add the flags of `ropewalk tokenize`."""
    group = command.add_argument_group(
        "by flags, in place of --spec and --input",
        "Make the inventory, the tokenizer, all parts and the tokens below --out.",
    )
    add = group.add_argument
    add("--source", metavar="KIND", help=f"layout of the documents: {', '.join(_KINDS)}")
    add("--path", type=Path, help="the folder they lie in")
    add(
        "--split",
        choices=SPLITS,
        type=lambda name: _SPLITS.get(name, name),
        default="train",
        help="which split (default: train); val and dev are validation",
    )
    add("--files", action="append", metavar="GLOB", help="files of the split, below --path; repeat")
    add("--name", help="of a data set on the hub: organisation/name")
    add("--revision", help="of it: a commit")
    add("--configuration", help="of it, where it has several")
    add("--hub-split", metavar="NAME", help="what it calls the split (default: as --split)")
    add("--text-field", help="the text in a record: text, meta.body")
    add("--subset-field", help="the subset in a record: meta.pile_set_name")
    add("--subset", action="append", metavar="NAME", help="only documents of this subset; repeat")
    add("--exclude-subset", action="append", metavar="NAME", help="none of this subset; repeat")
    add("--minimum-tokens", type=int, help="leave shorter documents out")
    add("--sample", type=float, help="share of the documents, drawn by the seed")
    add("--limit-documents", type=int, help="stop after so many")
    add("--limit-tokens", type=int, help="stop after so many")
    add("--seed", type=int, help="of the order of files and of --sample (default: 0)")
    add("--damaged-limit", type=int, help="records that may be unreadable (default: 100)")
    add("--prompt", metavar="TEMPLATE", help="fine-tuning data: what is read, with {text} in it")
    add("--target-field", help="with --prompt: the field that is learned")
    add("--text-tokens", type=int, help="with --prompt: cut the text")
    add("--target-tokens", type=int, help="with --prompt: cut the target")
    add(
        "--tokenizer",
        metavar="FILE_OR_FOLDER",
        help="tokenizer.json, SentencePiece .model, tiktoken ranks, a folder with one, or hub:NAME",
    )
    add("--tokenizer-revision", help="with hub:NAME: a commit")
    add("--scheme", help="of tiktoken ranks: llama3")
    add("--vocabulary-size", type=int, help="of the model (default: the tokenizer's own)")
    flag = argparse.BooleanOptionalAction
    add("--bos", action=flag, help="open documents with BOS (default: as the tokenizer does)")
    add("--eos", action=flag, help="close documents with EOS (default: as the tokenizer does)")
    add("--engine", choices=("fast", "tokenizers"), help="what encodes (default: fast)")
    add("--shard-tokens", type=int, help="close a shard after so many (default: 8388608)")
    add("--parts", type=int, help="jobs the work is cut into; part of the result (default: 1)")
    add(
        "--processes",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="parts made at a time; no part of the result (default: the cores)",
    )


def add_pack(command: argparse.ArgumentParser) -> None:
    """Add the flags of `ropewalk pack`."""
    group = command.add_argument_group("by flags, in place of --spec and --input")
    add = group.add_argument
    add(
        "--tokens",
        action="append",
        metavar="FOLDER",
        help="tokens, as `ropewalk tokenize` leaves them; repeat for a mixture",
    )
    add("--weight", action="append", type=float, help="share of each, in the order of --tokens")
    add("--length", type=int, help="tokens of a window")
    add("--policy", choices=("concat", "documents", "per_document"), default="concat")
    add("--seed", type=int, help="of the row order (default: 0)")


def tokenize(options: argparse.Namespace, run: Run) -> int:
    """Make tokens by flags and print where they are."""
    out = options.out
    source, folder = _source(options)
    corpus = given(
        DocumentCorpus,
        {
            "source": source.kind,
            "split": options.split,
            "subsets": options.subset,
            "excluded_subsets": options.exclude_subset,
            "minimum_tokens": options.minimum_tokens,
            "sample": options.sample,
            "limit_documents": options.limit_documents,
            "limit_tokens": options.limit_tokens,
            "seed": options.seed,
            "parts": options.parts,
            "damaged_limit": options.damaged_limit,
            "prompt": prompt(options),
        },
    )
    inventory = InventoryJob(source=source, folder=folder)
    tokenizer = TokenizerJob(tokenizer=_tokenizer(options))
    run("inventory", inventory, out / "inventory", {})
    run("tokenizer", tokenizer, out / "tokenizer", {})
    made = {name: out / name / MANIFEST for name in ("inventory", "tokenizer")}
    common = {"corpus": plain(corpus), "source": plain(source), "folder": folder}
    jobs = [
        given(TokenizeJob, {**common, "part": part, "shard_tokens": options.shard_tokens})
        for part in range(corpus.parts)
    ]
    folders = [out / "parts" / part_name(part) for part in range(corpus.parts)]
    if corpus.parts == 1 or options.processes == 1:
        for job, place in zip(jobs, folders, strict=True):
            run("tokenize", job, place, made)
    else:
        _side_by_side(jobs, folders, made, options.processes)
    parts = {f"part:{folder.name}": folder / MANIFEST for folder in folders}
    run("gather", gather_job(corpus), out, parts)
    print(out / MANIFEST)
    return 0


def _source(options: argparse.Namespace) -> tuple[Any, str | None]:
    """Return the source that the flags describe, and its folder."""
    need(options, "source", "tokenizer")
    kind = _ALIASES.get(options.source, options.source)
    if kind not in _KINDS:
        raise SpecError(f"--source {options.source!r} is unknown; {suggestion(kind, _KINDS)}")
    settings: dict[str, Any] = {
        "kind": kind,
        "text_field": options.text_field,
        "subset_field": options.subset_field,
    }
    if kind == HubSource.kind:
        need(options, "name", "revision")
        settings |= {
            "name": options.name,
            "revision": options.revision,
            "configuration": options.configuration,
        }
        # the split that was asked for and no other: an inventory looks at every file it lists
        splits: dict[str, Any] = dict.fromkeys(SPLITS)
        splits[options.split] = options.hub_split or options.split
        return dataclasses.replace(given(HubSource, settings), **splits), None
    need(options, "path")
    settings |= {"location": kind, options.split: options.files}
    found = given(_KINDS[kind], settings)
    others = {split: () for split in SPLITS if split != options.split}
    return dataclasses.replace(found, **others), str(options.path)


def prompt(options: argparse.Namespace) -> dict[str, Any] | None:
    """Return the settings of a fine-tuning corpus's prompt, None where none is given."""
    if options.prompt is None:
        return None
    need(options, "target_field")
    found = {
        "template": options.prompt,
        "target_field": options.target_field,
        "text_tokens": options.text_tokens,
        "target_tokens": options.target_tokens,
    }
    return {key: value for key, value in found.items() if value is not None}


def _tokenizer(options: argparse.Namespace) -> ImportedTokenizer:
    name = options.tokenizer.removeprefix("hub:")
    return given(
        ImportedTokenizer,
        {
            "hub" if options.tokenizer.startswith("hub:") else "path": name,
            "revision": options.tokenizer_revision,
            "scheme": options.scheme,
            "vocabulary_size": options.vocabulary_size,
            "bos": options.bos,
            "eos": options.eos,
            "engine": options.engine,
        },
    )


def _side_by_side(
    jobs: Sequence[TokenizeJob], folders: Sequence[Path], made: dict[str, Path], processes: int
) -> None:
    """Run every part as the workflow would, some at a time; the others end if one fails."""
    words = [f"--input={name}={path}" for name, path in made.items()]

    def one(job: TokenizeJob, place: Path) -> int:
        spec = canonical_json(plain(job))
        command = [sys.executable, "-m", "ropewalk.cli", "tokenize", "--spec", spec, *words]
        return subprocess.run([*command, "--out", str(place)], check=False).returncode

    with ThreadPoolExecutor(processes) as pool:
        codes = list(pool.map(one, jobs, folders))
    failed = [folder.name for folder, code in zip(folders, codes, strict=True) if code]
    if failed:
        raise StageError(
            f"tokenize: parts {', '.join(failed)} failed, see above; the same command goes on "
            "where they stopped"
        )


def pack(options: argparse.Namespace, run: Run) -> int:
    """Cut windows by flags and print where they are."""
    need(options, "tokens", "length")
    folders = [Path(folder) for folder in options.tokens]
    weights = options.weight or [1.0] * len(folders)
    if len(weights) != len(folders):
        raise SpecError(
            f"--weight is given {len(weights)} times for {len(folders)} --tokens: one each"
        )
    names = [folder.resolve().name for folder in folders]
    made = [read_manifest(folder / MANIFEST, verify=False) for folder in folders]
    if len({m.result.get("vocabulary_size") for m in made}) > 1:
        raise SpecError(f"--tokens {', '.join(options.tokens)}: made with different tokenizers")
    spec = PackJob(
        windows=Windows(
            mixture=tuple(
                Share(corpus=name, weight=weight)
                for name, weight in zip(names, weights, strict=True)
            ),
            tokenizer="by-hand",
            policy=options.policy,
            seed=options.seed or 0,
        ),
        length_tokens=options.length,
    )
    inputs = {
        f"tokens:{name}": folder / MANIFEST for name, folder in zip(names, folders, strict=True)
    }
    run("pack", spec, options.out, inputs)
    print(options.out / MANIFEST)
    return 0
