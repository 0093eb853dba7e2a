from pathlib import Path

import pytest
import report_sample


@pytest.fixture(scope="session")
def sample(tmp_path_factory) -> Path:
    """The folder of a whole sample: `judged/`, `report/` and what they are made from."""
    root = tmp_path_factory.mktemp("sample")
    report_sample.build(root)
    return root
