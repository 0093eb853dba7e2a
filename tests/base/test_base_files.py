"""Files are whole or absent."""

import hashlib
import json
import math
from pathlib import Path

import pytest

from ropewalk.base.files import (
    read_json,
    replacing,
    replacing_directory,
    sha256_file,
    write_json,
    write_text,
)


class KilledError(RuntimeError):
    """Stands for a crash."""


def die_after(_written: object) -> None:
    raise KilledError


@pytest.mark.parametrize("old", [None, "old"])
def test_a_crash_while_writing_leaves_what_was_there(tmp_path: Path, old: str | None) -> None:
    """Guards against a half-written file that later stages read."""
    target = tmp_path / "deep" / "file.txt"
    if old:
        write_text(target, old)
    with pytest.raises(KilledError), replacing(target) as partial:
        die_after(partial.write_text("half"))
    assert (target.read_text() if target.exists() else None) == old
    assert [p.name for p in target.parent.iterdir()] == (["file.txt"] if old else [])


def test_a_writer_that_wrote_nothing_is_an_error(tmp_path: Path) -> None:
    """Guards against a stage that forgets a file and keeps the one of last time."""
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "file.txt"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("old", [None, "old"])
def test_a_crash_while_filling_a_directory_leaves_the_old_one(
    tmp_path: Path, old: str | None
) -> None:
    """Guards against a checkpoint of which half is of another step."""
    target = tmp_path / "step-000010"
    if old:
        write_text(target / "a" / "weights", old)
    with pytest.raises(KilledError), replacing_directory(target) as partial:
        die_after(write_text(partial / "a" / "weights", "new"))
    assert target.exists() == bool(old)
    if old:
        assert (target / "a" / "weights").read_text() == old
    assert [p.name for p in tmp_path.iterdir()] == ([target.name] if old else [])


def test_a_directory_takes_the_place_of_the_old_one_whole(tmp_path: Path) -> None:
    """Guards against files of the old directory that survive in the new one."""
    target = tmp_path / "final"
    write_text(target / "stale", "old")
    with replacing_directory(target) as partial:
        write_text(partial / "fresh", "new")
        assert (target / "stale").read_text() == "old"  # until the very end
    assert [p.name for p in target.iterdir()] == ["fresh"]
    assert [p.name for p in tmp_path.iterdir()] == ["final"]


def test_what_a_killed_process_left_is_not_taken_over(tmp_path: Path) -> None:
    """Guards against leftovers of an earlier attempt inside a new directory."""
    with replacing_directory(tmp_path / "final") as leftover:
        pass
    leftover.mkdir()
    (leftover / "stale").write_text("old")
    with replacing_directory(tmp_path / "final") as partial:
        assert partial == leftover
        write_text(partial / "fresh", "new")
    assert [p.name for p in (tmp_path / "final").iterdir()] == ["fresh"]


def test_json_goes_through_unchanged_and_sorted(tmp_path: Path) -> None:
    """Guards against reports that differ in bytes though nothing changed."""
    data = {"b": [1, 0.5, None], "a": {"ß": "…"}}
    write_json(tmp_path / "x.json", data)
    assert read_json(tmp_path / "x.json") == data
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert text == json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_json_holds_finite_numbers_alone(tmp_path: Path, value: float) -> None:
    """Guards: NaN in a result, a word that JSON does not have and other readers refuse."""
    with pytest.raises(ValueError, match=r"x\.json cannot be written: .*not JSON compliant"):
        write_json(tmp_path / "x.json", {"a": [value]})
    assert not list(tmp_path.iterdir())


def test_a_damaged_json_file_is_named(tmp_path: Path) -> None:
    """Guards against an error that does not say which of a hundred files is broken."""
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match=r"x\.json is not valid JSON"):
        read_json(tmp_path / "x.json")


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    """Guards against a digest of text where line endings or encodings are changed."""
    content = b"a\r\nb\x00\xff" * 100_000
    (tmp_path / "x").write_bytes(content)
    assert sha256_file(tmp_path / "x") == hashlib.sha256(content).hexdigest()
