"""`ropewalk tokenize` and `ropewalk pack` by flags."""

import json
from pathlib import Path
from typing import Any

import pytest
import zstandard
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ropewalk.base.canonical import plain
from ropewalk.base.manifest import read_manifest
from ropewalk.cli import main
from ropewalk.data.spec import DocumentCorpus, Pile, TokenizeJob
from ropewalk.data.tokens import Tokens

SETS = ("Books3", "ArXiv", "Github")


def text(number: int) -> str:
    return f"document {number}: " + "the rope is laid in the walk, " * (1 + number * 7 % 11)


@pytest.fixture
def pile(tmp_path: Path) -> Path:
    """Return a folder in the layout of the Pile: three training files, one to validate."""
    folder = tmp_path / "pile"
    (folder / "train").mkdir(parents=True)
    numbers = iter(range(1000))
    for name, count in {"train/00": 9, "train/01": 7, "train/02": 12, "val": 4}.items():
        rows = []
        for _ in range(count):
            number = next(numbers)
            meta = {"pile_set_name": SETS[number % 3]}
            rows.append(json.dumps({"text": text(number), "meta": meta}))
        packed = zstandard.ZstdCompressor().compress("\n".join(rows).encode())
        (folder / f"{name}.jsonl.zst").write_bytes(packed)
    return folder


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """Return a tokenizer.json that the library made, without post-processor."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    trained.train_from_iterator([text(n) for n in range(20)], trainer)
    file = tmp_path / "tokenizer.json"
    trained.save(str(file))
    return file


def tokenize(pile: Path, tokenizer: Path, out: Path, *more: str) -> int:
    words = ["tokenize", "--source", "pile", "--path", str(pile), "--tokenizer", str(tokenizer)]
    return main([*words, "--out", str(out), *more])


def by_id(out: Path) -> dict[str, list[int]]:
    tokens = Tokens(read_manifest(out / "manifest.json"))
    return {name: tokens.document(i).tolist() for i, name in enumerate(tokens.ids)}


def test_the_manifest_counts_what_the_library_counts(
    pile: Path, tokenizer: Path, tmp_path: Path
) -> None:
    """Guards against flags that give other tokens than ten lines with the library would."""
    out = tmp_path / "out"
    assert tokenize(pile, tokenizer, out, "--split", "train") == 0
    made = json.loads((out / "manifest.json").read_text())
    library = Tokenizer.from_file(str(tokenizer))
    expected = {}
    for file in sorted((pile / "train").iterdir()):
        rows = zstandard.ZstdDecompressor().decompress(file.read_bytes()).split(b"\n")
        for number, row in enumerate(rows):
            ids = library.encode(json.loads(row)["text"]).ids
            expected[f"train/{file.name}:{number}"] = ids
    assert by_id(out) == expected
    assert made["documents_in"] == made["documents"] == len(expected) == 28
    assert made["tokens"] == sum(map(len, expected.values()))
    assert made["skipped"] == {}
    assert sum(shard["tokens"] for shard in made["shards"]) == made["tokens"]
    assert sum(shard["documents"] for shard in made["shards"]) == made["documents"]
    assert all(set(s) == {"file", "sha256", "documents", "tokens"} for s in made["shards"])
    assert all((out / shard["file"]).is_file() for shard in made["shards"])
    assert made["engine"]["name"] in ("gigatoken", "tokenizers")
    assert str(tmp_path) not in (out / "manifest.json").read_text()


def test_processes_change_no_byte(pile: Path, tokenizer: Path, tmp_path: Path) -> None:
    """Guards against tokens that depend on how many jobs ran at a time."""
    outs = []
    for processes in ("1", "2", "3"):
        outs.append(tmp_path / f"out-{processes}")
        parts = ("--parts", "3", "--processes", processes, "--shard-tokens", "200")
        assert tokenize(pile, tokenizer, outs[-1], *parts) == 0
    manifests = [(out / "manifest.json").read_bytes() for out in outs]
    assert manifests[0] == manifests[1] == manifests[2]
    whole = tmp_path / "whole"
    assert tokenize(pile, tokenizer, whole) == 0
    assert list(by_id(whole).items()) == list(by_id(outs[0]).items())


def test_flags_build_the_spec_of_the_workflow(pile: Path, tokenizer: Path, tmp_path: Path) -> None:
    """Guards against two ways to say one thing that come to mean different things."""
    out = tmp_path / "out"
    flags = "--subset Books3 --subset ArXiv --exclude-subset Github --minimum-tokens 30 --seed 4"
    flags += " --sample 0.9 --limit-documents 9 --limit-tokens 900 --damaged-limit 3 --parts 2"
    assert tokenize(pile, tokenizer, out, *flags.split(), "--shard-tokens", "500") == 0
    corpus = DocumentCorpus(
        source="pile",
        split="train",
        subsets=("Books3", "ArXiv"),
        excluded_subsets=("Github",),
        minimum_tokens=30,
        seed=4,
        sample=0.9,
        limit_documents=9,
        limit_tokens=900,
        damaged_limit=3,
        parts=2,
    )
    source = Pile(location="pile", validation=(), test=())
    for part in range(2):
        job = TokenizeJob(corpus=corpus, source=source, part=part, shard_tokens=500)
        made = read_manifest(out / f"parts/0000{part}/manifest.json")
        assert made.spec == plain(job, identity=True)
    subsets = read_manifest(out / "manifest.json").result["subsets"]
    assert set(subsets) <= {"Books3", "ArXiv"}


def test_the_same_command_again_does_no_work(
    pile: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against hours of tokenising done twice."""
    out = tmp_path / "out"
    assert tokenize(pile, tokenizer, out, "--split", "validation") == 0
    capsys.readouterr()
    assert tokenize(pile, tokenizer, out, "--split", "val") == 0  # as the Pile calls it
    assert capsys.readouterr().out.count("stands as it is") == 4
    content = tokenizer.read_text()
    tokenizer.write_text(content.replace("<|endoftext|>", "<|end|>"))
    assert tokenize(pile, tokenizer, out, "--split", "validation") == 0
    assert capsys.readouterr().out.count("stands as it is") == 1  # the inventory


@pytest.mark.parametrize("policy", ["concat", "documents", "per_document"])
def test_windows_by_flags(pile: Path, tokenizer: Path, tmp_path: Path, policy: str) -> None:
    """Guards against an index that says nothing of what was lost."""
    out, packed = tmp_path / "out", tmp_path / "packed"
    assert tokenize(pile, tokenizer, out) == 0
    words = ["pack", "--tokens", str(out), "--length", "64", "--policy", policy]
    assert main([*words, "--out", str(packed)]) == 0
    statistics = json.loads((packed / "statistics.json").read_text())
    made = json.loads((packed / "manifest.json").read_text())
    total = json.loads((out / "manifest.json").read_text())["tokens"]
    assert made["windows"] == statistics["total"]["windows"] > 0
    kept = made["tokens"] + made["dropped_tokens"] + made["unused_tokens"]
    assert kept == total
    if policy == "documents":
        assert made["dropped_tokens"] == 0
    assert len(statistics["total"]["position_frequency"]["f"]) == 64


MISTAKES: dict[str, tuple[list[str], str]] = {
    "no source": (["tokenize"], "--source and --tokenizer missing"),
    "unknown source": (
        ["tokenize", "--source", "piel", "--tokenizer", "t", "--path", "."],
        "--source 'piel' is unknown; did you mean 'pile'?",
    ),
    "no path": (["tokenize", "--source", "pile", "--tokenizer", "t"], "--path missing"),
    "no revision": (
        ["tokenize", "--source", "hub", "--name", "a/b", "--tokenizer", "t"],
        "--revision missing",
    ),
    "sample": (
        ["tokenize", "--source", "pile", "--path", ".", "--tokenizer", "t", "--sample", "7"],
        "sample 7.0 must lie above 0 and not above 1",
    ),
    "target": (
        "tokenize --source govreport --path . --tokenizer t --prompt {text}".split(),
        "--target-field missing",
    ),
    "no tokens": (["pack", "--length", "8"], "--tokens missing"),
    "weights": (
        ["pack", "--tokens", "a", "--tokens", "b", "--weight", "1", "--length", "8"],
        "--weight is given 1 times for 2 --tokens",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_message_that_names_the_flag(
    mistake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against a traceback in the place of an answer."""
    words, message = MISTAKES[mistake]
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1


def test_a_file_that_is_not_there_is_named(
    pile: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against an empty corpus made of a split that does not exist."""

    def error(*words: Any) -> str:
        assert tokenize(pile, tokenizer, tmp_path / "out", *words) == 2
        return capsys.readouterr().err

    found = error("--split", "test")
    assert "test.jsonl.zst" in found
    assert "no file" in found or "matches" in found
    assert "absent.json" in error("--tokenizer", str(tmp_path / "absent.json"))
