"""The review file for readers who use the keyboard or see little contrast."""

from __future__ import annotations

import pytest

from .conftest import _press

pytestmark = pytest.mark.slow

_CONTRAST = """
const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const light = (text) => {
  const [r, g, b] = text.match(/[0-9.]+/g).map((v) => linear(v / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (node) => {
  for (; node; node = node.parentElement) {
    const color = getComputedStyle(node).backgroundColor;
    if (!/, 0\\)$|transparent/.test(color)) return color;
  }
};
const off = document.querySelectorAll("button:disabled, button[aria-disabled=true], select:disabled");
return [...off].filter((node) => node.offsetParent).map((node) => {
  const style = getComputedStyle(node);
  const [high, low] = [light(style.color), light(behind(node))].sort((a, b) => b - a);
  return [node.id || node.textContent, Number(style.opacity), (high + 0.05) / (low + 0.05)];
});
"""
"""Name, opacity and contrast of what is disabled (WCAG 2.2: 4.5 is enough for text)."""
_STOPS = """
const stops = [...document.querySelectorAll("#cases button")].filter((button) => button.tabIndex === 0);
return stops.map((button) => button.dataset.case);
"""


def test_disabled_buttons_can_be_read_in_both_themes(browser, open_page):
    open_page()
    for theme in ("dark", "light"):
        browser.execute_script(f"document.documentElement.dataset.theme = '{theme}'")
        found = browser.execute_script(_CONTRAST)
        assert len(found) >= 3
        assert [one for one in found if one[1] < 1 or one[2] < 4.5] == []


def test_the_list_of_cases_is_one_tab_stop_and_the_focus_follows_the_arrows(browser, open_page):
    cases = open_page()
    assert browser.execute_script(_STOPS) == [cases[0].case]
    browser.execute_script("document.querySelector('#cases button[tabindex=\"0\"]').focus()")
    _press(browser, "\ue015", "\ue015")
    assert browser.execute_script(_STOPS) == [cases[2].case]
    assert browser.execute_script("return document.activeElement.dataset.case") == cases[2].case
