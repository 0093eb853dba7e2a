"""One home for all tests by flags, and one place of what they measure."""

import pytest
from evaluate_home import Place, make_place
from train_home import Home, make


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return make(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def place(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(home, tmp_path_factory.mktemp("place"))
