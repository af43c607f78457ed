"""Test the page of a study in a real browser: it draws, filters, works with the keyboard, and fits phones and paper.

These tests are slow and need Chromium (Debian: `apt install chromium chromium-driver`): `pytest -m slow tests/report/test_browser.py`.
"""

from __future__ import annotations

import base64
import shutil
from pathlib import Path

import pytest

from fedrift.report.study_report import write_study_report

from .stored_study import make_study

DRIVER = shutil.which("chromedriver")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not (DRIVER and BROWSER), reason="needs chromium and chromedriver on the path")]
MARKS = (
    'return [...document.querySelectorAll(\'#figure-gap-main svg [aria-roledescription="line mark"], #figure-gap-main svg'
    " .mark-line path')].length"
)


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    manifest = make_study(folder / "runs", deep=True, more={"training.client_optimizer.lr": [0.5, 100.0]}, seeds=3)
    return write_study_report(manifest, folder / "out")[0].resolve()


@pytest.fixture(scope="module")
def driver(page):
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium (pip install selenium)")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_window_size(1280, 900)
    driver.set_script_timeout(120)
    driver.get(page.as_uri())
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(driver, 300).until(
        lambda driver: driver.execute_script(
            "return document.querySelectorAll('.chart').length === document.querySelectorAll('.chart[data-drawn]').length"
        )
    )
    yield driver
    driver.quit()


@pytest.fixture
def browser(driver):
    """The page in its initial state."""
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    driver.execute_script("form.reset(); scrollTo(0, 0); document.activeElement.blur()")
    driver.execute_async_script("setTimeout(arguments[0], 50)")
    wait_until_drawn(driver)
    return driver


def wait_until_drawn(driver) -> None:
    driver.execute_async_script(
        "const done = arguments[0]; Promise.all([...views.values()].map(view => view.runAsync())).then(() => done())"
    )


def test_every_figure_draws_without_console_messages(browser):
    empty = browser.execute_script(
        "return [...document.querySelectorAll('.chart')].filter(c => !c.querySelector('svg path')).map(c => c.id)"
    )
    assert not empty
    assert not [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def test_the_page_loads_no_other_resource(browser):
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0


def test_a_filter_acts_on_figures_and_tables_together(browser):
    before = browser.execute_script(MARKS)
    rows = "return [...document.querySelectorAll('tr[data-condition]')].filter(row => !row.hidden).length"
    every = browser.execute_script(rows)
    browser.find_element("css selector", "input[value=Scaffold]").click()
    wait_until_drawn(browser)
    assert browser.execute_script("return document.getElementById('shown').textContent") == "4 of 8 conditions"
    assert 0 < browser.execute_script(rows) < every
    assert 0 < browser.execute_script(MARKS) < before
    browser.find_element("css selector", "button[type=reset]").click()
    browser.implicitly_wait(0.2)
    browser.execute_async_script("setTimeout(arguments[0], 50)")
    wait_until_drawn(browser)
    assert browser.execute_script(MARKS) == before and browser.execute_script(rows) == every


def test_one_domain_can_be_selected(browser):
    shape = "return document.querySelector('#figure-loss-main .chart svg').textContent"  # the numbers on its axes
    before = browser.execute_script(shape)
    browser.execute_script(
        "const s = document.querySelector('#figure-loss-main select'); s.value = 'sport'; s.dispatchEvent(new Event('change',"
        " {bubbles: true}))"
    )
    wait_until_drawn(browser)
    assert browser.execute_script(shape) != before


def test_all_controls_can_be_reached_by_keyboard(browser):
    from selenium.webdriver.common.keys import Keys

    reached = set()
    for _ in range(60):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        reached.add(browser.execute_script("const e = document.activeElement; return e.tagName + (e.dataset.factor ? ':' + e.value : '')"))
    assert {"INPUT:FedAvg", "INPUT:Scaffold", "BUTTON", "A", "SELECT", "SUMMARY", "DIV"} <= reached
    box = browser.find_element("css selector", "input[value=FedAvg]")
    box.send_keys(Keys.SPACE)
    wait_until_drawn(browser)
    assert not box.is_selected() and browser.execute_script("return document.getElementById('shown').textContent") == "4 of 8 conditions"


def test_the_page_fits_a_phone(browser):
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": 375, "height": 700, "deviceScaleFactor": 1, "mobile": True})
    browser.execute_async_script("setTimeout(arguments[0], 300)")
    wait_until_drawn(browser)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 375
    wide = browser.execute_script(
        "return [...document.querySelectorAll('.chart svg')].filter(s => s.getBoundingClientRect().width > 375).length"
    )
    assert wide == 0
    captions = "return [...document.querySelectorAll('table.data caption')].filter(c => c.getBoundingClientRect().width > 375).length"
    assert browser.execute_script(captions) == 0  # a caption is read without scrolling, also above a wide table


def test_the_page_can_be_printed(browser):
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    pdf = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"])
    assert pdf.startswith(b"%PDF") and len(pdf) > 100_000
    assert browser.execute_script("return [...document.querySelectorAll('details')].every(each => each.open)")
