"""Studies with several seeds: what is planned for them."""

from study_samples import DEMO, SHARED, changed, plan, problems, write

from ropewalk.train.spec import RunWeights, ScratchWeights


def seeded(number: int, shared: int | None = None):
    return {
        "demo": changed(DEMO, {("seeds",): number}),
        "shared": changed(SHARED, {("seeds",): number if shared is None else shared}),
    }


def test_every_training_is_repeated_with_its_own_seed(tmp_path):
    """Guards against repetitions that are the same training, or that share a base."""
    found = plan(write(tmp_path, **seeded(3)))
    trained = {
        f"{node.wildcards['study']}/{node.wildcards['run']}": node.spec.run
        for node in found.of_stage("train")
    }
    names = ["demo/pi-2x", "demo/pi-4x", "demo/direct-2x", "shared/base"]
    assert set(trained) == {n + end for n in names for end in ("", "-seed2", "-seed3")}
    for name in names:
        seeds = [trained[name + end].seed for end in ("", "-seed2", "-seed3")]
        assert seeds == [0, 1, 2]
    weights = [trained[f"shared/base{end}"].weights for end in ("", "-seed2", "-seed3")]
    assert weights == [ScratchWeights(seed=1), ScratchWeights(seed=2), ScratchWeights(seed=3)]
    assert trained["demo/pi-2x-seed3"].weights == RunWeights(run="shared/base-seed3")
    assert trained["demo/pi-2x"].weights == RunWeights(run="shared/base")


def test_repetitions_are_evaluated_as_the_run_they_repeat(tmp_path):
    """Guards against an override that misses them, or claims that do not know of them."""
    found = plan(write(tmp_path, **seeded(2)))
    asked = {
        node.wildcards["run"]: node.spec.protocol.contexts for node in found.of_stage("evaluate")
    }
    assert asked["pi-4x"] == asked["pi-4x-seed2"] == {"1x": 16, "2x": 32, "4x": 64}
    assert asked["pi-2x"] == asked["pi-2x-seed2"] == {"1x": 16, "2x": 32}
    (judge,) = found.of_stage("judge")
    assert judge.spec.replicas["demo/pi-4x"] == ("demo/pi-4x-seed2",)
    assert judge.spec.replicas["shared/base"] == ("shared/base-seed2",)
    assert "evaluation:demo/loss:shared/base-seed2" in judge.inputs
    assert set(judge.spec.provenance["demo/pi-4x-seed2"].values()) >= {"paper", "assumed"}


def test_one_seed_plans_what_it_always_did(tmp_path):
    """Guards against a repetition of what nobody asked to repeat."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one = plan(write(tmp_path / "a", **seeded(1)))
    assert one.nodes == plan(write(tmp_path / "b")).nodes
    assert one.nodes != plan(write(tmp_path / "a", **seeded(2))).nodes


def test_weights_that_are_adopted_are_not_repeated(tmp_path):
    """Guards against one download under three names."""
    published = changed(
        SHARED,
        {
            ("seeds",): 1,
            ("models", "small", "weights"): {"kind": "published", "hub": "a/b", "revision": "c"},
            ("runs", "base", "spec"): {"model": "small"},
        },
    )
    found = plan(write(tmp_path, demo=changed(DEMO, {("seeds",): 3}), shared=published))
    runs = {node.wildcards["run"]: node.spec.run for node in found.of_stage("train")}
    assert {n for n in runs if n.startswith("base")} == {"base"}
    assert runs["pi-2x-seed3"].weights == RunWeights(run="shared/base")
    assert runs["pi-2x-seed3"].seed == 2


def test_a_base_with_fewer_seeds_is_refused(tmp_path):
    """Guards against three seeds of a fine-tuning that share one pretraining."""
    assert (
        "demo: seeds: 3, but runs.pi-2x starts from shared/base, and shared trains its runs with "
        "1: give both the same number"
    ) in problems(write(tmp_path, **seeded(3, shared=1)))


def test_a_name_that_a_repetition_needs_is_refused(tmp_path):
    """Guards against two trainings in one folder."""
    files = seeded(2)
    files["demo"] = changed(
        DEMO,
        {("seeds",): 2, ("runs", "again"): {"name": "pi-2x-seed2", "spec": {"model": "small"}}},
    )
    assert "runs.pi-2x-seed2: the name of a repetition" in problems(write(tmp_path, **files))


def test_no_seed_at_all_is_refused(tmp_path):
    """Guards against a study that plans nothing."""
    assert "seeds 0 must be at least 1" in problems(write(tmp_path, **seeded(0)))
