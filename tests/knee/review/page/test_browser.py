"""The review file in a real browser, opened from disk."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from knee.review.verdicts import import_verdicts
from knee.review.verdicts_file import Expected, Verdict, verdicts_document

from .conftest import _drawn, _entries, _handed_in, _pixels, _press, _settle, _wait

pytestmark = pytest.mark.slow


def test_nothing_is_shown_of_the_model_before_the_reader_has_graded(browser, open_page):
    open_page()
    before = _pixels(browser)
    assert np.ptp(before, axis=2).max() == 0, "colour on a picture that is read blind"
    assert np.ptp(before) > 60, "no picture"
    assert not browser.find_element("id", "model-open").is_displayed()
    _press(browser, "a")
    assert "Grade first" in browser.find_element("id", "notice").text
    _press(browser, "3")
    _settle(browser)
    assert browser.find_element("id", "model-open").is_displayed()
    assert np.ptp(_pixels(browser), axis=2).max() > 60
    _press(browser, " ")
    _settle(browser)
    assert np.array_equal(_pixels(browser), before), "space hides the whole overlay"


def test_a_reading_by_keyboard_becomes_a_file(browser, open_page, run, tmp_path):
    cases = open_page(reader="R 2/ä")
    _press(browser, "2", "a", "\ue007")  # graded 2, agrees, Enter: the next to do
    _wait(lambda: _drawn(browser) == cases[1].case)
    _press(browser, "1", "4", "x", "m")
    _press(browser, *"a space", "\ue00c", "j")
    _press(browser, "g", "j", "u")
    assert browser.find_element("id", "progress-text").text == "4 of 12 reviewed"
    browser.execute_script("document.getElementById('download').focus()")
    _press(browser, "\ue007")
    path = _wait(lambda: next(browser.downloads.glob("verdicts_phantom_10pct_3f9ac2d1_R-2-*.json"), None))
    document = json.loads(path.read_text())
    assert document["schema"] == "knee-review-verdicts/1"
    assert (document["run"], document["model_hash"]) == ("phantom_10pct", "3f9ac2d17be04410")
    assert (document["grade_set"], document["grades"], document["reviewer"]) == ("kl", 5, "R 2/ä")
    said = [{key: entry[key] for key in entry if key != "time"} for entry in document["verdicts"]]
    names = ("case", "blind_grade", "final_grade", "verdict", "comment")
    assert said == [
        dict(zip(names, values, strict=True))
        for values in [
            (cases[0].case, 2, 2, "agree", ""),
            (cases[1].case, 1, 4, "disagree", "a space"),
            (cases[2].case, None, None, "bad_image", ""),
            (cases[3].case, None, None, "unsure", ""),
        ]
    ]
    assert all(entry["time"].endswith("Z") for entry in document["verdicts"])
    expected = Expected(run.run, run.model_hash, 5, {case.case for case in cases})
    assert import_verdicts([path], tmp_path / "verdicts.csv", expected=expected).added == 4


def test_agreement_without_a_grade_is_not_a_verdict(browser, open_page):
    cases = open_page(blind=False)
    _press(browser, "a")
    assert "Grade first" in browser.find_element("id", "notice").text
    assert browser.find_element("id", "progress-text").text == "0 of 12 reviewed"
    _press(browser, "2", "a")
    assert _handed_in(browser) == [(cases[0].case, 2, "agree")]


def test_a_withdrawn_verdict_is_handed_in_again_so_that_it_ends(browser, open_page):
    cases = open_page(blind=False)
    _press(browser, "g")
    assert _handed_in(browser) == [(cases[0].case, None, "bad_image")]
    _press(browser, "g")
    assert browser.find_element("id", "progress-text").text == "0 of 12 reviewed"
    assert _handed_in(browser) == [(cases[0].case, None, None)]


def _hold(browser, key: str, *, repeats: int = 3) -> None:
    """Press a key and keep it down."""
    script = """const [key, repeats] = arguments;
        for (let at = 0; at <= repeats; at++) {
          const event = new KeyboardEvent('keydown', { key, repeat: at > 0, bubbles: true, cancelable: true });
          document.body.dispatchEvent(event);
        }"""
    browser.execute_script(script, key, repeats)


def test_a_held_key_gives_a_verdict_once_and_moves_on(browser, open_page):
    cases = open_page(blind=False)
    _press(browser, "2")
    for key, verdict in (("a", "agree"), ("x", "disagree"), ("u", "unsure"), ("g", "bad_image")):
        for repeats in (3, 4):
            _hold(browser, key, repeats=repeats)
            assert browser.find_element("css selector", f'#verdicts [data-verdict="{verdict}"]').get_attribute(
                "aria-pressed"
            ) == ("true" if repeats == 3 else "false")
    overlay = browser.find_element("id", "toggle-overlay")
    before = overlay.get_attribute("aria-pressed")
    _hold(browser, " ", repeats=3)
    assert overlay.get_attribute("aria-pressed") != before
    _hold(browser, "j", repeats=3)
    _wait(lambda: _drawn(browser) == cases[4].case)
    _hold(browser, "ArrowLeft", repeats=1)
    _wait(lambda: _drawn(browser) == cases[2].case)


def test_work_is_kept_when_the_page_is_opened_again(browser, open_page):
    cases = open_page()
    _press(browser, "2", "a", "j", "3")
    browser.refresh()
    _wait(lambda: _drawn(browser) == cases[1].case)
    assert browser.find_element("id", "progress-text").text == "1 of 12 reviewed"
    pressed = browser.find_element("css selector", '#grades [aria-pressed="true"]')
    assert pressed.get_attribute("data-grade") == "3"


_KEEPS_NOTHING = "Object.defineProperty(Storage.prototype, 'setItem', { value() { throw new Error('full'); } });"


@pytest.fixture
def keeps_nothing(browser):
    """A browser that refuses to keep anything for a page."""
    added = browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": _KEEPS_NOTHING})
    yield
    browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)
    # The page would ask whether to leave it.
    browser.get("about:blank")


def _start_again(browser, *, reader: str | None = None, toggle_blind: bool = False) -> None:
    browser.execute_script("document.getElementById('reader').click()")
    if toggle_blind:
        browser.find_element("id", "blind").click()
    name = browser.find_element("id", "reader-name")
    if reader:
        name.clear()
    name.send_keys(reader or "", "\ue007")


def test_work_survives_a_new_start_where_the_browser_keeps_nothing(browser, keeps_nothing, open_page):
    cases = open_page()
    _press(browser, "2", "a")
    _start_again(browser, toggle_blind=True)
    assert _handed_in(browser) == [(cases[0].case, 2, "agree")]
    _start_again(browser, reader="R2")
    assert browser.find_element("id", "progress-text").text == "0 of 12 reviewed"
    _start_again(browser, reader="R1")
    assert _handed_in(browser) == [(cases[0].case, 2, "agree")]


def test_a_file_is_taken_up_where_the_browser_keeps_nothing(browser, keeps_nothing, open_page, run, tmp_path):
    cases = open_page()
    said = [Verdict(cases[3].case, "R1", "2025-03-01T12:00:00Z", run.run, run.model_hash, 1, 1, "agree", "")]
    earlier = tmp_path / "earlier.json"
    earlier.write_text(json.dumps(verdicts_document(said, grade_set="kl", grades=5)))
    browser.execute_script("document.getElementById('reader').click()")
    browser.find_element("id", "resume").send_keys(str(earlier))
    _wait(lambda: browser.find_element("id", "resume-note").text == "1 cases loaded.")
    assert browser.execute_script("return document.getElementById('progress-text').textContent") == "1 of 12 reviewed"
    browser.find_element("id", "reader-name").send_keys("\ue007")
    assert _handed_in(browser) == [(cases[3].case, 1, "agree")]


def test_after_a_file_was_taken_up_the_first_unread_case_is_shown(browser, open_page, run, tmp_path):
    cases = open_page()
    said = [
        Verdict(case.case, "R1", "2025-03-01T12:00:00Z", run.run, run.model_hash, 1, 1, "agree", "")
        for case in cases[:5]
    ]
    earlier = tmp_path / "earlier.json"
    earlier.write_text(json.dumps(verdicts_document(said, grade_set="kl", grades=5)))
    browser.execute_script("document.getElementById('reader').click()")
    browser.find_element("id", "resume").send_keys(str(earlier))
    _wait(lambda: browser.find_element("id", "resume-note").text == "5 cases loaded.")
    browser.find_element("id", "reader-name").send_keys("\ue007")
    _wait(lambda: _drawn(browser) == cases[5].case)
    assert browser.find_element("id", "progress-text").text == "5 of 12 reviewed"


def test_a_case_that_was_seen_with_the_model_is_not_graded_blind_later(browser, open_page):
    cases = open_page()
    _start_again(browser, toggle_blind=True)  # the first case is shown with the model's part
    _press(browser, "j", "k")  # and the second
    assert browser.find_element("id", "progress-text").text == "0 of 12 reviewed"
    states = "return [...document.querySelectorAll('#cases button')].map((button) => button.dataset.state)"
    assert set(browser.execute_script(states)) == {"open"}
    _start_again(browser, toggle_blind=True)
    assert browser.find_element("id", "model-open").is_displayed()
    browser.refresh()
    _wait(lambda: _drawn(browser) == cases[0].case)
    _press(browser, "2", "j", "3", "j")
    assert not browser.find_element("id", "model-open").is_displayed()
    _press(browser, "4")
    assert [(entry["case"], entry["blind_grade"], entry["final_grade"]) for entry in _entries(browser)] == [
        (cases[0].case, None, 2),
        (cases[1].case, None, 3),
        (cases[2].case, 4, 4),
    ]


def test_two_readers_in_two_windows_do_not_change_each_others_work(browser, open_page):
    cases = open_page(reader="R1")
    first, address = browser.current_window_handle, browser.current_url
    browser.switch_to.new_window("tab")
    try:
        browser.get(address)
        _wait(lambda: _drawn(browser))
        _start_again(browser, reader="R2")
        count = "window.events = 0; addEventListener('storage', () => window.events++)"
        browser.execute_script(count)
        browser.switch_to.window(first)
        browser.execute_script(count)
        _press(browser, "2", "a")
        for _ in range(5):
            _settle(browser)
        assert browser.execute_script("return window.events") == 0
        assert _handed_in(browser) == [(cases[0].case, 2, "agree")]
    finally:
        for other in set(browser.window_handles) - {first}:
            browser.switch_to.window(other)
            browser.close()
        browser.switch_to.window(first)


def test_cases_are_sorted_and_filtered(browser, open_page):
    cases = open_page()
    shown = "return [...document.querySelectorAll('#cases button')].map((button) => button.dataset.case)"
    choose = (
        "const s = document.getElementById(arguments[0]); s.value = arguments[1]; s.dispatchEvent(new Event('change'))"
    )
    for order in ("distance", "flip", "entropy", "overlap"):
        browser.execute_script(choose, "order", order)
        doubts = {case.case: round(case.doubts[order], 4) for case in cases}
        got = [doubts[name] for name in browser.execute_script(shown)]
        assert got == sorted(doubts.values(), reverse=True)
    browser.execute_script(choose, "split", "train")
    assert set(browser.execute_script(shown)) == {case.case for case in cases if case.split == "train"}


def test_the_page_asks_the_network_for_nothing_and_breaks_no_rule_of_its_own(browser, open_page, run):
    open_page(run=replace(run, title="</title><img src=x onerror=alert(1)>"))
    _press(browser, "2", "a", "\ue007")
    _settle(browser)
    assert browser.find_element("id", "title").text.startswith("</title><img")
    asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    # The browser's own start page (chrome://) may still be loading beside it; what counts is what this page asks for.
    sent = [entry["params"] for entry in asked if entry["method"] == "Network.requestWillBeSent"]
    urls = [one["request"]["url"] for one in sent if not one["documentURL"].startswith("chrome:")]
    assert urls, "the log of requests is empty: it would show nothing"
    assert [url for url in urls if not url.startswith(("file:", "data:", "blob:"))] == []
    assert browser.get_log("browser") == []


def test_of_twelve_grades_the_last_are_clicked_and_the_help_explains_it(browser, open_page, run, make_case):
    from knee.grades import GradeSet
    from knee.review.cases import NetworkView

    names = tuple(f"g{number}" for number in range(12))
    case = make_case(1)
    view = NetworkView(np.full(12, 1 / 12), case.student.class_map)
    cases = [replace(case, case=f"{number:012x}", student=view, teacher=view) for number in range(2)]
    open_page(cases=cases, run=replace(run, grade_set=GradeSet("own", "t", names, names, "kappa")))
    text = "return [...document.querySelectorAll('#key-list dt, #key-list dd')].slice(0, 2).map((e) => e.textContent)"
    assert browser.execute_script(text) == ["0 – 9", "grade; from 10 on, click"]
    assert "0–9; from 10 on, click" in browser.find_element("id", "veil-hint").text
    browser.find_element("css selector", '#grades [data-grade="11"]').click()
    _press(browser, "j", "9")
    assert [(entry["blind_grade"], entry["final_grade"]) for entry in _entries(browser)] == [(11, 11), (9, 9)]


def test_five_hundred_cases_stay_small_and_every_one_can_be_reached(browser, open_page, make_case, tmp_path):
    large = [replace(case, image=np.tile(case.image, (2, 2)), cartilage=None) for case in map(make_case, range(10))]
    cases = [replace(large[number % 10], case=f"{number:011x}") for number in range(500)]
    open_page(cases=cases)
    assert (tmp_path / "review.html").stat().st_size < 10e6
    assert _drawn(browser) == cases[0].case
    _press(browser, "2", "j")
    _wait(lambda: _drawn(browser) != cases[0].case)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"final_grade": 7}, "has the grade 7, which is not 0–4"),
        ({"blind_grade": True}, "has the grade true"),
        ({"final_grade": "2"}, 'has the grade "2"'),
        ({"verdict": "maybe"}, "unknown verdict"),
        ({"comment": 7}, "is not text"),
        ({"time": "yesterday"}, "has no time like"),
    ],
)
def test_a_verdicts_file_is_checked_before_it_is_taken_up(browser, open_page, run, tmp_path, changes, told):
    cases = open_page()
    said = [
        Verdict(case.case, "R1", "2025-03-01T12:00:00Z", run.run, run.model_hash, 1, 1, "agree", "")
        for case in cases[:2]
    ]
    document = verdicts_document(said, grade_set="kl", grades=5)
    document["verdicts"][1] |= changes
    (tmp_path / "earlier.json").write_text(json.dumps(document))
    browser.execute_script("document.getElementById('reader').click()")
    browser.find_element("id", "resume").send_keys(str(tmp_path / "earlier.json"))
    note = _wait(lambda: browser.find_element("id", "resume-note").text)
    assert note.startswith("This file was not loaded: ") and told in note
    browser.find_element("id", "reader-name").send_keys("\ue007")
    assert browser.find_element("id", "progress-text").text == "0 of 12 reviewed"
