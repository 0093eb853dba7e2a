"""STRING without its shift, and packing that keeps together what should stay apart."""

import dataclasses

import numpy as np
import pytest
import written
from bench import Bench, Json, outcome
from written import KEYS, Abilities

from ropewalk.evaluate.spec import RecallProbe
from ropewalk.model.spec import LinearRope, Rope, StringRope

STUDY, RUN = "string", "string/short"
# A window of 128 tokens of which the finder reaches 100: distances beyond are not well trained.
SHAPE = dataclasses.replace(written.SHAPE, context_tokens=128, rope_base=20000.0)
PROBE = RecallProbe(
    context_tokens=128,
    distances=8,
    trials=48,
    threshold=0.5,
    keys=KEYS,
    pairs=1,
    shown=1,
    prompt="full",
    allow=("dropped",),
)
STRING = StringRope(shift_tokens=42, window_tokens=8)
NOT_SHIFTED = StringRope(shift_tokens=42, window_tokens=42)
OF_ANOTHER_LENGTH = StringRope(shift_tokens=10, window_tokens=8)


def probed(bench: Bench, rope: Rope | None) -> Json:
    run = bench.run("string-short", shape=SHAPE, abilities=Abilities())
    return bench.evaluated(run, PROBE, rope, name=str(rope))


def says(claim: str, rope: Json, string: Json) -> str:
    evaluations = {("needles_rope", RUN): rope, ("needles_string", RUN): string}
    return outcome(STUDY, claim, evaluations=evaluations)


@pytest.mark.parametrize(
    "broken", [NOT_SHIFTED, OF_ANOTHER_LENGTH], ids=["not shifted", "shift of another length"]
)
@pytest.mark.parametrize("claim", ["string_helps", "string_finds_far_needles"])
def test_the_shift_is_applied(bench: Bench, claim: str, broken: Rope) -> None:
    """Guards against a STRING that reads far tokens where plain rope reads them."""
    plain = probed(bench, None)
    assert says(claim, plain, probed(bench, STRING)) == "reproduced"
    assert says(claim, plain, probed(bench, broken)) != "reproduced"


@pytest.mark.parametrize("claim", ["string_helps", "string_finds_far_needles"])
def test_the_shift_goes_towards_the_near(bench: Bench, claim: str) -> None:
    """Guards against a gain with its sign turned round; a shift away cannot even be asked for."""
    plain, string = probed(bench, None), probed(bench, STRING)
    assert says(claim, plain, string) == "reproduced"
    assert says(claim, string, plain) == "contradicted"
    with pytest.raises(ValueError, match="moves tokens away, not nearer"):
        StringRope(shift_tokens=42, window_tokens=60)


def test_far_needles_are_lost_by_distance(bench: Bench) -> None:
    """Guards against needles that are lost for another reason than their distance."""
    lost, found = probed(bench, None), probed(bench, LinearRope(factor=2.0))
    assert says("far_needles_are_lost", lost, lost) == "reproduced"
    assert says("far_needles_are_lost", found, found) == "contradicted"


@pytest.fixture(scope="module")
def documents(bench: Bench) -> dict[str, Json]:
    """Return windows of 256 tokens of documents with natural lengths, by policy, and of 64, 128."""
    random = np.random.default_rng(0)
    lengths = np.exp(random.normal(4.0, 0.6, 900)).clip(8, 600).astype(int)
    tokens = bench.tokens("natural", [written.text(i, int(n)) for i, n in enumerate(lengths)])
    apart = {n: bench.windows(tokens, "documents", n) for n in (64, 128, 256)}
    return {"apart": apart, "together": bench.windows(tokens, "concat", 256)}


@pytest.mark.parametrize(
    "claim", ["natural_half_is_most", "natural_end_is_rare", "concatenation_would_differ"]
)
def test_attention_stays_inside_documents(bench: Bench, documents: dict, claim: str) -> None:
    """Guards against rows packed end to end under the name of documents kept apart."""
    apart, together = documents["apart"], documents["together"]
    labels = {"short": apart[64], "long": apart[128]}
    sound = bench.checked(
        "packed_frequency", {**labels, "documents": apart[256], "concatenated": together}, "sound"
    )
    broken = bench.checked(
        "packed_frequency", {**labels, "documents": together, "concatenated": apart[256]}, "broken"
    )
    assert outcome(STUDY, claim, checks={"packed": sound}) == "reproduced"
    assert outcome(STUDY, claim, checks={"packed": broken}) == "contradicted"
