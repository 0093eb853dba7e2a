"""Does jobs on the hub in a process of its own: the hub's address is read when it is imported.

Reads a list of jobs as JSON and prints a JSON line for each result.
"""

import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from ropewalk.base.manifest import read_manifest
from ropewalk.base.spec import decode
from ropewalk.base.stage import StageError, run_stage
from ropewalk.data.entries import read_entries
from ropewalk.data.inventory import work
from ropewalk.data.readers import records
from ropewalk.data.spec import HubSource, InventoryJob


def inventory(folder: str, source: dict[str, Any]) -> Any:
    """Make the inventory of a source in a folder."""
    spec = InventoryJob(source=decode(HubSource, source))
    entry = "ropewalk.data.inventory"
    with contextlib.redirect_stdout(sys.stderr):  # what a stage says is no result
        made = run_stage("inventory", entry, work, spec=spec, inputs={}, folder=Path(folder))
    return made.result


def read(
    folder: str,
    source: dict[str, Any],
    path: str,
    first: int = 0,
    wanted: list[int] | None = None,
    also: tuple[str, ...] = (),
    killed_after: int | None = None,
) -> Any:
    """Read a file of an inventory; print every record before the next one is asked for."""
    listed = read_entries(read_manifest(Path(folder) / "manifest.json"), "train")
    (entry,) = (e for e in listed if e.path == path)
    choose = None if wanted is None else wanted.__contains__
    found = []
    for record in records(
        decode(HubSource, source), entry, None, first=first, wanted=choose, also=tuple(also)
    ):
        found.append([record.number, record.fields])
        if len(found) == killed_after:
            print(json.dumps(found), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    return found


for name, arguments in json.load(sys.stdin):
    try:
        print(json.dumps({"inventory": inventory, "read": read}[name](**arguments)), flush=True)
    except StageError as error:
        print(json.dumps({"error": str(error)}), flush=True)
