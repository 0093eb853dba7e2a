"""A checkout of the project: its `config.yaml`, papers and results, found from one file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ropewalk.study.config import read_config_file
from ropewalk.study.plan import Plan


def load_plan(config: Path, overrides: Mapping[str, Any]) -> Plan:
    """Return the plan of a configuration file with some keys replaced."""
    return Plan.load({**read_config_file(config), **overrides}, config.resolve().parent)


__all__ = ["load_plan", "read_config_file"]
