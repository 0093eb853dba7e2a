"""The `ropewalk` command: plans, explanations, and every stage by hand."""

import argparse
import sys
from collections.abc import Sequence

from ropewalk.base.manifest import ArtifactError
from ropewalk.base.spec import SpecError
from ropewalk.base.stage import StageError
from ropewalk.train.stop import EXIT_CODE, StoppedEarlyError


def parser() -> argparse.ArgumentParser:
    """Return the command line. Commands import what they need when they run."""
    top = argparse.ArgumentParser(
        prog="ropewalk",
        description="Rebuild long-context language-model papers, from raw text to a report.",
        epilog="The workflow itself is `snakemake all`; these commands look at it or run a stage.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    from ropewalk.commands import claims, doctor, show, stages, why

    for module in (show, why, claims, doctor, stages):
        module.register(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; a problem of the input is one message and exit code 2.

    A training that was asked to stop before its end has exit code 75: start it again to go on.
    """
    options = parser().parse_args(arguments)
    try:
        return int(options.run(options) or 0)
    except (SpecError, StageError, ArtifactError) as error:
        print(f"ropewalk: {error}", file=sys.stderr)
        return 2
    except StoppedEarlyError as stopped:
        print(f"ropewalk: train {stopped}", file=sys.stderr)
        return EXIT_CODE
    except BrokenPipeError:
        return 0


if __name__ == "__main__":
    sys.exit(main())
