"""What stands is compared with what is planned, whether or not Snakemake remembers making it."""

import re
import shlex
import shutil

import pytest

from .project import Project

PAPER = "papers/position_interpolation.yaml"
INVENTORY = "results/data/inventories/notes"
TOKENS = "results/data/tokens/python-tiny-train/bpe-512"


def rules(jobs: set[tuple[str, str]]) -> set[str]:
    return {rule for rule, _ in jobs}


def remedy(text: str) -> list[str]:
    """Return the manifests a refusal says to delete."""
    found = re.search(r"^ *rm (.+)$", text, re.MULTILINE)
    assert found, text
    return shlex.split(found[1])


def test_changed_corpus_is_listed_again_for_real(copied: Project) -> None:
    """A plan that says `inventory` and a stage that says `unchanged` would keep the old corpus."""
    before = copied.manifest(INVENTORY)
    path = copied.folder / "notes" / "train.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    target = f"{INVENTORY}/manifest.json"
    done = copied.snakemake(target)
    assert "inventory: unchanged" not in done.stdout + done.stderr
    after = copied.manifest(INVENTORY)
    sizes = [manifest["splits"]["train"]["bytes"] for manifest in (before, after)]  # type: ignore[index]
    assert sizes[0] - len(lines[-1].encode()) == sizes[1]
    assert "Nothing to be done" in str(copied.snakemake("-n", target))
    assert "tokenizer" in rules(copied.planned()[0])


def test_why_names_a_changed_corpus(project: Project) -> None:
    """`why` and the dry-run must not disagree."""
    path = project.folder / "notes" / "train.jsonl"
    path.write_text(path.read_text() + "\n")
    lines = project.run("ropewalk", "why", INVENTORY).stdout
    assert "was files=" in lines
    assert "now files=" in lines
    jobs, _ = project.planned()
    lines = project.run("ropewalk", "why", "all").stdout.splitlines()
    stale = {line.partition(":")[0] for line in lines if not line.endswith("up to date")}
    assert len(stale) == len(jobs)


def test_unset_location_makes_nothing_again(project: Project) -> None:
    """Results on a machine without the corpus stay what they are."""
    project.edit("config.yaml", f"notes: {project.folder / 'notes'}", "notes: null")
    assert project.planned()[0] == set()
    assert "files=" not in project.run("ropewalk", "why", "all").stdout


def test_without_records_nothing_is_done_if_nothing_changed(copied: Project) -> None:
    shutil.rmtree(copied.folder / ".snakemake")
    assert copied.planned()[0] == set()


def test_without_records_changed_settings_are_refused_and_the_remedy_works(
    copied: Project,
) -> None:
    """Snakemake alone says `Nothing to be done` to other settings once its metadata is gone."""
    shutil.rmtree(copied.folder / ".snakemake" / "metadata")
    copied.edit(PAPER, "scored_tokens: 32", "scored_tokens: 16")
    done = copied.snakemake("-n", "all", check=False)
    text = done.stdout + done.stderr
    assert done.returncode
    assert "now spec.protocol.scored_tokens=16" in text
    assert "Traceback" not in text
    manifests = remedy(text)
    assert manifests
    assert all("/evaluations/position_interpolation/perplexity/" in path for path in manifests)
    for path in manifests:
        (copied.folder / path).unlink()
    assert rules(copied.planned()[0]) == {"evaluate", "judge", "report"}


def test_copied_results_of_other_settings_are_refused(copied: Project) -> None:
    """A folder copied over the planned one, under another name, is not what is planned."""
    results = copied.folder / "results"
    shutil.copytree(results / "tiny", results / "copy")
    copied.edit("config.yaml", "scale: tiny", "scale: tiny\nname: copy")
    copied.edit(PAPER, "scored_tokens: 32", "scored_tokens: 16")
    done = copied.snakemake("-n", "all", check=False)
    assert done.returncode
    assert all(path.startswith("results/copy/") for path in remedy(done.stdout + done.stderr))


def test_results_replaced_behind_the_records_are_refused(copied: Project) -> None:
    """A matching record says what Snakemake ran, not what lies there now."""
    folder = copied.folder / "results/tiny/runs/position_interpolation"
    shutil.rmtree(folder / "pi-tiny-4x-python")
    shutil.copytree(folder / "direct-tiny-4x-python", folder / "pi-tiny-4x-python")
    done = copied.snakemake("-n", "all", check=False)
    text = done.stdout + done.stderr
    assert done.returncode
    assert "spec.run.phases.0.rope" in text
    assert remedy(text) == [f"{folder.relative_to(copied.folder)}/pi-tiny-4x-python/manifest.json"]


def test_other_pin_than_installed_is_refused(copied: Project) -> None:
    """An edited lock must not relabel the numbers of the version that is still installed."""
    lock = (copied.folder / "requirements.lock").read_text()
    pinned = re.search(r"^numpy==(\S+)$", lock, re.MULTILINE)
    assert pinned
    copied.edit("requirements.lock", f"numpy=={pinned[1]}", "numpy==1.0.0")
    target = f"{INVENTORY}/manifest.json"
    done = copied.snakemake(target, check=False)
    text = done.stdout + done.stderr
    assert done.returncode
    assert f"inventory: this environment has numpy {pinned[1]} where 1.0.0 is pinned" in text
    assert "make env" in text
    copied.edit("requirements.lock", "numpy==1.0.0", f"numpy=={pinned[1]}")
    assert "inventory: unchanged" in str(copied.snakemake(target))


def test_artifact_without_provenance_is_made_again(copied: Project) -> None:
    """Whoever edits files could otherwise delete the record that gives the edit away."""
    before = copied.manifest(TOKENS)
    shard = copied.folder / TOKENS / before["files"][0]["path"]  # type: ignore[index]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    (copied.folder / TOKENS / "provenance.json").unlink()
    jobs, text = copied.planned()
    assert ("tokenize", "corpus=python-tiny-train, tokenizer=bpe-512, part=00000") in jobs
    assert "rebuilds=1" in text
    copied.snakemake(f"{TOKENS}/manifest.json")
    assert copied.manifest(TOKENS) == before
    assert copied.planned()[0] == set()


@pytest.mark.parametrize("content", ["{", "[]", '{"recipe": 1}', "\udcff"])
def test_why_survives_a_broken_provenance(project: Project, content: str) -> None:
    record = project.folder / TOKENS / "provenance.json"
    whole = record.read_bytes()
    try:
        record.write_bytes(content.encode(errors="surrogateescape"))
        done = project.run("ropewalk", "why", TOKENS, check=False)
        jobs, _ = project.planned()
    finally:
        record.write_bytes(whole)
    assert done.returncode == 0, done.stderr
    assert "no readable provenance.json" in done.stdout
    assert "gather" in rules(jobs)


def test_why_takes_paths_as_shells_complete_them(project: Project) -> None:
    part = f"{TOKENS}/parts/00000"
    expected = project.run("ropewalk", "why", part).stdout
    for path in (f"./{part}/", str(project.folder / part), f"{part}/manifest.json"):
        assert project.run("ropewalk", "why", path).stdout == expected
    done = project.run("ropewalk", "why", TOKENS.replace("train", "tarin"), check=False)
    assert done.returncode == 2
    assert f"did you mean '{TOKENS}'?" in done.stderr
    done = project.run("ropewalk", "why", "nothing-like-it", check=False)
    assert len(done.stderr) < 400


@pytest.mark.parametrize("text", ["{ file: a }", "- one\n- two", "- { file: a, from: b }", "- ["])
def test_unusable_accepted_file_is_one_message(project: Project, text: str) -> None:
    (project.folder / "accepted.yaml").write_text(text)
    for command in (("snakemake", "-n", "all"), ("ropewalk", "why", "all")):
        done = project.run(*command, check=False)
        assert done.returncode
        assert "accepted.yaml" in done.stderr + done.stdout
        assert "Traceback" not in done.stderr + done.stdout
