"""DICOM headers, read without pixels: kind of object, patient, side, study and date."""

from __future__ import annotations

import re
import threading
import warnings
from pathlib import Path
from typing import NamedTuple

import pydicom
from pydicom.filereader import read_file_meta_info
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from knee.images.dicom import is_dicom, read_subject

# Warning filters are global to the process; only one thread at a time may change them.
_QUIET = threading.Lock()
_DRAWN = ("SD", "SYN", "DRW")
"""Conversion types of scanned documents, synthetic images and drawings."""
_TAGS = ["SOPClassUID", "ImageType", "ConversionType", "StudyDate", "StudyInstanceUID"]


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
        subject = read_subject(path)
        patient, side = subject or ("", "")
        return Header(patient, side, other, date[0] if date else "", study)
    except Exception:
        return None


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
