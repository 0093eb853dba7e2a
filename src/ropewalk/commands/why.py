"""`ropewalk why TARGET`: why a stage would rerun, or that it would not."""

import argparse
from pathlib import Path
from typing import Any


def register(commands: Any) -> None:
    """Add the command."""
    command = commands.add_parser(
        "why",
        help="say why an artifact would be made again, or that it would not",
        description=(
            "Compare what an artifact was made from with what the configuration, the code and the "
            "files say now. TARGET is the path of a manifest, a folder above some, a study, or all."
        ),
    )
    command.add_argument("target", help="e.g. results/mini/report, position_interpolation, all")
    command.add_argument("--scale", help="tiny, mini, small, gpu or paper (default: config.yaml)")
    command.add_argument(
        "--config",
        type=Path,
        default=Path("config.yaml"),
        help="the configuration to read (default: config.yaml of this folder)",
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the reasons."""
    from ropewalk.study.project import load_plan
    from ropewalk.study.triggers import Triggers
    from ropewalk.study.why import Why, select

    overrides = {"scale": options.scale} if options.scale else {}
    plan = load_plan(options.config, overrides)
    root = options.config.resolve().parent
    why = Why(plan, Triggers(plan, root), root)
    for manifest in select(plan, options.target, root):
        reasons = why.explain(manifest)
        if not reasons:
            print(f"{manifest}: up to date")
        for reason in reasons:
            print(f"{manifest}: {reason}")
    return 0
