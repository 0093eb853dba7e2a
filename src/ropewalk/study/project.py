"""A checkout of the project: its `config.yaml`, papers and results, found from one file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ropewalk.base.spec import SpecError
from ropewalk.study.plan import Plan


def read_config_file(path: Path) -> dict[str, Any]:
    """Return `config.yaml` as plain data.

    Raises:
        SpecError: if the file is missing or is not a YAML map.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpecError(
            f"{path}: no such file; run from the project's folder, or use --config"
        ) from None
    except yaml.YAMLError as error:
        raise SpecError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise SpecError(f"{path}: the file must be a map of keys")
    return data


def load_plan(config: Path, overrides: Mapping[str, Any]) -> Plan:
    """Return the plan of a configuration file with some keys replaced."""
    return Plan.load({**read_config_file(config), **overrides}, config.resolve().parent)
