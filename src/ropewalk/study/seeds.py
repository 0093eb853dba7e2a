"""Repetitions of trainings under other seeds, so that verdicts know the noise of training.

A study with `seeds: 3` trains each of its runs three times. The first is the run as it is written;
another, `<run>-seed2`, has other initial weights where the run begins with random ones, another
order of its data, and starts from the repetition with the same number of the run it starts from.
Evaluations and claims name the first and mean all.
"""

import dataclasses
from collections.abc import Mapping

from ropewalk.study.load import Problems
from ropewalk.study.schema import Replica, RunSettings, Study


def repeated(studies: Mapping[str, Study], problems: Problems) -> dict[str, Study]:
    """Return the studies with the repetitions that their `seeds` ask for.

    Weights that are adopted as they are have none. A study cannot have more seeds than the trained
    runs of other studies that its runs start from: that is a problem.
    """
    return {
        name: dataclasses.replace(
            study,
            replicas={
                run: _replicas(name, run, settings, studies, problems)
                for run, settings in study.runs.items()
                if settings.phases and study.file.seeds > 1
            },
        )
        for name, study in studies.items()
    }


def replica_name(run: str, number: int) -> str:
    """Return the name of a repetition, counted from 1: the first is the run itself."""
    return run if number == 1 else f"{run}-seed{number}"


def replicas_of(studies: Mapping[str, Study], name: str) -> tuple[str, ...]:
    """Return the other repetitions of a run `study/run`, in the order of their seeds."""
    study, _, run = name.partition("/")
    return tuple(f"{study}/{replica}" for replica in studies[study].replicas.get(run, {}))


def _replicas(
    study: str,
    run: str,
    settings: RunSettings,
    studies: Mapping[str, Study],
    problems: Problems,
) -> dict[str, Replica]:
    above, _, start = (settings.start or "").partition("/")
    trained = above in studies and start in studies[above].runs
    repeats = trained and bool(studies[above].runs[start].phases)
    wanted, had = studies[study].file.seeds, studies[above].file.seeds if repeats else 0
    if repeats and had < wanted:
        problems.add(
            f"{study}: seeds: {wanted}, but runs.{run} starts from {settings.start}, and {above} "
            f"trains its runs with {had}: give both the same number"
        )
    found = {}
    for number in range(2, wanted + 1):
        own = replica_name(run, number)
        if own in studies[study].runs:
            problems.add(f"{study}: runs.{own}: the name of a repetition of {run!r}; take another")
        begin = f"{above}/{replica_name(start, number)}" if repeats else settings.start
        again = dataclasses.replace(settings, seed=settings.seed + number - 1, start=begin)
        found[own] = Replica(settings=again, number=number)
    return found
