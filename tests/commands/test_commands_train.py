"""`ropewalk train` by flags: a checkpoint of one's own, extended on a corpus of one's own."""

import json
import math
import re
import shlex
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from train_home import (
    TEXTS,
    VOCABULARY,
    WINDOW,
    Home,
    exported,
    metrics,
    parsed,
    process,
    tokenise,
)
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPTNeoXForCausalLM,
    LlamaForCausalLM,
)

from ropewalk.base.canonical import plain
from ropewalk.base.manifest import read_manifest
from ropewalk.base.spec import decode
from ropewalk.cli import main, parser
from ropewalk.commands import train_spec
from ropewalk.data.tokens import Tokens
from ropewalk.evaluate.spec import EvaluateJob
from ropewalk.model.spec import LinearRope, NaturalPositions, PlainRope, PosePositions
from ropewalk.train.spec import (
    Batch,
    Optimizer,
    Phase,
    PublishedWeights,
    Run,
    Schedule,
    TrainJob,
)


def test_commands_the_line_of_the_documentation_extends_a_checkpoint(
    home: Home, tmp_path: Path
) -> None:
    """Guards against a line that runs, and leaves the old model, or one nobody else can load."""
    out = tmp_path / "out"
    line = f"train --model {home.llama} --data {home.tokens} --rope linear --factor 4"
    line += f" --positions pose --target {4 * WINDOW} --steps 3 --out {out}"
    first = process(line.split())
    assert first.returncode == 0, first.stderr
    model = AutoModelForCausalLM.from_pretrained(out / "final")
    assert type(model) is LlamaForCausalLM
    assert model.config.rope_parameters["rope_type"] == "linear"
    assert model.config.rope_parameters["factor"] == 4
    assert model.config.max_position_embeddings == 128
    before = AutoModelForCausalLM.from_pretrained(home.llama).state_dict()
    moved = [not torch.equal(value, before[name]) for name, value in model.state_dict().items()]
    assert all(moved)
    read = AutoTokenizer.from_pretrained(out / "final")
    assert read(TEXTS[0]).input_ids == AutoTokenizer.from_pretrained(home.llama)(TEXTS[0]).input_ids
    entries = metrics(out)
    assert [entry["step"] for entry in entries] == [1, 2, 3]
    assert [entry["tokens"] for entry in entries] == [64 * 32 * n for n in (1, 2, 3)]
    assert all(abs(entry["loss"] - math.log(VOCABULARY)) < 0.3 for entry in entries)

    files = exported(out)
    again = process(line.split())
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("stands as it is") == 2  # windows and run
    assert "step 1/3" not in again.stdout
    assert exported(out) == files

    repeated = tmp_path / "repeated"
    words = ["train", "--spec", str(out / "spec.json"), "--out", str(repeated)]
    for name, folder in {
        "windows:by-hand:32": out / "windows-32",
        f"tokens:{home.tokens.name}": home.tokens,
        "tokenizer": home.tokens / "tokenizer",
    }.items():
        words += ["--input", f"{name}={folder / 'manifest.json'}"]
    assert main(words) == 0
    assert exported(repeated) == files


def test_commands_flags_build_the_spec_that_a_study_would_pass(home: Home, tmp_path: Path) -> None:
    """Guards against flags that are read and then change nothing, or something else."""
    out = tmp_path / "out"
    flags = "--rope linear --factor 4 --positions pose --target 100 --chunks 3 --content contiguous"
    flags += " --first random --length 24 --train-tokens 500 --lr 3e-3 --betas 0.8,0.99"
    flags += " --weight-decay 0.1 --clip 0.5 --schedule cosine --warmup 2 --warmup-from 0.2"
    flags += " --final-share 0.3 --seed 7 --precision bf16 --matmul high --attention sdpa"
    flags += " --snapshot-steps 1,2 --policy concat --checkpoint-every 9 --recompute"
    flags += " --sequences-per-forward 2"
    assert main([*home.start(*flags.split()), "--out", str(out)]) == 0
    written = json.loads((out / "spec.json").read_text())
    location = written["run"]["weights"]["location"]
    expected = Run(
        architecture=decode(TrainJob, written).run.architecture,
        tokenizer="by-hand",
        weights=PublishedWeights(location=location),
        phases=(
            Phase(
                windows="by-hand",
                length_tokens=24,
                tokens=500,
                rope=LinearRope(factor=4),
                positions=PosePositions(
                    target_tokens=100, chunks=3, content="contiguous", first="random"
                ),
            ),
        ),
        batch=Batch(sequences=4),
        optimizer=Optimizer(lr=3e-3, betas=(0.8, 0.99), weight_decay=0.1, clip_norm=0.5),
        schedule=Schedule(shape="cosine", warmup_steps=2, warmup_from=0.2, final=0.3),
        snapshot_steps=(1, 2),
        seed=7,
    )
    found = read_manifest(out / "manifest.json")
    numerics = {"precision": "bf16", "matmul": "high", "attention": "sdpa"}
    wanted = plain(TrainJob(run=expected), identity=True)
    assert found.spec == {"run": {**wanted["run"], "numerics": numerics}}
    architecture = found.spec["run"]["architecture"]
    assert (architecture["hidden"], architecture["context_tokens"]) == (64, WINDOW)
    hardware = written["run"]["hardware"]
    assert hardware["checkpoint_every_seconds"] == 9
    assert hardware["recompute_activations"]
    assert hardware["sequences_per_forward"] == 2
    windows = read_manifest(out / "windows-24" / "manifest.json").spec["windows"]
    assert (windows["policy"], windows["seed"]) == ("concat", 7)
    assert found.result["steps"] == 500 // (4 * 24)
    assert (out / "step-000001" / "config.json").is_file()


def test_commands_full_length_training_with_yarn(home: Home, tmp_path: Path) -> None:
    """Guards against rows of the old length where the whole new window was to be read."""
    out = tmp_path / "out"
    flags = "--rope yarn --factor 2 --beta-fast 16 --target 64 --steps 2"
    assert main([*home.start(*flags.split()), "--out", str(out)]) == 0
    assert read_manifest(out / "windows-64" / "manifest.json").spec["length_tokens"] == 64
    model = AutoModelForCausalLM.from_pretrained(out / "final")
    rope = model.config.rope_parameters
    assert (rope["rope_type"], rope["factor"], rope["beta_fast"]) == ("yarn", 2, 16)
    assert rope["original_max_position_embeddings"] == WINDOW
    assert rope["attention_factor"] == pytest.approx(0.1 * math.log(2) + 1)  # YaRN, eq. 22
    assert model.config.max_position_embeddings == 64
    assert [entry["tokens"] for entry in metrics(out)] == [4 * 64, 8 * 64]


def test_commands_static_ntk_for_gpt_neox(home: Home, tmp_path: Path) -> None:
    """Guards against a base computed from the whole head where a quarter of it is turned."""
    out = tmp_path / "out"
    flags = ["--rope", "ntk", "--factor", "4", "--positions", "randpos", "--target", "128"]
    words = home.start(*flags, "--steps", "2", model=home.neox)
    assert main([*words, "--out", str(out)]) == 0
    model = AutoModelForCausalLM.from_pretrained(out / "final")
    assert type(model) is GPTNeoXForCausalLM
    turned = 32 // 4  # dimensions of a head of 32, by GPT-NeoX's rotary share
    expected = 10000 * 4 ** (turned / (turned - 2))
    assert model.config.rope_parameters["rope_theta"] == pytest.approx(expected)
    assert model.config.max_position_embeddings == 128


def test_commands_rows_that_grow_from_random_weights(home: Home, tmp_path: Path) -> None:
    """Guards against phases that read more the longer their rows are."""
    out = tmp_path / "out"
    words = home.start("--lengths", "8,16,32", "--steps", "5", model=f"scratch:{home.neox}")
    assert main([*words, "--seed", "3", "--out", str(out)]) == 0
    entries = metrics(out)
    assert [entry["tokens"] for entry in entries] == [128 * n for n in (1, 2, 3, 4, 5)]
    phases = read_manifest(out / "manifest.json").spec["run"]["phases"]
    assert [(p["length_tokens"], p["steps"]) for p in phases] == [(8, 2), (16, 2), (32, 1)]
    assert all(
        read_manifest(out / f"windows-{n}" / "manifest.json").spec["length_tokens"] == n
        for n in (8, 16, 32)
    )
    other = AutoModelForCausalLM.from_pretrained(home.neox).state_dict()
    trained = AutoModelForCausalLM.from_pretrained(out / "final").state_dict()
    name = "gpt_neox.layers.0.attention.dense.weight"
    assert not torch.allclose(trained[name], other[name], atol=1e-2)
    assert read_manifest(out / "manifest.json").spec["run"]["weights"]["seed"] == 3


def test_commands_an_interrupted_line_goes_on_to_the_same_bytes(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against an early stop that looks like the end, or a second start from the start."""
    words = home.start("--rope", "base", "--base", "50000", "--length", "48", "--steps", "400")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main([*words, "--out", str(whole)]) == 0
    asking = threading.Thread(target=_stop_after_a_step, args=(parts,), daemon=True)
    asking.start()
    assert main([*words, "--out", str(parts)]) == 75
    asking.join()
    stopped = len(metrics(parts))
    assert 0 < stopped < 400
    assert f"stopped early after step {stopped} of 400" in capsys.readouterr().err
    assert not (parts / "final").exists()
    assert main([*words, "--out", str(parts)]) == 0
    assert f"goes on from step-{stopped:06d}" in capsys.readouterr().out
    assert exported(parts) == exported(whole)
    assert [e["loss"] for e in metrics(parts)] == [e["loss"] for e in metrics(whole)]


def _stop_after_a_step(out: Path) -> None:
    """Ask a run to stop as soon as it has made a step."""
    while not any(file.stat().st_size for file in out.glob("work-*/metrics.jsonl")):
        time.sleep(0.001)
    (work,) = out.glob("work-*")
    (work / "stop").touch()


def test_commands_a_dry_run_says_everything_and_writes_nothing(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against a preview that differs from what is then done."""
    out = tmp_path / "out"
    flags = "--rope linear --factor 2 --positions pose --target 128 --length 96 --steps 2"
    words = [*home.start(*flags.split()), "--out", str(out)]
    assert main([*words, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert not out.exists()
    shown = json.loads(said[said.index("\n{") :])
    lengths = Tokens(read_manifest(home.tokens / "manifest.json")).lengths
    usable = sum(int(n) >= 96 for n in lengths)
    assert 0 < usable < len(TEXTS)
    line = f"{usable} windows from {usable} of 60 documents; {8 / usable:.2f} epochs"
    assert line in said
    assert "positions reach 128, beyond the 64 tokens" in said
    model = AutoModelForCausalLM.from_pretrained(home.llama)
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in said
    assert main(words) == 0
    said = capsys.readouterr().out
    assert line in said
    assert json.loads((out / "spec.json").read_text()) == shown


@pytest.mark.parametrize("page", ["README.md", "docs/training.md"])
def test_commands_the_lines_of_the_documentation_are_commands(page: str) -> None:
    """Guards against a page whose lines name flags that are gone."""
    text = (Path(__file__).parents[2] / page).read_text().replace("\\\n", " ")
    found = re.findall(r"^    (ropewalk (?:train|tokenize|evaluate) (?:.|\n     )*)", text, re.M)
    lines = [shlex.split(line)[1:] for line in found if "--help" not in line]
    trained = [parser().parse_args(line) for line in lines if line[0] == "train"]
    assert len(lines) > len(trained) > 0
    for options in (parser().parse_args(line) for line in lines):
        if options.command == "evaluate":
            decode(EvaluateJob, json.loads(options.spec))
    first = trained[0]
    assert (first.rope, first.factor, first.positions, first.target) == ("linear", 4, "pose", 8192)


NUMERICS: dict[str, tuple[tuple[int, int] | None, str, tuple[str, str]]] = {
    "cpu": (None, "", ("fp32", "sdpa")),
    "cpu as asked": (None, "--precision bf16", ("bf16", "sdpa")),
    "V100": ((7, 0), "", ("fp16", "sdpa")),
    "V100 as asked": ((7, 0), "--precision bf16 --attention flash", ("bf16", "flash")),
    "A100": ((8, 0), "", ("bf16", "flash")),
    "A100 in fp32": ((8, 0), "--precision fp32", ("fp32", "sdpa")),
    "A100 in fp16": ((8, 0), "--precision fp16", ("fp16", "flash")),
    "H100 as asked": ((9, 0), "--attention sdpa", ("bf16", "sdpa")),
}


@pytest.mark.parametrize("case", NUMERICS)
def test_commands_hardware_fills_in_what_was_not_said(case: str) -> None:
    """Guards against hardware that changes what somebody asked for."""
    capability, flags, expected = NUMERICS[case]
    found = train_spec.numerics(parsed(*flags.split()), capability)
    assert (found.precision, found.attention) == expected
    assert found.matmul == "highest"


@given(
    lengths=st.lists(st.integers(2, 60), min_size=2, max_size=6, unique=True),
    steps=st.integers(1, 200),
)
def test_commands_growing_rows_share_the_steps_and_read_equally(
    lengths: list[int], steps: int
) -> None:
    """Guards against steps lost in the split, and steps that grow with the rows."""
    assume(steps >= len(lengths))
    tokens = math.lcm(*lengths)
    words = ["--lengths", ",".join(map(str, lengths)), "--batch-tokens", str(tokens)]
    by_steps = parsed(*words, "--steps", str(steps))
    by_tokens = parsed(*words, "--train-tokens", str(steps * tokens + tokens - 1))
    for options in (by_steps, by_tokens):
        rows = train_spec.lengths(options, WINDOW)
        size = train_spec.batch(options, rows)
        found = train_spec.phases(options, rows, size, PlainRope(), NaturalPositions())
        counts = [phase.steps or 0 for phase in found]
        assert sum(counts) == steps
        assert max(counts) - min(counts) <= 1
        assert [phase.length_tokens for phase in found] == lengths
        assert size.tokens == tokens


def test_commands_a_mixture_has_its_weights(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against weights dealt out to the wrong corpus, and two folders of one name."""
    other = tokenise(tmp_path / "other", home.llama, TEXTS[:30])  # a folder `tokens` as well
    words = home.start("--data", str(other), "--weight", "1", "--weight", "3", "--steps", "1")
    assert main([*words, "--policy", "concat", "--out", str(tmp_path / "out")]) == 0
    facts = read_manifest(tmp_path / "out" / "windows-32" / "manifest.json").result["by_corpus"]
    total = sum(part["windows"] for part in facts.values())
    assert facts["tokens"]["documents"] == 60
    assert facts["tokens-2"]["documents"] == 30
    assert facts["tokens-2"]["windows"] / total == pytest.approx(0.75, abs=1 / total)


def test_commands_a_run_is_its_weights_not_their_folder(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against other weights under the same name, trained as if they were the old ones."""
    model, moved, out = tmp_path / "model", tmp_path / "moved", tmp_path / "out"
    shutil.copytree(home.llama, model)

    def train(folder: Path) -> tuple[int, str, str]:
        code = main([*home.start("--steps", "1", model=folder), "--out", str(out)])
        return (code, *capsys.readouterr())

    assert train(model)[0] == 0
    files = exported(out)
    shutil.move(model, moved)
    code, said, _ = train(moved)
    assert code == 0
    assert said.count("stands as it is") == 2
    changed = AutoModelForCausalLM.from_pretrained(moved)
    with torch.no_grad():
        changed.model.norm.weight[5] += 1e-3
    changed.save_pretrained(moved)
    code, _, error = train(moved)
    assert code == 2
    assert "holds another run (run.weights.location by-hand@" in error
    assert exported(out) == files


def test_commands_a_model_of_the_hub_is_pinned_to_its_commit(home: Home, tmp_path: Path) -> None:
    """Guards against a run that becomes another one when somebody pushes to the hub."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--some--llama"
    shutil.copytree(home.llama, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    words = home.start("--steps", "1", "--out", str(tmp_path / "out"), model="hub:some/llama")
    found = process([*words, "--dry-run"], **offline)
    assert found.returncode == 0, found.stderr
    spec = json.loads(found.stdout[found.stdout.index("\n{") :])
    weights = {"kind": "published", "hub": "some/llama", "revision": commit}
    assert spec["run"]["weights"] == weights
    assert "folder" not in spec
    absent = process([word.replace("some/", "other/") for word in words], **offline)
    assert absent.returncode == 2
    assert "--model hub:other/llama: cannot be downloaded" in absent.stderr
