"""`ropewalk claims`: every claim of every study, and what became of it at each scale."""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ropewalk.commands.project import add_config

if TYPE_CHECKING:
    from ropewalk.report.claims import Section

REPORT = "report.json"
KEPT = Path("docs/results")  # where a checkout keeps reports, a folder for each scale
SHOWN = ("mini", "small")  # scales that have a column even where there is no report


def register(commands: Any) -> None:
    """Add the command."""
    command = commands.add_parser(
        "claims",
        help="list every claim with its verdict at each scale, as Markdown",
        description=(
            "List every claim of every study in Markdown: where the paper makes it, what is "
            "printed, and its verdict, reason and promise at each scale. Verdicts come from "
            f"{REPORT} alone, claims that a report lacks from the studies' files. The same reports "
            "and files give the same bytes."
        ),
        epilog="docs/claims.md is made by: ropewalk claims --out docs/claims.md",
    )
    command.add_argument(
        "reports",
        nargs="*",
        type=Path,
        metavar="REPORT",
        help=f"folders with a {REPORT}, one for a scale (default: those in {KEPT}/)",
    )
    command.add_argument("--out", type=Path, help="the file to write (default: print it)")
    add_config(command)
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write or print the page."""
    from ropewalk.base.files import write_text
    from ropewalk.report.claims import Column, markdown
    from ropewalk.study.config import SCALES

    kept = options.config.resolve().parent / KEPT
    found = _read(options.reports or sorted(path.parent for path in kept.glob(f"*/{REPORT}")))
    scales = [scale for scale in SCALES if scale in found or scale in SHOWN]
    columns = [Column(scale=scale, report=found.get(scale)) for scale in scales]
    text = markdown(_sections(options.config, scales), columns, "ropewalk claims")
    if options.out is None:
        print(text, end="")
    else:
        write_text(options.out, text)
        print(options.out)
    return 0


def _read(folders: Iterable[Path]) -> dict[str, Any]:
    """Return reports by scale.

    Raises:
        SpecError: naming the file, for one that is absent, no report, of another version of it, or
            the second of a scale.
    """
    from ropewalk.base.files import read_json
    from ropewalk.base.spec import SpecError
    from ropewalk.report.stage import FORMAT_VERSION
    from ropewalk.study.config import SCALES

    found: dict[str, Any] = {}
    places: dict[str, Path] = {}
    for folder in folders:
        path = folder if folder.name == REPORT else folder / REPORT
        if not path.is_file():
            raise SpecError(f"{path}: no such file; give the folder that stage `report` left")
        try:
            report = read_json(path)
        except ValueError as error:
            raise SpecError(str(error)) from None
        version = report.get("format_version") if isinstance(report, Mapping) else None
        if version != FORMAT_VERSION:
            raise SpecError(
                f"{path}: format_version {version!r}; this version reads {FORMAT_VERSION}: make "
                "the report again"
            )
        scale = report["scale"]
        if scale not in SCALES:
            raise SpecError(f"{path}: scale {scale!r} is none of {', '.join(SCALES)}")
        if scale in found:
            raise SpecError(
                f"{path} and {places[scale]} are both of scale {scale!r}; give one of them"
            )
        found[scale], places[scale] = report, path
    return found


def _sections(config: Path, scales: Sequence[str]) -> "dict[str, Section]":
    """Return the studies as their files have them: the claims of the paper, and of each scale."""
    from ropewalk.report.claims import SAID, Section
    from ropewalk.study.config import read_config, read_config_file
    from ropewalk.study.load import PAPER, SHARED, available, load_studies
    from ropewalk.study.tree import load_yaml

    data, root = read_config_file(config), config.resolve().parent
    settings = read_config(data)
    papers = root / settings.papers
    names = available(papers) if settings.studies is None else settings.studies
    files = {name: papers / f"{name}.yaml" for name in names}
    known = {n: load_yaml(f).get("scales") for n, f in files.items() if f.is_file()}
    at = {}
    for scale in dict.fromkeys([PAPER, *scales]):
        # A study may lack a scale; one that does not exist at all is refused when it is loaded.
        there = [n for n in names if scale == PAPER or scale in (known.get(n) or (scale,))]
        chosen = read_config({**data, "scale": scale, "studies": there})
        at[scale] = {n: s.file for n, s in load_studies(chosen, root).items() if n != SHARED}
    sections = {}
    for name, file in at[PAPER].items():
        by_scale = {scale: studies[name] for scale, studies in at.items() if name in studies}
        order = dict.fromkeys(claim for found in by_scale.values() for claim in found.claims)
        says = {
            claim: {key: getattr(found, key) for key in SAID}
            for scale in reversed(by_scale)  # what the paper says of a claim comes last, and stays
            for claim, found in by_scale[scale].claims.items()
        }
        sections[name] = Section(
            title=file.title,
            claims={claim: says[claim] for claim in order},
            promised={scale: frozenset(found.decides) for scale, found in by_scale.items()},
        )
    return sections
