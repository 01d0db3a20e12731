"""The slices of a volume in a real browser: one case, with a slider."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from .conftest import _drawn, _handed_in, _press, _settle, _wait

pytestmark = pytest.mark.slow


def _slice_shown(browser) -> str:
    return browser.find_element("id", "slice-value").text


@pytest.mark.parametrize("severest", [False, True])
def test_a_volume_is_one_case_with_a_slider(browser, open_page, make_case, run, severest):
    shares = [[0.8, 0.1, 0.1, 0, 0], [0.1, 0.1, 0.1, 0.1, 0.6], [0.8, 0.1, 0.1, 0, 0], [0.7, 0.1, 0.2, 0, 0]]
    slices = [
        replace(case, stack="s1", place=9 - number, teacher=replace(case.teacher, probabilities=np.array(p)))
        for number, p in enumerate(shares)
        for case in [make_case(number)]
    ]
    cases = [*slices, make_case(7), make_case(8)]
    open_page(cases=cases, run=replace(run, severest=severest))
    assert browser.find_element("id", "progress-text").text == "0 of 3 reviewed"
    _wait(lambda: _slice_shown(browser) == "3 of 4")  # the middle of the stack, which the places put in reverse
    seen = {browser.execute_script("return document.getElementById('canvas').dataset.picture")}
    _press(browser, "3")
    _settle(browser)
    for shown in ("4 of 4", "4 of 4"):
        _press(browser, ".")
        _wait(lambda shown=shown: _slice_shown(browser) == shown)
    slider = browser.find_element("id", "slice")
    for value in (1, 2):
        script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
        browser.execute_script(script, slider, value)
        _settle(browser)
        seen.add(browser.execute_script("return document.getElementById('canvas').dataset.picture"))
        assert _drawn(browser) == slices[0].case
    assert seen == {slices[number].case for number in (1, 2, 3)}
    of_knee = browser.find_element("id", "measures").text
    grade = 4 if severest else 0
    assert f"Whole knee, teacher\n{grade} " in of_knee
    _press(browser, "a", "j")
    _wait(lambda: _drawn(browser) == cases[4].case)
    assert not slider.is_displayed()
    _press(browser, "k")
    assert browser.find_element("id", "progress-text").text == "1 of 3 reviewed"
    assert _handed_in(browser) == [(slices[0].case, 3, "agree")]
