"""A page in a real browser without a window."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from made_sweep import every_status

from fastdiff.pages.sweep import write_sweep_pages

Open = Callable[..., Any]
_READY = "return document.documentElement.dataset.ready === 'charts'"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep's folder with every status in it, and its pages."""
    path = tmp_path_factory.mktemp("sweep")
    write_sweep_pages(path, every_status(path))
    return path


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium; what asks for it is skipped where there is none."""
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if not all(programs):
        pytest.skip(
            "chromium and chromedriver aren't installed (Debian: chromium, chromium-driver)"
        )
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium isn't installed")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(programs[1]))
    driver.set_page_load_timeout(120)
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser: Any, folder: Path) -> Iterator[Open]:
    """`opened(width=390, scheme="dark")`: the page with its charts; afterwards the console must be empty."""
    from selenium.webdriver.support.ui import WebDriverWait

    def go(width: int = 1280, scheme: str = "light", path: Path = folder) -> Any:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        browser.get((path / "index.html").as_uri())
        WebDriverWait(browser, 120).until(lambda b: b.execute_script(_READY))
        return browser

    browser.get_log("performance")
    browser.get_log("browser")
    yield go
    assert [entry["message"] for entry in browser.get_log("browser")] == []
