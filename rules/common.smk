# Lookups into the plan. What a stage needs and why it reruns is decided there, not here.

from pathlib import Path

from ropewalk.base.spec import SpecError
from ropewalk.study.lookups import Lookups

try:
    lookups = Lookups.load(config, Path(workflow.basedir))
    lookups.prepare_jobs()
except SpecError as error:
    raise WorkflowError(f"nothing can be planned:\n{error}")
plan = lookups.plan


wildcard_constraints:
    **lookups.wildcards(),
