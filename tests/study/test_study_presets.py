"""`preset: NAME` in a protocol: its fields, from every layer that names one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from study_samples import DEMO, SHARED, changed, plan, problems, write

from ropewalk.base.canonical import plain
from ropewalk.base.spec import decode
from ropewalk.evaluate.presets import PRESETS, resolve
from ropewalk.evaluate.spec import EvaluateJob
from ropewalk.study.show import resolved

PROTOCOL = ("evaluations", "loss", "protocol")
CONTEXTS = {"1x": 2048, "2x": 4096}
MINI = f"{SHARED}scales: {{ mini: {{}} }}\n"


def demo(protocol: Mapping[str, Any], mini: Mapping[str, Any] | None = None) -> str:
    """Return the sample with a protocol, and what the scale `mini` writes over it."""
    changes: dict[Any, Any] = {
        PROTOCOL: dict(protocol),
        ("evaluations", "loss", "overrides"): {},
    }
    if mini is not None:
        changes["scales", "mini", *PROTOCOL] = dict(mini)
    return changed(DEMO, changes)


def applied(root: Path, run: str = "shared/base", scale: str = "paper", **text: str) -> Any:
    """Return the protocol that the stage of one run is given."""
    found = plan(write(root, **text), scale=scale)
    names = {"name": scale, "study": "demo", "evaluation": "loss"}
    study, _, short = run.partition("/")
    job = found.node("evaluate", {**names, "run_study": study, "run": short}).spec
    return decode(EvaluateJob, plain(job)).protocol


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_is_what_the_evaluation_room_makes_of_it(tmp_path: Path, name: str) -> None:
    """Guards against a preset that means one thing in a study and another by hand."""
    contexts = {"1x": 600} if PRESETS[name].stride == "window" else CONTEXTS
    given = {} if "contexts" in PRESETS[name].settings else {"contexts": contexts}
    assert applied(tmp_path, demo=demo({"preset": name, **given})) == resolve(name, **given)


def test_what_stands_beside_a_preset_replaces_its_fields(tmp_path: Path) -> None:
    """Guards against contexts of the preset that linger beside those that were written."""
    written = {"preset": "pose_sliding", "contexts": CONTEXTS, "documents": 3, "bos": "none"}
    found = applied(tmp_path, demo=demo(written))
    assert (found.contexts, found.documents, found.bos) == (CONTEXTS, 3, "none")
    preset = resolve("pose_sliding")
    assert (found.tail, found.cut_tokens) == (preset.tail, preset.cut_tokens) == ("short", 32768)


def test_overrides_of_a_run_reach_the_fields_of_a_preset(tmp_path: Path) -> None:
    """Guards against a context of one run that a preset takes back."""
    data = changed(
        demo({"preset": "pi_sliding", "contexts": CONTEXTS}),
        {
            ("evaluations", "loss", "overrides"): {
                "longer": {
                    "runs": ["demo/*-4x"],
                    "set": {"protocol.contexts.4x": 8192, "protocol.bos": "document"},
                }
            }
        },
    )
    other = applied(tmp_path, demo=data)
    found = applied(tmp_path, "demo/pi-4x", demo=data)
    assert (other.contexts, other.bos) == (CONTEXTS, "none")
    assert (found.contexts, found.bos) == ({**CONTEXTS, "4x": 8192}, "document")


SAME = {"kind": "same_tokens", "scored_tokens": 8, "documents": 4, "contexts": {"1x": 16}}


@pytest.mark.parametrize(
    ("mini", "expected"),
    [
        ({"documents": 2}, {"documents": 2, "tail": "short", "bos": "window", "cut_tokens": 32768}),
        ({"cut_tokens": None}, {"cut_tokens": None, "tail": "short", "documents": 50}),
        ({"tail": "drop"}, {"tail": "drop", "bos": "window"}),
        ({"preset": "pi_sliding"}, {"tail": "full", "bos": "none", "stride_tokens": 256,
                                    "documents": None, "cut_tokens": None}),
        ({"preset": "pose_truncated"}, {"stride_tokens": None, "tail": "short", "documents": 50}),
        ({"preset": None, "stride_tokens": 8}, {"bos": "document", "tail": "full",
                                                "documents": None}),
        ({"preset": None, **SAME}, {"scored_tokens": 8, "documents": 4}),
    ],
    ids=["value", "null", "field", "other preset", "without stride", "no preset", "other kind"],
)  # fmt: skip
def test_a_scale_over_a_preset(
    tmp_path: Path, mini: dict[str, Any], expected: dict[str, Any]
) -> None:
    """Guards against fields of a preset that a scale cannot change, or that outlive it."""
    body = {"preset": "pose_sliding", "contexts": CONTEXTS}
    if mini.get("preset", ...) is None and "kind" not in mini:
        mini = {"kind": "sliding_window", **mini}
    found = applied(tmp_path, scale="mini", demo=demo(body, mini), shared=MINI)
    assert {key: getattr(found, key) for key in expected} == expected


def test_the_stride_of_a_window_follows_the_context_of_a_scale(tmp_path: Path) -> None:
    """Guards against windows that overlap because the body's context stayed the stride."""
    body = {"preset": "lm_eval_rolling", "contexts": {"1x": 600}}
    texts = {"demo": demo(body, {"contexts": {"1x": 50}}), "shared": MINI}
    found = applied(tmp_path, scale="mini", **texts)
    assert (found.contexts, found.stride_tokens) == ({"1x": 50}, 50)
    assert applied(tmp_path, **texts).stride_tokens == 600


def test_classes_of_the_fields_of_a_preset(tmp_path: Path) -> None:
    """Guards against a convention of ours that passes for the paper's, or a scale's for either."""
    body = changed(
        demo({"preset": "pose_sliding", "contexts": CONTEXTS}, {"preset": "pi_sliding"}),
        {("provenance", "evaluations.*.protocol.bos"): "assumed"},
    )
    write(tmp_path, demo=body, shared=MINI)
    prefix = "evaluations.loss.protocol"
    classes = resolved(plan(tmp_path), "demo")["provenance"]
    assert (classes[f"{prefix}.bos"], classes[f"{prefix}.tail"]) == ("assumed", "paper")
    classes = resolved(plan(tmp_path, scale="mini"), "demo")["provenance"]
    assert (classes[f"{prefix}.bos"], classes[f"{prefix}.stride_tokens"]) == ("scale", "scale")
    assert classes[f"{prefix}.tail"] == "paper"  # the default once more, not the scale's


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        (
            {"preset": "pi_slidng", "contexts": CONTEXTS},
            "evaluations.loss: protocol.preset: 'pi_slidng' is unknown; did you mean 'pi_sliding'?",
        ),
        ({"preset": 3, "contexts": CONTEXTS}, "protocol.preset: 3 is unknown; known: hf_guide"),
        (
            {"preset": ["pi_sliding"], "contexts": CONTEXTS},
            "protocol.preset: a list or map is unknown; known: hf_guide",
        ),
        (
            {"preset": "pi_sliding", "contexts": CONTEXTS, "tial": "full"},
            "protocol.tial: unknown key; did you mean 'tail'?",
        ),
        (
            {"preset": "pi_sliding", "contexts": {"1x": 100}},
            "stride_tokens 256 must lie between 1 and 99",
        ),
        (
            {"preset": "lm_eval_rolling", "contexts": CONTEXTS},
            "protocol.contexts: preset 'lm_eval_rolling' has the context as its stride: name one "
            "context, not 1x, 2x",
        ),
        ({"preset": "yarn_window_mean"}, "evaluations.loss: protocol.contexts: missing"),
        (
            {"preset": "pi_sliding", **SAME},
            "protocol.kind: 'same_tokens' has no presets, and the body or a lower scale names "
            "'pi_sliding': add 'preset: null' beside it",
        ),
        (
            {"kind": "conventions", "context_tokens": 600, "stride_tokens": 100,
             "presets": ["hf_guide", "pi_slide"]},
            "protocol.presets.1: 'pi_slide' is unknown; did you mean 'pi_sliding'?",
        ),
    ],
    ids=["typing error", "number", "list", "key", "stride", "contexts", "none", "kind", "strip"],
)  # fmt: skip
def test_presets_that_cannot_be_used_are_refused_where_they_stand(
    tmp_path: Path, protocol: dict[str, Any], message: str
) -> None:
    """Guards against a convention that is silently another one, and messages without a place."""
    lines = problems(write(tmp_path, demo=demo(protocol))).splitlines()
    (found,) = [line for line in lines if message in line]
    assert found.startswith("papers/demo.yaml:")


def test_an_overlay_that_is_no_map_is_one_message(tmp_path: Path) -> None:
    """Guards against a traceback for a misshapen file of the user's."""
    write(tmp_path)
    (tmp_path / "my.yaml").write_text("demo: { evaluations: { loss: 3 } }\n")
    assert "evaluations.loss" in problems(tmp_path, overlays=["my.yaml"])
