"""One thread per test process, and which tests stay together when several processes share them."""

import os

import pytest

# Read when torch is first imported. Sums are the same wherever, and processes do not take turns.
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a file's tests together, and all those that share the finished project."""
    for item in items:
        shared = "finished" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("finished" if shared else str(item.path)))
