"""The page in Chromium: what a reader does with it, by mouse and by keyboard."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from made_sweep import NASTY, compared, every_status, made_row, made_sweep, measured

from fastdiff.display.sweep import write_sweep_pages
from fastdiff.latency import speedup

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


By = pytest.importorskip("selenium.webdriver.common.by").By
Keys = pytest.importorskip("selenium.webdriver.common.keys").Keys


_FITS = """
    const whole = document.documentElement;
    return whole.scrollWidth <= whole.clientWidth && whole.clientWidth > innerWidth - 20
"""


def shown(page: Any) -> list[str]:
    """Cells of the rows that can be seen, in their order."""
    rows = page.find_elements(By.CSS_SELECTOR, "tbody tr[data-cell]")
    return [row.get_attribute("data-cell") for row in rows if row.is_displayed()]


def heading(page: Any, name: str) -> Any:
    return page.find_element(By.CSS_SELECTOR, f'thead button[data-name="{name}"]')


def choose(page: Any, selector: str, text: str) -> None:
    from selenium.webdriver.support.ui import Select

    Select(page.find_element(By.CSS_SELECTOR, selector)).select_by_visible_text(text)


def row(page: Any, cell: str) -> Any:
    return page.find_element(By.ID, f"row-{cell}")


def settled(page: Any, condition: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(page, 30).until(lambda b: b.execute_script(f"return {condition}"))


def pasted(page: Any) -> str:
    """What the clipboard holds, as pasting it shows it."""
    page.execute_script(
        "const area = document.createElement('textarea'); area.id = 'paste';"
        "document.querySelector('main').prepend(area); area.focus()"
    )
    area = page.find_element(By.ID, "paste")
    area.send_keys(Keys.CONTROL, "v")
    text = str(area.get_property("value"))
    page.execute_script("arguments[0].remove()", area)
    return text


def test_a_heading_sorts_by_numbers_and_what_has_none_comes_last(opened: Any) -> None:
    page = opened()
    heading(page, "latency").click()
    order = shown(page)
    assert order[:3] == ["quick", "large", "nan"]
    assert order[6:8] == ["again", "slow"]
    assert set(order[8:]) == {cell for cell in order if not speed_of(page, cell)}
    cell = heading(page, "latency").find_element(By.XPATH, "..")
    assert cell.get_attribute("aria-sort") == "ascending"
    heading(page, "latency").click()
    assert shown(page)[:2] == ["slow", "base"]
    assert cell.get_attribute("aria-sort") == "descending"
    assert len(page.find_elements(By.CSS_SELECTOR, "[aria-sort]")) == 1


def speed_of(page: Any, cell: str) -> list[Any]:
    found: list[Any] = row(page, cell).find_elements(By.CSS_SELECTOR, "[data-speedup-of]")
    return found


def test_every_column_sorts(opened: Any) -> None:
    page = opened()
    buttons = page.find_elements(By.CSS_SELECTOR, "thead button")
    assert len(buttons) == 1 + 4 + 1 + 5
    for button in buttons:
        button.click()
        assert button.find_element(By.XPATH, "..").get_attribute("aria-sort")
        assert len(shown(page)) == 17
    heading(page, "quality").click()
    assert shown(page)[0] in ("base", "again"), "identical pictures are the closest"


def test_filters_narrow_the_table_together(opened: Any) -> None:
    page = opened()
    choose(page, "#status", "incompatible")
    assert len(shown(page)) == 3
    choose(page, '[data-key="0"]', "bf16")
    assert len(shown(page)) == 2
    page.find_element(By.ID, "search").send_keys("SDPA_math qkv")
    assert [cell.split("-")[0] for cell in shown(page)] == ["bf16"]
    assert page.find_element(By.ID, "shown").text == "1 of 17 rows"
    page.find_element(By.CSS_SELECTOR, "button[type=reset]").click()
    assert len(shown(page)) == 17


def test_the_reason_of_a_row_without_figures_stands_in_their_place(opened: Any) -> None:
    page = opened()
    reason = page.find_elements(By.CSS_SELECTOR, "td.reason")[0].text
    assert reason == (
        "quant=fp8 needs an NVIDIA GPU of compute capability 8.9 or newer; device=cpu; instead: quant=int8"
    )


def test_text_from_a_run_stays_text(opened: Any) -> None:
    page = opened()
    assert page.title == "grid – fastdiff sweep"
    row(page, "broken").find_element(By.CSS_SELECTOR, ".open").click()
    details = page.find_element(By.CSS_SELECTOR, '[data-details-of="broken"]')
    assert details.find_element(By.CSS_SELECTOR, "pre").text.endswith(f"RuntimeError: {NASTY}")
    assert "cells/broken/log.txt" in details.text
    assert page.find_elements(By.CSS_SELECTOR, "img[src=x]") == []


def test_the_keyboard_alone_opens_a_row_and_copies_its_command(opened: Any) -> None:
    page = opened()
    row(page, "sdpa").find_element(By.CSS_SELECTOR, ".open").send_keys(Keys.ENTER)
    assert page.switch_to.active_element.get_attribute("aria-expanded") == "true"
    details = page.find_element(By.CSS_SELECTOR, '[data-details-of="sdpa"]')
    assert "PSNR 61.3 dB" in details.text
    button = details.find_element(By.CSS_SELECTOR, "[aria-label='Copy: Command that repeats it']")
    button.send_keys(Keys.ENTER)
    settled(page, "document.getElementById('announce').textContent === 'copied'")
    assert button.text == "Copied"
    assert pasted(page) == (
        "python -m fastdiff precision=fp32 attention=sdpa quant=none compile=none"
    )


def test_a_recipe_is_copied_where_the_clipboard_is_refused(opened: Any) -> None:
    page = opened()
    page.execute_script(
        "navigator.clipboard.writeText = () => Promise.reject(new Error('refused'))"
    )
    row(page, "sdpa").find_element(By.CSS_SELECTOR, ".open").click()
    page.find_element(By.CSS_SELECTOR, "[aria-label='Copy: Recipe']").click()
    settled(page, "document.getElementById('announce').textContent === 'copied'")
    assert pasted(page) == f"fastdiff: 1\ngeneration:\n  prompt: '{NASTY}'\n"


def test_pictures_open_beside_their_reference_and_arrows_go_on(opened: Any) -> None:
    page = opened()
    row(page, "quick").find_element(By.CSS_SELECTOR, ".thumb").send_keys(Keys.ENTER)
    dialog = page.find_element(By.ID, "pictures")
    title = page.find_element(By.ID, "pictures-title")
    assert dialog.is_displayed()
    assert title.text == "3 bf16, sdpa, int8, regional"
    assert [each.text for each in dialog.find_elements(By.CSS_SELECTOR, "figcaption")] == [
        "this row",
        "reference",
        "difference, brightened",
    ]
    settled(page, "[...document.querySelectorAll('#pairs img')].every(i => i.naturalWidth === 64)")
    dialog.send_keys(Keys.ARROW_RIGHT)
    assert title.text == "4 bf16, sdpa, regional"
    told = dialog.find_elements(By.CSS_SELECTOR, "figcaption")
    assert told[0].text == "this row; 640 × 640, shown smaller: cells/large/image-0.png"
    assert "pictures of different sizes" in dialog.text
    for _ in range(5):
        dialog.send_keys(Keys.ARROW_LEFT)
    assert title.text == "1 fp32, math"
    assert "no difference: the files are the same" in dialog.text
    dialog.send_keys(Keys.ESCAPE)
    assert not dialog.is_displayed()
    assert page.switch_to.active_element.get_attribute("data-pictures") == "base"


def test_the_slider_brightens_the_difference(opened: Any) -> None:
    page = opened()
    row(page, "quick").find_element(By.CSS_SELECTOR, ".thumb").click()
    slider = page.find_element(By.ID, "gain")
    slider.send_keys(Keys.ARROW_RIGHT)
    assert page.find_element(By.ID, "gain-told").text == "16"
    frame = page.find_element(By.CSS_SELECTOR, ".difference")
    assert frame.value_of_css_property("filter") == "brightness(16)"
    assert page.find_element(By.ID, "pictures-title").text.startswith("3"), (
        "the slider keeps its arrows"
    )


def test_another_baseline_changes_table_and_chart(opened: Any) -> None:
    page = opened()
    choose(page, "#baseline", "3 bf16, sdpa, int8, regional")
    assert (
        row(page, "quick").find_element(By.CSS_SELECTOR, "[data-speedup-of]").text
        == "1.00×\nbaseline"
    )
    assert (
        row(page, "base")
        .find_element(By.CSS_SELECTOR, "[data-speedup-of]")
        .text.startswith("0.34×")
    )
    assert page.find_element(By.ID, "over").text == "3, bf16, sdpa, int8, regional"
    settled(page, "document.getElementById('chart-speedup').data[0].x[0] === 1")
    drawn = page.execute_script("return document.getElementById('chart-speedup').data[0].x")
    assert drawn == pytest.approx(
        [1, 0.21 / 0.26, 0.21 / 0.33, 0.21 / 0.47, 0.21 / 0.62, 0.21 / 0.71]
    )
    page.find_element(By.CSS_SELECTOR, "button[type=reset]").click()
    assert page.find_element(By.ID, "over").text.startswith("3"), "the baseline is no filter"


def test_the_page_computes_speed_ups_as_python_does(opened: Any) -> None:
    page = opened()
    rows = [
        made_row(1, {"a": "1"}, **measured(0.62)),
        made_row(2, {"a": "2"}, **measured(0.21)),
        made_row(3, {"a": "3"}, **{**measured(0.33), "latency_s": {"samples": [0.33], "median": 0.33, "ci95": None}}),
        made_row(4, {"a": "4"}),
        made_row(5, {"a": "5"}, same_as="1-000001", **measured(0.62)),
    ]  # fmt: skip
    for one in rows:
        for base in rows:
            found = page.execute_script("return speedup(arguments[0], arguments[1])", one, base)
            wanted = speedup(one, base)
            if wanted is None:
                assert found is None
                continue
            assert found["ratio"] == pytest.approx(wanted["ratio"], rel=1e-12)
            assert (found["ci95"] is None) == (wanted["ci95"] is None)
            if wanted["ci95"]:
                assert found["ci95"] == pytest.approx(wanted["ci95"], rel=1e-12)


def test_a_point_of_a_chart_opens_its_row(opened: Any) -> None:
    page = opened()
    page.execute_script(
        "document.getElementById('chart-quality').emit('plotly_click', {points: [{customdata: 'slow'}]})"
    )
    assert (
        row(page, "slow").find_element(By.CSS_SELECTOR, ".open").get_attribute("aria-expanded")
        == "true"
    )
    assert page.find_element(By.CSS_SELECTOR, '[data-details-of="slow"]').is_displayed()


def test_charts_have_the_colours_of_light_and_dark(opened: Any) -> None:
    colours = {}
    for scheme in ("light", "dark"):
        page = opened(scheme=scheme)
        colours[scheme] = (
            page.find_element(By.TAG_NAME, "body").value_of_css_property("background-color"),
            page.execute_script("return document.getElementById('chart-memory').layout.font.color"),
        )
    assert colours == {
        "light": ("rgba(252, 252, 251, 1)", "#1c1d1f"),
        "dark": ("rgba(20, 22, 25, 1)", "#e6e8ea"),
    }


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_never_scrolls_sideways(opened: Any, width: int) -> None:
    page = opened(width=width)
    for cell in ("sdpa", "broken", "again"):
        row(page, cell).find_element(By.CSS_SELECTOR, ".open").click()
    assert page.execute_script(_FITS)
    page.execute_script("showPictures('quick')")
    assert page.execute_script(_FITS)


def test_nothing_is_loaded_but_the_page(opened: Any, folder: Path) -> None:
    page = opened()
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    asked = {
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    }
    assert {url for url in asked if not url.startswith(("data:", "blob:"))} == {
        (folder / "index.html").as_uri()
    }


def test_everything_that_can_be_used_is_reached_by_tab(opened: Any) -> None:
    page = opened()
    reached = set()
    for _ in range(70):
        page.switch_to.active_element.send_keys(Keys.TAB)
        reached.add(page.execute_script("return document.activeElement.id || document.activeElement.className || document.activeElement.dataset.name"))  # fmt: skip
    assert {"search", "status", "baseline", "box", "quality", "open", "thumb", "copy"} <= reached


def test_a_sweep_that_has_only_begun_says_so(opened: Any, tmp_path: Path) -> None:
    rows = [made_row(1, {"precision": "fp32"}), made_row(2, {"precision": "bf16"})]
    data = made_sweep(rows, state="running", environment=None, finished_at=None)
    write_sweep_pages(tmp_path, data)
    page = opened(path=tmp_path)
    text = page.find_element(By.TAG_NAME, "main").text
    assert "This was written while the sweep was running: 0 of 2 cells have ended." in text
    assert "No row was measured." in text
    assert "No row's pictures were compared with a reference." in text
    assert page.find_elements(By.ID, "baseline") == []


def test_more_bars_are_shown_when_they_are_asked_for(opened: Any, tmp_path: Path) -> None:
    rows = [
        made_row(n, {"steps": str(n)}, **measured(n / 10, quality=compared(40.0)))
        for n in range(1, 31)
    ]
    write_sweep_pages(tmp_path, made_sweep(rows))
    page = opened(path=tmp_path)
    drawn = "return document.getElementById('chart-speedup').data[0].x.length"
    assert page.execute_script(drawn) == 16
    button = page.find_element(By.CSS_SELECTOR, "[data-more=speedup]")
    assert button.text == "Show all 30"
    button.send_keys(Keys.ENTER)
    settled(page, "document.getElementById('chart-speedup').data[0].x.length === 30")
    assert button.text == "Show the first 16"


def test_a_lost_picture_leaves_the_page_whole(opened: Any, tmp_path: Path) -> None:
    data = every_status(tmp_path)
    (tmp_path / "cells/far/image-0.png").unlink()
    write_sweep_pages(tmp_path, data)
    page = opened(path=tmp_path)
    row(page, "quick").find_element(By.CSS_SELECTOR, ".thumb").click()
    assert (
        "cells/far/image-0.png: can't be read (No such file or directory)"
        in page.find_element(By.ID, "pictures").text
    )
