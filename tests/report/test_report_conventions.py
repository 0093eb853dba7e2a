"""How an evaluation measures, in words: nothing that moves a number may be left unsaid."""

import dataclasses
from typing import Any

import pytest
from report_sample import COPY, CURVE, LOSSES, RETRIEVAL, SLIDING, STRIP, TASKS

from ropewalk.base.canonical import plain
from ropewalk.evaluate.presets import PRESETS, resolve
from ropewalk.evaluate.spec import Harness, RecallProbe, SlidingWindow, Summaries
from ropewalk.model.spec import LinearRope, Numerics, PlainRope, StringRope, YarnRope
from ropewalk.report.conventions import convention

DECODED = dataclasses.replace(RETRIEVAL, decoded_tokens=10)
RECALL = RecallProbe(context_tokens=1024, allow=("dropped",))
SUMMARIES = Summaries(documents=10)
HARNESS = Harness(tasks=("BoolQ",))
CUT = dataclasses.replace(SLIDING, cut_tokens=2048)

# (protocol, field, another value): two protocols whose numbers differ.
CHANGES: list[tuple[Any, str, Any]] = [
    (LOSSES, "contexts", {"1x": 256, "8x": 2048}),
    (LOSSES, "scored_tokens", 64),
    (LOSSES, "documents", 25),
    (SLIDING, "contexts", {"1x": 256}),
    (SLIDING, "stride_tokens", 32),
    (SLIDING, "stride_tokens", None),
    (SLIDING, "documents", None),
    (SLIDING, "skip_tokens", 100),
    (SLIDING, "minimum_tokens", 0),
    (SLIDING, "cut_tokens", 4096),
    (CUT, "cut_tokens", 4096),
    (SLIDING, "text", "stream"),
    (SLIDING, "bos", "none"),
    (SLIDING, "bos", "window"),
    (SLIDING, "window", "inputs"),
    (dataclasses.replace(SLIDING, stride_tokens=None), "window", "inputs"),
    (SLIDING, "tail", "short"),
    (SLIDING, "tail", "drop"),
    (SLIDING, "tail", "drop_last"),
    (SLIDING, "scored", "all"),
    (SLIDING, "mean", "windows"),
    (SLIDING, "mean", "labels"),
    (CURVE, "contexts", {"1x": 256}),
    (CURVE, "documents", None),
    (CURVE, "skip_tokens", 100),
    (CURVE, "bos", "none"),
    (CURVE, "points", 9),
    (STRIP, "context_tokens", 128),
    (STRIP, "stride_tokens", 32),
    (STRIP, "documents", None),
    (STRIP, "minimum_tokens", 100),
    (STRIP, "cut_tokens", 1000),
    (STRIP, "presets", ("hf_guide",)),
    (RETRIEVAL, "context_tokens", 2048),
    (RETRIEVAL, "distances", 16),
    (RETRIEVAL, "trials", 20),
    (RETRIEVAL, "threshold", 0.5),
    (RETRIEVAL, "digits", 6),
    (RETRIEVAL, "prompt", "full"),
    (RETRIEVAL, "decoded_tokens", 10),
    (DECODED, "decoded_tokens", 20),
    (DECODED, "scorer", "first_integer"),
    (DECODED, "scorer", "substring"),
    (RETRIEVAL, "allow", ()),
    (RECALL, "context_tokens", 2048),
    (RECALL, "distances", 16),
    (RECALL, "trials", 20),
    (RECALL, "threshold", 0.5),
    (RECALL, "keys", 16),
    (RECALL, "pairs", 1),
    (RECALL, "shown", 1),
    (RECALL, "prompt", "full"),
    (RECALL, "allow", ()),
    (COPY, "context_tokens", 1024),
    (COPY, "distances", 7),
    (COPY, "trials", 13),
    (COPY, "segment_tokens", 8),
    (COPY, "share", 0.25),
    (COPY, "least_nats", 0.1),
    (TASKS, "tasks", ("vt",)),
    (TASKS, "lengths", (1024,)),
    (TASKS, "samples", 13),
    (TASKS, "allow", ()),
    (SUMMARIES, "documents", None),
    (SUMMARIES, "new_tokens", 100),
    (SUMMARIES, "temperature", 0.0),
    (SUMMARIES, "top_p", 0.5),
    (SUMMARIES, "stemmer", True),
    (SUMMARIES, "sentences", "newlines"),
    (HARNESS, "tasks", ("PIQA",)),
    (HARNESS, "shots", 5),
    (HARNESS, "limit", 100),
    (HARNESS, "context_tokens", 4096),
]
PROTOCOLS = (LOSSES, SLIDING, CURVE, STRIP, RETRIEVAL, RECALL, COPY, TASKS, SUMMARIES, HARNESS)


@pytest.mark.parametrize(
    ("protocol", "field", "value"), CHANGES, ids=[f"{p.kind}-{f}-{v}" for p, f, v in CHANGES]
)
def test_another_number_has_another_sentence(protocol: Any, field: str, value: Any) -> None:
    """Guards against two numbers that differ by a convention no reader can see."""
    changed = dataclasses.replace(protocol, **{field: value})
    assert convention(plain(protocol)) != convention(plain(changed))


def test_no_field_of_a_protocol_is_forgotten_above() -> None:
    """Guards against a field added to a protocol and to no sentence."""
    execution = {("harness", "folder")}  # where task files lie on this machine
    known = {(protocol.kind, field) for protocol, field, _ in CHANGES} | execution
    for protocol in PROTOCOLS:
        for field in dataclasses.fields(protocol):
            if field.name not in ("kind", "allow"):
                assert (protocol.kind, field.name) in known


def test_the_lost_that_is_allowed_is_said() -> None:
    """Guards against a mean over what was left that reads as one over everything."""
    words_of = {
        "non_finite": "not finite",
        "dropped": "cannot be made",
        "truncated": "cut are counted",
    }
    for outcome, words in words_of.items():
        sentence = convention(plain(dataclasses.replace(SLIDING, allow=(outcome,))))
        assert words in sentence
        assert words not in convention(plain(SLIDING))


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_is_named(name: str) -> None:
    """Guards against a paper's convention that goes by no name, or by another's."""
    given = {} if "contexts" in PRESETS[name].settings else {"contexts": {"1x": 1000}}
    protocol = resolve(name, **given)
    sentence = convention(plain(protocol))
    ending = sentence[sentence.index("These are the conventions of") :]
    assert name in ending
    alike = {n for n in PRESETS if n in ending.replace(",", "").replace(".", "").split()}
    fields = ("text", "bos", "window", "tail", "scored", "mean", "stride_tokens")
    for other in alike - {name}:
        given = {} if "contexts" in PRESETS[other].settings else {"contexts": {"1x": 1000}}
        same = resolve(other, **given)
        assert all(getattr(same, f) == getattr(protocol, f) for f in fields), other


def test_a_preset_at_another_stride_is_told_apart() -> None:
    """Guards against a small scale's stride that passes for the paper's."""
    sentence = convention(plain(resolve("pi_sliding", stride_tokens=128)))
    assert "But for the stride these are the conventions of pi_sliding." in sentence
    other = dataclasses.replace(resolve("pi_sliding"), bos="document")
    assert "conventions of" not in convention(plain(other))


def test_a_preset_that_is_changed_is_not_named() -> None:
    """Guards against a preset's name under numbers that are not its."""
    plain_one = SlidingWindow(contexts={"1x": 100}, stride_tokens=10)
    assert "conventions of" not in convention(plain(plain_one))


@pytest.mark.parametrize(
    ("rope", "facts"),
    [
        (LinearRope(factor=4.0), ("linear", "factor 4")),
        (PlainRope(), ("plain",)),
        (YarnRope(factor=8.0), ("yarn", "factor 8", "beta fast 32")),
        (
            StringRope(shift_tokens=2048, window_tokens=128, frequencies=LinearRope(factor=2.0)),
            ("string", "shift tokens 2,048", "frequencies linear (factor 2)"),
        ),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_a_rope_in_place_of_the_runs_is_said(rope: Any, facts: tuple[str, ...]) -> None:
    """Guards against a model read otherwise than it was trained, and nobody told."""
    sentence = convention(plain(LOSSES), rope=plain(rope))
    assert "in place of the run's own" in sentence
    assert all(fact in sentence for fact in facts), sentence
    assert "in place of" not in convention(plain(LOSSES))


def test_the_precision_is_said() -> None:
    sentence = convention(plain(LOSSES), numerics=plain(Numerics(precision="bf16")))
    assert sentence.endswith("Computed in bf16.")


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda p: p.kind)
def test_sentences_are_sentences(protocol: Any) -> None:
    """Guards against pieces that join to no text: doubled marks, missing stops, stray words."""
    sentence = convention(plain(protocol))
    assert sentence[0].isupper() or sentence[0].isdigit()
    assert sentence.endswith(".")
    for wrong in ("  ", "..", " ,", ";;", "None", "{", "; ."):
        assert wrong not in sentence, sentence


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"protocol\.kind: 'other' has no convention"):
        convention({"kind": "other"})
