"""A stage reruns for its own code: everything it can reach, and nothing else."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from ropewalk.base import closure as module
from ropewalk.base.closure import closure
from ropewalk.evaluate.spec import _CHECKS, _MODULES
from ropewalk.study.registry import STAGES, Stage

FILES = {
    "__init__.py": "",
    "a/__init__.py": '"""Room a."""\n',
    "a/entry.py": (
        '"""Entry."""\n\nfrom ropewalk.a.used import f\n\n\n'
        'def work(job):\n    """Do it."""\n    import ropewalk.b.lazy\n\n    return f(job)\n'
    ),
    "a/used.py": "def f(x):\n    return x + 1\n",
    "a/unrelated.py": "from ropewalk.a.entry import work\n",
    "b/__init__.py": "",
    "b/lazy.py": (
        'import numpy\n\nDATA_FILES: tuple[str, ...] = ("t/page.html",)\nfrom . import near\n'
    ),
    "b/near.py": "X = 1\n",
    "b/t/page.html": "<html>",
    "b/t/other.html": "<html>",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a small package in the place of this one."""
    root = tmp_path / "ropewalk"
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    monkeypatch.setattr(module, "PACKAGE_ROOT", root)
    yield root
    module._read.cache_clear()


def test_the_code_of_a_choice_is_that_of_both_modules(package: Path) -> None:
    """Guards against an edit of the chosen module that reruns nothing."""
    both = closure("ropewalk.a.entry", "ropewalk.a.unrelated")
    assert set(both) == {*closure("ropewalk.a.entry"), "ropewalk/a/unrelated.py"}
    with pytest.raises(ModuleNotFoundError, match=r"ropewalk\.a\.missing"):
        closure("ropewalk.a.entry", "ropewalk.a.missing")


def edited(package: Path, name: str, text: str) -> set[str]:
    """Return the files whose digests an edit of one file changes."""
    before = closure("ropewalk.a.entry")
    (package / name).write_text(text)
    module._read.cache_clear()  # two edits may fall into one tick of the file's clock
    after = closure("ropewalk.a.entry")
    assert set(before) == set(after)
    return {file for file in before if before[file] != after[file]}


def test_the_closure_is_what_can_be_reached(package: Path) -> None:
    """Guards against code that changes without a rerun: lazy imports, packages, data files."""
    assert set(closure("ropewalk.a.entry")) == {
        "ropewalk/__init__.py",
        "ropewalk/a/__init__.py",
        "ropewalk/a/entry.py",
        "ropewalk/a/used.py",
        "ropewalk/b/__init__.py",
        "ropewalk/b/lazy.py",
        "ropewalk/b/near.py",
        "ropewalk/b/t/page.html",
    }


def test_comments_docstrings_and_formatting_change_nothing(package: Path) -> None:
    """Guards against a month of training redone for a comment."""
    assert not edited(package, "a/used.py", "# a comment\n\ndef f( x ):\n\n    return (x+1)\n")
    assert not edited(package, "a/used.py", 'def f(x):\n    """Add."""\n    return x + 1\n')
    assert not edited(package, "a/__init__.py", '"""Another room."""\n')


def test_a_change_of_code_changes_the_digest_of_its_file_alone(package: Path) -> None:
    """Guards against an edit that reruns nothing, and against one that names the wrong file."""
    assert edited(package, "a/used.py", "def f(x):\n    return x + 2\n") == {"ropewalk/a/used.py"}
    assert edited(package, "b/near.py", "X = 2\n") == {"ropewalk/b/near.py"}
    assert edited(package, "b/t/page.html", "<html/>") == {"ropewalk/b/t/page.html"}
    text = 'def f(x):\n    y = "text"\n    return x + 2\n'
    assert edited(package, "a/used.py", text) == {"ropewalk/a/used.py"}
    assert edited(package, "a/used.py", text.replace("text", "texts")) == {"ropewalk/a/used.py"}


def test_unrelated_files_change_nothing(package: Path) -> None:
    """Guards against a rerun of everything for an edit anywhere."""
    assert not edited(package, "a/unrelated.py", "X = 3\n")
    assert not edited(package, "b/t/other.html", "<html/>")


def test_an_unknown_entry_is_an_error(package: Path) -> None:
    """Guards against an empty closure, which would never change."""
    with pytest.raises(ModuleNotFoundError, match=r"ropewalk\.a\.missing"):
        closure("ropewalk.a.missing")


def modules(stage: Stage) -> list[str]:
    """Return the entry of a stage with all modules that some spec of it could choose."""
    chosen = {"evaluate": _MODULES.values(), "check": _CHECKS.values()}.get(stage.name, ())
    assert (stage.chosen is not None) == bool(chosen), stage.name
    return [stage.entry, *(f"ropewalk.evaluate.{name}" for name in chosen)]


def test_every_stage_has_the_rooms_it_needs_and_no_other() -> None:
    """Guards against rooms that lean to the right: a report's edit must not rerun a training."""
    order = ["base", "data", "model", "train", "evaluate", "report"]
    for stage in STAGES.values():
        own = order.index(stage.entry.split(".")[1])
        rooms = {file.split("/")[1] for file in closure(*modules(stage))} - {"__init__.py"}
        assert rooms <= set(order[: own + 1]), stage.name


def test_no_stage_imports_by_name_at_run_time() -> None:
    """Guards against imports that the closure cannot see."""
    files = {file for stage in STAGES.values() for file in closure(*modules(stage))}
    for file in files:
        if not file.endswith(".py"):
            continue
        tree = ast.parse((module.PACKAGE_ROOT.parent / file).read_text(encoding="utf-8"))
        names = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
        names |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
        assert not names & {"import_module", "__import__"}, file
