"""What the review file draws in a real browser: maps, originals, zoom, window and level."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from knee.evaluation.colors import paint
from knee.images.original import shown_original
from knee.images.read import prepare
from knee.review.page.html import image_webp

from .conftest import _pixels, _press, _settle

pytestmark = pytest.mark.slow


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


def test_a_small_original_and_a_lost_one_have_a_note(browser, open_page, original_case, make_case, tmp_path):
    small = original_case((200, 160), mirror=False, row=100, column=80)
    lost = make_case(2, source=tmp_path / "gone.png", geometry=small.source.geometry)
    open_page(cases=[small, lost], blind=False)
    assert browser.find_element("id", "size-note").text == "small original: 160 × 200 px"
    _press(browser, "j")
    assert "original not readable" in browser.find_element("id", "size-note").text


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
