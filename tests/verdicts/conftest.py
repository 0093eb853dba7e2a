import pytest
from bench import Bench


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Return a bench that all studies share: what was made once is not made again."""
    return Bench(tmp_path_factory.mktemp("bench"))
