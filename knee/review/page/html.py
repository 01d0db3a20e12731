"""The review page: one HTML file that a reader opens from disk, without a network and without installing anything."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from knee.attention import THRESHOLD
from knee.errors import UserError
from knee.evaluation.colors import difference_colors, heat_colors, heat_cover
from knee.grades import GradeSet
from knee.images.original import Original
from knee.io.files import whole_file
from knee.review import CLAIM
from knee.review.cases import NetworkView, ReviewCase
from knee.review.writer import Exported, Writer

SCRIPTS = ("fields.js", "store.js", "canvas.js", "worklist.js", "panel.js", "review.js")
"""The parts of the page's script, in the order in which they are joined."""

_BYTES_A_PIXEL = 0.41
_LEAST_BYTES = 32_000
_FINER = 4
_MOST_EVIDENCE = 72
_PREPARED_BYTES = 13_000
_LOSSLESS_PIXELS = 512**2  # larger radiographs never fit, and trying would take most of the export's time


@dataclass(frozen=True)
class ReviewRun:
    """What all cases of one review page share."""

    run: str
    """The run's name."""
    model_hash: str
    """Hash of the teacher's weights: only verdicts on this model are accepted."""
    grade_set: GradeSet
    title: str = "Knee attention review"
    threshold: float = THRESHOLD
    """σ₀: the contour is drawn where x = σ₀, which is where f = σ(ω(x − σ₀)) = 0.5 for any ω."""
    severest: bool = False
    """Whether a volume's grade is that of its most severe slices, not of their mean (``knee.evaluation.by_knee``)."""
    sanity_figure: str | None = None
    """Path of the weight-randomisation figure, relative to the review page."""

    @property
    def verdicts_name(self) -> str:
        """Start of the name of the downloaded verdicts file, followed by the reader's name and the date."""
        return f"verdicts_{self.run}_{self.model_hash[:8]}"


class HtmlWriter(Writer):
    """Writes the review page case by case; memory does not grow with the number of cases."""

    def __init__(self, path: Path, run: ReviewRun, *, force: bool = False) -> None:
        self._path, self._force = path, force
        self._head, self._tail = _page(run).split("<!--cases-->")
        self._open = ExitStack()
        self._count = 0
        self._leads: dict[str, str] = {}

    def __enter__(self) -> Self:
        """Raises UserError where the file exists (unless ``force``)."""
        scratch = self._open.enter_context(whole_file(self._path, force=self._force))
        self._page = self._open.enter_context(scratch.open("w", encoding="utf-8"))
        self._page.write(self._head)
        return self

    def add(self, case: ReviewCase, original: Original) -> Exported:
        """Write one case: its record, and its image in a separate element, which is decoded only when shown."""
        original = original.shrunk()
        # A volume is graded once, as the case of its first slice.
        lead = self._leads.setdefault(case.stack, case.case) if case.stack else case.case
        record = _json({**case_record(case, original), "case": lead})
        self._page.write(f'<script type="application/json" class="case">{record}</script>\n')
        image = base64.b64encode(image_webp(original)).decode()
        self._page.write(f'<script type="text/plain" id="image-{html.escape(case.case)}">{image}</script>\n')
        self._count += 1
        return Exported()

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Complete the file; after an error, or without a case, keep the earlier file. Raises UserError for a full disk."""
        with self._open:
            if error is not None:
                raise error
            if not self._count:
                raise UserError(f"{self._path}: there is no case to review; choose another split or fewer conditions")
            self._page.write(self._tail)


def case_record(case: ReviewCase, original: Original) -> dict[str, Any]:
    """The data of a case on the page, without its image: plain values, and the maps as bytes on their grid.

    ``window`` is the position of the square with the maps (``size``) on the image: left, top, side, and whether it is flipped.
    """
    place, (height, width) = original.geometry, original.pixels.shape
    return {
        "case": case.case,
        "picture": case.case,
        "place": case.place,
        "split": case.split,
        "side": case.side,
        "grade": case.grade,
        "width": width,
        "height": height,
        "source": original.size[::-1],
        "note": original.note,
        "unlike": _unlike(case),
        "levels": [round(level, 2) for level in original.window],
        "size": case.image.shape[0],
        "window": [place.left, place.top, place.side, int(place.mirror)],
        "cartilage": None if case.cartilage is None else _outline(case.cartilage),
        "student": _network_record(case.student),
        "teacher": _network_record(case.teacher),
        "evidence": _evidence_record(case),
        "doubts": {name: round(value, 4) for name, value in case.doubts.items()},
    }


def _unlike(case: ReviewCase) -> str:
    """The mark of an image that is unlike the training images, with its familiarity where known; else empty."""
    known = case.familiarity is not None and not np.isnan(case.familiarity)
    return f"{case.unlike} (familiarity {case.familiarity:.2f})" if case.unlike and known else case.unlike


def image_webp(original: Original) -> bytes:
    """The image as WebP: lossless if that is small enough, else at the highest quality that is.

    A page of 100 cases of 1,024² pixels is then smaller than 60 MB. The prepared square that replaces an unreadable original
    gets fewer bytes.
    """
    pixels = original.pixels
    most = _PREPARED_BYTES if original.problem else max(_LEAST_BYTES, round(_BYTES_A_PIXEL * pixels.size))
    qualities = (80, 70, 50, 30) if original.problem else (95, 90, 85, 80, 70, 50, 30)
    choices: list[dict[str, Any]] = [{"quality": quality, "method": 0} for quality in qualities]
    if not original.problem and pixels.size <= _LOSSLESS_PIXELS:
        choices.insert(0, {"lossless": True, "quality": 30, "method": 1})
    for choice in choices:
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, "WEBP", **choice)
        if data.tell() <= most:
            break
    return data.getvalue()


def _network_record(view: NetworkView) -> dict[str, Any]:
    return {
        "grade": view.grade,  # from the exact probabilities: rounded ones may be equal
        "p": [round(float(p), 4) for p in view.probabilities],
        **_grid(np.asarray(view.class_map, np.float32)),
        "max": float(f"{view.maximum:.4g}"),
    }


def _evidence_record(case: ReviewCase) -> dict[str, Any] | None:
    """The evidence map, on a coarser grid where it is large: it is smooth over some pixels."""
    if case.evidence is None:
        return None
    size = min(_MOST_EVIDENCE, case.evidence.shape[0])
    smaller = cv2.resize(case.evidence, (size, size), interpolation=cv2.INTER_AREA)
    return {"against": case.evidence_against, **_grid(np.asarray(smaller, np.float32))}


def _grid(values: NDArray[np.float32]) -> dict[str, Any]:
    """A map (h, w) as bytes. Up-sampling commutes with shift and scale, so the page's own scaling undoes these."""
    low, span = float(values.min()), float(np.ptp(values))
    scaled = (values - low) / span if span > 1e-6 else np.zeros_like(values)  # all zero marks an empty map
    return {"grid": list(values.shape), "map": _bytes(np.round(scaled * 255).astype(np.uint8))}


def _outline(mask: NDArray[np.bool_]) -> list[list[float]]:
    """(S, S) → closed outlines, each x, y, x, y …, in pixels; smoothed by half a pixel, as they are shown enlarged."""
    fine = cv2.resize(mask.astype(np.float32), None, fx=_FINER, fy=_FINER, interpolation=cv2.INTER_LINEAR)
    inside = (cv2.GaussianBlur(fine, (0, 0), _FINER / 2) > 0.5).astype(np.uint8)
    found, _ = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    lines = (cv2.approxPolyDP(outline, 0.7, True).reshape(-1) for outline in found)
    return [[round(float(place), 2) for place in (line + 0.5) / _FINER - 0.5] for line in lines]


def _page(run: ReviewRun) -> str:
    """The page without the cases, which replace the mark ``<!--cases-->``."""
    package = files("knee.review.page")
    style = package.joinpath("review.css").read_text(encoding="utf-8")
    script = "\n".join(package.joinpath(name).read_text(encoding="utf-8") for name in SCRIPTS)
    script = f'(() => {{\n"use strict";\n{script}}})();\n'
    page = package.joinpath("template.html").read_text(encoding="utf-8")
    for mark, text in {
        "title": html.escape(run.title),
        "claim": html.escape(CLAIM),
        "style-hash": _hash_source(style),
        "script-hash": _hash_source(script),
        "style": style,
        "script": script,
        "run": _json(_run_record(run)),
    }.items():
        page = page.replace(f"<!--{mark}-->", text)
    return page


def _run_record(run: ReviewRun) -> dict[str, Any]:
    grades = zip(run.grade_set.names, run.grade_set.descriptions, strict=True)
    return {
        "title": run.title,
        "run": run.run,
        "modelHash": run.model_hash,
        "gradeSet": run.grade_set.name,
        "grades": [{"name": name, "description": description} for name, description in grades],
        "threshold": run.threshold,
        "severest": run.severest,
        "verdictsName": run.verdicts_name,
        "sanityFigure": run.sanity_figure,
        "colors": {"heat": _bytes(heat_colors()), "difference": _bytes(difference_colors())},
        "cover": [round(float(share), 4) for share in heat_cover(np.linspace(0, 1, 256))],
    }


def _bytes(values: NDArray[np.uint8]) -> str:
    return base64.b64encode(values.tobytes()).decode()


def _json(value: object) -> str:
    """JSON that cannot close the surrounding script element, nor open a comment in it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _hash_source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
