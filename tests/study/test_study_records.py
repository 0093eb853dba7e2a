"""What stands against what is planned: causes, reasons, and what Snakemake cannot see."""

import base64
import hashlib
import json
import os
import shlex
from itertools import chain
from pathlib import Path

import pytest
from study_samples import SHARED, changed, plan, write

from ropewalk.base.closure import closure
from ropewalk.base.files import write_json
from ropewalk.base.manifest import MANIFEST, PROVENANCE, read_manifest, write_manifest
from ropewalk.base.spec import SpecError
from ropewalk.base.stage import LIBRARIES, environment
from ropewalk.data.spec import JsonlSource, PythonSource
from ropewalk.study.lookups import Lookups
from ropewalk.study.records import METADATA, Unseen
from ropewalk.study.registry import STAGES
from ropewalk.study.triggers import Triggers, listing
from ropewalk.study.why import Why, select

INVENTORY = "results/data/inventories/text/manifest.json"
BASE = "results/paper/runs/shared/base/manifest.json"
TUNED = "results/paper/runs/demo/pi-2x/manifest.json"
ACCEPTED = "accepted.yaml"


class Made:
    """A project whose artifacts all stand, as their stages would leave them; no Snakemake ran."""

    def __init__(self, root: Path) -> None:
        self.root = write(root)
        found = self.triggers()
        done: set[str] = set()
        while len(done) < len(found.plan.nodes):
            for path, node in found.plan.nodes.items():
                if path not in done and set(node.inputs.values()) <= done:
                    self._make(found, path)
                    done.add(path)
                    os.utime(root / path, ns=(len(done) * 10**9, len(done) * 10**9))

    def _make(self, triggers: Triggers, path: str) -> None:
        node, folder = triggers.plan.nodes[path], (self.root / path).parent
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "out").write_text(path)
        manifest = write_manifest(
            folder,
            stage=node.stage,
            spec=node.spec,
            inputs={name: read_manifest(self.root / p) for name, p in node.inputs.items()},
            files=[folder / "out"],
            result={},
        )
        record = {
            "recipe": manifest.recipe,
            "inputs": {name: i["content"] for name, i in manifest.inputs.items()},
            "manifest": (folder / MANIFEST).read_text(),
            "rebuilds": 0,
            "code_files": closure(*STAGES[node.stage].modules(node.spec)),
            "listing": triggers.source(node),
            "files": {"out": (folder / "out").stat().st_mtime_ns},
            **environment(),
        }
        write_json(folder / PROVENANCE, record)

    def triggers(self) -> Triggers:
        return Triggers(plan(self.root), self.root)

    def why(self, manifest: str) -> list[str]:
        found = self.triggers()
        return Why(found.plan, found, self.root).explain(manifest)

    def unseen(self) -> dict[str, list[str]]:
        found = self.triggers()
        return Unseen(found.plan, found, self.root).find()

    def remember(self) -> None:
        """Write the records Snakemake would have of the plan as it is now."""
        found = self.triggers()
        folder = self.root / METADATA
        longest = 254
        for path, node in found.plan.nodes.items():
            name = base64.urlsafe_b64encode(path.encode()).decode()
            assert len(name) <= longest
            params = [repr(text) for text in ("", *found.of(node))]
            write_json(folder / name, {"params": params})

    def edit(self, old: str, new: str) -> None:
        path = self.root / "papers" / "demo.yaml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


def test_what_was_made_as_planned_is_up_to_date(made: Made) -> None:
    """Guards every test below: the project is quiet before something changes."""
    paths = made.triggers().plan.nodes
    assert {path: reasons for path in paths if (reasons := made.why(path))} == {}
    assert made.unseen() == {}


def test_changed_setting_without_record_is_found_at_its_root(made: Made) -> None:
    """Guards against `Nothing to be done` once Snakemake's metadata is gone."""
    made.edit("lr: 1.0e-4", "lr: 2.0e-4")
    found = made.unseen()
    assert set(found) == {f"results/paper/runs/demo/{run}/manifest.json" for run in
                          ("direct-2x", "pi-2x", "pi-4x")}  # fmt: skip
    assert found[TUNED] == ["was spec.run.optimizer.lr=0.0001", "now spec.run.optimizer.lr=0.0002"]
    assert any("would be made again" in r for r in made.why("results/paper/report/manifest.json"))


def test_what_snakemake_sees_is_left_to_it(made: Made) -> None:
    """Guards against a refusal of the most ordinary thing, an edited setting."""
    made.remember()
    made.edit("lr: 1.0e-4", "lr: 2.0e-4")
    assert made.unseen() == {}
    made.remember()  # as if Snakemake had made it so, and older results were copied over it
    assert TUNED in made.unseen()


def test_deleting_what_is_named_is_the_remedy(made: Made) -> None:
    """Guards against a message that leads nowhere, and against asking for more than the roots."""
    made.edit("lr: 1.0e-4", "lr: 2.0e-4")
    found = made.triggers()
    with pytest.raises(SpecError) as caught:
        Unseen(found.plan, found, made.root).refuse()
    words = shlex.split(str(caught.value).splitlines()[-1])
    assert words[0] == "rm"
    for path in words[1:]:
        (made.root / path).unlink()
    assert made.unseen() == {}


def test_newer_input_is_left_to_snakemake(made: Made) -> None:
    """Guards against a refusal after an interruption: a run is new, its evaluations are not."""
    made.remember()
    folder = (made.root / BASE).parent
    (folder / "out").write_text("other weights")
    old = read_manifest(made.root / BASE, verify=False)
    node = made.triggers().plan.nodes[BASE]
    inputs = {name: read_manifest(made.root / p) for name, p in node.inputs.items()}
    write_manifest(
        folder, stage=old.stage, spec=node.spec, inputs=inputs, files=[folder / "out"], result={}
    )
    record = json.loads((folder / PROVENANCE).read_text())
    record["manifest"] = (folder / MANIFEST).read_text()
    record["files"] = {"out": (folder / "out").stat().st_mtime_ns}
    write_json(folder / PROVENANCE, record)
    assert made.why(TUNED) == [f"input run ({BASE}) has other content now"]
    assert made.unseen() == {}
    os.utime(made.root / BASE, ns=(1, 1))  # as a copy that keeps times does
    assert TUNED in made.unseen()


@pytest.mark.parametrize("content", [None, "{", "[]", "{}"])
def test_without_provenance_an_artifact_is_damaged(made: Made, content: str | None) -> None:
    """Guards against tampering that hides by removing the record that would show it."""
    file = (made.root / TUNED).parent / PROVENANCE
    file.unlink()
    if content is not None:
        file.write_text(content)
    found = made.triggers()
    assert "rebuilds=1" in found.of(found.plan.nodes[TUNED])
    assert made.why(TUNED) == [f"file {TUNED} has no readable provenance.json beside it"]
    assert set(made.unseen()) == {TUNED}


def test_other_code_and_libraries_are_named_and_accepted_code_is_not(made: Made) -> None:
    """Guards against results of other code or libraries that look fresh."""
    (made.root / "requirements.lock").write_text(
        "".join(f"{name}=={version}\n" for name, version in environment()["libraries"].items())
    )
    assert made.why(TUNED) == []
    file = (made.root / TUNED).parent / PROVENANCE
    record = json.loads(file.read_text())
    now = record["code_files"]["ropewalk/base/rng.py"]
    record["code_files"]["ropewalk/base/rng.py"] = "0" * 12
    record["libraries"] |= {"numpy": "0.1", "matplotlib": "0.1"}  # a training draws nothing
    write_json(file, record)
    version = environment()["libraries"]["numpy"]
    assert made.why(TUNED) == [
        "was numpy==0.1",
        f"was ropewalk/base/rng.py@{'0' * 12}",
        f"now numpy=={version}",
        f"now ropewalk/base/rng.py@{now}",
    ]
    (made.root / ACCEPTED).write_text(
        f"- {{ file: ropewalk/base/rng.py, from: '{'0' * 12}', to: '{now}', reason: same }}\n"
    )
    assert made.why(TUNED) == ["was numpy==0.1", f"now numpy=={version}"]


def test_commands_carry_what_the_plan_compared(made: Made) -> None:
    """Guards against a stage that knows less than the plan and calls stale work unchanged."""
    (made.root / "requirements.lock").write_text("numpy==1.2.3\nmatplotlib==3.2.1\n")
    (made.root / ACCEPTED).write_text(
        "- { file: ropewalk/data/packing.py, from: 'a', to: 'b', reason: same }\n"
        "- { file: ropewalk/data/entries.py, from: 'c', to: 'd', reason: same }\n"
    )
    lookups = Lookups(made.triggers().plan, made.triggers())
    words = shlex.split(lookups.arguments("inventory", {"source": "text"}))
    options = {word: words[i + 1] for i, word in enumerate(words) if word.startswith("--")}
    assert options["--library"] == "numpy==1.2.3"
    assert options["--accept"] == "ropewalk/data/entries.py@d=c"
    assert options["--listing"] == made.triggers().source(made.triggers().plan.nodes[INVENTORY])
    words = shlex.split(lookups.arguments("pack", {"windows": "plain", "length": "16"}))
    assert "ropewalk/data/packing.py@b=a" in words
    assert "--listing" not in words


def test_libraries_of_stages_are_recorded() -> None:
    """Guards against a stage that never stands because its library is not written down."""
    for stage in STAGES.values():
        used = {*stage.libraries, *chain(*stage.chosen_libraries.values())}
        assert used <= set(LIBRARIES), stage.name


def test_listing_of_packages_ignores_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against everything made again in a second environment, whose scripts differ."""
    info = tmp_path / "fake_listed-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-listed\nVersion: 1.0\n")
    (tmp_path / "fake_listed.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    source = PythonSource(distributions=("fake-listed",))

    def found(script: str, module: bytes) -> str:
        code = base64.urlsafe_b64encode(hashlib.sha256(module).digest()).rstrip(b"=").decode()
        (info / "RECORD").write_text(
            f"../../../bin/tool,sha256={script},10\n../../../bin/tool.py,sha256={script},10\n"
            f"fake_listed.py,sha256={code},6\nfake_listed-1.0.dist-info/RECORD,,\n"
        )
        return listing(source, None)

    first = found("one", b"x = 1\n")
    assert first.startswith("files=")
    assert found("another", b"x = 1\n") == first
    assert found("one", b"x = 2\n") != first
    (tmp_path / "fake_listed.py").write_text("x = 10\n")
    assert found("one", b"x = 1\n") != first


def test_absent_folder_keeps_the_recorded_listing(tmp_path: Path) -> None:
    """Guards against everything made again on a machine that has the results, not the corpus."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.jsonl").write_text("{}")
    source = {"kind": "jsonl", "location": "pile", "train": ["*.jsonl"], "test": ["*.jsonl"]}
    write(tmp_path, shared=changed(SHARED, {("sources", "text"): source}))
    folder = (tmp_path / INVENTORY).parent
    folder.mkdir(parents=True)

    def source_now(place: Path | None) -> str:
        location = None if place is None else str(place)
        found = plan(tmp_path, locations={"pile": location})
        return Triggers(found, tmp_path).source(found.nodes[INVENTORY])

    seen = source_now(data)
    kind = JsonlSource(location="pile", train=("*.jsonl",), test=("*.jsonl",))
    assert seen == listing(kind, str(data))
    assert source_now(None) == ""
    whole = {"recipe": "", "manifest": "", "inputs": {}, "code_files": {}, "libraries": {}}
    write_json(folder / PROVENANCE, {**whole, "files": {}, "rebuilds": 0, "listing": seen})
    assert source_now(None) == seen
    assert source_now(tmp_path / "unmounted") == seen
    (data / "a.jsonl").write_text("{}\n")
    assert source_now(data) != seen


def test_targets_are_found_however_they_are_written(made: Made) -> None:
    """Guards against a path from the shell's completion that is called unknown."""
    found, root = made.triggers().plan, made.root
    for target in (TUNED, f"./{TUNED}", str(root / TUNED), f"{Path(TUNED).parent}/"):
        assert select(found, target, root) == [TUNED]
    assert select(found, ".", root) == select(found, "all", root) == found.manifests()
    assert select(found, "demo", root) == found.manifests("demo")
    with pytest.raises(SpecError) as caught:
        select(found, "results/paper/runs/demo/pi-3x", root)
    assert "did you mean 'results/paper/runs/demo/pi-" in str(caught.value)
    with pytest.raises(SpecError) as caught:
        select(found, "/elsewhere/entirely", root)
    assert len(str(caught.value)) < 300
    assert "demo" in str(caught.value)
