"""Nodes of runs, evaluations, checks and verdicts, and with them all that a plan needs."""

import dataclasses
import fnmatch
from collections.abc import Mapping

from ropewalk.base.canonical import leaves, plain
from ropewalk.base.spec import SpecError, suggestion
from ropewalk.evaluate.spec import CheckJob, EvaluateJob, Evaluation
from ropewalk.report.spec import Accepted, JudgeJob, ReportJob
from ropewalk.study.combinations import check_run, check_twins
from ropewalk.study.config import Config
from ropewalk.study.data_nodes import DataBuilder
from ropewalk.study.judging import judge_job, run_of, seen_by
from ropewalk.study.load import SHARED, Problems, apply
from ropewalk.study.provenance import class_of, definition_layers, inherited_layers
from ropewalk.study.schema import Model, RunSettings, Study
from ropewalk.study.seeds import repeated, replicas_of
from ropewalk.study.timing import budgets, calibrate_job
from ropewalk.train.spec import (
    CalibrateJob,
    PublishedWeights,
    Run,
    RunWeights,
    ScratchWeights,
    TrainJob,
)


class Builder(DataBuilder):
    """Collects the nodes that a set of studies needs; each shared node is built once."""

    def __init__(
        self, config: Config, studies: Mapping[str, Study], accepted: tuple[Accepted, ...] = ()
    ) -> None:
        problems = Problems()
        super().__init__(config, repeated(studies, problems), problems)
        self.accepted = accepted
        self._runs: dict[str, Run | None] = {}
        self._trained: dict[str, str] = {}  # run -> manifest
        self._definition_layers = definition_layers(self.studies)
        self._resolving: list[str] = []  # from the run asked for to the one looked at

    def run_names(self) -> list[str]:
        """Return every run of every loaded study as `study/run`."""
        return [f"{s.name}/{r}" for s in self.studies.values() for r in s.runs]

    def resolved(self, name: str, where: str) -> Run | None:
        """Return a run with its architecture, tokenizer and weights filled in."""
        if name in self._runs:
            return self._runs[name]
        study, _, short = name.partition("/")
        settings, number = self._written(study, short)
        if settings is None:
            known = suggestion(name, self.run_names())
            self.problems.add(f"{where}: there is no run {name!r}; {known}")
            return None
        if name in self._resolving:
            circle = " -> ".join([*self._resolving[self._resolving.index(name) :], name])
            self.problems.add(f"{where}: {name!r} leads back to itself: {circle}")
            return None
        self._resolving.append(name)
        self._runs[name] = self._fill(name, settings, number)
        self._resolving.pop()
        return self._runs[name]

    def _written(self, study: str, run: str) -> tuple[RunSettings | None, int]:
        """Return a run as written, or None, and the number of its seed."""
        if study not in self.studies:
            return None, 1
        if run in self.studies[study].runs:
            return self.studies[study].runs[run], 1
        every = {n: r for own in self.studies[study].replicas.values() for n, r in own.items()}
        return (every[run].settings, every[run].number) if run in every else (None, 1)

    def _fill(self, name: str, settings: RunSettings, number: int) -> Run | None:
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
            weights = model.weights
            if isinstance(weights, ScratchWeights):
                weights = dataclasses.replace(weights, seed=weights.seed + number - 1)
            common |= {
                "architecture": architecture,
                "tokenizer": model.tokenizer,
                "weights": weights,
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
        if name not in self._trained:
            self._trained[name] = self._train(name, run)
        return self._trained[name]

    def _train(self, name: str, run: Run) -> str:
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

    def evaluate(self, study: Study, name: str, run: str, like: str | None = None) -> str | None:
        """Plan one evaluation of one run, or of a repetition `like` the run of the patterns."""
        where = f"{study.name}: evaluations.{name}"
        try:
            evaluation = self.evaluation_of(study, name, like or run)
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
        """Return the provenance class of every setting of a run, or of a repetition of one."""
        study, _, short = name.partition("/")
        run = self._runs.get(name)
        short = next((r for r, own in self.studies[study].replicas.items() if short in own), short)
        if run is None:
            return {}
        paths = (path for path, _ in leaves(plain(run, identity=True)))
        found = self.studies[study]
        inherited = inherited_layers(self.studies, self._definition_layers, study, short)
        layers = {**found.layers, **inherited}
        return {p: class_of(found, f"runs.{short}.{p}", layers) for p in paths}

    def judge(self, study: Study) -> str:
        """Plan the verdicts of a study with everything they rest on."""
        inputs: dict[str, str | None] = {}
        measured: dict[str, list[str]] = {}
        replicas: dict[str, tuple[str, ...]] = {}
        for evaluation in study.evaluations:
            measured[evaluation] = self.evaluated(study, evaluation)
            for run in measured[evaluation]:
                if study.file.seeds > 1:
                    replicas[run] = replicas_of(self.studies, run)[: study.file.seeds - 1]
                for each in (run, *replicas.get(run, ())):
                    key = f"evaluation:{study.name}/{evaluation}:{each}"
                    inputs[key] = self.evaluate(study, evaluation, each, like=run)
                    inputs[f"run:{each}"] = self.train(each, study.name)
        for check, job in study.file.checks.items():
            inputs[f"check:{check}"] = self.check(study, check, job)
        for calibration in study.file.calibrations:
            key = f"calibration:{study.name}/{calibration}"
            inputs[key] = self.calibrate(f"{study.name}/{calibration}", study.name)
        replicas = {run: names for run, names in replicas.items() if names}
        runs = {run for names in (*measured.values(), *replicas.values()) for run in names}
        provenance = {run: self.provenance(run) for run in sorted(runs)}
        spec: JudgeJob = judge_job(
            study, self.config.scale, measured, replicas, provenance, self.problems
        )
        for run in seen_by(spec):
            phases = resolved.phases if (resolved := self.resolved(run, study.name)) else ()
            for phase in phases[-1:]:
                packed, _ = self.windows(phase.windows, phase.length_tokens, study.name)
                for each in (run, *replicas.get(run, ())):
                    inputs[f"windows:{each}"] = packed
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
