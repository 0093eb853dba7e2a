"""`ropewalk show STUDY`: every resolved setting, and where it comes from."""

import argparse
import json
from typing import Any

from ropewalk.commands.project import add_project, plan_of


def register(commands: Any) -> None:
    """Add the command."""
    command = commands.add_parser(
        "show",
        help="print a study's resolved settings, each with its provenance class",
        description=(
            "Print every resolved setting of a study at a scale, with its provenance class: "
            "`seed` and `paper` are the authors' own, `repo` their code's, `assumed` our choice "
            "where they are silent, `scale` a value of this scale that differs from the paper. "
            "Last come the runs that adopt published weights, with commit and sha256 once they are "
            "there."
        ),
        epilog=(
            "The JSON keeps the spec's key paths: runs.<run>.optimizer.lr, "
            "evaluations.<name>.protocol as defined, evaluations.<name>.runs.<study/run>.protocol "
            "as it applies to one run, data.<stage>.<name>, checks, claims, tables, decides; "
            "adopted.<run> is the origin of published weights"
        ),
    )
    command.add_argument("study", help="a study in papers/, e.g. position_interpolation; or shared")
    command.add_argument("--json", action="store_true", help="print JSON instead of lines")
    add_project(command)
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the settings."""
    from ropewalk.study.show import adopted, lines, resolved

    plan = plan_of(options)
    shown = resolved(plan, options.study)
    shown["adopted"] = adopted(plan, options.study, options.config.resolve().parent)
    if options.json:
        print(json.dumps(shown, indent=1, ensure_ascii=False))
    else:
        print("\n".join(lines(shown)))
    return 0
