"""One home for all tests of training by flags."""

import pytest
from train_home import Home, make


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return make(tmp_path_factory.mktemp("home"))
