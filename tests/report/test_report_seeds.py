"""Runs of several seeds: one number and an interval that knows the noise of training."""

import math

import numpy as np
import pytest
from report_sample import LOSSES, RETRIEVAL, losses, q, result, retrieval
from scipy import stats

from ropewalk.report.compare import Arms, Sampling, estimated
from ropewalk.report.estimate import Estimate, pooled
from ropewalk.report.quantities import Results, extract
from ropewalk.report.samples import Measured, Missing, PerUnit
from ropewalk.report.spec import Claim, Quantity, Steeper, Threshold
from ropewalk.report.verdict import Evidence, judge_claim

SAMPLING = Sampling(draws=400, seed=1)


def study(**numbers: list[float]) -> Results:
    """Return results of arms, each a list of perplexities at 4x by seed; one seed: published."""
    by_name, replicas = {}, {}
    for arm, each in numbers.items():
        names = [f"pi/{arm}", *(f"pi/{arm}-seed{n}" for n in range(2, len(each) + 1))]
        for name, number in zip(names, each, strict=True):
            by_name["pi/loss", name] = result(name, LOSSES, {0: losses({"4x": number}, seed=7)})
        if len(names) > 1:
            replicas[names[0]] = tuple(names[1:])
    return Results(study="pi", by_name=by_name, replicas=replicas)


def verdict(rule, results: Results):
    claim = Claim(statement="s", location="l", printed="p", rule=rule)
    return judge_claim(
        claim, Evidence(scale="small", results=results, checks={}, sampling=SAMPLING)
    )


def beats(a: str, b: str) -> Threshold:
    return Threshold(
        quantity=q(f"pi/{a}"), baseline=q(f"pi/{b}"), compare="difference", at_most=0.0
    )


def of(number: float, half: float = 0.0) -> Estimate:
    return Estimate(number=number, low=number - half, high=number + half, method="m", unit="nll")


def test_seeds_alone_have_student_s_interval():
    """Guards against a normal interval, which three seeds are far too few for."""
    numbers = [3.1, 3.4, 2.9]
    found = pooled([of(number) for number in numbers])
    low, high = stats.t.interval(0.95, 2, loc=np.mean(numbers), scale=stats.sem(numbers))
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)
    assert found.number == pytest.approx(np.mean(numbers))


def test_documents_alone_keep_their_interval():
    """Guards against an interval that shrinks because the same documents were read three times."""
    found = pooled([of(3.0, 0.2)] * 3)
    assert (found.low, found.high) == pytest.approx((2.8, 3.2), rel=1e-12)


def test_an_end_without_a_bound_stays_one():
    """Guards against infinity times zero, or a bound that nobody measured."""
    open_ended = Estimate(number=2.0, low=1.0, high=math.inf, method="m", unit="bound")
    found = pooled([open_ended, of(3.0, 0.5)])
    assert (found.number, found.low, found.high) == (2.5, 1.0, math.inf)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """Guards against an interval that leaves out the noise of training, or of documents."""
    random = np.random.default_rng(0)
    documents, trials, held, alone = 40, 250, 0, 0
    sampling = Sampling(draws=200, seed=3)
    weights, names = np.ones(documents), tuple(f"{n:02}" for n in range(documents))
    for _ in range(trials):
        hard = random.normal(0, 0.3, documents)  # of a document, whatever the seed
        samples = [
            PerUnit(names=names, sums=2.0 + hard + random.normal(0, 0.1), weights=weights)
            for _ in range(3)
        ]
        each = [
            estimated(
                Arms(
                    subject=Measured(quantity=q("pi/a"), number=sample.mean, sample=sample),
                    baseline=None,
                    compare="value",
                ),
                sampling,
            )
            for sample in samples
        ]
        found = pooled(each)
        held += found.low <= 2.0 <= found.high
        alone += each[0].low <= 2.0 <= each[0].high
    assert held / trials >= 0.95
    assert alone / trials < 0.85  # what one seed's interval is worth


def test_a_win_of_one_seed_is_not_a_win():
    """Guards against claims that are judged by the first seed alone."""
    lucky = study(a=[20.0, 26.0, 24.0], b=[25.0, 24.0, 25.0])
    assert verdict(beats("a", "b"), lucky).outcome == "inconclusive"
    assert verdict(beats("a", "b"), study(a=[20.0], b=[25.0])).outcome == "reproduced"
    sure = study(a=[20.0, 20.2, 19.9], b=[25.0, 24.9, 25.1])
    assert verdict(beats("a", "b"), sure).outcome == "reproduced"
    assert verdict(beats("b", "a"), sure).outcome == "contradicted"


def test_seeds_are_compared_in_pairs():
    """Guards against the noise that two arms share (one base per seed) hiding their difference."""
    paired = study(a=[20.0, 24.0, 30.0], b=[20.5, 24.6, 30.75])  # 2.5 % more at every seed
    assert verdict(beats("a", "b"), paired).outcome == "reproduced"
    crossed = study(a=[20.0, 24.0, 30.0], b=[24.6, 30.75, 20.5])
    assert verdict(beats("a", "b"), crossed).outcome == "inconclusive"


def test_what_has_one_seed_stands_beside_every_seed():
    """Guards against published weights that cannot be compared with runs of three seeds."""
    results = study(tuned=[20.0, 20.2, 19.9], published=[25.0])
    found = verdict(beats("tuned", "published"), results)
    assert found.outcome == "reproduced"
    differences = [math.log(n) - math.log(25.0) for n in (20.0, 20.2, 19.9)]
    assert found.comparisons[0].estimate.number == pytest.approx(np.mean(differences), abs=0.02)


def test_runs_with_other_numbers_of_seeds_are_an_error():
    """Guards against seeds silently left out of a comparison."""
    found = verdict(beats("a", "b"), study(a=[20.0, 20.1], b=[25.0, 25.1, 25.2]))
    assert found.outcome == "error"
    assert "2 and 3 seeds" in found.reason


def test_a_seed_that_was_not_run_is_missing():
    """Guards against a mean over the seeds that happened to finish."""
    results = study(a=[20.0, 20.1, 20.2], b=[25.0, 25.1, 25.2])
    kept = {key: found for key, found in results.by_name.items() if key[1] != "pi/a-seed3"}
    partial = Results(study="pi", by_name=kept, replicas=results.replicas)
    assert isinstance(extract(q("pi/a"), partial), Missing)
    assert verdict(beats("a", "b"), partial).outcome == "not tested at this scale"


def test_arms_that_agree_at_every_seed_show_no_difference():
    """Guards against a tie counted as an order because its interval has no width."""
    same = study(a=[20.0, 21.0, 22.0], b=[20.0, 21.0, 22.0])
    rule = Threshold(quantity=q("pi/a"), baseline=q("pi/b"), compare="difference", at_most=0.0)
    assert verdict(rule, same).outcome == "inconclusive"


def test_steps_of_three_runs_are_pooled_too():
    """Guards against rules on chains that see the first seed only."""
    rule = Steeper(along=(q("pi/a"), q("pi/b"), q("pi/c")), direction="rising")
    sure = study(a=[20.0, 20.1, 20.0], b=[21.0, 21.1, 21.0], c=[40.0, 41.0, 40.5])
    assert verdict(rule, sure).outcome == "reproduced"
    unsure = study(a=[20.0, 20.0, 20.0], b=[21.0, 30.0, 25.0], c=[40.0, 31.0, 30.0])
    assert verdict(rule, unsure).outcome == "inconclusive"


def test_shares_of_trials_are_pooled():
    """Guards against retrieval left out of pooling."""
    shares = {"pi/a": 0.5, "pi/a-seed2": 0.7, "pi/a-seed3": 0.9}
    results = Results(
        study="pi",
        by_name={
            ("pi/passkey", name): result(name, RETRIEVAL, {0: retrieval([share] * 8)})
            for name, share in shares.items()
        },
        replicas={"pi/a": ("pi/a-seed2", "pi/a-seed3")},
    )
    found = extract(Quantity(evaluation="passkey", run="pi/a", value="accuracy"), results)
    assert isinstance(found, Measured)
    assert found.number == pytest.approx(0.7)
    estimate = estimated(Arms(subject=found, baseline=None, compare="value"), SAMPLING)
    student = stats.t.interval(0.95, 2, loc=0.7, scale=stats.sem(list(shares.values())))
    assert estimate.low < student[0]
    assert estimate.high > student[1]
    assert [key[1] for key, _ in results.shown] == ["pi/a"]
