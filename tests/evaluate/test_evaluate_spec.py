"""What a protocol can be asked for, and what is refused before anything is read."""

import re
from typing import Any

import pytest

from ropewalk.evaluate.spec import (
    Conventions,
    CopyProbe,
    EvaluateJob,
    Harness,
    Passkey,
    PositionCurve,
    RecallProbe,
    SameTokens,
    SlidingWindow,
    Summaries,
    Tasks,
)

LEAST: dict[type, dict[str, Any]] = {
    SameTokens: {"contexts": {"1x": 8}, "scored_tokens": 2, "documents": 1},
    SlidingWindow: {"contexts": {"1x": 8}},
    PositionCurve: {"contexts": {"1x": 8}},
    Conventions: {"context_tokens": 8, "stride_tokens": 1},
    Passkey: {"context_tokens": 64},
    RecallProbe: {"context_tokens": 64},
    CopyProbe: {"context_tokens": 64},
    Tasks: {"tasks": ("vt",), "lengths": (64,)},
    Summaries: {},
    Harness: {"tasks": ("PIQA",)},
}


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (SameTokens, {"documents": 0}, "documents 0 must be at least 1"),
        (SlidingWindow, {"minimum_tokens": -1}, "minimum_tokens -1 must be at least 0"),
        (SlidingWindow, {"cut_tokens": 1}, "cut_tokens 1 must be at least 2"),
        (Conventions, {"documents": 0}, "documents 0 must be at least 1"),
        (Conventions, {"context_tokens": 1}, "context_tokens 1 must be at least 2"),
        (Conventions, {"stride_tokens": 0}, "stride_tokens 0 must be at least 1"),
        (Conventions, {"minimum_tokens": -1}, "minimum_tokens -1 must be at least 0"),
        (Conventions, {"cut_tokens": 1}, "cut_tokens 1 must be at least 2"),
        (Conventions, {"presets": ()}, "presets [] must name at least one, each once"),
        (Conventions, {"presets": ("a", "a")}, "presets ['a', 'a'] must name at least one"),
        (Passkey, {"context_tokens": 0}, "context_tokens 0 must be at least 1"),
        (Passkey, {"decoded_tokens": 0}, "decoded_tokens 0 must be at least 1"),
        (Passkey, {"threshold": 1.1}, "threshold 1.1 must lie in (0, 1]"),
        (Passkey, {"threshold": 0.0}, "threshold 0.0 must lie in (0, 1]"),
        (RecallProbe, {"context_tokens": 0}, "context_tokens 0 must be at least 1"),
        (RecallProbe, {"distances": 0}, "distances 0 must be at least 1"),
        (RecallProbe, {"trials": 0}, "trials 0 must be at least 1"),
        (RecallProbe, {"shown": 0}, "shown 0 must be at least 1"),
        (RecallProbe, {"threshold": 2.0}, "threshold 2.0 must lie in (0, 1]"),
        (RecallProbe, {"pairs": 0}, "pairs 0 must lie between 1 and keys 64"),
        (RecallProbe, {"keys": 0}, "pairs 4 must lie between 1 and keys 0"),
        (RecallProbe, {"pairs": 9, "keys": 8}, "pairs 9 must lie between 1 and keys 8"),
        (CopyProbe, {"share": 0.0}, "share 0.0 must lie in (0, 1]"),
        (CopyProbe, {"share": 1.5}, "share 1.5 must lie in (0, 1]"),
        (CopyProbe, {"least_nats": -0.5}, "least_nats -0.5 must be at least 0"),
        (CopyProbe, {"segment_tokens": 1}, "segment_tokens 1 must be at least 2"),
        (Tasks, {"lengths": (64, 0)}, "lengths 0 must be at least 1"),
    ],
)
def test_a_value_out_of_range_is_refused(kind: type, changes: dict, message: str) -> None:
    """Guards: a reach of nothing tried, or a threshold that no trial can meet, as a number."""
    kind(**LEAST[kind])
    with pytest.raises(ValueError, match=re.escape(message)):
        kind(**{**LEAST[kind], **changes})


def test_the_ends_of_a_range_are_in_it() -> None:
    """Guards: a threshold of every trial, or as many pairs as keys, refused as out of range."""
    assert Passkey(context_tokens=1, threshold=1.0, decoded_tokens=1).threshold == 1.0
    assert RecallProbe(context_tokens=1, threshold=1.0, keys=4, pairs=4).keys == 4
    assert CopyProbe(context_tokens=64, share=1.0, least_nats=0.0).share == 1.0


@pytest.mark.parametrize("kind", LEAST, ids=lambda kind: kind.__name__)
def test_numbers_that_are_none_may_be_left_out_of_losses_alone(kind: type) -> None:
    """Guards: answers of a broken model counted as wrong, or NaN in a cell of the harness."""
    kind(**LEAST[kind], allow=("dropped", "truncated"))
    if kind in (SameTokens, SlidingWindow, PositionCurve, Conventions):
        assert kind(**LEAST[kind], allow=("non_finite",)).allow == ("non_finite",)
        return
    with pytest.raises(ValueError, match="allow 'non_finite' is for losses of a given text alone"):
        kind(**LEAST[kind], allow=("non_finite",))


def test_a_forward_pass_reads_a_sequence_at_least() -> None:
    """Guards: an evaluation of no batches, whose scores are whatever lay in memory."""
    with pytest.raises(ValueError, match="sequences_per_forward 0 must be at least 1"):
        EvaluateJob(protocol=Passkey(context_tokens=64), sequences_per_forward=0)
