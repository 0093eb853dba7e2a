"""One thread and one seed per test, and which tests stay together when processes share them."""

import os

import pytest

# Read when torch is first imported. Sums are the same wherever, and processes do not take turns.
os.environ["OMP_NUM_THREADS"] = "1"

import torch


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a file's tests together, and all those that share the finished project."""
    for item in items:
        shared = "finished" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("finished" if shared else str(item.path)))


@pytest.hookimpl(tryfirst=True)  # before fixtures
def pytest_runtest_setup() -> None:
    """Draw the same weights in every run, whichever tests ran before."""
    torch.manual_seed(0)
