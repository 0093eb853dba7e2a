"""One process of a run that has several: `python -m ropewalk.train.worker ASSIGNMENT.json`.

Started by torch's launcher. The outcome is a file, renamed into place by the first process when
everything is done; then all processes leave together and at once, because gloo's threads may abort
a process that tears itself down slowly. The stage reads the outcome and ends with the exit code for
it; a worker that stopped early as it was told ends with 0, for the launcher calls any other code a
crash.
"""

import os
import sys
import threading
import time
import traceback
from pathlib import Path

from ropewalk.base.canonical import plain
from ropewalk.base.files import write_json
from ropewalk.base.stage import StageError
from ropewalk.train.attempt import Assignment, attempt, read_assignment
from ropewalk.train.lease import Owner, alive
from ropewalk.train.stop import listening
from ropewalk.train.world import joined

OUTCOME = "outcome.json"
STOP = "stop"
WATCH_SECONDS = 1.0


def main(file: Path) -> int:
    """Do this process's part of the run described in `file`, and return its exit code."""
    given = read_assignment(file)
    _leave_with(given.owner)
    try:
        _run(given)
    except StageError as error:
        print(f"train: {error}", file=sys.stderr, flush=True)
        return 1
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def _run(given: Assignment) -> None:
    with listening(given.work / STOP) as stop, joined(given.spec.run.hardware) as world:
        outcome = attempt(given, world, stop)
        if world.first:
            write_json(given.work / OUTCOME, plain(outcome))
        world.barrier()


def _leave_with(owner: Owner) -> None:
    """End this process when the stage that started it is gone: nobody else holds its lease."""

    def watch() -> None:
        while alive(owner):
            time.sleep(WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
