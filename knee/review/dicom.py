"""Cases as DICOM, for the readers' own tools: on the pixels of the source, in new series, marked as research."""

from __future__ import annotations

import secrets
import warnings
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import Dataset

from knee.errors import UserError
from knee.files import whole_file
from knee.manifest import split_slice
from knee.review.cases import ReviewCase
from knee.review.html import ReviewRun
from knee.review.identity import deidentified, fill_required, salted_uid
from knee.review.objects import Place, attention_report, parametric_map, secondary_capture, segmentation
from knee.review.original import Original
from knee.review.picture import case_picture, contour_lines

NETWORKS = ("teacher", "student")
_SERIES_NUMBERS = {"capture": 9001, "map": 9002, "mask": 9003, "report": 9004}
_MR_GEOMETRY = ("PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient", "FrameOfReferenceUID")


@dataclass(frozen=True)
class Exported:
    """The files written for a case, and what to know of it: what was left out and why, text within the pixels."""

    files: tuple[Path, ...]
    left_out: tuple[str, ...]


@dataclass
class DicomExport:
    """Writes cases one by one into a folder, each object into its series: one new series a study and kind of object.

    (A DICOM series holds one modality, so captures, maps, segmentations and reports cannot share one.) Without
    ``keep_identity``, objects and the copy of the source that they refer to carry the case's name alone, and salted
    identifiers; ``salt`` decides these, so that one data set maps alike each time.
    """

    folder: Path
    run: ReviewRun
    version: str
    salt: bytes
    keep_identity: bool = False
    networks: tuple[str, ...] = NETWORKS
    force: bool = False
    _session: str = field(init=False, default_factory=lambda: secrets.token_hex(8))
    _counts: dict[str, int] = field(init=False, default_factory=dict)

    def write(self, case: ReviewCase, original: Original) -> Exported:
        """Write the objects of one case. Raises UserError where a file cannot be written."""
        try:
            source = read_dicom(original.path)
        except UserError as error:
            return Exported((), (f"case {case.case}: {error}",))
        reference = self._reference(case, source, original.spacing_mm)
        made: list[tuple[str, Dataset]] = []
        left_out: list[str] = []
        if reference.get("BurnedInAnnotation") == "YES" and not self.keep_identity:
            left_out.append(f"case {case.case}: its file says that text is burned into the pixels; look before sharing")
        if source is not None and not self.keep_identity:
            made.append(("source", reference))
        for network in self.networks:
            made += self._objects(case, network, original, reference, left_out)
        paths = [self.folder / f"{case.case}_{name}.dcm" for name, _ in made]
        for path, (_, dataset) in zip(paths, made, strict=True):
            with whole_file(path, force=self.force) as scratch:
                dataset.save_as(scratch, enforce_file_format=True)
        return Exported(tuple(paths), tuple(left_out))

    def _objects(
        self,
        case: ReviewCase,
        network: str,
        original: Original,
        reference: Dataset,
        left_out: list[str],
    ) -> list[tuple[str, Dataset]]:
        x: NDArray[np.float32] = getattr(original, network)
        picture = case_picture(original.grey, x, case, self.run, network)
        title = f"Attention {network}"
        place = self._place(reference, "capture")
        made = [(f"{network}_capture", secondary_capture(picture, reference, self.run, place, title=title))]
        shows = bool((x > self.run.threshold).any())
        if not shows:
            left_out.append(f"case {case.case}: the {network}'s map shows nothing, so there is no region to export")
        if reference.get("Modality") == "MR":
            missing = [keyword for keyword in _MR_GEOMETRY if not reference.get(keyword)]
            if missing:
                left_out.append(f"case {case.case}: the source has no {', '.join(missing)}: no map and no segmentation")
                return made
            named = {"title": title, "network": network}
            place = self._place(reference, "map")
            made.append((f"{network}_map", parametric_map(x, reference, self.run, place, **named)))
            if shows:
                place = self._place(reference, "mask")
                made.append((f"{network}_mask", segmentation(x, reference, self.run, place, **named)))
        elif "PixelData" in reference and (lines := contour_lines(x, threshold=self.run.threshold)):
            place = self._place(reference, "report")
            view = getattr(case, network)
            report = attention_report(lines, view, reference, self.run, place, title=title, network=network)
            made.append((f"{network}_report", report))
        return made

    def _reference(self, case: ReviewCase, source: Dataset | None, spacing_mm: tuple[float, float] | None) -> Dataset:
        """The image that the objects refer to: the source, its de-identified copy, or identifiers made up for it."""
        if source is None:
            return _made_up(case, self.salt, spacing_mm)
        reference = source if self.keep_identity else deidentified(source, case.case, self.salt)
        fill_required(reference)
        if case.side and not (reference.get("ImageLaterality") or reference.get("Laterality")):
            reference.Laterality = case.side
        return reference

    def _place(self, reference: Dataset, kind: str) -> Place:
        series = salted_uid(self.salt, f"{self._session} {kind} {reference.StudyInstanceUID}")
        self._counts[series] = self._counts.get(series, 0) + 1
        return Place(str(series), _SERIES_NUMBERS[kind], self._counts[series], self.version)


def read_dicom(path: Path) -> Dataset | None:
    """The file as DICOM, whole; None where it is of another format. It was read as an image before."""
    path, _ = split_slice(path)
    with path.open("rb") as file:
        if file.read(132)[128:] != b"DICM":
            return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(path)
    missing = [
        keyword
        for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
        if not dataset.get(keyword)
    ]
    if missing:
        raise UserError(f"{path}: has no {', '.join(missing)}, so nothing can refer to it; export as png instead")
    return dataset


def _made_up(case: ReviewCase, salt: bytes, spacing_mm: tuple[float, float] | None) -> Dataset:
    """Identifiers for an image that never was DICOM, the same at each export."""
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
