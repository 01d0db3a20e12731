"""The review file in a real browser, opened from disk."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
import pytest

from knee.evaluation.colors import paint
from knee.images.original import shown_original
from knee.images.read import prepare
from knee.review.page.html import image_webp
from knee.review.verdicts import import_verdicts
from knee.review.verdicts_file import Expected, Verdict, verdicts_document

pytestmark = pytest.mark.slow


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


def test_the_map_is_where_the_evidence_is(browser, open_page, make_case):
    evidence = np.zeros((16, 16), np.float32)
    evidence[4, 11] = 1.0
    case = make_case(1)
    open_page(cases=[replace(case, teacher=replace(case.teacher, class_map=evidence))], blind=False)
    _press(browser, "c", "o")
    _settle(browser)
    colour = np.ptp(_pixels(browser), axis=2).astype(float)
    rows, columns = np.indices(colour.shape)
    side = len(colour)
    centre = np.array([(rows * colour).sum(), (columns * colour).sum()]) / colour.sum() / side
    assert centre == pytest.approx([4.5 / 16, 11.5 / 16], abs=0.01)


def test_evidence_map_is_shown_first_where_there_is_one(browser, open_page, make_case):
    evidence = np.zeros((128, 128), np.float32)
    evidence[88:92, 24:28] = 1.0
    open_page(cases=[make_case(1, evidence=evidence, evidence_against=2)], blind=False)
    pressed = "return document.querySelector('#layers [aria-pressed=true]').dataset.layer"
    assert browser.execute_script(pressed) == "evidence"
    assert "decision between" in browser.find_element("id", "scale-name").text
    assert not browser.find_element("id", "line-mask-name").is_displayed()
    _press(browser, "c")
    _settle(browser)
    color = np.ptp(_pixels(browser), axis=2).astype(float)
    rows, columns = np.indices(color.shape)
    center = np.array([(rows * color).sum(), (columns * color).sum()]) / color.sum() / len(color)
    assert center == pytest.approx([90 / 128, 26 / 128], abs=0.02)
    _press(browser, "t")
    assert browser.execute_script(pressed) == "teacher"
    _press(browser, "e")
    assert browser.execute_script(pressed) == "evidence"


def test_no_evidence_map_no_button_for_it(browser, open_page, make_case):
    open_page(cases=[make_case(1)], blind=False)
    assert not browser.find_element("css selector", "[data-layer=evidence]").is_displayed()
    _press(browser, "e")
    assert browser.find_element("css selector", "[data-layer=teacher]").get_attribute("aria-pressed") == "true"


def test_the_scaled_map_is_that_of_python(browser, open_page, make_case):
    cases = open_page(cases=[make_case(1)], blind=False)
    _press(browser, "c", "o")
    _settle(browser)
    shown = _pixels(browser)
    side = len(shown)
    data = np.frombuffer(image_webp(shown_original(None, cases[0].image)), np.uint8)
    expected = paint(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE), cases[0].teacher.attention(128)).astype(int)
    places = [(r, c) for r in range(4, 128, 8) for c in range(4, 128, 8)]
    apart = [shown[int((r + 0.5) * side / 128), int((c + 0.5) * side / 128)] - expected[r, c] for r, c in places]
    # The canvas smooths the enlarged image, so single pixels of noise differ; colour does not.
    assert np.abs(np.mean(apart, axis=0)).max() < 3
    assert np.percentile(np.abs([pixel[0] - pixel[2] for pixel in apart]), 95) < 5


def test_a_reading_by_keyboard_alone_becomes_a_file(browser, open_page, run, tmp_path):
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


def test_agreement_without_a_grade_is_no_verdict(browser, open_page):
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


def test_two_readers_in_two_windows_leave_each_other_alone(browser, open_page):
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


def test_zoom_keeps_the_place_under_the_pointer(browser, open_page):
    open_page(blind=False)
    _press(browser, " ")
    _settle(browser)
    whole = _pixels(browser)
    _press(browser, "+", "+")
    _settle(browser)
    near = _pixels(browser)
    side = len(whole)
    assert np.abs(near[side // 2, side // 2] - whole[side // 2, side // 2]).max() < 25
    assert not np.array_equal(near, whole)
    _press(browser, "f")
    _settle(browser)
    assert np.array_equal(_pixels(browser), whole)


@pytest.mark.parametrize("size", [(390, 844), (324, 700), (820, 1180), (1180, 820), (1440, 900)])
def test_the_page_fits_any_screen_and_the_picture_is_square(browser, open_page, size):
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        open_page(blind=False)
        _settle(browser)
        script = (
            "const c = document.getElementById('canvas'); return [c.width, c.height, c.clientWidth, c.clientHeight]"
        )
        sides = browser.execute_script(script)
        assert max(sides) - min(sides) <= 1 and min(sides) >= 260
        assert browser.execute_script("return document.documentElement.scrollWidth") <= size[0]
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_two_fingers_zoom_and_one_moves(browser, open_page):
    open_page(blind=False)
    _press(browser, " ")
    box = browser.execute_script("return document.getElementById('canvas').getBoundingClientRect().toJSON()")
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def touch(kind: str, *points: tuple[float, float]) -> None:
        touches = [{"x": px, "y": py, "id": number} for number, (px, py) in enumerate(points)]
        browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})

    _settle(browser)
    whole = _pixels(browser)
    touch("touchStart", (x - 30, y), (x + 30, y))
    for apart in (40, 60, 90):
        touch("touchMove", (x - apart, y), (x + apart, y))
    touch("touchEnd")
    _settle(browser)
    near = _pixels(browser)
    assert not np.array_equal(near, whole)
    touch("touchStart", (x, y))
    for moved in (20, 60, 100):
        touch("touchMove", (x + moved, y))
    touch("touchEnd")
    _settle(browser)
    moved = _pixels(browser)
    error = [np.abs(moved[:, 150:] - np.roll(near, shift, axis=1)[:, 150:]).mean() for shift in range(0, 140, 4)]
    assert 60 <= 4 * int(np.argmin(error)) <= 120


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


def test_three_grades_are_shown_where_there_are_three(browser, open_page, run, make_case):
    from knee.grades import load_grade_set
    from knee.review.cases import NetworkView

    case = make_case(1)
    view = NetworkView(np.array([0.2, 0.5, 0.3]), case.student.class_map)
    open_page(
        cases=[replace(case, student=view, teacher=view)], run=replace(run, grade_set=load_grade_set("cartilage"))
    )
    assert len(browser.find_elements("css selector", "#grades button")) == 3
    _press(browser, "4")
    assert not browser.find_element("id", "model-open").is_displayed()
    _press(browser, "1")
    assert browser.find_element("id", "teacher-grade").text == "1 partial-thickness"


def test_of_twelve_grades_the_last_are_clicked_and_the_help_says_so(browser, open_page, run, make_case):
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


def test_the_models_grade_is_that_of_its_exact_probabilities(browser, open_page, run, make_case):
    from knee.grades import load_grade_set
    from knee.review.cases import NetworkView

    case = make_case(1)
    view = NetworkView(np.array([0.2, 0.39998, 0.40002]), case.teacher.class_map)
    three = replace(run, grade_set=load_grade_set("cartilage"))
    open_page(cases=[replace(case, student=view, teacher=view)], run=three, blind=False)
    assert view.grade == 2
    for network in ("student", "teacher"):
        assert browser.find_element("id", f"{network}-grade").text.startswith("2 ")
    assert "Teacher: 2 " in browser.find_element("id", "canvas").get_attribute("aria-label")


def test_five_hundred_cases_stay_small_and_every_one_can_be_reached(browser, open_page, make_case, tmp_path):
    large = [replace(case, image=np.tile(case.image, (2, 2)), cartilage=None) for case in map(make_case, range(10))]
    cases = [replace(large[number % 10], case=f"{number:011x}") for number in range(500)]
    open_page(cases=cases)
    assert (tmp_path / "review.html").stat().st_size < 10e6
    assert _drawn(browser) == cases[0].case
    _press(browser, "2", "j")
    _wait(lambda: _drawn(browser) != cases[0].case)


@pytest.fixture
def original_case(tmp_path, make_case):
    """``original_case(shape, mirror, row, column)``: a spot on an original, and maps that are hot where it is."""

    def make(shape: tuple[int, int], *, mirror: bool, row: int, column: int):
        values = np.full(shape, 90, np.uint8)
        values[::2, ::2] = 100
        values[row - 10 : row + 10, column - 10 : column + 10] = 250
        cv2.imwrite(str(tmp_path / "original.png"), values)
        image, geometry = prepare(values, 128, mirror=mirror)
        evidence = cv2.resize((image > 180).astype(np.float32), (16, 16), interpolation=cv2.INTER_AREA)
        case = make_case(1, image=image, source=tmp_path / "original.png", geometry=geometry, cartilage=None)
        views = {name: replace(getattr(case, name), class_map=evidence) for name in ("student", "teacher")}
        return replace(case, **views)

    return make


def _center(weights: np.ndarray) -> np.ndarray:
    rows, columns = np.indices(weights.shape)
    return np.array([(rows * weights).sum(), (columns * weights).sum()]) / weights.sum() / len(weights)


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize(("shape", "row", "column"), [((1000, 700), 281, 131), ((600, 1000), 144, 781)])
def test_the_original_is_shown_unmirrored_with_the_map_on_the_same_spot(
    browser, open_page, original_case, shape, row, column, mirror
):
    open_page(cases=[original_case(shape, mirror=mirror, row=row, column=column)], blind=False)
    facts = browser.find_element("id", "case-facts").text
    assert f"{shape[1]} × {shape[0]} px" in facts and "mirrored" not in facts
    assert not browser.find_element("id", "size-note").is_displayed()
    _press(browser, "o")
    _settle(browser)
    colored = _pixels(browser)
    _press(browser, " ")
    _settle(browser)
    plain = _pixels(browser)
    side = max(shape)
    place = np.array([row + (side - shape[0]) / 2, column + (side - shape[1]) / 2]) / side
    assert _center((plain[..., 0] > 180).astype(float)) == pytest.approx(place, abs=0.005)
    assert _center(np.ptp(colored, axis=2).astype(float)) == pytest.approx(place, abs=0.015)
    bars = plain[: len(plain) // 16] if shape[0] < shape[1] else plain[:, : len(plain) // 16]
    assert bars.max() == 0, "beside the image there is nothing, no map either"


def test_one_to_one_shows_the_files_pixels(browser, open_page, original_case):
    case = original_case((1000, 700), mirror=True, row=500, column=350)
    open_page(cases=[case], blind=False)
    _press(browser, " ", "z")
    _settle(browser)
    shown = _pixels(browser)[..., 0]
    values = cv2.imread(str(case.source.path), cv2.IMREAD_GRAYSCALE)
    top, left = (1000 - len(shown)) // 2, (1000 - len(shown)) // 2 - 150
    black, white = np.percentile(values, (0.5, 99.5))
    expected = np.clip((values.astype(float) - black) / (white - black), 0, 1) * 255
    best = min(
        np.abs(
            shown[50:-50, 50:-50] - expected[top + 50 + dy :, left + 50 + dx :][: len(shown) - 100, : len(shown) - 100]
        ).mean()
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
    )
    assert best < 30, "the checkered pixels of the file, not a mean of them"


def test_dragging_changes_window_and_level(browser, open_page):
    from selenium.webdriver.common.action_chains import ActionChains

    open_page(blind=False)
    _press(browser, " ")
    _settle(browser)
    before = _pixels(browser)

    def drag(x: int, y: int) -> np.ndarray:
        canvas = browser.find_element("id", "canvas")
        ActionChains(browser).move_to_element(canvas).click_and_hold().move_by_offset(x, y).release().perform()
        _settle(browser)
        return _pixels(browser)

    assert np.array_equal(drag(0, -60), before), "moves the image, of which all is seen"
    _press(browser, "w")
    assert drag(0, -60).mean() < before.mean() - 10, "a higher level is darker"
    _press(browser, "r")
    _settle(browser)
    assert np.array_equal(_pixels(browser), before)
    assert drag(80, 0).std() < before.std() - 3, "a wider window has less contrast"
    assert browser.find_element("id", "width-value").text != "× 1.00"
    _press(browser, "r", "w", "i")
    _settle(browser)
    inverted = _pixels(browser)
    assert np.abs(inverted + before - 255).max() <= 2


def test_colors_are_hidden_below_the_threshold(browser, open_page):
    open_page(blind=False)
    _press(browser, "o", "c")
    _settle(browser)
    before = np.ptp(_pixels(browser), axis=2)
    set_slider = "const s = document.getElementById('threshold'); s.value = 0.5; s.dispatchEvent(new Event('input'))"
    browser.execute_script(set_slider)
    _settle(browser)
    after = np.ptp(_pixels(browser), axis=2)
    assert (before > 4).mean() > 1.5 * (after > 4).mean() > 0
    assert after.max() == pytest.approx(before.max(), abs=3)


def test_a_small_original_and_a_lost_one_are_said(browser, open_page, original_case, make_case, tmp_path):
    small = original_case((200, 160), mirror=False, row=100, column=80)
    lost = make_case(2, source=tmp_path / "gone.png", geometry=small.source.geometry)
    open_page(cases=[small, lost], blind=False)
    assert browser.find_element("id", "size-note").text == "small original: 160 × 200 px"
    _press(browser, "j")
    assert "original not readable" in browser.find_element("id", "size-note").text


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
