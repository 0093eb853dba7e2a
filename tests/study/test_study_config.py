"""The one file a user edits: what is refused, and with which words."""

from pathlib import Path

import pytest
from study_samples import write

from ropewalk.base.spec import SpecError
from ropewalk.cli import main
from ropewalk.study.config import check_file, read_config, read_config_file
from ropewalk.study.project import load_plan


@pytest.fixture
def config(tmp_path: Path) -> Path:
    write(tmp_path)
    return tmp_path / "config.yaml"


def test_a_repeated_key_is_refused_with_its_line(config: Path) -> None:
    """Guards against the last of two scales that wins without a word."""
    config.write_text("scale: paper\nlocations:\n  pile: /a\nscale: mini\n")
    for read in (read_config_file, check_file, lambda path: load_plan(path, {})):
        with pytest.raises(SpecError, match=r"config\.yaml:4: key 'scale' appears twice"):
            read(config)
    config.write_text("scale: paper\nlocations:\n  pile: /a\n  pile: /b\n")
    with pytest.raises(SpecError, match=r"config\.yaml:4: key 'pile' appears twice"):
        check_file(config)


def test_the_file_is_read_as_it_is(config: Path) -> None:
    """Guards against values that the stricter reader changes."""
    config.write_text("scale: paper\nlocations: { pile: /a, pg19: null }\nstudies: [demo]\n")
    assert read_config_file(config) == {
        "scale": "paper",
        "locations": {"pile": "/a", "pg19": None},
        "studies": ["demo"],
    }
    check_file(config)
    assert load_plan(config, {}).config.studies == ("demo",)


def test_a_missing_file_says_where_to_run(config: Path) -> None:
    """Guards against a traceback outside the project's folder; Snakemake may do without a file."""
    with pytest.raises(SpecError, match=r"config\.yaml: no such file; run from the project"):
        read_config_file(config)
    check_file(config)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": "a/b"}, "config.yaml: name: 'a/b' must not contain a slash"),
        ({"name": "data"}, "config.yaml: name: 'data' is taken by the shared data folder; choose"),
        ({"scale": "big"}, "config.yaml: scale: 'big' is not allowed"),
        ({"nmae": "x"}, "config.yaml: nmae: unknown key; did you mean 'name'?"),
    ],
)
def test_a_message_names_the_key(data: dict[str, str], message: str) -> None:
    """Guards against `config.yaml: : ...`."""
    with pytest.raises(SpecError) as caught:
        read_config(data)
    assert str(caught.value).startswith(message)


def test_the_command_ends_with_the_message(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against a traceback for a repeated key."""
    config.write_text("scale: paper\nscale: mini\n")
    assert main(["show", "demo", "--config", str(config)]) == 2
    assert "config.yaml:2: key 'scale' appears twice" in capsys.readouterr().err
