"""A study of no paper, and a table that no paper prints: pages, CSV and data."""

import csv
import json
import re
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
import report_sample
from report_sample import q
from test_report_page import Reader

from ropewalk.base.files import read_json
from ropewalk.report import accounts, page, stage
from ropewalk.report.drawn import Look, by_evaluation, conventions
from ropewalk.report.quantities import Results
from ropewalk.report.spec import Column, Measure, Quantity, Row, Table

DASH = "\N{EN DASH}"
RUNS = {"untouched": "shared/base", "direct": "pi/direct", "interpolated": "pi/interpolated"}
TABLE = Table(
    title="All of them",
    evaluation="loss",
    value="perplexity",
    columns=("1x", "4x", "found", "tokens"),
    other={
        "found": Column(heading="keys found", evaluation="passkey", value="accuracy"),
        "tokens": Column(heading="tokens trained", value="trained_tokens"),
    },
    rows=(*(Row(run=run, label=label) for label, run in RUNS.items()), Row(run="", label="lost")),
)
CELLS = {
    f"{row},{column}": quantity
    for row, run in enumerate(RUNS.values())
    for column, quantity in enumerate(
        (
            q(run, "1x", value="perplexity"),
            q(run, "4x", value="perplexity"),
            Quantity(evaluation="passkey", run=run, value="accuracy"),
            Quantity(run=run, value="trained_tokens"),
        )
    )
}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the sample as a study of no paper, with a table of its own."""
    root = tmp_path_factory.mktemp("own")
    report_sample.build(
        root,
        paper={},
        summary="Which of them is it?",
        inconsistencies=("One says so, the other does not.",),
        tables={"ours": TABLE, **report_sample.judge_job().tables},
        cells={"ours": CELLS, **report_sample.judge_job().cells},
    )
    return root


def judged(own: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(own / "judged" / "judged.json")
    return found


def test_a_study_of_no_paper_speaks_of_none(own: Path) -> None:
    """Guards against headings about a paper, and a line of authors that are not there."""
    text = words((own / "report" / "pi.html").read_text(encoding="utf-8"))
    assert "Which of them is it?" in text
    for of_papers in ("The paper ", "departs from itself", "does not say", "from the paper"):
        assert of_papers not in text, of_papers
    for ours in ("What limits the comparison", "What we chose", "Where the papers disagree"):
        assert ours in text
    silent = {**judged(own), "inconsistencies": []}
    assert "Where the papers disagree" not in page.study_page("sample", silent)


def test_the_index_counts_papers_and_names_what_is_ours_after_them(own: Path, sample: Path) -> None:
    """Guards against a study of ours counted as a paper, or told before one."""
    paper = read_json(sample / "judged" / "judged.json")
    ours = {**judged(own), "title": "Side by side"}
    text = words(page.index_page("n", "mini", {"a": ours, "b": paper}))
    assert "What one paper on long-context language models says" in text
    assert "Of our own: Side by side." in text
    assert text.index(paper["title"]) < text.index("Side by side", text.index("At a glance"))
    alone = Reader(page.index_page("n", "mini", {"a": ours})).text
    assert "paper on" not in alone
    assert "Of our own" not in Reader(page.index_page("n", "mini", {"b": paper})).text


def words(markup: str) -> str:
    return " ".join(Reader(markup).text.split())


def table_rows(raw: str, title: str) -> list[list[str]]:
    """Return the texts of a table's body by rows, the label first."""
    table = raw[raw.index(f"<caption>{title}") :]
    rows = table[table.index("<tbody>") : table.index("</tbody>")].split("<tr>")[1:]
    cells = [re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row, flags=re.DOTALL) for row in rows]
    return [[words(cell) for cell in row] for row in cells]


def test_a_table_of_ours_shows_every_number_once_and_nothing_of_a_paper(own: Path) -> None:
    """Guards against 'paper' in cells that no paper prints, and a share in the unit of a loss."""
    raw = (own / "report" / "pi.html").read_text(encoding="utf-8")
    rows = table_rows(raw, TABLE.title)
    table = judged(own)["tables"]["ours"]
    assert table["columns"] == ["1x", "4x", "keys found", "tokens trained"]
    assert table["others"] == ["pi/passkey"]
    assert [row[0] for row in rows] == list(RUNS)  # not the one that was not measured
    for shown, row in zip(rows, table["rows"], strict=False):
        loss, far, found, _ = row["cells"]
        assert shown[1].startswith(f"{loss['number']:.2f} {loss['low']:.2f} to")
        assert shown[2].startswith(f"{far['number']:.2f} ")
        assert shown[3].startswith(f"{found['number']:.3f} " if "number" in found else DASH)
        assert shown[4] == "327,680"  # a count has no interval
    assert "number" not in table["rows"][0]["cells"][2]  # the base was not asked
    caption = raw[raw.index("<figcaption>", raw.index(f"<caption>{TABLE.title}")) :]
    caption = words(caption[: caption.index("</figcaption>") + len("</figcaption>")])
    for name in ("pi/loss", "pi/passkey"):
        assert judged(own)["protocols"][name] in caption


def test_its_csv_says_what_each_number_is_and_how_it_was_measured(own: Path) -> None:
    """Guards against shares under the convention of losses."""
    lines = list(csv.DictReader((own / "report" / "pi-ours.csv").read_text().splitlines()))
    found = judged(own)
    cells = [c for row in found["tables"]["ours"]["rows"] for c in row["cells"] if "number" in c]
    assert [line["value"] for line in lines] == [cell["value"] for cell in cells]
    assert [float(line["ours"]) for line in lines] == [cell["number"] for cell in cells]
    for line, cell in zip(lines, cells, strict=True):
        assert line["printed"] == ""
        assert line["convention"] == found["protocols"].get(cell["evaluation"], "")
    assert {line["value"] for line in lines if not line["convention"]} == {"trained_tokens"}


def test_evaluations_that_try_other_ropes_are_lines_of_one_panel() -> None:
    """Guards against a figure of a dozen panels with a line each, and two evaluations mixed up."""

    def found(run: str, rope: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        return {"key": {"weights": run, "seed": 0, "rope": rope, **more}}

    linear, ntk = {"kind": "linear", "factor": 4.0}, {"kind": "ntk", "factor": 4.0}
    by_name = {
        ("s/loss", "a"): found("a"),
        ("s/loss", "b"): found("b"),
        ("s/loss_linear", "a"): found("a", linear),
        ("s/loss_ntk", "a"): found("a", ntk),
        ("s/both", "a"): found("a", ntk),
        ("s/both", "b"): found("b", ntk),
        ("s/other", "a"): found("a", ntk, seed=1),
    }
    variants = accounts.variants(Results(study="s", by_name=by_name))
    assert variants == dict.fromkeys(("s/both", "s/loss_linear", "s/loss_ntk"), "s/loss")
    series = [{"evaluation": evaluation, "run": run} for evaluation, run in by_name]
    look = Look(study="s", styles={"a": 0, "b": 1}, variants=variants)
    panels = {
        title: [(s["label"], s["style"]) for s in lines]
        for title, lines in by_evaluation(series, look)
    }
    assert panels == {
        "loss": [("a", 0), ("b", 1)],
        "loss of a, other ropes": [("loss_linear", 0), ("loss_ntk", 1)],
        "both": [("a", 0), ("b", 1)],
        "other": [("a", 0)],
    }
    judged = {"protocols": {evaluation: f"P of {evaluation}." for evaluation, _ in by_name}}
    said = conventions(series, judged, look)
    assert said == (
        "loss: P of s/loss. other: P of s/other. both, loss_linear and loss_ntk: as loss, read "
        "with other ropes, each named by its protocol."
    )


def test_the_data_of_a_study_of_no_paper_follow_the_schema(own: Path) -> None:
    """Guards against a schema that only papers can follow, and measures it does not know."""
    schema = json.loads(stage.SCHEMA.read_text(encoding="utf-8"))
    validator = jsonschema.Draft202012Validator(schema)
    report = read_json(own / "report" / "report.json")
    validator.validate(report)
    report["studies"]["pi"]["tables"]["ours"]["rows"][0]["cells"][0]["value"] = "beauty"
    assert not validator.is_valid(report)
    assert tuple(schema["$defs"]["measure"]["enum"]) == get_args(Measure)
