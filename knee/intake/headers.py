"""DICOM headers, read without pixels: kind of object, patient, side, study and date."""

from __future__ import annotations

import math
import re
import threading
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import pydicom
from pydicom.filereader import read_file_meta_info
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from knee.images.dicom import is_dicom, read_subject

# Warning filters are global to the process; only one thread at a time may change them.
_QUIET = threading.Lock()
_DRAWN = ("SD", "SYN", "DRW")
"""Conversion types of scanned documents, synthetic images and drawings."""
_TAGS = [
    *("SOPClassUID", "ImageType", "ConversionType", "StudyDate", "StudyInstanceUID", "SeriesInstanceUID", "Modality"),
    *("ImagePositionPatient", "ImageOrientationPatient", "InstanceNumber", "EchoTime", "Rows", "Columns", "PatientID"),
    "NumberOfFrames",
]


class Plane(NamedTuple):
    """A slice's place in its series."""

    series: tuple[str, ...]
    """Equal for slices of one volume: patient, study, series, echo time and size."""
    position: tuple[float, ...]
    """Of the first pixel, in mm; () if not given."""
    orientation: tuple[float, ...]
    """Direction cosines of rows and columns; () if not given."""
    number: int | None
    """The instance number."""


class Header(NamedTuple):
    """Information from a DICOM header; '' if it is not given."""

    patient: str
    side: str
    """'L', 'R' or ''."""
    not_an_image: str
    """The kind of an object that is not an image of a knee (e.g. ``Segmentation``), '' for an image."""
    date: str
    """The study date, eight digits."""
    study: str
    """The study's identifier. All images of a study show the same person."""
    plane: Plane | None = None
    """None for radiographs and for images without a series."""
    frames: int = 1


def read_header(path: Path) -> Header | None:
    """The header of a DICOM file without its pixels; None if it is not DICOM or cannot be read."""
    # Damaged headers can raise almost any exception; the error is reported when the image is read.
    try:
        if not is_dicom(path):
            return None
        with _QUIET, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            meta = read_file_meta_info(path)
            kind = str(meta.get("MediaStorageSOPClassUID", ""))
            if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
                return Header("", "", _not_an_image(kind, "", ""), "", "")
            dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS))
            origin = next(iter(dataset.get("ImageType") or []), "")
            kind = str(dataset.get("SOPClassUID") or kind)
            other = _not_an_image(kind, str(origin), str(dataset.get("ConversionType", "")))
            date = re.fullmatch("[0-9]{8}", str(dataset.get("StudyDate") or "").strip())
            study = str(dataset.get("StudyInstanceUID") or "").strip(" \0")
            frames = str(dataset.get("NumberOfFrames") or 1)
            count = int(frames) if frames.isdecimal() and len(frames) < 7 else 1
            plane = _plane(dataset) if count == 1 else None
        subject = read_subject(path)
        patient, side = subject or ("", "")
        return Header(patient, side, other, date[0] if date else "", study, plane, count)
    except Exception:
        return None


def _plane(dataset: pydicom.Dataset) -> Plane | None:
    """The place of an MR or CT slice, or of any image that has a position."""
    position, orientation = (
        _finite(dataset.get(name), length)
        for name, length in (("ImagePositionPatient", 3), ("ImageOrientationPatient", 6))
    )
    placed = bool(position and orientation)
    if not dataset.get("SeriesInstanceUID") or not (placed or dataset.get("Modality") in ("MR", "CT")):
        return None
    shared = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "EchoTime", "Rows", "Columns")
    kind = tuple(str(dataset.get(name) or "") for name in shared)
    number = str(dataset.get("InstanceNumber") or "").strip()
    return Plane(
        kind, position if placed else (), orientation if placed else (), int(number) if number.isdecimal() else None
    )


def _finite(values: Any, length: int) -> tuple[float, ...]:
    """``length`` finite numbers, else ()."""
    try:
        numbers = tuple(float(value) for value in values or ())
    except (TypeError, ValueError):
        return ()
    return numbers if len(numbers) == length and all(map(math.isfinite, numbers)) else ()


def _not_an_image(kind: str, origin: str, conversion: str) -> str:
    """The kind of an object that is not an image, else ''. A derived secondary capture is a report or a rendered result.

    >>> _not_an_image("1.2.840.10008.5.1.4.1.1.66.4", "", ""), _not_an_image("1.2.840.10008.5.1.4.1.1.1.1", "", "")
    ('Segmentation', '')
    """
    name = UID(kind).name
    if name == kind or not name:  # private or not given
        return ""
    if "Secondary Capture" in name:
        return "derived Secondary Capture" if origin == "DERIVED" or conversion in _DRAWN else ""
    return "" if "Image" in name else name.removesuffix(" Storage")
