"""From files to resolved studies."""

from pathlib import Path
from typing import Any

import pytest
from study_samples import DEMO, SHARED, changed, plan, problems, write

from ropewalk.base.spec import SpecError
from ropewalk.study.config import read_config

SPEC = ("runs", "extend", "spec")


def test_runs_are_the_product_of_the_axes_where_only_says(tmp_path: Path) -> None:
    """Guards against cells that the paper does not have, or that go missing."""
    found = plan(write(tmp_path)).studies["demo"]
    assert set(found.runs) == {"pi-2x", "pi-4x", "direct-2x"}
    assert found.axes["pi-4x"] == {"method": "pi", "length": "4x"}
    root = write(tmp_path, demo=changed(DEMO, {("runs", "extend", "only"): ...}))
    assert len(plan(root).studies["demo"].runs) == 4


def test_overrides_apply_to_the_cells_they_name_in_order(tmp_path: Path) -> None:
    """Guards against a factor of one length in the training of another."""
    runs = plan(write(tmp_path)).studies["demo"].runs
    seen = {
        name: (run.phases[0].length_tokens, getattr(run.phases[0].rope, "factor", None))
        for name, run in runs.items()
    }
    assert seen == {"pi-2x": (32, 2.0), "pi-4x": (64, 4.0), "direct-2x": (32, None)}


SCALES = """
scales:
  small: { like: mini, title: Small, runs: { extend: { spec: { batch: { sequences: 16 } } } } }
  mini: { like: tiny, runs: { extend: { spec: { batch: { sequences: 8 }, seed: 5 } } } }
  tiny: { title: Tiny, runs: { extend: { spec: { seed: 3 } } }, tables: null }
  gpu: {}
"""


@pytest.mark.parametrize(
    ("scale", "title", "sequences", "seed", "tables"),
    [
        ("paper", "Demo", 4, 0, 1),
        ("gpu", "Demo", 4, 0, 1),
        ("tiny", "Tiny", 4, 3, 0),
        ("mini", "Tiny", 8, 5, 0),
        ("small", "Small", 16, 5, 0),
    ],
)
def test_a_scale_lies_over_the_scale_it_is_like(
    tmp_path: Path, scale: str, title: str, sequences: int, seed: int, tables: int
) -> None:
    """Guards against layers in the wrong order, and against a scale that touches the body."""
    found = plan(write(tmp_path, demo=DEMO + SCALES), scale=scale).studies["demo"]
    run = found.runs["pi-2x"]
    assert run.batch is not None
    assert (found.file.title, run.batch.sequences, run.seed) == (title, sequences, seed)
    assert len(found.file.tables) == tables
    layer = {"paper": "default", "gpu": "default", "tiny": "scale tiny"}.get(scale, "scale mini")
    assert found.layers["runs.pi-2x.seed"] == layer
    assert found.layers["runs.pi-2x.optimizer.lr"] == "body"


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ("{ mini: { like: tinny }, tiny: { title: x } }", "did you mean 'tiny'?"),
        ("{ mini: { like: tiny }, tiny: { like: mini } }", "name another scale of this file"),
        ("{ mini: { like: mini } }", "name another scale of this file"),
        ("{ minni: { title: x } }", "scales.minni: unknown; did you mean 'mini'?"),
        ("{ mini: 3 }", "scales.mini: 3 is not a map"),
        ("3", "scales: not a map"),
    ],
)
def test_scales_that_lead_nowhere_are_refused(tmp_path: Path, scales: str, message: str) -> None:
    """Guards against a misspelled scale that silently runs the paper's sizes."""
    found = problems(write(tmp_path, demo=f"{DEMO}\nscales: {scales}\n"), scale="mini")
    assert message in found
    assert "papers/demo.yaml:" in found


def test_the_problems_of_all_files_are_told_together(tmp_path: Path) -> None:
    """Guards against one run of the workflow per mistake."""
    demo = (
        DEMO.replace("lr: 1.0e-4", "lr: 1e-4")
        .replace("split: test", "split: tset")
        .replace("documents: 4", "documents: four")
    )
    shared = SHARED.replace("vocabulary_size: 32,", "vocabulary_sise: 32,")
    third = "title: Third\nclaim: {}\n"
    found = problems(write(tmp_path, demo=demo, shared=shared, third=third)).splitlines()
    line = 1 + DEMO.splitlines().index("      optimizer: { lr: 1.0e-4, betas: [0.9, 0.95] }")
    for run in ("pi-2x", "pi-4x", "direct-2x"):
        assert any(
            text.startswith(f"papers/demo.yaml:{line}: run {run}: optimizer.lr") for text in found
        )
    assert sum("write 1.0e-4" in text for text in found) == 3
    assert any("evaluations.loss: protocol.documents: 'four'" in text for text in found)
    assert any(
        text.startswith("papers/shared.yaml:8: tokenizers.other.vocabulary_sise: unknown key")
        for text in found
    )
    assert any(text.startswith("papers/third.yaml:2: claim: unknown key") for text in found)


def test_a_bad_value_of_an_override_is_found_where_it_is_written(tmp_path: Path) -> None:
    """Guards against a message that points at the value which was right."""
    demo = DEMO.replace("set: { phases.0.length_tokens: 64 }", "set: { phases.0.length_tokens: x }")
    line = 1 + next(i for i, text in enumerate(demo.splitlines()) if "longer: { when" in text)
    assert f"papers/demo.yaml:{line}: run pi-4x: phases.0.length_tokens" in problems(
        write(tmp_path, demo=demo)
    )


OVERRIDES = ("runs", "extend", "overrides")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({(*OVERRIDES, "longer", "when"): {"lenght": "4x"}}, "did you mean 'length'?"),
        ({(*OVERRIDES, "longer", "when"): {"length": "4X"}}, "'4X' is not a value of axis"),
        ({("runs", "extend", "only"): [{"method": ["pi", "dirct"]}]}, "did you mean 'direct'?"),
        ({("runs", "extend", "only"): [{"metod": "pi"}]}, "did you mean 'method'?"),
        ({("runs", "extend", "name"): "{method}"}, "stands for two runs"),
        ({("runs", "extend", "name"): "{methd}-{length}"}, "which is not an axis"),
        ({("runs", "second"): {"name": "pi-2x", "spec": {"model": "small"}}}, "two runs"),
        ({(*SPEC, "start"): "shared/{size}"}, "names {size}, which is not an axis"),
        ({(*OVERRIDES, "longer", "set"): {"phases.3.steps": 1}}, "not an item of a list of 1"),
        ({(*OVERRIDES, "longer", "set"): {"phases.0.step": 1}}, "did you mean 'steps'?"),
        ({(*SPEC, "model"): "small"}, "exactly one of model and start"),
        ({("evaluations", "loss", "overrides"): [1]}, "overrides: [1] is not a map"),
        (
            {("evaluations", "loss", "overrides", "longer", "set"): {"protocol.contextz": 1}},
            "overrides.longer.set: protocol.contextz: unknown key",
        ),
        ({("evaluations", "loss"): {}}, "evaluations.loss: protocol: missing"),
        (
            {(*OVERRIDES, "interpolated", "set"): {"phases.0.rope": {"kind": "linear"}}},
            "phases.0.rope.factor: missing",
        ),
        ({(*OVERRIDES, "more", "set"): {"phases.0.rope.factor": 0.5}}, "factor 0.5 is below 1"),
    ],
)
def test_conditions_and_names_that_fit_nothing_are_refused(
    tmp_path: Path, changes: dict[Any, Any], message: str
) -> None:
    """Guards against settings that are written down and silently never applied."""
    found = problems(write(tmp_path, demo=changed(DEMO, changes)))
    assert message in found
    assert "papers/demo.yaml:" in found


def test_an_override_that_sets_nothing_is_harmless(tmp_path: Path) -> None:
    """Guards against a traceback on an empty map."""
    demo = changed(DEMO, {(*OVERRIDES, "longer", "set"): {}})
    assert plan(write(tmp_path, demo=demo)).run("demo/pi-4x").phases[0].length_tokens == 32


def test_overlays_lie_over_everything(tmp_path: Path) -> None:
    """Guards against a user's change that a scale takes back."""
    write(tmp_path, demo=DEMO + SCALES)
    (tmp_path / "my.yaml").write_text("demo: { runs: { extend: { spec: { seed: 9 } } } }\n")
    found = plan(tmp_path, scale="mini", overlays=["my.yaml"]).studies["demo"]
    assert found.runs["pi-2x"].seed == 9
    assert found.layers["runs.pi-2x.seed"] == "overlay"


def test_an_overlay_for_no_study_is_refused(tmp_path: Path) -> None:
    """Guards against a change that does nothing because a study's name is misspelled."""
    write(tmp_path)
    (tmp_path / "my.yaml").write_text("dmeo: { title: x }\n")
    assert "my.yaml:1: 'dmeo' is not a study; did you mean 'demo'?" in problems(
        tmp_path, overlays=["my.yaml"]
    )
    assert "no.yaml: no such file" in problems(tmp_path, overlays=["no.yaml"])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"scale": "mimi"}, "config.yaml: scale: 'mimi' is not allowed; allowed: 'tiny', 'mini'"),
        ({"studys": ["demo"]}, "config.yaml: studys: unknown key; did you mean 'studies'?"),
        ({"studies": ["deno"]}, "config.yaml: studies: 'deno' is unknown; did you mean 'demo'?"),
        ({"studies": "demo"}, "config.yaml: studies: 'demo' is not a list"),
        ({"name": "data"}, "taken by the shared data folder"),
        ({"name": "a/b"}, "must not contain a slash"),
        ({"results": 3}, "config.yaml: results: 3 is not text"),
        ({"locations": ["pile"]}, "config.yaml: locations: ['pile'] is not a map"),
    ],
)
def test_the_configuration_is_checked(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    """Guards against a misspelled key that silently leaves the default."""
    assert message in problems(write(tmp_path), **config)


def test_the_problems_of_a_configuration_are_told_together() -> None:
    """Guards against a message per attempt."""
    with pytest.raises(SpecError) as caught:
        read_config({"scale": 3, "name": 4, "extra": 5})
    assert len(caught.value.problems) == 3
    assert read_config({}).run_name == "mini"
    assert read_config({"name": "mine"}).run_name == "mine"
