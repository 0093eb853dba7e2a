"""Fixtures of the data room's tests: fake distributions and stages run in a temporary folder."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
from data_samples import Chain, Run
from hypothesis import settings

from ropewalk.base.manifest import Manifest
from ropewalk.base.stage import run_stage

settings.register_profile("no-deadline", deadline=None)  # the machine may be busy
settings.load_profile("no-deadline")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder on sys.path to install fake distributions in."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    importlib.invalidate_caches()
    assert sys.path[0] == str(folder)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return a function that runs one data stage: `run("pack", spec, name, tokens=manifest)`."""

    def _run(stage: str, spec: Any, name: str, **inputs: Manifest) -> Manifest:
        module = f"ropewalk.data.{stage}"
        return run_stage(
            stage,
            module,
            importlib.import_module(module).work,
            spec=spec,
            inputs={k.replace("__", ":"): m.folder / "manifest.json" for k, m in inputs.items()},
            folder=tmp_path / name,
        )

    return _run


@pytest.fixture
def chain(run: Run, site: Path) -> Chain:
    """Return the first stages, done."""
    return Chain(run, site)
