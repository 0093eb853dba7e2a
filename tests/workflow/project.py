"""A copy of the project in a folder of its own, with a small JSON-lines corpus and settings."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PARTS = [
    "Snakefile",
    "config.yaml",
    "requirements.lock",
    "rules",
    "papers",
    "profiles",
    "envs",
    "src",
]

OVERLAY = """\
shared:
  sources:
    notes: { kind: jsonl, location: notes, train: [train.jsonl], test: [test.jsonl] }
  corpora:
    python-tiny-train: { source: notes }
    python-tiny-test: { source: notes }
  architectures:
    llama-tiny: { hidden: 32, heads: 1, ffn: 64 }
  runs:
    base: { spec: { phases: [{ windows: base-tiny, length_tokens: 64, steps: 12 }] } }
position_interpolation:
  runs:
    extend:
      spec:
        phases: [{ windows: extend-tiny, length_tokens: 256, steps: 5 }]
        snapshot_steps: [0, 1, 2, 3, 4]
  snapshots: { "200": "1", "400": "2", "600": "3", "800": "4", "1000": "5" }
  checks:
    frequency:
      check: position_frequency
      parameters: { length_tokens: 64, corpora: 5, segments: 20, masks: 5, mask_tokens: 16 }
  evaluations:
    perplexity: { protocol: { documents: 6 } }
    retrieval: { protocol: { distances: 4, trials: 2 } }
    conventions: { protocol: { documents: 4 } }
    by_position: { runs: [original], protocol: { documents: 4 } }
    copying: { runs: [original], protocol: { distances: 3, trials: 2 } }
rope_scaling_laws:
  runs:
    tune: { spec: { phases: [{ windows: base-tiny, length_tokens: 64, steps: 5 }] } }
  evaluations:
    by_position: { protocol: { documents: 4 } }
    dynamic_ntk: { protocol: { documents: 4 } }
"""


def _words(count: int) -> list[str]:
    """Return distinct made-up words, enough for a tokenizer to find its merges in them."""
    dice = random.Random("words")
    found: dict[str, None] = {}
    while len(found) < count:
        syllables = (
            dice.choice("bcdfghjklmnprstvwz") + dice.choice("aeiouy") + dice.choice(" nrsl").strip()
            for _ in range(dice.randint(1, 4))
        )
        found["".join(syllables)] = None
    return list(found)


class Project:
    """One folder in which Snakemake runs with the code that lies there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for part in PARTS:
            source = ROOT / part
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
                shutil.copytree(source, folder / part, ignore=ignored, symlinks=True)
            else:
                shutil.copy(source, folder / part)

    def clone(self, folder: Path) -> "Project":
        """Return a copy with results and records, so that a test may run jobs for real."""
        shutil.copytree(self.folder, folder, symlinks=True)
        copied = object.__new__(Project)
        copied.folder = folder
        config = folder / "config.yaml"
        config.write_text(config.read_text().replace(str(self.folder), str(folder)))
        return copied

    def use_notes(self) -> None:
        """Replace the Python sources by a made-up corpus, so that a corpus file can be edited."""
        notes = self.folder / "notes"
        notes.mkdir()
        words = _words(3000)
        for split, count in (("train", 150), ("test", 30)):
            with (notes / f"{split}.jsonl").open("w") as stream:
                for index in range(count):
                    dice = random.Random(f"{split}{index}")
                    text = " ".join(dice.choices(words, k=dice.randint(300, 600)))
                    stream.write(json.dumps({"text": text, "meta": {}}) + "\n")
        (self.folder / "overlay.yaml").write_text(OVERLAY)
        config = self.folder / "config.yaml"
        text = config.read_text().replace("scale: mini", "scale: tiny")
        text = text.replace("# overlays: [my.yaml]", "overlays: [overlay.yaml] #")
        config.write_text(text.replace("locations:\n", f"locations:\n  notes: {notes}\n"))

    def environment(self) -> dict[str, str]:
        """Return the environment in which the copy's own package is imported."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("ROPEWALK_")}
        return {**kept, "PYTHONPATH": str(self.folder / "src"), "OMP_WAIT_POLICY": "passive"}

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command of this Python's environment in the folder."""
        program = Path(sys.executable).parent / arguments[0]
        done = subprocess.run(
            [str(program), *arguments[1:]],
            cwd=self.folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(
                f"{arguments} failed:\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
            )
        return done

    def snakemake(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run Snakemake for everything, or with the given arguments."""
        return self.run("snakemake", *(arguments or ("all",)), check=check)

    def planned(self, *arguments: str) -> tuple[set[tuple[str, str]], str]:
        """Return what a dry-run would do, as (rule, wildcards), and its whole text."""
        done = self.snakemake("--dry-run", "all", *arguments)
        text = done.stdout + done.stderr
        jobs = set()
        for block in re.split(r"\n(?=\[|rule |localrule |Job stats)", text):
            rule = re.search(r"^(?:local)?rule (\w+):", block, re.MULTILINE)
            if rule and rule[1] != "all":
                wildcards = re.search(r"^ +wildcards: (.*)$", block, re.MULTILINE)
                jobs.add((rule[1], wildcards[1] if wildcards else ""))
        return jobs, text

    def edit(self, file: str, old: str, new: str) -> None:
        """Replace one text in a file; it must be there."""
        path = self.folder / file
        text = path.read_text()
        assert old in text, f"{file} has no {old!r}"
        path.write_text(text.replace(old, new, 1))

    def manifest(self, folder: str) -> dict[str, object]:
        """Return the manifest of an artifact."""
        return json.loads((self.folder / folder / "manifest.json").read_text())
