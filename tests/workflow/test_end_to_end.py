"""The shipped scale `tiny` from nothing to the report, and a report that can say no."""

import json
import shlex
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from .project import Project

RUNS = "results/tiny/runs"
MEASURED = "results/tiny/evaluations/position_interpolation"
JUDGED = "results/tiny/judged/position_interpolation"
ARMS = ("direct-tiny-4x-python", "pi-tiny-4x-python")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return a project in which the shipped tiny scale was made."""
    project = Project(tmp_path_factory.mktemp("tiny"))
    project.snakemake("all", "--config", "scale=tiny")
    return project


def judged(project: Project, folder: str = JUDGED) -> dict:
    return json.loads((project.folder / folder / "judged.json").read_text())


def outcomes(project: Project, folder: str = JUDGED) -> dict[str, str]:
    return {name: claim["outcome"] for name, claim in judged(project, folder)["claims"].items()}


def by_hand(
    project: Project, stage: str, manifest: str, out: str, replaced: dict[str, str]
) -> None:
    """Run a stage as the workflow does, with some inputs replaced by other manifests."""
    code = (
        "from pathlib import Path\n"
        "from ropewalk.study.lookups import Lookups\n"
        "from ropewalk.study.project import read_config_file\n"
        "config = {**read_config_file(Path('config.yaml')), 'scale': 'tiny'}\n"
        "lookups = Lookups.load(config, Path('.').resolve())\n"
        f"node = lookups.plan.nodes[{manifest!r}]\n"
        "print(lookups.arguments(node.stage, node.wildcards))\n"
    )
    words = shlex.split(project.run("python", "-c", code).stdout)
    words[words.index("--out") + 1] = out
    for old, new in replaced.items():
        changed = [w.replace(f"={old}", f"={new}") if f"={old}" in w else w for w in words]
        assert changed != words, old
        words = changed
    project.run("ropewalk", stage, *words)


def test_report_holds_pages_tables_and_verdicts(tiny: Project) -> None:
    report = tiny.folder / "results/tiny/report"
    page = (report / "position_interpolation.html").read_text()
    assert "<svg" in page
    assert "<script" not in page
    data = json.loads((report / "report.json").read_text())
    study = data["studies"]["position_interpolation"]
    assert study["claims"]
    for name in ("table_1", "table_3", "table_4"):
        cells = study["tables"][name]["rows"]
        assert any(cell.get("number") is not None for row in cells for cell in row["cells"])
        assert any(cell["printed"] for row in cells for cell in row["cells"])
    assert not [n for n, c in study["claims"].items() if c["outcome"] == "error"]
    for anchor in ("retrieval-distance", "copy-distance", "position", "conventions", "cost"):
        assert f'id="{anchor}"' in page
    for figure in ("by_convention", "by_distance", "by_position", "copied"):
        assert study["figures"][figure]
    (strip,) = study["figures"]["by_convention"]
    assert len(strip["points"]) == 6
    assert strip["spread"] > 0
    dropped = {(e["evaluation"], e["dropped"]) for e in study["lost"]}
    assert dropped == {("position_interpolation/retrieval", 1)}  # the whole context
    assert "Counted and left out" in page


def test_claims_the_scale_promised_are_decided(tiny: Project) -> None:
    claims = judged(tiny)["claims"]
    promised = [name for name, claim in claims.items() if claim["promised"]]
    assert promised
    assert all(claims[name]["kept"] for name in promised)


def test_second_call_does_nothing(tiny: Project) -> None:
    done = tiny.snakemake("all", "--config", "scale=tiny")
    assert "Nothing to be done" in done.stdout + done.stderr


@pytest.mark.parametrize("run", ["shared/base", *(f"position_interpolation/{a}" for a in ARMS)])
def test_transformers_reproduces_the_evaluated_loss(tiny: Project, run: str) -> None:
    """A checkpoint that loads but gives other losses than the report's is worse than none."""
    import torch
    import transformers

    folder = tiny.folder / MEASURED / "perplexity" / run
    result = json.loads((folder / "result.json").read_text())
    with pa.memory_map(str(folder / "scores.arrow")) as source:
        scores = pa.ipc.open_file(source).read_all().to_pandas()
    final = scores[(scores.snapshot == result["final_step"]) & (scores.context == "4x")]
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny.folder / RUNS / run / "final")
    tokens = documents(tiny.folder / "results/data/tokens/python-tiny-test/bpe-512")
    name = final.document.iloc[0]
    scored = final[final.document == name].sort_values("position")
    last = int(scored.position.max())
    ids = torch.tensor(tokens[name][last - 255 : last + 1].astype(np.int64))[None]
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits[0].float()
    nll = torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:], reduction="none")
    expected = scored.nll.to_numpy()
    np.testing.assert_allclose(nll[-len(expected) :].numpy(), expected, atol=2e-4)


def documents(folder: Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for shard in sorted(folder.rglob("*.arrow")):
        with pa.memory_map(str(shard)) as source:
            table = pa.ipc.open_file(source).read_all()
        for name, ids in zip(table["document"], table["input_ids"], strict=True):
            found[name.as_py()] = ids.values.to_numpy()
    return found


def test_swapped_checkpoints_change_verdicts(tiny: Project) -> None:
    """The report must be able to say no: the arms' weights change places, nothing else does."""
    swapped: dict[str, str] = {}
    for own, other in (ARMS, ARMS[::-1]):
        for evaluation in ("perplexity", "retrieval"):
            folder = f"{MEASURED}/{evaluation}/position_interpolation/{own}"
            out = f"results/swapped/{evaluation}/{own}"
            weights = f"{RUNS}/position_interpolation"
            by_hand(
                tiny,
                "evaluate",
                f"{folder}/manifest.json",
                out,
                {f"{weights}/{own}/manifest.json": f"{weights}/{other}/manifest.json"},
            )
            swapped[f"{folder}/manifest.json"] = f"{out}/manifest.json"
    by_hand(tiny, "judge", f"{JUDGED}/manifest.json", "results/swapped/judged", swapped)
    before, after = outcomes(tiny), outcomes(tiny, "results/swapped/judged")
    assert before["untrained_pi_bounded"] == "reproduced"
    assert after["untrained_pi_bounded"] != "reproduced"  # direct fine-tuning starts unscaled
    assert {before["pi_beats_direct"], after["pi_beats_direct"]} == {"contradicted", "reproduced"}
    theory = [name for name in before if name.startswith(("theorem", "figure", "six"))]
    assert {n: before[n] for n in theory} == {n: after[n] for n in theory}


def test_training_with_learning_rate_zero_changes_verdicts(tiny: Project) -> None:
    overlay = tiny.folder / "no_learning.yaml"
    overlay.write_text(
        "position_interpolation: { runs: { extend: { spec: { optimizer: { lr: 0.0 } } } } }\n"
    )
    config = (tiny.folder / "config.yaml").read_text()
    other = tiny.folder / "other.yaml"
    other.write_text(
        config.replace("scale: mini", "scale: tiny\nname: frozen\noverlays: [no_learning.yaml]")
    )
    tiny.snakemake("position_interpolation", "--configfile", "other.yaml")
    before, after = outcomes(tiny), outcomes(tiny, "results/frozen/judged/position_interpolation")
    assert before["fine_tuning_repairs"] == "reproduced"
    assert after["fine_tuning_repairs"] != "reproduced"
