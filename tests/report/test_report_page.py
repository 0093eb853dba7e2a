"""The pages: offline, escaped, whole, the same every time; and the data beside them."""

import csv
import json
import re
from html.parser import HTMLParser

import jsonschema
import pytest
import report_sample

from ropewalk.base.files import read_json
from ropewalk.base.manifest import MANIFEST
from ropewalk.base.stage import StageError, run_stage
from ropewalk.report import page, stage
from ropewalk.report.spec import ReportJob

PAGES = ("index.html", "pi.html")
VOID = {"meta", "link", "br", "hr", "img", "wbr"}


class Reader(HTMLParser):
    """Collects tags, ids and text; refuses tags that are not closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "title", "desc", "text"):
            self.text += data


@pytest.fixture(scope="module", params=PAGES)
def read(sample, request) -> Reader:
    return Reader((sample / "report" / request.param).read_text(encoding="utf-8"))


def test_nothing_is_fetched_and_nothing_runs(read):
    """Guards against a page that needs the network, or a script to be read."""
    assert not [
        tag for tag, _ in read.tags if tag in ("script", "iframe", "img", "object", "embed")
    ]
    for tag, attributes in read.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href"):
            value = attributes.get(name) or ""
            local = value.startswith(("#", "data:")) or "://" not in value
            assert local or (tag == "a" and value == "https://arxiv.org/abs/2306.15595")
    assert sum(tag == "style" for tag, _ in read.tags) == 1


def test_ids_are_unique_and_every_anchor_exists(sample, read):
    """Guards against two figures sharing a clip path, and links into nowhere."""
    ids = [a["id"] for _, a in read.tags if a.get("id")]
    assert len(ids) == len(set(ids))
    there = {
        name: {
            a["id"]
            for _, a in Reader((sample / "report" / name).read_text(encoding="utf-8")).tags
            if a.get("id")
        }
        for name in PAGES
    }
    for tag, attributes in read.tags:
        href = attributes.get("href") or ""
        if tag != "a" or "://" in href:
            continue
        file, _, anchor = href.partition("#")
        if file and not anchor:
            assert (sample / "report" / file).is_file()
        else:
            assert anchor in (there[file] if file else ids), href


def test_structure_a_screen_reader_needs(read):
    """Guards against tables without caption or scope, and pages without landmarks."""
    tags = [tag for tag, _ in read.tags]
    assert {"header", "main", "footer", "h1"} <= set(tags)
    assert tags.count("table") == tags.count("caption")
    assert all(a.get("scope") in ("row", "col") for tag, a in read.tags if tag == "th")
    for tag, attributes in read.tags:
        if tag == "svg":
            assert attributes["role"] == "img"
            assert attributes.get("aria-labelledby") or attributes.get("aria-label")


def test_hostile_text_is_text(sample):
    """Guards against markup, template or math code in a study becoming code."""
    raw = (sample / "report" / "pi.html").read_text(encoding="utf-8")
    assert "<script" not in raw
    assert report_sample.HOSTILE in Reader(raw).text


def test_a_paper_address_that_is_code_is_no_link():
    assert page.paper_link({"url": "javascript:alert(1)"}) is None
    assert page.paper_link({}) is None


def test_every_claim_shows_badge_reason_and_evidence(sample):
    judged = read_json(sample / "judged" / "judged.json")
    raw = (sample / "report" / "pi.html").read_text(encoding="utf-8")
    text = " ".join(Reader(raw).text.split())
    for name, claim in judged["claims"].items():
        article = raw[raw.index(f'id="claim-{name}"') :]
        article = article[: article.index("</article>")]
        assert claim["outcome"] in article
        assert " ".join(claim["reason"].split()) in text
        for key in claim["evidence"]["evaluations"]:
            assert judged["evaluations"][key]["recipe"] in article


def test_every_printed_cell_stands_on_the_page_with_its_counterpart(sample):
    """Guards against a table that shows the paper's number alone, or ours alone."""
    judged = read_json(sample / "judged" / "judged.json")
    raw = (sample / "report" / "pi.html").read_text(encoding="utf-8")
    cells = re.findall(
        r'<span class="paper"><span class="who">paper</span> (.*?)</span>\s*'
        r'<span class="ours"><span class="who">ours</span> (.*?)</span>',
        raw,
        flags=re.DOTALL,
    )
    expected = [
        cell
        for table in judged["tables"].values()
        for row in table["rows"]
        for cell in row["cells"]
        if cell["printed"] or "number" in cell
    ]
    assert len(cells) == len(expected)
    for (printed, ours), cell in zip(cells, expected, strict=True):
        assert printed.replace("&gt;", ">") == cell["printed"]
        assert ("<strong>" in ours) == ("number" in cell)


def test_csv_holds_the_same_numbers(sample):
    judged = read_json(sample / "judged" / "judged.json")
    for name, table in judged["tables"].items():
        text = (sample / "report" / f"pi-{name}.csv").read_text(encoding="utf-8")
        lines = list(csv.DictReader(text.splitlines()))
        measured = [c for row in table["rows"] for c in row["cells"] if "number" in c]
        assert [float(line["ours"]) for line in lines if line["ours"]] == [
            c["number"] for c in measured
        ]
        assert all(line["convention"] for line in lines)


def test_undecided_promises_stand_first(sample):
    """Guards against a promise that quietly was not kept."""
    for name in PAGES:
        raw = (sample / "report" / name).read_text(encoding="utf-8")
        assert raw.index("Promised, and not decided") < raw.index(
            "<h2 id=", raw.index("</aside>") + 200
        )


def test_report_json_follows_the_schema(sample):
    schema = json.loads(stage.SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    report = read_json(sample / "report" / "report.json")
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(report)
    for place, key in (
        (report["studies"]["pi"]["claims"]["theory"], "outcome"),
        (report["studies"]["pi"], "unstated"),
        (report["accepted"][0], "reason"),
    ):
        value = place.pop(key)
        assert not validator.is_valid(report)
        place[key] = value
    validator.validate(report)


def test_same_data_same_bytes(sample):
    """Guards against dates, random ids or dictionary order in what is written."""
    judged = read_json(sample / "judged" / "judged.json")
    report = sample / "report"
    assert page.study_page("sample", judged) == (report / "pi.html").read_text(encoding="utf-8")
    index = page.index_page("sample", "mini", {"pi": judged}, report_sample.ACCEPTED)
    assert index == (report / "index.html").read_text(encoding="utf-8")


def test_accepted_changes_stand_on_the_index_and_in_the_data(sample):
    """Guards against a report that hides what was not made again."""
    (change,) = report_sample.ACCEPTED
    text = Reader((sample / "report" / "index.html").read_text(encoding="utf-8")).text
    for value in (change.file, change.old, change.new, change.reason):
        assert value in text
    assert read_json(sample / "report" / "report.json")["accepted"] == [
        {"file": change.file, "from": change.old, "to": change.new, "reason": change.reason}
    ]
    judged = read_json(sample / "judged" / "judged.json")
    assert "accepted without recomputing" not in page.index_page("sample", "mini", {"pi": judged})


def test_what_the_paper_leaves_open_stands_on_the_page_and_in_the_data(sample):
    """Guards against our own choices that pass for the authors'."""
    unstated = list(report_sample.judge_job().unstated)
    text = Reader((sample / "report" / "pi.html").read_text(encoding="utf-8")).text
    section = text[text.index("What the paper does not say") : text.index("departs from itself")]
    assert all(line in section for line in unstated)
    report = read_json(sample / "report" / "report.json")
    assert report["studies"]["pi"]["unstated"] == unstated


def test_data_files_are_all_the_files_the_stage_reads():
    """Guards against a template edited without the report being made again."""
    folder = stage.SCHEMA.parent
    on_disk = {str(f.relative_to(folder)) for f in (folder / "templates").iterdir()}
    assert set(stage.DATA_FILES) == on_disk | {stage.SCHEMA.name}


@pytest.mark.parametrize("study", ["index", "../escape", ".hidden"])
def test_a_study_that_cannot_be_a_file_name_is_refused(sample, tmp_path, study):
    with pytest.raises(StageError, match="file name"):
        run_stage(
            "report",
            "ropewalk.report.stage",
            stage.work,
            spec=ReportJob(name="sample", scale="mini"),
            inputs={f"judged:{study}": sample / "judged" / MANIFEST},
            folder=tmp_path / "report",
        )


def test_settings_shared_by_all_runs_are_told_once():
    def settings(**values):
        return {"settings": [{"key": k, "value": v, "class": None} for k, v in values.items()]}

    runs = {"a": settings(lr=1, steps=2), "b": settings(lr=1, steps=3)}
    assert [s["key"] for s in page.shared_settings(runs)] == ["lr"]
    assert {r: [s["key"] for s in rows] for r, rows in page.own_settings(runs).items()} == {
        "a": ["steps"],
        "b": ["steps"],
    }
    assert page.shared_settings({"a": runs["a"]}) == []


def test_claims_follow_the_paper():
    """Guards against Table 10 told before Table 2."""
    claims = {n: {"location": loc} for n, loc in {"a": "Table 10", "b": "table 2"}.items()}
    assert [name for name, _ in page.by_location(claims)] == ["b", "a"]


def test_every_figure_says_how_its_numbers_are_measured(sample):
    """Guards against a curve without its convention."""
    judged = read_json(sample / "judged" / "judged.json")
    raw = (sample / "report" / "pi.html").read_text(encoding="utf-8")
    captions = {
        name: " ".join(Reader(caption).text.split())
        for name, caption in re.findall(
            r'<figure class="plots" id="([^"]+)">.*?<figcaption>(.*?)</figcaption>', raw, re.DOTALL
        )
    }
    for figure, evaluations in {
        "perplexity-context": ("loss", "curve"),
        "retrieval-distance": ("passkey",),
        "copy-distance": ("copy",),
        "position": ("curve",),
        "conventions": ("strip",),
    }.items():
        for evaluation in evaluations:
            assert judged["protocols"][f"pi/{evaluation}"] in captions[figure]
    strip = judged["figures"]["by_convention"]
    for series in strip:
        assert f"{100 * series['spread']:.1f} %" in captions["conventions"]


def test_cells_stand_on_the_page_with_interval_and_convention(sample):
    """Guards against a benchmark number without its uncertainty."""
    judged = read_json(sample / "judged" / "judged.json")
    text = " ".join(Reader((sample / "report" / "pi.html").read_text()).text.split())
    section = text[text.index("Measured sample by sample") :]
    assert len(judged["cells"]) == 4
    for cell in judged["cells"]:
        low, high = f"{cell['low']:.3f}", f"{cell['high']:.3f}"
        assert f"{cell['number']:.3f} {low} to {high}, {cell['samples']} samples" in section
    assert judged["protocols"]["pi/tasks"] in section


def test_what_was_lost_is_counted_on_the_page(sample):
    """Guards against cases that were left out and that no reader of the page hears of."""
    raw = (sample / "report" / "pi.html").read_text(encoding="utf-8")
    table = raw[raw.index("<caption>Counted and left out</caption>") :]
    table = table[: table.index("</table>")]
    rows = re.findall(r"<tr><th scope=\"row\">(.*?)</tr>", table)
    assert len(rows) == 2  # of the tasks, whose protocol allows it, and of nothing else
    for row in rows:
        assert "pi/tasks" in row
        assert re.findall(r'class="number">(\d+)<', row) == ["0", "3", "0"]
    judged = read_json(sample / "judged" / "judged.json")
    quiet = {**judged, "lost": []}
    assert "Counted and left out" not in page.study_page("sample", quiet)


def test_snapshots_that_lost_the_same_share_a_row():
    entry = {"evaluation": "e", "run": "r", "non_finite": 0, "dropped": 1, "truncated": 0}
    rows = page.lost_rows(
        [{**entry, "step": 0}, {**entry, "step": 8}, {**entry, "run": "s", "step": 8}]
    )
    assert [(row["run"], row["steps"]) for row in rows] == [("r", [0, 8]), ("s", [8])]


def test_modelled_cost_stands_on_the_page_and_measured_cost_nowhere(sample, tmp_path):
    """Guards against seconds of one machine in what must be the same on all."""
    judged = read_json(sample / "judged" / "judged.json")
    text = Reader((sample / "report" / "pi.html").read_text(encoding="utf-8")).text
    for cost in judged["cost"]:
        assert f"{cost['tokens_read']:,}" in text
        assert f"{cost['flops']:.2e}" in text
    again = report_sample.build(tmp_path / "again", spoil_cost=True)
    for name in ("report.json", "pi.html"):
        assert (again / name).read_bytes() == (sample / "report" / name).read_bytes()
