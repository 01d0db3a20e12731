"""Write cases as DICOM for the readers' own viewers: on the source's pixels, in new series, marked as research."""

from __future__ import annotations

import io
import secrets
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import Dataset

from knee.errors import UserError
from knee.images.original import Original
from knee.images.slices import split_slice
from knee.io.files import whole_file
from knee.review.cases import ReviewCase
from knee.review.dicom.identity import deidentified, empty_unknown, fill_required, salted_uid
from knee.review.dicom.objects import Place, attention_report, parametric_map, secondary_capture, segmentation
from knee.review.page.html import ReviewRun
from knee.review.picture import case_picture, contour_lines
from knee.review.writer import NETWORKS, Exported, NotMade, Writer, making

_SERIES_NUMBERS = {"capture": 9001, "map": 9002, "mask": 9003, "report": 9004}
_MR_GEOMETRY = (
    "PixelSpacing",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "SliceThickness",
    "FrameOfReferenceUID",
)
_IDENTIFIERS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")


@dataclass
class DicomExport(Writer):
    """Writes cases one by one into a folder, with one new series for each study and kind of object.

    (A DICOM series holds one modality, so captures, maps, segmentations and reports cannot share a series.) Without
    ``keep_identity``, the objects and the copy of the source that they refer to carry only the case's name and salted
    identifiers. The same ``salt`` gives the same identifiers at every export.
    """

    folder: Path
    run: ReviewRun
    version: str
    salt: bytes
    keep_identity: bool = False
    networks: tuple[str, ...] = NETWORKS
    force: bool = False
    ending = ".dcm"
    _session: str = field(init=False, default_factory=lambda: secrets.token_hex(8))
    _counts: dict[str, int] = field(init=False, default_factory=dict)

    def add(self, case: ReviewCase, original: Original) -> Exported:
        """Write the objects of one case; those that cannot be made from its source are listed in ``left_out``."""
        if original.problem:
            return Exported()
        left_out: list[str] = []
        with making("dicom"):
            makers = list(self._makers(case, original, left_out))
        contents: dict[Path, bytes] = {}
        for name, make in makers:
            try:
                with making(name):
                    contents[self.folder / f"{case.case}_{name}.dcm"] = _encoded(make())
            except NotMade as error:
                left_out.append(str(error))
        for path, content in contents.items():
            with whole_file(path, force=self.force) as scratch:
                scratch.write_bytes(content)
        return Exported(tuple(contents), tuple(f"case {case.case}: {reason}" for reason in dict.fromkeys(left_out)))

    def _makers(
        self, case: ReviewCase, original: Original, left_out: list[str]
    ) -> Iterator[tuple[str, Callable[[], Dataset]]]:
        """The objects of a case by name, each still to be made."""
        assert original.path is not None
        source = read_dicom(original.path)
        reference = self._reference(case, source, original, left_out)
        if reference.get("BurnedInAnnotation") == "YES" and not self.keep_identity:
            left_out.append("its file reports text burned into the pixels; check the image before sharing it")
        if source is not None and not self.keep_identity:
            yield "source", lambda: reference
        for network in self.networks:
            yield from self._network_makers(case, network, original, reference, left_out)

    def _network_makers(
        self, case: ReviewCase, network: str, original: Original, reference: Dataset, left_out: list[str]
    ) -> Iterator[tuple[str, Callable[[], Dataset]]]:
        x = case.attention_on(original, network)
        named = {"title": f"Attention {network}", "network": network}
        yield f"{network}_capture", partial(self._capture, case, network, original.grey, x, reference)
        shows = bool((x > self.run.threshold).any())
        if not shows:
            left_out.append(f"the {network}'s map is empty, so there is no region to export")
        if reference.get("Modality") == "MR":
            missing = [keyword for keyword in _MR_GEOMETRY if not reference.get(keyword)]
            if missing:
                left_out.append(f"the source has no {', '.join(missing)}: no map and no segmentation")
                return
            place = self._place(reference, "map")
            yield f"{network}_map", partial(parametric_map, x, reference, self.run, place, **named)
            if shows:
                place = self._place(reference, "mask")
                yield f"{network}_mask", partial(segmentation, x, reference, self.run, place, **named)
        elif "PixelData" in reference and (lines := contour_lines(x, threshold=self.run.threshold)):
            place = self._place(reference, "report")
            view = getattr(case, network)
            yield f"{network}_report", partial(attention_report, lines, view, reference, self.run, place, **named)

    def _capture(
        self, case: ReviewCase, network: str, grey: NDArray[np.uint8], x: NDArray[np.float32], reference: Dataset
    ) -> Dataset:
        picture = case_picture(grey, x, case, self.run, network)
        place = self._place(reference, "capture")
        return secondary_capture(picture, reference, self.run, place, title=f"Attention {network}")

    def _reference(self, case: ReviewCase, source: Dataset | None, original: Original, left_out: list[str]) -> Dataset:
        """The image that the objects refer to: the source, its de-identified copy, or generated identifiers.

        Raises UserError where the source lacks the identifiers that a reference needs.
        """
        if source is None:
            return _made_up(case, self.salt, original.spacing_mm)
        missing = [keyword for keyword in _IDENTIFIERS if not source.get(keyword)]
        if missing:
            raise UserError(
                f"{original.path}: has no {', '.join(missing)}, so objects cannot refer to it; export as png or nifti instead"
            )
        reference = source if self.keep_identity else deidentified(source, case.case, self.salt)
        fill_required(reference)
        if emptied := empty_unknown(reference):
            left_out.append(f"{', '.join(emptied)}: the value in its file is not valid DICOM, and is left empty")
        if case.side and not (reference.get("ImageLaterality") or reference.get("Laterality")):
            reference.Laterality = case.side
        return reference

    def _place(self, reference: Dataset, kind: str) -> Place:
        series = salted_uid(self.salt, f"{self._session} {kind} {reference.StudyInstanceUID}")
        self._counts[series] = self._counts.get(series, 0) + 1
        return Place(str(series), _SERIES_NUMBERS[kind], self._counts[series], self.version)


def read_dicom(path: Path) -> Dataset | None:
    """The whole file as DICOM; None where it has another format. The file was read as an image before."""
    path, _ = split_slice(path)
    with path.open("rb") as file:
        if file.read(132)[128:] != b"DICM":
            return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pydicom.dcmread(path)


def _encoded(dataset: Dataset) -> bytes:
    """The object as the bytes of its file."""
    content = io.BytesIO()
    dataset.save_as(content, enforce_file_format=True)
    return content.getvalue()


def _made_up(case: ReviewCase, salt: bytes, spacing_mm: tuple[float, float] | None) -> Dataset:
    """Generated identifiers for an image that is not DICOM, the same at each export."""
    now = datetime.now(UTC)
    made = Dataset()
    made.StudyInstanceUID = salted_uid(salt, f"study {case.case}")
    made.PatientName, made.PatientID = f"{case.case}^", case.case
    for keyword in ("PatientBirthDate", "PatientSex", "AccessionNumber", "ReferringPhysicianName", "StudyID"):
        setattr(made, keyword, "")
    made.StudyDate, made.StudyTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    made.Modality, made.BodyPartExamined = "OT", "KNEE"
    made.PatientIdentityRemoved = "YES"
    made.DeidentificationMethod = "Identifiers generated"
    if case.side:
        made.Laterality = case.side
    if spacing_mm:
        made.PixelSpacing = [float(mm) for mm in spacing_mm]
    return made
