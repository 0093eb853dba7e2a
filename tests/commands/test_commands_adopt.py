"""`ropewalk train --adopt`: a stranger's checkpoint becomes a run that says where it is from."""

import hashlib
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from train_home import Home, exported, process
from transformers import AutoModelForCausalLM

from ropewalk.base.manifest import read_manifest
from ropewalk.cli import main, parser

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def adopt(model: Path | str, out: Path, *more: str) -> list[str]:
    return ["train", "--adopt", "--model", str(model), "--out", str(out), *more]


def test_commands_a_folder_is_adopted_and_can_be_measured(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against an adopted model with other weights, tokenizer or rope than the authors'."""
    out = tmp_path / "out"
    assert main([*adopt(home.llama, out), "--dry-run"]) == 0
    assert not out.exists()
    assert main(adopt(home.llama, out)) == 0
    said = capsys.readouterr().out
    weights = hashlib.sha256((home.llama / "model.safetensors").read_bytes()).hexdigest()
    assert f"model.safetensors sha256 {weights}" in said
    assert "training    none: the weights are taken as they are" in said
    manifest = read_manifest(out / "manifest.json")
    assert manifest.result["origin"]["files"] == {"model.safetensors": weights}
    assert manifest.result["steps"] == 0
    ours, theirs = (AutoModelForCausalLM.from_pretrained(f) for f in (out / "final", home.llama))
    ids = torch.arange(2, 30)[None]
    with torch.inference_mode():
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits)

    spec = {
        "protocol": {
            "kind": "same_tokens",
            "contexts": {"1x": 16},
            "scored_tokens": 8,
            "documents": 4,
        },
        "snapshots": "all",
        "numerics": {},
        "seed": 0,
    }
    words = ["evaluate", "--spec", json.dumps(spec), "--out", str(tmp_path / "loss")]
    for name, folder in {
        "run": out,
        "tokens": home.tokens,
        "tokenizer": home.tokens / "tokenizer",
    }.items():
        words += ["--input", f"{name}={folder / 'manifest.json'}"]
    assert main(words) == 0
    result = json.loads((tmp_path / "loss" / "result.json").read_text())
    assert len(result["snapshots"]["0"]["contexts"]["1x"]["documents"]) == 4

    files = exported(out)
    assert main(adopt(home.llama, out)) == 0
    assert "stands as it is" in capsys.readouterr().out
    assert main(adopt(home.neox, out)) == 2
    assert f"--out {out} holds another run" in capsys.readouterr().err
    assert exported(out) == files


def test_commands_a_model_of_the_hub_is_adopted_at_its_commit(home: Home, tmp_path: Path) -> None:
    """Guards against a name without a commit: main is another model next week."""
    repository = tmp_path / "hub" / "models--some--llama"
    shutil.copytree(home.llama, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    out = tmp_path / "out"
    found = process(adopt("hub:some/llama", out), **offline)
    assert found.returncode == 0, found.stderr
    assert f"hub:some/llama at {COMMIT}" in found.stdout
    origin = json.loads((out / "manifest.json").read_text())["origin"]
    assert (origin["hub"], origin["commit"]) == ("some/llama", COMMIT)
    kept, theirs = (load_file(f / "model.safetensors") for f in (out / "final", home.llama))
    assert all(torch.equal(kept[name], theirs[name]) for name in theirs)
    spec = read_manifest(out / "tokenizer" / "manifest.json").spec["tokenizer"]
    assert (spec["hub"], spec["revision"]) == ("some/llama", COMMIT)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps", "3"], "--steps is for training; --adopt takes weights as they are"),
        (["--rope", "linear"], "--rope is for training"),
        (["--tokenizer", "{home}/nowhere"], "nowhere/manifest.json does not exist"),
    ],
)
def test_commands_adopting_refuses_what_would_do_nothing(
    home: Home,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    """Guards against a training that somebody asked for and that was never done."""
    words = adopt(home.llama, tmp_path / "out", *(f.format(home=tmp_path) for f in flags))
    assert main(words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "final").exists()


def test_commands_the_lines_of_the_documentation_are_commands() -> None:
    """Guards against a page whose lines name flags that are gone."""
    text = (Path(__file__).parents[2] / "docs" / "published.md").read_text().replace("\\\n", " ")
    found = re.findall(r"^    (ropewalk (?:train|evaluate|show) .*)", text, re.M)
    parsed = [parser().parse_args(shlex.split(line, comments=True)[1:]) for line in found]
    assert [options.command for options in parsed] == ["train", "evaluate", "show"]
    assert parsed[0].adopt
    assert Path(parsed[1].model).parent == parsed[0].out


def test_commands_adopting_random_weights_is_refused(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against noise that passes for somebody's model."""
    assert main(adopt(f"scratch:{home.llama}", tmp_path / "out")) == 2
    assert "has no weights; give a folder or hub:NAME" in capsys.readouterr().err
