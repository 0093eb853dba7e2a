"""Extraction: the right number, or the reason there is none."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from report_sample import (
    COPY,
    LOSSES,
    RETRIEVAL,
    SLIDING,
    STRIP,
    TASKS,
    cells,
    copy_probe,
    losses,
    q,
    result,
    retrieval,
    strip,
    window_mean,
)

from ropewalk.evaluate import intervals
from ropewalk.evaluate.reach import effective_length
from ropewalk.report.compare import Arms, Region, Sampling, compare, estimated
from ropewalk.report.quantities import Results, describe, extract
from ropewalk.report.samples import Measured, Missing, Seen
from ropewalk.report.spec import Quantity

SNAPSHOTS = {
    0: losses({"1x": 30.0, "4x": 90.0}, seed=1),
    10: losses({"1x": 25.0, "4x": 40.0}, seed=2),
    100: losses({"1x": 20.0, "4x": 22.0}, seed=3),
}
RESULTS = Results(
    study="pi",
    by_name={
        ("pi/loss", "pi/a"): result("pi/a", LOSSES, SNAPSHOTS),
        ("pi/passkey", "pi/a"): result("pi/a", RETRIEVAL, {100: retrieval([1.0, 1.0, 0.1, 1.0])}),
    },
)


def passkey(**more) -> Quantity:
    return Quantity(evaluation="passkey", run="pi/a", **more)


@pytest.mark.parametrize(("snapshot", "step"), [("final", 100), ("first", 0), ("10", 10)], ids=str)
def test_snapshot_names_mean_steps_and_not_text_order(snapshot, step):
    """Guards against '10' sorting before '2', or final and first swapped."""
    expected = SNAPSHOTS[step]["contexts"]["4x"]
    found = extract(q("pi/a", snapshot=snapshot), RESULTS)
    assert isinstance(found, Measured)
    assert found.number == pytest.approx(expected["nll"], rel=1e-12)
    ppl = extract(q("pi/a", snapshot=snapshot, value="perplexity"), RESULTS)
    assert isinstance(ppl, Measured)
    assert ppl.number == pytest.approx(expected["perplexity"], rel=1e-12)


def test_first_is_step_0_and_nothing_that_stands_in_for_it():
    """Guards against trained weights judged as untrained ones where step 0 was not kept."""
    kept = {step: SNAPSHOTS[step] for step in (10, 100)}
    results = Results(study="pi", by_name={("pi/loss", "pi/a"): result("pi/a", LOSSES, kept)})
    found = extract(q("pi/a", snapshot="first"), results)
    assert isinstance(found, Missing)
    assert not found.broken
    assert found.reason == "pi/loss of pi/a has no snapshot before any step, only at 10, 100"


def test_accuracy_of_losses_is_hits_over_tokens():
    """Guards against losses being read where hits were asked for."""
    data = SNAPSHOTS[100]["contexts"]["1x"]
    found = extract(q("pi/a", "1x", value="accuracy"), RESULTS)
    assert isinstance(found, Measured)
    assert found.number == sum(data["hits"]) / sum(data["tokens"])


@pytest.mark.parametrize(
    ("value", "expected"), [("reach", 512), ("reach_share", 0.5), ("accuracy", 31 / 40)]
)
def test_retrieval_values(value, expected):
    found = extract(passkey(value=value), RESULTS)
    assert isinstance(found, Measured)
    assert found.number == expected


@pytest.mark.parametrize(
    ("quantity", "says"),
    [
        (q("pi/a", evaluation="other"), "pi/other was not run at this scale"),
        (q("pi/b"), "pi/loss was not run on pi/b, only on pi/a"),
        (q("pi/a", snapshot="20"), "no snapshot at step 20, only at 0, 10, 100"),
        (q("pi/a", "16x"), "no context '16x', only 1x, 4x"),
    ],
    ids=["evaluation", "run", "snapshot", "context"],
)
def test_what_was_not_measured_is_missing_and_not_broken(quantity, says):
    """Guards against 'not run' being read as 'wrong', or stopping the report."""
    found = extract(quantity, RESULTS)
    assert isinstance(found, Missing)
    assert not found.broken
    assert says in found.reason


@pytest.mark.parametrize(
    "quantity",
    [q("pi/a", value="reach"), passkey(value="nll"), q("pi/a", None)],
    ids=["reach of losses", "loss of retrieval", "no context"],
)
def test_a_question_the_result_cannot_answer_is_broken(quantity):
    """Guards against a wrong question passing as 'not tested'."""
    found = extract(quantity, RESULTS)
    assert isinstance(found, Missing)
    assert found.broken


def test_infinite_perplexity_is_broken_and_does_not_overflow():
    """Guards against inf entering a comparison."""
    snapshot = losses({"1x": 20.0})
    snapshot["contexts"]["1x"]["nll_sums"] = [1e6] * 24
    results = Results(
        study="pi", by_name={("pi/loss", "pi/a"): result("pi/a", LOSSES, {0: snapshot})}
    )
    found = extract(q("pi/a", "1x", value="perplexity"), results)
    assert isinstance(found, Missing)
    assert found.broken
    loss = extract(q("pi/a", "1x"), results)
    assert isinstance(loss, Measured)
    assert math.isfinite(loss.number)


def test_unresolved_run_is_refused():
    """Guards against a claim silently judged on no run."""
    with pytest.raises(ValueError, match="names its run by axes"):
        extract(Quantity(evaluation="loss", run={"method": "pi"}), RESULTS)


def test_quantities_in_words():
    assert describe(q("pi/a", value="perplexity")) == "perplexity of pi/a at 4x"
    assert describe(q("pi/a", "1x", snapshot="first")) == "loss of pi/a at 1x before any step"
    assert describe(passkey(value="reach", snapshot="10")) == "reach of pi/a after 10 steps"


WEIGHTED = {"contexts": {"1x": window_mean(20.0, seed=1), "4x": window_mean(26.0, seed=2)}}
SCORES = [0.0, 0.5, 1.0, 0.5, 0.25, 0.75]


def one(protocol: Any, snapshot: Any, value: str, context: str | None = None) -> Any:
    """Return what is extracted of one snapshot of one run."""
    results = Results(study="pi", by_name={("pi/e", "pi/a"): result("a", protocol, {0: snapshot})})
    return extract(Quantity(evaluation="e", run="pi/a", context=context, value=value), results)


def interval(*arms: Any, compare: str = "value") -> Any:
    baseline = arms[1] if len(arms) > 1 else None
    return estimated(
        Arms(subject=arms[0], baseline=baseline, compare=compare), Sampling(draws=4000, seed=1)
    )


def test_a_mean_over_windows_is_not_read_as_one_over_tokens() -> None:
    """Guards against every historical convention shown under the same token mean."""
    data = WEIGHTED["contexts"]["4x"]
    found = one(SLIDING, WEIGHTED, "perplexity", "4x")
    assert found.number == pytest.approx(data["perplexity"], rel=1e-12)
    over_tokens = math.exp(sum(data["nll_sums"]) / sum(data["tokens"]))
    assert abs(found.number - over_tokens) > 0.01


def test_the_interval_of_a_weighted_mean_draws_its_weights_too() -> None:
    """Guards against the bootstrap of another mean: a loop over documents, another generator."""
    a, b = (WEIGHTED["contexts"][label] for label in ("4x", "1x"))
    random = np.random.default_rng(5)
    drawn = []
    for _ in range(4000):
        taken = random.integers(24, size=24)
        means = [
            np.array(x["weighted_sums"])[taken].sum() / np.array(x["weights"])[taken].sum()
            for x in (a, b)
        ]
        drawn.append(math.exp(means[0] - means[1]))
    found = interval(
        one(SLIDING, WEIGHTED, "perplexity", "4x"),
        one(SLIDING, WEIGHTED, "perplexity", "1x"),
        compare="ratio",
    )
    assert [found.low, found.high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.004)


@pytest.mark.parametrize(
    ("value", "per"), [("word_perplexity", "words"), ("byte_perplexity", "bytes")]
)
def test_perplexity_per_word_and_byte(value: str, per: str) -> None:
    """Guards against a token's perplexity that passes for a word's."""
    snapshot = losses({"1x": 20.0})
    data = snapshot["contexts"]["1x"]
    found = one(LOSSES, snapshot, value, "1x")
    assert found.number == pytest.approx(data[value], rel=1e-12)
    assert found.number == pytest.approx(math.exp(sum(data["nll_sums"]) / sum(data[per])))
    estimate = interval(found)
    assert estimate.low < found.number < estimate.high


def test_what_weighs_no_token_once_has_no_perplexity_per_word() -> None:
    """Guards against an interval around another number than the one shown."""
    found = one(SLIDING, WEIGHTED, "word_perplexity", "4x")
    assert isinstance(found, Missing)
    assert found.broken
    nothing = losses({"1x": 20.0})
    data = nothing["contexts"]["1x"]
    data["byte_perplexity"] = None
    assert "so few bytes that it overflows" in one(LOSSES, nothing, "byte_perplexity", "1x").reason
    data["bytes"] = [0 for _ in data["bytes"]]
    assert "has no bytes" in one(LOSSES, nothing, "byte_perplexity", "1x").reason


def test_a_convention_is_asked_for_by_its_preset() -> None:
    snapshot = strip(20.0)
    found = one(STRIP, snapshot, "perplexity", "yarn_window_mean")
    expected = snapshot["contexts"]["yarn_window_mean"]["perplexity"]
    assert found.number == pytest.approx(expected, rel=1e-12)


def test_scores_are_means_over_the_samples_of_a_cell() -> None:
    found = one(TASKS, cells(vt__512=SCORES), "score", "vt/512")
    assert found.number == 0.5
    estimate = interval(found)
    assert estimate.low < 0.5 < estimate.high
    assert "6 samples" in estimate.method


def test_a_pattern_takes_the_samples_of_several_cells_together() -> None:
    """Guards against a mean of means where cells lost samples, and cells that do not belong."""
    snapshot = cells(niah_a__512=[1.0, 0.0, 0.0], niah_b__512=[1.0], vt__512=[0.0] * 4)
    assert one(TASKS, snapshot, "score", "niah_*/512").number == 0.5
    assert one(TASKS, snapshot, "score", "*/512").number == 0.25
    assert one(TASKS, snapshot, "score", "niah_?/512").sample.names[0] == "niah_a/512:0"
    assert not one(TASKS, snapshot, "score", "qa_*/512").broken


def lengths(**shares: int) -> Any:
    """Return cells of 4 samples, `n512=3` of which three succeed at 512 tokens."""
    made = {"cells": {}}
    for name, good in shares.items():
        label = f"needles/{name[1:]}"
        cell = {"scores": [1.0] * good + [0.0] * (4 - good), "samples": [0, 1, 2, 3]}
        made["cells"][label] = {**cell, "length_tokens": int(name[1:])}
    return made


def test_a_reach_by_length_ends_at_the_first_length_that_fails() -> None:
    """Guards against lengths in the order of text, and a reach that jumps over a failure."""
    snapshot = lengths(n512=4, n1024=2, n256=4, n2048=1, n4096=4)
    found = one(TASKS, snapshot, "reach", "needles/*")
    assert found.number == 1024
    assert found.sample.distances.tolist() == [256, 512, 1024, 2048, 4096]
    assert one(TASKS, snapshot, "reach_share", "needles/*").number == 0.25
    assert interval(found).high <= 4096
    assert one(TASKS, lengths(n256=1, n512=4), "reach", "needles/*").number == 0
    half = {"scores": [0.5], "samples": [0], "length_tokens": 64}
    assert one(TASKS, {"cells": {"vt/64": half}}, "reach", "vt/*").broken
    both = {"cells": {**snapshot["cells"], "vt/64": {**half, "scores": [1.0]}}}
    assert "one task" in one(TASKS, both, "reach", "*").reason


def test_needles_are_counted_at_the_depth_where_they_stand() -> None:
    """Guards against the far end of a text taken for its beginning."""
    cell = {
        "samples": [0, 1],
        "scores": [1.0, 0.0],
        "found": [[True, False, True], [False, False, True]],
        "depths": [[0.1, 0.5, 0.9], [0.2, 0.4, 0.7]],
    }
    results = Results(
        study="pi", by_name={("pi/e", "pi/a"): result("a", TASKS, {0: {"cells": {"n/8": cell}}})}
    )

    def share(low: float, high: float) -> float:
        asked = Quantity(
            evaluation="e", run="pi/a", context="n/*", value="accuracy", depth=(low, high)
        )
        found = extract(asked, results)
        assert isinstance(found, Measured)
        return found.number

    assert [share(0, 1 / 3), share(1 / 3, 2 / 3), share(2 / 3, 1)] == [0.5, 0.0, 1.0]


def test_distances_are_depths_of_prompts_that_are_full() -> None:
    """Guards against near and far mixed up, and depths of prompts that are only as long as needed.

    Of 1024 tokens, the distances are 256, 512, 768 and 1024: depths of 3/4, 1/2, 1/4 and 0.
    """
    snapshot = retrieval([1.0, 0.8, 0.4, 0.2])
    full = dataclasses.replace(RETRIEVAL, prompt="full")

    def asked(protocol: Any, depth: tuple[float, float], value: str = "accuracy") -> Any:
        results = Results(
            study="pi", by_name={("pi/e", "pi/a"): result("a", protocol, {0: snapshot})}
        )
        return extract(Quantity(evaluation="e", run="pi/a", value=value, depth=depth), results)

    assert asked(full, (0.0, 0.3334)).number == pytest.approx(0.3)
    assert asked(full, (0.6666, 1.0)).number == 1.0
    assert asked(full, (0.6666, 1.0)).sample.trials.tolist() == [10]
    assert asked(full, (0.0, 1.0), "reach").broken
    assert asked(RETRIEVAL, (0.0, 0.3334)).broken


def test_the_frequency_of_a_distance_when_it_is_first_reached() -> None:
    """Guards against the frequency after all tokens, or at another distance than was reached.

    Reach 512 first at step 20, 5 tokens a step: 50 to 100 tokens, of which a quarter sees it.
    """
    snapshots = {10: retrieval([1.0, 0.0, 1.0, 1.0]), 20: retrieval([1.0, 1.0, 1.0, 0.0])}
    falling = np.linspace(1.0, 0.0, 1025)
    falling[512] = 0.25
    results = Results(
        study="pi",
        by_name={("pi/e", "pi/a"): result("a", RETRIEVAL, {**snapshots, 40: retrieval([1.0] * 4)})},
        seen={"pi/a": Seen(per_token=falling, tokens_per_step=5.0)},
    )

    def asked(distance: int | None) -> Any:
        quantity = Quantity(evaluation="e", run="pi/a", value="frequency", distance=distance)
        return extract(quantity, results)

    found = asked(512)
    assert (found.sample.low, found.sample.high, found.number) == (12.5, 25.0, 18.75)
    estimate = interval(found, asked(256), compare="ratio")
    assert estimate.high == math.inf  # the first snapshot reaches 256 already
    assert estimate.low == pytest.approx(12.5 / (50 * 0.75))
    assert asked(None).broken
    assert asked(2048).broken
    never = asked(1024)
    assert (never.sample.low, never.sample.high) == (0.0, 0.0)  # nobody sees it
    assert "when its reach first got there" in describe(found.quantity)


def test_a_trial_is_a_sample_whose_score_is_right_or_wrong() -> None:
    """Guards against two names of one number that differ."""
    snapshot = retrieval([1.0, 0.5])
    share, score = (one(RETRIEVAL, snapshot, value, None) for value in ("accuracy", "score"))
    assert share.number == score.number == 0.75
    assert interval(share).low == interval(score).low


def test_a_difference_of_shares_has_newcombes_interval() -> None:
    """Guards against an interval from both ends, a third too wide.

    56/70 against 48/80 is example (a) of Newcombe 1998, table II, method 10: 0.0524 to 0.3339.
    """
    estimate = intervals.share_difference((56, 70), (48, 80))
    assert [estimate.low, estimate.high] == pytest.approx([0.0524, 0.3339], abs=5e-5)
    a, b = (
        one(RETRIEVAL, retrieval([1.0, 0.8]), "accuracy", None),
        one(RETRIEVAL, retrieval([0.4, 0.2]), "accuracy", None),
    )
    found = interval(a, b, compare="difference")
    expected = intervals.share_difference((18, 20), (6, 20))
    assert (found.number, found.low, found.high) == (
        pytest.approx(0.6),
        expected.low,
        expected.high,
    )


def test_scores_of_documents_are_weighted_where_the_harness_does() -> None:
    """Guards against a perplexity per word whose long documents weigh as little as short ones."""
    snapshot = {"cells": {"wiki": {"scores": [1.0, 3.0], "weights": [1.0, 3.0], "mean": 2.5}}}
    assert one(TASKS, snapshot, "score", "wiki").number == 2.5


def test_shares_of_right_and_wrong_have_the_wilson_interval() -> None:
    """Guards against 12 of 12 shown as certain: z^2/n closed form at p = 1."""
    estimate = interval(one(TASKS, cells(vt__512=[1.0] * 12), "score", "vt/512"))
    assert estimate.low == pytest.approx(1 / (1 + 1.959963984540054**2 / 12), rel=1e-9)
    assert estimate.high == 1.0


def test_one_model_read_in_two_ways_is_told_apart() -> None:
    """Guards against a sentence that subtracts a number from itself."""
    by_name = {
        (f"pi/{name}", "pi/a"): result("a", RETRIEVAL, {0: retrieval(rates)})
        for name, rates in (("plain", [0.2, 0.2]), ("string", [1.0, 1.0]))
    }
    results = Results(study="pi", by_name=by_name)
    string, plain = (
        extract(Quantity(evaluation=name, run="pi/a", value="score"), results)
        for name in ("string", "plain")
    )
    arms = Arms(subject=string, baseline=plain, compare="difference")  # type: ignore[arg-type]
    found = compare(arms, Region(low=0.1), Sampling(draws=100, seed=0))
    assert found.of == "score of pi/a by string minus the score of pi/a by plain"
    assert found.standing == "satisfied"


def test_samples_pair_by_their_number() -> None:
    """Guards against samples compared by place where each run dropped another one."""
    a, b = cells(vt__512=[0.0, 0.5, 1.0]), cells(vt__512=[0.5, 1.0, 1.5])
    difference = interval(
        one(TASKS, b, "score", "vt/512"), one(TASKS, a, "score", "vt/512"), compare="difference"
    )
    assert [difference.low, difference.high] == pytest.approx([0.5, 0.5])
    b["cells"]["vt/512"]["samples"] = [0, 1, 3]
    with pytest.raises(ValueError, match="needs the same samples"):
        interval(
            one(TASKS, b, "score", "vt/512"), one(TASKS, a, "score", "vt/512"), compare="ratio"
        )


def test_summaries_pair_by_document() -> None:
    """Guards against summaries of other documents taken for the same."""

    def summaries(*names: str) -> Any:
        cell = {"scores": [0.1, 0.2], "mean": 0.15}
        found = one(TASKS, {"cells": {"rouge1": cell}, "documents": list(names)}, "score", "rouge1")
        return found.sample

    assert summaries("b", "a").names == ("a", "b")
    assert summaries("b", "a").sums.tolist() == [0.2, 0.1]
    assert summaries("b", "a").unit == "document"


@pytest.mark.parametrize("value", ["reach", "reach_share"])
def test_reach_of_a_copy_probe_with_the_bootstrap_over_trials(value: str) -> None:
    """Guards against another rule than the probe's: its own function, another generator."""
    snapshot = copy_probe(128)
    drops = np.array(snapshot["drops"])
    drops[1, ::2] *= 0.2  # a distance that only some trials pass
    snapshot = {**snapshot, "drops": drops.tolist()}
    rule = {"share": COPY.share, "least_nats": COPY.least_nats}
    measured = effective_length(snapshot["distances"], drops.mean(axis=1)[None], **rule)[0]
    longest = snapshot["distances"][-1]
    snapshot |= {"reach": int(measured), "reach_share": measured / longest}
    random = np.random.default_rng(0)
    drawn = []
    for _ in range(4000):
        taken = drops[:, random.integers(drops.shape[1], size=drops.shape[1])]
        drawn.append(effective_length(snapshot["distances"], taken.mean(axis=1)[None], **rule)[0])
    expected = np.quantile(drawn, [0.025, 0.975], method="inverted_cdf")
    assert expected[0] < expected[1]
    found = one(COPY, snapshot, value)
    unit = longest if value == "reach_share" else 1
    assert found.number == snapshot[value]
    estimate = interval(found)
    assert [estimate.low * unit, estimate.high * unit] == pytest.approx(expected.tolist())


def test_a_model_that_copies_nothing_reaches_nothing() -> None:
    """Guards against half of a drop of nothing counted as copied."""
    snapshot = copy_probe(0)
    assert snapshot["reach"] == 0
    estimate = interval(one(COPY, snapshot, "reach"))
    assert (estimate.low, estimate.high) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("protocol", "snapshot", "value", "context", "broken"),
    [
        (TASKS, cells(vt__512=SCORES), "score", "vt/1024", False),
        (TASKS, cells(vt__512=SCORES), "score", None, True),
        (TASKS, cells(vt__512=SCORES), "nll", "vt/512", True),
        (TASKS, {"cells": {"vt/512": {"scores": [], "samples": []}}}, "score", "vt/512", True),
        (LOSSES, losses({"1x": 20.0}), "score", "1x", True),
        (COPY, copy_probe(128), "accuracy", None, True),
        (STRIP, strip(20.0), "perplexity", "no_such_preset", False),
        (RETRIEVAL, {"context_tokens": 3}, "reach", None, True),
    ],
    ids=["cell", "no cell", "loss", "no sample", "score", "accuracy", "preset", "form"],
)
def test_new_forms_that_cannot_answer(
    protocol: Any, snapshot: Any, value: str, context: str | None, broken: bool
) -> None:
    """Guards against a wrong question that passes as 'not tested', and a crash of the report."""
    found = one(protocol, snapshot, value, context)
    assert isinstance(found, Missing)
    assert found.broken == broken


def test_copies_and_retrieval_are_not_compared() -> None:
    results = [one(COPY, copy_probe(128), "reach"), one(RETRIEVAL, retrieval([1.0] * 8), "reach")]
    with pytest.raises(ValueError, match="different kinds of protocols"):
        interval(*results, compare="ratio")
