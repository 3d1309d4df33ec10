"""How long a sweep's page of 200 rows takes to open in headless Chromium, until its table and until its charts can be used.

    python benchmarks/page.py
    python benchmarks/page.py --rows 500 --openings 5

Every row has a picture of its own. The browser starts before the first opening, which isn't counted.

Exit code 1 if the table of the median opening isn't ready in 2 s.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from measuring import ROOT, now, write_results

sys.path.insert(0, str(ROOT / "tests/display/sweep"))

from made_sweep import large_sweep

from fastdiff.display.sweep import write_sweep_pages

MOST_TABLE_S = 2.0
_MARKS = """
    const at = (name) => performance.getEntriesByName(name)[0]?.startTime / 1000;
    return document.documentElement.dataset.ready === "charts" ? [at("table"), at("charts")] : null;
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--openings", type=int, default=9)
    asked = parser.parse_args()
    started_at = now()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = large_sweep(asked.rows, folder)
        before = time.perf_counter()
        write_sweep_pages(folder, data)
        write_s = time.perf_counter() - before
        found = openings((folder / "index.html").as_uri(), asked.openings)
        size = (folder / "index.html").stat().st_size
    tables, charts = ([opening[index] for opening in found] for index in (0, 1))
    print(f"{len(data['rows'])} rows, {size / 1e6:.1f} MB, written in {write_s:.2f} s")
    print(
        f"table ready after {median(tables):.2f} s (at most {MOST_TABLE_S:g}), slowest {max(tables):.2f} s"
    )
    print(f"charts drawn after {median(charts):.2f} s, slowest {max(charts):.2f} s")
    results = {
        "rows": len(data["rows"]),
        "page_bytes": size,
        "write_s": write_s,
        "table_ready_s": tables,
        "charts_drawn_s": charts,
        "most_table_s": MOST_TABLE_S,
    }
    print(write_results("page", results, started_at).relative_to(ROOT))
    return int(median(tables) > MOST_TABLE_S)


def openings(address: str, count: int) -> list[tuple[float, float]]:
    """Seconds from the start of each opening to its table and to its last chart; one opening more comes first."""
    browser = start()
    try:
        found = [opening(browser, address) for _ in range(count + 1)]
    finally:
        browser.quit()
    return found[1:]


def start() -> Any:
    """A browser without a window."""
    from selenium import webdriver

    chromium, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if not chromium or not driver:
        sys.exit("chromium and chromedriver aren't installed (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--window-size=1280,900",
    ):
        options.add_argument(argument)
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))


def opening(browser: Any, address: str) -> tuple[float, float]:
    """Open the page, and read the marks that it sets."""
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get("about:blank")
    browser.get(address)
    table, charts = WebDriverWait(browser, 60, 0.2).until(lambda b: b.execute_script(_MARKS))
    return table, charts


if __name__ == "__main__":
    sys.exit(main())
