"""`ropewalk evaluate` a second time: what stands, what a dry run leaves, what a kill leaves."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from evaluate_home import COUNT, Place, run, settled
from train_home import TEXTS, WINDOW

from ropewalk.cli import main

STRIDE = 8


def test_commands_the_same_line_again_measures_nothing(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against hours done twice, and against old numbers taken for new ones."""
    out = tmp_path / "r.json"
    flags = ["--protocol", "pi_sliding", "--stride", "4", "--data", str(place.jsonl)]
    first = run(out, place.llama, *flags)
    written = out.read_bytes()
    capsys.readouterr()
    assert run(out, place.llama, *flags, "--sequences-per-forward", "3") == first
    assert f"{out} stands as it is" in capsys.readouterr().out
    assert out.read_bytes() == written
    assert list(tmp_path.iterdir()) == [out]

    again = run(out, place.llama, *flags, "--again")
    assert settled(again) == settled(first)
    assert out.read_bytes() != written  # times differ

    words = ["evaluate", "--model", str(place.llama), "--protocol", "pi_sliding"]
    words += ["--data", str(place.jsonl), "--out", str(out)]
    written = out.read_bytes()
    assert main([*words, "--stride", "5"]) == 2
    error = capsys.readouterr().err
    assert "--stride 4 there, 5 here" in error
    assert "or --again to replace it" in error
    assert out.read_bytes() == written
    assert list(tmp_path.iterdir()) == [out]
    assert main([*words, "--stride", "5", "--again"]) == 0
    assert json.loads(out.read_text())["stride_tokens"] == 5

    shutil.copytree(place.gpt2, tmp_path / "weights")
    shutil.copytree(place.llama, tmp_path / "config")
    config = json.loads((tmp_path / "config" / "config.json").read_text())
    (tmp_path / "config" / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    text = tmp_path / "data.jsonl"
    text.write_text(place.jsonl.read_text().replace("walk", "path", 1))
    for name, change in {
        "weights": (2, tmp_path / "weights"),
        "config": (2, tmp_path / "config"),
        "data": (6, text),
    }.items():
        place_of, value = change
        changed = [*words[:place_of], str(value), *words[place_of + 1 :]]
        assert main([*changed, "--stride", "5"]) == 2
        assert f"{name} " in capsys.readouterr().err

    (tmp_path / "mine.json").write_text("{}")
    words[-1] = str(tmp_path / "mine.json")
    assert main([*words, "--stride", "5", "--again"]) == 2
    assert "is no result of this command" in capsys.readouterr().err
    assert (tmp_path / "mine.json").read_text() == "{}"


def test_commands_a_dry_run_leaves_nothing(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against an estimate that costs what it estimates, or of another plan."""
    out = tmp_path / "r.json"
    flags = f"--protocol pi_sliding --context 16,{WINDOW} --stride 4 --data {place.jsonl}".split()
    words = ["evaluate", "--model", str(place.llama), *flags, "--out", str(out)]
    assert main([*words, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    result = run(out, place.llama, *flags)
    assert f"reads {result['cost']['tokens_read']} tokens" in said
    assert f"scores {result['cost']['tokens_scored']}" in said
    assert f"about {result['cost']['flops'] / 1e12:.3g} TFLOP" in said
    assert f"contexts [16, {WINDOW}]" in said


def test_commands_scores_are_kept_where_asked(place: Place, tmp_path: Path) -> None:
    """Guards against the loss of every token thrown away that was to be looked at."""
    out = tmp_path / "r.json"
    flags = f"--protocol pi_sliding --context 16,{WINDOW} --stride 4 --data {place.jsonl}".split()
    result = run(out, place.llama, *flags, "--keep")
    with pa.memory_map(result["scores"]) as file:
        table = pa.ipc.open_file(file).read_all()
    labels = table["context"].to_numpy(zero_copy_only=False)
    for label, found in result["contexts"].items():
        nll = table["nll"].to_numpy().astype(np.float64)[labels == label]
        assert len(nll) == found["tokens_scored"]
        assert nll.sum() == pytest.approx(found["nll_sum"], rel=1e-12)
    assert run(out, place.llama, *flags) == result
    assert Path(result["scores"]).is_file()  # what was kept stays where the file names it


def test_commands_a_killed_evaluation_goes_on(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against blocks scored twice, lost, or taken from before the kill and other numbers."""
    contexts = ",".join(map(str, range(8, WINDOW + 1, 4)))  # a block each
    (tmp_path / "long.jsonl").write_text(json.dumps({"text": " ".join(TEXTS[:COUNT])}))
    flags = ["--protocol", "pi_sliding", "--context", contexts, "--stride", "4"]
    flags += ["--data", str(tmp_path / "long.jsonl"), "--sequences-per-forward", "1"]
    whole = run(tmp_path / "whole.json", place.llama, *flags)

    out = tmp_path / "r.json"
    blocks = tmp_path / "r.json.work" / "blocks"
    words = ["evaluate", "--model", str(place.llama), *flags, "--out", str(out)]
    victim = subprocess.Popen(
        [sys.executable, "-m", "ropewalk.cli", *words],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    while victim.poll() is None and len(list(blocks.glob("*.arrow"))) < 2:
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL
    assert not out.exists()
    before = list(blocks.glob("*.arrow"))
    assert 2 <= len(before) < len(whole["contexts"])

    capsys.readouterr()
    assert run(out, place.llama, *flags)["key"] == whole["key"]
    scored = capsys.readouterr().out.count("of the tokens read")
    assert scored == len(whole["contexts"]) - len(before)  # the others were read
    assert settled(json.loads(out.read_text())) == settled(whole)
    assert not blocks.parent.exists()
