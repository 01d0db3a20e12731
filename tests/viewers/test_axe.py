"""The review page under axe-core: no violation in any state."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.knee.review.page.conftest import _press, _settle
from tests.viewers.conftest import part

pytestmark = pytest.mark.viewers

_RUN = """const done = arguments[0];
axe.run(document).then((found) => done(found.violations.map(
    (one) => `${one.id}: ${one.nodes.map((node) => node.target.join(" ")).slice(0, 5).join(", ")}`)));
"""


def _violations(browser: Any) -> list[str]:
    _settle(browser)
    if not browser.execute_script("return 'axe' in window"):
        browser.execute_script((part("axe-core") / "axe.min.js").read_text(encoding="utf-8"))
    found: list[str] = browser.execute_async_script(_RUN)
    return found


@pytest.fixture
def cases(make_case) -> list[Any]:
    """A volume of two slices, an image unlike the training images, and plain ones."""
    slices = [make_case(n, stack="s1", place=n, patient="p1") for n in range(2)]
    return [*slices, replace(make_case(2), unlike="another modality", familiarity=0.01), *map(make_case, range(3, 8))]


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_no_state_of_the_review_page_has_a_violation(browser, open_page, cases, screenshots, theme):
    browser.set_window_size(1440, 900)
    open_page(cases=cases)
    browser.execute_script(f"document.documentElement.dataset.theme = '{theme}'")
    found = {}

    def look(state: str) -> None:
        found[state] = _violations(browser)
        browser.save_screenshot(str(screenshots / f"page_{theme}_{state.replace(' ', '_')}.png"))

    look("blind")
    _press(browser, "2")
    look("graded")
    _press(browser, "a")
    look("agreed")
    for key, state in (
        ("t", "teacher"),
        ("d", "difference"),
        ("i", "inverted"),
        ("w", "window and level"),
        (" ", "bare"),
    ):
        _press(browser, key)
        look(state)
    _press(browser, "l")
    look("large")
    _press(browser, "l", "j")
    look("an unlike image")
    _press(browser, "g", "?")
    look("keyboard help")
    _press(browser, "\ue00c")
    browser.find_element("id", "reader").click()
    look("start dialog")
    _press(browser, "\ue00c")
    browser.execute_script(
        "const order = document.getElementById('status'); order.value = 'disagree'; order.dispatchEvent(new Event('change'))"
    )
    look("empty list")
    browser.set_window_size(600, 900)
    look("narrow")
    browser.find_element("id", "show-list").click()
    look("narrow with list")
    browser.set_window_size(1440, 900)
    assert {state: some for state, some in found.items() if some} == {}
