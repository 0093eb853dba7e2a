"""The inputs of the sample runs, made once."""

from pathlib import Path

import pytest
import train_sample


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return train_sample.inputs(tmp_path_factory.mktemp("inputs"))
