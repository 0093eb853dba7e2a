"""The methods side by side differ in the method and in nothing else."""

import functools
from pathlib import Path

import pytest

from ropewalk.base.canonical import plain
from ropewalk.evaluate.spec import SameTokens
from ropewalk.report.spec import JudgeJob
from ropewalk.study.plan import Plan
from ropewalk.study.project import load_plan
from ropewalk.study.timing import measures
from ropewalk.train.spec import CalibrateJob, Phase, Run, RunWeights, Timed

ROOT = Path(__file__).resolve().parents[2]
STUDY = "cross_study"
SCALES = ("mini", "small", "gpu", "paper")  # tiny has one arm
# Ropes of inference -> the arm that is tuned with the same, where there is one.
UNTRAINED = {
    "linear": "full-linear",
    "ntk": "full-ntk",
    "yarn": "full-yarn",
    "larger": "full-larger",
    "dynamic": None,
    "string": None,
    "log": None,
}


@functools.cache
def planned(scale: str) -> Plan:
    return load_plan(ROOT / "config.yaml", {"scale": scale})


def arms(plan: Plan) -> dict[str, Run]:
    """Return every run that is measured and was tuned."""
    names = plan.evaluated(STUDY, "perplexity")
    runs = {name: plan.run(name) for name in names}
    return {name: run for name, run in runs.items() if isinstance(run.weights, RunWeights)}


def step_tokens(run: Run, phase: Phase) -> int:
    assert run.batch is not None
    return run.batch.tokens or (run.batch.sequences or 0) * phase.length_tokens


@pytest.mark.parametrize("scale", SCALES)
def test_arms_read_the_same_number_of_tokens_of_the_same_corpora(scale: str) -> None:
    """Guards against a method that wins by reading more, or something else."""
    plan = planned(scale)
    mixtures = {
        (node.wildcards["windows"], int(node.wildcards["length"])): node.spec.windows.mixture
        for node in plan.of_stage("pack")
    }
    found = arms(plan)
    assert len(found) == 15
    for run in found.values():
        assert {phase.steps is None for phase in run.phases} == {False}
    budgets = {
        (tuple({step_tokens(r, p) for p in r.phases}), sum(p.steps or 0 for p in r.phases))
        for r in found.values()
    }
    assert len(budgets) == 1
    read = {mixtures[p.windows, p.length_tokens] for r in found.values() for p in r.phases}
    assert len({tuple((s.corpus, s.weight) for s in mixture) for mixture in read}) == 1


@pytest.mark.parametrize("scale", SCALES)
def test_arms_differ_in_rows_rope_and_positions_alone(scale: str) -> None:
    """Guards against a learning rate, precision or starting point that favours one method."""
    plan = planned(scale)
    found = arms(plan)
    for field in ("optimizer", "schedule", "numerics", "architecture", "tokenizer", "seed"):
        assert len({repr(getattr(run, field)) for run in found.values()}) == 1, field
    assert {run.weights for run in found.values()} == {
        RunWeights(run=plan.studies[STUDY].file.aliases["original"])
    }


@pytest.mark.parametrize("scale", SCALES)
def test_every_arm_is_made_for_the_target_that_claims_read(scale: str) -> None:
    """Guards against rows, positions or factors of another length than the one compared."""
    plan = planned(scale)
    protocol = plan.studies[STUDY].evaluations["perplexity"].protocol
    assert isinstance(protocol, SameTokens)
    target = protocol.contexts[plan.studies[STUDY].file.contexts["target"]]
    window = protocol.contexts["1x"]
    assert protocol.contexts == {f"{n}x": n * window for n in (1, 2, 4, 8, 16)}
    for name, run in arms(plan).items():
        assert run.architecture.context_tokens == window
        last = run.phases[-1]
        short = name.split("/")[1].startswith("short-")
        assert last.context_tokens == (window if short else target), name
        factor = getattr(last.rope, "factor", None)
        assert factor in (None, target / window), name
        assert {phase.rope for phase in run.phases} == {last.rope}, name
    grown = plan.run(f"{STUDY}/grow-linear")
    lengths = [phase.length_tokens for phase in grown.phases]
    assert lengths == [window * 2**i for i in range(len(lengths))]
    assert lengths[-1] == target
    assert max(p.steps or 0 for p in grown.phases) - min(p.steps or 0 for p in grown.phases) <= 1


@pytest.mark.parametrize("scale", SCALES)
def test_ropes_of_inference_are_measured_as_the_arms_are(scale: str) -> None:
    """Guards against other documents, trials or factors for what was not tuned."""
    plan = planned(scale)
    evaluations = plan.studies[STUDY].evaluations
    for kind in ("perplexity", "retrieval"):
        usual = evaluations[kind]
        assert usual.rope is None
        for name, arm in UNTRAINED.items():
            own = evaluations[f"{kind}_{name}"]
            assert own.rope is not None
            assert plan.evaluated(STUDY, f"{kind}_{name}") == [
                plan.studies[STUDY].file.aliases["original"]
            ]
            for field in ("protocol", "corpus", "numerics", "seed"):
                assert getattr(own, field) == getattr(usual, field), (name, field)
            if arm is not None:
                assert own.rope == plan.run(f"{STUDY}/{arm}").phases[-1].rope
    window = plan.run(f"{STUDY}/full-plain").architecture.context_tokens
    shift = plain(evaluations["perplexity_string"].rope)
    assert (shift["shift_tokens"], shift["window_tokens"]) == (window // 3, window // 16)
    assert plain(evaluations["perplexity_log"].rope)["window_tokens"] == window


@pytest.mark.parametrize("scale", ["mini", "small", "gpu"])
def test_the_calibration_measures_the_steps_of_every_arm(scale: str) -> None:
    """Guards against a method without a cost, for want of the shape of its rows."""
    plan = planned(scale)
    wildcards = {"name": scale, "study": STUDY, "calibration": "cost"}
    job = plan.node("calibrate", wildcards).spec
    assert isinstance(job, CalibrateJob)
    for name, run in arms(plan).items():
        assert (run.architecture, run.numerics) == (job.architecture, job.numerics)
        for phase in run.phases:
            rows = step_tokens(run, phase) // phase.length_tokens
            part = Timed(
                calibration="",
                length_tokens=phase.length_tokens,
                context_tokens=phase.context_tokens,
                sequences=rows,
                steps=1,
            )
            assert measures(job, part), name


@pytest.mark.parametrize("scale", SCALES)
def test_the_table_shows_every_arm_and_no_cell_is_printed(scale: str) -> None:
    """Guards against a method that is trained and shown nowhere."""
    plan = planned(scale)
    job: JudgeJob = plan.node("judge", {"name": scale, "study": STUDY}).spec
    table, cells = job.tables["methods"], job.cells["methods"]
    shown = {(q.evaluation, q.run) for q in cells.values() if q.value == "perplexity"}
    measured = {
        (name, run)
        for name in plan.studies[STUDY].evaluations
        for run in plan.evaluated(STUDY, name)
        if name.startswith("perplexity")
    }
    assert shown == measured
    assert len(shown) == len(table.rows)
    assert not any(row.cells for row in table.rows)
    assert set(cells) == {
        f"{r},{c}" for r in range(len(table.rows)) for c in range(len(table.columns))
    }


def test_runs_of_other_studies_are_named_and_not_copied() -> None:
    """Guards against one training done twice under two names."""
    for scale in SCALES:
        others = [name for name in arms(planned(scale)) if not name.startswith(f"{STUDY}/")]
        assert len(others) == 6
        assert all(name.startswith("pose/") for name in others)


def test_without_its_neighbour_the_study_says_what_is_lacking() -> None:
    """Guards against a list of known runs in place of the reason."""
    with pytest.raises(ValueError, match="its study 'pose' is not among the chosen ones"):
        load_plan(ROOT / "config.yaml", {"scale": "mini", "studies": [STUDY]})
