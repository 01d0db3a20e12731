from __future__ import annotations

import base64
import errno
import json
import re
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from knee.errors import UserError
from knee.images.geometry import square_geometry
from knee.images.original import shown_original
from knee.review.page.html import case_record


def _run(path: Path) -> dict[str, Any]:
    return json.loads(re.search(r'id="run">(.*?)</script>', path.read_text(), re.DOTALL)[1])


def _cases(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in re.findall(r'class="case">(.*?)</script>', path.read_text())]


def _image(path: Path, case: str) -> np.ndarray:
    data = base64.b64decode(re.search(rf'id="image-{case}">(.*?)</script>', path.read_text())[1])
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)


def test_the_page_holds_what_the_cases_hold(tmp_path, run, write_page, make_case):
    cases = [make_case(number) for number in range(4)]
    assert write_page(tmp_path / "review.html", run, iter(cases)) == 4
    written = _cases(tmp_path / "review.html")
    assert [item["case"] for item in written] == [case.case for case in cases]
    image = _image(tmp_path / "review.html", cases[0].case)
    assert np.abs(image.astype(int) - cases[0].image).mean() < 12
    assert written[1]["grade"] is None
    assert written[2]["doubts"]["overlap"] == pytest.approx(1 - cases[2].overlap, abs=1e-4)
    assert written[0]["teacher"]["max"] == pytest.approx(cases[0].teacher.maximum, rel=1e-3)


def test_nothing_of_a_local_file_is_in_the_page(tmp_path, run, write_page, make_case):
    case = make_case(1, source=Path("/secret/patient_17.dcm"), geometry=square_geometry(128, 128, 128))
    write_page(tmp_path / "review.html", run, [case])
    assert "patient_17" not in (tmp_path / "review.html").read_text()


def test_markup_in_a_title_stays_text(tmp_path, run, write_page, make_case):
    title = "</script><script>alert(1)</script><!--<b>&"
    write_page(tmp_path / "review.html", replace(run, title=title), [make_case(1)])
    page = (tmp_path / "review.html").read_text()
    assert "<script>alert" not in page
    assert _run(tmp_path / "review.html")["title"] == title


def test_the_policy_forbids_everything_but_its_own_style_and_script(tmp_path, run, write_page, make_case):
    write_page(tmp_path / "review.html", run, [make_case(1)])
    page = (tmp_path / "review.html").read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy and "http" not in policy
    assert not re.search(r'(src|href)\s*=\s*"?https?:', page)


def test_a_flat_map_shows_nothing(make_case):
    case = make_case(1)
    flat = replace(case.student, class_map=np.full((16, 16), 0.7, np.float32))
    record = case_record(replace(case, student=flat), shown_original(None, case.image))["student"]
    assert set(base64.b64decode(record["map"])) == {0}
    assert record["max"] == pytest.approx(0.7)
    assert not flat.attention(128).any()


def test_an_existing_file_is_not_replaced(tmp_path, run, write_page, make_case):
    path = tmp_path / "review.html"
    path.write_text("kept")
    with pytest.raises(UserError, match=r"review\.html: exists"):
        write_page(path, run, [make_case(1)])
    assert path.read_text() == "kept"
    write_page(path, run, [make_case(1)], force=True)
    assert "doctype" in path.read_text()


def test_a_full_disk_leaves_the_earlier_file_whole(tmp_path, run, write_page, make_case):
    path = tmp_path / "review.html"
    path.write_text("kept")

    def cases():
        yield make_case(1)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match=r"No space left on device\); free some space"):
        write_page(path, run, cases(), force=True)
    assert path.read_text() == "kept"
    assert list(tmp_path.iterdir()) == [path]


def test_no_case_is_refused(tmp_path, run, write_page):
    with pytest.raises(UserError, match="no case to review"):
        write_page(tmp_path / "review.html", run, [])
    assert not list(tmp_path.iterdir())


def test_memory_does_not_grow_with_the_number_of_cases(tmp_path, run, write_page, make_case):
    def peak(count: int) -> int:
        tracemalloc.start()
        write_page(tmp_path / "review.html", run, (make_case(number) for number in range(count)), force=True)
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    peak(2)
    assert peak(60) < 1.2 * peak(20)
