"""From a study's claims and tables to the judge's job: which of our runs each cell means."""

import dataclasses
from collections.abc import Container, Mapping
from typing import Any, Literal

from ropewalk.base.spec import suggestion
from ropewalk.report.spec import (
    OF_TRAINING,
    Claim,
    Column,
    Exact,
    JudgeJob,
    Ordering,
    Pairs,
    Predicted,
    Quantity,
    Row,
    Steeper,
    Table,
    Threshold,
    Trend,
    Value,
)
from ropewalk.study.load import Problems
from ropewalk.study.schema import Study

NOT_TESTED: Literal["not tested at this scale"] = "not tested at this scale"


def run_of(study: Study, selection: str | Mapping[str, str]) -> str | None:
    """Return the `study/run` a selection means at this scale, or None if there is none.

    A text is an alias or a full name; axis values are completed with the study's main values.
    """
    if isinstance(selection, str):
        name = study.file.aliases.get(selection, selection)
        return name if "/" in name else None
    wanted = {**study.file.main, **selection}
    for run, axes in study.axes.items():
        if axes == {axis: wanted.get(axis) for axis in axes} and set(selection) <= set(axes):
            return f"{study.name}/{run}"
    return None


def snapshot_of(study: Study, snapshot: str) -> str:
    """Return the snapshot that stands for a step of the paper at this scale; empty if none."""
    return study.file.snapshots.get(snapshot, snapshot)


def context_of(study: Study, context: str | None) -> str | None:
    """Return the label that stands for one of the paper's at this scale; empty if none does."""
    return None if context is None else study.file.contexts.get(context, context)


def counterpart(study: Study, selection: str | Mapping[str, str]) -> str | None:
    """Return our run beside a cell of the paper: the paper's main cell is our main cell.

    `selection` uses the paper's axis values. A value equal to the paper's main value becomes ours;
    any other must exist here under the same name.
    """
    if isinstance(selection, str):
        if selection in study.file.aliases or "/" in selection:
            return run_of(study, selection)
        return None
    translated = {
        axis: study.file.main[axis]
        if value == study.paper_main.get(axis) and axis in study.file.main
        else value
        for axis, value in selection.items()
    }
    return run_of(study, translated)


def judge_job(
    study: Study,
    scale: str,
    measured: Mapping[str, list[str]],
    replicas: Mapping[str, tuple[str, ...]],
    provenance: Mapping[str, Mapping[str, str]],
    problems: Problems,
) -> JudgeJob:
    """Return the job of stage `judge`; unknown evaluations, checks and claims are problems.

    `measured` lists the runs of every evaluation, `replicas` their repetitions under other seeds,
    `provenance` the class of every setting of them.
    """
    file = study.file
    for claim in file.decides:
        if claim not in file.claims:
            problems.add(
                f"{study.name}: decides: there is no claim {claim!r}; "
                f"{suggestion(claim, file.claims)}"
            )
    claims = {
        name: _resolve(study, name, claim, measured, problems)
        for name, claim in file.claims.items()
    }
    for name in set(file.calibrations) & set(file.evaluations):
        problems.add(
            f"{study.name}: {name!r} is both a calibration and an evaluation; rename one of them"
        )
    cells: dict[str, dict[str, Quantity]] = {}
    for name, table in file.tables.items():
        cells[name] = {}
        costs = {"calibration": table.calibration}
        costs |= {f"other.{label}": column.calibration for label, column in table.other.items()}
        for key, calibration in costs.items():
            if calibration:
                _known_calibration(study, calibration, f"tables.{name}.{key}", problems)
        asked = [("evaluation", table.evaluation)]
        asked += [("columns", c) for c in table.columns if table.by == "evaluation"]
        asked += [(f"other.{label}", column.evaluation) for label, column in table.other.items()]
        asked += [
            (f"rows.{r}.evaluations", own)
            for r, row in enumerate(table.rows)
            for own in row.evaluations.values()
        ]
        for key, evaluation in asked:
            if evaluation:
                _known_evaluation(study, evaluation, f"tables.{name}.{key}", problems)
        for r, row in enumerate(table.rows):
            if row.cells and len(row.cells) != len(table.columns):
                problems.add(
                    f"{study.name}: tables.{name}.rows.{r}: {len(row.cells)} cells for "
                    f"{len(table.columns)} columns"
                )
            if table.calibration:
                cells[name] |= _costs(study, table, r)
                continue
            run = counterpart(study, row.run)
            for c, column in enumerate(table.columns):
                if column in table.other:
                    other = _of_column(study, table.other[column], row, run, measured)
                    cells[name] |= {f"{r},{c}": other} if other else {}
                    continue
                evaluation = row.evaluations.get(table.evaluation, table.evaluation)
                evaluation = column if table.by == "evaluation" else evaluation
                snapshot = snapshot_of(study, column if table.by == "snapshot" else row.snapshot)
                context = context_of(study, column if table.by == "context" else table.context)
                if run is None or run not in measured.get(evaluation, []):
                    continue
                if not snapshot or context == "":
                    continue
                cells[name][f"{r},{c}"] = Quantity(
                    evaluation=evaluation,
                    run=run,
                    snapshot=snapshot,
                    context=context,
                    value=table.value,
                )
    return JudgeJob(
        study=study.name,
        scale=scale,
        title=file.title,
        summary=file.summary,
        paper=file.paper,
        claims=claims,
        tables=file.tables,
        cells=cells,
        replicas=replicas,
        decides=file.decides,
        provenance=provenance,
        inconsistencies=file.inconsistencies,
        deviations=file.deviations,
        unstated=file.unstated,
    )


def _resolve(
    study: Study,
    name: str,
    claim: Claim,
    measured: Mapping[str, list[str]],
    problems: Problems,
) -> Claim:
    """Return a claim whose quantities name runs; without such runs it is not tested here."""
    where = f"claims.{name}"
    if claim.rule is None:
        if claim.outcome is None:
            problems.add(f"{study.name}: {where}: give a rule, or an outcome that says why not")
        return claim
    if isinstance(claim.rule, Exact):
        if claim.rule.check not in study.file.checks:
            known = suggestion(claim.rule.check, study.file.checks)
            problems.add(
                f"{study.name}: {where}.rule.check: no check {claim.rule.check!r}; {known}"
            )
        return claim
    missing: list[str] = []

    def resolved(quantity: Quantity) -> Quantity:
        if quantity.calibration:
            _known_calibration(study, quantity.calibration, f"{where}.rule", problems)
            shapes = _shapes(study, quantity.calibration)
            if quantity.context is not None:
                if quantity.context not in shapes:
                    missing.append(f"shape {quantity.context} in {quantity.calibration}")
                return quantity
        if quantity.calibration or quantity.value in OF_TRAINING:
            trained = run_of(study, quantity.run)
            if trained is None or not any(trained in runs for runs in measured.values()):
                missing.append(f"run {_worded(quantity.run or study.file.main)}")
                return quantity
            return dataclasses.replace(quantity, run=trained)
        _known_evaluation(study, quantity.evaluation, f"{where}.rule", problems)
        run = run_of(study, quantity.run)
        if run is None or run not in measured.get(quantity.evaluation, []):
            missing.append(f"{quantity.evaluation} of {_worded(quantity.run or study.file.main)}")
            return quantity
        snapshot = snapshot_of(study, quantity.snapshot)
        if not snapshot:
            missing.append(f"snapshot {quantity.snapshot}")
        context = context_of(study, quantity.context)
        if context == "":
            missing.append(f"context {quantity.context}")
        return dataclasses.replace(quantity, run=run, snapshot=snapshot, context=context)

    rule: Any = claim.rule
    if isinstance(rule, Threshold):
        baseline = resolved(rule.baseline) if rule.baseline else None
        rule = dataclasses.replace(rule, quantity=resolved(rule.quantity), baseline=baseline)
    elif isinstance(rule, Ordering):
        rule = dataclasses.replace(rule, ascending=tuple(map(resolved, rule.ascending)))
    elif isinstance(rule, Pairs):
        pairs = tuple(
            dataclasses.replace(pair, below=resolved(pair.below), above=resolved(pair.above))
            for pair in rule.pairs
        )
        rule = dataclasses.replace(rule, pairs=pairs)
    elif isinstance(rule, Trend | Steeper | Predicted):
        rule = dataclasses.replace(rule, along=tuple(map(resolved, rule.along)))
    elif isinstance(rule, Value):
        rule = dataclasses.replace(rule, quantity=resolved(rule.quantity))
    requires = tuple(
        dataclasses.replace(
            condition,
            quantity=resolved(condition.quantity),
            baseline=resolved(condition.baseline) if condition.baseline else None,
        )
        for condition in claim.requires
    )
    if missing:
        note = f"this scale has no {missing[0]}" + (f". {claim.note}" if claim.note else "")
        return dataclasses.replace(claim, rule=None, requires=(), outcome=NOT_TESTED, note=note)
    return dataclasses.replace(claim, rule=rule, requires=requires)


def _worded(selection: str | Mapping[str, str]) -> str:
    """Return a run as claims name it, in words: its name, or `method pi, length 4x`."""
    if isinstance(selection, str):
        return selection
    return ", ".join(f"{axis} {value}" for axis, value in selection.items())


def _shapes(study: Study, calibration: str) -> Container[str | None]:
    found = study.file.calibrations.get(calibration)
    return found.shapes if found else ()


def _costs(study: Study, table: Table, row: int) -> dict[str, Quantity]:
    """Return our numbers beside a row of a table of costs: a column is the label of a shape."""
    return {
        f"{row},{column}": Quantity(calibration=table.calibration, context=label, value=table.value)
        for column, label in enumerate(table.columns)
        if label in _shapes(study, table.calibration)
    }


def _of_column(
    study: Study, column: Column, row: Row, run: str | None, measured: Mapping[str, list[str]]
) -> Quantity | None:
    """Return our number in a column that asks for another one than its table, None if none."""
    if run is None:
        return None
    if column.calibration or column.value in OF_TRAINING:
        if not any(run in runs for runs in measured.values()):
            return None
        return Quantity(calibration=column.calibration, run=run, value=column.value)
    evaluation = row.evaluations.get(column.evaluation, column.evaluation)
    snapshot, context = snapshot_of(study, row.snapshot), context_of(study, column.context)
    if run not in measured.get(evaluation, []) or not snapshot or context == "":
        return None
    return Quantity(
        evaluation=evaluation, run=run, snapshot=snapshot, context=context, value=column.value
    )


def _known_calibration(study: Study, name: str, where: str, problems: Problems) -> None:
    known = study.file.calibrations
    if name not in known:
        problems.add(
            f"{study.name}: {where}: there is no calibration {name!r}; {suggestion(name, known)}"
        )


def seen_by(job: JudgeJob) -> list[str]:
    """Return the runs whose claims ask how often training shows a distance."""
    rules = [claim.rule for claim in job.claims.values() if isinstance(claim.rule, Threshold)]
    asked = [q for rule in rules for q in (rule.quantity, rule.baseline) if q is not None]
    return sorted({str(q.run) for q in asked if q.value == "frequency"})


def _known_evaluation(study: Study, name: str, where: str, problems: Problems) -> None:
    if name not in study.evaluations and name not in study.paper_evaluations:
        problems.add(
            f"{study.name}: {where}: there is no evaluation {name!r}; "
            f"{suggestion(name, study.evaluations)}"
        )
