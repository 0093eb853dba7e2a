"""The overlays of docs/published.md: a released checkpoint is adopted, measured and judged."""

import hashlib
import json
import shutil
import textwrap

import pytest

from .project import ROOT, Project

OURS = "results/tiny/runs/position_interpolation/pi-tiny-4x-python/final"


def shown(name: str, after: str) -> str:
    """Return the YAML that the page says to put into the file `name`."""
    text = (ROOT / "docs" / "published.md").read_text()
    lines = text[text.index(f"`{name}`:\n", text.index(after)) :].splitlines()[2:]
    end = next(i for i, line in enumerate(lines) if line.startswith("    snakemake"))
    return textwrap.dedent("\n".join(lines[:end]))


def test_a_released_checkpoint_is_measured_beside_ours(copied: Project) -> None:
    """Guards against an example that no longer loads, and an origin that nobody says."""
    elsewhere = copied.folder / "elsewhere"
    shutil.copytree(copied.folder / OURS, elsewhere)
    (copied.folder / "released.yaml").write_text(shown("released.yaml", "## In a study"))
    copied.edit("config.yaml", "[overlay.yaml]", "[overlay.yaml, released.yaml]")
    copied.edit("config.yaml", "locations:\n", f"locations:\n  released: {elsewhere}\n")
    jobs, _ = copied.planned()
    made = {(rule, words) for rule, words in jobs if rule in ("train", "evaluate")}
    assert {rule for rule, _ in made} == {"train", "evaluate"}
    assert len(made) == 2
    assert all("run=released" in words for _, words in made)
    assert "(not yet)" in copied.run("ropewalk", "show", "pose").stdout

    copied.snakemake("pose")
    manifest = copied.manifest("results/tiny/runs/pose/released")
    weights = hashlib.sha256((elsewhere / "model.safetensors").read_bytes()).hexdigest()
    origin = {"location": "released", "files": {"model.safetensors": weights}}
    assert manifest["origin"] == origin
    config, theirs = (
        json.loads((folder / "config.json").read_text())
        for folder in (copied.folder / "results/tiny/runs/pose/released/final", elsewhere)
    )
    assert config["rope_parameters"] == theirs["rope_parameters"]
    assert config["rope_parameters"]["rope_type"] == "linear"
    said = copied.run("ropewalk", "show", "pose").stdout
    assert f"adopted: released: model.safetensors sha256 {weights}" in said

    judged = json.loads((copied.folder / "results/tiny/judged/pose/judged.json").read_text())
    claim = judged["claims"]["released_is_no_worse"]
    assert claim["outcome"] in ("reproduced", "contradicted", "inconclusive")
    ours = copied.folder / "results/tiny/evaluations/position_interpolation/perplexity"
    ours = ours / "position_interpolation/pi-tiny-4x-python/result.json"
    by_pi = json.loads(ours.read_text())
    released = "results/tiny/evaluations/pose/perplexity/pose/released/result.json"
    here = json.loads((copied.folder / released).read_text())["snapshots"]["0"]["contexts"]["4x"]
    there = by_pi["snapshots"][str(by_pi["final_step"])]["contexts"]["4x"]
    same = set(here["documents"]) & set(there["documents"])
    assert same
    sums = [dict(zip(c["documents"], c["nll_sums"], strict=True)) for c in (here, there)]
    assert [sums[0][d] for d in same] == pytest.approx([sums[1][d] for d in same], rel=1e-6)


def test_the_authors_checkpoint_is_planned_at_the_scale_of_the_paper(tmp_path) -> None:
    """Guards against an example of the paper's size whose names do not fit each other."""
    fresh = Project(tmp_path)
    (fresh.folder / "authors.yaml").write_text(shown("authors.yaml", "## In a study"))
    fresh.edit("config.yaml", "# overlays: [my.yaml]", "overlays: [authors.yaml] #")
    text = fresh.snakemake("-n", "pose", "--config", "scale=paper").stdout
    run = "run=authors-linear-16k-llama-7B"
    blocks = [block for block in text.split("\n[") if run in block]
    rules = sorted(block.split("rule ")[1].split(":")[0] for block in blocks)
    assert rules.count("train") == 1
    assert rules.count("evaluate") >= 2
    assert all("gpus=" not in b or "gpus=0" in b for b in blocks if "rule train:" in b)
