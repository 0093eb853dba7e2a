"""`config.yaml`: the one file a user edits."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from ropewalk.base.spec import Problem, SpecError, decode
from ropewalk.study.tree import load_yaml, unwrap

Scale = Literal["tiny", "mini", "small", "gpu", "paper"]
SCALES: tuple[str, ...] = get_args(Scale)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What a user chooses; everything else stands in `papers/`."""

    scale: Scale = "mini"
    name: str | None = None  # folder below `results`; the scale's name where not given
    results: str = "results"
    studies: tuple[str, ...] | None = None  # None: every study in `papers`
    papers: str = "papers"  # folder of the study files
    locations: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    # where local corpora and published weights lie on this machine
    overlays: tuple[str, ...] = ()  # further YAML files merged over every study, in order

    def __post_init__(self) -> None:
        if self.run_name == "data":
            raise ValueError("name: 'data' is taken by the shared data folder; choose another")
        if "/" in self.run_name:
            raise ValueError(f"name: {self.run_name!r} must not contain a slash")

    @property
    def run_name(self) -> str:
        """Return the folder of this reproduction below `results`."""
        return self.name or self.scale


def read_config(data: Mapping[str, Any], *, file: str = "config.yaml") -> Config:
    """Return a validated configuration from plain data, as Snakemake merges it.

    Raises:
        SpecError: with every problem, each naming the file, the key, the value and what is allowed.
    """
    try:
        return decode(Config, dict(data))
    except SpecError as error:
        raise SpecError([Problem((), f"{file}: {p}") for p in error.problems]) from None


def read_config_file(path: Path) -> dict[str, Any]:
    """Return a configuration file as plain data, not yet validated.

    Raises:
        SpecError: if the file is missing, is not a YAML map, or repeats a key.
    """
    if not path.is_file():
        raise SpecError(f"{path}: no such file; run from the project's folder, or use --config")
    data: dict[str, Any] = unwrap(load_yaml(path))
    return data


def check_file(path: Path) -> None:
    """Refuse a configuration file that repeats a key; a file that is not there is no problem.

    For whoever was given the data by Snakemake, which reads the file itself and silently takes the
    last of two equal keys.

    Raises:
        SpecError: naming file and line.
    """
    if path.is_file():
        read_config_file(path)
