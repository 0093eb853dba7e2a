"""The inputs of the sample runs, made once, and a way to stop runs at a given step."""

from collections.abc import Callable
from pathlib import Path

import pytest
import resume_sample
import train_sample

from ropewalk.train.stop import StopRequest


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return train_sample.inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="session")
def undisturbed(made: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    child = train_sample.process(resume_sample.LONG, made, folder)
    output, _ = child.communicate()
    assert child.returncode == 0, output
    return folder


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Return a function that makes each attempt of this process stop after so many steps."""

    def choose(steps: int | None) -> None:
        def reason(self: StopRequest, needed_seconds: float = 0.0) -> str | None:
            asked = getattr(self, "asked", -1) + 1  # the first time is before the first step
            self.asked = asked
            return "by the test" if steps is not None and asked >= steps else None

        monkeypatch.setattr(StopRequest, "reason", reason)

    return choose
