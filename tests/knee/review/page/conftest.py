"""A review file opened in a real browser, and what the tests of this folder do there."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import numpy as np
import pytest


def _wait(condition: Callable[[], object], *, seconds: float = 10.0) -> object:
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "the page did not get there in time"
        time.sleep(0.02)
    return value


def _press(browser, *keys: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    for key in keys:
        ActionChains(browser).send_keys(key).perform()


def _drawn(browser) -> str:
    return browser.execute_script("return document.getElementById('canvas').dataset.case || ''")


@pytest.fixture
def open_page(browser, tmp_path, run, make_case, write_page):
    """Writes and opens a review file, gives the reader's name, and waits for the first picture."""

    def open_(*, cases=None, reader: str = "R1", blind: bool = True, run=run) -> list:
        path = tmp_path / "review.html"
        cases = cases or [make_case(number) for number in range(12)]
        write_page(path, run, cases, force=True)
        browser.get_log("performance")
        browser.get_log("browser")
        browser.get(path.as_uri())
        browser.execute_script("localStorage.clear()")
        browser.get(path.as_uri())
        if not blind:
            browser.find_element("id", "blind").click()
        browser.find_element("id", "reader-name").send_keys(reader, "\ue007")
        _wait(lambda: _drawn(browser) == cases[0].case)
        return cases

    return open_


def _pixels(browser) -> np.ndarray:
    script = """const canvas = document.getElementById('canvas'), { width, height } = canvas;
        return [width, Array.from(canvas.getContext('2d').getImageData(0, 0, width, height).data)];"""
    side, values = browser.execute_script(script)
    return np.array(values, np.uint8).reshape(side, side, 4)[..., :3].astype(int)


def _settle(browser) -> None:
    browser.execute_async_script("const done = arguments[0]; setTimeout(() => requestAnimationFrame(done), 60)")


def _entries(browser) -> list[dict]:
    """What a file that is downloaded now says of each case."""
    for old in browser.downloads.glob("verdicts_*.json"):
        old.unlink()
    browser.find_element("id", "download").click()
    path = _wait(lambda: next(browser.downloads.glob("verdicts_*.json"), None))
    return json.loads(path.read_text())["verdicts"]


def _handed_in(browser) -> list[tuple[str, int | None, str | None]]:
    """Case, final grade and verdict of each entry of a file that is downloaded now."""
    return [(entry["case"], entry["final_grade"], entry["verdict"]) for entry in _entries(browser)]
