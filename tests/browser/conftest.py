"""A headless Chromium and a sample report; without Chromium the browser tests are deselected."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# The sample study lives with the report's tests; folders of tests are not packages.
sys.path.insert(0, str(Path(__file__).parents[1] / "report"))

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--disable-dev-shm-usage"
).split()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "browser: needs chromium and chromium-driver")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if CHROMIUM and DRIVER:
        return
    here = Path(__file__).parent
    dropped = [item for item in items if here in item.path.parents]
    if dropped:
        items[:] = [item for item in items if item not in dropped]
        config.hook.pytest_deselected(items=dropped)
        missing = "chromium" if not CHROMIUM else "chromedriver"
        config.issue_config_time_warning(
            pytest.PytestWarning(
                f"{len(dropped)} browser tests deselected: {missing} is not installed "
                "(Debian packages chromium and chromium-driver)"
            ),
            stacklevel=1,
        )


@pytest.fixture(scope="session")
def report(tmp_path_factory) -> Path:
    import report_sample

    return report_sample.build(tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="session")
def chromium(tmp_path_factory) -> Iterator:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()
