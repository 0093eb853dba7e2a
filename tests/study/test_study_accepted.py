"""Changes of code that were declared harmless: read exactly, refused clearly, reported."""

from pathlib import Path

import pytest
from study_samples import plan, write

from ropewalk.base.spec import SpecError
from ropewalk.report.spec import Accepted
from ropewalk.study.accepted import read_accepted

ENTRY = "- { file: ropewalk/data/pack.py, from: 012345670123, to: 98e7654321ab, reason: message }\n"


def test_digests_are_text_whatever_yaml_makes_of_them(tmp_path: Path) -> None:
    """Guards against a digest of digits only, which YAML reads as an octal number."""
    path = tmp_path / "accepted.yaml"
    path.write_text(ENTRY)
    assert read_accepted(path) == (
        Accepted(
            file="ropewalk/data/pack.py", old="012345670123", new="98e7654321ab", reason="message"
        ),
    )


@pytest.mark.parametrize("text", [None, "", "# nothing yet\n", "[]\n"])
def test_no_entries_are_no_entries(tmp_path: Path, text: str | None) -> None:
    """Guards against a project without the file, or with an empty one, that cannot be planned."""
    path = tmp_path / "accepted.yaml"
    if text is not None:
        path.write_text(text)
    assert read_accepted(path) == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file: a\n", "accepted.yaml: the file must be a list of entries with file, from, to"),
        ("- a\n", "accepted.yaml:1: an entry must be a map with file, from, to, reason"),
        ("- { file: a, from: b, to: c }\n", "accepted.yaml:1: 'reason' is missing"),
        ("- { file: a, from: b, to: c, reason: '' }\n", "accepted.yaml:1: reason: must be a text"),
        ("- { file: [a], from: b, to: c, reason: d }\n", "accepted.yaml:1: file: must be a text"),
        (
            "- file: a\n  from: b\n  to: c\n  reson: d\n",
            "accepted.yaml:4: unknown key 'reson'; did you mean 'reason'?",
        ),
        (
            "- { file: a, from: b, to: c, reason: d,\n    to: e }\n",
            "accepted.yaml:2: key 'to' appears twice; keep one",
        ),
        ("- { file: a, from: b, to: b, reason: d }\n", "'from' and 'to' are both 'b'"),
        ("- { file: a\n", "accepted.yaml: not valid YAML"),
    ],
)
def test_what_cannot_be_used_is_one_message(tmp_path: Path, text: str, message: str) -> None:
    """Guards against an entry that is passed over, so that nobody sees why something reruns."""
    path = tmp_path / "accepted.yaml"
    path.write_text(text)
    with pytest.raises(SpecError) as caught:
        read_accepted(path)
    assert message in str(caught.value)


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    """Guards against one message per attempt."""
    path = tmp_path / "accepted.yaml"
    path.write_text("- { file: a }\n- { from: b, to: c, reason: d }\n")
    with pytest.raises(SpecError) as caught:
        read_accepted(path)
    assert len(caught.value.problems) == 4


def test_accepted_changes_are_given_to_the_report(tmp_path: Path) -> None:
    """Guards against results that stand although their code changed, with nobody told."""
    write(tmp_path)
    assert plan(tmp_path).node("report", {"name": "paper"}).spec.accepted == ()
    (tmp_path / "accepted.yaml").write_text(ENTRY)
    found = plan(tmp_path)
    (change,) = found.node("report", {"name": "paper"}).spec.accepted
    assert (change.old, change.reason) == ("012345670123", "message")
    assert '"reason":"message"' in found.spec_json(found.nodes[found.report])
