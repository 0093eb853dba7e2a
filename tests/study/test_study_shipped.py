"""What is shipped: papers, scales, rules, environments and pins agree with one another."""

import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest
import yaml

from ropewalk.base.canonical import plain
from ropewalk.evaluate.spec import Passkey, RecallProbe
from ropewalk.report.spec import Exact, JudgeJob, Quantity
from ropewalk.report.verdict import quantities
from ropewalk.study.config import SCALES
from ropewalk.study.load import available
from ropewalk.study.plan import Plan
from ropewalk.study.project import load_plan
from ropewalk.study.registry import STAGES
from ropewalk.study.show import CLASSES, resolved
from ropewalk.study.triggers import read_pins

ROOT = Path(__file__).resolve().parents[2]
STUDIES = available(ROOT / "papers")
DATA_STAGES = ("inventory", "tokenizer", "tokenize", "pack")


@functools.cache
def planned(scale: str) -> Plan:
    return load_plan(ROOT / "config.yaml", {"scale": scale})


@pytest.mark.parametrize("study", STUDIES)
def test_every_setting_at_the_papers_scale_has_a_class(study: str) -> None:
    """Guards against a setting whose source nobody stated."""
    classes = resolved(planned("paper"), study)["provenance"]
    assert not [path for path, kind in classes.items() if kind not in CLASSES]
    assert "scale" not in classes.values()


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("study", STUDIES)
def test_what_differs_from_the_paper_is_classed_as_the_scales(study: str, scale: str) -> None:
    """Guards against a setting of a small scale that passes for the authors'."""
    found = planned(scale).studies[study]
    classes = resolved(planned(scale), study)["provenance"]
    for path, layer in found.layers.items():
        if layer.startswith("scale") and path in classes:
            assert classes[path] == "scale", path


def test_artifacts_that_scales_share_are_the_same_in_all() -> None:
    """Guards against two scales that overwrite each other's tokens under one path."""
    seen: dict[str, tuple[str, object]] = {}
    for scale in SCALES:
        for stage in DATA_STAGES:
            for node in planned(scale).of_stage(stage):
                spec = (plain(node.spec), dict(node.inputs))
                first, expected = seen.setdefault(node.manifest, (scale, spec))
                assert spec == expected, f"{node.manifest} differs between {first} and {scale}"
    assert seen


@pytest.mark.parametrize("study", STUDIES)
def test_every_rule_can_be_judged_at_the_papers_scale(study: str) -> None:
    """Guards against a misspelled cell that turns a claim into 'not tested'."""
    plan = planned("paper")
    job: JudgeJob = plan.node("judge", {"name": "paper", "study": study}).spec
    for name, claim in plan.studies[study].file.claims.items():
        assert claim.rule is None or job.claims[name].rule is not None, job.claims[name].note


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("study", STUDIES)
def test_what_a_scale_promises_to_decide_it_measures(study: str, scale: str) -> None:
    """Guards against a promise that ends as 'not tested at this scale'."""
    plan = planned(scale)
    job: JudgeJob = plan.node("judge", {"name": scale, "study": study}).spec
    assert not [name for name in job.decides if job.claims[name].rule is None]
    exact = {n for n, c in plan.studies[study].file.claims.items() if isinstance(c.rule, Exact)}
    assert {name for name in exact if job.claims[name].rule is None} == set()


def asked(job: JudgeJob) -> Iterator[tuple[str, Quantity]]:
    """Yield every quantity a claim or a table needs; none beside a cell left out in print."""
    for name, claim in job.claims.items():
        for rule in (claim.rule, *claim.requires):
            for quantity in quantities(rule) if rule else ():
                yield f"claims.{name}", quantity
    for name, table in job.tables.items():
        for place, quantity in job.cells[name].items():
            row, column = map(int, place.split(","))
            if not table.rows[row].cells or table.rows[row].cells[column]:
                yield f"tables.{name}.{place}", quantity


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("study", STUDIES)
def test_weights_that_are_judged_are_kept_and_evaluated(study: str, scale: str) -> None:
    """Guards against a snapshot that is missing after a month of training.

    And the other way round: weights that no evaluation reads fill a disk for nothing.
    """
    plan = planned(scale)
    job: JudgeJob = plan.node("judge", {"name": scale, "study": study}).spec
    for where, quantity in asked(job):
        if not quantity.evaluation:  # of a calibration, or of the training itself
            continue
        assert isinstance(quantity.run, str)
        run = plan.run(quantity.run)
        last = sum(phase.steps or 0 for phase in run.phases)
        evaluation = plan.evaluation(study, quantity.evaluation, quantity.run)
        step = {"final": last, "first": 0}.get(quantity.snapshot)
        step = int(quantity.snapshot) if step is None else step
        read = {last, *run.snapshot_steps} if evaluation.snapshots == "all" else {last}
        assert step in read, f"{where}: {quantity}"
    for name in plan.studies[study].runs:
        full = f"{study}/{name}"
        snapshots = {
            plan.evaluation(study, evaluation, full).snapshots
            for evaluation in plan.studies[study].evaluations
            if full in plan.evaluated(study, evaluation)
        }
        assert not plan.run(full).snapshot_steps or "all" in snapshots, name


@pytest.mark.parametrize("scale", SCALES)
def test_probes_allow_for_the_distance_that_no_prompt_has(scale: str) -> None:
    """Guards against a probe that is refused when its model is trained at last.

    The longest of its distances is the whole context, where the question has no room.
    """
    probes = [
        node
        for node in planned(scale).of_stage("evaluate")
        if isinstance(node.spec.protocol, RecallProbe | Passkey)
    ]
    assert probes
    assert [n.manifest for n in probes if "dropped" not in n.spec.protocol.allow] == []


def imported(code: str) -> set[str]:
    """Return the top-level modules that are loaded after some code has run."""
    script = f"{code}\nimport sys\nprint('modules', *{{m.split('.')[0] for m in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.rpartition("modules ")[2].split())


@pytest.mark.parametrize(
    "code",
    [
        "from pathlib import Path\nfrom ropewalk.study.plan import Plan\n"
        "from ropewalk.study.project import load_plan\n"
        "assert load_plan(Path('config.yaml'), {'scale': 'paper'}).nodes",
        "from pathlib import Path\nfrom ropewalk.study.lookups import Lookups\n"
        "from ropewalk.study.project import read_config_file\n"
        "l = Lookups.load(read_config_file(Path('config.yaml')), Path('.'))\n"
        "assert l.triggers.submitted()",
        "import contextlib\nfrom ropewalk.cli import main\n"
        "with contextlib.suppress(SystemExit):\n    main(['--help'])",
    ],
    ids=["plan", "lookups", "help"],
)
def test_planning_and_help_import_nothing_heavy(code: str) -> None:
    """Guards against seconds added to every dry run: each cluster job plans twice."""
    found = imported(code)
    assert "ropewalk" in found
    heavy = {"torch", "transformers", "numpy", "pyarrow", "matplotlib", "datasets", "tokenizers"}
    assert not found & heavy


def environment(family: str) -> dict[str, str]:
    data = yaml.safe_load((ROOT / "envs" / f"{family}.yaml").read_text(encoding="utf-8"))
    (packages,) = [item["pip"] for item in data["dependencies"] if isinstance(item, dict)]
    pins = dict(package.split("==") for package in packages)
    return {name.lower().replace("_", "-"): version for name, version in pins.items()}


def test_every_family_has_an_environment_with_the_versions_of_the_lock_file() -> None:
    """Guards against numbers that differ between `make` and the conda environments."""
    families = {stage.family for stage in STAGES.values()}
    assert {path.stem for path in (ROOT / "envs").glob("*.yaml")} >= families
    lock = read_pins(ROOT / "requirements.lock")
    for path in (ROOT / "envs").glob("*.yaml"):
        pins = environment(path.stem)
        assert pins
        assert {name: lock.get(name) for name in pins} == pins, path.name


def test_the_libraries_a_stage_depends_on_are_pinned_in_its_environment() -> None:
    """Guards against an upgrade that changes numbers and reruns nothing."""
    for stage in STAGES.values():
        used = {*stage.libraries, *chain(*stage.chosen_libraries.values())}
        assert used <= set(environment(stage.family)), stage.name


def test_rules_and_stages_are_the_same_list() -> None:
    """Guards against a stage that no rule runs, and a rule that uses another stage's lookups."""
    text = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "rules").glob("*.smk")}
    blocks = {
        match[1]: match[2]
        for part in text.values()
        for match in re.finditer(r"^rule (\w+):\n((?:[ \n].*\n?)*)", part, re.MULTILINE)
    }
    assert set(blocks) == set(STAGES)
    for name, block in blocks.items():
        asked = set(re.findall(r'(?:lookups|triggers|plan)\.\w+\(\s*"(\w+)"', block))
        assert asked == {name}
        assert f"ropewalk {name} " in block
        assert f"../envs/{STAGES[name].family}.yaml" in block
        assert STAGES[name].summary in block
    included = set(re.findall(r'include: "rules/([\w.]+)"', (ROOT / "Snakefile").read_text()))
    assert included == set(text)
