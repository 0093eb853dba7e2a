"""Stage `report`: an index, a page per study, machine-readable data and a CSV per table."""

import csv
import io
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ropewalk import __version__
from ropewalk.base.files import read_json, write_json, write_text
from ropewalk.base.stage import Job, StageError
from ropewalk.report.judge import JUDGED, JUDGED_VERSION
from ropewalk.report.page import broken_promises, index_page, slug, study_page, tally
from ropewalk.report.spec import ReportJob

DATA_FILES = (
    "report.schema.json",
    "templates/base.html",
    "templates/index.html",
    "templates/parts.html",
    "templates/study.html",
    "templates/style.css",
)
FORMAT_VERSION = 2
SCHEMA = Path(__file__).with_name("report.schema.json")
Json = dict[str, Any]


def work(job: Job) -> tuple[Iterable[Path], Mapping[str, Any]]:
    """Write the report of all judged studies; the result counts claims by outcome.

    Raises:
        StageError: for a study whose name cannot be a file name, or judged by another version.
    """
    spec: ReportJob = job.spec
    studies = {name: _judged(name, m.folder) for name, m in sorted(job.many("judged").items())}
    if not studies:
        raise StageError(f"{job.stage}: no judged study; pass --input judged:<study>=PATH")
    texts = {"index.html": index_page(spec.name, spec.scale, studies, spec.accepted)}
    for study, judged in studies.items():
        texts[f"{study}.html"] = study_page(spec.name, judged)
        for name in judged["tables"]:
            texts[table_file(study, name)] = table_csv(judged, name)
    texts[SCHEMA.name] = SCHEMA.read_text(encoding="utf-8")
    written = []
    for name, text in texts.items():
        written.append(job.folder / name)
        write_text(written[-1], text)
    written.append(job.folder / "report.json")
    write_json(written[-1], report_json(spec, studies))
    return written, {
        "studies": sorted(studies),
        "outcomes": {study: tally(judged["claims"]) for study, judged in studies.items()},
    }


def report_json(spec: ReportJob, studies: Mapping[str, Json]) -> Json:
    """Return the machine-readable report; its shape is `report.schema.json`."""
    return {
        "$schema": SCHEMA.name,
        "format_version": FORMAT_VERSION,
        "ropewalk": __version__,
        "name": spec.name,
        "scale": spec.scale,
        "outcomes": {study: tally(judged["claims"]) for study, judged in studies.items()},
        "promised_not_decided": {s: broken_promises(judged) for s, judged in studies.items()},
        "accepted": [
            {"file": change.file, "from": change.old, "to": change.new, "reason": change.reason}
            for change in spec.accepted
        ],
        "studies": dict(studies),
    }


def table_file(study: str, table: str) -> str:
    """Return the file name of a table's CSV."""
    return f"{study}-{slug(table)}.csv"


def table_csv(judged: Json, name: str) -> str:
    """Return a table in long form: one line per printed or measured cell."""
    table = judged["tables"][name]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        "row column printed value ours low high interval evaluation run missing convention".split()
    )
    for row in table["rows"]:
        for column, cell in zip(table["columns"], row["cells"], strict=True):
            if not cell["printed"] and "number" not in cell:
                continue
            keys = "value number low high method evaluation run missing".split()
            values = ["" if cell.get(key) is None else cell[key] for key in keys]
            measured_by = cell.get("evaluation", table["evaluation"])
            convention = judged["protocols"].get(measured_by, "")
            writer.writerow([row["label"], column, cell["printed"], *values, convention])
    return stream.getvalue()


def _judged(study: str, folder: Path) -> Json:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", study) or study == "index":
        raise StageError(
            f"judged:{study}: a study's name becomes a file name; use letters, digits, '_', '-' "
            "and '.', and not 'index'"
        )
    judged: Json = read_json(folder / JUDGED)
    if judged.get("format_version") != JUDGED_VERSION:
        raise StageError(
            f"{folder / JUDGED} has format_version {judged.get('format_version')!r}; this version "
            f"reads {JUDGED_VERSION}: delete {folder} and run snakemake again"
        )
    return judged
