# Lookups into the plan. What a stage needs and why it reruns is decided there, not here.

from pathlib import Path

from ropewalk.base.spec import SpecError
from ropewalk.study.lookups import Lookups

try:
    lookups = Lookups.load(config, Path(workflow.basedir))
except SpecError as error:
    raise WorkflowError(f"the configuration cannot be used:\n{error}")
plan = lookups.plan
lookups.prepare_jobs()
