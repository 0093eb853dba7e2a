"""`ropewalk claims`: one page of every claim, its verdicts, reasons and promises."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt
from report_sample import HOSTILE

from ropewalk.cli import main
from ropewalk.report.page import OUTCOMES

ROOT = Path(__file__).resolve().parents[2]
STUDY = """\
title: "A study"
main: { method: none }
claims:
  theory: { statement: "As judged.", location: Table 1, printed: "1", outcome: blocked, note: x }
  later:
    statement: "Written later: `a|b`\\n  and a *line* break, <b>&amp;</b> $x_1$ [y](z)."
    location: "Figure 2 | left"
    printed: "_none_"
    outcome: blocked
    note: x
scales:
  mini: { claims: { later: { printed: "of this scale" } }, decides: [later] }
  small: { claims: { later: null }, decides: [theory] }
"""
Tables = list[list[list[str]]]


def rendered(page: str) -> Tables:
    """Return the tables of a page as a reader of Markdown shows them: table, row, cell."""
    tables: Tables = []
    for token in MarkdownIt("commonmark", {"html": True}).enable("table").parse(page):
        if token.type == "table_open":
            tables.append([])
        elif token.type == "tr_open":
            tables[-1].append([])
        elif token.type == "inline" and tables and tables[-1] and token.level > 2:
            parts = token.children or []
            tables[-1][-1].append("".join(_text(part) for part in parts))
    return tables


def _text(part: Any) -> str:
    # <br> is the only tag of ours; any other is text that was not escaped.
    return (
        "\n"
        if part.content == "<br>"
        else f"TAG{part.content}"
        if part.type == "html_inline"
        else part.content
    )


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return a checkout with one study, `pi`, and no report."""
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "shared.yaml").write_text("title: Shared\n")
    (tmp_path / "papers" / "pi.yaml").write_text(STUDY)
    (tmp_path / "config.yaml").write_text("scale: mini\n")
    return tmp_path


def made(home: Path, *reports: Path) -> str:
    out = home / "claims.md"
    words = ["claims", *map(str, reports), "--config", str(home / "config.yaml")]
    assert main([*words, "--out", str(out)]) == 0
    assert sorted(path.name for path in home.glob("claims*")) == ["claims.md"]
    return out.read_text(encoding="utf-8")


def changed(report: Path, folder: Path, **changes: Any) -> Path:
    """Write a report that differs in some keys and return its folder."""
    folder.mkdir()
    data = {**json.loads((report / "report.json").read_text()), **changes}
    (folder / "report.json").write_text(json.dumps(data))
    return folder


def flat(text: str) -> str:
    return " ".join(text.split())


def test_every_claim_stands_there_as_it_was_judged(sample: Path, home: Path) -> None:
    """Guards against verdicts, reasons or promises of one claim in the row of another."""
    summary, rows = rendered(made(home, sample / "report"))
    judged = json.loads((sample / "report" / "report.json").read_text())["studies"]["pi"]["claims"]
    assert rows[0] == ["claim", "in the paper", "printed", "mini", "small"]
    by_id = {row[0].partition("\n")[0]: row for row in rows[1:]}
    assert set(by_id) == {*judged, "later"}
    for name, claim in judged.items():
        what, where, printed, mini, small = by_id[name]
        verdict, *reasons = mini.split("\n")
        assert verdict.partition(" ")[2].partition(",")[0] == claim["outcome"]
        assert ("promised" in verdict) == claim["promised"]
        assert ("not decided" in verdict) == (not claim["kept"])
        assert reasons[-1] == flat(claim["reason"])
        assert small.startswith("no report yet")
        if name != "theory":  # no file has the others: they are as the report has them
            assert what.partition("\n")[2] == flat(claim["statement"])
            assert (where, printed) == (flat(claim["location"]), flat(claim["printed"]))
    assert HOSTILE in by_id["blocked"][0]
    counts = {row[0].partition(" ")[2]: row[1] for row in summary[1:]}
    for outcome in OUTCOMES:
        assert int(counts[outcome]) == sum(c["outcome"] == outcome for c in judged.values())
    columns = [[int(row[i]) for row in summary[1:-1]] for i in (1, 2)]
    assert [sum(column[:-1]) for column in columns] == [column[-1] for column in columns]
    assert columns[0][-1] == len(judged) + 1


def test_what_a_report_lacks_comes_from_the_file(sample: Path, home: Path) -> None:
    """Guards against a claim that is not judged, and so not seen; and against broken tables."""
    small = changed(sample / "report", home / "small", scale="small")
    _, rows = rendered(made(home, small, sample / "report"))
    (later,) = [row for row in rows if row[0].startswith("later\n")]
    text = "Written later: `a|b` and a *line* break, <b>&amp;</b> $x_1$ [y](z)."
    assert later == [
        f"later\n{text}",
        "Figure 2 | left",
        "_none_",
        "not in this report, promised",
        "not in this report",
    ]
    (theory,) = [row for row in rows if row[0].startswith("theory\n")]
    assert theory[0] == "theory\nAs judged."
    assert "judged with another statement “The extrapolation bound" in theory[3]
    assert not any("TAG" in cell for row in rows for cell in row)


def test_scales_stand_in_their_own_columns(sample: Path, home: Path) -> None:
    """Guards against reports that change places with the order in which they are given."""
    data = json.loads((sample / "report" / "report.json").read_text())
    studies = copy.deepcopy(data["studies"])
    for claim in studies["pi"]["claims"].values():
        claim.update(outcome="inconclusive", reason="Small.", promised=True, kept=False)
    small = changed(sample / "report", home / "other", scale="small", studies=studies)
    page = made(home, small, sample / "report")
    assert page == made(home, sample / "report" / "report.json", small)
    summary, rows = rendered(page)
    for row in rows[1:]:
        if not row[0].startswith("later"):
            verdict, *_, reason = row[4].split("\n")
            assert (verdict, reason) == ("≈ inconclusive, promised and not decided", "Small.")
    assert summary[-1][2] == f"0 of {len(studies['pi']['claims'])}"
    gpu = changed(sample / "report", home / "gpu", scale="gpu")
    assert rendered(made(home, gpu))[1][0][3:] == ["mini", "small", "gpu"]


def test_a_study_may_lack_a_scale(home: Path) -> None:
    """Guards against a table that cannot be made because of somebody's own small study."""
    only = STUDY.replace("  small: { claims: { later: null }, decides: [theory] }\n", "")
    (home / "papers" / "own.yaml").write_text(only)
    _, own, pi = rendered(made(home))
    (row,) = [row for row in own if row[0].startswith("later")]
    assert row[3:] == ["no report yet, promised", "no report yet"]
    assert len(own) == len(pi) == 3


def test_refusals_name_the_file(
    sample: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against a table of another report than the one that was meant."""
    again = changed(sample / "report", home / "again")
    old = changed(sample / "report", home / "old", format_version=1)
    cases = {
        "nowhere/report.json: no such file": [home / "nowhere"],
        f"{again}/report.json and {sample}/report/report.json are both of scale 'mini'": [
            sample / "report",
            again,
        ],
        f"{old}/report.json: format_version 1; this version reads": [old],
    }
    for message, folders in cases.items():
        words = ["claims", *map(str, folders), "--config", str(home / "config.yaml")]
        assert main([*words, "--out", str(home / "out.md")]) == 2
        assert message in capsys.readouterr().err
        assert not (home / "out.md").exists()


def test_the_committed_page_is_what_the_command_makes(tmp_path: Path) -> None:
    """Guards against verdicts in the documentation that no report gives any more."""
    for name in ("papers", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "config.yaml").write_text("scale: mini\n")  # without a user's own overlays
    page = made(tmp_path)
    assert page == (ROOT / "docs" / "claims.md").read_text(encoding="utf-8"), (
        "a study or a report changed: ropewalk claims --out docs/claims.md"
    )
    ids = re.findall(r"^\| `(\w+)`<br>", page, re.MULTILINE)
    written = [
        claim
        for file in sorted((ROOT / "papers").glob("*.yaml"))
        for claim in yaml.safe_load(file.read_text()).get("claims", {})
    ]
    assert set(written) <= set(ids)


def test_kept_reports_are_small_and_name_no_machine() -> None:
    """Guards against checkpoints, provenance or megabytes that a checkout carries for ever."""
    kept = ROOT / "docs" / "results"
    files = [file for file in kept.rglob("*") if file.is_file()]
    assert kept / "README.md" in files
    assert {file.suffix for file in files} <= {".md", ".json", ".csv", ".html"}
    assert not {file.name for file in files} & {"manifest.json", "provenance.json"}
    for scale in {file.relative_to(kept).parts[0] for file in files if file.parent != kept}:
        assert sum(f.stat().st_size for f in (kept / scale).rglob("*") if f.is_file()) < 3_000_000
