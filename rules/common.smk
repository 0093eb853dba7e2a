# Lookups into the plan. What a stage needs and why it reruns is decided there, not here.

import os
import sys
from pathlib import Path

from ropewalk.base.spec import SpecError
from ropewalk.base.stage import SUBMITTED_CODE
from ropewalk.study.lookups import Lookups

try:
    lookups = Lookups.load(config, Path(workflow.basedir))
except SpecError as error:
    raise WorkflowError(f"the configuration cannot be used:\n{error}")
plan = lookups.plan

# Rules call the `ropewalk` that lies beside the running Python.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
# Queued jobs inherit this and refuse to run code that is newer than their submission.
os.environ.setdefault(SUBMITTED_CODE, lookups.triggers.submitted())
