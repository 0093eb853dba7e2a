"""Nodes of the plan: building each artifact's spec and inputs from the named parts."""

import dataclasses
import fnmatch
import re
from collections.abc import Mapping
from typing import Any

from ropewalk.base.canonical import leaves, plain
from ropewalk.base.manifest import MANIFEST
from ropewalk.base.spec import SpecError, suggestion
from ropewalk.data.spec import (
    DocumentCorpus,
    FileSource,
    InventoryJob,
    PackJob,
    RecallCorpus,
    Source,
    TokenizeJob,
    TokenizerJob,
    TrainedTokenizer,
    Windows,
    gather_job,
    part_name,
)
from ropewalk.evaluate.spec import CheckJob, EvaluateJob, Evaluation
from ropewalk.report.spec import Accepted, JudgeJob, ReportJob
from ropewalk.study.combinations import check_run, check_twins
from ropewalk.study.config import Config
from ropewalk.study.judging import judge_job, run_of, seen_by
from ropewalk.study.load import DEFINITIONS, SHARED, Problems, apply
from ropewalk.study.provenance import class_of, inherited_layers
from ropewalk.study.registry import folder
from ropewalk.study.schema import Model, RunSettings, Study
from ropewalk.study.timing import budgets, calibrate_job
from ropewalk.train.spec import CalibrateJob, PublishedWeights, Run, RunWeights, TrainJob

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Node:
    """One artifact of the plan."""

    stage: str
    wildcards: Mapping[str, str]
    spec: Any  # the stage's spec type
    inputs: Mapping[str, str]  # input name -> manifest path
    manifest: str  # path of the manifest it leaves


class Builder:
    """Collects the nodes that a set of studies needs; each shared node is built once."""

    def __init__(
        self, config: Config, studies: Mapping[str, Study], accepted: tuple[Accepted, ...] = ()
    ) -> None:
        self.config = config
        self.studies = studies
        self.accepted = accepted
        self.nodes: dict[str, Node] = {}
        self.problems = Problems()
        self.definitions = {kind: self._merged(kind) for kind in DEFINITIONS}
        self._runs: dict[str, Run | None] = {}
        self._resolving: list[str] = []  # from the run asked for to the one looked at

    def _merged(self, kind: str) -> dict[str, Any]:
        """Return the definitions of one kind of all files; one name has one definition."""
        merged: dict[str, Any] = {}
        for study in self.studies.values():
            for name, value in getattr(study.file, kind).items():
                if name in merged and merged[name] != value:
                    self.problems.add(
                        f"{study.name}: {kind}.{name}: defined differently elsewhere; "
                        "give one of the two another name"
                    )
                merged[name] = value
        return merged

    def _named(self, kind: str, name: str, where: str) -> Any:
        """Return a definition by name; an unknown name is a problem and gives None."""
        known = self.definitions[kind]
        if name not in known:
            self.problems.add(f"{where}: {kind} has no {name!r}; {suggestion(name, known)}")
            return None
        return known[name]

    def _add(
        self, stage: str, spec: Any, inputs: Mapping[str, str | None], **wildcards: str
    ) -> str:
        for kind, value in wildcards.items():
            if not _NAME.fullmatch(value):
                self.problems.add(
                    f"{kind} {value!r}: names become folders; use letters, digits, '.', '_' and '-'"
                )
        path = f"{folder(stage, self.config.results, **wildcards)}/{MANIFEST}"
        present = {name: source for name, source in sorted(inputs.items()) if source is not None}
        self.nodes[path] = Node(
            stage=stage, wildcards=wildcards, spec=spec, inputs=present, manifest=path
        )
        return path

    def _location(self, name: str | None, where: str) -> str | None:
        """Return where a location lies on this machine; unset is legal until a job needs it."""
        if name is None:
            return None
        if name not in self.config.locations:
            self.problems.add(
                f"config.yaml: locations.{name}: missing; {where} reads it "
                "(null plans without the data)"
            )
        return self.config.locations.get(name)

    def _folder(self, source: Source, name: str) -> str | None:
        """Return where a source lies on this machine."""
        location = source.location if isinstance(source, FileSource) else None
        return self._location(location, f"sources.{name}")

    # Data

    def inventory(self, source: str, where: str) -> str | None:
        """Plan the inventory of a source."""
        found = self._named("sources", source, where)
        if found is None:
            return None
        job = InventoryJob(source=found, folder=self._folder(found, source))
        return self._add("inventory", job, {}, source=source)

    def tokenizer(self, name: str, where: str) -> str | None:
        """Plan a tokenizer."""
        found = self._named("tokenizers", name, where)
        if found is None:
            return None
        if not isinstance(found, TrainedTokenizer):
            return self._add("tokenizer", TokenizerJob(tokenizer=found), {}, tokenizer=name)
        place = f"tokenizers.{name}.corpus"
        corpus = self._named("corpora", found.corpus, place)
        if corpus is None:
            return None
        if not isinstance(corpus, DocumentCorpus):
            self.problems.add(f"{place}: {found.corpus!r} has no documents to train on")
            return None
        source = self._named("sources", corpus.source, f"corpora.{found.corpus}.source")
        if source is None:
            return None
        job = TokenizerJob(
            tokenizer=found,
            source=source,
            corpus=corpus,
            folder=self._folder(source, corpus.source),
        )
        inputs = {"inventory": self.inventory(corpus.source, place)}
        return self._add("tokenizer", job, inputs, tokenizer=name)

    def tokens(self, corpus: str, tokenizer: str, where: str) -> str | None:
        """Plan the tokens of a corpus under a tokenizer."""
        found = self._named("corpora", corpus, where)
        if found is None:
            return None
        inputs: dict[str, str | None] = {"tokenizer": self.tokenizer(tokenizer, where)}
        source, place_on_disk = None, None
        if isinstance(found, RecallCorpus):
            place = f"corpora.{corpus}.filler"
            if isinstance(self.definitions["corpora"].get(found.filler), RecallCorpus):
                self.problems.add(f"{place}: {found.filler!r} is synthetic; name a corpus of text")
                return None
            inputs["filler"] = self.tokens(found.filler, tokenizer, place)
        else:
            source = self._named("sources", found.source, f"corpora.{corpus}.source")
            if source is None:
                return None
            place_on_disk = self._folder(source, found.source)
            inputs["inventory"] = self.inventory(found.source, f"corpora.{corpus}.source")
        names = {"corpus": corpus, "tokenizer": tokenizer}
        parts: dict[str, str | None] = {}
        for part in range(found.parts):
            job = TokenizeJob(corpus=found, part=part, source=source, folder=place_on_disk)
            number = part_name(part)
            parts[f"part:{number}"] = self._add("tokenize", job, inputs, **names, part=number)
        return self._add("gather", gather_job(found), parts, **names)

    def windows(self, name: str, length: int, where: str) -> tuple[str | None, dict[str, str]]:
        """Plan windows of one length; return their path and the tokens they point into."""
        found: Windows | None = self._named("windows", name, where)
        if found is None:
            return None, {}
        place = f"windows.{name}.mixture"
        tokens = {
            f"tokens:{share.corpus}": path
            for share in found.mixture
            if (path := self.tokens(share.corpus, found.tokenizer, place)) is not None
        }
        if not found.mixture:
            self.problems.add(f"{place}: empty; name at least one corpus")
        for share in found.mixture:
            if share.weight <= 0:
                self.problems.add(
                    f"{place}: weight {share.weight} of {share.corpus!r}: must be above 0"
                )
        job = PackJob(windows=found, length_tokens=length)
        return self._add("pack", job, tokens, windows=name, length=str(length)), tokens

    # Runs

    def run_names(self) -> list[str]:
        """Return every run of every loaded study as `study/run`."""
        return [f"{s.name}/{r}" for s in self.studies.values() for r in s.runs]

    def resolved(self, name: str, where: str) -> Run | None:
        """Return a run with its architecture, tokenizer and weights filled in."""
        if name in self._runs:
            return self._runs[name]
        study, _, short = name.partition("/")
        if study not in self.studies or short not in self.studies[study].runs:
            known = suggestion(name, self.run_names())
            self.problems.add(f"{where}: there is no run {name!r}; {known}")
            return None
        if name in self._resolving:
            circle = " -> ".join([*self._resolving[self._resolving.index(name) :], name])
            self.problems.add(f"{where}: {name!r} leads back to itself: {circle}")
            return None
        self._resolving.append(name)
        self._runs[name] = self._fill(name, self.studies[study].runs[short])
        self._resolving.pop()
        return self._runs[name]

    def _fill(self, name: str, settings: RunSettings) -> Run | None:
        where = f"{name.partition('/')[0]}: runs.{name.partition('/')[2]}"
        common = {
            f.name: getattr(settings, f.name)
            for f in dataclasses.fields(settings)
            if f.name not in ("model", "start")
        }
        if settings.calibration is not None and "/" not in settings.calibration:
            common["calibration"] = f"{name.partition('/')[0]}/{settings.calibration}"
        if settings.start is not None:
            base = self.resolved(settings.start, f"{where}.start")
            if base is None:
                return None
            common |= {
                "architecture": base.architecture,
                "tokenizer": base.tokenizer,
                "weights": RunWeights(run=settings.start),
            }
        else:
            model: Model | None = self._named("models", settings.model or "", f"{where}.model")
            if model is None:
                return None
            place = f"models.{settings.model}.architecture"
            architecture = self._named("architectures", model.architecture, place)
            if architecture is None:
                return None
            common |= {
                "architecture": architecture,
                "tokenizer": model.tokenizer,
                "weights": model.weights,
            }
        try:
            run = Run(**common)
        except ValueError as error:
            self.problems.add(f"{where}: {error}")
            return None
        check_run(where, run, self.definitions, self.problems)
        return run

    def train(self, name: str, where: str) -> str | None:
        """Plan a run and everything it needs."""
        run = self.resolved(name, where)
        if run is None:
            return None
        study, _, short = name.partition("/")
        place = f"{study}: runs.{short}"
        inputs: dict[str, str | None] = {"tokenizer": self.tokenizer(run.tokenizer, place)}
        if isinstance(run.weights, RunWeights):
            inputs["run"] = self.train(run.weights.run, f"{place}.start")
        for index, phase in enumerate(run.phases):
            path, tokens = self.windows(
                phase.windows, phase.length_tokens, f"{place}.phases.{index}.windows"
            )
            inputs[f"windows:{phase.windows}:{phase.length_tokens}"] = path
            inputs |= tokens
        timed, calibrations = budgets(run, place, self.resolved, self._calibrate_job, self.problems)
        for calibration in calibrations:
            inputs[f"calibration:{calibration}"] = self.calibrate(calibration, place)
        location = run.weights.location if isinstance(run.weights, PublishedWeights) else None
        job = TrainJob(run=run, timed=timed or None, folder=self._location(location, place))
        return self._add("train", job, inputs, name=self.config.run_name, study=study, run=short)

    def _calibrate_job(self, name: str, where: str) -> CalibrateJob | None:
        """Return what a calibration, `study/calibration`, measures."""
        study, _, short = name.partition("/")
        known = {f"{s.name}/{c}" for s in self.studies.values() for c in s.file.calibrations}
        if name not in known:
            self.problems.add(f"{where}: no calibration {name!r}; {suggestion(name, known)}")
            return None
        found = self.studies[study].file.calibrations[short]
        place = f"{study}: calibrations.{short}.run"
        chosen = run_of(self.studies[study], found.run)
        if chosen is None:
            self.problems.add(f"{place}: {found.run!r} is no run of this scale")
            return None
        run = self.resolved(chosen, place)
        if run is None:
            return None
        try:
            return calibrate_job(found, run)
        except ValueError as error:
            self.problems.add(f"{place}: {error}")
            return None

    def calibrate(self, name: str, where: str) -> str | None:
        """Plan a calibration, `study/calibration`."""
        job = self._calibrate_job(name, where)
        if job is None:
            return None
        study, _, short = name.partition("/")
        return self._add(
            "calibrate", job, {}, name=self.config.run_name, study=study, calibration=short
        )

    # Evaluations, checks, claims, report

    def evaluated(self, study: Study, evaluation: str) -> list[str]:
        """Return the runs an evaluation applies to; a pattern that matches none is a problem."""
        found: list[str] = []
        for pattern in study.evaluations[evaluation].runs:
            name = study.file.aliases.get(pattern, pattern)
            matched = [run for run in self.run_names() if fnmatch.fnmatchcase(run, name)]
            if not matched:
                other = name.partition("/")[0]
                remedy = f"its study {other!r} is not among the chosen ones"
                if other in self.studies:
                    remedy = suggestion(name, self.run_names())
                self.problems.add(
                    f"{study.name}: evaluations.{evaluation}.runs: {pattern!r} matches no run; "
                    f"{remedy}"
                )
            found += [run for run in matched if run not in found]
        for override in study.evaluation_overrides[evaluation].values():
            for pattern in override.runs:
                name = study.file.aliases.get(pattern, pattern)
                if not fnmatch.filter(found, name):
                    self.problems.add(
                        f"{study.name}: evaluations.{evaluation}.overrides: {pattern!r} matches "
                        f"none of its runs; {suggestion(name, found)}"
                    )
        return found

    def evaluation_of(self, study: Study, name: str, run: str) -> Evaluation:
        """Return an evaluation with the overrides for one run applied."""
        evaluation = study.evaluations[name]
        for key in self.overriding(study, name, run):
            override = study.evaluation_overrides[name][key]
            evaluation = apply(Evaluation, evaluation, override.set)
        return evaluation

    def overriding(self, study: Study, name: str, run: str) -> list[str]:
        """Return the overrides of an evaluation that apply to one run, in order."""
        aliases = study.file.aliases
        return [
            key
            for key, override in study.evaluation_overrides[name].items()
            if any(fnmatch.fnmatchcase(run, aliases.get(p, p)) for p in override.runs)
        ]

    def evaluate(self, study: Study, name: str, run: str) -> str | None:
        """Plan one evaluation of one run."""
        where = f"{study.name}: evaluations.{name}"
        try:
            evaluation = self.evaluation_of(study, name, run)
        except SpecError as error:  # overrides that are sound one by one, not together
            self.problems.add(f"{where}: for {run!r}: {error}")
            return None
        trained = self.train(run, where)
        resolved = self.resolved(run, where)
        if trained is None or resolved is None:
            return None
        inputs = {
            "run": trained,
            "tokenizer": self.tokenizer(resolved.tokenizer, where),
            "tokens": self.tokens(evaluation.corpus, resolved.tokenizer, f"{where}.corpus"),
        }
        job = EvaluateJob(
            protocol=evaluation.protocol,
            snapshots=evaluation.snapshots,
            rope=evaluation.rope,
            numerics=evaluation.numerics,
            seed=evaluation.seed,
            device=evaluation.device,
            sequences_per_forward=evaluation.sequences_per_forward,
        )
        run_study, _, short = run.partition("/")
        return self._add(
            "evaluate",
            job,
            inputs,
            name=self.config.run_name,
            study=study.name,
            evaluation=name,
            run_study=run_study,
            run=short,
        )

    def check(self, study: Study, name: str, job: CheckJob) -> str:
        """Plan a check, and the windows it looks at."""
        where = f"{study.name}: checks.{name}.windows"
        packed = {
            f"windows:{label}": self.windows(w.windows, w.length_tokens, f"{where}.{label}")[0]
            for label, w in job.windows.items()
        }
        return self._add(
            "check", job, packed, name=self.config.run_name, study=study.name, check=name
        )

    def provenance(self, name: str) -> dict[str, str]:
        """Return the provenance class of every setting of a run."""
        study, _, short = name.partition("/")
        run = self._runs.get(name)
        if run is None:
            return {}
        paths = (path for path, _ in leaves(plain(run, identity=True)))
        found = self.studies[study]
        layers = {**found.layers, **inherited_layers(self.studies, study, short)}
        return {p: class_of(found, f"runs.{short}.{p}", layers) for p in paths}

    def judge(self, study: Study) -> str:
        """Plan the verdicts of a study with everything they rest on."""
        inputs: dict[str, str | None] = {}
        measured: dict[str, list[str]] = {}
        for evaluation in study.evaluations:
            measured[evaluation] = self.evaluated(study, evaluation)
            for run in measured[evaluation]:
                key = f"evaluation:{study.name}/{evaluation}:{run}"
                inputs[key] = self.evaluate(study, evaluation, run)
                inputs[f"run:{run}"] = self.train(run, study.name)
        for check, job in study.file.checks.items():
            inputs[f"check:{check}"] = self.check(study, check, job)
        for calibration in study.file.calibrations:
            key = f"calibration:{study.name}/{calibration}"
            inputs[key] = self.calibrate(f"{study.name}/{calibration}", study.name)
        runs = {run for names in measured.values() for run in names}
        provenance = {run: self.provenance(run) for run in sorted(runs)}
        spec: JudgeJob = judge_job(study, self.config.scale, measured, provenance, self.problems)
        for run in seen_by(spec):
            phases = resolved.phases if (resolved := self.resolved(run, study.name)) else ()
            for phase in phases[-1:]:
                packed, _ = self.windows(phase.windows, phase.length_tokens, study.name)
                inputs[f"windows:{run}"] = packed
        return self._add("judge", spec, inputs, name=self.config.run_name, study=study.name)

    def report(self) -> str:
        """Plan the report over all chosen studies."""
        inputs = {
            f"judged:{study.name}": self.judge(study)
            for study in self.studies.values()
            if study.name != SHARED
        }
        check_twins(self._runs, self.problems)
        job = ReportJob(name=self.config.run_name, scale=self.config.scale, accepted=self.accepted)
        return self._add("report", job, inputs, name=self.config.run_name)
