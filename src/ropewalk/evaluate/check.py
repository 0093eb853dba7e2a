"""Stage `check`: exact checks of theory that need no model; writes `result.json`.

A check is a frozen dataclass in `CHECKS` of the module that `check_module` names; its fields are
the parameters, and what is not given has the default. A check of data is given the position
frequency of windows as they were packed, by label.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ropewalk.base.files import write_json
from ropewalk.base.spec import SpecError, decode
from ropewalk.base.stage import Job
from ropewalk.data import frequency
from ropewalk.evaluate.spec import CheckJob


def work(job: Job) -> tuple[Iterable[Path], Mapping[str, Any]]:
    """Run the check of a `CheckJob`, found in the chosen module, and write `result.json`.

    Raises:
        SpecError: for an unknown parameter or one that is not a whole number where one is needed.
    """
    spec: CheckJob = job.spec
    check = made(job.chosen.CHECKS[spec.check], spec.parameters)
    packed = {
        label: frequency.packed(manifest.path(frequency.STATISTICS))
        for label, manifest in job.many("windows").items()
    }
    findings = check.run(packed) if packed else check.run()
    result = job.folder / "result.json"
    write_json(result, {"numbers": findings.numbers, "series": findings.series})
    for name, value in findings.numbers.items():
        print(f"check: {spec.check}: {name} = {value:.6g}", flush=True)
    return [result], {"numbers": findings.numbers}


def made(kind: type[Any], parameters: Mapping[str, float]) -> Any:
    """Return a check with its parameters; raises SpecError, naming the parameter."""
    whole = {field.name for field in dataclasses.fields(kind) if field.type is int}
    given: dict[str, float | int] = {}
    for name, value in parameters.items():
        if name in whole and not float(value).is_integer():
            raise SpecError(f"parameters.{name}: {value!r} must be a whole number")
        if name in whole and name != "seed" and value < 1:
            raise SpecError(f"parameters.{name}: {value!r} must be at least 1")
        given[name] = int(value) if name in whole else value
    return decode(kind, given, ("parameters",))
