"""The real stages on the written model: runs, evaluations, checks, and a study's own verdicts."""

import dataclasses
import functools
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import written
from tokenizers import Tokenizer, models
from written import Abilities

from ropewalk.base.files import read_json
from ropewalk.base.manifest import MANIFEST, Manifest, write_manifest
from ropewalk.base.spec import decode
from ropewalk.base.stage import run_stage
from ropewalk.data import pack
from ropewalk.data.shards import ShardWriter
from ropewalk.data.spec import PackJob, Share, Windows
from ropewalk.evaluate import check as check_stage
from ropewalk.evaluate import stage as evaluate_stage
from ropewalk.evaluate.spec import (
    CheckJob,
    EvaluateJob,
    PackedWindows,
    Protocol,
    check_module,
    protocol_module,
)
from ropewalk.model.spec import Architecture, Numerics, Rope
from ropewalk.report import bounds
from ropewalk.report.compare import Sampling
from ropewalk.report.quantities import Results
from ropewalk.report.spec import JudgeJob
from ropewalk.report.verdict import Evidence, judge_claim
from ropewalk.study.plan import Plan
from ropewalk.train import stage as train_stage
from ropewalk.train.spec import (
    Batch,
    Optimizer,
    Phase,
    PublishedWeights,
    Run,
    Schedule,
    TrainJob,
)

ROOT = Path(__file__).resolve().parents[2]
Json = dict[str, Any]


@functools.cache
def study(name: str) -> JudgeJob:
    """Return what the shipped study judges at scale `mini`: its claims, resolved to runs."""
    plan = Plan.load({"scale": "mini", "studies": [name]}, ROOT)
    return plan.node("judge", {"name": "mini", "study": name}).spec


def outcome(
    study_name: str,
    claim: str,
    *,
    evaluations: Mapping[tuple[str, str], Json] | None = None,
    checks: Mapping[str, Json] | None = None,
    trainings: Mapping[str, Json] | None = None,
    calibrations: Mapping[str, Json] | None = None,
    predicted: Mapping[str, float] | None = None,
) -> str:
    """Return what a study says of its claim, by its own rule, from results by name.

    A name of an evaluation is (evaluation, study/run), of the others what the claim calls them.
    """
    results = Results(
        study=study_name,
        by_name={(f"{study_name}/{e}", run): r for (e, run), r in (evaluations or {}).items()},
        calibrations=calibrations or {},
        trainings=trainings or {},
    )
    evidence = Evidence(
        scale="mini",
        results=results,
        checks=checks or {},
        sampling=Sampling(draws=500, seed=0),
        predicted=predicted or {},
    )
    verdict = judge_claim(study(study_name).claims[claim], evidence)
    assert verdict.outcome not in ("error", "not tested at this scale"), verdict.reason
    print(f"{claim}: {verdict.outcome}. {verdict.reason}")
    return verdict.outcome


class Bench:
    """A folder with a tokenizer and texts, and the stages that read them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokenizer = self._tokenizer()
        self.texts = self.tokens("texts", [written.text(i, 1100) for i in range(32)])

    def _tokenizer(self) -> Manifest:
        folder = self.folder / "tokenizer"
        folder.mkdir()
        names = {f"w{i}": i for i in range(written.VOCABULARY)}
        Tokenizer(models.WordLevel(names, unk_token="w1")).save(str(folder / "tokenizer.json"))
        facts = {
            "vocabulary_size": written.VOCABULARY,
            "bos": 0,
            "eos": 1,
            "opening": True,
            "reserved_tokens": written.RESERVED,
        }
        files = [folder / "tokenizer.json"]
        return write_manifest(
            folder, stage="tokenizer", spec={}, inputs={}, files=files, result=facts
        )

    def tokens(
        self, name: str, documents: Sequence[np.ndarray], *, prompts: bool = False
    ) -> Manifest:
        """Write documents as tokens; of `prompts` only the last token is a target."""
        folder = self.folder / name
        shape = {"vocabulary_size": written.VOCABULARY, "shard_tokens": 1 << 20}
        with ShardWriter(folder, **shape) as writer:
            for number, ids in enumerate(documents):
                prompt = len(ids) - 1 if prompts else 0
                named = {"subset": None, "text_bytes": len(ids), "prompt": prompt}
                writer.add(f"{name}-{number:04d}", ids, **named)
        return write_manifest(
            folder,
            stage="tokenize",
            spec={},
            inputs={"tokenizer": self.tokenizer},
            files=writer.files,
            result={"documents": len(documents), "vocabulary_size": written.VOCABULARY},
        )

    def windows(self, tokens: Manifest, policy: Any, length: int) -> Manifest:
        """Cut windows as stage `pack` does."""
        name = tokens.folder.name
        mixture = (Share(corpus=name, weight=1.0),)
        return run_stage(
            "pack",
            "ropewalk.data.pack",
            pack.work,
            spec=PackJob(
                windows=Windows(mixture=mixture, tokenizer="words", policy=policy),
                length_tokens=length,
            ),
            inputs={f"tokens:{name}": tokens.folder / MANIFEST},
            folder=self.folder / "windows" / name / policy / str(length),
        )

    def model(
        self, abilities: Abilities = written.PLAIN, shape: Architecture = written.SHAPE
    ) -> Path:
        """Return the folder of a written model."""
        key = [*dataclasses.astuple(abilities), shape.context_tokens, shape.rope_base]
        folder = self.folder / "models" / "-".join(map(str, key))
        return folder if folder.exists() else written.write(folder, abilities, shape)

    def run(
        self,
        name: str,
        *phases: Phase,
        tokens: Manifest | None = None,
        policy: Any = "concat",
        abilities: Abilities = written.PLAIN,
        shape: Architecture = written.SHAPE,
        **settings: Any,
    ) -> Manifest:
        """Train phases from the written model, or adopt it where there are none.

        Without other `settings` the learning rate is 0: the weights stay what was written.
        """
        read = tokens or self.texts
        inputs = {f"tokens:{read.folder.name}": read.folder / MANIFEST}
        for phase in phases:
            packed = self.windows(read, policy, phase.length_tokens)
            inputs[f"windows:texts:{phase.length_tokens}"] = packed.folder / MANIFEST
        training = {
            "batch": Batch(tokens=512),
            "optimizer": Optimizer(lr=0.0, betas=(0.9, 0.95)),
            "schedule": Schedule(shape="constant"),
        }
        run = Run(
            architecture=shape,
            tokenizer="words",
            weights=PublishedWeights(location="written"),
            phases=phases,
            **{**(training if phases else {}), **settings},
        )
        return run_stage(
            "train",
            "ropewalk.train.stage",
            train_stage.work,
            spec=TrainJob(run=run, folder=str(self.model(abilities, shape))),
            inputs={**(inputs if phases else {}), "tokenizer": self.tokenizer.folder / MANIFEST},
            folder=self.folder / "runs" / name,
        )

    def evaluated(
        self, run: Manifest, protocol: Protocol, rope: Rope | None = None, *, name: str = ""
    ) -> Json:
        """Apply a protocol to all snapshots of a run, as stage `evaluate` does."""
        module = protocol_module(protocol)
        label = f"{run.folder.name}-{protocol.kind}-{name}"
        spec = EvaluateJob(
            protocol=protocol, snapshots="all", rope=rope, numerics=Numerics(), seed=0
        )
        spec = dataclasses.replace(spec, sequences_per_forward=16)
        folder = self.folder / "evaluations" / label
        run_stage(
            "evaluate",
            "ropewalk.evaluate.stage",
            lambda job: evaluate_stage.work(
                dataclasses.replace(job, chosen=importlib.import_module(module))
            ),
            chosen=module,
            spec=spec,
            inputs={
                "run": run.folder / MANIFEST,
                "tokens": self.texts.folder / MANIFEST,
                "tokenizer": self.tokenizer.folder / MANIFEST,
            },
            folder=folder,
        )
        return read_json(folder / "result.json")

    def checked(self, kind: str, windows: Mapping[str, Manifest], name: str) -> Json:
        """Run a check of packed windows, as stage `check` does."""
        module = check_module(kind)
        folder = self.folder / "checks" / name
        run_stage(
            "check",
            "ropewalk.evaluate.check",
            lambda job: check_stage.work(
                dataclasses.replace(job, chosen=importlib.import_module(module))
            ),
            chosen=module,
            spec=CheckJob(
                check=kind,
                windows={
                    label: PackedWindows(windows=label, length_tokens=m.spec["length_tokens"])
                    for label, m in windows.items()
                },
            ),
            inputs={f"windows:{label}": m.folder / MANIFEST for label, m in windows.items()},
            folder=folder,
        )
        return read_json(folder / "result.json")


def predicted(run: Manifest) -> float:
    """Return the bound that the law predicts of a run's own settings, as the judge does."""
    found = bounds.predicted(decode(Run, run.spec["run"]))
    assert found is not None
    return found


def training(run: Manifest, calibration: str | None = None) -> Json:
    """Return the facts of a training as the judge reads them."""
    return {**run.result, "calibration": calibration}
