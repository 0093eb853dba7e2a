"""Every setting with its source: the authors, or us."""

import json
from pathlib import Path
from typing import Any

import pytest
from study_samples import DEMO, SHARED, changed, plan, write

from ropewalk.base.canonical import leaves
from ropewalk.base.manifest import write_manifest
from ropewalk.base.spec import SpecError
from ropewalk.cli import main
from ropewalk.study.show import CLASSES, SECTIONS, adopted, lines, resolved

MINI_SHARED = """
scales:
  mini:
    architectures: { small: { layers: 2 } }
"""
MINI_DEMO = """
scales:
  mini:
    runs: { extend: { spec: { seed: 4, optimizer: { lr: 1.0e-3 } } } }
"""


def test_json_keeps_the_key_paths_of_the_spec(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against scripts that look for a setting where it no longer is."""
    write(tmp_path)
    (tmp_path / "config.yaml").write_text("scale: mini\n")
    monkeypatch.chdir(tmp_path)
    assert main(["show", "demo", "--scale", "paper", "--json"]) == 0
    shown: dict[str, Any] = json.loads(capsys.readouterr().out)
    run = shown["runs"]["pi-4x"]
    assert run["optimizer"]["lr"] == 1e-4
    assert run["phases"][0]["rope"] == {"kind": "linear", "factor": 4.0}
    assert run["start"] == "shared/base"
    assert shown["evaluations"]["loss"]["protocol"]["contexts"] == {"1x": 16, "2x": 32}
    assert shown["provenance"]["runs.pi-4x.optimizer.lr"] == "paper"
    assert set(shown["data"]) == {"inventory", "tokenizer", "tokenize", "pack"}
    assert shown["scale"] == "paper"


def test_an_unknown_study_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against a traceback for a typing error."""
    write(tmp_path)
    (tmp_path / "config.yaml").write_text("scale: mini\n")
    monkeypatch.chdir(tmp_path)
    assert main(["show", "dem"]) == 2
    assert "study 'dem' is unknown; did you mean 'demo'?" in capsys.readouterr().err
    with pytest.raises(SpecError):
        resolved(plan(tmp_path), "dem")


def test_every_leaf_has_a_class_and_the_last_pattern_wins(tmp_path: Path) -> None:
    """Guards against settings of nobody, and against a pattern that hides a later one."""
    rows = {"rows": {"length_tokens": 32, "sequences": 4}}
    cost = {("calibrations", "cost"): {"run": "demo/pi-2x", "shapes": rows}}
    shown = resolved(plan(write(tmp_path, demo=changed(DEMO, cost))), "demo")
    body = {section: shown[section] for section in SECTIONS if shown[section]}
    assert set(body) == set(SECTIONS)
    assert set(shown["provenance"]) == {path for path, _ in leaves(body)}
    assert shown["provenance"]["runs.pi-2x.seed"] == "assumed"
    assert shown["provenance"]["runs.pi-2x.batch.sequences"] == "paper"
    assert not set(shown["provenance"].values()) - set(CLASSES)


def test_what_no_pattern_covers_is_seen(tmp_path: Path) -> None:
    """Guards against a setting without a source that passes for the paper's."""
    demo = DEMO.replace('"evaluations.*": paper, ', "")
    classes = resolved(plan(write(tmp_path, demo=demo)), "demo")["provenance"]
    assert classes["evaluations.loss.corpus"] == ""


def test_what_a_scale_writes_is_the_scales(tmp_path: Path) -> None:
    """Guards against a small model's shape shown as the paper's."""
    write(tmp_path, demo=DEMO + MINI_DEMO, shared=SHARED + MINI_SHARED)
    classes = resolved(plan(tmp_path, scale="mini"), "demo")["provenance"]
    ours = {path for path, kind in classes.items() if kind == "scale"}
    assert ours == {
        f"runs.{run}.{key}"
        for run in ("pi-2x", "pi-4x", "direct-2x")
        for key in ("seed", "optimizer.lr", "architecture.layers")
    }
    assert "scale" not in resolved(plan(tmp_path, scale="paper"), "demo")["provenance"].values()


def test_an_evaluation_is_shown_as_it_applies_to_each_run(tmp_path: Path) -> None:
    """Guards against a context that an override adds and that no reader of the settings sees."""
    shown = resolved(plan(write(tmp_path)), "demo")
    loss = shown["evaluations"]["loss"]
    assert set(loss["runs"]) == {"shared/base", "demo/pi-2x", "demo/pi-4x", "demo/direct-2x"}
    contexts = {run: applied["protocol"]["contexts"] for run, applied in loss["runs"].items()}
    assert contexts.pop("demo/pi-4x") == {"1x": 16, "2x": 32, "4x": 64}
    assert list(contexts.values()) == [loss["protocol"]["contexts"]] * 3
    classes = shown["provenance"]
    assert classes["evaluations.loss.runs.demo/pi-4x.protocol.contexts.4x"] == "paper"
    assert classes["evaluations.loss.runs.demo/pi-4x.seed"] == "assumed"


def test_what_an_override_of_a_scale_sets_is_the_scales(tmp_path: Path) -> None:
    """Guards against a scale's own context that passes for the paper's, in the runs it concerns."""
    mini = """
scales:
  mini:
    evaluations: { loss: { overrides: { longer: { set: { protocol.contexts.4x: 48 } } } } }
"""
    write(tmp_path, demo=DEMO + mini, shared=f"{SHARED}scales: {{ mini: {{}} }}\n")
    classes = resolved(plan(tmp_path, scale="mini"), "demo")["provenance"]
    ours = {path for path, kind in classes.items() if kind == "scale"}
    assert ours == {"evaluations.loss.runs.demo/pi-4x.protocol.contexts.4x"}


def test_data_settings_have_the_class_of_their_definition(tmp_path: Path) -> None:
    """Guards against a limit or a policy of ours that a reader cannot tell from the paper's.

    The study's own globs go before the shared ones; what a stage adds itself has a class too.
    """
    shown = resolved(plan(write(tmp_path)), "demo")
    classes = shown["provenance"]
    assert classes["data.tokenize.train/bpe.corpus.split"] == "seed"
    assert classes["data.tokenize.test/bpe.corpus.split"] == "paper"
    assert classes["data.tokenizer.bpe.corpus.split"] == "seed"
    assert classes["data.inventory.text.source.distributions"] == "assumed"
    assert classes["data.pack.plain/32.windows.policy"] == "assumed"
    assert classes["data.pack.plain/32.length_tokens"] == "paper"
    assert classes["data.pack.plain/16.length_tokens"] == "assumed"
    assert classes["data.tokenize.train/bpe.shard_tokens"] == "assumed"
    assert classes["data.tokenizer.bpe.tokenizer.bos"] == "assumed"
    assert set(shown["data"]["tokenize"]) == {"train/bpe", "test/bpe"}
    assert shown["data"]["pack"]["plain/32"]["windows"]["mixture"] == [
        {"corpus": "train", "weight": 1.0}
    ]


def test_what_a_scale_writes_into_data_and_claims_is_the_scales(tmp_path: Path) -> None:
    """Guards against a small corpus, or a weaker rule, that passes for the body's."""
    shared = f"{SHARED}scales: {{ mini: {{ corpora: {{ train: {{ sample: 0.5 }} }} }} }}\n"
    mini = (
        "scales: { mini: { claims: { exact: { rule: { at_least: 2.0 } } }, decides: [exact] } }\n"
    )
    write(tmp_path, demo=DEMO + mini, shared=shared)
    classes = resolved(plan(tmp_path, scale="mini"), "demo")["provenance"]
    assert {path for path, kind in classes.items() if kind == "scale"} == {
        "data.tokenize.train/bpe.corpus.sample",
        "data.tokenizer.bpe.corpus.sample",
        "claims.exact.rule.at_least",
        "decides",
    }


def test_claims_checks_and_tables_are_settings_too(tmp_path: Path) -> None:
    """Guards against a threshold that only the YAML shows."""
    shown = resolved(plan(write(tmp_path)), "demo")
    assert shown["claims"]["exact"]["rule"]["at_least"] == 1.0
    assert shown["checks"]["theory"] == {
        "check": "pi_random_fit",
        "parameters": {"seed": 0},
        "windows": {},
    }
    assert shown["tables"]["one"]["columns"] == ["1x", "2x"]
    assert shown["decides"] == ["better"]


def test_lines_say_all_that_the_json_says(tmp_path: Path) -> None:
    """Guards against a reader of the text who misses what only the JSON has."""
    shown = resolved(plan(write(tmp_path)), "demo")
    text = "\n".join(lines(shown))
    for path, kind in shown["provenance"].items():
        assert f"{kind:8} {path} = " in text


def test_published_weights_are_shown_with_what_they_turned_out_to_be(tmp_path: Path) -> None:
    """Guards against a name such as main that passes for a checkpoint."""
    released = {
        ("models", "released"): {
            "architecture": "small",
            "tokenizer": "bpe",
            "weights": {"kind": "published", "hub": "lab/model", "revision": "main"},
        },
        ("runs", "released"): {"name": "released", "spec": {"model": "released"}},
    }
    made = plan(write(tmp_path, shared=changed(SHARED, released)))
    asked = {"released": {"hub": "lab/model", "revision": "main"}}
    assert adopted(made, "shared", tmp_path) == asked
    shown = {**resolved(made, "shared"), "adopted": asked}
    assert list(lines(shown))[-1] == "adopted: released: hub lab/model, revision main (not yet)"

    folder = tmp_path / "results" / "paper" / "runs" / "shared" / "released"
    (folder / "final").mkdir(parents=True)
    (folder / "final" / "model.safetensors").write_bytes(b"weights")
    origin = {**asked["released"], "commit": "0" * 40, "files": {"model.safetensors": "ab"}}
    files = [folder / "final" / "model.safetensors"]
    write_manifest(
        folder, stage="train", spec={}, inputs={}, files=files, result={"origin": origin}
    )
    assert adopted(made, "shared", tmp_path) == {"released": origin}
    said = list(lines({**shown, "adopted": {"released": origin}}))[-2:]
    assert said == [
        f"adopted: released: hub lab/model, revision main, commit {'0' * 40}",
        "adopted: released: model.safetensors sha256 ab",
    ]
