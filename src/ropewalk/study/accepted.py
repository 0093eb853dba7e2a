"""`accepted.yaml`: changes of code that somebody declared harmless, each with a reason."""

from pathlib import Path

import yaml

from ropewalk.base.spec import Problem, SpecError, suggestion
from ropewalk.report.spec import Accepted

ACCEPTED = "accepted.yaml"
KEYS = ("file", "from", "to", "reason")


def read_accepted(path: Path) -> tuple[Accepted, ...]:
    """Return the entries of `accepted.yaml` as written, in their order; none without a file.

    Values are read as text: a digest such as 012345670123 is a number to YAML otherwise.

    Raises:
        SpecError: with every problem, each naming file, line and key.
    """
    if not path.is_file():
        return ()
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise SpecError(f"{path.name}: not valid YAML: {error}") from None
    if root is None:
        return ()
    if not isinstance(root, yaml.SequenceNode):
        raise SpecError(f"{path.name}: the file must be a list of entries with {', '.join(KEYS)}")
    problems: list[str] = []
    found = [_entry(node, path.name, problems) for node in root.value]
    if problems:
        raise SpecError([Problem((), problem) for problem in problems])
    return tuple(
        Accepted(file=entry["file"], old=entry["from"], new=entry["to"], reason=entry["reason"])
        for entry in found
    )


def _entry(node: yaml.Node, file: str, problems: list[str]) -> dict[str, str]:
    """Return one entry as text; what is wrong with it is added to `problems`."""
    place = f"{file}:{node.start_mark.line + 1}"
    if not isinstance(node, yaml.MappingNode):
        problems.append(f"{place}: an entry must be a map with {', '.join(KEYS)}")
        return {}
    entry: dict[str, str] = {}
    for key_node, value_node in node.value:
        line = f"{file}:{key_node.start_mark.line + 1}"
        key, value = key_node.value, value_node.value
        if key not in KEYS:
            problems.append(f"{line}: unknown key {key!r}; {suggestion(key, KEYS)}")
        elif key in entry:
            problems.append(f"{line}: key {key!r} appears twice; keep one")
        elif not isinstance(value, str) or not value.strip():
            problems.append(f"{line}: {key}: must be a text")
        entry[str(key)] = str(value)
    problems += [f"{place}: {key!r} is missing" for key in KEYS if key not in entry]
    if entry.get("from") is not None and entry.get("from") == entry.get("to"):
        problems.append(f"{place}: 'from' and 'to' are both {entry['to']!r}")
    return entry
