"""What commands share that look at a project: which configuration, and the plan of it."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ropewalk.study.plan import Plan


def add_config(command: argparse.ArgumentParser) -> None:
    """Add `--config`."""
    command.add_argument(
        "--config",
        type=Path,
        default=Path("config.yaml"),
        help="the configuration to read (default: config.yaml of this folder)",
    )


def add_project(command: argparse.ArgumentParser) -> None:
    """Add `--scale` and `--config`."""
    command.add_argument("--scale", help="tiny, mini, small, gpu or paper (default: config.yaml)")
    add_config(command)


def plan_of(options: argparse.Namespace) -> "Plan":
    """Return the plan that the options of `add_project` name."""
    from ropewalk.study.project import load_plan

    return load_plan(options.config, {"scale": options.scale} if options.scale else {})
