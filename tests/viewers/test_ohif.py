"""What OHIF shows of an export: segmentations and reports on the painted squares, on the right slices."""

from __future__ import annotations

import contextlib
import json
import os
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from knee.review.dicom.readings import Target, find_reports, read_report
from knee.review.dicom.web import fetch_reports
from knee.review.readers import is_unnamed
from knee.review.verdicts_file import Expected
from tests.viewers.conftest import PARTS
from tests.viewers.painted import SHAPES, SLICES, cells_of, place

pytestmark = pytest.mark.viewers

_DOWN = "\ue015"
_LOADED = "return window.services ? services.segmentationService.getSegmentations().map((one) => one.label) : []"
_SHOWN = "return document.querySelector('[data-cy=viewport-overlay-bottom-right]')?.innerText || ''"
_LINES = """return [...document.querySelectorAll('svg.svg-layer polyline, svg.svg-layer path')].map((line) => {
    const { x, y, width, height } = line.getBoundingClientRect();
    return [x, y, width, height];
})"""
_TEXTS = "return [...document.querySelectorAll('svg.svg-layer text')].map((text) => text.textContent)"


def _until(condition: Callable[[], Any], what: str, seconds: float = 90) -> Any:
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"OHIF did not show {what}"
        time.sleep(0.3)
    return value


def _studies(address: str) -> dict[str, str]:
    """The studies by the modality of their images."""
    with urllib.request.urlopen(f"{address}/dicom-web/studies?includefield=00080061") as answer:
        found = json.load(answer)
    images = {"MR", "DX", "CR"}
    return {(images & set(one["00080061"]["Value"])).pop(): one["0020000D"]["Value"][0] for one in found}


def _open(viewer: Any, address: str, kind: str) -> None:
    viewer.get("about:blank")
    viewer.get(f"{address}/viewer?StudyInstanceUIDs={_studies(address)[kind]}")
    skip = "//*[text()='Skip all']"
    _until(lambda: _thumbnails(viewer, "SR"), "the study")
    _until(lambda: viewer.execute_script(_SHOWN), "an image")
    for button in viewer.find_elements("xpath", skip):
        button.click()
    _until(lambda: not viewer.find_elements("xpath", skip), "the image without its tour")
    time.sleep(1)


def _thumbnails(viewer: Any, kind: str) -> list[Any]:
    found = viewer.find_elements("css selector", "[data-cy=study-browser-thumbnail-no-image]")
    return [one for one in found if one.text.startswith(kind)]


def _open_object(viewer: Any, element: Any) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(viewer).double_click(element).perform()


def _report_texts(viewer: Any, thumbnail: Any) -> list[str]:
    """The texts of a report, once it is opened; OHIF draws them when the pointer moves, and may miss a double click."""
    from selenium.webdriver.common.action_chains import ActionChains

    pane = viewer.find_element("css selector", "[data-cy=viewport-pane]")

    def texts() -> list[str]:
        for shift in (20, -20):
            ActionChains(viewer).move_to_element_with_offset(pane, shift, shift).perform()
        found: list[str] = viewer.execute_script(_TEXTS)
        return found

    for _ in range(3):
        _open_object(viewer, thumbnail)
        with contextlib.suppress(AssertionError):
            return list(_until(texts, "the report", seconds=30))
    _picture(viewer, PARTS / "screenshots" / "report_not_shown.png")
    raise AssertionError("OHIF did not show the report, opened three times")


def _picture(viewer: Any, path: Path | None = None) -> NDArray[np.uint8]:
    """The whole page (H, W, 3) as RGB."""
    png = viewer.get_screenshot_as_png()
    if path:
        path.write_bytes(png)
    image: NDArray[np.uint8] = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]  # type: ignore[assignment]
    return image


def _canvas(viewer: Any) -> tuple[slice, slice]:
    box = viewer.execute_script("return document.querySelector('canvas.cornerstone-canvas').getBoundingClientRect()")
    return (
        slice(round(box["top"]), round(box["bottom"])),
        slice(round(box["left"]), round(box["right"])),
    )


def _squares(picture: NDArray[np.uint8], level: int) -> list[NDArray[np.float64]]:
    """Row and column of the centres of the painted squares, from top to bottom."""
    bright = (picture.min(axis=2) > level).astype(np.uint8)
    _, _, boxes, centres = cv2.connectedComponentsWithStats(bright)
    found = [
        (centre[::-1], box)
        for centre, box in zip(centres[1:], boxes[1:], strict=True)
        if box[cv2.CC_STAT_AREA] > 400 and abs(box[cv2.CC_STAT_WIDTH] - box[cv2.CC_STAT_HEIGHT]) < 4
    ]
    return sorted((centre for centre, _ in found), key=lambda centre: float(centre[0]))


def _slice_shown(viewer: Any) -> int:
    """The number of the slice, from 0, by the InstanceNumber that OHIF writes."""
    text = "".join(viewer.execute_script(_SHOWN).split())
    return int(text.split("I:")[1].split("(")[0]) - 1


def _walk(viewer: Any, screenshots: Path, name: str) -> dict[int, NDArray[np.uint8]]:
    """The canvas at each slice."""
    from selenium.webdriver.common.action_chains import ActionChains

    pane = viewer.find_element("css selector", "[data-cy=viewport-pane]")
    place_ = _canvas(viewer)
    found = {}
    for _ in range(SLICES):
        number = _slice_shown(viewer)
        time.sleep(1)
        found[number] = _picture(viewer, screenshots / f"{name}_slice_{number}.png")[place_]
        if len(found) < SLICES:
            ActionChains(viewer).move_to_element(pane).send_keys(_DOWN).perform()
            _until(lambda last=number: _slice_shown(viewer) != last, "the next slice")
    return found


@pytest.mark.parametrize("network", ["teacher", "student"])
def test_all_frames_of_a_segmentation_are_on_their_square_of_their_slice(viewer, ohif, screenshots, network):
    _open(viewer, ohif, "MR")
    plain = _walk(viewer, screenshots, "MR")
    _open(viewer, ohif, "MR")
    (thumbnail,) = (one for one in _thumbnails(viewer, "SEG") if network in one.text)
    _open_object(viewer, thumbnail)
    _until(lambda: viewer.execute_script(_LOADED), "the segmentation")
    _until(lambda: viewer.find_elements("xpath", "//button[text()='Yes']"), "its question")[0].click()
    _until(lambda: not viewer.find_elements("xpath", "//button[text()='Yes']"), "the image again")
    time.sleep(1)
    shown = _walk(viewer, screenshots, f"MR_SEG_{network}")
    assert sorted(plain) == sorted(shown) == list(range(SLICES))
    for number, picture in shown.items():
        squares = dict(zip(("teacher", "student"), _squares(plain[number], 200), strict=True))
        expected = {name: place("MR", "L", cell) for name, cell in cells_of(number).items()}
        scale = picture.shape[0] / SHAPES["MR"][0]
        between = squares["student"] - squares["teacher"]
        assert between == pytest.approx((expected["student"] - expected["teacher"]) * scale, abs=scale), "another slice"
        assert _overlay(picture, plain[number]) == pytest.approx(squares[network], abs=scale), (network, number)


def _overlay(picture: NDArray[np.uint8], plain: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The centre of the one region that is colored in one picture and not in the other: fill and outline together."""
    colored = (np.ptp(picture.astype(int), axis=2) > 40) & (np.ptp(plain.astype(int), axis=2) < 20)
    closed = cv2.morphologyEx(colored.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((9, 9), np.uint8))
    count, _, boxes, centres = cv2.connectedComponentsWithStats(closed)
    large = [number for number in range(1, count) if boxes[number][cv2.CC_STAT_AREA] > 400]
    assert len(large) == 1, f"{len(large)} colored regions"
    return np.array(centres[large[0]][::-1])


def test_reports_of_a_bilateral_study_are_outlines_on_the_squares_and_the_grade_as_text(viewer, ohif, screenshots):
    _open(viewer, ohif, "DX")
    seen = []
    for number in range(4):
        _open(viewer, ohif, "DX")
        thumbnail = _thumbnails(viewer, "SR")[number]
        network = "teacher" if "teacher" in thumbnail.text else "student"
        texts = _report_texts(viewer, thumbnail)
        time.sleep(1)
        picture = _picture(viewer, screenshots / f"DX_report_{number}_{network}.png")
        rows, columns = _canvas(viewer)
        offset = np.array([rows.start, columns.start])
        squares = [square + offset for square in _squares(picture[rows, columns], 170)]
        outlines = [box for box in viewer.execute_script(_LINES) if min(box[2:]) > 30 and abs(box[2] - box[3]) < 8]
        assert len(outlines) == 1
        left, top, width, height = outlines[0]
        scale = (squares[1] - squares[0])[0] / (place("DX", "R", (9, 10)) - place("DX", "R", (5, 4)))[0]
        centre = [top + height / 2, left + width / 2]
        assert centre == pytest.approx(squares[0 if network == "teacher" else 1], abs=1.5 * scale)
        side = "R" if squares[1][1] > squares[0][1] else "L"
        seen.append((side, network))
        assert any(text.startswith("kl ") and "RESEARCH" in text for text in texts), texts
    assert sorted(seen) == [(side, network) for side in "LR" for network in ("student", "teacher")]


@pytest.mark.skipif("KNEE_KL224" not in os.environ, reason="KNEE_KL224 names the folder of the published radiographs")
def test_real_radiographs_are_shown_with_outline_and_grade(viewer, ohif, screenshots):
    for number in range(4):
        _open(viewer, ohif, "CR")
        texts = _report_texts(viewer, _thumbnails(viewer, "SR")[number])
        time.sleep(1)
        picture = _picture(viewer, screenshots / f"CR_report_{number}.png")
        rows, columns = _canvas(viewer)
        middle = np.array([(rows.start + rows.stop) / 2, (columns.start + columns.stop) / 2])
        (outline,) = (box for box in viewer.execute_script(_LINES) if min(box[2:]) > 30)
        centre = np.array([outline[1] + outline[3] / 2, outline[0] + outline[2] / 2])
        assert centre == pytest.approx(middle, abs=0.02 * picture.shape[0]), (
            "the joint is in the middle of these images"
        )
        assert any(text.startswith("kl ") and "RESEARCH" in text for text in texts), texts


def test_the_report_of_a_series_shows_grade_and_area(viewer, ohif, screenshots):
    _open(viewer, ohif, "MR")
    texts = " ".join(_report_texts(viewer, _thumbnails(viewer, "SR")[0]))
    _picture(viewer, screenshots / "MR_report.png")
    assert "RESEARCH" in texts and "Area" in texts


def _draw(viewer: Any, tool: str, x: int, text: str = "") -> None:
    """Draw with a tool at ``x`` pixels beside the middle, and label it; OHIF asks once whether to track the series."""
    from selenium.webdriver.common.action_chains import ActionChains

    viewer.find_element("css selector", "[data-cy=MeasurementTools-split-button-secondary]").click()
    _until(lambda: viewer.find_elements("css selector", f"[data-cy={tool}]"), "its tools")[-1].click()
    pane = viewer.find_element("css selector", "[data-cy=viewport-pane]")
    drawn = ActionChains(viewer).move_to_element_with_offset(pane, x, 0).click_and_hold().pause(0.5)
    drawn.move_by_offset(40, 40).pause(0.5).move_by_offset(40, 40).pause(0.5).release().perform()
    if text:
        save = _until(lambda: viewer.find_elements("css selector", "[data-cy=input-dialog-save-button]"), "a dialog")
        viewer.switch_to.active_element.send_keys(text)
        save[0].click()
        _until(lambda: viewer.find_elements("xpath", "//button[text()='Yes']"), "its question")[0].click()
    time.sleep(2)


def test_a_grade_that_a_reader_writes_in_ohif_and_saves_is_a_verdict(viewer, ohif, screenshots, tmp_path):
    """Last, since it adds a report to the study."""
    _open(viewer, ohif, "DX")
    before = len(_thumbnails(viewer, "SR"))
    _draw(viewer, "ArrowAnnotate", -150, "KL 2")
    _draw(viewer, "Length", 100)  # OHIF offers to save once something is measured
    viewer.find_element("css selector", "[data-cy=trackedMeasurements-btn]").click()
    _until(lambda: viewer.find_elements("xpath", "//button[contains(.,'Create SR')]"), "how to save")[0].click()
    save = _until(lambda: viewer.find_elements("xpath", "//button[text()='Save']"), "the report's name")
    viewer.switch_to.active_element.send_keys("reading")
    save[0].click()
    _until(lambda: len(_thumbnails(viewer, "SR")) == before + 1, "the saved report")
    _picture(viewer, screenshots / "DX_reading.png")
    study = _studies(ohif)["DX"]
    assert fetch_reports(f"{ohif}/dicom-web", [study], tmp_path) == 1
    (path,) = find_reports(tmp_path)
    with urllib.request.urlopen(f"{ohif}/dicom-web/studies/{study}/instances") as answer:
        known = {one["00080018"]["Value"][0]: Target("c1") for one in json.load(answer)}
    faults: list[str] = []
    (verdict,) = read_report(path, Expected("painted", "3f9ac2d17be04410", 5, {"c1"}), faults, known=known)
    assert faults == [] and (verdict.final_grade, verdict.blind_grade) == (2, None)
    assert is_unnamed(verdict.reviewer), "OHIF names no reader"
