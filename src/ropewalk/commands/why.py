"""`ropewalk why TARGET`: why a stage would rerun, or that it would not."""

import argparse
from typing import Any

from ropewalk.commands.project import add_project, plan_of


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
    add_project(command)
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the reasons."""
    from ropewalk.study.triggers import Triggers
    from ropewalk.study.why import Why, select

    plan = plan_of(options)
    root = options.config.resolve().parent
    why = Why(plan, Triggers(plan, root), root)
    for manifest in select(plan, options.target, root):
        reasons = why.explain(manifest)
        if not reasons:
            print(f"{manifest}: up to date")
        for reason in reasons:
            print(f"{manifest}: {reason}")
    return 0
