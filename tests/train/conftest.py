"""The inputs of the sample runs, made once, and a way to stop runs at a given step."""

from collections.abc import Callable
from pathlib import Path

import pytest
import train_sample

from ropewalk.train.stop import StopRequest


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return train_sample.inputs(tmp_path_factory.mktemp("inputs"))


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
