"""Every claim of every study beside its verdicts at several scales: one page of Markdown."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ropewalk.report.page import MEANINGS, OUTCOMES, SYMBOLS, tally
from ropewalk.report.verdict import DECIDED
from ropewalk.report.wording import count, listed

Json = Mapping[str, Any]
SAID = ("statement", "location", "printed")  # of a claim, whatever its verdict
NO_REPORT = "no report yet"
LEFT_OUT = "not in this report"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """A scale, with its report (see `report.schema.json`) if there is one."""

    scale: str
    report: Json | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """A study as its file has it."""

    title: str
    claims: Mapping[str, Mapping[str, str]]  # id -> what it says, keys `SAID`; in the file's order
    promised: Mapping[str, frozenset[str]]  # scale -> claims that it promises to decide


def markdown(sections: Mapping[str, Section], columns: Sequence[Column], command: str) -> str:
    """Return the page: a summary, then a section per study and in it a row per claim.

    `command` is how the page was made. A claim that a report lacks is said to be left out of it; a
    study or claim that no file has any more is shown as the report has it.
    """
    studies = {**_without_file(columns), **sections}
    parts = [
        "# Claims and verdicts",
        f"Made by {code(command)} from reports and the studies' files. {_reports(columns)}",
        "A verdict is of our models at that scale, by a rule that stood in the study's file before "
        "the run it judges. **promised**: the scale said beforehand that it would decide the "
        "claim, either way. **of one machine**: it rests on times or memory, which another machine "
        "has otherwise.",
        _summary(studies, columns),
    ]
    for name in sorted(studies):
        parts += _study(name, studies[name], columns)
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """Return plain text as Markdown that reads the same, on one line and inside a table's cell."""
    line = " ".join(text.split())
    # Within a word an underscore means nothing; elsewhere it may.
    line = re.sub(r"[\\`*\[\]<>|~$&]", r"\\\g<0>", line)
    return re.sub(r"(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])", r"\\_", line)


def code(text: str) -> str:
    """Return text as code, on one line and inside a table's cell."""
    line = " ".join(text.split())
    longest = max(map(len, re.findall("`+", line)), default=0)
    fence = "`" * (longest + 1)
    inside = f" {line} " if longest else line
    return f"{fence}{inside}{fence}".replace("|", "\\|")  # a table takes the backslash away


def _of_report(name: str, column: Column) -> Json | None:
    """Return the claims of a study in a report, None where it has none of this study."""
    found = (column.report or {}).get("studies", {}).get(name)
    return None if found is None else found["claims"]


def _without_file(columns: Sequence[Column]) -> dict[str, Section]:
    """Return every study of the reports as if it had no file."""
    return {
        name: Section(title=judged["title"], claims={}, promised={})
        for column in columns
        for name, judged in (column.report or {"studies": {}})["studies"].items()
    }


def _claims(name: str, section: Section, columns: Sequence[Column]) -> dict[str, Mapping[str, str]]:
    """Return all claims of a study: those of its file, then those that only reports have."""
    found = dict(section.claims)
    for column in columns:
        for claim, judged in sorted((_of_report(name, column) or {}).items()):
            found.setdefault(claim, {key: judged[key] for key in SAID})
    return found


def _reports(columns: Sequence[Column]) -> str:
    return " ".join(
        f"Scale {c.scale}: {NO_REPORT}."
        if c.report is None
        else f"Scale {c.scale}: reproduction {code(c.report['name'])}, ropewalk "
        f"{escaped(c.report['ropewalk'])}."
        for c in columns
    )


def _summary(studies: Mapping[str, Section], columns: Sequence[Column]) -> str:
    """Return the table of claims by verdict and scale; its columns add up to all claims."""
    counts = [_counted(studies, column) for column in columns]
    rows = [
        (f"{SYMBOLS[outcome]} {outcome}", [c.get(outcome, 0) for c in counts], MEANINGS[outcome])
        for outcome in OUTCOMES
    ]
    rows += [
        (LEFT_OUT, [c.get(LEFT_OUT, 0) for c in counts], "left out at this scale, or added later"),
        (NO_REPORT, [c.get(NO_REPORT, 0) for c in counts], "nothing was judged"),
        ("all claims", [sum(c.values()) for c in counts], ""),
    ]
    kept = [_promises(studies, column) for column in columns]
    lines = [(name, [str(n) for n in numbers], meaning) for name, numbers, meaning in rows]
    lines.append(
        (
            "promised, and decided",
            [f"{decided} of {promised}" for decided, promised in kept],
            "promised before the run; reproduced, partly or contradicted",
        )
    )
    head = ["claims", *(c.scale for c in columns), "meaning"]
    return _table(head, [[name, *cells, escaped(meaning)] for name, cells, meaning in lines])


def _counted(studies: Mapping[str, Section], column: Column) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, section in studies.items():
        judged = _of_report(name, column) or {}
        rest = len(set(section.claims) - set(judged))
        without = NO_REPORT if column.report is None else LEFT_OUT
        for outcome, number in [*tally(judged).items(), (without, rest)]:
            found[outcome] = found.get(outcome, 0) + number
    return found


def _promises(studies: Mapping[str, Section], column: Column) -> tuple[int, int]:
    """Return how many promises of a scale were kept, and how many it made."""
    kept = made = 0
    for name, section in studies.items():
        judged = _of_report(name, column) or {}
        for claim in {*section.claims, *judged}:
            if _promised(claim, section, column, judged):
                made += 1
                kept += claim in judged and judged[claim]["outcome"] in DECIDED
    return kept, made


def _promised(claim: str, section: Section, column: Column, judged: Json) -> bool:
    if claim in judged:
        return bool(judged[claim]["promised"])
    return claim in section.promised.get(column.scale, frozenset())


def _study(name: str, section: Section, columns: Sequence[Column]) -> list[str]:
    claims = _claims(name, section, columns)
    tallies = []
    for column in columns:
        found = tally(_of_report(name, column) or {})
        said = listed([f"{number} {outcome}" for outcome, number in found.items()])
        without = NO_REPORT if column.report is None else LEFT_OUT
        tallies.append(f"{column.scale}: {said or without}.")
    rows = []
    for claim, says in claims.items():
        what = f"{code(claim)}<br>{escaped(says['statement'])}"
        cells = [_verdict(claim, says, section, c, _of_report(name, c) or {}) for c in columns]
        rows.append([what, escaped(says["location"]), escaped(says["printed"]), *cells])
    return [
        f"## {escaped(section.title)}",
        f"{code(name)}, {count(len(claims), 'claim')}. " + " ".join(tallies),
        _table(["claim", "in the paper", "printed", *(c.scale for c in columns)], rows),
    ]


def _verdict(claim: str, says: Json, section: Section, column: Column, judged: Json) -> str:
    promised = _promised(claim, section, column, judged)
    if claim not in judged:
        without = NO_REPORT if column.report is None else LEFT_OUT
        return without + (", **promised**" if promised else "")
    found = judged[claim]
    outcome = found["outcome"]
    verdict = f"{SYMBOLS[outcome]} {outcome}"
    if promised:
        verdict += ", **promised**" + ("" if outcome in DECIDED else " and not decided")
    if found["measurement"]:
        verdict += ", **of one machine**"
    others = [f"{key} “{found[key]}”" for key in SAID if found[key] != says[key]]
    there = [f"judged with another {listed(others)}."] if others else []
    return "<br>".join([verdict, *map(escaped, [*there, found["reason"]])])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [list(head), ["---"] * len(head), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
